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
from evpipe.core.events import Decision, Due, Event, Failure, StepFailed, StepSucceeded, Submitted
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.states import Reason
from evpipe.errors import EvpipeError
from evpipe.hosting.display import Display
from evpipe.hosting.loops import outside_of_any_loop
from evpipe.sdk.pipeline import Built
from evpipe.sdk.result import RunResult
from evpipe.wire.graphs import decode_graph, encode_graph
from evpipe.wire.limits import ARGUMENTS_BYTES_MAX
from evpipe.wire.messages import Submission, decode_event, encode_event, encode_submission
from evpipe.wire.subjects import EventSubject
from evpipe.wire.values import check_size, pack, unpack
from evpipe.worker.attempt import unencodable
from evpipe.worker.code import CodeNotFound, find_function
from evpipe.worker.failures import failure_of, timeout_failure
from evpipe.worker.outputs import OutputMismatch, shape_output


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
                events.append(_logged(_call(graph.steps[launch.step], launch), run, graph))
    if display is not None:
        display.finished(run)
    return RunResult.of(run)


def _logged(event: Decision | StepSucceeded, run: Run, graph: Graph) -> Event:
    """Give the event as the log would give it back: what cannot travel is refused, what is too long is cut."""
    try:
        step, kind, payload = encode_event(event)
    except EvpipeError as error:
        assert isinstance(event, StepSucceeded)
        step, kind, payload = encode_event(unencodable(event, error))
    found = decode_event(EventSubject(graph.pipeline, run.id, step, kind), payload, time.time())
    assert found is not None, "this version knows what it writes"
    return found


def _call(step: Step, launch: Launch) -> StepSucceeded | StepFailed:
    """Run one attempt to its end."""
    began_s = time.time()
    what = f"step {step.name!r}"
    reason = Reason.ERROR
    try:
        packed = pack(launch.arguments, f"the arguments of {what}")
        check_size(packed, f"the map of arguments of {what}", "ARGUMENTS_BYTES_MAX", ARGUMENTS_BYTES_MAX)
    except EvpipeError as error:
        return _failed(launch, Reason.OUTPUT, Failure(message=str(error)), began_s)
    named = unpack(packed)
    positional = named.pop("*", ())
    try:
        function = find_function(step.code)
        if step.executor == "inline":
            value = outside_of_any_loop(lambda: anyio.run(_awaited, function, positional, named))
        else:
            value = function(*positional, **named)
        if step.timeout_s is not None and time.time() - began_s > step.timeout_s:
            return _failed(launch, Reason.TIMEOUT, timeout_failure(step.timeout_s), began_s)
        reason = Reason.OUTPUT
        value = shape_output(value, step.outputs, step.name)
    except CodeNotFound as error:
        return _failed(launch, Reason.ERROR, Failure(message=str(error)), began_s)
    except (OutputMismatch, EvpipeError) as error:
        failure = Failure(message=str(error)) if reason is Reason.OUTPUT else failure_of(_from_step_on(error))
        return _failed(launch, reason, failure, began_s)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit of a step is its failure
        return _failed(launch, Reason.ERROR, failure_of(_from_step_on(error)), began_s)
    return StepSucceeded(step=launch.step, attempt=launch.attempt, value=value, started_at_s=began_s)


def _from_step_on(error: BaseException) -> BaseException:
    """Leave out of the traceback what is not the step's: our call of it, and the loop of an async one."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_STEP:
        frames = frames.tb_next
    return error.with_traceback(frames or error.__traceback__)


_NOT_THE_STEP: Final = frozenset({"evpipe", "anyio", "asyncio"})


async def _awaited(function: Any, positional: Any, named: Any) -> Any:
    return await function(*positional, **named)


def _failed(launch: Launch, reason: Reason, failure: Failure, began_s: float) -> StepFailed:
    return StepFailed(
        step=launch.step,
        attempt=launch.attempt,
        reason=reason,
        failure=failure,
        started_at_s=began_s,
    )
