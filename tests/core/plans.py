"""Hypothesis strategies for graphs, and for what happens to the attempts of their steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from hypothesis import strategies as st

from evpipe.core.bindings import OneOf, OutputRef, Tree
from evpipe.core.conditions import AllOf, AnyOf, Comparison, Condition, IsTrue, Negation
from evpipe.core.exits import RUN
from evpipe.core.graph import Graph, Step
from evpipe.core.lineage import Child
from evpipe.core.mapping import base_of
from evpipe.core.parameters import ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.core.waits import Wait, WaitKind

#: How an attempt ends: "odd" is an error of a type that a policy with a filter does not retry.
Outcome: TypeAlias = Literal["ok", "error", "odd", "timeout", "lost", "output", "skip"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "error", "odd", "timeout", "lost", "output", "skip")
ERROR_TYPES = {"error": ("m.Error", "builtins.Exception"), "odd": ("m.Odd", "builtins.Exception")}
#: The key that the output of every step has, and one that none has.
KEY, NO_KEY = "value", "missing"
#: What some steps run: to the core it is no more than that.
CHILD = Child(pipeline="inner", digest="0" * 64)


@dataclass(frozen=True)
class Plan:
    """A graph, and how each attempt of each step ends; attempts past a script succeed."""

    graph: Graph
    scripts: dict[str, tuple[Outcome, ...]] = field(default_factory=dict)

    def outcome(self, step: str, attempt: int) -> Outcome:
        script = self.scripts[step]
        outcome = script[attempt - 1] if attempt <= len(script) else "ok"
        # A run is lost by nobody: whoever leads it next goes on with it. And it does not skip the step that it is.
        return "error" if outcome in ("lost", "skip") and self.graph.steps[base_of(step)].child is not None else outcome


@st.composite
def retry_policies(draw: st.DrawFn, *, timed: bool = False) -> RetryPolicy:
    """Policies; `timed`: some with a time for all attempts, so that what is tried depends on the workers, too."""
    return RetryPolicy(
        count=draw(st.integers(0, 2)),
        delay_s=draw(st.sampled_from([0.0, 5.0])),
        jitter=draw(st.sampled_from([0.0, 0.1])),
        on=draw(st.sampled_from([(), ("m.Error",)])),
        within_s=draw(st.sampled_from([None, 3.0, 12.0])) if timed else None,
    )


@st.composite
def graphs(draw: st.DrawFn, steps_max: int = 8, *, order_free: bool = False) -> Graph:
    """A graph whose steps take outputs whole, by a key that is there and, rarely, by one that is not.

    Args:
        order_free: leave out what makes the result depend on the order of the workers' events.

    """
    names = draw(st.permutations([f"s{i}" for i in range(draw(st.integers(0, steps_max)))]))
    steps: list[Step] = []
    for i, name in enumerate(names):
        arguments: dict[str, Tree] = {"constant": i}
        after: list[str] = []
        for parent in draw(st.lists(st.sampled_from(names[:i]), max_size=3, unique=True)) if i else []:
            how = draw(st.integers(0, 11))
            if how < 4:
                arguments[parent] = OutputRef(parent)
            elif how < 8:
                arguments[parent] = [{"nested": (OutputRef(parent, (KEY,)),)}]
            elif how < 11:
                after.append(parent)
            else:
                arguments[parent] = OutputRef(parent, (NO_KEY,))
        when: Condition | None = None
        if i and draw(st.integers(0, 4)) == 0:
            # Of the rest of the graph, too: what only a condition needs is needed all the same.
            left = OutputRef(draw(st.sampled_from(names[:i])), (KEY,))
            conditions: list[Condition] = [
                IsTrue(left),
                Negation(IsTrue(left)),
                Comparison("==", left, [left.step]),
                AllOf((IsTrue(left), Comparison("!=", left, [left.step]))),
                AnyOf((Comparison("<", left, None), IsTrue(left))),
            ]
            when = draw(st.sampled_from(conditions))
        if i > 1 and draw(st.integers(0, 4)) == 0:
            branches = draw(st.lists(st.sampled_from(names[:i]), min_size=1, max_size=3, unique=True))
            arguments["branches"] = OneOf(tuple(OutputRef(branch) for branch in branches))
        if draw(st.integers(0, 7)) == 0:
            options = {"when": when, "run_if": draw(st.sampled_from([RunIf.ALL_SUCCEEDED] * 3 + [*RunIf]))}
            after += [key for key in arguments if key in names]
            steps.append(draw(waits(name, after=tuple(after), on_failure=draw(st.sampled_from(OnFailure)), **options)))
            continue
        steps.append(
            Step(
                name=name,
                arguments=arguments,
                after=tuple(after),
                retries=draw(retry_policies(timed=not order_free)),
                when=when,
                run_if=draw(st.sampled_from([RunIf.ALL_SUCCEEDED] * 6 + [*RunIf])),
                on_failure=draw(st.sampled_from(OnFailure)),
                child=draw(st.sampled_from([None, None, None, CHILD])),
            )
        )
    for i in range(draw(st.sampled_from([0, 0, 1, 2]))):
        status: Tree = OutputRef(RUN, ("status",))
        ends: list[Condition | None] = [
            None,
            Comparison("==", status, "succeeded"),
            Negation(Comparison("==", status, "succeeded")),
        ]
        steps.append(
            Step(
                name=f"handler{i}",
                arguments={"run": status},
                retries=draw(retry_policies()),
                when=draw(st.sampled_from(ends)),
                run_if=RunIf.ALWAYS,
                on_exit=True,
                on_failure=draw(st.sampled_from(OnFailure)),
            )
        )
    return Graph.of(
        draw(st.permutations(steps)),
        pipeline="demo",
        output={name: OutputRef(name) for name in names[-2:]},
        fail_fast=not order_free and draw(st.booleans()),
        deadline_s=None if order_free else draw(st.sampled_from([None, 20.0])),
    )


@st.composite
def waits(draw: st.DrawFn, /, name: str, **options: Any) -> Step:
    """A step that waits: without a time it is answered, with one nobody does."""
    kind = draw(st.sampled_from([WaitKind.APPROVAL, WaitKind.SIGNAL]))
    arguments: dict[str, Tree] = {"message": "Go?"} if kind is WaitKind.APPROVAL else {"name": "orders.created"}
    timeout_s = draw(st.sampled_from([None, 5.0]))
    if timeout_s is not None and draw(st.booleans()):
        arguments["default"] = {KEY: [name]}
    wait = Wait(kind=kind, answer=ParameterType("dict"))
    return Step(name=name, arguments=arguments, wait=wait, timeout_s=timeout_s, **options)


def never_answered(step: Step) -> bool:
    """Say whether the time of a wait of these tests ends it, and badly."""
    return step.timeout_s is not None and "default" not in step.arguments


@st.composite
def plans(draw: st.DrawFn, *, order_free: bool = False) -> Plan:
    graph = draw(graphs(order_free=order_free))
    # Any mixture, and often enough an attempt that is lost just as often as it may be, or once more.
    lost: st.SearchStrategy[tuple[Outcome, ...]] = st.sampled_from([("lost",) * 3, ("lost",) * 4])
    scripts = st.lists(st.sampled_from(OUTCOMES), max_size=5).map(tuple) | lost
    found = {name: draw(scripts) for name in graph.steps}
    for name, step in graph.steps.items():
        if step.wait is not None:
            found[name] = ("timeout",) if never_answered(step) else ()
    return Plan(graph, found)
