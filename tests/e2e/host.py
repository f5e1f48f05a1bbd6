"""Hosts a controller, a worker, or both on the bus of the environment until its standard input ends.

`python -m tests.e2e.host ROLES [QUEUE …]` with ROLES `controller`, `worker` or `controller,worker`; it says `ready`,
and `leads` when its controller does.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import anyio

from evpipe import Controller, Worker, connect
from evpipe.hosting.logs import configure_logs


async def say_when_leading(controller: Controller) -> None:
    # The flag is all there is: nothing tells when it changes.
    while not controller.leading:  # noqa: ASYNC110
        await anyio.sleep(0.01)
    print("leads", flush=True)


async def main(roles: list[str], queues: list[str]) -> None:
    configure_logs()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect())
        task_group = await stack.enter_async_context(anyio.create_task_group())
        if "controller" in roles:
            controller = await stack.enter_async_context(Controller(client))
            task_group.start_soon(say_when_leading, controller)
        if "worker" in roles:
            await stack.enter_async_context(Worker(client, queues, slots=4))
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        task_group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1].split(","), sys.argv[2:] or ["default"])
