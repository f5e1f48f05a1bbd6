"""Launches that wait until the list of which they take an element is open; see `client.lists`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio.lowlevel
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus
from evpipe.client.lists import BeginT, OpenLists, read_list
from evpipe.core.artifact import Artifact
from evpipe.core.commands import Launch, SubmitRun
from evpipe.errors import EvpipeError

if TYPE_CHECKING:
    from evpipe.controller.case import Case

log = structlog.get_logger(__name__)

#: Launches that leave before others get a turn on the loop.
TURN: Final = 256


class ListOpener:
    """Opens lists, each once for all launches that take elements of it.

    Args:
        launch: is called with each of them when it is open.
    """

    def __init__(self, bus: Bus, task_group: TaskGroup, launch: Callable[[Case, Launch | SubmitRun], None]) -> None:
        self._bus = bus
        self._task_group = task_group
        self._launch = launch
        self._lists = OpenLists()
        #: What waits for a list, by its digest.
        self._waiting: dict[str, list[tuple[Case, Launch | SubmitRun]]] = {}

    def opened(self, case: Case, command: BeginT) -> BeginT | None:
        """Give the launch with its elements; None: it comes when its list is open."""
        closed = self._lists.closed(command.arguments)
        if closed is None:
            return self._lists.filled(command)
        waiting = self._waiting.get(closed.digest)
        if waiting is None:
            waiting = self._waiting[closed.digest] = []
            self._task_group.start_soon(self._open, closed)
        waiting.append((case, command))
        return None

    async def _open(self, artifact: Artifact) -> None:
        data = artifact.data
        if data is None:
            try:
                data = await self._bus.objects.get(artifact.digest)
            except EvpipeError as error:
                # Its worker will see the same, and say so as the failure of the step.
                log.warning("list_not_opened", digest=artifact.digest, error=str(error))
        found = None if data is None else await anyio.to_thread.run_sync(read_list, data)
        self._lists.put(artifact, found)
        # At once: when the next list is open, this one may be closed again.
        filled = [(case, self._lists.filled(command)) for case, command in self._waiting.pop(artifact.digest)]
        for i, (case, command) in enumerate(filled):
            if case.run.may_launch(command.step, command.attempt):
                self._launch(case, command)
            if i % TURN == TURN - 1:
                await anyio.lowlevel.checkpoint()
