"""Reads the bus as any program may: nats-py and msgpack, nothing of evpipe. One line of JSON per message.

`python observer.py URL PREFIX`: says `ready`, then everything from the log and the queue, the payload of events too.
"""

from __future__ import annotations

import asyncio
import json
import sys

import msgpack
import nats
from nats.aio.msg import Msg


async def main(url: str, prefix: str) -> None:
    client = await nats.connect(url)
    jetstream = client.jetstream()

    async def show(message: Msg) -> None:
        found = msgpack.unpackb(message.data, ext_hook=lambda code, data: f"extension {code}")
        at = message.metadata.timestamp.timestamp()
        shown = {"subject": message.subject, "at": at, "attempt": found.get("attempt"), "status": found.get("status")}
        print(json.dumps(shown), flush=True)

    for kind in ("event", "queue"):
        await jetstream.subscribe(f"{prefix}.{kind}.>", ordered_consumer=True, cb=show)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
