"""Runs whose script is gone.

On the embedded bus a run's steps are executed by the script that submitted it, on a queue of its own. When
that script was killed nobody can run them any more; whoever leads then cancels the run, so that it does not
stay `running` for ever.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from evpipe.bus.embedded import EmbeddedServer
from evpipe.client.client import Client
from evpipe.client.handle import RunHandle
from evpipe.controller.controller import Controller

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 2.0
_OWN: Final = "own-"


def own_queue(user_id: str) -> str:
    """The queue of all launches of the runs that this user of the embedded server submits."""
    return f"{_OWN}{user_id}"


async def cancel_orphans(client: Client, controller: Controller, server: EmbeddedServer) -> None:
    """Cancel runs whose script is gone, for as long as this runs."""
    while True:
        await anyio.sleep(LOOK_EVERY_S)
        for run, pipeline, queue in controller.live_runs():
            if queue.startswith(_OWN) and not server.is_user_alive(queue.removeprefix(_OWN)):
                log.info("run_orphaned", run_id=run, pipeline=pipeline)
                await RunHandle(client.bus, run, pipeline).cancel("the script that ran it is gone")
