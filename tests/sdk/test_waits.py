"""`approval`, `wait_for_event`, `sleep`: what they add to a graph, in both styles, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import pytest

from evpipe import Pipeline, UsageError, approval, pipeline, sleep, step, wait_for_event
from evpipe.core.bindings import OutputRef
from evpipe.core.graph import Graph, Step
from evpipe.core.mapping import Mapped
from evpipe.core.parameters import ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.core.waits import Wait, WaitKind
from evpipe.wire.graphs import decode_graph, encode_graph


@step
def load() -> dict[str, Any]:
    return {"id": 7, "seconds": 1.5}


class Other:
    """As a client's handle of a run."""

    id = "abcdefgh2345"


@pipeline
def decorated() -> Any:
    found = load()
    ok = approval("Go?", show={"id": found["id"]})
    which = approval("Which?", answer=Literal["a", "b"], name="which", timeout_s=5, default="b", when=ok)
    sleep(timedelta(minutes=2), after=[ok])
    sleep(found["seconds"], run_if="always", on_failure="continue", description="a nap")
    order = wait_for_event("orders.created", match={"id": found["id"]}, since="submit")
    wait_for_event(run=Other(), name="other")
    wait_for_event(pipeline="churn", step="train", timeout_s=1)
    return [which, order["total"]]


def by_calls() -> Pipeline:
    p = Pipeline("decorated")
    p.step("load", load)
    ok = p.approval("approval", "Go?", show={"id": "${load.id}"})
    which = p.approval("which", "Which?", answer=Literal["a", "b"], timeout_s=5, default="b", when=ok)
    p.sleep("sleep", 120, after=["approval"])
    p.sleep("sleep-2", "${load.seconds}", run_if="always", on_failure="continue", description="a nap")
    order = p.wait_for_event("event", "orders.created", match={"id": "${load.id}"}, since="submit")
    p.wait_for_event("other", run="abcdefgh2345")
    p.wait_for_event("event-2", pipeline="churn", step="train", timeout_s=1)
    p.output([which, order["total"]])
    return p


def test_both_styles_give_the_same_graph() -> None:
    graph = decorated.build({}).graph
    assert by_calls().build({}).graph == graph
    assert decode_graph(encode_graph(graph)) == graph
    assert list(graph.steps) == ["load", "approval", "which", "sleep", "sleep-2", "event", "other", "event-2"]
    steps = graph.steps
    assert steps["approval"] == Step(
        name="approval",
        arguments={"message": "Go?", "show": {"id": OutputRef("load", ("id",))}},
        wait=Wait(kind=WaitKind.APPROVAL),
    )
    assert steps["which"].wait == Wait(kind=WaitKind.APPROVAL, answer=ParameterType("literal", values=("a", "b")))
    assert (steps["which"].timeout_s, steps["which"].arguments["default"]) == (5.0, "b")
    assert graph.parents["which"] == ("approval",)
    assert steps["sleep"].arguments == {"seconds": 120.0}
    assert (steps["sleep-2"].run_if, steps["sleep-2"].on_failure) == (RunIf.ALWAYS, OnFailure.CONTINUE)
    assert steps["event"].arguments == {"name": "orders.created", "match": {"id": OutputRef("load", ("id",))}}
    assert steps["event"].wait == Wait(kind=WaitKind.SIGNAL, since_submit=True)
    assert steps["other"].arguments == {"run": "abcdefgh2345", "kind": "finished"}
    assert steps["event-2"].arguments == {"pipeline": "churn", "step": "train", "kind": "succeeded"}


p = Pipeline("p")
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: approval("Go?"), r"approval\(…\) is a step: call it in the body of a @pipeline"),
    (lambda: sleep(1), r"sleep\(…\) is a step"),
    (lambda: wait_for_event("a"), r"wait_for_event\(…\) is a step"),
    (lambda: p.approval("a", ""), "step 'a': message must be a text of 1 to 4,096 characters, not ''"),
    (lambda: p.approval("a", "x" * 5000), "message must be a text"),
    (lambda: p.approval("a", "Go?", answer="yes"), "answer must be a type, such as bool, .*, not 'yes'"),
    (lambda: p.approval("a", "Go?", answer=object), "answer must be a type of plain values"),
    (lambda: p.approval("a", "Go?", show=[1]), r"show must be a dict with text keys"),  # type: ignore[arg-type]
    (lambda: p.approval("a", "Go?", reject="no"), "reject must be 'value' or 'fail', not 'no'"),  # type: ignore[arg-type]
    (lambda: p.approval("a", "Go?", reject="fail", answer=int), "reject='fail' is for answers of the type bool"),
    (lambda: p.approval("a", "Go?", default=True), "default is its value when timeout_s is over, and it has none"),
    (lambda: p.approval("a", "Go?", default="yes", timeout_s=1), r"default must be bool, not 'yes' \(str\)"),
    (lambda: p.approval("a", "Go?", timeout_s=0), "timeout_s must be seconds above 0"),
    (lambda: p.approval("a b", "Go?"), "step name 'a b' is not allowed"),
    (lambda: p.approval("pipeline", "Go?"), "step 'pipeline' needs another name"),
    (lambda: p.sleep("a", -1), "seconds must be a number from 0 to 31,622,400, not -1"),
    (lambda: p.sleep("a", True), "seconds must be a number"),
    (lambda: p.sleep("a", float("nan")), "seconds must be a number"),
    (lambda: p.sleep("a", "soon"), "seconds must be a number .*, not 'soon'"),
    (lambda: p.sleep("a", 1, after="b"), r"after takes a list: after=\['b'\]"),
    (lambda: p.wait_for_event("a"), r"waits for a signal, as in wait_for_event\('orders.created'\), or for an event"),
    (lambda: p.wait_for_event("a", "orders.*"), r"'orders.\*' is not the name of a signal"),
    (lambda: p.wait_for_event("a", ".".join("abcdefghi")), "up to 8 names with dots"),
    (lambda: p.wait_for_event("a", 7), "a int is not the name of a signal"),  # type: ignore[arg-type]
    (lambda: p.wait_for_event("a", "x", match=[1]), "match must be a dict"),  # type: ignore[arg-type]
    (lambda: p.wait_for_event("a", "x", step="b"), "a signal has a name and match; step is of an event of another"),
    (lambda: p.wait_for_event("a", pipeline="b", match={"a": 1}), "match is for the payload of a signal"),
    (lambda: p.wait_for_event("a", run="abcdefgh", pipeline="b"), "exactly one of them"),
    (lambda: p.wait_for_event("a", run="../x"), "run must be the id of a run, not '../x'"),
    (lambda: p.wait_for_event("a", run=7), "run must be the id of a run, not 7"),
    (lambda: p.wait_for_event("a", pipeline="b", kind="succeeded"), r"not 'succeeded' \(of a step: give step=…, too\)"),
    (
        lambda: p.wait_for_event("a", pipeline="b", step="c", kind="finished"),
        "an event of a step is one of .*succeeded",
    ),
    (lambda: p.wait_for_event("a", pipeline="b", step="c", kind="progress"), "of a step is one of .*, not 'progress'"),
    (lambda: p.wait_for_event("a", pipeline="b", step="c[x]"), r"step name 'c\[x\]' is not allowed"),
    (lambda: p.wait_for_event("a", "x", since="ever"), "since must be 'wait' or 'submit'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_can_never_be_is_refused_where_it_is_written(number: int) -> None:
    add, message = REFUSED[number]
    with pytest.raises(UsageError, match=message):
        add()
    assert "a" not in p._draft.steps


def test_a_graph_of_somebody_else_is_checked_likewise() -> None:
    """Whoever made it: the controller refuses it with the sentence that its author would have seen."""
    sleeps = Wait(kind=WaitKind.SLEEP)
    for made, message in (
        (Step(name="a", wait=sleeps), "a wait of the kind sleep needs 'seconds'"),
        (Step(name="a", arguments={"seconds": 1, "x": 2}, wait=sleeps), "takes seconds, not 'x'"),
        (Step(name="a", arguments={"seconds": 1}, timeout_s=3, wait=sleeps), "timeout_s means nothing for a sleep"),
        (
            Step(name="a", arguments={"seconds": 1}, retries=RetryPolicy(count=1), wait=sleeps),
            "neither retried nor cached",
        ),
        (Step(name="a", arguments={"seconds": 1}, mapped=Mapped(places=("seconds",)), wait=sleeps), "it is not mapped"),
        (
            Step(name="a", arguments={"message": "?"}, wait=Wait(kind=WaitKind.APPROVAL, answer=ParameterType("path"))),
            "an answer cannot be a path",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            Graph.of([made], pipeline="demo")
