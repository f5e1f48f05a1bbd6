"""One attempt on this worker, from its launch to its result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from evpipe.bus.protocol import Delivery, Sending
from evpipe.core.events import Failure
from evpipe.core.states import Reason
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.conclusion import Conclusion, conclude_failure

#: Runs an attempt: its launch, its order, and the launch's payload as it came. Is told whether it was stopped.
Execute: TypeAlias = Callable[[LaunchSubject, LaunchOrder, bytes, Callable[[], bool]], Awaitable[Conclusion]]


class Attempt:
    """An attempt that this worker holds."""

    __slots__ = (
        "alive_at",
        "began_at",
        "delivery",
        "ended",
        "launch",
        "order",
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
        #: When the body began, by the loop's clock.
        self.began_at: float | None = None
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

    async def run_body(self, now: float, execute: Execute, cancelled: type[BaseException]) -> Conclusion | None:
        """Run the step's function.

        Args:
            now: the loop's clock.
            execute: runs it; when it is cancelled it returns after the body has ended, where that can be.
            cancelled: the loop's exception for a cancelled task.

        Returns:
            How the attempt ended; None if it was stopped.
        """
        self.began_at = now
        conclusion: Conclusion | None = None
        try:
            conclusion = await execute(self.launch, self.order, self.delivery.payload, self._is_stopped)
        except cancelled:
            if not self.stopped:
                # The worker itself is leaving, not this attempt.
                raise
        finally:
            self.ended = True
        return None if self.stopped else conclusion

    def _is_stopped(self) -> bool:
        return self.stopped


def lost(launch: LaunchSubject) -> Conclusion:
    """Make the end of an attempt whose worker is gone."""
    failure = Failure(message="its worker is gone: it began and nobody runs it any more")
    return conclude_failure(launch, failure, reason=Reason.LOST)
