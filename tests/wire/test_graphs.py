"""A graph goes over the wire and comes back equal, with the digest that it had."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.graph import Graph, Step
from evpipe.core.mapping import POSITIONAL
from evpipe.core.parameters import Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure
from evpipe.errors import EncodingError, RemoteProtocolError, UsageError
from evpipe.wire.graphs import decode_graph, encode_graph, graph_digest
from evpipe.wire.limits import ITEMS_MAX
from tests.core.budget import examples
from tests.wire.plain import LEAVES, REFERENCES, trees, typed
from tests.wire.samples import GRAPH

TYPES = st.recursive(
    st.sampled_from(["any", "int", "float", "str", "bool", "bytes", "none"]).map(ParameterType)
    | st.lists(st.integers(-(2**63), 2**63) | st.booleans() | st.text(max_size=2), min_size=1, max_size=3).map(
        lambda found: ParameterType("literal", values=tuple(found))
    ),
    lambda inner: st.builds(
        lambda kind, t: ParameterType(kind, tuple(t)),
        st.sampled_from(["list", "tuple", "dict", "union"]),
        st.lists(inner, max_size=2),
    ),
    max_leaves=4,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SECONDS = st.none() | st.integers(1, 1000) | st.floats(0.001, 1e6)


@st.composite
def wire_graphs(draw: st.DrawFn) -> Graph:
    """Graphs with every field set to something, whose trees refer to steps `a` and `b` and the parameters."""
    policies = st.builds(
        RetryPolicy,
        count=st.integers(0, 5),
        delay_s=st.integers(0, 9) | st.floats(0, 9),
        jitter=st.sampled_from([0, 0.5, 1]),
        on=st.lists(TEXT).map(tuple),
    )
    constants = trees(LEAVES)
    below = trees(LEAVES | REFERENCES)

    def make(name: str, arguments: st.SearchStrategy[Any]) -> Step:
        return Step(
            name=name,
            code=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
            # What is under "*" is a list, of the positional ones.
            arguments=draw(st.dictionaries(TEXT.filter(lambda name: name != POSITIONAL), arguments, max_size=2)),
            after=draw(st.sampled_from([(), ("a",)])) if name == "c" else (),
            outputs=draw(st.none() | st.just(("x", "y"))) if name == "c" else None,
            queue=draw(st.sampled_from(["default", "gpu"])),
            executor=draw(st.sampled_from(["inline", "thread", "process"])),
            retries=draw(policies),
            timeout_s=draw(SECONDS),
            on_failure=draw(st.sampled_from(OnFailure)),
            description=draw(TEXT),
        )

    steps = [make("a", constants), make("b", constants), make("c", below)]
    return Graph.of(
        draw(st.permutations(steps)),
        pipeline=draw(st.sampled_from(["churn", "x"])),
        version=draw(TEXT),
        parameters=(
            Parameter(name="rows", type=draw(TYPES)),
            Parameter(name="depth", type=draw(TYPES), default=draw(constants)),
        ),
        output=draw(below),
        fail_fast=draw(st.booleans()),
        deadline_s=draw(SECONDS),
        description=draw(TEXT),
    )


@given(wire_graphs())
@examples(100)
def test_a_graph_comes_back_equal_with_the_same_digest(graph: Graph) -> None:
    data = encode_graph(graph)
    found = decode_graph(data)
    assert graph_digest(encode_graph(found)) == graph_digest(data)
    for name in ("pipeline", "version", "fail_fast", "deadline_s", "description", "order", "parents", "dependents"):
        assert getattr(found, name) == getattr(graph, name)
    assert typed(found.output) == typed(graph.output)
    for ours, theirs in zip(graph.parameters, found.parameters, strict=True):
        assert (theirs.name, theirs.type, typed(theirs.default)) == (ours.name, ours.type, typed(ours.default))
    for name, step in graph.steps.items():
        assert typed(dict(found.steps[name].arguments)) == typed(dict(step.arguments))
        for field in ("code", "after", "queue", "executor", "outputs", "retries", "timeout_s", "on_failure"):
            assert getattr(found.steps[name], field) == getattr(step, field)


def test_equal_graphs_have_equal_digests() -> None:
    assert encode_graph(copy.deepcopy(GRAPH)) == encode_graph(GRAPH)
    assert decode_graph(encode_graph(GRAPH)) == GRAPH


@pytest.mark.parametrize(
    ("whole", "broken"),
    [
        (Step(name="a", timeout_s=60), Step(name="a", timeout_s=60.0)),
        (
            Step(name="a", retries=RetryPolicy(count=1, delay_s=5)),
            Step(name="a", retries=RetryPolicy(count=1, delay_s=5.0)),
        ),
    ],
    ids=["timeout_s", "retries"],
)
def test_a_duration_has_one_encoding_however_it_was_written(whole: Step, broken: Step) -> None:
    assert encode_graph(Graph.of([whole], pipeline="p")) == encode_graph(Graph.of([broken], pipeline="p"))


def test_constants_that_python_calls_equal_give_different_digests() -> None:
    digests = {
        graph_digest(encode_graph(Graph.of([Step(name="a", arguments={"x": x})], pipeline="p"))) for x in (1, 1.0, True)
    }
    assert len(digests) == 3


def test_a_constant_as_long_as_allowed_comes_back() -> None:
    graph = Graph.of([Step(name="a", arguments={"x": [0] * ITEMS_MAX})], pipeline="p")
    assert decode_graph(encode_graph(graph)) == graph


def test_a_large_graph_comes_back() -> None:
    steps = [Step(name="s0"), *(Step(name=f"s{i}", after=(f"s{i - 1}",)) for i in range(1, 20_000))]
    graph = Graph.of(steps, pipeline="p")
    assert decode_graph(encode_graph(graph)).order == graph.order


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (
            Graph.of([Step(name="a", arguments={"x": [slice(1)]})], pipeline="p"),
            "argument 'x' of step 'a' cannot be encoded: a slice at [0]",
        ),
        (Graph(pipeline="p", output={"x": ...}), "the pipeline's output cannot be encoded: an ellipsis at ['x']; "),
        (
            Graph(pipeline="p", parameters=(Parameter(name="x", default=object()),)),
            "the default of parameter 'x' cannot be encoded: an object; ",
        ),
    ],
)
def test_a_constant_that_has_no_encoding_is_named(graph: Graph, sentence: str) -> None:
    with pytest.raises(EncodingError) as caught:
        encode_graph(graph)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"pipeline": "a.b"}, UsageError, "pipeline name 'a.b' is not allowed"),
        ({"steps": {}}, RemoteProtocolError, "the graph: field 'steps' is of type dict, it must be a list"),
        ({"steps": [1]}, RemoteProtocolError, "a step is of type int, not a map"),
        ({"steps": [{}]}, RemoteProtocolError, "a step of the graph: field 'name' is missing, it must be text"),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, UsageError, "there are two steps named 'a': names must differ"),
        ({"steps": [{"name": "a", "after": ["a"]}]}, UsageError, "the steps wait for each other in a cycle: a -> a"),
        (
            {"steps": [{"name": "a", "timeout_s": "1"}]},
            RemoteProtocolError,
            "step 'a' of the graph: field 'timeout_s' is of type str, it must be a number",
        ),
        (
            {"steps": [{"name": "a", "on_failure": "cry"}]},
            UsageError,
            "step 'a': on_failure must be one of fail, skip, continue, not 'cry'",
        ),
        (
            {"steps": [{"name": "a", "retries": {"count": 1001}}]},
            UsageError,
            "retries: count must be a whole number from 0 to 1000, not 1001",
        ),
        ({"priority": 10}, UsageError, "pipeline 'p': priority must be a whole number from 0 (first) to 9"),
        ({"steps": [{"name": "a", "priority": 10}]}, UsageError, "step 'a': priority must be a whole number from 0"),
        (
            {"steps": [{"name": "a", "limits": [{"kind": "lock", "name": "b"}]}]},
            UsageError,
            "step 'a' of the graph: a limit is a 'semaphore' or a 'rate', and this one is a 'lock'",
        ),
        (
            {"steps": [{"name": "a", "limits": [{"kind": "semaphore", "name": "b.c", "count": 1}]}]},
            UsageError,
            "step 'a': Semaphore name 'b.c' is not allowed",
        ),
        (
            {"steps": [{"name": "a", "limits": [{"kind": "rate", "name": "b", "count": 1, "per_s": -1}]}]},
            UsageError,
            "step 'a': Rate 'b': per_s must be seconds above 0",
        ),
        ({"parameters": [{"name": "x", "type": {"kind": "date"}}]}, UsageError, "a parameter's type must be one of "),
    ],
)
def test_a_raw_graph_is_refused_with_the_sentence_of_its_author_s_process(
    fields: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        decode_graph(msgpack.packb({"v": 1, "pipeline": "p", **fields}))
    assert str(caught.value).startswith(sentence)
