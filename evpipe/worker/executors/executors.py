"""Which way an attempt is run, by the executor that its step names and by where this worker has its code."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import anyio
import structlog

from evpipe.bus.protocol import Bus
from evpipe.client.source import Source
from evpipe.core.events import Failure
from evpipe.core.states import Reason
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.bundles import BundleStore
from evpipe.worker.children.child import ChildGone, Role
from evpipe.worker.children.pool import Pool
from evpipe.worker.code import CodeNotFound
from evpipe.worker.conclusion import Conclusion, conclude_error, conclude_failure, conclude_value
from evpipe.worker.executors.here import call_here
from evpipe.worker.telemetry import LogBook

log = structlog.get_logger(__name__)

#: In what kind of child each executor runs its steps.
ROLES: Final[dict[str, Role]] = {"inline": "host", "thread": "host", "process": "single"}


class Executors:
    """Runs attempts.

    Args:
        local_code: this process has the code: inline and thread steps run in it, and children look where it looks.
            Otherwise all steps run in children, which have the code that the run was submitted with.
    """

    def __init__(self, bus: Bus, slots: int, *, local_code: bool) -> None:
        self._local_code = local_code
        self._pool = Pool(slots)
        self._book = LogBook(bus)
        self._bundles = BundleStore(bus)
        self._stack = AsyncExitStack()
        #: Of the run that the last attempt was of.
        self._source = ("", Source())
        self._cancelled: type[BaseException] = GeneratorExit

    async def __aenter__(self) -> Self:
        self._cancelled = anyio.get_cancelled_exc_class()
        await self._stack.enter_async_context(self._pool)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    async def send_output(self) -> None:
        """Send what attempts write, until cancelled."""
        await self._book.run()

    async def execute(self, launch: LaunchSubject, order: LaunchOrder, payload: bytes) -> Conclusion:
        """Run an attempt to its end; raises nothing but its own cancellation."""
        try:
            return await self._execute(launch, order, payload)
        except Exception as error:
            # A bug of ours. Another worker may do better, and after some tries the step has failed and says why.
            log.exception("executor_broken", run_id=launch.run, step_id=launch.step, attempt=launch.attempt)
            failure = Failure(message=f"its worker failed: {type(error).__name__}: {error}")
            return conclude_failure(launch, failure, time.time(), Reason.LOST)

    async def _execute(self, launch: LaunchSubject, order: LaunchOrder, payload: bytes) -> Conclusion:
        role = ROLES.get(order.executor)
        if role is None:
            known = ", ".join(ROLES)
            error = CodeNotFound(f"this worker has no executor {order.executor!r}: it has {known}")
            return conclude_error(launch, error, time.time())
        if self._local_code and role == "host":
            return await self._execute_here(launch, order)
        try:
            source = await self._source_of(launch, order)
        except CodeNotFound as error:
            return conclude_error(launch, error, time.time())
        started_at_s = time.time()
        try:
            return await self._pool.run(role, source, launch, payload, self._book.of(launch))
        except ChildGone as gone:
            # Where nobody can say that it was the step, the attempt is lost, which is not charged to its retries.
            reason = Reason.LOST if gone.shared else Reason.ERROR
            return conclude_failure(launch, gone.failure, started_at_s, reason)

    async def _source_of(self, launch: LaunchSubject, order: LaunchOrder) -> Source:
        """Give where the step's code is; looked up once for all that follow of its run."""
        if launch.run != self._source[0]:
            source = Source.of_process() if self._local_code else await self._bundles.source_of(order.source)
            self._source = (launch.run, source)
            return source
        return self._source[1]

    async def _execute_here(self, launch: LaunchSubject, order: LaunchOrder) -> Conclusion:
        started_at_s = time.time()
        try:
            value = await call_here(order)
        except self._cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a step are its failure
            return conclude_error(launch, error, started_at_s)
        return conclude_value(launch, order, value, started_at_s)
