"""Plans of random graphs as pipelines that can be run: each step ends as the plan says of its attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from evpipe import Pipeline, SkipStep, current
from evpipe.core.graph import Graph, Step
from evpipe.core.mapping import base_of
from evpipe.core.names import for_people
from evpipe.core.retry import RetryPolicy
from evpipe.sdk.definition import Built
from tests.core.oracle import output_of
from tests.core.plans import Outcome, Plan

#: Ends of attempts that a function can bring about by itself.
PLAYED: tuple[Outcome, ...] = ("ok", "error", "odd", "output", "skip")


class Error(Exception):
    """What a policy that retries `m.Error` alone retries."""


class Odd(Exception):
    """What it does not."""


#: Are told of each attempt, by its step, when it begins.
TELL: list[Callable[[str], None]] = []


async def play(*, scripts: dict[str, list[str]], **_inputs: Any) -> Any:
    """Run one attempt: end as its step's script says of it; attempts past the script succeed."""
    here = current()
    for tell in TELL:
        tell(here.step)
    script = scripts.get(here.step, [])
    outcome = script[here.attempt - 1] if here.attempt <= len(script) else "ok"
    match outcome:
        case "error":
            raise Error(outcome)
        case "odd":
            raise Odd(outcome)
        case "skip":
            raise SkipStep(outcome)
        case "output":
            return play  # a function has no encoding
        case _:
            return output_of(here.step)


def playable(plan: Plan) -> Plan:
    """Give the same plan of functions whose ends can be played: nobody is waited for, and nothing between attempts."""
    scripts: dict[str, tuple[Outcome, ...]] = {
        name: tuple(outcome if outcome in PLAYED else "error" for outcome in script)
        for name, script in (dict.fromkeys(plan.graph.steps, ()) | plan.scripts).items()
    }
    steps: list[Step] = []
    for step in plan.graph.steps.values():
        at_once = step if step.wait is None else replace(step, wait=None, timeout_s=None, arguments={})
        policy = RetryPolicy(count=step.retries.count, delay_s=0.0, on=step.retries.on)
        steps.append(replace(at_once, child=None, retries=policy))
    return Plan(Graph.of(steps, pipeline=plan.graph.pipeline, output=plan.graph.output), scripts)


class Played(Pipeline):
    """A plan as a pipeline."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.graph.pipeline)
        self._plan = plan

    def build(self, values: Mapping[str, Any]) -> Built:
        graph = self._plan.graph
        steps = [self._step(step) for step in graph.steps.values()]
        return Built(Graph.of(steps, pipeline=graph.pipeline, output=graph.output), {})

    def _step(self, step: Step) -> Step:
        of_step = {name: script for name, script in self._plan.scripts.items() if base_of(name) == step.name}
        scripts = {for_people(name): list(script) for name, script in of_step.items()}
        return replace(
            step,
            code={"kind": "path", "module": __name__, "name": play.__name__},
            executor="inline",
            arguments={**step.arguments, "scripts": scripts},
            retries=replace(step.retries, on=tuple(name.replace("m.", f"{__name__}.") for name in step.retries.on)),
        )
