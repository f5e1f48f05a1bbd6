"""A controller or a worker as a process of its own: it serves until SIGTERM or SIGINT, then leaves in order.

The first signal asks to leave; the second ends the process where it stands, which loses nothing either: the
log has all that counts, and what was under way is found out by others when its signs of life stop.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import anyio
import structlog
from anyio.abc import TaskStatus

from evpipe.bus.settings import BusSettings
from evpipe.client.client import Client
from evpipe.controller.controller import Controller
from evpipe.hosting.orphans import cancel_orphans
from evpipe.worker.worker import Worker

log = structlog.get_logger(__name__)

#: Objects that a process of its own makes before the collector looks for cycles among them, and how often the older
#: ones are looked at. Steps and runs are freed by counting; Python's own 700 cost a tenth of a worker's time.
GC_THRESHOLD: Final = (10_000, 20, 50)
#: Exit code of a process that a second signal ended; the one that a shell shows for Ctrl-C.
ENDED_AT_ONCE: Final = 130


def collect_less_often() -> None:
    """Have the garbage collector look less often, and never at what is loaded by now; of the whole process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


async def serve_controller(settings: BusSettings) -> signal.Signals:
    """Lead, or stand by, until a signal comes.

    Returns:
        The signal.

    Raises:
        BusError, UsageError: if there is no bus to serve on.
    """

    async def host(client: Client, leave: Leave) -> None:
        async with Controller(client) as controller, anyio.create_task_group() as task_group:
            if client.embedded is not None:
                # Whoever leads there has this duty, and the scripts that have it, too, stand by.
                task_group.start_soon(cancel_orphans, client, controller, client.embedded)
            log.info("controller_serves", controller=controller.id)
            await leave.wait()
            task_group.cancel_scope.cancel()
        log.info("controller_left", controller=controller.id)

    return await _serve(settings, host)


async def serve_worker(
    settings: BusSettings,
    queues: Sequence[str],
    slots: int | None,
    *,
    drain_timeout_s: float,
    local_code: bool,
    allow_pickle: bool = False,
) -> signal.Signals:
    """Run launches of these queues until a signal comes, then let the attempts that run come to their end.

    Args:
        queues: served strictly in this order.
        local_code: as of `Worker`.
        allow_pickle: likewise.
        drain_timeout_s: seconds that they are given; then they are cancelled and their launches come again elsewhere.

    Returns:
        The first signal.

    Raises:
        BusError, UsageError: as `serve_controller`; if a queue or `slots` is not one.
    """

    async def host(client: Client, leave: Leave) -> None:
        async with Worker(client, queues, slots, local_code=local_code, allow_pickle=allow_pickle) as worker:
            log.info("worker_serves", worker_id=worker.id, queues=list(worker.queues), slots=worker.slots)
            await leave.wait()
            log.info("worker_drains", worker_id=worker.id, timeout_s=drain_timeout_s)
            left = await worker.drain(drain_timeout_s)
            if left:
                log.warning("attempts_cancelled", worker_id=worker.id, count=left)
        log.info("worker_left", worker_id=worker.id)

    return await _serve(settings, host)


async def serve_all(
    settings: BusSettings, queues: Sequence[str], slots: int | None, ready: Callable[[str], None]
) -> signal.Signals:
    """Run the embedded bus, a controller and a worker until a signal comes; attempts that run then are cancelled.

    Args:
        settings: without a URL.
        ready: is called with the URL of the bus, token included, when all are there.

    Returns:
        The signal.

    Raises:
        BusError, UsageError: as `serve_worker`.
    """

    async def host(client: Client, leave: Leave) -> None:
        assert client.embedded is not None, "no URL is configured"
        async with (
            Controller(client) as controller,
            Worker(client, queues, slots, local_code=False) as worker,
            anyio.create_task_group() as task_group,
        ):
            task_group.start_soon(cancel_orphans, client, controller, client.embedded)
            log.info("dev_serves", queues=list(worker.queues), slots=worker.slots)
            ready(client.embedded.info.url_with_token)
            await leave.wait()
            task_group.cancel_scope.cancel()

    return await _serve(settings, host)


class Leave:
    """The request to leave, from its first signal to the second."""

    def __init__(self) -> None:
        self.signal = signal.SIGTERM
        self._asked = anyio.Event()
        self._serves = False
        self._scope = anyio.CancelScope()

    async def wait(self) -> None:
        """Wait for it; until this is called first, as while there is no bus yet, it cancels what is under way."""
        self._serves = True
        await self._asked.wait()

    async def listen(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self._asked.is_set():
                    log.warning("ended_at_once", signal=number.name)
                    os._exit(ENDED_AT_ONCE)
                self.signal = number
                self._asked.set()
                if not self._serves:
                    self._scope.cancel()

    async def until_asked(self, host: Callable[[], Awaitable[None]]) -> None:
        with self._scope:
            await host()


Host: TypeAlias = Callable[[Client, Leave], Awaitable[None]]


async def _serve(settings: BusSettings, host: Host) -> signal.Signals:
    async def connected() -> None:
        if settings.url is not None:
            log.info("bus_connecting", url=settings.url)
        async with Client(settings) as client:
            if client.embedded is not None:
                for note in client.embedded.notes:
                    log.warning("embedded_note", note=note)
            url = settings.url if client.embedded is None else client.embedded.url
            log.info("bus_connected", url=url, embedded=client.embedded is not None)
            collect_less_often()
            await host(client, leave)

    leave = Leave()
    async with anyio.create_task_group() as task_group:
        await task_group.start(leave.listen)
        await leave.until_asked(connected)
        task_group.cancel_scope.cancel()
    return leave.signal
