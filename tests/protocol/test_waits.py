"""Steps that wait, under faults: no run hangs, an answer counts once, no signal is lost, nothing ends too early."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from evpipe import (
    AlreadyAnswered,
    Client,
    NotWaiting,
    PipelineFunction,
    approval,
    pipeline,
    sleep,
    wait_for_event,
)
from evpipe.bus.memory import MemoryBus
from evpipe.bus.protocol import Outcome, Record
from evpipe.client.fold import RunFold
from evpipe.client.handle import RunHandle
from evpipe.controller.watches import Watches
from evpipe.core.machine import Run
from evpipe.core.waits import EARLY_S
from evpipe.wire.codec import decode_map
from evpipe.wire.signals import decode_signal
from tests.protocol.checker import SETTLING_S
from tests.protocol.simulation import FAULTS_S, Outcomes, Simulation, play
from tests.protocol.steps import value_of, work
from tests.protocol.test_simulation import errors

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150")) // 6
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))
PEOPLE = ("ann", "bob", "eve")
PATIENT_S = 3.0

__all__ = ["errors"]


@dataclass(frozen=True, slots=True)
class Waits:
    """One drawn pipeline: work, then an answer, a nap, a signal, an event of another run; then work with what came."""

    name: str
    nap_s: float
    #: Seconds after which each of the people answers, once they see the question.
    answers_after_s: dict[str, float]

    def pipeline(self) -> PipelineFunction[..., Any]:
        plan = self

        @pipeline(name="waits")
        def built(other: str = "") -> int:
            first = work.options(name=f"{plan.name}-a")(f"{plan.name}-a", [])
            answer = approval("How many?", answer=int, show={"first": first}, name="asked")
            late = approval("Anybody?", answer=int, timeout_s=PATIENT_S, default=7, name="late")
            nap = sleep(plan.nap_s, after=[first], name="nap")
            signal = wait_for_event(f"sim.{plan.name}", match={"n": first}, name="signal")
            event: Any = wait_for_event(run=other, kind="finished", name="event") if other else {"kind": "none"}
            inputs = [first, answer, late, signal["count"]]
            return work.options(name=f"{plan.name}-z", after=[nap, event] if other else [nap])(f"{plan.name}-z", inputs)

        return built


@dataclass
class Told:
    """What the people and the senders of signals saw."""

    #: By run: whose answer was taken, in their own eyes.
    taken: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class WaitingSimulation(Simulation):
    def __init__(self, seed: int, faults: tuple[str, ...] | None = None) -> None:
        super().__init__(seed, faults)
        self.told = Told()
        self.ids: list[str] = []

    async def main(self) -> None:
        rng = self.rng
        plans: dict[str, Any] = {
            f"key{i}": Waits(
                name=f"r{i}",
                nap_s=rng.choice((0.0, 0.01, 2.0, 9.0)),
                answers_after_s={who: rng.choice((0.0, 0.0, 0.5, 4.0)) for who in PEOPLE[: rng.randint(1, 3)]},
            )
            for i in range(rng.choice((1, 1, 2)))
        }
        delays = {f"{plan.name}-{end}": rng.choice((0.0, 0.2, 2.0)) for plan in plans.values() for end in "az"}
        await self._on_stage(plans, delays, {})

    async def _one_run(self, client: Client, key: str, plan: Waits) -> None:
        self._open[key] = ""
        await anyio.sleep(self.rng.choice((0.0, 1.0, 5.0)))
        other = {"other": self.ids[0]} if self.ids else {}
        handle: RunHandle[int] = await client.submit(plan.pipeline(), other, key=f"{self.seen.seed}-{key}")
        self._open[key] = handle.id
        self.ids.append(handle.id)
        self.seen.plans[handle.id] = plan  # type: ignore[assignment]  # what is shown of a seed
        self.seen.submitted_at[handle.id] = anyio.current_time()
        async with anyio.create_task_group() as task_group:
            if "cancel" in self.kinds and self.rng.random() < 0.5:
                task_group.start_soon(self._cancel_later, handle)
            for who in plan.answers_after_s:
                task_group.start_soon(self._answer, handle, plan, who)
            task_group.start_soon(self._send, handle, plan)
            result = await handle.result()
            task_group.cancel_scope.cancel()
        del self._open[key]
        self.seen.statuses[handle.id] = result.status
        self.seen.ended_at[handle.id] = anyio.current_time()

    async def _answer(self, handle: RunHandle[int], plan: Waits, who: str) -> None:
        """Answer when the question is seen, over a connection of one's own that has its faults."""
        async with self._bus() as bus:
            own = await Client(bus=bus).get_run(handle.id)
            await _started(own, "asked")
            await anyio.sleep(plan.answers_after_s[who])
            try:
                await own.approve("asked", len(who) + PEOPLE.index(who), by=who)
            except (AlreadyAnswered, NotWaiting) as error:
                self.told.others[handle.id].append(f"{who}: {error}")
            else:
                self.told.taken[handle.id].append(who)
            await anyio.sleep_forever()

    async def _send(self, handle: RunHandle[int], plan: Waits) -> None:
        """Send what does not match, and what does too early; when the step waits, several that match."""
        number = value_of(f"{plan.name}-a", [])
        async with self._bus() as bus:
            client, name = Client(bus=bus), f"sim.{plan.name}"
            await client.send_signal(name, {"n": number, "count": 100})
            await _started(await client.get_run(handle.id), "signal")
            await client.send_signal(name, {"n": number + 1, "count": 200})
            await bus.signals.send(bus.subjects.signal(name), b"{")
            for count in range(3):
                await client.send_signal(name, {"n": number, "count": count})
            await anyio.sleep_forever()


async def _started(handle: RunHandle[int], step: str) -> None:
    watch: Any = handle.watch()
    async with aclosing(watch):
        async for run in watch:
            if run.waits_for(step):
                return


def played(seed: int, errors: list[str], faults: tuple[str, ...] | None = None) -> Outcomes:
    simulation = WaitingSimulation(seed, faults)
    seen = play(seed, simulation)
    seen.errors += errors
    try:
        check(seen, simulation.told)
    except BaseException as error:
        error.add_note(seen.shown())
        raise
    return seen


def check(seen: Outcomes, told: Told) -> None:
    by_run: dict[str, list[Record]] = defaultdict(list)
    for record in seen.server.records:
        by_run[record.subject.split(".")[4]].append(record)
    plans: dict[str, Any] = dict(seen.plans)
    for run_id, plan in plans.items():
        folded, kinds = _folded(seen, run_id, by_run[run_id])
        assert folded.status == seen.statuses[run_id]
        assert folded.status == "succeeded" or (folded.status == "cancelled" and run_id in seen.cancelled)
        _check_answer(folded, kinds, plan, told)
        _check_signal(folded, kinds, plan, seen)
        _check_times(folded, plan)
        assert seen.ended_at[run_id] < FAULTS_S + SETTLING_S + 40.0, f"{run_id} ended at {seen.ended_at[run_id]:.1f}"
        if folded.status == "succeeded":
            values = [folded.outputs[f"{plan.name}-a"], folded.outputs["asked"], 7, folded.outputs["signal"]["count"]]
            assert folded.value == value_of(f"{plan.name}-z", values)
            assert "event" not in folded.steps or folded.outputs["event"]["kind"] == "finished"
    assert not seen.errors, seen.errors


def _folded(seen: Outcomes, run_id: str, records: list[Record]) -> tuple[Run, dict[tuple[str, str], list[Record]]]:
    found: list[Run] = []

    async def main() -> None:
        fold = RunFold(MemoryBus(seen.server), run_id)
        for record in records:
            await fold.fold(record)
        found.append(fold.run)

    anyio.run(main)
    kinds: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        step, kind = record.subject.split(".")[5:]
        kinds[step, kind].append(record)
    return found[0], kinds


def _check_answer(run: Run, kinds: dict[tuple[str, str], list[Record]], plan: Any, told: Told) -> None:
    """Whoever was told that it counted is the one whose answer counts, and nobody else was told so."""
    taken = told.taken[run.id]
    answers = kinds["asked", "approved"]
    assert len(taken) <= 1, f"{taken} were all told that their answer counts"
    if taken:
        assert run.answers["asked"].by == taken[0]
        assert run.outputs["asked"] == len(taken[0]) + PEOPLE.index(taken[0])
    if run.status == "succeeded":
        assert taken or len(told.others[run.id]) < len(plan.answers_after_s), "an answer counts that nobody knows of"
        assert decode_map(answers[0].payload, "answer").map["by"] == run.answers["asked"].by
    else:
        # One that came too late may be there; it counts for nothing.
        assert len(answers) <= 1


def _check_signal(run: Run, kinds: dict[tuple[str, str], list[Record]], plan: Any, seen: Outcomes) -> None:
    """The first that matches from the moment on at which the step waits, and it is in the log once."""
    received = kinds["signal", "received"]
    assert len(received) <= 1
    if not received or run.steps["signal"].status != "succeeded":
        return
    began_s = run.steps["signal"].started_at_s
    assert began_s is not None
    number, name = value_of(f"{plan.name}-a", []), f"sim.{plan.name}"
    for record in seen.server.signals.records:
        if record.subject != seen.server.subjects.signal(name) or record.at_s < began_s or record.payload == b"{":
            continue
        payload = decode_signal(record.payload)
        if payload["n"] == number:
            assert run.outputs["signal"] == payload, "not the first that matches"
            return
    raise AssertionError("it was given what nobody sent")


def _check_times(run: Run, plan: Any) -> None:
    for step, least_s in (("nap", plan.nap_s), ("late", PATIENT_S)):
        state = run.steps[step]
        if state.status == "succeeded":
            assert state.ended_at_s is not None
            assert state.started_at_s is not None
            assert state.ended_at_s - state.started_at_s >= least_s - EARLY_S, f"{step} ended too early"


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    played(seed, errors)


@pytest.mark.parametrize("kind", Simulation.KINDS)
def test_each_fault_alone(kind: str, errors: list[str]) -> None:
    for seed in range(10_000, 10_000 + max(1, SEEDS // 20)):
        played(seed, errors, (kind,))


def test_in_peace_nothing_takes_longer_than_it_must(errors: list[str]) -> None:
    """A nap ends when it is over, and an answer is taken at once."""
    for seed in range(20_000, 20_005):
        seen = played(seed, errors, ())
        assert set(seen.statuses.values()) == {"succeeded"}
        for run_id, plan in seen.plans.items():
            records = [r for r in seen.server.records if f".{run_id}." in r.subject]
            at = {tuple(r.subject.split(".")[5:]): r.at_s for r in records}
            assert at["nap", "due"] - at["nap", "started"] < plan.nap_s + 0.05  # type: ignore[attr-defined]
            assert at["late", "due"] - at["late", "started"] < PATIENT_S + 0.05


# ---- the simulation sees what is wrong


def _found(verdict: str, errors: list[str], faults: tuple[str, ...] | None = None) -> None:
    found: list[str] = []
    for seed in range(1, 40):
        try:
            played(seed, errors, faults)
        except AssertionError as error:
            found.append(str(error))
            if re.search(verdict, found[-1]):
                return
    raise AssertionError(f"no seed showed it; they showed {found}")


def test_who_does_not_look_back_misses_signals(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    """What was sent while nobody led is in the stream, and nobody sends it again."""

    async def nothing(*_: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(Watches, "_missed", nothing)
    _found(r"the run has not ended after|not the first that matches", errors, ("controller",))


def test_two_answers_that_are_both_stored_are_seen(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    """An answer that is published whatever is there."""
    append_wait = MemoryBus.append_wait

    async def anyhow(self: MemoryBus, subject: str, payload: bytes, *, expected: int | None = None) -> Outcome:
        return await append_wait(self, subject, payload, expected=None if subject.endswith("approved") else expected)

    monkeypatch.setattr(MemoryBus, "append_wait", anyhow)
    _found(r"assert 2 <= 1|an answer counts that nobody knows of|assert \d+ ==", errors)
