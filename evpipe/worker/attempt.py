"""One attempt on this worker, from its launch to its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from anyio import CancelScope

from evpipe.bus.protocol import Delivery, Sending
from evpipe.core.events import Failure, StepFailed, StepSucceeded
from evpipe.core.states import Reason
from evpipe.errors import EvpipeError
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.code import CodeNotFound, find_function
from evpipe.worker.executors.inline import run_inline
from evpipe.worker.executors.thread import run_in_thread
from evpipe.worker.failures import failure_of, timeout_failure
from evpipe.worker.outputs import OutputMismatch, shape_output

log = structlog.get_logger(__name__)

_EXECUTORS = {"inline": run_inline, "thread": run_in_thread}


class Attempt:
    """An attempt that this worker holds."""

    __slots__ = (
        "alive_at",
        "began_at",
        "delivery",
        "ended",
        "launch",
        "order",
        "started_at_s",
        "stop_task",
        "stopped",
        "telling",
    )

    def __init__(self, delivery: Delivery, launch: LaunchSubject, order: LaunchOrder) -> None:
        self.delivery = delivery
        self.launch = launch
        self.order = order
        #: Last sign of life given to the bus, by the loop's clock.
        self.alive_at = delivery.arrived_at
        #: When the body began: the loop's clock, and the wall clock.
        self.began_at: float | None = None
        self.started_at_s = 0.0
        #: Cancels the attempt's task; set when there is one.
        self.stop_task: Callable[[], object] | None = None
        #: Its result does not count any more: superseded, or its run was cancelled.
        self.stopped = False
        #: The body has ended.
        self.ended = False
        #: Its `started` event, once it was sent.
        self.telling: Sending | None = None

    def extend(self, now: float) -> None:
        self.delivery.extend()
        self.alive_at = now

    def stop(self) -> None:
        """End the body; nothing is said of the attempt. May be called again for a body that goes on regardless."""
        self.stopped = True
        if self.began_at is not None and not self.ended and self.stop_task is not None:
            self.stop_task()

    async def run_body(self, now: float, cancelled: type[BaseException]) -> StepSucceeded | StepFailed | None:
        """Run the step's function.

        Args:
            now: the loop's clock.
            cancelled: the loop's exception for a cancelled task.

        Returns:
            The event that ends the attempt; None if it was stopped.
        """
        launch, order = self.launch, self.order
        self.began_at = now
        self.started_at_s = time.time()
        scope: CancelScope | None = None
        value: Any = None
        failure: Failure | None = None
        reason = Reason.ERROR
        try:
            if order.timeout_s is None:
                value = await self._call()
            else:
                with CancelScope(deadline=now + order.timeout_s) as scope:
                    value = await self._call()
            if scope is None or not scope.cancelled_caught:
                value = shape_output(value, order.outputs, launch.step)
        except CodeNotFound as error:
            failure = Failure(message=str(error), types=("evpipe.worker.code.CodeNotFound",))
        except OutputMismatch as error:
            reason, failure = Reason.OUTPUT, Failure(message=str(error))
        except cancelled:
            if not self.stopped:
                # The worker itself is leaving, not this attempt.
                raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a step are its failure
            failure = failure_of(error)
        finally:
            self.ended = True
        if self.stopped:
            return None
        if scope is not None and scope.cancelled_caught:
            reason, failure = Reason.TIMEOUT, timeout_failure(order.timeout_s)
        if failure is None:
            return StepSucceeded(step=launch.step, attempt=launch.attempt, value=value, started_at_s=self.started_at_s)
        return StepFailed(
            step=launch.step, attempt=launch.attempt, reason=reason, failure=failure, started_at_s=self.started_at_s
        )

    async def _call(self) -> Any:
        order = self.order
        execute = _EXECUTORS.get(order.executor)
        if execute is None:
            raise CodeNotFound(f"this worker has no executor {order.executor!r}: it has {', '.join(_EXECUTORS)}")
        function = find_function(order.code)
        named = dict(order.arguments)
        positional = named.pop("*", ())
        return await execute(function, positional, named)


def lost(launch: LaunchSubject) -> StepFailed:
    """The end of an attempt whose worker is gone."""
    failure = Failure(message="its worker is gone: it began and nobody runs it any more")
    return StepFailed(step=launch.step, attempt=launch.attempt, reason=Reason.LOST, failure=failure)


def unencodable(event: StepSucceeded, error: EvpipeError) -> StepFailed:
    """The end of an attempt whose value cannot travel."""
    return StepFailed(
        step=event.step,
        attempt=event.attempt,
        reason=Reason.OUTPUT,
        failure=Failure(message=str(error)),
        started_at_s=event.started_at_s,
    )
