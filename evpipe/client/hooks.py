"""Hooks: functions of a service that are called with the events that it asked for, while its client is entered.

Each hook has a subscription and a task of its own. So its calls come one after the other in the order of the log, and a
slow one falls behind by itself: the events that it has not seen yet wait in the log.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup, TaskStatus

from evpipe.bus.protocol import Bus, Record
from evpipe.bus.raised import log_raised
from evpipe.client.events import RunEvent, run_event
from evpipe.core.names import check_name
from evpipe.errors import UsageError
from evpipe.wire.subjects import RUN_KINDS, STEP_KINDS

log = structlog.get_logger(__name__)

#: From when on events are wanted: a moment, seconds since 1970 (float), after a sequence (int), or from now on (None).
Since: TypeAlias = datetime | float | int | None
#: A subscription that failed is opened again after this.
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted; checked."""

    pipeline: str | None
    kind: str | None
    since: Since

    @classmethod
    def of(cls, pipeline: str | None, kind: str | None, since: Since) -> Filter:
        """Check what a caller asks for.

        Raises:
            UsageError: if the pipeline's name or the kind is none, or `since` is no moment and no sequence.
        """
        kinds = sorted(RUN_KINDS | STEP_KINDS)
        if kind is not None and kind not in kinds:
            raise UsageError(f"there is no event kind {kind!r}: there are {', '.join(kinds)}")
        if pipeline is not None:
            check_name("pipeline", pipeline)
        if isinstance(since, bool) or not (since is None or isinstance(since, (datetime, float, int))):
            raise UsageError(f"since is a datetime, seconds since 1970 as a float, or a sequence, not {since!r:.100}")
        return cls(pipeline, kind, since)

    async def from_now(self, bus: Bus) -> Filter:
        """Give the same, where "from now on" means now."""
        return self if self.since is not None else self.after(await bus.last_sequence())

    def after(self, sequence: int) -> Filter:
        return Filter(self.pipeline, self.kind, sequence)

    def opened(self, bus: Bus) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        """Give the subscription."""
        after, since_s = 0, None
        if isinstance(self.since, datetime):
            since_s = self.since.timestamp()
        elif isinstance(self.since, float):
            since_s = self.since
        else:
            after = self.since or 0
        subject = bus.subjects.events_like(pipeline=self.pipeline, kind=self.kind)
        return bus.follow([subject], after=after, since_s=since_s)


class Hook:
    """One function and what it is called with."""

    def __init__(self, function: Callable[[RunEvent], Any], wanted: Filter) -> None:
        if not callable(function):
            raise UsageError(f"client.on(…) decorates a function that takes an event, not {function!r:.100}")
        self._function = function
        self._name = getattr(function, "__qualname__", type(function).__qualname__)
        called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        self._is_async = inspect.iscoroutinefunction(called)
        self._wanted = wanted

    async def run(self, bus: Bus, *, task_status: TaskStatus[None]) -> None:
        """Call it with every event, until cancelled; reports ready when it is subscribed."""
        wanted, started = self._wanted, False
        while True:
            try:
                wanted = await wanted.from_now(bus)
                async with wanted.opened(bus) as feed:
                    if not started:
                        task_status.started()
                        started = True
                    async for records in feed:
                        for record in records:
                            event = run_event(record, bus.subjects)
                            if event is not None:
                                await self._call(event)
                            wanted = wanted.after(record.sequence)
            except Exception as error:  # noqa: BLE001 - logged; it is nothing that may end the client
                # It goes on after the last event that it was called with.
                log.warning("hook_interrupted", hook=self._name, error=f"{type(error).__name__}: {error}")
                await anyio.sleep(AGAIN_S)

    async def _call(self, event: RunEvent) -> None:
        try:
            if self._is_async:
                await self._function(event)
            else:
                await anyio.to_thread.run_sync(self._function, event)
        except Exception as error:  # noqa: BLE001 - of the user's code
            # It disturbs neither the client nor the calls that follow.
            log_raised(
                log,
                "hook_failed",
                error,
                hook=self._name,
                kind=event.kind,
                run_id=event.run,
                sequence=event.sequence,
            )


class Hooks:
    """The hooks of one client."""

    def __init__(self) -> None:
        self._hooks: list[Hook] = []
        #: Those that were added while it runs, and are not subscribed yet.
        self._new: list[Hook] = []
        self._bus: Bus | None = None
        self._task_group: TaskGroup | None = None
        self._opening = anyio.Lock()

    def add(self, hook: Hook) -> None:
        self._hooks.append(hook)
        if self._task_group is not None:
            self._new.append(hook)
            self._task_group.start_soon(self.subscribe)

    async def start(self, bus: Bus, task_group: TaskGroup) -> None:
        """Begin to call them; what happens from now on is seen."""
        self._bus, self._task_group = bus, task_group
        self._new = list(self._hooks)
        await self.subscribe()

    def stop(self) -> None:
        self._bus = self._task_group = None
        self._new = []

    async def subscribe(self) -> None:
        """Wait until those that were added are subscribed."""
        if not self._new:
            return
        async with self._opening:
            while self._new and self._task_group is not None:
                await self._task_group.start(self._new[0].run, self._bus)
                if self._new:
                    self._new.pop(0)


async def events_of(bus: Bus, wanted: Filter) -> AsyncGenerator[RunEvent, None]:
    """Give the events that are wanted; does not end."""
    wanted = await wanted.from_now(bus)
    async with wanted.opened(bus) as feed:
        async for records in feed:
            for record in records:
                event = run_event(record, bus.subjects)
                if event is not None:
                    yield event
