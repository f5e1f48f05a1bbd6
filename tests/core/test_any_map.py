"""Any graph with maps, whatever its steps give: it is folded without raising, and it ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from evpipe.core.artifact import Artifact, lengths_in
from evpipe.core.bindings import OneOf, OutputRef, ParameterRef, Tree
from evpipe.core.commands import Await, CancelRun, Decide, Quarantine, StopAttempt, WakeAt
from evpipe.core.conditions import Comparison, Condition, IsTrue, Negation
from evpipe.core.events import Event, StepApproved, StepCached, StepCancelled, StepReceived
from evpipe.core.exits import RUN
from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import Graph, Step
from evpipe.core.lineage import Child
from evpipe.core.machine import Run
from evpipe.core.mapping import Mapped, Place
from evpipe.core.parameters import Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, Reason, RunIf
from evpipe.core.waits import Wait, WaitKind
from evpipe.core.why import why
from evpipe.errors import UsageError
from evpipe.wire.graphs import decode_graph, encode_graph
from tests.core.budget import examples
from tests.core.making import (
    RUN_ID,
    cancel,
    due,
    failed,
    skipped,
    skipped_itself,
    snapshot,
    started,
    submitted,
    succeeded,
)
from tests.core.test_cached import ORIGIN

#: A graph of mapped steps of mapped steps may have very many; those are no better for this.
STEPS_LOOKED_AT = 300
PATHS: Sequence[tuple[str | int, ...]] = [()] * 12 + [("k",), (0,), (0, "k"), ("k", 0)]


def stored(values: list[Any]) -> Artifact:
    """What stands for a list that is stored; the lists in it are known, or some of them."""
    return Artifact(
        kind="value", digest="a" * 64, size_bytes=9, length=len(values), is_list=True, lengths=lengths_in(values)
    )


class Plan:
    """A graph, and what happens to it, all drawn from one source."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.fails = rng.choice((0.0, 0.1, 0.3))

    def value(self, depth: int = 0) -> Any:
        rng = self.rng
        if rng.random() < 0.6 and depth < 3:
            found = [self.value(depth + 1) for _ in range(rng.choice((0, 1, 2, 2, 2)))]
            return stored(found) if depth == 0 and rng.random() < 0.2 else found
        return rng.choice((0, 1, 2, "text", None, True, {"k": 1}, {"k": [1, 2]}))

    def tree(self, names: list[str], depth: int = 0) -> Tree:
        rng, how = self.rng, self.rng.random()
        if names and how < 0.5:
            return OutputRef(rng.choice(names), rng.choice(PATHS))
        if names and how < 0.65:
            return OneOf(tuple(OutputRef(name) for name in rng.sample(names, min(2, len(names)))))
        if how < 0.85 and depth < 2:
            return [self.tree(names, depth + 1) for _ in range(rng.choice((0, 1, 2, 2)))]
        return rng.choice((ParameterRef("p"), self.value()))

    def condition(self, trees: list[Tree]) -> Condition:
        rng = self.rng
        about = rng.choice([*trees, ParameterRef("p")])
        conditions: list[Condition] = [IsTrue(about), Negation(IsTrue(about)), Comparison("!=", about, 1)]
        return rng.choice(conditions)

    def step(self, name: str, names: list[str]) -> Step:
        rng = self.rng
        if rng.random() < 0.1:
            kind, arguments = rng.choice(((WaitKind.APPROVAL, {"message": "Go?"}), (WaitKind.SIGNAL, {"name": "s"})))
            return Step(name=name, arguments=arguments, wait=Wait(kind=kind), timeout_s=rng.choice((None, 5.0)))
        trees: dict[str, Tree] = {key: self.tree(names) for key in rng.sample("abc", rng.randint(0, 3))}
        options: dict[str, Any] = {
            "on_failure": rng.choice((*OnFailure, OnFailure.FAIL)),
            "run_if": rng.choice((*RunIf, *[RunIf.ALL_SUCCEEDED] * 12)),
            "retries": RetryPolicy(count=rng.choice((0, 0, 2)), delay_s=rng.choice((0.0, 5.0))),
        }
        if rng.random() < 0.25:
            options["when"] = self.condition(list(trees.values()))
        places: list[Place] = list(trees)
        if rng.random() < 0.2:
            trees["*"] = [self.tree(names), self.tree(names)]
            places += [0, 1]
        elif rng.random() < 0.1:
            options["child"] = Child(pipeline="inner", digest="0" * 64)
        elif rng.random() < 0.2:
            options["cache"] = CachePolicy()
        if places and rng.random() < 0.6:
            chosen = tuple(rng.sample(places, rng.randint(1, len(places))))
            options["mapped"] = Mapped(places=chosen, product=rng.random() < 0.2, levels=rng.choice((1, 1, 2, 3)))
        return Step(name=name, arguments=trees, **options)

    def handler(self, name: str) -> Step:
        rng = self.rng
        arguments: dict[str, Tree] = {"run": OutputRef(RUN, rng.choice(((), ("failed",)))), "a": self.value()}
        mapped = Mapped(places=(rng.choice(("run", "a")),)) if rng.random() < 0.5 else None
        on_failure = rng.choice(tuple(OnFailure))
        return Step(
            name=name, arguments=arguments, mapped=mapped, run_if=RunIf.ALWAYS, on_exit=True, on_failure=on_failure
        )

    def graph(self) -> Graph:
        names = [f"s{i}" for i in range(self.rng.randint(1, 7))]
        steps = [self.step(name, names[:i]) for i, name in enumerate(names)]
        steps += [self.handler(f"h{i}") for i in range(self.rng.choice((0, 0, 1, 2)))]
        parameters = (Parameter(name="p", type=ParameterType("any")),)
        output = OutputRef(names[-1]) if self.rng.random() < 0.5 else None
        fails = self.rng.random() < 0.3
        return Graph.of(steps, pipeline="demo", parameters=parameters, output=output, fail_fast=fails)

    def nonsense(self, run: Run) -> Event:
        rng = self.rng
        name = rng.choice([*run.steps, "nobody", "s0=7", "s1=0=0=0=0=0=0=0=0"])
        attempt = rng.choice((-1, 0, 1, 1, 2))
        events: list[Event] = [
            started(name, attempt),
            succeeded(name, attempt, value=self.value()),
            failed(name, attempt, rng.choice(tuple(Reason))),
            skipped(name),
            skipped_itself(name, attempt),
            StepCached(step=name, attempt=attempt, value=self.value(), origin=ORIGIN),
            StepCancelled(step=name, attempt=attempt),
            StepApproved(step=name, answer=rng.choice((True, 3))),
            StepReceived(step=name),
            due(name, attempt),
        ]
        return rng.choice(events)

    def answer(self, run: Run) -> Event:
        """An event that something outstanding leads to; AssertionError if nothing is, and the run goes on."""
        outstanding = [command for command in run.outstanding() if not isinstance(command, StopAttempt)]
        assert outstanding, f"it hangs: {[(name, state.status) for name, state in run.steps.items()]}"
        rng, command = self.rng, self.rng.choice(outstanding)
        match command:
            case Decide(event=event):
                return event
            case WakeAt(at_s=at_s, step=step, attempt=attempt):
                return due(step, attempt, at_s)
            case Await(step=step):
                approval = run.spec(step).wait == Wait(kind=WaitKind.APPROVAL)
                return StepApproved(step=step, answer=True) if approval else StepReceived(step=step)
            case CancelRun(step=step, attempt=attempt):
                return StepCancelled(step=step, attempt=attempt)
            case Quarantine():
                raise AssertionError(command)
        if rng.random() < 0.2:
            return started(command.step, command.attempt)
        if rng.random() < self.fails:
            reason = rng.choice((Reason.ERROR, Reason.LOST, Reason.OUTPUT))
            return failed(command.step, command.attempt, reason)
        if run.spec(command.step).child is None and rng.random() < 0.05:
            return skipped_itself(command.step, command.attempt)
        if run.spec(command.step).cache is not None and rng.random() < 0.5:
            return StepCached(step=command.step, attempt=command.attempt, value=self.value(), origin=ORIGIN)
        return succeeded(command.step, command.attempt, value=self.value())


@given(st.integers(0, 2**64), st.sampled_from([0.0, 0.0, 0.2]), st.sampled_from([None, None, 5, 20]))
@examples(300)
def test_any_graph_with_maps_ends(seed: int, nonsense: float, cancel_after: int | None) -> None:
    plan = Plan(random.Random(seed))
    try:
        graph = plan.graph()
    except UsageError:
        assume(False)
    assert decode_graph(encode_graph(graph)) == graph
    run = Run(RUN_ID)
    log: list[Event] = [submitted(graph, p=plan.value())]
    run.step(log[0])
    while not run.ended:
        assume(len(run.steps) <= STEPS_LOOKED_AT)
        if len(log) == cancel_after:
            event: Event = cancel()
        else:
            event = plan.nonsense(run) if plan.rng.random() < nonsense else plan.answer(run)
        log.append(replace(event, at_s=max(event.at_s, run.at_s)))
        before = snapshot(run) if nonsense else None
        commands = run.step(log[-1])
        if before is not None and any(isinstance(command, Quarantine) for command in commands):
            assert snapshot(run) == before
        assert run.open_count == sum(not state.ended for state in run.steps.values())
    assert run.open_count == 0
    assert len(list(run.in_order())) == len(run.steps)
    assert not any("=" in why(run, name).step for name in run.steps)
    again = Run(RUN_ID)
    for event in log:
        again.step(event)
    assert snapshot(again) == snapshot(run)
