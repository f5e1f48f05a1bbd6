"""What attempts tell is kept for a while, may be lost, and holds nobody up; and a client reads it as lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from evpipe.bus import memory
from evpipe.bus.memory import Fault, MemoryTelemetry
from evpipe.bus.memory_stream import MemoryFeed, MemoryStream
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.nats.connection import TOLD_AT_ONCE_BYTES, TOLD_BYTES_MAX
from evpipe.bus.nats.feed import Feed
from evpipe.bus.protocol import Bus, Record, Stored
from evpipe.bus.server import ServerProcess
from evpipe.wire.limits import PAYLOAD_BYTES_MAX
from tests.bus import mutants as m
from tests.support.contract import ContractTest, contract, run_check
from tests.support.worlds import POLL_S, MemoryWorld, NatsWorld, Reader, World, api, once, until, until_answer

RUN, OTHER = "aaaaaaaa", "bbbbbbbb"


def told(world: World, step: str = "load", attempt: int = 1, *, run: str = RUN) -> str:
    return world.subjects.telemetry(run, step, attempt)


async def until_told(bus: Bus, sequence: int) -> None:
    """Wait until that much is stored; nobody answers a tell."""

    async def ask() -> bool | None:
        return await bus.telemetry.last_sequence() >= sequence or None

    await until_answer(ask, what=f"{sequence} are stored")


async def kept(bus: Bus, subject: str, *, up_to: int = 0, after: int = 0, since_s: float | None = None) -> list[Record]:
    up_to = up_to or await bus.telemetry.last_sequence()
    records: list[Record] = []
    async for batch in bus.telemetry.replay([subject], up_to=up_to, after=after, since_s=since_s):
        assert batch, "a batch is never empty"
        records += batch
    return records


@asynccontextmanager
async def following(bus: Bus, subject: str, after: int = 0, since_s: float | None = None) -> AsyncIterator[Reader]:
    reader = Reader()

    async def read() -> None:
        async with bus.telemetry.follow([subject], after=after, since_s=since_s) as feed:
            async for records in feed:
                assert records, "a batch is never empty"
                reader.records += records

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(read)
        await anyio.lowlevel.checkpoint()
        yield reader
        task_group.cancel_scope.cancel()


async def bound(world: World, bytes_max: int) -> None:
    """Let the stream keep no more than this."""
    if isinstance(world, MemoryWorld):
        world.server.telemetry._bytes_max = bytes_max
        return
    assert isinstance(world, NatsWorld)
    name = f"{world.prefix}-telemetry"
    async with world.raw() as raw:
        config = (await api(raw, f"STREAM.INFO.{name}"))["config"]
        assert "error" not in await api(raw, f"STREAM.UPDATE.{name}", {**config, "max_bytes": bytes_max})


# ---- the contract


@contract
async def test_what_is_told_comes_in_order_to_replay_and_follow(world: World) -> None:
    """Of one teller nothing changes places; replay is bounded on both sides, follow goes on."""
    teller, reader = await world.bus(), await world.bus()
    assert await reader.telemetry.last_sequence() == 0
    assert await kept(reader, world.subjects.all_telemetry) == []
    async with following(reader, world.subjects.all_telemetry) as early:
        for i in range(50):
            teller.telemetry.tell(told(world), b"%d" % i)
        await until_told(reader, 50)
        records = await kept(reader, world.subjects.all_telemetry)
        assert [(r.sequence, int(r.payload), r.subject) for r in records] == [
            (i + 1, i, told(world)) for i in range(50)
        ]
        assert [int(r.payload) for r in await kept(reader, told(world), up_to=30, after=20)] == list(range(20, 30))
        for i in range(50, 60):
            teller.telemetry.tell(told(world), b"%d" % i)
        await until(lambda: len(early.records) == 60)
        assert [int(p) for p in early.payloads] == list(range(60))


@contract
async def test_a_follower_that_starts_late_gets_what_is_kept(world: World) -> None:
    """From the first record on, or from where it says."""
    bus = await world.bus()
    for i in range(20):
        bus.telemetry.tell(told(world), b"%d" % i)
    await until_told(bus, 20)
    async with (
        following(bus, world.subjects.all_telemetry) as all_of_it,
        following(bus, world.subjects.all_telemetry, after=15) as rest,
    ):
        bus.telemetry.tell(told(world), b"20")
        await until(lambda: len(all_of_it.records) == 21 and len(rest.records) == 6)
        assert [int(p) for p in all_of_it.payloads] == list(range(21))
        assert [int(p) for p in rest.payloads] == list(range(15, 21))
    since_s = all_of_it.records[20].at_s
    async with following(bus, told(world), since_s=since_s) as young:
        bus.telemetry.tell(told(world), b"21")
        await until(lambda: bool(young.records) and young.records[-1].sequence == 22)
        expected = [record for record in await kept(bus, told(world)) if record.at_s >= since_s]
        assert young.records == expected
        found = await kept(bus, told(world), since_s=since_s)
        assert found[-len(expected) :] == expected, "of the rest some may be there"


@contract
async def test_wildcards_choose_run_step_and_attempt(world: World) -> None:
    """A filter gives what is of its run, step and attempt, and of its kind."""
    bus, subjects = await world.bus(), world.subjects
    names = [(RUN, "load", 1), (RUN, "load", 2), (RUN, "fit", 1), (OTHER, "load", 1)]
    for run, step, attempt in names:
        bus.telemetry.tell(subjects.telemetry(run, step, attempt), f"{run} {step} {attempt}".encode())
    bus.telemetry.tell(subjects.telemetry(RUN, "load", 1, "progress"), b"other kind")
    await until_told(bus, 5)

    async def found(subject: str) -> list[str]:
        return [r.payload.decode() for r in await kept(bus, subject)]

    assert await found(subjects.telemetry_of(RUN)) == [f"{RUN} load 1", f"{RUN} load 2", f"{RUN} fit 1"]
    assert await found(subjects.telemetry_of(RUN, "load")) == [f"{RUN} load 1", f"{RUN} load 2"]
    assert await found(subjects.telemetry_of(RUN, attempt=1)) == [f"{RUN} load 1", f"{RUN} fit 1"]
    assert await found(subjects.telemetry_of(RUN, "load", 2)) == [f"{RUN} load 2"]
    assert await found(subjects.telemetry_of(RUN, kind="progress")) == ["other kind"]
    assert await found(subjects.telemetry_of("cccccccc")) == []
    async with following(bus, subjects.telemetry_of(RUN, "load", 2)) as reader:
        bus.telemetry.tell(told(world), b"x")
        bus.telemetry.tell(told(world, attempt=2), b"y")
        await until(lambda: len(reader.records) == 2)
        assert reader.payloads == [f"{RUN} load 2".encode(), b"y"]


@contract
async def test_the_newest_of_a_subject(world: World) -> None:
    """Of that subject alone; none where nothing was told."""
    bus = await world.bus()
    assert await bus.telemetry.last(told(world)) is None
    for i in range(3):
        bus.telemetry.tell(told(world), b"%d" % i)
    bus.telemetry.tell(told(world, attempt=2), b"other attempt")
    bus.telemetry.tell(world.subjects.telemetry(RUN, "load", 1, "progress"), b"other kind")
    await until_told(bus, 5)
    found = await bus.telemetry.last(told(world))
    assert found is not None
    assert (found.sequence, found.subject, found.payload) == (3, told(world), b"2")
    assert await bus.telemetry.last(told(world, run=OTHER)) is None


@contract
async def test_telling_while_disconnected_neither_raises_nor_waits(world: World) -> None:
    """What is told meanwhile may be lost; what is told afterwards is not, and nothing comes twice or out of order."""
    bus, reader_bus = await world.bus(), await world.bus()
    async with following(reader_bus, world.subjects.all_telemetry) as reader:
        bus.telemetry.tell(told(world), b"0")
        await until(lambda: len(reader.records) == 1)
        number, back = 0, anyio.Event()

        async def blink() -> None:
            await world.blink(bus)
            back.set()

        def tell_until_back() -> bool:
            nonlocal number
            number += 1
            bus.telemetry.tell(told(world), b"%d" % number)
            return back.is_set()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(blink)
            # A real connection may be back within milliseconds: it is told something at every turn of the loop.
            poll_s = POLL_S if isinstance(world, MemoryWorld) else 0
            await until(tell_until_back, what="the connection is back", poll_s=poll_s)
        bus.telemetry.tell(told(world), b"%d" % (number + 1))
        await until(lambda: reader.payloads[-1] == b"%d" % (number + 1))
        found = [int(p) for p in reader.payloads]
        assert found == sorted(set(found))
        assert len(found) < number + 2, "what was told without a connection is dropped, not kept for later"


@contract
async def test_a_tell_that_gets_lost_is_not_repeated(world: World) -> None:
    """And no follower waits for it."""
    bus = await world.bus(once(Fault.LOST))
    if isinstance(world, MemoryWorld):  # on NATS nothing gets lost but with its connection
        bus.telemetry.tell(told(world), b"lost")
    bus.telemetry.tell(told(world), b"1")
    await until_told(bus, 1)
    assert [r.payload for r in await kept(bus, told(world))] == [b"1"]


@contract
async def test_what_is_too_large_for_a_message_is_dropped(world: World) -> None:
    """It would end the connection; what comes after it arrives."""
    bus = await world.bus()
    bus.telemetry.tell(told(world), b"x" * (PAYLOAD_BYTES_MAX + 1))
    bus.telemetry.tell(told(world), b"1")
    await until_told(bus, 1)
    assert [r.payload for r in await kept(bus, told(world))] == [b"1"]


@contract
async def test_past_its_bounds_the_oldest_goes_and_a_follower_goes_on(world: World) -> None:
    """The stream takes the newest in any case: what is there are the last ones, without a gap."""
    bus, reader_bus = await world.bus(), await world.bus()
    async with following(reader_bus, world.subjects.all_telemetry) as reader:
        for i in range(10):
            bus.telemetry.tell(told(world), b"%01000d" % i)
        await until(lambda: len(reader.records) == 10)
        await bound(world, 20_000)
        for i in range(10, 200):
            bus.telemetry.tell(told(world), b"%01000d" % i)
        await until_told(bus, 200)
        await until(lambda: int(reader.payloads[-1]) == 199)
        assert [r.sequence for r in reader.records] == sorted({r.sequence for r in reader.records})
    records = await kept(bus, world.subjects.all_telemetry)
    assert 5 < len(records) <= 20
    assert [(r.sequence, int(r.payload)) for r in records] == [(i + 1, i) for i in range(200 - len(records), 200)]
    assert await kept(bus, world.subjects.all_telemetry, up_to=50) == []
    async with following(bus, world.subjects.all_telemetry, after=3) as late:
        await until(lambda: len(late.records) == len(records))
        assert late.payloads == [r.payload for r in records]


@contract
async def test_a_wait_for_the_next_records_may_be_cancelled(world: World) -> None:
    """Whoever waits again is given what came meanwhile, of the log as of telemetry."""
    bus = await world.bus()
    event = world.subjects.event("churn", RUN, "load", "progress")
    async with bus.follow([event]) as events, bus.telemetry.follow([told(world)]) as lines:
        for number in (b"1", b"2", b"3"):
            for feed in (events, lines):
                with anyio.move_on_after(0.05) as waited:
                    await anext(feed)
                assert waited.cancelled_caught
            await bus.append_wait(event, number)
            bus.telemetry.tell(told(world), number)
            assert [r.payload for r in await anext(events)] == [number]
            assert [r.payload for r in await anext(lines)] == [number]


# ---- the tests test what they say


class RaisesWhileAway(MemoryTelemetry):
    def tell(self, subject: str, payload: bytes) -> None:
        if not self._bus.connected:
            raise RuntimeError("away")
        super().tell(subject, payload)


class TellsLater(MemoryTelemetry):
    """What is told without a connection is stored all the same."""

    def tell(self, subject: str, payload: bytes) -> None:
        self._stream.append(subject, payload, 0.0)


class TellsTwice(MemoryTelemetry):
    def tell(self, subject: str, payload: bytes) -> None:
        super().tell(subject, payload)
        super().tell(subject, payload)


class FollowsFromTheEnd(MemoryTelemetry):
    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        async with super().follow(subjects, after=max(after, self._stream.last_sequence)) as feed:
            yield feed


class FollowsWithoutFilter(MemoryTelemetry):
    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        async with super().follow([self._bus.subjects.all_telemetry], after=after) as feed:
            yield feed


class ForgetsWhereItWas(MemoryFeed):
    """A wait that is cancelled has skipped what comes next."""

    async def __anext__(self) -> list[Record]:
        self._after += 1
        return await super().__anext__()


def drops_nothing(self: MemoryStream, bytes_max: int) -> None:
    return


def drops_the_newest(self: MemoryStream, bytes_max: int) -> None:
    if self._bytes > bytes_max:
        self._bytes -= len(self.records.pop().payload)


def telemetry(replacement: type[MemoryTelemetry]) -> m.Patch:
    return m.patch(memory, "MemoryTelemetry", replacement)


@pytest.mark.parametrize(
    ("test", "mutant"),
    [
        (test_what_is_told_comes_in_order_to_replay_and_follow, telemetry(TellsTwice)),
        (test_a_follower_that_starts_late_gets_what_is_kept, telemetry(FollowsFromTheEnd)),
        (test_wildcards_choose_run_step_and_attempt, telemetry(FollowsWithoutFilter)),
        (test_telling_while_disconnected_neither_raises_nor_waits, telemetry(RaisesWhileAway)),
        (test_telling_while_disconnected_neither_raises_nor_waits, telemetry(TellsLater)),
        (test_a_tell_that_gets_lost_is_not_repeated, telemetry(TellsLater)),
        (test_what_is_too_large_for_a_message_is_dropped, telemetry(TellsLater)),
        (
            test_past_its_bounds_the_oldest_goes_and_a_follower_goes_on,
            m.patch(MemoryStream, "_drop_over", drops_nothing),
        ),
        (
            test_past_its_bounds_the_oldest_goes_and_a_follower_goes_on,
            m.patch(MemoryStream, "_drop_over", drops_the_newest),
        ),
        (test_a_wait_for_the_next_records_may_be_cancelled, m.patch(memory, "MemoryFeed", ForgetsWhereItWas)),
    ],
)
def test_a_bus_without_the_rule_fails_its_test(
    test: ContractTest, mutant: m.Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, ExceptionGroup)):
        run_check(test.check, MemoryWorld(), "asyncio")


# ---- what only a real server can do


def test_a_slow_socket_drops_what_is_told_and_nothing_else(nats_server: ServerProcess) -> None:
    """While the server does not read, no more than a bound waits in this process; an append goes through after it."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(30):
            async with world:
                bus = await world.bus()
                assert isinstance(bus, NatsBus)
                connection, done = bus._connection, list[object]()
                subject = world.subjects.event("churn", RUN, "load", "progress")
                with world.frozen():
                    for i in range(500):
                        bus.telemetry.tell(told(world), b"%d " % i + b"x" * 65_536)
                        await anyio.lowlevel.checkpoint()
                    bus.append(subject, b"", expected=0, done=done.append)
                    client = connection._client
                    assert client is not None
                    assert connection._told_bytes <= TOLD_BYTES_MAX
                    assert client._pending_data_size <= 4 * TOLD_AT_ONCE_BYTES
                await until(lambda: done, what="the append is answered")
                assert isinstance(done[0], Stored)
                records = await kept(bus, told(world))
                assert 0 < len(records) < 500

    anyio.run(main)


def test_a_replay_ends_where_what_it_waited_for_made_room(
    nats_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server said that there is more, and then dropped it: nobody waits for that for ever."""
    world = NatsWorld(nats_server)
    ask = Feed._ask

    async def main() -> None:
        with anyio.fail_after(20):
            async with world, world.raw() as raw:
                bus = await world.bus()
                for i in range(10):
                    bus.telemetry.tell(told(world), b"%d" % i)
                await until_told(bus, 10)
                asked = anyio.Event()
                monkeypatch.setattr(Feed, "_ask", lambda feed: asked.set())
                async with bus.telemetry.follow([told(world)]) as feed, anyio.create_task_group() as task_group:
                    assert isinstance(feed, Feed)
                    ended: list[list[Record]] = []

                    async def read() -> None:
                        ended.append(await feed.next_or_end())

                    task_group.start_soon(read)
                    await asked.wait()
                    assert feed.pending == 10
                    await api(raw, f"STREAM.PURGE.{world.prefix}-telemetry")
                    monkeypatch.setattr(Feed, "_ask", ask)
                    feed._ask()
                assert ended == [[]]

    anyio.run(main)


def test_an_operator_chooses_age_and_size_and_a_stream_that_is_gone_is_made_again(nats_server: ServerProcess) -> None:
    """Other bounds are taken as they are; without its stream telemetry is empty, and there again soon."""
    world = NatsWorld(nats_server)
    name = f"{world.prefix}-telemetry"

    async def main() -> None:
        with anyio.fail_after(20):
            async with world, world.raw() as raw:
                config = {
                    "name": name,
                    "subjects": [f"{world.prefix}.telemetry.>"],
                    "discard": "old",
                    "storage": "file",
                    "max_age": 3_600_000_000_000,
                    "max_bytes": 1_000_000,
                }
                assert "error" not in await api(raw, f"STREAM.CREATE.{name}", config)
                bus = await world.bus()
                bus.telemetry.tell(told(world), b"1")
                await until_told(bus, 1)
                found = (await api(raw, f"STREAM.INFO.{name}"))["config"]
                assert (found["max_age"], found["max_bytes"]) == (config["max_age"], config["max_bytes"])
                await api(raw, f"STREAM.DELETE.{name}")
                assert await bus.telemetry.last_sequence() == 0
                assert await kept(bus, told(world)) == []

                async def configuration() -> dict[str, Any] | None:
                    return (await api(raw, f"STREAM.INFO.{name}")).get("config")

                found = await until_answer(configuration)
                assert (found["max_age"], found["discard"]) == (7 * 86_400 * 10**9, "old")
                bus.telemetry.tell(told(world), b"2")
                await until_told(bus, 1)
                assert [r.payload for r in await kept(bus, told(world))] == [b"2"]

    anyio.run(main)


def test_what_is_told_before_a_bus_is_closed_arrives(nats_server: ServerProcess) -> None:
    """A process that leaves right after its last step's output hands it over."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(20):
            async with world:
                bus, other = await world.bus(), await world.bus()
                for i in range(100):
                    bus.telemetry.tell(told(world), b"%d" % i)
                await world.close(bus)
                await until_told(other, 100)
                assert [int(r.payload) for r in await kept(other, told(world))] == list(range(100))

    anyio.run(main)
