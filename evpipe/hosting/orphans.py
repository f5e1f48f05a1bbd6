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

FIRST_LOOK_S: Final = 0.1
LOOK_EVERY_S: Final = 2.0
_OWN: Final = "own-"


def own_queue(user_id: str) -> str:
    """The queue of all launches of the runs that this user of the embedded server submits."""
    return f"{_OWN}{user_id}"


async def cancel_orphans(client: Client, controller: Controller, server: EmbeddedServer) -> None:
    """Cancel runs whose script is gone, for as long as this runs."""
    wait_s = FIRST_LOOK_S
    while True:
        # Sooner at first: many scripts are short.
        await anyio.sleep(wait_s)
        wait_s = min(2 * wait_s, LOOK_EVERY_S)
        for run, pipeline, queue in controller.live_runs():
            if queue.startswith(_OWN) and not server.is_user_alive(queue.removeprefix(_OWN)):
                log.info("run_orphaned", run_id=run, pipeline=pipeline)
                await RunHandle(client.bus, run, pipeline).cancel("the script that ran it is gone")
