"""Mapped steps under faults: every element has one result, the list is right, and no run hangs."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass

import anyio
import pytest

from evpipe import PipelineFunction, Retry, pipeline
from evpipe.bus.memory import MemoryBus
from evpipe.bus.protocol import Record
from evpipe.client.fold import RunFold
from evpipe.core.machine import Run
from evpipe.core.states import StepStatus
from tests.protocol.checker import DISTURBING, SETTLING_S
from tests.protocol.simulation import FAULTS_S, Outcomes, Simulation, play
from tests.protocol.steps import listed, one, value_of, work
from tests.protocol.test_simulation import errors

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150")) // 5
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))

__all__ = ["errors"]


@dataclass(frozen=True, slots=True)
class Maps:
    """A list that is known at run time, a map over it, a map over that one, element by element, and the whole."""

    name: str
    count: int

    def pipeline(self) -> PipelineFunction[..., int]:
        name = self.name

        @pipeline(name="maps")
        def built() -> int:
            numbers = listed.options(name="numbers")(f"{name}-n", self.count)
            again = Retry(2, delay_s=0.3)
            first = one.options(name="first", retries=again).map(f"{name}-a", numbers)
            second = one.options(name="second", retries=again).map(f"{name}-b", numbers, before=first)
            return work.options(name="whole")(f"{name}-z", second)

        return built

    def steps(self) -> list[str]:
        """What the bodies of its steps are named."""
        elements = [f"{self.name}-{part}.{i}" for part in "ab" for i in range(self.count)]
        return [f"{self.name}-n", f"{self.name}-z", *elements]

    def value(self) -> int:
        first = [value_of(f"{self.name}-a.{i}", [0]) for i in range(self.count)]
        second = [value_of(f"{self.name}-b.{i}", [before]) for i, before in enumerate(first)]
        return value_of(f"{self.name}-z", second)


class MappedSimulation(Simulation):
    async def main(self) -> None:
        rng = self.rng
        plans = {f"key{i}": Maps(f"r{i}", rng.choice((0, 1, 3, 5))) for i in range(rng.choice((1, 1, 2)))}
        steps = [step for plan in plans.values() for step in plan.steps()]
        failures = {step: rng.choice((1, 2)) for step in steps if "." in step and rng.random() < 0.2}
        await self._on_stage(dict(plans), {step: rng.choice((0.0, 0.01, 0.2, 2.0)) for step in steps}, failures)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    simulation = MappedSimulation(seed, None)
    seen = play(seed, simulation)
    seen.errors += errors
    try:
        check(seen, simulation)
    except BaseException as error:
        error.add_note(seen.shown())
        raise


def check(seen: Outcomes, simulation: Simulation) -> None:
    by_run: dict[str, list[Record]] = defaultdict(list)
    for record in seen.server.records:
        by_run[record.subject.split(".")[4]].append(record)
    plans: dict[str, Maps] = dict(seen.plans)  # type: ignore[arg-type]  # what is shown of a seed
    for run_id, plan in plans.items():
        folded = anyio.run(_folded, seen, run_id, by_run[run_id])
        assert folded.status == seen.statuses[run_id]
        assert all(state.ended for state in folded.steps.values())
        assert seen.ended_at[run_id] < FAULTS_S + SETTLING_S + 40.0
        ended = next(r.sequence for r in by_run[run_id] if r.subject.endswith("._.finished"))
        # One that arrives when its run has ended, and what it was has been removed, is stored once more.
        stored = seen.server.stored_launches
        launches = Counter(subject for subject, length in stored if f".{run_id}." in subject and length < ended)
        assert not launches or max(launches.values()) == 1, "one launch for each attempt"
        assert seen.stage is not None
        begins = Counter((begin.step, begin.attempt) for begin in seen.stage.begins if begin.run == run_id)
        if not set(simulation.kinds) & set(DISTURBING):
            assert not begins or max(begins.values()) == 1
        if run_id in seen.cancelled and folded.status == "cancelled":
            continue
        assert folded.status == "succeeded", folded.message
        assert folded.value == plan.value()
        assert [folded.spec(name).name for name in folded.expansions] == ["first", "second"]
        assert {folded.expansions[name].count for name in ("first", "second")} == {plan.count}
        assert all(state.status is StepStatus.SUCCEEDED for state in folded.steps.values())
        assert {step for step, _ in begins} == set(plan.steps())
    assert not seen.errors, seen.errors


async def _folded(seen: Outcomes, run_id: str, records: list[Record]) -> Run:
    fold = RunFold(MemoryBus(seen.server), run_id)
    for record in records:
        await fold.fold(record)
    return fold.run
