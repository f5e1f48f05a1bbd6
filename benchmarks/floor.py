"""The floor: what the bus alone costs for the messages that a step needs, with no logic on either side.

A server, a process that plays the controller and one that plays the worker. Per step: a launch is published to
a queue stream that takes one message per subject and is delivered; a result is published to a log stream
and is delivered; the launch is acked. Every publish is a message of its own that waits for its own ack. A
`fan` keeps many steps under way, a `chain` has one at a time, so its time per step is one hop.

    python -m benchmarks.floor --steps 10000 --sync always
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

from benchmarks.measuring import cpu_s, run_loop
from evpipe.bus.server import ServerProcess

LOG, QUEUE = "FLOORLOG", "FLOORQUEUE"
PULL_BATCH = 2_000


class Tally:
    """Publishes with an ack for each message; `then` is what to publish when it has come."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._number = 0
        self._open: dict[str, str] = {}
        self._waiting: list[tuple[str, bytes, str]] = []
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    async def start(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._acked, pending_msgs_limit=-1, pending_bytes_limit=-1)
        self._task = asyncio.create_task(self._send())

    def put(self, subject: str, payload: bytes, then: str = "") -> None:
        self._waiting.append((subject, payload, then))
        self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            for subject, payload, then in batch:
                self._number += 1
                token = str(self._number)
                self._open[token] = then
                await self._client.publish(subject, payload, reply=f"{self._inbox}.{token}")

    async def _acked(self, message: Msg) -> None:
        assert b'"error"' not in message.data, message.data
        then = self._open.pop(message.subject[len(self._inbox) + 1 :])
        if then:
            await self._client.publish(then, b"+ACK")
        if not self._open:
            self._settled.set()

    async def settle(self) -> None:
        while self._waiting or self._open:
            self._settled.clear()
            await self._settled.wait()


async def long_pull(client: Client, stream: str, consumer: str, each: Callable[[Msg], None]) -> None:
    inbox = client.new_inbox()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
    request = json.dumps({"batch": PULL_BATCH, "expires": 60_000_000_000}).encode()
    left = PULL_BATCH

    async def arrived(message: Msg) -> None:
        nonlocal left
        if not message.reply:
            return
        left -= 1
        if left <= PULL_BATCH // 2:
            left += PULL_BATCH
            await client.publish(subject, request, reply=inbox)
        each(message)

    await client.subscribe(inbox, cb=arrived, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.publish(subject, request, reply=inbox)


async def play_worker(url: str, steps: int, ready: Any, out: Any) -> None:
    client = await nats.connect(url, pending_size=64 << 20)
    tally, done, seen, start_s = Tally(client), asyncio.Event(), 0, cpu_s()
    await tally.start()

    def launched(message: Msg) -> None:
        nonlocal seen
        seen += 1
        order = msgpack.unpackb(message.data)
        result = {"v": 1, "attempt": 1, "started_at": time.time(), "value": order["arguments"]["i"] + 1}
        tally.put(f"floorlog.7.fan.run.{order['step']}.succeeded", msgpack.packb(result), then=message.reply)
        if seen == steps:
            done.set()

    await long_pull(client, QUEUE, "worker", launched)
    ready.set()
    await done.wait()
    await tally.settle()
    out.put({"worker_cpu_us": (cpu_s() - start_s) / steps * 1e6})
    await client.close()


async def play_controller(url: str, steps: int, in_flight: int, out: Any) -> None:
    client = await nats.connect(url, pending_size=64 << 20)
    tally, done, seen, sent, start_s = Tally(client), asyncio.Event(), 0, 0, cpu_s()
    await tally.start()

    def launch() -> None:
        nonlocal sent
        sent += 1
        order = {"v": 1, "step": f"s{sent}", "code": "module:function", "arguments": {"i": sent}}
        tally.put(f"floorqueue.default.5.run.s{sent}.1", msgpack.packb(order))

    def completed(message: Msg) -> None:
        nonlocal seen
        msgpack.unpackb(message.data)
        seen += 1
        if sent < steps:
            launch()
        if seen == steps:
            done.set()

    await long_pull(client, LOG, "controller", completed)
    began = time.perf_counter()
    for _ in range(min(in_flight, steps)):
        launch()
    await done.wait()
    out.put({"seconds": time.perf_counter() - began, "controller_cpu_us": (cpu_s() - start_s) / steps * 1e6})
    await tally.settle()
    await client.close()


async def lay_out(url: str) -> None:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    for name in (LOG, QUEUE):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await jetstream.delete_stream(name)
    await jetstream.add_stream(StreamConfig(name=LOG, subjects=["floorlog.>"], allow_direct=True))
    await jetstream.add_stream(
        StreamConfig(
            name=QUEUE,
            subjects=["floorqueue.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            discard_new_per_subject=True,
        )
    )
    await jetstream.add_consumer(
        LOG, ConsumerConfig(durable_name="controller", filter_subject="floorlog.7.>", ack_policy=AckPolicy.NONE)
    )
    await jetstream.add_consumer(
        QUEUE,
        ConsumerConfig(
            durable_name="worker",
            filter_subject="floorqueue.default.>",
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=100_000,
        ),
    )
    await client.close()


def _worker_process(url: str, steps: int, ready: Any, out: Any) -> None:
    run_loop(lambda: play_worker(url, steps, ready, out))


def _controller_process(url: str, steps: int, in_flight: int, out: Any) -> None:
    run_loop(lambda: play_controller(url, steps, in_flight, out))


def measure_floor(url: str, steps: int, in_flight: int) -> dict[str, float]:
    """Play `steps` steps; gives seconds, steps_per_s, us_per_step and the processor time of both sides per step."""
    asyncio.run(lay_out(url))
    context = multiprocessing.get_context("spawn")
    out, ready = context.Queue(), context.Event()
    worker = context.Process(target=_worker_process, args=(url, steps, ready, out))
    controller = context.Process(target=_controller_process, args=(url, steps, in_flight, out))
    worker.start()
    assert ready.wait(30), "the worker did not start"
    controller.start()
    found: dict[str, float] = {}
    for _ in range(2):
        found |= out.get(timeout=300)
    for process in (worker, controller):
        process.join(20)
    found["steps_per_s"] = steps / found["seconds"]
    found["us_per_step"] = found["seconds"] / steps * 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--hops", type=int, default=500)
    parser.add_argument("--in-flight", type=int, default=2_000)
    parser.add_argument("--sync", choices=("default", "always"), default="default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ServerProcess(Path(directory), sync=options.sync) as server:
        for shape, steps, in_flight in (("fan", options.steps, options.in_flight), ("chain", options.hops, 1)):
            found = measure_floor(server.url, steps, in_flight)
            print(json.dumps({"shape": shape, "sync": options.sync, **{k: round(v, 1) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
