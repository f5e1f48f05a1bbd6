"""Equal steps of several runs meet in the cache, under faults: each run ends, right, whoever dies meanwhile."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import pytest

from evpipe.controller.look_ups import LookUps
from tests.protocol.checker import check
from tests.protocol.simulation import Outcomes, Simulation, simulate
from tests.protocol.test_simulation import errors

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150")) * 2 // 5
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))

__all__ = ["errors"]


def played(seed: int, errors: list[str], faults: tuple[str, ...] | None = None, *, skips: bool = False) -> Outcomes:
    seen = simulate(seed, faults, cached=True, skips=skips)
    seen.errors += errors
    try:
        check(seen)
    except BaseException as error:
        error.add_note(seen.shown())
        raise
    return seen


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    """A leader may fail, be cancelled, die with its worker or its controller, and the cache may be deleted."""
    # In some, steps skip themselves.
    played(seed, errors, skips=seed % 3 == 0)


@pytest.mark.parametrize("kind", Simulation.KINDS)
def test_each_fault_alone(kind: str, errors: list[str]) -> None:
    for seed in range(10_000, 10_000 + max(1, SEEDS // 20)):
        played(seed, errors, (kind,))


def test_in_peace_equal_steps_are_executed_once(errors: list[str]) -> None:
    """Of all runs together: those that come while it runs wait for its result, those that come later find it."""
    several = 0
    for seed in range(20_000, 20_015):
        seen = played(seed, errors, ())
        _check_executed_once(seen)
        several += len(seen.plans) > 1
    assert several, "runs met"


def _check_executed_once(seen: Outcomes) -> None:
    assert seen.stage is not None
    plan = next(iter(seen.plans.values()))
    begins = Counter((begin.step, begin.attempt) for begin in seen.stage.begins)
    for (name, attempt), count in begins.items():
        # What fails is not recorded: the next one that waits for it tries, too.
        if not plan.failures.get(name):
            assert count == 1, f"seed {seen.seed}: {name} began {count} times as attempt {attempt}"


async def _always_lives(*_: Any) -> bool:
    return True


async def _leads_unseen(*_: Any) -> bool:
    return True


def _found(monkeypatch: pytest.MonkeyPatch, method: str, instead: Any, verdict: str, faults: Any) -> None:
    monkeypatch.setattr(LookUps, method, instead)
    found: list[str] = []
    for seed in range(1, 60):
        try:
            seen = simulate(seed, faults, cached=True)
            check(seen)
            _check_executed_once(seen)
        except AssertionError as error:
            found.append(str(error))
            if re.search(verdict, found[-1]):
                return
    raise AssertionError(f"no seed showed it; they showed {found}")


def test_who_trusts_a_marker_and_not_the_log_waits_for_ever(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    """Rule 14: a leader that has failed, or was cancelled, leaves its marker behind."""
    _found(monkeypatch, "_lives", _always_lives, r"the run has not ended after", None)


def test_without_markers_equal_steps_are_executed_by_each(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    """The simulation sees that they do not wait for each other."""
    _found(monkeypatch, "_lead", _leads_unseen, r"began \d+ times", ())
