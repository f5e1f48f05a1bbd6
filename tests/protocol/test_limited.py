"""Runs that share mutexes, semaphores and rates, under faults: never exceeded, and nobody waits for ever."""

from __future__ import annotations

import os

import pytest

from evpipe.controller.limit_entries import SemaphoreEntry
from tests.protocol.checker import check, check_limits
from tests.protocol.simulation import Outcomes, Simulation, simulate
from tests.protocol.test_simulation import errors

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150")) // 5
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))

__all__ = ["errors"]


def played(seed: int, errors: list[str], faults: tuple[str, ...] | None = None, *, skips: bool = False) -> Outcomes:
    seen = simulate(seed, faults, limited=True, skips=skips)
    seen.errors += errors
    try:
        check(seen)
        check_limits(seen)
    except BaseException as error:
        error.add_note(seen.shown())
        raise
    return seen


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    """Holders fail, are tried again, are cancelled, die with their workers; controllers die with what they gave."""
    # In some, steps skip themselves.
    played(seed, errors, skips=seed % 3 == 0)


def test_seeds_that_found_something(errors: list[str]) -> None:
    """What a controller that died had given waited behind those who waited for it (1250)."""
    played(1250, errors)


@pytest.mark.parametrize("kind", Simulation.KINDS)
def test_each_fault_alone(kind: str, errors: list[str]) -> None:
    for seed in range(10_000, 10_000 + max(1, SEEDS // 20)):
        played(seed, errors, (kind,))


def test_in_peace_what_is_free_is_used(errors: list[str]) -> None:
    """And rates hold to the millisecond."""
    shared = sum(check_limits(played(seed, errors, ())) for seed in range(20_000, 20_012))
    assert shared >= 5, "semaphores are for more than one at a time"


def test_the_simulation_sees_limits_that_do_not_hold(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    monkeypatch.setattr(SemaphoreEntry, "has_room", lambda *_: True)
    with pytest.raises(AssertionError, match=r"seed \d+: [ms] at"):
        _check_seeds()


def _check_seeds() -> None:
    for seed in range(1, 20):
        check_limits(simulate(seed, (), limited=True))
