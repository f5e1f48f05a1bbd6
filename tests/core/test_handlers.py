"""`on_exit` handlers: when they begin, what they are told, and that they change no end but a good one."""

from __future__ import annotations

from typing import Any

import pytest

from evpipe.core.bindings import OneOf, OutputRef
from evpipe.core.commands import Decide, Launch
from evpipe.core.events import CancelCause, Event, Finished, StepSkipped
from evpipe.core.exits import FAILED_NAMED_MAX, RUN
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.mapping import Mapped
from evpipe.core.states import OnFailure, Reason, RunIf, RunStatus
from evpipe.errors import UsageError
from tests.core.making import cancel, cancelled, due, failed, folded, graph, step, submitted, succeeded

SUMMARY = OutputRef(RUN)


def handler(name: str = "tell", **options: Any) -> Step:
    options = {"run_if": RunIf.ALWAYS, "on_failure": OnFailure.SKIP, "arguments": {"run": SUMMARY}, **options}
    return Step(name=name, on_exit=True, **options)


def launched(commands: tuple[Any, ...]) -> dict[str, Any]:
    return {c.step: c.arguments for c in commands if isinstance(c, Launch)}


def verdict(run: Run, *events: Event) -> Finished:
    found = [c.event for event in events for c in run.step(event) if isinstance(c, Decide)]
    assert isinstance(found[-1], Finished)
    return found[-1]


def test_they_begin_together_when_the_last_other_step_has_ended() -> None:
    of = graph(step("a"), step("b", "a"), handler("tell"), handler("sweep", arguments={}))
    run = Run("r1")
    assert set(launched(run.step(submitted(of, 10.0, rows=3)))) == {"a"}
    assert set(launched(run.step(succeeded("a")))) == {"b"}
    found = launched(run.step(failed("b", at_s=12.5)))
    assert found["sweep"] == {}
    assert found["tell"]["run"] == {
        "run": "r1",
        "pipeline": "demo",
        "parameters": {"rows": 3},
        "status": "failed",
        "reason": "error",
        "message": "step 'b' failed: ValueError: bad",
        "failed": [{"step": "b", "reason": "error", "message": "ValueError: bad", "attempts": 1}],
        "failed_count": 1,
        "duration_s": 2.5,
    }
    assert verdict(run, succeeded("tell"), succeeded("sweep")).status is RunStatus.FAILED


def test_a_run_of_handlers_alone_begins_them_at_once() -> None:
    run = Run("r1")
    assert launched(run.step(submitted(graph(handler()))))["tell"]["run"]["status"] == "succeeded"
    assert verdict(run, succeeded("tell")).status is RunStatus.SUCCEEDED


@pytest.mark.parametrize("event", [cancel(message="enough"), due(None), cancel(CancelCause.DEADLINE)])
def test_what_would_stop_a_run_comes_too_late_for_handlers(event: Event) -> None:
    """They were told that it succeeds, and nothing else is left to stop."""
    run = folded(submitted(graph(step("a"), handler(), deadline_s=5)), succeeded("a"))
    assert run.step(event) == ()
    assert [type(command) for command in run.outstanding()] == [Launch]
    assert verdict(run, succeeded("tell")).status is RunStatus.SUCCEEDED


def test_a_cancelled_run_ends_with_its_handlers() -> None:
    run = folded(submitted(graph(step("a"), handler())), cancel(message="enough"))
    told = launched(run.step(cancelled("a", 1)))["tell"]["run"]
    assert (told["status"], told["reason"], told["message"]) == ("cancelled", "request", "enough")
    assert verdict(run, failed("tell")).status is RunStatus.CANCELLED


@pytest.mark.parametrize(
    ("on_failure", "status"),
    [(OnFailure.SKIP, RunStatus.SUCCEEDED), (OnFailure.FAIL, RunStatus.FAILED)],
)
def test_whether_the_failure_of_a_handler_counts_is_its_own_to_say(on_failure: OnFailure, status: RunStatus) -> None:
    run = folded(submitted(graph(step("a"), handler(on_failure=on_failure), handler("b"), fail_fast=True)))
    run.step(succeeded("a"))
    assert run.step(failed("tell")) == (), "nothing is left that could be stopped"
    assert verdict(run, succeeded("b")).status is status


def test_what_is_skipped_before_them_is_waited_for() -> None:
    run = folded(submitted(graph(step("a"), step("b", "a"), handler())))
    assert not launched(run.step(failed("a")))
    assert set(launched(run.step(StepSkipped(step="b", reason=Reason.UPSTREAM)))) == {"tell"}


def test_a_summary_names_so_many_failed_steps() -> None:
    many = FAILED_NAMED_MAX + 5
    run = folded(submitted(graph(*(step(f"s{i}") for i in range(many)), handler())))
    for i in range(many):
        commands = run.step(failed(f"s{i}"))
    told = launched(commands)["tell"]["run"]
    assert (len(told["failed"]), told["failed_count"], told["failed"][0]["step"]) == (FAILED_NAMED_MAX, many, "s0")


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([handler(run_if=RunIf.ALL_DONE)], "its run_if must be always, not all_done"),
        ([step("a"), handler(after=("a",))], "it waits for all steps, and cannot name 'a'"),
        ([step("a"), handler(arguments={"x": OneOf((OutputRef("a"),))})], "and cannot name 'a'"),
        ([handler(), step("a", "tell")], "step 'a' needs the step 'tell', an on_exit handler"),
        ([handler(), step("a", after=("tell",))], "step 'a' needs the step 'tell', an on_exit handler"),
        ([step("a", arguments={"x": SUMMARY})], "step 'a' takes how its run ends, which only an on_exit handler can"),
    ],
)
def test_what_a_handler_cannot_be(steps: list[Step], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        graph(*steps)


def test_the_value_of_a_run_is_none_of_its_handlers() -> None:
    for output in (SUMMARY, OutputRef("tell")):
        with pytest.raises(UsageError, match="on_exit handler"):
            Graph.of([handler()], pipeline="demo", output=output)


def test_elements_have_the_names_that_people_write() -> None:
    of = graph(step("m", arguments={"x": [1, 2]}, mapped=Mapped(places=("x",))), handler())
    run = folded(submitted(of), succeeded("m=0"))
    told = launched(run.step(failed("m=1")))["tell"]["run"]
    assert told["failed"][0]["step"] == "m[1]"
    assert told["message"].startswith("step 'm[1]' failed")
