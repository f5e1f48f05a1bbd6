"""What only a real server can do to a bus."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import pytest

from evpipe.bus.nats.lane import Lane
from evpipe.bus.server import ServerProcess
from tests.support.worlds import FaultyNatsBus, Hands, NatsWorld, pulling, until

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
                    await world.until_acked()
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
                # A pull past the limit is refused, and never waits beside the others.
                await world.until_lane(lambda info: info["num_waiting"] == 600)
                for subject in launches(world, 600):
                    bus.launch(subject, b"")
                await until(lambda: all(len(one) == 1 for one in hands))

    anyio.run(main)


@pytest.mark.parametrize("reconnects", [1, 4])
def test_a_lane_asks_for_no_more_after_reconnects(nats_server: ServerProcess, reconnects: int) -> None:
    """Requests of a lost connection are not sent on the next one, nor served, beside the new ones."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(30):
            async with world:
                bus, other = await world.bus(), await world.bus()
                assert isinstance(bus, FaultyNatsBus)
                async with pulling(bus) as hands:
                    connection, lane = bus._connection, hands.pull
                    assert isinstance(lane, Lane)

                    def is_open() -> bool:
                        return bus.connected and lane._open and lane._generation == connection.generation

                    for _ in range(reconnects):
                        generation = connection.generation
                        bus.cut()
                        # Into the socket that is cut, and where there is none.
                        hands.ask(1)
                        await until(lambda: connection._client is None, poll_s=0)
                        hands.ask(1)
                        await until(lambda before=generation: is_open() and connection.generation > before)  # type: ignore[misc]
                    asked = 2 * reconnects
                    done: list[object] = []
                    for subject in launches(world, asked + 20):
                        other.launch(subject, b"", done=done.append)
                    await until(lambda: len(hands) >= asked and len(done) == asked + 20)
                    # Whatever this connection had to send is with the server when it answers ...
                    await bus.info()
                    # ... which has then given what it was asked for: no request is left.
                    await world.until_lane(lambda info: info["num_waiting"] == 0 and info["num_pending"] <= 20)
                    async with world.raw() as raw:
                        assert (await world.lane(raw))["delivered"]["consumer_seq"] == asked
                    assert len(hands) == asked

    anyio.run(main)
