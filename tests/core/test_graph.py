"""A graph either validates or says in one sentence what is wrong with it."""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core import graph as graph_module
from evpipe.core.bindings import TREE_DEPTH_MAX, OutputRef, ParameterRef
from evpipe.core.graph import Graph, Step, find_cycle
from evpipe.core.mapping import Mapped
from evpipe.core.names import ALLOWED, nearest
from evpipe.core.parameters import Parameter
from evpipe.errors import LimitExceeded, UsageError
from tests.core.budget import examples
from tests.core.making import graph, step
from tests.core.plans import graphs


def refusal(make: Callable[[], Any]) -> str:
    """The sentence with which something is refused."""
    with pytest.raises(UsageError) as caught:
        make()
    return str(caught.value)


def ring(*names: str) -> list[Step]:
    """Steps of which each waits for the one before it, and the first for the last."""
    return [step(name, after=(names[i - 1],)) for i, name in enumerate(names)]


# ---- cycles


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        pytest.param([step("a", "a")], "a -> a", id="a step that takes its own output"),
        pytest.param([step("a", after=("a",))], "a -> a", id="a step that waits for itself"),
        pytest.param([step("a", "b"), step("b", "a")], "b -> a -> b", id="two by data"),
        pytest.param([step("a", after=("b",)), step("b", "a")], "b -> a -> b", id="one edge is after="),
        pytest.param(
            [step("root"), step("x", "root", "z"), step("y", "x"), step("z", "y"), step("below", "z")],
            "x -> y -> z -> x",
            id="steps above and below it are left out",
        ),
        pytest.param(
            ring(*(f"s{i:02}" for i in range(11))),
            "s01 -> s02 -> s03 -> s04 -> s05 -> s06 -> s07 -> s08 -> s09 -> s10 -> s00 -> s01",
            id="the longest that is shown whole",
        ),
        pytest.param(
            ring(*(f"s{i:02}" for i in range(12))),
            "s01 -> s02 -> s03 -> s04 -> s05 -> s06 -> s07 -> s08 -> s09 -> s10 -> … -> s01",
            id="a longer one is cut",
        ),
    ],
)
def test_a_cycle_is_printed(steps: list[Step], shown: str) -> None:
    assert refusal(lambda: graph(*steps)) == f"the steps wait for each other in a cycle: {shown}"


@given(
    st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
@examples(150)
def test_a_graph_is_refused_exactly_when_graphlib_finds_a_cycle(edges: list[list[int]]) -> None:
    steps = [step(f"s{i}", after=tuple(f"s{j}" for j in above)) for i, above in enumerate(edges)]
    by_name = {s.name: s.after for s in steps}
    try:
        graphlib.TopologicalSorter(by_name).prepare()
    except graphlib.CycleError:
        shown = refusal(lambda: graph(*steps)).removeprefix("the steps wait for each other in a cycle: ").split(" -> ")
        assert shown[0] == shown[-1]
        assert all(above in by_name[below] for above, below in itertools.pairwise(shown))
    else:
        assert set(graph(*steps).order) == set(by_name)


def test_the_cycle_found_does_not_depend_on_the_order_of_a_set() -> None:
    parents = {"a": ("b",), "b": ("a",), "c": ("d",), "d": ("c",)}
    assert find_cycle(parents, {"d", "c", "b", "a"}) == find_cycle(parents, {"a", "b", "c", "d"})


# ---- names and references

A = step("a", outputs=("model", "score"))
ROWS = Parameter(name="rows")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(
            lambda: graph(step("train"), step("best", "trian")),
            "step 'best' takes the output of 'trian', which is not in the pipeline; did you mean 'train'?",
            id="unknown parent",
        ),
        pytest.param(
            lambda: graph(step("train"), step("best", "quux")),
            "step 'best' takes the output of 'quux', which is not in the pipeline",
            id="unknown parent like no other",
        ),
        pytest.param(
            lambda: graph(step("train"), step("best", after=("trains",))),
            "step 'best' waits for the step 'trains', which is not in the pipeline; did you mean 'train'?",
            id="unknown step in after=",
        ),
        pytest.param(
            lambda: graph(step("train"), output=[OutputRef("tran")]),
            "the pipeline's output takes the output of 'tran', which is not in the pipeline; did you mean 'train'?",
            id="unknown step in the output",
        ),
        pytest.param(
            lambda: graph(A, step("b", arguments={"x": OutputRef("a", ("scoer",))})),
            "step 'b' takes the output 'scoer' of 'a', which has model, score; did you mean 'score'?",
            id="unknown output name",
        ),
        pytest.param(
            lambda: graph(A, output=OutputRef("a", ("zzz",))),
            "the pipeline's output takes the output 'zzz' of 'a', which has model, score",
            id="unknown output name in the output",
        ),
        pytest.param(
            lambda: graph(step("b", arguments={"x": ParameterRef("row")}), parameters=(ROWS,)),
            "step 'b' takes the parameter 'row', which the pipeline does not have; did you mean 'rows'?",
            id="unknown parameter",
        ),
        pytest.param(
            lambda: graph(parameters=(ROWS, ROWS)),
            "parameter 'rows' is there twice",
            id="a parameter that is there twice",
        ),
        pytest.param(
            lambda: graph(step("a"), step("a")), "there are two steps named 'a': names must differ", id="duplicate step"
        ),
        pytest.param(
            lambda: Graph(pipeline="demo", steps={"b": step("a")}),
            "the step named 'a' is in the graph as 'b': the names must be equal",
            id="a step under another name",
        ),
        pytest.param(
            lambda: graph(step("a", executor="gpu")),
            "step 'a': executor must be one of inline, thread, process, command, not 'gpu'",
            id="unknown executor",
        ),
        pytest.param(
            lambda: graph(step("a", timeout_s=0)),
            "step 'a': timeout_s must be seconds above 0 and at most 31,622,400, or None, not 0",
            id="a time-out of nothing",
        ),
        pytest.param(
            lambda: graph(deadline_s=float("nan")),
            "pipeline 'demo': deadline_s must be seconds above 0 and at most 31,622,400, or None, not nan",
            id="a deadline that is no number",
        ),
        pytest.param(
            lambda: graph(deadline_s=True),
            "pipeline 'demo': deadline_s must be seconds above 0 and at most 31,622,400, or None, not True",
            id="a deadline that is a bool",
        ),
        pytest.param(
            lambda: graph(version="v" * 65),
            "pipeline 'demo': version must be text of at most 64 characters",
            id="a version that is too long",
        ),
    ],
)
def test_a_wrong_graph_is_refused_with_its_sentence(make: Callable[[], Any], sentence: str) -> None:
    assert refusal(make) == sentence


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.b", "'a.b'"),
        ("a*", "'a*'"),
        (">", "'>'"),
        ("", "''"),
        ("-a", "'-a'"),
        ("_", "'_'"),
        ("a b", "'a b'"),
        ("größe", "'gr\\xf6\\xdfe'"),
        ("a\0", "'a\\x00'"),
        ("a\n", "'a\\n'"),
        ("x" * 65, f"'{'x' * 24}\\u2026 (65 characters)'"),
        ("x" * 5_000, f"'{'x' * 24}\\u2026 (5000 characters)'"),
    ],
)
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("step", lambda name: graph(step(name))),
        ("pipeline", lambda name: graph(pipeline=name)),
        ("step 'a': queue", lambda name: graph(step("a", queue=name))),
    ],
)
def test_a_name_that_may_not_be_in_a_subject_is_refused(
    what: str, make: Callable[[str], Any], name: str, shown: str
) -> None:
    assert refusal(lambda: make(name)) == f"{what} name {shown} is not allowed: allowed are {ALLOWED}"


@pytest.mark.parametrize("name", ["a", "0", "A-b_9", "x" * 64])
def test_a_legal_name_is_taken(name: str) -> None:
    assert graph(step(name, queue=name), pipeline=name).order == (name,)


def test_a_name_that_is_no_text_is_refused() -> None:
    number: Any = 7
    assert refusal(lambda: graph(step(number))) == f"step name must be a string, not int: allowed are {ALLOWED}"


@pytest.mark.parametrize("name", ["größe", "_private", "a-b", "class"])
def test_a_parameter_may_have_any_name_of_a_python_argument_or_of_a_step(name: str) -> None:
    assert graph(parameters=(Parameter(name=name),)).parameters[0].name == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "x" * 65, "ö" * 65])
def test_another_name_of_a_parameter_is_refused(name: str) -> None:
    assert refusal(lambda: graph(parameters=(Parameter(name=name),))).startswith("parameter name ")


def test_a_suggestion_for_an_unknown_name_costs_the_same_in_any_graph() -> None:
    """A controller that refuses one graph must not stop for the others: only the first names are compared."""

    def names() -> Any:
        for i in range(10**9):
            assert i < 10_000, "looked at too many names"
            yield f"step-{i}"

    assert nearest("step-77x", names()) == "; did you mean 'step-77'?"
    assert nearest("x" * 1_000_000, names()) == ""


# ---- limits


def test_more_steps_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "STEPS_MAX", 1_000)
    assert len(graph(*(step(f"s{i}") for i in range(1_000))).order) == 1_000
    with pytest.raises(LimitExceeded) as caught:
        graph(*(step(f"s{i}") for i in range(1_001)))
    assert str(caught.value) == "pipeline 'demo' has 1,001 steps: at most 1,000 are allowed"
    assert (caught.value.limit, caught.value.found, caught.value.allowed) == ("STEPS_MAX", 1_001, 1_000)


def test_the_limit_of_steps_is_the_one_that_is_promised() -> None:
    assert graph_module.STEPS_MAX == 300_000


def test_arguments_that_contain_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    sentence = f"arguments are nested deeper than {TREE_DEPTH_MAX} levels (or contain themselves)"
    assert refusal(lambda: graph(step("a", arguments={"x": loop}))) == sentence
    assert refusal(lambda: graph(output=loop)) == sentence


def test_arguments_may_be_as_deep_as_the_limit_and_no_deeper() -> None:
    def nested(levels: int) -> Any:
        tree: Any = OutputRef("a")
        for _ in range(levels):
            tree = [tree]
        return tree

    deepest = TREE_DEPTH_MAX - 1  # the map of arguments is a level itself
    assert graph(step("a"), step("b", arguments={"x": nested(deepest)})).parents["b"] == ("a",)
    with pytest.raises(LimitExceeded) as caught:
        graph(step("a"), step("b", arguments={"x": nested(deepest + 1)}))
    assert caught.value.limit == "TREE_DEPTH_MAX"


def test_a_chain_of_100_000_steps_needs_no_recursion() -> None:
    chain = graph(step("s0"), *(step(f"s{i}", after=(f"s{i - 1}",)) for i in range(1, 100_000)))
    assert chain.order[-1] == "s99999"


def test_a_cycle_of_100_000_steps_needs_no_recursion() -> None:
    assert refusal(lambda: graph(*ring(*(f"s{i}" for i in range(100_000))))).count(" -> ") == 11


# ---- what is computed


@given(graphs(steps_max=12))
@examples(100)
def test_the_order_is_topological_and_the_edges_line_up(of: Graph) -> None:
    plain = graphlib.TopologicalSorter(of.parents)
    assert set(of.order) == set(plain.static_order())
    at = {name: i for i, name in enumerate(of.order)}
    for name, parents in of.parents.items():
        assert of.depth[name] == max((of.depth[parent] + 1 for parent in parents), default=0)
    assert all(at[above] < at[name] for name, parents in of.parents.items() for above in parents)
    down = {(above, name) for name, parents in of.parents.items() for above in parents}
    assert down == {(name, below) for name, dependents in of.dependents.items() for below in dependents}
    assert list(of.parents) == list(of.dependents) == list(of.steps)


def test_a_parent_counts_once_however_often_it_is_named() -> None:
    twice = graph(step("a"), step("b", "a", arguments={"x": [OutputRef("a"), {"y": OutputRef("a")}]}, after=("a", "a")))
    assert twice.parents["b"] == ("a",)
    assert twice.dependents["a"] == ("b",)


def test_free_steps_keep_their_order() -> None:
    assert graph(step("c"), step("a"), step("b")).order == ("c", "a", "b")


@pytest.mark.parametrize("path", [(), (0,), ("score",), ("score", "anything")])
def test_declared_outputs_are_checked_by_their_first_name_only(path: tuple[str | int, ...]) -> None:
    assert graph(A, output=OutputRef("a", path)).order == ("a",)


@pytest.mark.parametrize("found", [5, None, "text", {"a": 1}, OutputRef("load"), (1, 2)])
def test_positional_arguments_are_a_list(found: object) -> None:
    """Also in a graph that nobody's `def` has made."""
    for mapped in (None, Mapped(places=(0,))):
        with pytest.raises(UsageError, match=r"step 'm': what is under '\*' in its arguments must be the list"):
            graph(step("load"), step("m", arguments={"*": found}, mapped=mapped))
    with pytest.raises(UsageError, match=r"step 'm' is mapped over the argument '\*'"):
        graph(step("m", arguments={"*": [[1]]}, mapped=Mapped(places=("*",))))
