"""The option `on_exit` of pipelines: what it takes, and what it makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from evpipe import Pipeline, RunSummary, command, exit_status, not_, pipeline, step
from evpipe.core.bindings import OutputRef
from evpipe.core.conditions import AllOf, Comparison, Negation
from evpipe.core.exits import RUN
from evpipe.core.states import OnFailure, RunIf
from evpipe.errors import NotKnownYet, UsageError
from evpipe.wire.graphs import decode_graph, encode_graph


@step(queue="mail")
def tell(run: RunSummary) -> str:
    return run["status"]


@step(on_failure="continue")
def sweep() -> None: ...


def plain(about: RunSummary, channel: str = "ml") -> None: ...


@step
def two(run: RunSummary, channel: str) -> None: ...


@pipeline(on_exit=[tell, sweep, plain, tell.options(name="last", on_failure="fail")], queue="gpu")
def handled() -> str:
    sweep()
    return "x"


def test_handlers_are_the_last_steps_of_the_graph() -> None:
    graph = decode_graph(encode_graph(handled.build({}).graph))
    found = [graph.steps[name] for name in graph.handlers]
    assert [(h.name, h.queue, h.on_failure.value, dict(h.arguments)) for h in found] == [
        ("tell", "mail", "skip", {"run": OutputRef(RUN)}),
        ("sweep-2", "gpu", "continue", {}),
        ("plain", "gpu", "skip", {"about": OutputRef(RUN)}),
        ("last", "mail", "fail", {"run": OutputRef(RUN)}),
    ]
    assert all(h.on_exit and h.run_if is RunIf.ALWAYS for h in found)
    assert graph.steps["sweep"].on_failure is OnFailure.CONTINUE
    assert not graph.steps["sweep"].on_exit


def test_what_is_taken_by_name_is_that_part_of_the_summary() -> None:
    @pipeline(on_exit=command("mail -s {status} {run}", name="mail"))
    def told() -> None: ...

    arguments = decode_graph(encode_graph(told.build({}).graph)).steps["mail"].arguments
    assert arguments == {"status": OutputRef(RUN, ("status",)), "run": OutputRef(RUN, ("run",))}


def test_a_condition_on_the_end_of_the_run() -> None:
    when = not_(exit_status == "failed") & (exit_status != "cancelled")
    p = Pipeline("p", on_exit=tell.options(when=when))
    graph = decode_graph(encode_graph(p.build({}).graph))
    status = OutputRef(RUN, ("status",))
    assert graph.steps["tell"].when == AllOf(
        (Negation(Comparison("==", status, "failed")), Comparison("!=", status, "cancelled"))
    )


def test_a_pipeline_of_the_builder_can_be_built_again_with_more_steps() -> None:
    p = Pipeline("p", on_exit=tell)
    assert list(p.build({}).graph.steps) == ["tell"]
    p.step("tell", sweep)
    assert list(p.build({}).graph.steps) == ["tell", "tell-2"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (3, "pipeline 'p': on_exit takes a step or a list of steps, not 3"),
        ("tell", "takes a step or a list of steps, not 'tell'"),
        ([tell, None], "takes a step or a list of steps, not None"),
        (tell.options(after=["x"]), "cannot have after=…, a handler begins when all steps have ended"),
        (tell.options(run_if="any_failed"), "cannot have run_if='any_failed', a handler begins however its run ends"),
        (
            command("mail {who} {status}"),
            "takes 'who' by name, and what is known of a run is run, pipeline, parameters",
        ),
        (two, "takes run, channel: a handler is given one argument, what is known of the run"),
    ],
)
def test_what_on_exit_does_not_take(given: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Pipeline("p", on_exit=given)


def test_a_status_that_no_run_ends_with() -> None:
    with pytest.raises(UsageError, match="a run ends as cancelled, failed, succeeded, it is never 'success'"):
        _ = exit_status == "success"


def test_the_end_of_a_run_is_for_handlers_alone() -> None:
    @pipeline
    def p() -> None:
        tell.options(when=exit_status == "failed")({})  # type: ignore[typeddict-item]

    with pytest.raises(UsageError, match="step 'tell' takes how its run ends, which only an on_exit handler can know"):
        p.build({})
    with pytest.raises(NotKnownYet, match="cannot be used in `if`"):
        assert exit_status == "failed"
