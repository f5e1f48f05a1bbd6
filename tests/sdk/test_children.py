"""Pipelines in pipelines: which graph a call of one makes, and what a call may say."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from evpipe import LimitExceeded, NotKnownYet, Pipeline, UsageError, one_of, pipeline, step, unmapped
from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.core.graph import Graph, Step, graphs_in, queues_of, steps_in
from evpipe.core.lineage import NESTING_MAX
from evpipe.core.mapping import Mapped
from evpipe.core.parameters import REQUIRED
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.wire.graphs import children_in, decode_graph, encode_graph, graph_digest


@step
def number(of: Any = 0) -> int:
    return int(of)


@step(cache=True)
def add(a: int, b: int) -> int:
    return a + b


class Pair(NamedTuple):
    low: int
    high: int


@pipeline(queue="inner", deadline_s=5)
def inner(n: int, more: int = 2, names: tuple[str, ...] = ()) -> int:
    return add(number(n), more)


@pipeline
def pair(n: int) -> Pair:
    return Pair(number(n), number(n))


def child_graph(found: Step) -> Graph:
    assert found.child is not None
    assert found.child.graph is not None
    return found.child.graph


def test_a_call_is_a_step_with_the_graph_of_the_pipeline() -> None:
    """Constants are real values in its body; handles are parameters of its graph; the step has all as arguments."""

    @pipeline
    def outer() -> int:
        return add(inner(number(), names=("a",)), inner(5))

    graph = outer.build({}).graph
    assert list(graph.steps) == ["number", "inner", "inner-2", "add"]
    first, second = graph.steps["inner"], graph.steps["inner-2"]
    assert first.arguments == {"n": OutputRef("number"), "more": 2, "names": ("a",)}
    assert second.arguments == {"n": 5, "more": 2, "names": ()}
    assert child_graph(first).steps["number"].arguments == {"of": ParameterRef("n")}
    assert child_graph(second).steps["number"].arguments == {"of": 5}
    assert child_graph(first).parameters == inner.parameters
    assert (child_graph(first).deadline_s, child_graph(first).steps["add"].queue) == (5, "inner")
    assert graph.parents["add"] == ("inner", "inner-2")
    assert [found.name for found in steps_in(graph) if found.cache] == ["add", "add", "add"]
    assert queues_of(graph) == {"default", "inner"}


def test_its_value_has_the_shape_of_its_return_annotation() -> None:
    @pipeline
    def outer() -> int:
        low, _ = pair(1)
        return add(low, pair(2).high)

    graph = outer.build({}).graph
    assert graph.steps["add"].arguments == {"a": OutputRef("pair", (0,)), "b": OutputRef("pair-2", ("high",))}
    assert graph.steps["pair"].outputs == ("low", "high")

    @pipeline
    def wrong() -> int:
        return pair(1)["middle"]  # type: ignore[call-overload]

    with pytest.raises(UsageError, match="the value of step 'pair' has no output 'middle'"):
        wrong.build({})


def test_options_of_the_step() -> None:
    """They are those of a step that make sense for a run; those of `run` are refused, and the other way round."""

    @pipeline
    def outer() -> None:
        first = number()
        inner.options(
            name="child",
            queue="gpu",
            retries=2,
            timeout_s=3,
            on_failure="skip",
            after=[first],
            when=first > 1,
            run_if="all_done",
            description="d",
        )(1)

    found = outer.build({}).graph.steps["child"]
    assert found.child is not None
    assert (found.child.queue, found.child.pipeline, found.timeout_s) == ("gpu", "inner", 3.0)
    assert (found.retries, found.on_failure, found.run_if) == (RetryPolicy(count=2), OnFailure.SKIP, RunIf.ALL_DONE)
    assert (found.after, found.description, found.when is not None) == (("number",), "d", True)
    assert queues_of(outer.build({}).graph) == {"default", "inner", "gpu"}

    with pytest.raises(UsageError, match="pipeline 'inner': 'when' is an option of a step"):
        inner.options(when=None).run(1)
    with pytest.raises(UsageError, match="pipeline 'inner': retries: count must be"):
        inner.options(retries=-1)


#: As who calls it wrongly sees it: without its types.
untyped: Any = inner


@pipeline
def branching(n: int) -> int:
    return number(1) if n else number(2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (inner, "pipeline 'inner' needs the parameter 'n' (int)"),
        (lambda: untyped("x"), "parameter 'n' of pipeline 'inner' must be int, not 'x' (str)"),
        (lambda: untyped(1, nr=2), "pipeline 'inner' has no parameter 'nr'"),
        (lambda: untyped(1, n=2), "pipeline 'inner' got two values for the parameter 'n'"),
        (lambda: inner.options(mode="local")(1), "pipeline 'inner': 'mode' is for run(...)"),
        (lambda: inner.options(key="k")(1), "pipeline 'inner': 'key' is for run(...)"),
        (lambda: inner.options(no_cache=True)(1), "pipeline 'inner': 'no_cache' is for run(...)"),
        (lambda: untyped(1, 2, (), 3), "pipeline 'inner' takes 3 by position, and 4 were given"),
        (lambda: inner.options(name="number")(number()), "has a step named 'number' already"),
        (lambda: branching(number()), "the parameter 'n' is not known while the pipeline is being built"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_at_its_line(call: Any, sentence: str) -> None:
    def body() -> None:
        call()

    with pytest.raises(UsageError) as caught:
        pipeline(name="outer")(body).build({})
    assert sentence in str(caught.value)


def test_a_value_that_is_not_known_yet_cannot_decide_in_the_body() -> None:
    @pipeline
    def outer() -> int:
        return branching(number())

    assert list(child_graph(pipeline(name="o")(lambda: branching(1)).build({}).graph.steps["branching"]).steps)
    with pytest.raises(NotKnownYet):
        outer.build({})


def test_equal_calls_have_one_graph() -> None:
    """A thousand calls with other handles: the body is called once, and one graph is stored."""
    called = []

    @pipeline
    def counted(n: int, label: Any = "x") -> int:
        called.append(label)
        return number(n)

    @pipeline
    def outer() -> None:
        first = number()
        for _ in range(1_000):
            counted(first)
        counted(first, label=[1, {"a": 2.0}])
        counted(first, label=[1, {"a": 2.0}])
        for label in (1, 1.0, True, 0.0, -0.0, float("nan")):
            counted(first, label=label)

    graph = outer.build({}).graph
    assert len(called) == 8
    stored: dict[str, bytes] = {}
    data = encode_graph(graph, None, stored)
    assert len(stored) == 1, "a label is an argument of the step, and in no step of the child"
    assert children_in(data) == set(stored)
    assert all(graph_digest(found) == digest for digest, found in stored.items())
    read = decode_graph(data)
    assert {found.child.digest for found in read.steps.values() if found.child} == set(stored)
    assert decode_graph(next(iter(stored.values()))).pipeline == "counted"


@pipeline
def fib(n: int) -> int:
    if n < 2:
        return n
    return add(fib(n - 1), fib(n - 2))


def test_recursion_with_constants() -> None:
    """It is made while the graph is built: one graph per value, however often it is called."""
    graph = fib.build({"n": 20}).graph
    assert len(list(graphs_in(graph))) == 21
    stored: dict[str, bytes] = {}
    encode_graph(graph, None, stored)
    assert len(stored) == 20

    assert fib.build({"n": NESTING_MAX + 1})
    with pytest.raises(LimitExceeded, match=f"pipeline 'fib' is called {NESTING_MAX + 1} levels deep") as caught:
        fib.build({"n": NESTING_MAX + 2})
    assert (caught.value.limit, caught.value.allowed) == ("NESTING_MAX", NESTING_MAX)


@pipeline
def countdown(n: int) -> int:
    left = number(n)
    return one_of(countdown.options(when=left > 0)(left), left)


@pipeline
def even(n: int) -> Any:
    left = number(n)
    return one_of(odd.options(when=left > 0)(left), left)


@pipeline
def odd(n: int) -> Any:
    left = number(n)
    return one_of(even.options(when=left > 0)(left), left)


def test_recursion_with_handles() -> None:
    """A call of a pipeline that is being made for the same arguments is a step of the same graph, so many levels up."""
    graph = countdown.build({"n": 3}).graph
    assert len(list(graphs_in(graph))) == 2
    again = child_graph(graph.steps["countdown"]).steps["countdown"].child
    assert again is not None
    assert (again.up, again.graph) == (0, None)

    outer = even.build({"n": 3}).graph
    first = child_graph(outer.steps["odd"])
    second = child_graph(first.steps["even"])
    third = second.steps["odd"].child
    assert third is not None
    assert (third.up, third.pipeline) == (1, "odd")
    stored: dict[str, bytes] = {}
    data = encode_graph(outer, None, stored)
    assert len(stored) == 2
    assert [decode_graph(found).pipeline for found in stored.values()] == ["even", "odd"]
    assert children_in(data) < set(stored)


def test_pipelines_that_are_made_in_a_body_are_different_ones() -> None:
    """Also where one has the place in memory that another had."""

    def made(i: int) -> Any:
        @pipeline(name="made")
        def body() -> int:
            return number.options(name=f"n{i}")(i)

        return body

    @pipeline
    def outer() -> None:
        for i in range(200):
            made(i)()

    graph = outer.build({}).graph
    assert [list(child_graph(found).steps) for found in graph.steps.values()] == [[f"n{i}"] for i in range(200)]


def test_an_endless_body_is_ended() -> None:
    @pipeline
    def endless(n: int) -> int:
        return endless(n + 1)

    with pytest.raises(LimitExceeded, match="let the body stop, or let the value come from a step"):
        endless.build({"n": 0})


def test_mapped() -> None:
    """What is another value for each element is a parameter of the one graph that they all have."""

    @pipeline
    def outer() -> list[int]:
        found = inner.map([1, 2, 3], more=unmapped(number()))
        inner.options(name="other").map(found, [4, 5], product=True)
        return found

    graph = outer.build({}).graph
    mapped, other = graph.steps["inner"], graph.steps["other"]
    assert mapped.mapped == Mapped(places=("n",))
    assert mapped.arguments == {"n": [1, 2, 3], "more": OutputRef("number"), "names": ()}
    assert child_graph(mapped).steps["number"].arguments == {"of": ParameterRef("n")}
    assert other.mapped == Mapped(places=("n", "more"), product=True)
    assert child_graph(other) == child_graph(mapped)

    p = Pipeline("built")
    p.map("inner", inner, n=[1, 2], more=3)
    assert p.build({}).graph.steps["inner"].mapped == Mapped(places=("n",))
    with pytest.raises(UsageError, match="step 'inner': nothing to map over"):
        pipeline(name="o")(lambda: inner.map(1)).build({})
    with pytest.raises(UsageError, match=r"pipeline 'inner': \.map\(\.\.\.\) adds steps to a pipeline"):
        inner.map([1])


def test_builder() -> None:
    """A `Pipeline` takes pipelines of either style, itself among them; its graph is the same for all values."""
    p = Pipeline("outer")
    n = p.param("n", int)
    first = p.step("first", number, of=n)
    p.step("style", inner, n="${later.result}", more=7, queue="gpu", timeout_s=3)
    p.step("again", p, n=first, when=first > 0)
    p.step("options", inner.options(retries=1), args={"n": 1}, after=["later"])
    q = Pipeline("other")
    m = q.param("m", int, default=4)
    p.step("built", q, m=n)
    q.output(q.step("doubled", add, a=m, b=m))
    p.step("later", number, of=2)
    graph = p.build({"n": 1}).graph
    assert list(graph.steps) == ["first", "style", "again", "options", "built", "later"]
    assert graph.steps["style"].arguments == {"n": OutputRef("later"), "more": 7, "names": ()}
    assert child_graph(graph.steps["style"]).steps["number"].arguments == {"of": ParameterRef("n")}
    again = graph.steps["again"].child
    assert again is not None
    assert again.up == 0
    assert graph.steps["options"].retries == RetryPolicy(count=1)
    assert list(child_graph(graph.steps["built"]).steps) == ["doubled"], "as it is when the whole is built"
    style = graph.steps["style"]
    assert style.child is not None
    assert (style.child.queue, style.timeout_s) == ("gpu", 3.0)
    assert repr(p) == "<pipeline 'outer': 6 steps>"

    @pipeline
    def calls_it() -> Any:
        return q(m=number())

    assert child_graph(calls_it.build({}).graph.steps["other"]).output == OutputRef("doubled")
    with pytest.raises(UsageError, match="pipeline 'other' has no body to call"):
        q(m=1)


def test_outside_a_pipeline_it_is_its_body_with_plain_functions() -> None:
    assert inner(1) == 3
    assert inner.options(name="x")(1) == 3
    assert fib(10) == 55


def test_a_pipeline_that_is_built_in_a_body_is_another_root() -> None:
    """Its graph refers to nothing around it: it may be run by itself."""

    @pipeline
    def outer() -> None:
        assert countdown.build({"n": 3}).graph == before
        countdown(3)

    before = countdown.build({"n": 3}).graph
    assert child_graph(outer.build({}).graph.steps["countdown"]) == before


def test_a_handle_cannot_leave_its_pipeline() -> None:
    leaked: list[Any] = []

    @pipeline
    def keeps(n: int) -> int:
        leaked.append(n)
        return number(n)

    @pipeline
    def outer() -> None:
        keeps(number())
        number(leaked[-1])

    with pytest.raises(UsageError, match="is from a build that has ended"):
        outer.build({})


def test_parameters_without_a_value_are_required() -> None:
    assert [p.default for p in inner.parameters] == [REQUIRED, 2, ()]
