"""Debug mode: the same fold, no bus: steps are plain calls in this thread, in topological order.

Breakpoints work and a traceback is the step's own. Values still go through the same encode and decode as
on the bus, so a step cannot see what another did to an argument, and results and states are those of the
other modes; only time-outs and cancellation are noticed when a call returns.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from typing import Any, Final

import anyio

from evpipe.client.client import new_run_id
from evpipe.core.commands import Decide, Launch, WakeAt
from evpipe.core.events import Decision, Due, Event, Failure, Submitted
from evpipe.core.graph import Graph
from evpipe.core.machine import Run
from evpipe.core.states import Reason
from evpipe.errors import EvpipeError
from evpipe.hosting.display import Display
from evpipe.hosting.loops import outside_of_any_loop
from evpipe.sdk.pipeline import Built
from evpipe.sdk.result import RunResult
from evpipe.wire.graphs import decode_graph, encode_graph
from evpipe.wire.messages import (
    Submission,
    decode_event,
    decode_launch,
    encode_event,
    encode_launch,
    encode_submission,
    order_of,
)
from evpipe.wire.subjects import DEFAULT_PRIORITY, EventSubject, LaunchSubject
from evpipe.worker.code import find_function
from evpipe.worker.conclusion import Conclusion, conclude_error, conclude_failure, conclude_value
from evpipe.worker.failures import timeout_failure


def run_debug(built: Built, display: Display | None = None) -> RunResult[Any]:
    """Run a built pipeline in this thread.

    Args:
        display: is told of the run; None: nobody is.
    """
    if display is not None:
        display.bus("none, plain calls in this thread (mode debug)")
    encode_submission(Submission(graph="0" * 64, parameters=built.parameters))
    graph = decode_graph(encode_graph(built.graph))
    run = Run(new_run_id())
    place = {name: i for i, name in enumerate(graph.order)}
    #: What is to be folded next; before it is empty nothing is called.
    events: deque[Event] = deque([Submitted(at_s=time.time(), graph=graph, parameters=built.parameters)])
    ready: list[tuple[int, int, Launch]] = []
    waits: list[tuple[float, int, WakeAt]] = []
    count = 0
    while not run.ended:
        if events:
            for command in run.step(events.popleft()):
                count += 1
                match command:
                    case Launch():
                        heapq.heappush(ready, (place[command.step], count, command))
                    case Decide():
                        events.append(_logged(command.event, run, graph))
                    case WakeAt():
                        heapq.heappush(waits, (command.at_s, count, command))
                    case _:
                        # Nothing runs that could be stopped, and nothing comes from outside that could be nonsense.
                        pass
        elif waits and (waits[0][0] <= time.time() or not ready):
            at_s, _, wake = heapq.heappop(waits)
            if wake.step is not None:
                time.sleep(max(0.0, at_s - time.time()))
            events.append(Due(at_s=time.time(), step=wake.step, attempt=wake.attempt))
        else:
            launch = heapq.heappop(ready)[2]
            state = run.steps[launch.step]
            if not state.ended and state.attempt == launch.attempt:
                events.append(_read(launch.step, _call(run.id, graph, launch), run, graph))
    if display is not None:
        display.finished(run)
    return RunResult.of(run)


def _logged(event: Decision, run: Run, graph: Graph) -> Event:
    """Give the event as the log would give it back: what is too long is cut."""
    step, kind, payload = encode_event(event)
    return _read(step, Conclusion(kind, payload), run, graph)


def _read(step: str | None, written: Conclusion, run: Run, graph: Graph) -> Event:
    found = decode_event(EventSubject(graph.pipeline, run.id, step, written.kind), written.payload, time.time())
    assert found is not None, "this version knows what it writes"
    return found


def _call(run: str, graph: Graph, launch: Launch) -> Conclusion:
    """Run one attempt to its end."""
    step = graph.steps[launch.step]
    subject = LaunchSubject(step.queue, DEFAULT_PRIORITY, run, launch.step, launch.attempt)
    order = order_of(step, launch.arguments, pipeline=graph.pipeline)
    began_s = time.time()
    try:
        # Through the same encode and decode as on the bus: a step cannot see what another did to an argument.
        named = dict(decode_launch(encode_launch(order, f"step {step.name!r}")).arguments)
    except EvpipeError as error:
        return conclude_failure(subject, Failure(message=str(error)), began_s, Reason.OUTPUT)
    positional = named.pop("*", ())
    try:
        function = find_function(step.code)
        if step.executor == "inline":
            value = outside_of_any_loop(lambda: anyio.run(_awaited, function, positional, named))
        else:
            value = function(*positional, **named)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit of a step is its failure
        return conclude_error(subject, _from_step_on(error), began_s)
    if step.timeout_s is not None and time.time() - began_s > step.timeout_s:
        return conclude_failure(subject, timeout_failure(step.timeout_s), began_s, Reason.TIMEOUT)
    return conclude_value(subject, order, value, began_s)


def _from_step_on(error: BaseException) -> BaseException:
    """Leave out of the traceback what is not the step's: our call of it, and the loop of an async one."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_STEP:
        frames = frames.tb_next
    return error.with_traceback(frames or error.__traceback__)


_NOT_THE_STEP: Final = frozenset({"evpipe", "anyio", "asyncio"})


async def _awaited(function: Any, positional: Any, named: Any) -> Any:
    return await function(*positional, **named)
