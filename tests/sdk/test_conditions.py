"""Conditions as users write them: comparisons of handles, combined; what they become in the graph; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest

from evpipe import NotKnownYet, Pipeline, UsageError, not_, one_of, pipeline
from evpipe.core.bindings import OneOf, OutputRef, ParameterRef
from evpipe.core.conditions import AllOf, AnyOf, Comparison, IsTrue, Negation, shown
from evpipe.core.graph import Graph
from evpipe.core.states import RunIf
from tests.sdk import sample

A = OutputRef("load")


def built(body: Callable[[Any], Any]) -> Graph:
    """The graph of a pipeline whose body gets the handle of `load`."""

    @pipeline(name="p")
    def made() -> Any:
        body(sample.load(1))

    return made.build({}).graph


@pytest.mark.parametrize(
    ("write", "expected", "told"),
    [
        (lambda h: h == 1, Comparison("==", A, 1), "load == 1"),
        (lambda h: h != "x", Comparison("!=", A, "x"), "load != 'x'"),
        (lambda h: h[0] < 1.5, Comparison("<", OutputRef("load", (0,)), 1.5), "load[0] < 1.5"),
        (lambda h: h[0] >= 3, Comparison(">=", OutputRef("load", (0,)), 3), "load[0] >= 3"),
        (lambda h: h, IsTrue(A), "load"),
        (not_, Negation(IsTrue(A)), "not load"),
        (lambda h: ~(h > 1), Negation(Comparison(">", A, 1)), "not (load > 1)"),
        (lambda h: h & (h > 1), AllOf((IsTrue(A), Comparison(">", A, 1))), "load & (load > 1)"),
        (
            lambda h: h & h[0] & (h[1] | h[2] | h[3]),
            AllOf(
                (
                    IsTrue(A),
                    IsTrue(OutputRef("load", (0,))),
                    AnyOf(tuple(IsTrue(OutputRef("load", (n,))) for n in (1, 2, 3))),
                )
            ),
            None,
        ),
        (
            lambda h: (h > 1) | h[0],
            AnyOf((Comparison(">", A, 1), IsTrue(OutputRef("load", (0,))))),
            "(load > 1) | load[0]",
        ),
        (
            lambda h: h == [h[0], {"k": h[1]}],
            Comparison("==", A, [OutputRef("load", (0,)), {"k": OutputRef("load", (1,))}]),
            None,
        ),
    ],
)
def test_what_a_condition_becomes(write: Callable[[Any], Any], expected: Any, told: str | None) -> None:
    graph = built(lambda h: sample.load.options(name="b", when=write(h))(2))
    assert graph.steps["b"].when == expected
    assert graph.parents["b"] == ("load",)
    if told is not None:
        assert shown(expected) == told


def test_rules_and_parameters_in_the_builder() -> None:
    p = Pipeline("p")
    rows = p.param("rows", int, default=3)
    p.step("a", sample.load, rows=rows, when=rows > 2, run_if="all_done")
    step = p.build({}).graph.steps["a"]
    assert step.when == Comparison(">", ParameterRef("rows"), 2)
    assert step.run_if is RunIf.ALL_DONE


def test_one_of_waits_for_all_and_needs_one() -> None:
    def body(h: Any) -> None:
        other = sample.load.options(name="other")(2)
        sample.load.options(name="join")(one_of(h, other))

    graph = built(body)
    assert graph.steps["join"].arguments == {"rows": OneOf((A, OutputRef("other")))}
    assert (graph.parents["join"], graph.branches) == (("load", "other"), {"join": frozenset({"load", "other"})})


def test_a_branch_that_is_needed_by_itself_is_no_branch() -> None:
    graph = built(lambda h: sample.load.options(name="join", when=h == 1)(one_of(h)))
    assert graph.branches == {}


@pytest.mark.parametrize(
    ("use", "error", "problem"),
    [
        (
            lambda h: bool(h == 1),
            NotKnownYet,
            r"the condition handle load == 1 is not known.*`and`, `or` or `not`.*&, \| and not_",
        ),
        (lambda h: h == 1 and h == 2, NotKnownYet, "cannot be used in `if`"),
        (lambda h: h in [1, 2], NotKnownYet, "cannot be used in `if`"),
        (lambda h: (h == 1) == (h == 2), None, ""),
        (lambda h: h == (h == 2), UsageError, "combine conditions with & and"),
        (lambda h: h & 3, UsageError, "a condition is made of handles and comparisons of handles, not of 3"),
        (lambda h: not_(True), UsageError, "not of True"),
        (lambda h: reduce(lambda found, _: not_(found), range(33), h), UsageError, "at most 32 levels"),
        (lambda h: reduce(lambda found, _: found & h, range(400), h), None, ""),
        (lambda h: one_of(), UsageError, "one_of takes handles"),
        (lambda h: one_of(1, h), UsageError, "one_of takes handles"),
        (lambda h: sample.load(h == 1), UsageError, "is for when=…, it is no value that can be passed on"),
        (
            lambda h: sample.load.options(when=True)(1),
            UsageError,
            "step 'load-2': when must be a handle or a comparison",
        ),
        (
            lambda h: sample.load.options(run_if="sometimes"),  # type: ignore[arg-type]
            UsageError,
            "run_if must be one of all_succeeded, all_done",
        ),
    ],
)
def test_what_is_refused(use: Callable[[Any], Any], error: type[Exception] | None, problem: str) -> None:
    if error is None:
        built(use)
        return
    with pytest.raises(error, match=problem):
        built(use)
