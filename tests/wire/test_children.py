"""Steps that are runs, as they travel: graphs that are built into others, and submits that name a parent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evpipe.core.bindings import OutputRef
from evpipe.core.children import EndOfStep
from evpipe.core.events import CancelRequested, Failure, StepCancelled, StepFailed, StepSucceeded
from evpipe.core.graph import Graph, Step
from evpipe.core.lineage import NESTING_MAX, Child, Parent, child_run_id
from evpipe.core.states import RunStatus
from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.children import encode_child, encode_end_of_step, submission_of_child
from evpipe.wire.codec import decode_map, encode_map
from evpipe.wire.graphs import children_in, decode_graph, encode_graph, graph_digest
from evpipe.wire.messages import Submission, decode_event, decode_submission, encode_event, encode_submission, parent_in
from evpipe.wire.registry import RunEntry, decode_run_entry, encode_run_entry
from evpipe.wire.spool import spooled
from evpipe.wire.subjects import EventSubject

LEAF = Graph.of([Step(name="work")], pipeline="leaf")
MIDDLE = Graph.of(
    [
        Step(name="again", child=Child(pipeline="middle", up=0)),
        Step(name="leaf", child=Child(pipeline="leaf", graph=LEAF)),
    ],
    pipeline="middle",
)
ROOT = Graph.of(
    [
        Step(name="middle", child=Child(pipeline="middle", graph=MIDDLE, queue="gpu"), timeout_s=5.0),
        Step(name="other", child=Child(pipeline="leaf", graph=LEAF), arguments={"n": OutputRef("middle")}),
    ],
    pipeline="root",
)
DIGEST = "ab" * 32
PARENT = Parent(
    run="parent00",
    pipeline="outer",
    step="inner=2",
    attempt=3,
    root="root0000",
    depth=2,
    enclosing=(DIGEST, "cd" * 32),
    deadline_s=5.0,
)


def test_graphs_name_those_that_are_built_into_them() -> None:
    """Inner ones first, each once, whoever has it as a step."""
    stored: dict[str, bytes] = {}
    data = encode_graph(ROOT, None, stored)
    assert [decode_graph(found).pipeline for found in stored.values()] == ["leaf", "middle"]
    assert all(graph_digest(found) == digest for digest, found in stored.items())
    leaf, middle = stored
    assert children_in(data) == {leaf, middle}
    assert children_in(stored[middle]) == {leaf}
    assert children_in(b"\xa5child is a word") == children_in(stored[leaf]) == set()
    read = decode_graph(data)
    assert read.steps["middle"].child == Child(pipeline="middle", digest=middle, queue="gpu")
    assert decode_graph(stored[middle]).steps["again"].child == Child(pipeline="middle", up=0)
    assert encode_graph(read) == data, "whoever has no graph of a child has its digest"


@pytest.mark.parametrize(
    ("child", "sentence"),
    [
        ({"pipeline": "p"}, "'' is not the digest of a graph"),
        ({"pipeline": "p", "graph": "x"}, "'x' is not the digest of a graph"),
        ({"graph": DIGEST}, "field 'pipeline' is missing"),
        ({"pipeline": "p", "up": "x"}, "field 'up' is of type str"),
        ({"pipeline": "p", "up": NESTING_MAX + 1}, f"at most {NESTING_MAX} are allowed"),
        ({"pipeline": "a.b", "up": 0}, "pipeline name 'a.b' is not allowed"),
        ({"pipeline": "p", "up": 0, "queue": ">"}, "queue name '>' is not allowed"),
        ([], "field 'child' is of type list"),
    ],
)
def test_a_child_that_is_none_is_refused(child: Any, sentence: str) -> None:
    data = encode_map({"pipeline": "p", "steps": [{"name": "s", "child": child}], "parameters": []})
    with pytest.raises((UsageError, RemoteProtocolError), match="step") as caught:
        decode_graph(data)
    assert sentence in str(caught.value)


def test_a_submit_names_its_parent() -> None:
    submission = Submission(graph=DIGEST, parameters={"n": 1}, parent=PARENT)
    data = encode_submission(submission)
    assert decode_submission(data) == submission
    assert parent_in(data) == PARENT
    assert submission.graphs == (DIGEST, *PARENT.enclosing)
    plain = encode_submission(Submission(graph=DIGEST, parameters={"parent": 1}))
    assert parent_in(plain) is None
    assert parent_in(b"\xa6parent") is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"run": "../x"}, "is not a run id"),
        ({"root": ""}, "is not a run id"),
        ({"pipeline": "*"}, "pipeline name '*' is not allowed"),
        ({"step": "_"}, "'_' is not the name of a step"),
        ({"attempt": -1}, "field 'attempt'"),
        ({"depth": 0}, "field 'depth' is 0, it must be 1 or more"),
        ({"deadline_s": 0}, "it must be above 0"),
        ({"enclosing": ["x"]}, "digests of graphs"),
        ({"enclosing": [DIGEST] * (NESTING_MAX + 1)}, f"at most {NESTING_MAX} digests"),
    ],
)
def test_a_parent_that_is_none_is_refused(change: dict[str, Any], sentence: str) -> None:
    fields = decode_map(encode_submission(Submission(graph=DIGEST, parent=PARENT)), "the submit").map
    data = encode_map({**fields, "parent": {**fields["parent"], **change}})
    with pytest.raises((UsageError, RemoteProtocolError)) as caught:
        decode_submission(data)
    assert sentence in str(caught.value)
    assert parent_in(data) is None


def test_the_submit_of_a_child_says_what_that_of_its_parent_says() -> None:
    """Of the whole run; and where it is in it."""
    stored: dict[str, bytes] = {}
    root = decode_graph(encode_graph(ROOT, None, stored))
    leaf, middle = stored
    above = Submission(graph=DIGEST, source={"kind": "bundle"}, no_cache=True, refresh=("middle/leaf/work",))
    first = submission_of_child(above, root.steps["middle"], run="root0000", pipeline="root", name="middle", attempt=1)
    assert (first.graph, first.queue, first.source, first.no_cache) == (middle, "gpu", {"kind": "bundle"}, True)
    assert first.refresh == ("leaf/work",)
    assert first.parent == Parent(
        run="root0000",
        pipeline="root",
        step="middle",
        attempt=1,
        root="root0000",
        depth=1,
        enclosing=(DIGEST,),
        deadline_s=5.0,
    )
    step = decode_graph(stored[middle]).steps["again"]
    run = child_run_id("root0000", "middle", 1)
    again = submission_of_child(
        replace(first, queue="own"), step, run=run, pipeline="middle", name="again=4", attempt=2
    )
    assert (again.graph, again.queue, again.refresh) == (middle, "own", ())
    assert again.parent == Parent(
        run=run, pipeline="middle", step="again=4", attempt=2, root="root0000", depth=2, enclosing=(DIGEST,)
    )
    assert leaf


def test_arguments_of_any_size() -> None:
    large = {"a": list(range(60_000)), "b": "x" * 200_000, "c": 1}
    submission = Submission(graph=DIGEST, parent=PARENT)
    with pytest.raises(LimitExceeded):
        encode_child(submission, large, "step 'inner'")
    with spooled() as spool:
        found = decode_submission(encode_child(submission, large, "step 'inner'", spool)).parameters
        assert found["c"] == 1
        assert {found["a"].digest, found["b"].digest} == set(spool.files)


@pytest.mark.parametrize(
    "event",
    [
        StepSucceeded(step="inner", attempt=2, value={"a": (1, 2)}),
        StepFailed(step="inner", attempt=2, failure=Failure(message="no", types=("m.E",))),
        StepCancelled(step="inner", attempt=2, message="enough"),
    ],
)
def test_the_end_of_a_step_that_is_a_run(event: EndOfStep) -> None:
    with spooled() as spool:
        kind, payload = encode_end_of_step(event, spool)
    assert decode_event(EventSubject("p", "run00001", "inner", kind), payload, 0.0) == event


def test_a_cancel_says_whether_it_comes_from_the_parent() -> None:
    for by_parent in (True, False):
        event = CancelRequested(message="m", by_parent=by_parent)
        _, kind, payload = encode_event(event)
        assert decode_event(EventSubject("p", "run00001", None, kind), payload, 0.0) == event


def test_the_registry_knows_parents() -> None:
    entry = RunEntry(run="run00001", pipeline="p", status=RunStatus.RUNNING, submitted_at_s=1.0, parent="a", root="b")
    assert decode_run_entry(encode_run_entry(entry)) == entry
    assert "parent" not in decode_map(encode_run_entry(replace(entry, parent="", root="")), "x").map
