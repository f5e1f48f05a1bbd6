"""Runs whose script is gone.

On the embedded bus a run's steps are executed by the script that submitted it, on a queue of its own. When
that script was killed nobody can run them any more, its finalisers neither; whoever leads then cancels the run and
ends what would go on, so that it does not stay `running` for ever and gives free what it holds.
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
GONE: Final = "the script that ran it is gone"


def own_queue(user_id: str) -> str:
    """The queue of all launches of the runs that this user of the embedded server submits."""
    return f"{_OWN}{user_id}"


async def cancel_orphans(client: Client, controller: Controller, server: EmbeddedServer) -> None:
    """End runs whose script is gone, for as long as this runs."""
    wait_s = FIRST_LOOK_S
    #: Queues that nobody will serve again, and whose runs were cancelled.
    dead: set[str] = set()
    while True:
        # Sooner at first: many scripts are short.
        await anyio.sleep(wait_s)
        wait_s = min(2 * wait_s, LOOK_EVERY_S)
        orphans = [
            run
            for run in controller.live_runs()
            if run.queue.startswith(_OWN) and not server.is_user_alive(run.queue.removeprefix(_OWN))
        ]
        for run in orphans:
            # A run that is a step is asked by the one whose step it is, if it does not go on as a finaliser of that.
            if not run.is_cancelled and (not run.is_step or run.queue in dead):
                log.info("run_orphaned", run_id=run.id, pipeline=run.pipeline)
                await RunHandle(client.bus, run.id, run.pipeline).cancel(GONE)
        # Finalisers and handlers go on when their run is cancelled; these have nobody who could run them.
        for queue in {run.queue for run in orphans if run.is_cancelled}:
            controller.abandon(queue, GONE)
        dead |= {run.queue for run in orphans}
