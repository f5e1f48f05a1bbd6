"""The controller: leads when it holds the lease, stands by when another does.

Taking over is reading: the last sequence L of the log, then everything up to L, of which only the runs that
have not ended are folded, silently; then all that is outstanding for them is issued (it may have been before:
every effect has a name), and the log is followed from L on.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

import anyio
import anyio.lowlevel
import structlog

from evpipe.bus.protocol import Bus
from evpipe.client.client import Client
from evpipe.controller.chores import Chores
from evpipe.controller.desk import Desk, LiveRun, end_of_run
from evpipe.controller.lease import Lease
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import parent_in
from evpipe.wire.registry import RunEntry
from evpipe.wire.subjects import PROGRESS

log = structlog.get_logger(__name__)

#: Records folded before others get a turn on the loop: their commands leave while the rest is folded.
TURN: Final = 64


class OpenRun(NamedTuple):
    """A run that goes on."""

    id: str
    pipeline: str
    #: The queue of all its launches; "" for those of its steps.
    queue: str
    #: Whether it is a step of another, which ends it.
    is_step: bool
    is_cancelled: bool


class Controller:
    """Hosts a controller: `async with Controller(client): …`.

    Several may run against one bus: one leads, the others stand by. It works until the block is left.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stack = AsyncExitStack()
        self.id = f"controller-{secrets.token_hex(4)}"
        #: Whether this one leads now.
        self.leading = False
        self._desk: Desk | None = None

    async def __aenter__(self) -> Self:
        task_group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(task_group.cancel_scope.cancel)
        bus = self._client.bus
        await self._stack.enter_async_context(bus.listen(bus.subjects.ping_controller, lambda *_: self.id.encode()))
        task_group.start_soon(self._run, bus)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    def live_runs(self) -> list[OpenRun]:
        """Give the runs that go on; none while another leads."""
        if self._desk is None:
            return []
        return [
            OpenRun(
                case.run.id,
                case.pipeline,
                case.queue,
                is_step=case.run.parent is not None,
                is_cancelled=case.run.cancel is not None,
            )
            for case in self._desk.cases.values()
        ]

    def abandon(self, queue: str, message: str) -> None:
        """End what goes on of the cancelled runs on a queue that nobody will serve again: finalisers and handlers.

        What they hold is free then, and their runs can end.

        Args:
            message: says why.
        """
        if self._desk is not None:
            self._desk.abandon(queue, message)

    async def _run(self, bus: Bus) -> None:
        lease = Lease(bus, self.id)
        try:
            while True:
                now_s = await lease.acquire()
                self.leading = True
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(self._lead, bus, now_s)
                    await lease.keep()
                    task_group.cancel_scope.cancel()
                self.leading = False
                self._desk = None
        finally:
            self.leading = False
            self._desk = None
            with anyio.move_on_after(0.5, shield=True):
                await lease.release()

    async def _lead(self, bus: Bus, now_s: float) -> None:
        # The queue's end is read before the log's: a launch up to it belongs to a run that the log shows.
        queue_end = await bus.last_launch_sequence()
        last = await bus.last_sequence()
        signals_end = await bus.signals.last_sequence()
        live, ended = await read_runs(bus, last)
        async with AsyncExitStack() as stack, anyio.create_task_group() as task_group:
            chores = Chores(bus)
            desk = self._desk = Desk(bus, task_group, chores, now_s, signals_end)
            try:
                task_group.start_soon(chores.run)
                for records in live.values():
                    await desk.adopt(records)
                task_group.start_soon(desk.run)
                await stack.enter_async_context(bus.listen(bus.subjects.all_held, desk.held_answer))
                task_group.start_soon(truncate_launches, bus, list(live), queue_end)
                task_group.start_soon(chores.restore, ended)
                log.info("controller_leads", controller=self.id, sequence=last, live_runs=len(live))
                async with bus.follow([bus.subjects.all_events], after=last) as feed:
                    async for batch in feed:
                        for i, record in enumerate(batch):
                            desk.fold(record)
                            if i % TURN == TURN - 1:
                                await anyio.lowlevel.checkpoint()
            finally:
                # Before its tasks are waited for: some have something to bring to its end.
                desk.close()


async def read_runs(bus: Bus, last: int) -> tuple[dict[str, LiveRun], list[RunEntry]]:
    """Read the log up to sequence `last`.

    Returns:
        The records of every run that has not ended, in order, its submit first; and an entry for each that has.
    """
    live: dict[str, LiveRun] = {}
    ended: dict[str, RunEntry] = {}
    async for batch in bus.replay([bus.subjects.all_events], up_to=last):
        for record in batch:
            try:
                subject = bus.subjects.parse_event(record.subject)
            except RemoteProtocolError:
                continue
            records = live.get(subject.run)
            if records is None:
                if subject.kind == "submitted" and subject.step is None and subject.run not in ended:
                    live[subject.run] = [(record, subject)]
                continue
            if subject.pipeline != records[0][1].pipeline or subject.kind == PROGRESS:
                continue
            end = end_of_run(record, subject)
            if end is None:
                records.append((record, subject))
                continue
            parent = parent_in(records[0][0].payload)
            ended[subject.run] = RunEntry(
                run=subject.run,
                pipeline=subject.pipeline,
                status=end.status,
                submitted_at_s=records[0][0].at_s,
                ended_at_s=record.at_s,
                message=end.message,
                parent=parent.run if parent is not None else "",
                root=parent.root if parent is not None else "",
                sequence=record.sequence,
            )
            del live[subject.run]
    return live, list(ended.values())


async def truncate_launches(bus: Bus, live: list[str], queue_end: int) -> None:
    """Remove the launches of runs that ended while nobody cleaned up: all before the first of a live run."""
    first = queue_end + 1
    for run in live:
        found = await bus.first_launch_of(run)
        if found is not None:
            first = min(first, found)
    await bus.truncate_launches(first)
