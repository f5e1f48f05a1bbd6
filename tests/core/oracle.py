"""A second, plain interpreter of a graph: no events, no commands, one step after the other.

It is written from the rules of the design, not from the machine, and knows nothing of it: parents first
(`graphlib`), each step to its end before the next. It decides only what does not depend on the order in
which workers answer, so it knows no cancellation, no `fail_fast` and no deadline.
"""

from __future__ import annotations

import graphlib
from dataclasses import dataclass
from typing import Any

from evpipe.core.bindings import OneOf, OutputRef, Tree
from evpipe.core.conditions import AllOf, AnyOf, Comparison, Condition, IsTrue, Negation
from evpipe.core.exits import RUN
from evpipe.core.graph import Graph, Step
from evpipe.core.states import OnFailure, Reason, RunIf, RunStatus, StepStatus
from tests.core.plans import ERROR_TYPES, KEY, Plan

LOST_ALLOWED = 3


@dataclass(frozen=True)
class End:
    """How a step ends."""

    status: StepStatus
    reason: Reason | None = None
    #: The attempts that it took, 0 if it was never ready.
    attempts: int = 0

    def blocks(self, step: Step) -> bool:
        """Say whether the steps below cannot run."""
        allowed = self.status is StepStatus.FAILED and step.on_failure is OnFailure.CONTINUE
        return self.status is not StepStatus.SUCCEEDED and not allowed


class Ends(dict[str, End]):
    """The ends of steps, by name."""

    #: What handlers are told of the run's own end.
    run: RunStatus | None = None


def output_of(step: str) -> Any:
    """What every step of these tests returns."""
    return {KEY: [step]}


def interpret(plan: Plan) -> Ends:
    """The end of every step: handlers last, when it is known how the run ends."""
    graph = plan.graph
    parents = {name: needed_by(step) for name, step in graph.steps.items() if not step.on_exit}
    ends = Ends()
    in_order = list(graphlib.TopologicalSorter(parents).static_order())
    for name in [*in_order, *(set(graph.steps) - set(in_order))]:
        step = graph.steps[name]
        if step.on_exit and ends.run is None:
            ends.run = run_ends_as(graph, ends)
        skipped = reason_to_skip(graph, step, ends)
        if skipped is not None:
            ends[name] = End(StepStatus.SKIPPED, skipped)
        elif not all(has(ref, ends) for ref in refs_in(dict(step.arguments))):
            ends[name] = End(StepStatus.FAILED, Reason.OUTPUT, 1)
        else:
            ends[name] = attempts_of(plan, step)
    return ends


def reason_to_skip(graph: Graph, step: Step, ends: Ends) -> Reason | None:
    """Why a step does not run when all before it has ended; None: it does."""
    hard = sure_parents(step)
    branches = needed_by(step) - hard

    def went(parent: str) -> str:
        end = ends[parent]
        if end.status is StepStatus.SKIPPED and end.reason is Reason.CONDITION:
            return "left out"
        return "badly" if end.blocks(graph.steps[parent]) else "well"

    how = [went(parent) for parent in hard]
    match step.run_if:
        case RunIf.ALL_SUCCEEDED:
            if "badly" in how or any(went(branch) == "badly" for branch in branches):
                return Reason.UPSTREAM
            if "left out" in how or (branches and not any(went(branch) == "well" for branch in branches)):
                return Reason.CONDITION
        case RunIf.ANY_SUCCEEDED if how and "well" not in how:
            return Reason.UPSTREAM if "badly" in how else Reason.CONDITION
        case RunIf.NONE_FAILED if "badly" in how:
            return Reason.UPSTREAM
        case RunIf.ANY_FAILED if how and "badly" not in how:
            return Reason.CONDITION
        case RunIf.ALL_FAILED if how and set(how) != {"badly"}:
            return Reason.CONDITION
    return Reason.CONDITION if step.when is not None and not true(step.when, ends) else None


def true(condition: Condition, ends: Ends) -> bool:
    """Whether a condition of these tests holds."""

    def value(tree: Tree) -> Any:
        return filled(tree, ends)

    match condition:
        case IsTrue(tree):
            return bool(value(tree))
        case Negation(part):
            return not true(part, ends)
        case AllOf(parts):
            return all(true(part, ends) for part in parts)
        case AnyOf(parts):
            return any(true(part, ends) for part in parts)
        case Comparison("==", left, right):
            return bool(value(left) == value(right))
        case Comparison("!=", left, right):
            return bool(value(left) != value(right))
        case Comparison(_, _, _):
            return False  # with None, which is neither less nor more
    raise AssertionError(condition)


def attempts_of(plan: Plan, step: Step) -> End:
    if step.wait is not None:
        bad = plan.outcome(step.name, 1) == "timeout"
        return End(StepStatus.FAILED, Reason.TIMEOUT, 1) if bad else End(StepStatus.SUCCEEDED, None, 1)
    attempt = failures = losses = 0
    while True:
        attempt += 1
        outcome = plan.outcome(step.name, attempt)
        if outcome == "ok":
            return End(StepStatus.SUCCEEDED, None, attempt)
        if outcome == "skip":
            return End(StepStatus.SKIPPED, Reason.CONDITION, attempt)
        if outcome == "lost":
            losses += 1
            if losses > LOST_ALLOWED:
                return End(StepStatus.FAILED, Reason.LOST, attempt)
            continue
        if outcome == "output":
            return End(StepStatus.FAILED, Reason.OUTPUT, attempt)
        failures += 1
        types = ERROR_TYPES.get(outcome, ())
        wanted = not step.retries.on or bool(set(types) & set(step.retries.on))
        if failures > step.retries.count or not wanted:
            return End(StepStatus.FAILED, Reason.TIMEOUT if outcome == "timeout" else Reason.ERROR, attempt)


def run_ends_as(graph: Graph, ends: Ends) -> RunStatus:
    """The run fails if a step failed whose failure is not allowed."""
    bad = [n for n, end in ends.items() if end.status is StepStatus.FAILED]
    if any(graph.steps[name].on_failure is OnFailure.FAIL for name in bad):
        return RunStatus.FAILED
    return RunStatus.SUCCEEDED


def needed_by(step: Step) -> set[str]:
    """The steps that a step waits for."""
    return sure_parents(step) | {ref.step for found in branches_in(dict(step.arguments)) for ref in found.options}


def sure_parents(step: Step) -> set[str]:
    """Those of them that must have ended well for the default rule: not those of which one is enough."""
    of_condition = {ref.step for ref in refs_of(step.when)} if step.when is not None else set()
    return ({ref.step for ref in refs_in(dict(step.arguments))} | set(step.after) | of_condition) - {RUN}


def refs_of(condition: Condition) -> list[OutputRef]:
    match condition:
        case IsTrue(tree):
            return refs_in(tree)
        case Comparison(_, left, right):
            return [*refs_in(left), *refs_in(right)]
        case AllOf(parts) | AnyOf(parts):
            return [ref for part in parts for ref in refs_of(part)]
        case Negation(part):
            return refs_of(part)


def branches_in(tree: Tree) -> list[OneOf]:
    if isinstance(tree, OneOf):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [found for child in children for found in branches_in(child)]


def refs_in(tree: Tree) -> list[OutputRef]:
    if isinstance(tree, OutputRef):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [ref for child in children for ref in refs_in(child)]


def has(ref: OutputRef, ends: Ends) -> bool:
    """A step that failed and may has the output None, of which any part is None."""
    return ref.step == RUN or ends[ref.step].status is not StepStatus.SUCCEEDED or ref.path in ((), (KEY,))


def filled(tree: Tree, ends: Ends) -> Any:
    """The value of an argument tree."""
    if isinstance(tree, OneOf):
        there = [ref for ref in tree.options if ends[ref.step].status is StepStatus.SUCCEEDED]
        return filled(there[0], ends) if there else None
    if isinstance(tree, OutputRef):
        if tree.step == RUN:
            return ends.run
        if ends[tree.step].status is not StepStatus.SUCCEEDED:
            return None
        return output_of(tree.step)[KEY] if tree.path else output_of(tree.step)
    if isinstance(tree, dict):
        return {key: filled(child, ends) for key, child in tree.items()}
    if isinstance(tree, list):
        return [filled(child, ends) for child in tree]
    if isinstance(tree, tuple):
        return tuple(filled(child, ends) for child in tree)
    return tree
