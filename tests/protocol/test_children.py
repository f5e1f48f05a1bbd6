"""Runs whose steps are runs, under faults: each of them ends, once, and as its step; none is left alone, none is lost.

Controllers die after any message of theirs, several lead at once, answers are lost, roots and children are cancelled.
"""

from __future__ import annotations

import os
import re
from typing import Any

import anyio
import pytest

from evpipe.controller.children import Children
from evpipe.core.children import end_of_step
from evpipe.core.events import Finished
from evpipe.core.lineage import Parent
from evpipe.wire.children import encode_end_of_step
from evpipe.wire.spool import spooled
from tests.protocol.families import check_families
from tests.protocol.simulation import Outcomes, simulate
from tests.protocol.test_simulation import errors

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150")) * 2 // 5
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))

__all__ = ["errors"]


def played(seed: int, errors: list[str], faults: tuple[str, ...] | None = None) -> Outcomes:
    seen = simulate(seed, faults, families=True)
    seen.errors += errors
    try:
        check_families(seen)
    except BaseException as error:
        error.add_note(seen.shown())
        raise
    return seen


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    played(seed, errors)


#: What they found: an end that is said again after its run's (59), two pipelines that were taken for one (2936).
@pytest.mark.parametrize("seed", [59, 2936])
def test_seeds_that_found_something(seed: int, errors: list[str]) -> None:
    played(seed, errors)


@pytest.mark.parametrize("kind", ["between", "child", "cancel", "lost", "controller", "buckets", "ghost"])
def test_each_fault_alone(kind: str, errors: list[str]) -> None:
    for seed in range(10_000, 10_000 + max(1, SEEDS // 20)):
        played(seed, errors, (kind,))


def test_in_peace_nothing_happens_twice(errors: list[str]) -> None:
    """Every attempt begins once, of runs of three generations."""
    generations = 0
    for seed in range(20_000, 20_010):
        seen = played(seed, errors, ())
        assert seen.stage is not None
        keys = [(b.run, b.step, b.attempt) for b in seen.stage.begins]
        assert len(keys) == len(set(keys))
        generations = max(generations, *(len(plan.all()) for plan in seen.plans.values()))
    assert generations > 2


# ---- without a rule some seed goes wrong


async def _finished_first(self: Children, case: Any, end: Finished) -> None:
    self._append(case, end)
    await anyio.sleep(0.01)
    parent = case.run.parent
    await self._end_step(case, parent, end_of_step(case.run, end))


async def _untold(*_: Any) -> None:
    return


async def _said_again(self: Children, case: Any, parent: Parent, event: Any) -> None:
    with spooled() as spool:
        kind, payload = encode_end_of_step(event, spool)
    subject = self._subjects.event(parent.pipeline, parent.run, parent.step, kind)
    await self._bus.append_wait(subject, payload)


#: What takes the rule away, the verdict that must be found then, and among which faults.
MUTANTS: dict[str, tuple[str, Any, str, tuple[str, ...] | None]] = {
    "a run finishes before its step has ended": (
        "finish",
        _finished_first,
        r"the run has not ended after \d+ s of simulated time|was said after its run's",
        None,
    ),
    "a run is cancelled whose submit may be on its way": (
        "_submit_and_wait",
        _untold,
        r"the run has not ended after \d+ s of simulated time",
        ("cancel", "between", "lost"),
    ),
    "a run that is a step is not told of the cancel": (
        "cancel",
        _untold,
        r"the run has not ended after \d+ s of simulated time|was not told",
        ("cancel",),
    ),
    "the end of a step is said by whoever leads its run": ("_end_step", _said_again, "has ended twice", None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_without_the_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    method, instead, verdict, faults = MUTANTS[name]
    monkeypatch.setattr(Children, method, instead)
    found: list[str] = []
    for seed in range(1, 120):
        try:
            check_families(simulate(seed, faults, families=True))
        except AssertionError as error:
            found.append(str(error))
            if re.search(verdict, found[-1]):
                return
    raise AssertionError(f"no seed showed that this is missing: {name}; they showed {found}")
