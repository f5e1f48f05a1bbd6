"""What steps that wait are given by whoever runs a pipeline: `answers=` of `run`, or, in debug mode, the terminal."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus
from evpipe.client.handle import RunHandle
from evpipe.client.waiting import WaitingStep, give_event, waiting_steps
from evpipe.core.graph import Graph, Step, found_in, graphs_below, graphs_in
from evpipe.core.lineage import child_run_id
from evpipe.core.mapping import base_of
from evpipe.core.names import for_people, from_people, nearest
from evpipe.core.states import StepStatus
from evpipe.core.waits import WaitKind, answer_problem
from evpipe.errors import AlreadyAnswered, NotWaiting, UsageError
from evpipe.sdk.parameters import parse_value

#: Who an answer is by that was given beforehand.
BY: Final = "answers"


class Answers:
    """Answers of approvals, and events of those that wait for one, by step.

    Args:
        given: values, or functions that are called with the `WaitingStep` and give one.

    Raises:
        UsageError: if one is of no step that waits for it, or is not what it takes.
    """

    def __init__(self, given: Mapping[str, Any] | None, graph: Graph) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"answers must be a dict of answers by step, not {given!r}")
        self._given = dict(given or {})
        #: The graph whose steps they are for, and those around it.
        self._around: tuple[Graph, ...] = (graph,)
        #: The path of their run, with a slash at its end; "" of the root.
        self._path = ""
        for name, answer in self._given.items():
            self._check(str(name), answer, graph)

    def inside(self, step: str) -> Answers:
        """Give the answers to the steps of the run that a step is: what is given for "inner/ok", for its "ok".

        Of an element of a mapped step that is what is given for "inner[1]/ok", else what is for all of them.
        """
        found = copy.copy(self)
        child = self._around[0].steps[base_of(step)].child
        assert child is not None, "only of steps that are runs"
        found._around = graphs_below(child, self._around)
        found._path = f"{self._path}{for_people(step)}/"
        found._given = {}
        for of in dict.fromkeys((base_of(step), step)):
            for name, answer in self._given.items():
                outer, _, rest = str(name).partition("/")
                if rest and from_people(outer) == of:
                    found._given[rest] = answer
        return found

    def path_of(self, step: str) -> str:
        """Give what an answer to one of these steps is given for."""
        return self._path + step

    def may_wait(self) -> bool:
        """Say whether there is a step in the graph, or in one of those built into it, that waits for somebody."""
        graphs = [*graphs_in(self._around[0]), *self._around[1:]]
        return any(waits_for_somebody(step) for found in graphs for step in found.steps.values())

    def __contains__(self, step: object) -> bool:
        return self._key(str(step)) in self._given

    def of(self, waiting: WaitingStep) -> Any:
        """Give the answer to a step; a function of the user's is called for it."""
        found = self._given[self._key(waiting.step)]
        return found(waiting) if callable(found) else found

    def _key(self, step: str) -> str:
        """Name the answer to a step: what is given for a mapped step is for each of its elements."""
        return step if step in self._given else step.partition("=")[0]

    def _check(self, name: str, answer: Any, graph: Graph) -> None:
        step, (inside, *_) = found_in(graph, "/".join(base_of(from_people(part)) for part in name.split("/")))
        wait = None if step is None else step.wait
        if wait is None or wait.kind is WaitKind.SLEEP:
            waits = [found.name for found in inside.steps.values() if waits_for_somebody(found)]
            has = ", ".join(waits)
            raise UsageError(
                f"answers has {name!r}, which is no approval and no wait for an event{nearest(name, waits)} "
                f"({f'there are {has}' if has else 'there are none'})"
            )
        if wait.kind is WaitKind.APPROVAL and not callable(answer):
            problem = answer_problem(wait, answer)
            if problem:
                raise UsageError(f"answers: step {name!r}: {problem}")


def waits_for_somebody(step: Step) -> bool:
    """Say whether a step waits for a person or an event."""
    return step.wait is not None and step.wait.kind is not WaitKind.SLEEP


def nobody_answers(waiting: WaitingStep, mode: str, answers: Answers) -> UsageError:
    """Make the error for a step that would wait for ever, because all that could answer it is this process."""
    return UsageError(
        f"step {waiting.step!r} {_what(waiting)}, and in mode {mode} nobody else can give it: "
        f"run(…, answers={{{answers.path_of(waiting.step)!r}: …}}) does, and mode 'bus' has `evpipe runs approve` and "
        "`evpipe signal`"
    )


def _what(waiting: WaitingStep) -> str:
    if waiting.kind == WaitKind.APPROVAL:
        return f"waits for an answer ({waiting.accepts}): {waiting.message}"
    return waiting.message


def can_ask() -> bool:
    """Whether there is somebody at the terminal to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask(waiting: WaitingStep) -> Any:
    """Ask at the terminal until the answer is one that the step takes."""
    say = sys.stderr.write
    say(f"step {waiting.step!r} {_what(waiting)}\n")
    for name, value in waiting.show.items():
        say(f"  {name}: {value!r:.200}\n")
    while True:
        say(f"answer ({waiting.accepts}): ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise UsageError(f"step {waiting.step!r} waits for an answer, and standard input has ended")
        try:
            return parse_value(waiting.answer, line.strip(), "the answer")
        except UsageError as error:
            say(f"{error}\n")


async def answer_waits(
    bus: Bus, handle: RunHandle[Any], answers: Answers, *, mode: str, note: Callable[[str], None]
) -> None:
    """Answer the steps of a run as they begin to wait, until it has ended; say what waits for others.

    Raises:
        UsageError: if a step would wait for ever; the run is cancelled then.
        Exception: what a function of the user's raises; likewise.
    """
    async with anyio.create_task_group() as task_group:
        await _answer_waits(bus, handle, answers, mode, note, task_group)


async def _answer_waits(
    bus: Bus,
    handle: RunHandle[Any],
    answers: Answers,
    mode: str,
    note: Callable[[str], None],
    task_group: TaskGroup,
) -> None:
    seen: set[str] = set()
    children: set[tuple[str, int]] = set()
    async for run in handle.watch():
        for name, state in run.steps.items() if not run.ended else ():
            # Of runs that are steps only those in which somebody is waited for are followed.
            child = run.spec(name).child if state.status is StepStatus.RUNNING else None
            if child is None or (name, state.attempt) in children:
                continue
            children.add((name, state.attempt))
            inner = answers.inside(name)
            if inner.may_wait():
                inside: RunHandle[Any] = RunHandle(bus, child_run_id(run.id, name, state.attempt), child.pipeline)
                task_group.start_soon(_answer_waits, bus, inside, inner, mode, note, task_group)
        for waiting in waiting_steps(run) if not run.ended else ():
            if waiting.step in seen or waiting.kind == WaitKind.SLEEP:
                continue
            seen.add(waiting.step)
            try:
                await _answer(bus, handle, waiting, answers, mode, note)
            except Exception:
                with anyio.CancelScope(shield=True):
                    await handle.cancel(f"step {waiting.step!r} could not be answered")
                raise


async def _answer(
    bus: Bus, handle: RunHandle[Any], waiting: WaitingStep, answers: Answers, mode: str, note: Callable[[str], None]
) -> None:
    if waiting.step not in answers:
        if mode == "local" and waiting.until is None:
            raise nobody_answers(waiting, mode, answers)
        if waiting.kind == WaitKind.APPROVAL and mode == "bus":
            command = f"`evpipe runs approve {handle.id} {waiting.step}`"
            note(f"step {waiting.step!r} {_what(waiting)}; {command} gives one")
        elif mode == "bus":
            note(f"step {waiting.step!r} {_what(waiting)}")
        return
    answer = await anyio.to_thread.run_sync(answers.of, waiting, abandon_on_cancel=True)
    try:
        if waiting.kind == WaitKind.APPROVAL:
            await handle.approve(waiting.step, answer, by=BY)
        else:
            await give_event(bus, handle.id, handle.pipeline, waiting.step, answer)
    except (AlreadyAnswered, NotWaiting):
        # Somebody else was first, or the time was over.
        pass
