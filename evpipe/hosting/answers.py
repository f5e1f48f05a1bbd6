"""What steps that wait are given by whoever runs a pipeline: `answers=` of `run`, or, in debug mode, the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread

from evpipe.bus.protocol import Bus
from evpipe.client.handle import RunHandle
from evpipe.client.waiting import WaitingStep, give_event, waiting_steps
from evpipe.core.graph import Graph
from evpipe.core.names import nearest
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
        for name, answer in self._given.items():
            self._check(name, answer, graph)

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
        waits = {step.name: step.wait for step in graph.steps.values() if step.wait is not None}
        wait = waits.get(str(name).partition("=")[0])
        if wait is None or wait.kind is WaitKind.SLEEP:
            has = ", ".join(key for key, found in waits.items() if found.kind is not WaitKind.SLEEP)
            raise UsageError(
                f"answers has {str(name)!r}, which is no approval and no wait for an event{nearest(str(name), waits)} "
                f"({f'there are {has}' if has else 'there are none'})"
            )
        if wait.kind is WaitKind.APPROVAL and not callable(answer):
            problem = answer_problem(wait, answer)
            if problem:
                raise UsageError(f"answers: step {name!r}: {problem}")


def nobody_answers(waiting: WaitingStep, mode: str) -> UsageError:
    """Make the error for a step that would wait for ever, because all that could answer it is this process."""
    return UsageError(
        f"step {waiting.step!r} {_what(waiting)}, and in mode {mode} nobody else can give it: "
        f"run(…, answers={{{waiting.step!r}: …}}) does, and mode 'bus' has `evpipe runs approve` and `evpipe signal`"
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
    seen: set[str] = set()
    async for run in handle.watch():
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
            raise nobody_answers(waiting, mode)
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
