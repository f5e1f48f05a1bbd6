"""Cached steps in the core: what counts as a hit, what it supersedes, what follows from it; and fingerprints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evpipe.core.bindings import OutputRef
from evpipe.core.commands import Decide, Launch, Quarantine, StopAttempt
from evpipe.core.events import Event, Finished, Origin, StepCached
from evpipe.core.fingerprint import CachePolicy, Components, Input, differences
from evpipe.core.machine import Run
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import RunStatus, StepStatus
from tests.core.making import cancel, failed, folded, graph, lost, snapshot, started, step, submitted, succeeded

ORIGIN = Origin(pipeline="demo", run="run00000", step="a", at_s=5.0)
CACHED = CachePolicy()
CHAIN = graph(step("a", cache=CACHED), step("b", "a", cache=CACHED), output=OutputRef("b"))
RETRYING = graph(step("a", cache=CACHED, retries=RetryPolicy(count=2, delay_s=0.0)))


def cached(name: str, attempt: int = 1, value: object = None) -> StepCached:
    return StepCached(step=name, attempt=attempt, value=value, origin=ORIGIN)


def test_a_hit_is_a_value_and_releases_what_waits() -> None:
    """What follows a hit is launched with its value, as after a success; the attempt is told to stop."""
    run = folded(submitted(CHAIN))
    assert run.step(cached("a", value=7)) == (StopAttempt("a", 1), Launch("b", 1, {"a": 7}))
    assert (run.steps["a"].status, run.steps["a"].cached_from) == (StepStatus.CACHED, ORIGIN)
    commands = run.step(cached("b", value=8))
    assert commands[-1] == Decide(Finished(status=RunStatus.SUCCEEDED, value=8))


def test_a_hit_supersedes_the_attempt_that_runs() -> None:
    """Another controller may have launched it: what that attempt says later changes nothing."""
    run = folded(submitted(CHAIN), started("a"), cached("a", value=1))
    before = snapshot(run)
    assert run.step(succeeded("a", value=2)) == ()
    assert run.step(failed("a")) == ()
    assert snapshot(run) == before


def test_the_first_end_counts() -> None:
    run = folded(submitted(CHAIN), succeeded("a", value=1))
    before = snapshot(run)
    assert run.step(cached("a", value=2)) == ()
    assert snapshot(run) == before


@pytest.mark.parametrize("event", [failed("a"), lost("a")])
def test_a_hit_of_a_superseded_attempt_is_overtaken(event: Event) -> None:
    """The log's order decides: attempt 2 is current, so a hit for attempt 1 is nothing any more."""
    run = folded(submitted(RETRYING), event)
    assert run.steps["a"].attempt == 2
    assert run.step(cached("a", 1)) == ()
    assert run.step(cached("a", 2))[0] == StopAttempt("a", 2)


@pytest.mark.parametrize(
    ("events", "event"),
    [
        ((submitted(CHAIN),), cached("b")),
        ((submitted(CHAIN),), cached("z")),
        ((submitted(CHAIN),), cached("a", 2)),
        ((submitted(graph(step("a"))),), cached("a")),
        ((), cached("a")),
    ],
    ids=["not ready", "no such step", "an attempt to come", "not a cached step", "before the submit"],
)
def test_a_hit_that_cannot_be_changes_nothing(events: tuple[Event, ...], event: StepCached) -> None:
    run = folded(*events)
    before = snapshot(run)
    (command,) = run.step(event)
    assert isinstance(command, Quarantine)
    assert snapshot(run) == before


def test_a_hit_after_a_cancel_counts_until_the_step_is_cancelled() -> None:
    """As a success does: the decree comes after it in the log, and finds it ended."""
    run = folded(submitted(CHAIN), cancel())
    assert run.step(cached("a", value=1)) == (StopAttempt("a", 1),)
    assert run.steps["a"].status is StepStatus.CACHED


def test_what_is_outstanding_is_looked_up_again() -> None:
    """A takeover launches what has no end; the shell looks into the cache first, and finds its own marker."""
    run = folded(submitted(CHAIN))
    assert run.outstanding() == (Launch("a", 1, {}),)
    again = Run("run00001")
    for event in (submitted(CHAIN), cached("a", value=1)):
        again.step(event)
    assert again.outstanding() == (Launch("b", 1, {"a": 1}),)


# ---- fingerprints

BASE = Components(
    code="c0de",
    version="1",
    python="3.12",
    image="repo/train:1",
    packages={"numpy": "2.1", "scipy": "1.14"},
    inputs={"rows": Input("d1", "3"), "depth": Input("d2", "5")},
)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (replace(BASE, code="c0d3"), "code changed"),
        (replace(BASE, version="2"), "version 1 → 2"),
        (replace(BASE, python="3.13"), "Python 3.12 → 3.13"),
        (replace(BASE, image=""), "image repo/train:1 → none"),
        (replace(BASE, packages={"numpy": "2.2", "scipy": "1.14"}), "package numpy 2.1 → 2.2"),
        (replace(BASE, packages={"numpy": "2.1"}), "package scipy 1.14 → none"),
        (replace(BASE, inputs={**BASE.inputs, "depth": Input("d3", "7")}), "`depth` 5 → 7"),
        (replace(BASE, inputs={**BASE.inputs, "depth": Input("d3", "5")}), "`depth` changed (shown alike: 5)"),
        (replace(BASE, inputs={**BASE.inputs, "seed": Input("d4", "1")}), "`seed` none → 1"),
    ],
)
def test_each_factor_alone_is_another_fingerprint_and_is_named(changed: Components, told: str) -> None:
    assert changed.fingerprint() != BASE.fingerprint()
    assert [str(difference) for difference in differences(BASE, changed)] == [told]


def test_the_order_of_what_has_no_order_does_not_count() -> None:
    """Packages and arguments are named; how they are shown is no part of what they are."""
    same = replace(
        BASE,
        packages=dict(reversed(list(BASE.packages.items()))),
        inputs={name: Input(given.digest, "?") for name, given in reversed(list(BASE.inputs.items()))},
    )
    assert same.fingerprint() == BASE.fingerprint()
    assert differences(BASE, same) == ()


def test_no_text_of_a_component_is_taken_for_another() -> None:
    """Each component stands for itself: a name with a line end in it makes no second component."""
    one = Components(code="a", version="b\n3 p x 1")
    other = Components(code="a", version="b", packages={"x": "1"})
    assert one.fingerprint() != other.fingerprint()
    assert Components(code="ab").fingerprint() != Components(code="a", version="b").fingerprint()
