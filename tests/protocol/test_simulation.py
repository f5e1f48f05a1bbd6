"""The protocol under faults: hundreds of seeds, each of them a small installation that goes through trouble."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from evpipe.worker.pieces import Pieces
from tests.protocol.checker import check
from tests.protocol.simulation import Outcomes, Simulation, simulate

SEEDS = int(os.environ.get("EVPIPE_SEEDS", "150"))
FIRST = int(os.environ.get("EVPIPE_SEED_FIRST", "1"))


@pytest.fixture(autouse=True)
def errors() -> Iterator[list[str]]:
    """Everything is logged, and only what somebody would have to act on is kept."""
    found: list[str] = []

    def keep(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # Those that a node leaves behind when it is killed with messages on their way are part of the game.
        if method in ("error", "exception", "critical") and event.get("event") != "publish_failed":
            found.append(str(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep, structlog.processors.KeyValueRenderer()])
    yield found
    structlog.configure(**before)


def played(seed: int, errors: list[str], faults: tuple[str, ...] | None = None, *, skips: bool = False) -> Outcomes:
    seen = simulate(seed, faults, skips=skips)
    seen.errors += errors
    try:
        check(seen)
    except BaseException as error:
        error.add_note(seen.shown())
        raise
    return seen


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_seed_comes_to_the_right_end(seed: int, errors: list[str]) -> None:
    """Whatever happens meanwhile, when the faults stop each run ends, once and right."""
    # In some, steps skip themselves.
    played(seed, errors, skips=seed % 3 == 0)


#: What they found: a launch sent again after its run's end (15, 52), a registry that shows an ended run as running
#: (904, 993), an end hidden behind the repetition of an earlier attempt's (2136, 2489, 3149, 3696).
@pytest.mark.parametrize("seed", [15, 52, 904, 993, 2136, 2489, 3149, 3696, 4031])
def test_seeds_that_found_something(seed: int, errors: list[str]) -> None:
    """Seeds that once went wrong are played for ever."""
    played(seed, errors)


@pytest.mark.parametrize("kind", Simulation.KINDS)
def test_each_fault_alone(kind: str, errors: list[str]) -> None:
    """Each kind of fault by itself, several seeds: what goes wrong here has one cause."""
    for seed in range(10_000, 10_000 + max(1, SEEDS // 30)):
        played(seed, errors, (kind,))


def test_what_a_cancelled_attempt_said_is_kept(errors: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told when the attempt has been stopped; without that, these seeds show it."""
    for seed in (10_011, 10_019, 10_022):
        played(seed, errors, ("cancel",))
    monkeypatch.setattr(Pieces, "rest", lambda *_: False)
    for seed in (10_011, 10_019, 10_022):
        with pytest.raises(AssertionError, match="what it said is not kept"):
            played(seed, errors, ("cancel",))


def test_without_faults_nothing_happens_twice(errors: list[str]) -> None:
    """In peace every attempt begins once and a run takes as long as its longest path."""
    for seed in range(20_000, 20_010):
        seen = played(seed, errors, ())
        assert seen.stage is not None
        keys = [(b.run, b.step, b.attempt) for b in seen.stage.begins]
        assert len(keys) == len(set(keys))


def test_one_seed_is_one_trace(errors: list[str]) -> None:
    """A seed that failed fails again: the same events at the same moments (workers have random names)."""
    for seed in (77, 379, 904):
        first, second = played(seed, errors), played(seed, errors)
        assert [(r.subject, r.at_s) for r in first.server.records] == [
            (r.subject, r.at_s) for r in second.server.records
        ]
        assert first.server.stored_launches == second.server.stored_launches
