"""The children of one worker: kept warm per source, started when there is none, ended when nobody needs them."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import anyio
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.raised import log_raised
from evpipe.client.source import Source
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.children.child import Child, Given, Role, Stale
from evpipe.worker.children.guard_process import Guard
from evpipe.worker.conclusion import Conclusion
from evpipe.worker.notes import AttemptNotes

log = structlog.get_logger(__name__)

#: A child that nobody needed for this long is ended.
IDLE_S: Final = 60.0
LOOK_S: Final = 5.0


class Pool:
    """Runs attempts in children.

    Args:
        slots: of the worker: the number of children that run one attempt each.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._guard = Guard()
        self._task_group: TaskGroup | None = None
        #: Children that run one attempt at a time and have none, the one used last at the end.
        self._idle: list[Child] = []
        #: All of that kind that have not gone.
        self._singles: set[Child] = set()
        self._hosts: dict[tuple[object, ...], Child] = {}

    async def __aenter__(self) -> Self:
        self._task_group = await anyio.create_task_group().__aenter__()
        self._task_group.start_soon(self._retire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task_group is not None
        self._task_group.cancel_scope.cancel()
        await self._task_group.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            await self._guard.close()

    async def run(
        self, role: Role, source: Source, launch: LaunchSubject, given: Given, notes: AttemptNotes
    ) -> Conclusion:
        """Run an attempt in a child of its own for that time, or in the source's host.

        A cancelled one's child is killed with all that it started, before this returns.

        Raises:
            ChildGone: if the child ended first.
        """
        while True:
            child = await (self._single(source) if role == "single" else self._host(source))
            try:
                return await child.run(launch, given, notes)
            except Stale:
                log.debug("child_stale", role=role)
            finally:
                self._give_back(child)

    async def _single(self, source: Source) -> Child:
        while (child := self._take_idle(source)) is not None:
            await self._settled(child)
            if child.usable:
                return child
            child.leave()
        staying = sum(not child.leaving for child in self._singles)
        while self._idle and staying >= self._slots:
            # Of another source, and used longest ago.
            self._idle.pop(0).leave()
            staying -= 1
        child = self._start("single", source)
        await self._settled(child)
        return child

    def _take_idle(self, source: Source) -> Child | None:
        for i in range(len(self._idle) - 1, -1, -1):
            if self._idle[i].source.key == source.key:
                return self._idle.pop(i)
        return None

    async def _settled(self, child: Child) -> None:
        try:
            await child.settled.wait()
        except BaseException:
            # The attempt is stopped; the child will be there for the next.
            if not child.leaving:
                self._idle.append(child)
            raise

    async def _host(self, source: Source) -> Child:
        # Nothing waits between the look and the start: attempts that come at once share one.
        child = self._hosts.get(source.key)
        if child is None or child.leaving or child.spoilt:
            child = self._hosts[source.key] = self._start("host", source)
        await child.settled.wait()
        return child

    def _start(self, role: Role, source: Source) -> Child:
        assert self._task_group is not None
        child = Child(role, source, self._guard)
        if role == "single":
            self._singles.add(child)
        self._task_group.start_soon(self._serve, child)
        return child

    async def _serve(self, child: Child) -> None:
        try:
            await child.serve()
        except Exception as error:  # noqa: BLE001 - logged
            # A bug, or no descriptors left: the others are not to end with it.
            log_raised(log, "child_broken", error)
        finally:
            self._singles.discard(child)
            if child in self._idle:
                self._idle.remove(child)

    def _give_back(self, child: Child) -> None:
        if child.role == "host":
            if child.spoilt and not child.busy:
                child.leave()
        elif child.usable:
            self._idle.append(child)
        else:
            child.leave()

    async def _retire(self) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            until = anyio.current_time() - IDLE_S
            for child in [child for child in self._idle if child.used_at < until]:
                child.leave()
                self._idle.remove(child)
            for key, child in list(self._hosts.items()):
                if child.stuck:
                    child.leave("a step of it blocks the loop that its steps share")
                    del self._hosts[key]
                elif child.ended.is_set() or (not child.busy and child.used_at < until):
                    child.leave()
                    del self._hosts[key]
