"""What only a real server can do to a bus."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from evpipe.bus.server import ServerProcess
from tests.support.worlds import Hands, NatsWorld, api, pulling, until

RUN = "aaaaaaaa"


def launches(world: NatsWorld, count: int, first: int = 0) -> list[str]:
    return [world.subjects.launch("default", RUN, f"s{i}", 1) for i in range(first, first + count)]


def test_a_pull_that_was_full_while_its_consumer_was_made_again_marks_what_it_gets(nats_server: ServerProcess) -> None:
    """A busy worker asks for nothing, so nobody tells it that its consumer is a new one, made by another worker."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(30):
            async with world:
                busy, other = await world.bus(), await world.bus()
                done: list[object] = []
                async with pulling(busy, ask=6) as mine, AsyncExitStack() as stack:
                    for subject in launches(world, 6):
                        busy.launch(subject, b"", done=done.append)
                    await until(lambda: len(mine) == 6)
                    for delivery in mine:
                        delivery.ack()
                    await anyio.sleep(0.2)
                    await world.delete_consumers()
                    # The other worker makes it again, and takes nothing.
                    await stack.enter_async_context(pulling(other))
                    mine.ask(6)
                    await until(lambda: len(mine) == 12)
                    assert not any(d.redelivered for d in mine.deliveries[:6])
                    assert all(d.redelivered for d in mine.deliveries[6:])

    anyio.run(main)


def test_six_hundred_idle_workers_all_get_launches(nats_server: ServerProcess) -> None:
    """The server's own limit of open pulls on a consumer (512) is none for the number of workers of a queue."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(30):
            async with world, AsyncExitStack() as stack:
                bus = await world.bus()
                hands: list[Hands] = []
                for _ in range(600):
                    hands.append(await stack.enter_async_context(pulling(bus, ask=1)))  # noqa: PERF401
                await anyio.sleep(0.3)
                for subject in launches(world, 600):
                    bus.launch(subject, b"")
                await until(lambda: all(len(one) == 1 for one in hands), timeout_s=1.5)

    anyio.run(main)


def test_a_lane_and_a_feed_ask_for_no_more_after_many_reconnects(nats_server: ServerProcess) -> None:
    """Requests of a lost connection are not sent on the next one beside the new ones."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(30):
            async with world:
                bus, other = await world.bus(), await world.bus()
                async with pulling(bus) as hands:
                    for _ in range(4):
                        bus.cut()  # type: ignore[attr-defined]  # a FaultyNatsBus
                        hands.ask(1)
                        await until(lambda: bus.connected)
                    await until(lambda: bus.connected)
                    await anyio.sleep(1.0)
                    for subject in launches(world, 10):
                        other.launch(subject, b"")
                    await until(lambda: len(hands) >= 4)
                    await anyio.sleep(0.5)
                    assert len(hands) == 4
                    async with world.raw() as raw:
                        info = await api(raw, f"CONSUMER.INFO.{world.prefix}-queue.default-5")
                        assert info["num_waiting"] == 0

    anyio.run(main)
