"""Calls in a pipeline's body: names of steps, argument trees, edges."""

# ruff: noqa: ISC004, PLW0108 - a sentence in a table; a body is a plain function

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe import LimitExceeded, UsageError, pipeline, step
from evpipe.core.bindings import OutputRef, resolve
from evpipe.core.graph import Graph
from evpipe.sdk import build as build_module
from tests.sdk import sample


def graph_of(body: Callable[[], Any]) -> Graph:
    """Build a pipeline that has this body."""
    return pipeline(name="p")(lambda: body()).build({}).graph


@step
def reused() -> int:
    return 1


replaced = reused


@step  # type: ignore[no-redef]  # the case under test
def reused() -> int:
    return 2


def test_automatic_names_count_and_skip_taken_ones() -> None:
    """`train`, `train-2`, …: a number that an explicit name took is passed over."""

    def body() -> None:
        sample.load.options(name="load-2")(1)
        for _ in range(3):
            sample.load(1)
        sample.load.options(name="other")(1)
        sample.load.options(name="gone").options(name=None)(1)
        sample.load.options(name="kept").options(queue="gpu")(1)

    assert list(graph_of(body).steps) == ["load-2", "load", "load-3", "load-4", "other", "load-5", "kept"]


def test_a_long_name_is_cut_to_make_room_for_its_number() -> None:
    """The automatic name of a second call is as legal as that of the first."""
    long = step(name="x" * 64)(sample.load.fn)
    long._check_found_by_name()
    assert list(graph_of(lambda: [long(1), long(2)]).steps) == ["x" * 64, "x" * 62 + "-2"]


def test_two_equal_explicit_names_are_refused() -> None:
    """A name that was asked for is never changed silently."""

    def body() -> None:
        sample.load(1)
        sample.train.options(name="load")([1.0])

    with pytest.raises(UsageError) as caught:
        graph_of(body)
    assert str(caught.value) == (
        "pipeline 'p' has a step named 'load' already: give this one another name, or none, then it gets a free one"
    )


BINDINGS: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (lambda: sample.load(1), {"rows": 1}),
    (lambda: sample.load(rows=1), {"rows": 1}),
    (lambda: sample.train([1.0], depth=4), {"data": [1.0], "depth": 4}),
    (lambda: sample.mixed(1, 2), {"*": [1], "second": 2}),
    (lambda: sample.mixed(1, second=2, flag=True), {"*": [1], "second": 2, "flag": True}),
    (lambda: sample.mixed(1, 2, 3, 4, other=5), {"*": [1, 2, 3, 4], "other": 5}),
    (lambda: sample.mixed(1, 2, first=3), {"*": [1], "second": 2, "first": 3}),
    (lambda: sample.show(), {}),
    (lambda: sample.show(args=1, kwargs=2), {"args": 1, "kwargs": 2}),
]


@pytest.mark.parametrize(("call", "arguments"), BINDINGS)
def test_arguments_go_by_name_and_by_position_only_where_they_must(
    call: Callable[[], Any], arguments: dict[str, Any]
) -> None:
    """The tree, given back to the function as `fn(*tree["*"], **rest)`, is the call."""
    (added,) = graph_of(call).steps.values()
    assert added.arguments == arguments
    rest = dict(added.arguments)
    function: Any = getattr(sample, added.name).fn
    assert function(*rest.pop("*", []), **rest) == call()


@given(
    st.lists(st.integers(), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from("abc"), st.integers()),
    st.booleans(),
)
def test_any_call_comes_back_as_itself(values: list[int], more: dict[str, Any], by_name: bool) -> None:
    """Whatever way the arguments are given, the worker's call binds the same."""
    if len(values) == 1 or by_name:
        args, kwargs = values[:1], {"second": values[-1], **more}
    else:
        args, kwargs = values, more
    (added,) = graph_of(lambda: sample.mixed(*args, **kwargs)).steps.values()
    rest = dict(added.arguments)
    assert sample.mixed.fn(*rest.pop("*", []), **rest) == sample.mixed.fn(*args, **kwargs)


TAKES = "(it takes: data, depth=3)"
WRONG_CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: sample.train(), f"step 'train': missing a required argument: 'data' {TAKES}"),  # type: ignore[call-arg]
    (lambda: sample.train([], 1, 2), f"step 'train': too many positional arguments {TAKES}"),  # type: ignore[call-arg]
    (
        lambda: sample.train([], dpeth=1),  # type: ignore[call-arg]
        f"step 'train': got an unexpected keyword argument 'dpeth'; did you mean 'depth'? {TAKES}",
    ),
    (
        lambda: sample.train(dat=[]),  # type: ignore[call-arg]
        f"step 'train': got an unexpected keyword argument 'dat'; did you mean 'data'? {TAKES}",
    ),
    (lambda: sample.train([], data=[]), f"step 'train': multiple values for argument 'data' {TAKES}"),  # type: ignore[misc]
    (lambda: sample.show(**{"*": 1}), "step 'show': a keyword argument cannot be named '*'"),
]


@pytest.mark.parametrize(("call", "sentence"), WRONG_CALLS)
def test_wrong_arguments_are_refused_at_the_call(call: Callable[[], Any], sentence: str) -> None:
    """A call that the function could not take never becomes a step."""
    with pytest.raises(UsageError) as caught:
        graph_of(call)
    assert str(caught.value) == sentence


def test_handles_anywhere_inside_lists_tuples_and_dicts_become_references() -> None:
    """Each is an edge, and the tree keeps the shape and the types around it."""

    def body() -> Any:
        data = sample.load(1)
        fit = sample.train(data)
        nested = {"a": [data, (fit["score"], 1)], "b": sample.Split(data, fit)}
        sample.show(nested, fit)
        return {"out": [fit, "text"]}

    graph = graph_of(body)
    load, train = OutputRef("load"), OutputRef("train")
    assert graph.steps["show"].arguments == {
        "*": [{"a": [load, (OutputRef("train", ("score",)), 1)], "b": (load, train)}, train]
    }
    assert type(graph.steps["show"].arguments["*"][0]["b"]) is sample.Split
    assert graph.parents == {"load": (), "train": ("load",), "show": ("load", "train")}
    assert graph.output == {"out": [train, "text"]}
    assert resolve(graph.output, {"train": 7}, {}) == {"out": [7, "text"]}


def test_a_list_that_changes_after_the_call_changes_no_step() -> None:
    """An argument is what it was at its call."""

    def body() -> None:
        values = [1]
        sample.show(values)
        values.append(2)
        sample.show(values)

    steps = graph_of(body).steps
    assert [steps[name].arguments["*"] for name in ("show", "show-2")] == [[[1]], [[1, 2]]]


def _cyclic() -> Any:
    found: list[Any] = []
    found.append(found)
    return found


WRONG_PLACES: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda h: {h: 1},
        "argument 'args' of step 'show': <handle load of pipeline 'p'> cannot stand as a key of a dict: "
        "only its values may be handles",
    ),
    (
        lambda h: {h},
        "argument 'args' of step 'show': <handle load of pipeline 'p'> cannot stand inside a set: "
        "use a list, tuple or dict",
    ),
    (
        lambda h: OrderedDict(a=h),
        "argument 'args' of step 'show': <handle load of pipeline 'p'> cannot stand inside a OrderedDict: "
        "use a list, tuple or dict",
    ),
]


@pytest.mark.parametrize(("place", "sentence"), WRONG_PLACES)
def test_a_handle_where_none_can_stand_is_refused(place: Callable[[Any], Any], sentence: str) -> None:
    """Left in place it would travel as an object that nobody can encode."""
    with pytest.raises(UsageError) as caught:
        graph_of(lambda: sample.show(place(sample.load(1))))
    assert str(caught.value) == sentence


def test_a_list_that_contains_itself_is_refused() -> None:
    """Depth has a named limit."""
    with pytest.raises(LimitExceeded) as caught:
        graph_of(lambda: sample.show(_cyclic()))
    assert str(caught.value) == "argument 'args' of step 'show' is nested deeper than 64 levels (or contains itself)"


def test_after_takes_handles_and_names_also_of_later_steps() -> None:
    """Order without data, each parent once; a name that is nowhere is refused with the nearest."""

    def body() -> None:
        first = sample.load(1)
        sample.show.options(after=[first, sample.train(first)["score"], "load", "fetch"])()
        sample.fetch("x")

    assert graph_of(body).steps["show"].after == ("load", "train", "fetch")
    with pytest.raises(UsageError) as caught:
        graph_of(lambda: [sample.load(1), sample.show.options(after=["laod"])()])
    assert str(caught.value) == (
        "step 'show' waits for the step 'laod', which is not in the pipeline; did you mean 'load'?"
    )


def test_a_step_that_its_name_does_not_stand_for_is_refused() -> None:
    """A worker takes the function from its module by name, and would run other code."""
    with pytest.raises(UsageError) as caught:
        graph_of(lambda: replaced())
    assert str(caught.value) == (
        f"step 'reused': {__name__}.reused is not its function any more, so a worker would not find it: "
        "give each step function a name of its own at module level"
    )
    assert list(graph_of(lambda: reused()).steps) == ["reused"]


def test_a_body_that_never_ends_is_stopped_by_the_limit_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is checked at each call, before memory is full."""
    monkeypatch.setattr(build_module, "STEPS_MAX", 3)

    def body() -> None:
        while True:
            sample.load(1)

    with pytest.raises(LimitExceeded) as caught:
        graph_of(body)
    assert str(caught.value) == "pipeline 'p' has more than 3 steps: at most 3 are allowed"


def test_outside_a_pipeline_a_call_is_the_plain_function() -> None:
    """Steps stay testable without any machinery; an async one says how it is called."""
    assert sample.load(2) == [2.0, 2.0] == sample.load.fn(2)
    with pytest.raises(UsageError) as caught:
        sample.fetch("x")
    assert str(caught.value) == ("step 'fetch' is an `async def`: outside a pipeline its call is `await fetch.fn(...)`")
    assert inspect.iscoroutinefunction(sample.fetch.fn)


def test_a_body_that_raises_leaves_no_build_behind() -> None:
    """After an error in a body the next plain call is a plain call again."""

    def body() -> None:
        sample.load(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        graph_of(body)
    assert sample.load(1) == [1.0]
