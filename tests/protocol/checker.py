"""What must be true of any simulation, read from the log, the bodies' own witness and the stored launches."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import anyio

from evpipe import Rate, Semaphore
from evpipe.bus.memory import MemoryBus
from evpipe.bus.protocol import Record
from evpipe.client.fold import RunFold
from evpipe.controller.look_ups import LOOK_AGAIN_S
from evpipe.core.machine import Run
from evpipe.core.retry import LOST_MAX
from evpipe.wire.codec import decode_map
from evpipe.wire.holds import BUCKET as LIMITS_BUCKET
from evpipe.wire.holds import decode_holders
from evpipe.wire.notes import Piece, decode_piece
from evpipe.wire.registry import BUCKET, decode_run_entry
from evpipe.worker.pieces import EVERY_S
from tests.protocol.simulation import EPOCH_S, FAULTS_S, Outcomes, Plan
from tests.protocol.steps import value_of

#: Faults after which an attempt may be begun again, or be given up as lost.
#: Ends with a value.
VALUES = ("succeeded", "cached")
#: What a worker tells of the end of an attempt.
TOLD = ("succeeded", "failed", "skipped")

DISTURBING = ("lost", "silent", "ghost", "full", "blink", "pause", "crash", "forget")


#: The one rate of limited plans.
RATE_COUNT, RATE_S = 2, 1.5

#: Time-outs that may still be running when the faults stop: a lease, an ack wait, three questions, a repetition.
SETTLING_S = 25.0


class Facts:
    """What the log says of one run, by a second and simpler reading than the core's."""

    def __init__(self, plan: Plan, records: list[Record]) -> None:
        self.plan = plan
        self.records = records
        self.kinds: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            step, kind = record.subject.split(".")[5:]
            self.kinds.setdefault((step, kind), []).append(record)
        self.ends = {name: self._end(name) for name in plan.parents}

    def about_run(self, kind: str) -> list[Record]:
        return self.kinds.get(("_", kind), [])

    def _end(self, name: str) -> tuple[str, int, Any]:
        """How a step ended: by the first end of its current attempt. (kind, sequence, value)."""
        attempt, failures, losses = 1, 0, 0
        cancelled_at = min((r.sequence for r in self.about_run("cancel-requested")), default=None)
        finished_at = min((r.sequence for r in self.about_run("finished")), default=None)
        for record in self.records:
            step, kind = record.subject.split(".")[5:]
            if finished_at is not None and record.sequence >= finished_at:
                break
            if step != name or kind not in ("succeeded", "cached", "failed", "skipped", "cancelled"):
                continue
            fields = decode_map(record.payload, "event").map
            if kind == "cancelled" or (kind == "skipped" and "attempt" not in fields):
                return kind, record.sequence, None
            if fields["attempt"] != attempt:
                continue
            if kind in VALUES:
                return kind, record.sequence, fields["value"]
            if kind == "skipped":
                return kind, record.sequence, None
            after_cancel = cancelled_at is not None and cancelled_at < record.sequence
            if not after_cancel and fields["reason"] == "lost" and losses < LOST_MAX:
                losses, attempt = losses + 1, attempt + 1
            elif not after_cancel and fields["reason"] == "error" and failures < self.plan.retries[name]:
                failures, attempt = failures + 1, attempt + 1
            else:
                return kind, record.sequence, None
        return "open", 0, None


def check(seen: Outcomes) -> None:
    """Check everything that was seen of one simulation."""
    by_run: dict[str, list[Record]] = defaultdict(list)
    for record in seen.server.records:
        by_run[record.subject.split(".")[4]].append(record)
    assert set(by_run) == set(seen.plans), "every run was submitted, and nothing else is in the log"
    for run, plan in seen.plans.items():
        facts = Facts(plan, by_run[run])
        _check_decisions(facts)
        _check_ends(run, facts, seen)
        _check_begins(run, facts, seen)
        _check_launches(run, facts, seen)
        folded = _folded(seen, run, by_run[run])
        _check_fold(run, facts, folded, seen)
        _check_notes(run, facts, folded)
        _check_pieces(run, facts, seen)
        _check_registry(run, facts, folded, seen)
        _check_patience(run, plan, seen)
    assert not seen.errors, seen.errors


def _check_decisions(facts: Facts) -> None:
    for (step, kind), all_records in facts.kinds.items():
        # What the workers tell may be told twice.
        records = [r for r in all_records if kind != "skipped" or not _has_attempt(r)]
        if not records:
            continue
        if kind in ("finished", "skipped", "cancelled", "cached", "submitted", "cancel-requested"):
            assert len(records) == 1, f"{len(records)} times {step} {kind}"
        if kind in ("retry", "due"):
            attempts = Counter(decode_map(r.payload, "event").map["attempt"] for r in records)
            assert max(attempts.values()) == 1, f"{step} {kind}: {attempts}"
    assert len(facts.about_run("finished")) == 1
    assert facts.about_run("submitted")[0] is facts.records[0]


def _check_ends(run: str, facts: Facts, seen: Outcomes) -> None:
    finished = facts.about_run("finished")[0]
    plan = facts.plan
    status = decode_map(finished.payload, "event").map["status"]
    values: dict[str, int] = {}
    for name, above in plan.parents.items():
        kind, sequence, value = facts.ends[name]
        assert kind != "open", f"{run} finished with {name} open"
        assert sequence < finished.sequence
        if kind in VALUES:
            assert all(p in values for p in above), f"{name} succeeded before its parents"
            values[name] = value_of(name, [values[p] for p in above])
            assert value == values[name], f"{name} has {value}, not {values[name]}"
            assert plan.failures.get(name, 0) <= plan.retries[name] or seen.faults
        if kind == "cached":
            assert plan.cached
            _check_origin(facts.kinds[name, "cached"][0], seen)
        if kind == "skipped":
            itself = name in plan.skips and all(p in values for p in above)
            assert itself or any(facts.ends[p][0] in ("failed", "skipped") for p in above), (
                f"{name} was skipped for nothing"
            )
        if kind == "cancelled":
            assert facts.about_run("cancel-requested"), f"{name} was cancelled and nobody asked"
    kinds = Counter(end[0] for end in facts.ends.values())
    cancel = facts.about_run("cancel-requested")
    if kinds["cancelled"]:
        assert status == "cancelled"
    elif kinds["failed"]:
        assert status in ("failed", "cancelled") if cancel else status == "failed"
    elif not cancel:
        assert status == "succeeded"
    disturbed = any(seen.faults[kind] for kind in DISTURBING)
    if not disturbed and not cancel:
        for name in plan.parents:
            doomed = plan.failures.get(name, 0) > plan.retries[name]
            upstream = any(facts.ends[p][0] not in VALUES for p in plan.parents[name])
            wanted = "failed" if doomed else "skipped" if name in plan.skips else "succeeded"
            wanted = "skipped" if upstream else wanted
            found = "succeeded" if facts.ends[name][0] == "cached" else facts.ends[name][0]
            assert found == wanted, f"{name} is {facts.ends[name][0]}, not {wanted}"


def _has_attempt(record: Record) -> bool:
    return "attempt" in decode_map(record.payload, "event").map


def _check_origin(record: Record, seen: Outcomes) -> None:
    """What the cache gave is what the step that it names has told, or was about to tell."""
    origin = decode_map(record.payload, "event").map["from"]
    assert seen.stage is not None
    begun = any((b.run, b.step) == (origin["run"], origin["step"]) for b in seen.stage.begins)
    assert begun, f"{record.subject} comes from {origin}, which never began"


def _check_notes(run: str, facts: Facts, folded: Run) -> None:
    """What an attempt said is with its end, all of it and nobody else's; the fold has that of the end that counts."""
    for (step, kind), records in facts.kinds.items():
        for record in records if kind in (*TOLD, "cached") and (kind != "skipped" or _has_attempt(records[0])) else ():
            fields = decode_map(record.payload, "event").map
            if kind == "failed" and fields["reason"] != "error":
                # Nobody is left who heard it.
                continue
            notes = fields["notes"]
            who_run, who_step, number = str(notes["artifacts"]["who"]).split()
            if kind == "cached":
                assert (who_run, who_step) == (fields["from"]["run"], fields["from"]["step"])
            else:
                assert (who_run, who_step, int(number)) == (run, step, fields["attempt"])
            assert [row[:2] for row in notes["metrics"]] == [["began", float(number)], ["woke", float(number)]]
    for name, (kind, sequence, _) in facts.ends.items():
        kept = folded.steps[name].notes
        if kind in VALUES or (kind == "skipped" and folded.steps[name].attempt):
            (record,) = (record for record in facts.records if record.sequence == sequence)
            assert kept is not None
            assert dict(kept.artifacts) == decode_map(record.payload, "event").map["notes"]["artifacts"]
        elif kind in ("skipped", "cancelled"):
            assert kept is None


def _check_pieces(run: str, facts: Facts, seen: Outcomes) -> None:
    """What an attempt told before its end is what it said; and where it was cancelled in peace, that is all of it."""
    assert seen.stage is not None
    begins = [begin for begin in seen.stage.begins if begin.run == run]
    told: dict[tuple[str, int], dict[str, list[Piece]]] = {}
    for (step, kind), records in facts.kinds.items():
        for piece in [decode_piece(record.payload) for record in records if kind == "progress"]:
            told.setdefault((step, piece.attempt), {}).setdefault(piece.worker, []).append(piece)
            assert piece.notes.artifacts.get("who", f"{run} {step} {piece.attempt}") == f"{run} {step} {piece.attempt}"
            said = [["began", float(piece.attempt)], ["woke", float(piece.attempt)]]
            assert [row[:2] for row in piece.notes.metrics] == said[piece.offset :][: piece.points]
    for (step, attempt), by_worker in told.items():
        for worker, pieces in by_worker.items():
            began = [b for b in begins if (b.step, b.attempt, b.worker) == (step, attempt, worker)]
            assert began, f"{worker} told of {step} attempt {attempt}, and never began it"
            # The first that the log has: one before it may have been dropped, and this has what was in it.
            first = min(pieces, key=lambda piece: piece.number)
            assert (first.offset, "who" in first.notes.artifacts) == (0, True)
    if seen.faults.keys() - {"calm", "cancel"}:
        return
    cancelled_at = min((r.at_s - EPOCH_S for r in facts.about_run("cancel-requested")), default=math.inf)
    for begin in begins:
        pieces = [piece for some in told.get((begin.step, begin.attempt), {}).values() for piece in some]
        # The clock of the log is coarser, from 1970 on: a body that ends with the cancel may seem to end before it.
        if begin.ended_at < cancelled_at - 0.001 and begin.ended_at - begin.at < EVERY_S:
            assert not pieces, f"{begin} is quick, and told of itself before its end"
        if facts.ends[begin.step][0] == "cancelled" and begin.at < cancelled_at <= begin.ended_at + 0.001:
            assert sum(piece.points for piece in pieces) >= 1, f"{begin} was cancelled, and what it said is not kept"


def _check_begins(run: str, facts: Facts, seen: Outcomes) -> None:
    assert seen.stage is not None
    plan = facts.plan
    nodes = sum(seen.faults[kind] for kind in ("blink", "pause", "crash", "forget"))
    finished = facts.about_run("finished")[0].sequence
    per_attempt = Counter((b.step, b.attempt) for b in seen.stage.begins if b.run == run)
    for begin in seen.stage.begins:
        if begin.run != run:
            continue
        # A launch that lay in the network until after the purge runs for nothing: the protocol's known residue.
        assert begin.log_length < finished or seen.faults["ghost"], f"{begin} after the run's end at {finished}"
        for parent in plan.parents[begin.step]:
            kind, sequence, _ = facts.ends[parent]
            assert kind in VALUES, f"{begin} and its parent {parent} is {kind}"
            assert sequence <= begin.log_length, f"{begin} before the end of {parent} at {sequence}"
        for kind in TOLD if begin.log_length < finished else ():
            for record in facts.kinds.get((begin.step, kind), []):
                ended = decode_map(record.payload, "event").map.get("attempt", 0) >= begin.attempt
                # One that comes again is looked up first: after its end was in the log it does not begin.
                # At one and the same moment the two may cross.
                crossed = record.sequence > begin.log_length or record.at_s - EPOCH_S > begin.at - 0.2
                assert not ended or crossed, f"{begin} after its end at {record.sequence}"
    for (name, attempt), count in per_attempt.items():
        messages = sum(f".{run}.{name}" in line for line in seen.trace)
        assert count <= 1 + nodes + messages, f"{name} attempt {attempt} began {count} times"
        if not nodes + messages:
            assert attempt <= 1 + plan.retries[name]
    for name in plan.parents:
        if facts.ends[name][0] == "succeeded" and name not in plan.children:
            assert any(step == name for step, _ in per_attempt), f"{name} succeeded and no body of it began"


def _steps_s(plan: Plan) -> float:
    return sum(
        (plan.retries[name] + 1 + LOST_MAX) * (plan.delays_s[name] + plan.retry_delay_s * 1.1) for name in plan.parents
    )


def check_limits(seen: Outcomes) -> int:
    """Check that mutexes and semaphores were never exceeded, and that what ended holds nothing.

    Returns:
        How many bodies began while others with the same semaphore ran.
    """
    shared = _check_overlaps(seen)
    for key, (entry, _) in seen.server.buckets.get(LIMITS_BUCKET, {}).items():
        # What a controller that died had not let go is let go by whoever wants it next, and here nobody does.
        if key.startswith("semaphore.") and not any(seen.faults[kind] for kind in ("crash", "blink", "forget")):
            assert not decode_holders(entry.value), f"{key} is held by {decode_holders(entry.value)} in the end"
    if not seen.faults.keys() - {"calm"}:
        _check_rates(seen)
    return shared


def _check_overlaps(seen: Outcomes) -> int:
    """Of the bodies that run at one time with one name, there are no more than any of them declares."""
    assert seen.stage is not None
    # Who is cut off may run on when it is known to be lost, or cancelled: as far as at least once goes.
    cut_off = any(seen.faults[kind] for kind in ("blink", "pause", "forget"))
    # And of an attempt that began twice, as after a server that forgot acks, the first end is the one that counts.
    begins = Counter((begin.run, begin.step, begin.attempt) for begin in seen.stage.begins)
    twice = {(run, step) for (run, step, _), count in begins.items() if count > 1}
    over: dict[tuple[str, str, int], float] = {}
    for record in seen.server.records:
        _, _, _, _, run, step, kind = record.subject.split(".")
        lost = kind == "failed" and b"lost" in record.payload
        if lost or (kind == "cancelled" and cut_off) or (kind in TOLD and (run, step) in twice):
            attempt = decode_map(record.payload, "event").map["attempt"]
            over.setdefault((run, step, attempt), record.at_s - EPOCH_S)
    bodies: dict[str, list[tuple[float, float, tuple[str, str], int]]] = {}
    for begin in seen.stage.begins:
        ended_at = min(begin.ended_at, over.get((begin.run, begin.step, begin.attempt), math.inf))
        for limit in seen.plans[begin.run].limits.get(begin.step, ()):
            if not isinstance(limit, Rate):
                count = limit.count if isinstance(limit, Semaphore) else 1
                bodies.setdefault(limit.name, []).append((begin.at, ended_at, (begin.run, begin.step), count))
    # Whoever leads next cannot know who was about to begin: deleting the bucket has a price.
    deleted = seen.faults["buckets"]
    shared = 0
    for name, found in bodies.items():
        for at, ended_at, _, _ in found:
            if ended_at <= at:
                # It came to life again, and was lost before: nothing stops such a one but its worker.
                continue
            # The log's clock counts from 1970, and is so much coarser.
            now = {key: count for begun, until, key, count in found if begun <= at < until - 1e-6}
            assert len(now) <= min(now.values(), default=0) or deleted, (
                f"seed {seen.seed}: {name} at {at:.3f}: {sorted(now)}"
            )
            shared += len(now) > 1
    return shared


def _check_rates(seen: Outcomes) -> None:
    launched = zip(seen.server.stored_launches, seen.server.launched_at, strict=True)
    moments: list[float] = []
    for (subject, _), at in launched:
        _, _, _, _, run, step, _ = subject.split(".")
        if any(isinstance(limit, Rate) for limit in seen.plans[run].limits.get(step, ())):
            moments.append(at)
    for i, at in enumerate(moments):
        within = sum(at <= other < at + RATE_S - 0.001 for other in moments[i:])
        assert within <= RATE_COUNT, f"seed {seen.seed}: {within} launches within {RATE_S} s of {at:.3f}"


def _check_patience(run: str, plan: Plan, seen: Outcomes) -> None:
    """No stall: when the faults have stopped, what is left takes what its steps take, one after the other."""
    # Who waits for another in vain looks again after a while, and then does it itself; in turn, if they all fail.
    turns, look_again_s = (len(seen.plans), LOOK_AGAIN_S) if plan.cached else (1, 0.0)
    steps_s = _steps_s(plan)
    patience_s = turns * (steps_s + len(plan.parents) * look_again_s) + SETTLING_S
    if plan.limits:
        # Whoever shares a limit with others may be behind all of them, and each may be looked at in vain before.
        patience_s = SETTLING_S + sum(
            _steps_s(other) + len(other.parents) * (LOOK_AGAIN_S + RATE_S) for other in seen.plans.values()
        )
    assert seen.ended_at[run] < FAULTS_S + patience_s, f"{run} ended at {seen.ended_at[run]:.1f}"


def _check_launches(run: str, facts: Facts, seen: Outcomes) -> None:
    finished = facts.about_run("finished")[0].sequence
    before_end = Counter(
        subject for subject, length in seen.server.stored_launches if f".{run}." in subject and length < finished
    )
    assert max(before_end.values(), default=1) == 1, f"stored twice: {before_end}"
    left = [subject for subject in seen.server.launches if f".{run}." in subject]
    late = [s for s, length in seen.server.stored_launches if f".{run}." in s and length >= finished]
    # A leader that dies between an end and the purge leaves them to the next take-over that finds no older run alive.
    died = any(seen.faults[kind] for kind in ("blink", "pause", "crash", "forget"))
    assert set(left) <= set(late) or died, f"launches of a run that has ended: {left}"


def _folded(seen: Outcomes, run: str, records: list[Record]) -> Run:
    fold: list[Run] = []

    async def main() -> None:
        bus = MemoryBus(seen.server)
        folding = RunFold(bus, run)
        for record in records:
            await folding.fold(record)
        fold.append(folding.run)

    anyio.run(main)
    return fold[0]


def _check_fold(run: str, facts: Facts, folded: Run, seen: Outcomes) -> None:
    assert folded.ended
    assert folded.status == seen.statuses.get(run, folded.status), "the result that the client gave is the log's"
    for name in facts.plan.parents:
        assert folded.steps[name].status == facts.ends[name][0], f"{name}: {folded.steps[name]} is {facts.ends[name]}"
    if folded.status == "succeeded":
        assert folded.value == facts.ends[next(reversed(facts.plan.parents))][2]


def _check_registry(run: str, facts: Facts, folded: Run, seen: Outcomes) -> None:
    entries = seen.server.buckets.get(BUCKET, {})
    if run not in entries:
        # A bucket that was deleted after the run's last event has nothing to write it again.
        assert seen.faults["buckets"], f"{run} is not in the registry"
        return
    entry = decode_run_entry(entries[run][0].value)
    assert entry.status == folded.status, f"the registry shows {entry}"
    assert entry.ended_at_s == max(
        r.at_s for r in facts.records if r.sequence <= facts.about_run("finished")[0].sequence
    )
