"""A process that hosts a controller and a worker on the configured bus until its standard input ends."""

from __future__ import annotations

import sys

import anyio

from evpipe import Controller, Worker, connect
from evpipe.hosting.logs import configure_logs


async def main() -> None:
    configure_logs()
    async with connect() as client, Controller(client), Worker(client, ["default"], slots=4):
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main)
