"""Why a step does not run: every state of a step has a cause, and a chain down to where it comes from."""

from __future__ import annotations

from typing import Any

import pytest

from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.core.conditions import Comparison
from evpipe.core.events import CancelCause, StepSkipped
from evpipe.core.machine import Run
from evpipe.core.mapping import Mapped
from evpipe.core.parameters import REQUIRED, Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, Reason, RunIf
from evpipe.core.waits import Wait, WaitKind
from evpipe.core.why import BREADTH_MAX, CAUSES_MAX, DEPTH_MAX, Cause, Why, why
from tests.core.making import (
    cancel,
    cancelled,
    failed,
    folded,
    graph,
    retried,
    skipped,
    skipped_itself,
    started,
    step,
    submitted,
    succeeded,
)

IS_TAILS = Comparison("==", OutputRef("flip"), ParameterRef("side"))
WITH_CONDITION = graph(
    step("flip"),
    step("tails", when=IS_TAILS),
    step("below", "tails"),
    parameters=(Parameter(name="side", type=ParameterType("str"), default=REQUIRED),),
)
RETRIED = graph(step("a", retries=RetryPolicy(count=1, delay_s=5, jitter=0)), step("b", "a"))
APPROVAL = step("ask", arguments={"message": "Now?"}, wait=Wait(kind=WaitKind.APPROVAL))
CHAIN = graph(step("a"), step("b", "a"), step("c", "b"))


def chain(link: Why) -> list[str]:
    """The first of each link's causes, down to the last."""
    found = [f"{link.step}: {link.message}"]
    return [*found, *chain(link.because[0])] if link.because else found


CASES: dict[str, tuple[Run, str, list[Cause], list[str]]] = {
    "queued": (
        folded(submitted(CHAIN)),
        "a",
        [Cause.QUEUED],
        ["a: waits in the queue 'default' for a worker"],
    ),
    "behind a step that runs": (
        folded(submitted(CHAIN), started("a", at_s=3)),
        "c",
        [Cause.PARENTS, Cause.PARENTS, Cause.RUNNING],
        ["c: waits for step 'b'", "b: waits for step 'a'", "a: runs on worker w1"],
    ),
    "behind an attempt that begins later": (
        folded(submitted(RETRIED), failed("a"), retried("a", 2, 5.0)),
        "b",
        [Cause.PARENTS, Cause.BACK_OFF],
        ["b: waits for step 'a'", "a: attempt 2 begins later, the one before failed: ValueError: bad"],
    ),
    "second attempt in the queue": (
        folded(submitted(RETRIED), failed("a", reason=Reason.LOST)),
        "a",
        [Cause.QUEUED],
        ["a: attempt 2 waits in the queue 'default' for a worker"],
    ),
    "skipped for a failure": (
        folded(submitted(CHAIN), failed("a"), skipped("b", "step 'a' failed"), skipped("c", "step 'b' was skipped")),
        "c",
        [Cause.UPSTREAM, Cause.UPSTREAM, Cause.FAILED],
        ["c: skipped: step 'b' was skipped", "b: skipped: step 'a' failed", "a: failed: ValueError: bad"],
    ),
    "to be skipped": (
        folded(submitted(CHAIN), failed("a")),
        "b",
        [Cause.UPSTREAM, Cause.FAILED],
        ["b: skipped: step 'a' failed", "a: failed: ValueError: bad"],
    ),
    "its condition": (
        folded(
            submitted(WITH_CONDITION, side="tails"),
            succeeded("flip", value="heads"),
            StepSkipped(step="tails", reason=Reason.CONDITION, message="its condition is false: flip == side"),
        ),
        "tails",
        [Cause.CONDITION],
        ["tails: skipped: its condition is false: flip == side (flip is 'heads', side is 'tails')"],
    ),
    "by its own body": (
        folded(
            submitted(WITH_CONDITION, side="tails"),
            succeeded("flip", value="tails"),
            skipped_itself("tails", message="its condition is false: said the body"),
        ),
        "tails",
        [Cause.CONDITION],
        ["tails: skipped itself: its condition is false: said the body"],
    ),
    "below a condition": (
        folded(
            submitted(WITH_CONDITION, side="tails"),
            succeeded("flip", value="heads"),
            StepSkipped(step="tails", reason=Reason.CONDITION, message="its condition is false: flip == side"),
            StepSkipped(step="below", reason=Reason.CONDITION, message="step 'tails' was skipped"),
        ),
        "below",
        [Cause.CONDITION, Cause.CONDITION],
        [
            "below: skipped: step 'tails' was skipped",
            "tails: skipped: its condition is false: flip == side (flip is 'heads', side is 'tails')",
        ],
    ),
    "cancelled on request": (
        folded(submitted(CHAIN), cancel(message="enough"), cancelled("b", message="enough")),
        "b",
        [Cause.CANCELLED],
        ["b: cancelled on request: enough"],
    ),
    "by the deadline": (
        folded(submitted(CHAIN), cancel(CancelCause.DEADLINE, "too late")),
        "c",
        [Cause.CANCELLED],
        ["c: cancelled by the run's deadline: too late"],
    ),
    "by fail_fast": (
        folded(
            submitted(graph(step("a"), step("b"), fail_fast=True)),
            failed("a"),
            cancel(CancelCause.FAIL_FAST, "step 'a' failed and fail_fast is set"),
        ),
        "b",
        [Cause.CANCELLED, Cause.FAILED],
        ["b: cancelled by fail_fast: step 'a' failed and fail_fast is set", "a: failed: ValueError: bad"],
    ),
    "a handler": (
        folded(submitted(graph(step("a"), step("h", on_exit=True, run_if=RunIf.ALWAYS)))),
        "h",
        [Cause.HANDLER, Cause.QUEUED],
        ["h: begins when all other steps have ended: 1 has not", "a: waits in the queue 'default' for a worker"],
    ),
    "waits for a person": (
        folded(submitted(graph(APPROVAL, step("b", "ask")))),
        "b",
        [Cause.PARENTS, Cause.WAIT],
        ["b: waits for step 'ask'", "ask: waits for an answer (bool): Now?"],
    ),
    "allowed to fail": (
        folded(submitted(graph(step("a", on_failure=OnFailure.CONTINUE), step("b", "a"))), failed("a")),
        "b",
        [Cause.QUEUED],
        ["b: waits in the queue 'default' for a worker"],
    ),
    "done": (folded(submitted(CHAIN), succeeded("a", at_s=4)), "a", [Cause.DONE], ["a: succeeded"]),
}


@pytest.mark.parametrize(("run", "name", "causes", "said"), CASES.values(), ids=CASES.keys())
def test_each_state_has_its_cause(run: Run, name: str, causes: list[Cause], said: list[str]) -> None:
    found = why(run, name)
    assert chain(found) == said
    links: list[Any] = [found]
    while links[-1].because:
        links.append(links[-1].because[0])
    assert [link.cause for link in links] == causes
    assert found.status is run.steps[name].status


def test_a_deep_graph_gives_a_short_chain() -> None:
    steps = [step("s0"), *(step(f"s{i}", f"s{i - 1}") for i in range(1, 5_000))]
    waiting = why(folded(submitted(graph(*steps))), "s4999")
    assert len(chain(waiting)) <= DEPTH_MAX + 1
    assert [root.step for root in waiting.roots()] == ["s0"]
    run = folded(submitted(graph(*steps)), failed("s0"), *(skipped(f"s{i}") for i in range(1, 5_000)))
    assert [root.step for root in why(run, "s4999").roots()] == ["s0"]


def test_a_wide_graph_gives_a_short_list() -> None:
    steps = [step(f"s{i}") for i in range(1_000)]
    run = folded(submitted(graph(*steps, step("join", *(s.name for s in steps)))))
    found = why(run, "join")
    assert found.message == "waits for steps 's0', 's1', 's2', 's3', 's4' and 995 more"
    assert len(found.because) == BREADTH_MAX
    layers = [step(f"l{i}-{j}", *(f"l{i - 1}-{k}" for k in range(6) if i)) for i in range(6) for j in range(6)]
    many = why(folded(submitted(graph(*layers))), "l5-0")
    names, left = [], [many]
    while left:
        one = left.pop()
        names.append(one.step)
        left += one.because
    assert len(names) == len(set(names)) <= CAUSES_MAX


def test_what_an_elements_condition_saw_is_of_the_element() -> None:
    xs = OutputRef("a")
    asks = step("b", arguments={"xs": xs}, mapped=Mapped(places=("xs",)), when=Comparison("==", xs, 1))
    run = folded(submitted(graph(step("a", arguments={"xs": [1, 2]}, mapped=Mapped(places=("xs",))), asks)))
    run.step(succeeded("a=1", value=5))
    assert why(run, "b=1").message == "skipped: its condition is false: a[1] == 1 (a[1] is 5)"
