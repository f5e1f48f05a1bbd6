"""What must be true of simulated runs whose steps are runs, beside what is true of any run."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from evpipe.bus.protocol import Record
from evpipe.core.lineage import child_run_id
from evpipe.core.retry import LOST_MAX
from evpipe.wire.codec import decode_map
from evpipe.wire.messages import decode_submission
from evpipe.wire.registry import BUCKET, decode_run_entry
from tests.protocol import checker
from tests.protocol.checker import DISTURBING, SETTLING_S, Facts
from tests.protocol.simulation import FAULTS_S, Outcomes, Plan
from tests.protocol.steps import value_of


class Member:
    """A run of a family: a root, or an attempt of a step of another member."""

    def __init__(self, run: str, plan: Plan, records: list[Record], inputs: list[int]) -> None:
        self.run = run
        self.plan = plan
        self.facts = Facts(plan, records)
        self.inputs = inputs
        #: Values of its steps.
        self.values = {name: value for name, (_, _, value) in self.facts.ends.items() if value is not None}

    def takes(self, step: str) -> list[int]:
        above = self.plan.parents[step]
        return [self.values.get(parent, 0) for parent in above] if above else self.inputs

    def payload(self, kind: str) -> dict[str, Any]:
        return decode_map(self.facts.about_run(kind)[0].payload, "event").map

    @property
    def finished(self) -> int:
        return self.facts.about_run("finished")[0].sequence


def check_families(seen: Outcomes) -> None:
    """Check everything that was seen of one simulation."""
    by_run: dict[str, list[Record]] = defaultdict(list)
    for record in seen.server.records:
        by_run[record.subject.split(".")[4]].append(record)
    found: dict[str, Member] = {}
    for run, plan in seen.plans.items():
        assert run in by_run, f"{run} was submitted and is not in the log"
        member = found[run] = Member(run, plan, by_run[run], [])
        _check_member(member, seen)
        _check_family(member, by_run, found, seen)
        _check_patience(run, plan, seen)
    assert set(by_run) == set(found), "there are runs that are nobody's"
    assert not seen.errors, seen.errors


def _check_member(member: Member, seen: Outcomes) -> None:
    facts = member.facts
    checker._check_decisions(facts)
    _check_ends(member, seen)
    checker._check_begins(member.run, facts, seen)
    checker._check_launches(member.run, facts, seen)
    folded = checker._folded(seen, member.run, facts.records)
    checker._check_fold(member.run, facts, folded, seen)
    checker._check_registry(member.run, facts, folded, seen)


def _check_ends(member: Member, seen: Outcomes) -> None:
    status = member.payload("finished")["status"]
    facts, plan = member.facts, member.plan
    for name, above in plan.parents.items():
        kind, sequence, value = facts.ends[name]
        assert kind != "open", f"{member.run} finished with {name} open"
        assert sequence < member.finished
        if kind == "succeeded":
            assert all(facts.ends[p][0] == "succeeded" for p in above), f"{name} succeeded before its parents"
            if name not in plan.children:
                assert value == value_of(name, member.takes(name))
        if kind == "skipped":
            assert any(facts.ends[p][0] in ("failed", "skipped") for p in above), f"{name} was skipped for nothing"
        if kind == "cancelled":
            assert facts.about_run("cancel-requested"), f"{name} was cancelled and nobody asked"
    kinds = Counter(end[0] for end in facts.ends.values())
    if not facts.about_run("cancel-requested"):
        assert status == ("failed" if kinds["failed"] else "succeeded")
        if not any(seen.faults[kind] for kind in (*DISTURBING, "child")):
            assert {name: end[0] for name, end in facts.ends.items()} == _expected(plan)
    elif kinds["cancelled"]:
        assert status == "cancelled"


def _expected(plan: Plan) -> dict[str, str]:
    """How the steps end when nothing disturbs them."""
    ends: dict[str, str] = {}
    for name, above in plan.parents.items():
        doomed = plan.failures.get(name, 0) > plan.retries[name]
        if name in plan.children:
            doomed = "failed" in _expected(plan.children[name]).values()
        upstream = any(ends[parent] != "succeeded" for parent in above)
        ends[name] = "skipped" if upstream else "failed" if doomed else "succeeded"
    return ends


def _check_family(parent: Member, by_run: dict[str, list[Record]], found: dict[str, Member], seen: Outcomes) -> None:
    for step, plan in parent.plan.children.items():
        ends = _ends_by_attempt(parent, step)
        attempts = [k for k in range(1, parent.plan.retries[step] + 2) if child_run_id(parent.run, step, k) in by_run]
        assert attempts == list(range(1, len(attempts) + 1)), f"runs of attempts {attempts} of {step}"
        assert set(ends) - {0} == set(attempts), f"{step} has runs {attempts} and ends {ends}"
        for attempt in attempts:
            run = child_run_id(parent.run, step, attempt)
            child = found[run] = Member(run, plan, by_run[run], parent.takes(step))
            _check_member(child, seen)
            _check_child(parent, child, step, attempt, ends[attempt], seen)
            _check_family(child, by_run, found, seen)


def _ends_by_attempt(parent: Member, step: str) -> dict[int, tuple[str, Record]]:
    """The end that was said of each attempt: exactly one."""
    found: dict[int, tuple[str, Record]] = {}
    for kind in ("succeeded", "failed", "cancelled"):
        for record in parent.facts.kinds.get((step, kind), []):
            attempt = decode_map(record.payload, "event").map["attempt"]
            assert attempt not in found, f"{step} attempt {attempt} has ended twice"
            found[attempt] = (kind, record)
    return found


def _check_child(
    parent: Member, child: Member, step: str, attempt: int, said: tuple[str, Record], seen: Outcomes
) -> None:
    kind, record = said
    payload = decode_map(record.payload, "event").map
    submission = decode_submission(child.facts.records[0].payload)
    assert submission.parent is not None
    assert (submission.parent.run, submission.parent.step) == (parent.run, step)
    assert submission.parent.attempt == attempt
    assert parent.facts.records[0].sequence < child.facts.records[0].sequence
    assert record.sequence < child.finished, f"the end of {step} attempt {attempt} was said after its run's"
    assert record.sequence < parent.finished, f"run {parent.run} finished before its step {step}"
    status = child.payload("finished")["status"]
    cancels = child.facts.about_run("cancel-requested")
    if kind == "succeeded":
        assert status == "succeeded"
        assert payload["value"] == child.values[next(reversed(child.plan.parents))]
    elif kind == "failed":
        assert status in ("failed", "cancelled")
        # What somebody has cancelled is not begun again, however far above.
        assert payload["reason"] == "request" or status != "cancelled"
        assert seen.cancelled_children or payload["reason"] != "request"
        assert child.run in seen.cancelled_children or status != "cancelled"
    else:
        assert parent.facts.about_run("cancel-requested"), "of a run that was cancelled itself"
        assert cancels, f"{child.run} was not told"
        assert child.payload("cancel-requested")["by_parent"] is True
        assert cancels[0].sequence < record.sequence
    asked = parent.facts.about_run("cancel-requested")
    disturbed = any(seen.faults[fault] for fault in DISTURBING)
    if asked and record.at_s > asked[0].at_s + (SETTLING_S if disturbed else 0.5):
        assert cancels, f"{child.run} was not told"
    if cancels and child.run not in seen.cancelled_children:
        assert parent.facts.about_run("cancel-requested")[0].sequence < cancels[0].sequence
    entries = seen.server.buckets.get(BUCKET, {})
    if child.run in entries:
        entry = decode_run_entry(entries[child.run][0].value)
        assert (entry.parent, entry.root) == (parent.run, submission.parent.root)


def _check_patience(run: str, plan: Plan, seen: Outcomes) -> None:
    """No stall: when the faults have stopped, what is left takes what its steps take, one after the other."""
    patience_s = _longest_s(plan) + SETTLING_S * (1 + len(plan.all()))
    assert seen.ended_at[run] < FAULTS_S + patience_s, f"{run} ended at {seen.ended_at[run]:.1f}"


def _longest_s(plan: Plan) -> float:
    total_s = 0.0
    for name in plan.parents:
        once_s = _longest_s(plan.children[name]) if name in plan.children else plan.delays_s[name]
        total_s += (plan.retries[name] + 1 + LOST_MAX) * (once_s + plan.retry_delay_s * 1.1)
    return total_s
