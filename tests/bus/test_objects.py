"""Objects, from bytes and from files, and what else the bus says of what there is: on every bus."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from evpipe.bus import content, memory
from evpipe.bus.memory import Fault
from evpipe.bus.nats import objects as nats_objects
from evpipe.bus.nats import upload
from evpipe.bus.nats.lane import lane_config
from evpipe.bus.nats.upload import CHUNK_BYTES_MAX
from evpipe.bus.outbox import Message
from evpipe.bus.protocol import LaneState
from evpipe.bus.server import ServerProcess
from evpipe.errors import BusRefused, UsageError
from tests.support.contract import contract
from tests.support.worlds import FaultyNatsBus, NatsWorld, World, api, pass_time, pulling, stays, until, until_answer

RUN = "aaaaaaaa"
#: Some chunks of the one bus, and some pieces of the other.
LARGE = CHUNK_BYTES_MAX * 12 + 7


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def data_of(size: int, seed: int = 0) -> bytes:
    """Bytes in which no chunk is like another."""
    return random.Random(seed).randbytes(size)


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def with_limit(name: str, value: float) -> Iterator[None]:
    """Let a limit of the contract have another value on both buses."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (memory, upload, nats_objects):
            if hasattr(module, name):
                patched.setattr(module, name, value)
        yield


@contextmanager
def when_called(kind: type[Any], name: str, times: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do something before the n-th call of a method, in whatever thread; gives the numbers of the calls."""
    calls: list[int] = []
    original = getattr(kind, name)

    def called(self: Any, *args: Any) -> Any:
        if len(calls) + 1 == times:
            act()
        # Who waits for it finds it done.
        calls.append(len(calls) + 1)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, name, called)
        yield calls


async def no_pieces(world: World) -> None:
    async def ask() -> bool | None:
        return await world.pieces() == 0 or None

    await until_answer(ask, what="no bytes of objects are left")


# ---- round trips


@contract
async def test_objects_come_back_as_they_were_by_bytes_and_by_file(world: World) -> None:
    """Whatever the size, and however they were put: a file can be got as bytes, and bytes as a file."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    with a_folder() as folder:
        for i, size in enumerate((0, 1, CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX, LARGE)):
            data, other = data_of(size, 1), data_of(size, 2) + b"file"
            digest, other_digest = digest_of(data), digest_of(other)
            file, copy, other_copy = folder / f"{i}", folder / f"{i}-copy", folder / f"{i}-other"
            file.write_bytes(other)
            await one.put(digest, data)
            await one.put_file(other_digest, file)
            assert await two.get(digest) == data
            assert await two.get(other_digest) == other
            assert await two.get_file(digest, copy)
            assert await two.get_file(other_digest, other_copy)
            assert copy.read_bytes() == data
            assert other_copy.read_bytes() == other
            assert await one.intact(digest)
            assert await one.intact(other_digest)


@contract
async def test_what_is_missing_is_none_and_makes_no_file(world: World) -> None:
    """Asking for what nobody has put is no error, and leaves nothing behind."""
    objects = (await world.bus()).objects
    digest = digest_of(b"nobody's")
    with a_folder() as folder:
        assert not await objects.get_file(digest, folder / "file")
        assert list(folder.iterdir()) == []
    assert await objects.get(digest) is None
    assert await objects.find(digest) is None
    assert not await objects.intact(digest)
    assert not await objects.remove(digest)


@contract
async def test_a_file_that_is_not_there_is_the_callers_error(world: World) -> None:
    """The error of the file system comes as it is."""
    objects = (await world.bus()).objects
    with a_folder() as folder, pytest.raises(FileNotFoundError):
        await objects.put_file(digest_of(b""), folder / "none")


@contract
async def test_what_has_another_digest_is_refused(world: World) -> None:
    """A file that changed after it was hashed is not stored, nor are bytes of another digest."""
    objects = (await world.bus()).objects
    digest = digest_of(b"as it was")
    data = data_of(3 * CHUNK_BYTES_MAX)
    with a_folder() as folder:
        file = folder / "file"
        file.write_bytes(data)
        with pytest.raises(UsageError, match="changed meanwhile"):
            await objects.put_file(digest, file)
        with pytest.raises(UsageError, match=digest):
            await objects.put(digest, data)
    assert await objects.find(digest) is None
    await no_pieces(world)


@contract
async def test_a_file_that_grows_while_it_is_put_is_refused(world: World) -> None:
    """Its end is where it was when the put began: a file that somebody appends to is not read for ever."""
    objects = (await world.bus()).objects
    with a_folder() as folder:
        file = folder / "file"
        file.write_bytes(data_of(LARGE))

        def grow() -> None:
            with file.open("ab") as opened:
                opened.write(b"more")

        with when_called(content.FileSource, "read", 2, grow):
            await objects.put_file(digest_of(data_of(LARGE)), file)
        assert await objects.intact(digest_of(data_of(LARGE)))
        with pytest.raises(UsageError):
            await objects.put_file(digest_of(b"else"), file)


# ---- put again


@contract
async def test_a_second_put_stores_nothing(world: World) -> None:
    """What is there is not stored again; what is young is not even touched."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    data = data_of(LARGE)
    digest = digest_of(data)
    await one.put(digest, data)
    found, pieces = await one.find(digest), await world.pieces()
    assert found is not None
    with a_folder() as folder:
        (folder / "file").write_bytes(data)
        await two.put_file(digest, folder / "file")
        assert await two.find(digest) == found
        with with_limit("YOUNG_S", 0.0):
            await two.put_file(digest, folder / "file")
    again = await two.find(digest)
    assert again is not None
    assert again.revision > found.revision
    assert again.at_s >= found.at_s
    assert await world.pieces() == pieces
    assert await one.get(digest) == data


@contract
async def test_puts_of_the_same_at_the_same_time_leave_one(world: World) -> None:
    """Whoever comes second takes away what it has stored in vain."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    data = data_of(LARGE)
    digest = digest_of(data)
    async with anyio.create_task_group() as task_group:
        for objects in (one, two, one, two):
            task_group.start_soon(objects.put, digest, data)
    assert await one.get(digest) == data
    assert await one.remove(digest)
    await no_pieces(world)


# ---- damage


@contract
async def test_damage_is_found_by_whoever_reads_and_repaired_by_the_next_put(world: World) -> None:
    """Bytes that are lost, or are others, are given to nobody; the object is missing then, so it can be put again."""
    objects = (await world.bus()).objects
    with a_folder() as folder:
        file = folder / "file"

        async def got() -> bool:
            return await objects.get(digest) is not None

        async def got_file() -> bool:
            return await objects.get_file(digest, file)

        async def intact() -> bool:
            return await objects.intact(digest)

        for size in (5, LARGE):
            data = data_of(size)
            digest = digest_of(data)
            for harm in (world.damage, world.spoil):
                for read in (got, got_file, intact):
                    await objects.put(digest, data)
                    assert await read()
                    file.unlink(missing_ok=True)
                    await harm(digest)
                    assert not await read()
                    assert list(folder.iterdir()) == []
                    assert await objects.find(digest) is None
            await objects.put(digest, data)
            assert await objects.get(digest) == data


@contract
async def test_an_object_that_lost_some_bytes_does_not_count_as_put(world: World) -> None:
    """Until somebody has read it, only its size can tell; what was found damaged is stored anew, once."""
    objects = (await world.bus()).objects
    data = data_of(LARGE)
    digest = digest_of(data)
    await objects.put(digest, data)
    pieces = await world.pieces()
    await world.damage(digest)
    assert not await objects.intact(digest)
    await no_pieces(world)
    await objects.put(digest, data)
    assert await world.pieces() == pieces


# ---- find, entries, remove


@contract
async def test_entries_say_what_there_is(world: World) -> None:
    """Each object with its size, its moment by the server's clock, and a revision of its own."""
    bus = await world.bus()
    before_s = (await stored_record(bus)).at_s
    wanted = {}
    for size in (0, 3, LARGE):
        data = data_of(size)
        await bus.objects.put(digest_of(data), data)
        wanted[digest_of(data)] = size
    after_s = (await stored_record(bus)).at_s
    found = await bus.objects.entries()
    assert {entry.digest: entry.size_bytes for entry in found} == wanted
    assert len({entry.revision for entry in found}) == len(found)
    assert all(before_s <= entry.at_s <= after_s for entry in found)
    for entry in found:
        assert await bus.objects.find(entry.digest) == entry
    for entry in found:
        assert await bus.objects.remove(entry.digest)
    assert await bus.objects.entries() == []


async def stored_record(bus: Any) -> Any:
    subject = bus.subjects.event("p", RUN, "s", "progress")
    await bus.append_wait(subject, b"")
    return await bus.last(subject)


@contract
async def test_a_removed_object_is_gone_with_its_bytes(world: World) -> None:
    """And the others stay."""
    objects = (await world.bus()).objects
    data, other = data_of(LARGE, 1), data_of(LARGE, 2)
    await objects.put(digest_of(other), other)
    pieces = await world.pieces()
    await objects.put(digest_of(data), data)
    assert await objects.remove(digest_of(data))
    assert await objects.find(digest_of(data)) is None
    assert await objects.get(digest_of(data)) is None
    assert not await objects.remove(digest_of(data))
    assert await world.pieces() == pieces
    assert await objects.get(digest_of(other)) == other


@contract
async def test_who_puts_again_wins_over_who_removes(world: World) -> None:
    """A removal of a revision is refused when the object was put again since, and the object stays whole."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    data = data_of(LARGE)
    digest = digest_of(data)
    await one.put(digest, data)
    old = await two.find(digest)
    assert old is not None
    with with_limit("YOUNG_S", 0.0):
        await one.put(digest, data)
    assert not await two.remove(digest, revision=old.revision)
    assert await two.get(digest) == data
    new = await two.find(digest)
    assert new is not None
    assert await two.remove(digest, revision=new.revision)
    assert await two.find(digest) is None
    await no_pieces(world)


@contract
async def test_removing_and_putting_at_the_same_time_never_leaves_half_an_object(world: World) -> None:
    """After any such race what was put is there, and whole."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    data = data_of(3 * CHUNK_BYTES_MAX)
    digest = digest_of(data)
    with with_limit("YOUNG_S", 0.0):
        for _ in range(10):
            await one.put(digest, data)
            found = await one.find(digest)
            assert found is not None
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(one.put, digest, data)
                task_group.start_soon(partial(two.remove, digest, revision=found.revision))
            # The put came after the removal, or the removal was refused.
            assert await one.get(digest) == data


@contract
async def test_orphans_are_removed_and_what_is_described_stays(world: World) -> None:
    """Only bytes that nothing describes, and only those of before the moment."""
    bus = await world.bus()
    data = data_of(LARGE)
    digest = digest_of(data)
    before_s = (await stored_record(bus)).at_s
    await bus.objects.put(digest, data)
    left = await world.leave_orphan(3) + await world.leave_orphan(1)
    assert await bus.objects.remove_orphans(before_s=before_s) == 0
    pieces = await world.pieces()
    await pass_time(0.01)
    after_s = (await stored_record(bus)).at_s
    assert await bus.objects.remove_orphans(before_s=after_s) == left
    assert await world.pieces() == pieces - left
    assert await bus.objects.get(digest) == data
    assert await bus.objects.remove_orphans(before_s=after_s) == 0


# ---- what goes wrong meanwhile


@contract
async def test_a_put_of_a_file_goes_on_after_a_lost_connection(world: World) -> None:
    """What was stored before is not stored again, or not kept."""
    await put_while(world, world.break_now, world.mended)


@contract
async def test_a_put_of_a_file_goes_on_after_a_killed_server(world: World) -> None:
    """The same where the server had to start again."""
    await put_while(world, lambda _: world.kill_now(), lambda _: world.revive())


async def put_while(world: World, act: Callable[[Any], None], mended: Callable[[Any], Any]) -> None:
    bus = await world.bus()
    data = data_of(2 * LARGE)
    digest = digest_of(data)
    with a_folder() as folder:
        file = folder / "file"
        file.write_bytes(data)
        with when_called(content.FileSource, "read", 4, lambda: act(bus)) as calls:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(bus.objects.put_file, digest, file)
                await until(lambda: len(calls) >= 4)
                await mended(bus)
    assert await bus.objects.get(digest) == data
    pieces = await world.pieces()
    assert await bus.objects.remove(digest)
    await no_pieces(world)
    assert pieces > 0


@contract
async def test_a_file_is_got_across_a_lost_connection(world: World) -> None:
    """It goes on where it was."""
    await get_while(world, world.break_now, world.mended)


@contract
async def test_a_file_is_got_across_a_killed_server(world: World) -> None:
    """The same where the server had to start again."""
    await get_while(world, lambda _: world.kill_now(), lambda _: world.revive())


async def get_while(world: World, act: Callable[[Any], None], mended: Callable[[Any], Any]) -> None:
    bus = await world.bus()
    data = data_of(4 * LARGE)
    digest = digest_of(data)
    await bus.objects.put(digest, data)
    with a_folder() as folder:
        got: list[bool] = []

        async def get() -> None:
            got.append(await bus.objects.get_file(digest, folder / "copy"))

        with when_called(content.FileSink, "take", 2, lambda: act(bus)) as calls:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(get)
                await until(lambda: len(calls) >= 2)
                await mended(bus)
        assert got == [True]
        assert (folder / "copy").read_bytes() == data
        assert [file.name for file in folder.iterdir()] == ["copy"]


@contract
async def test_a_cancelled_put_leaves_nothing(world: World) -> None:
    """No object that is described, and none of its bytes."""
    bus = await world.bus()
    data = data_of(2 * LARGE)
    digest = digest_of(data)
    with a_folder() as folder:
        file = folder / "file"
        file.write_bytes(data)
        for times in (1, 2, 9, 13):
            scope = anyio.CancelScope()
            with when_called(content.FileSource, "read", times, partial(from_anywhere, scope.cancel)):
                with scope:
                    await bus.objects.put_file(digest, file)
                assert scope.cancelled_caught
            assert await bus.objects.find(digest) is None
            await no_pieces(world)
        await bus.objects.put_file(digest, file)
    assert await bus.objects.get(digest) == data


def from_anywhere(act: Callable[[], None]) -> None:
    """Do something in the loop, from a thread of it or from the loop itself."""
    try:
        anyio.from_thread.run_sync(act)
    except (RuntimeError, anyio.NoEventLoopError):
        act()


@contract
async def test_a_put_cancelled_while_it_is_described_is_whole_or_nothing(world: World) -> None:
    """Whenever it is cancelled: an object that is described has its bytes, and bytes that are left have an object."""
    bus = await world.bus()
    data = data_of(2 * CHUNK_BYTES_MAX)
    digest = digest_of(data)
    seen = set()
    for turns in range(0, 60, 3):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(bus.objects.put, digest, data)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            task_group.cancel_scope.cancel()
        described = await bus.objects.find(digest) is not None
        seen.add(described)
        if described:
            assert await bus.objects.get(digest) == data
            assert await bus.objects.remove(digest)
        await no_pieces(world)
    assert False in seen


@contract
async def test_a_cancelled_get_leaves_no_file(world: World) -> None:
    """Neither under its name nor beside it."""
    bus = await world.bus()
    data = data_of(2 * LARGE)
    digest = digest_of(data)
    await bus.objects.put(digest, data)
    with a_folder() as folder:
        for times in (1, 2):
            scope = anyio.CancelScope()
            with when_called(content.FileSink, "take", times, partial(from_anywhere, scope.cancel)), scope:
                await bus.objects.get_file(digest, folder / "copy")
            assert scope.cancelled_caught
            assert list(folder.iterdir()) == []


@contract
async def test_a_full_store_is_an_error_that_says_what_frees_it(world: World) -> None:
    """A put waits for room for a while, not for ever; nothing of it stays."""
    bus = await world.bus()
    data = data_of(LARGE)
    digest = digest_of(data)
    with a_folder() as folder, with_limit("FULL_S", 0.6):
        (folder / "file").write_bytes(data)
        async with world.full("objects"):
            with pytest.raises(BusRefused, match=r"object store .*is full .*bytes.*`evpipe gc` frees space"):
                await bus.objects.put(digest, data)
            with pytest.raises(BusRefused, match="evpipe gc"):
                await bus.objects.put_file(digest, folder / "file")
            assert await bus.objects.find(digest) is None
        await no_pieces(world)
        await bus.objects.put_file(digest, folder / "file")
    assert await bus.objects.get(digest) == data


@contract
async def test_a_full_store_that_is_freed_in_time_takes_the_object(world: World) -> None:
    """Whoever waits for room goes on when there is some."""
    bus = await world.bus()
    data = data_of(LARGE)
    digest = digest_of(data)
    async with anyio.create_task_group() as task_group, world.full("objects"):
        task_group.start_soon(bus.objects.put, digest, data)
        await pass_time(0.5)
        assert await bus.objects.find(digest) is None
    assert await bus.objects.get(digest) == data


@contract
async def test_an_object_can_be_removed_from_a_full_store(world: World) -> None:
    """What frees space needs none."""
    objects = (await world.bus()).objects
    data = data_of(LARGE)
    digest = digest_of(data)
    await objects.put(digest, data)
    found = await objects.find(digest)
    assert found is not None
    async with world.full("objects"):
        assert await objects.remove(digest, revision=found.revision)
    await no_pieces(world)


# ---- buckets and lanes


@contract
async def test_entries_under_some_tokens(world: World) -> None:
    """Whole tokens count: a key that only begins with the same letters is another's."""
    bucket = (await world.bus()).bucket("cache")
    keys = ("hit.3f2a", "hit.3f2a.x", "hit.3f2a.y.z", "hit.3f2ab", "hit.3f2ab.x", "hit", "miss.3f2a")
    for key in keys:
        await bucket.put(key, key.encode())
    await bucket.put("hit.3f2a.gone", b"x")
    await bucket.delete("hit.3f2a.gone")
    await bucket.put("hit.3f2a.x", b"newer")
    assert [e.key for e in await bucket.entries("hit.3f2a")] == ["hit.3f2a", "hit.3f2a.y.z", "hit.3f2a.x"]
    assert {e.key for e in await bucket.entries("hit")} == {*keys} - {"miss.3f2a"}
    assert [e.value for e in await bucket.entries("hit.3f2a.x")] == [b"newer"]
    assert await bucket.entries("none") == []
    assert {e.key for e in await bucket.entries()} == {*keys}


@contract
async def test_lanes_say_what_waits_and_what_is_taken(world: World) -> None:
    """By queue and priority; what was released is still taken, and what was acked is gone."""
    bus = await world.bus()
    assert await bus.lanes() == []

    async def become(*lanes: tuple[str, int, int, int]) -> None:
        wanted = [LaneState(*lane) for lane in lanes]

        async def ask() -> bool | None:
            return await bus.lanes() == wanted or None

        await until_answer(ask, what=f"lanes are {lanes}")

    for i in range(5):
        bus.launch(world.subjects.launch("gpu-2", RUN, f"s{i}", 1), b"")
    async with pulling(bus, "gpu-2") as gpu, pulling(bus, "default", priority=5):
        await become(("default", 5, 0, 0), ("gpu-2", 5, 5, 0))
        gpu.ask(3)
        await until(lambda: len(gpu) == 3)
        await become(("default", 5, 0, 0), ("gpu-2", 5, 2, 3))
        gpu[0].ack()
        await become(("default", 5, 0, 0), ("gpu-2", 5, 2, 2))
        gpu[1].release()
        await become(("default", 5, 0, 0), ("gpu-2", 5, 2, 2))
    await bus.drop_launches(RUN)
    await become(("default", 5, 0, 0), ("gpu-2", 5, 0, 0))


@contract
async def test_a_queue_that_is_limited_gives_no_more_at_a_time(world: World) -> None:
    """To all pulls together, those that are open and those that come; what is given back, or done, makes room."""
    bus = await world.bus()
    for i in range(9):
        bus.launch(world.subjects.launch("gpu", RUN, f"s{i}", 1), b"")
        bus.launch(world.subjects.launch("gpu-2", RUN, f"s{i}", 1), b"")
    await bus.limit_queue("gpu", 2)
    async with pulling(bus, "gpu", ask=5) as first, pulling(bus, "gpu-2", ask=5) as other:
        await until(lambda: len(first) == 2 and len(other) == 5)
        async with pulling(bus, "gpu", ask=5) as second:
            await stays(lambda: len(first) + len(second) == 2, for_s=0.2)
            first[0].ack()
            await until(lambda: len(first) + len(second) == 3)
            assert await bus.queue_limits() == {"gpu": 2}
            await bus.limit_queue("gpu", 4)
            await until(lambda: len(first) + len(second) == 5)
            await bus.limit_queue("gpu", None)
            await until(lambda: len(first) + len(second) == 9)
    assert await bus.queue_limits() == {}
    assert {lane.queue: lane.limit for lane in await bus.lanes()} == {"gpu": None, "gpu-2": None}
    for limit in (0, 100_000, True):
        with pytest.raises(UsageError, match="the limit of a queue must be a whole number from 1 to 99,999"):
            await bus.limit_queue("gpu", limit)


@contract
async def test_a_lane_of_one_process_is_a_lane(world: World) -> None:
    """Also while it lasts only as long as somebody pulls."""
    bus = await world.bus()
    async with bus.pull("one", 5, lambda _: None, transient=True):
        assert await bus.lanes() == [LaneState("one", 5, 0, 0)]


# ---- what only a real server can do


def on_nats(check: Callable[[NatsWorld], Any]) -> Callable[[ServerProcess], None]:
    def test(nats_server: ServerProcess) -> None:
        world = NatsWorld(nats_server)

        async def main() -> None:
            with anyio.fail_after(60):
                async with world:
                    await check(world)

        anyio.run(main)

    test.__doc__ = check.__doc__
    return test


def sometimes(*faults: Fault | None) -> Callable[[Message], Fault | None]:
    """Give the first messages these faults, and none to those after them."""
    left = list(faults)
    return lambda _: left.pop(0) if left else None


@pytest.mark.parametrize(
    "faults",
    [
        [None, None, Fault.STORED_SILENTLY],
        [None, None, Fault.LOST],
        [Fault.STORED_SILENTLY] * 3,
        [None, Fault.LOST, Fault.STORED_SILENTLY, None, Fault.LOST],
        [None, None, Fault.FULL, None, Fault.STORED_SILENTLY],
        # The second try, one by one, meets faults as well.
        [None, None, Fault.LOST, *[None] * 22, Fault.STORED_SILENTLY, Fault.LOST, Fault.STORED_SILENTLY, Fault.LOST],
        # Of the description.
        [*[None] * 25, Fault.STORED_SILENTLY],
        [*[None] * 25, Fault.LOST, Fault.LOST],
    ],
)
def test_lost_messages_and_replies_of_a_put_change_nothing(
    nats_server: ServerProcess, faults: list[Fault | None]
) -> None:
    """A chunk that arrives late, or twice, is stored once and in its place, as any tool reads it."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        bus.chunk_fault = sometimes(*faults)
        data = data_of(2 * LARGE)
        digest = digest_of(data)
        with a_folder() as folder:
            (folder / "file").write_bytes(data)
            await bus.objects.put_file(digest, folder / "file")
            assert await bus.objects.get(digest) == data
            assert await read_by_nats_py(world, digest, folder) == data
        pieces = await world.pieces()
        await bus.objects.remove(digest)
        await no_pieces(world)
        assert pieces == -(-len(data) // CHUNK_BYTES_MAX)

    on_nats(check)(nats_server)


def is_description(message: Message) -> bool:
    return ".M." in message.subject


def test_a_put_that_loses_against_a_removal_stores_the_object_again(nats_server: ServerProcess) -> None:
    """It was about to say that the object is still needed when somebody removed it."""

    async def check(world: NatsWorld) -> None:
        bus, other = await world.bus(), await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        data = data_of(LARGE)
        digest = digest_of(data)
        await bus.objects.put(digest, data)
        found = await other.objects.find(digest)
        assert found is not None
        about_to_say = anyio.Event()

        def lose_the_first(message: Message) -> Fault | None:
            if not is_description(message) or about_to_say.is_set():
                return None
            about_to_say.set()
            return Fault.LOST

        bus.chunk_fault = lose_the_first
        with with_limit("YOUNG_S", 0.0):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(bus.objects.put, digest, data)
                await about_to_say.wait()
                assert await other.objects.remove(digest, revision=found.revision)
        assert await other.objects.get(digest) == data

    on_nats(check)(nats_server)


@pytest.mark.parametrize(("fault", "stored"), [(Fault.STORED_SILENTLY, True), (None, True), (Fault.FULL, False)])
def test_a_put_cancelled_when_its_description_has_left_knows_what_became_of_it(
    nats_server: ServerProcess, fault: Fault | None, stored: bool
) -> None:
    """Where the server has it, the object stays whole; where it does not, nothing stays."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        data = data_of(LARGE)
        digest = digest_of(data)
        scope = anyio.CancelScope()
        left = [fault]

        def cancel(message: Message) -> Fault | None:
            if not is_description(message):
                return None
            scope.cancel()
            return left.pop() if left else None

        bus.chunk_fault = cancel
        with scope:
            await bus.objects.put(digest, data)
        assert scope.cancelled_caught
        assert (await bus.objects.find(digest) is not None) == stored
        if stored:
            assert await bus.objects.get(digest) == data
        else:
            await no_pieces(world)

    on_nats(check)(nats_server)


def test_a_lost_connection_costs_what_was_under_way(nats_server: ServerProcess) -> None:
    """What was stored before is not sent again: a put of hours does not begin again after each break."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        data = data_of(4 * LARGE)
        digest = digest_of(data)
        sent = 0

        def count(_: Message) -> Fault | None:
            nonlocal sent
            sent += 1
            if sent in (15, 30):
                # Stored, and nobody is told.
                world.break_now(bus)
                return Fault.STORED_SILENTLY
            return None

        bus.chunk_fault = count
        await bus.objects.put(digest, data)
        chunks = await world.pieces()
        assert bus._connection.generation == 3
        # One for the description, and at most a window after each break.
        assert sent <= chunks + 1 + 2 * upload.WINDOW_MAX
        assert await bus.objects.get(digest) == data

    on_nats(check)(nats_server)


async def read_by_nats_py(world: NatsWorld, digest: str, folder: Path) -> bytes:
    async with world.raw() as raw:
        store: Any = await raw.jetstream().object_store(f"{world.prefix}-objects")
        with (folder / "nats-py").open("wb") as file:
            await store.get(digest, writeinto=file)
    return (folder / "nats-py").read_bytes()


def test_the_layout_is_that_of_the_nats_tools(nats_server: ServerProcess) -> None:
    """What evpipe stores any NATS tool reads, lists and describes, and the other way round."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        data, theirs = data_of(LARGE), data_of(LARGE, 2)
        digest, their_digest = digest_of(data), digest_of(theirs)
        await bus.objects.put(digest, data)
        await bus.objects.put(digest_of(b""), b"")
        async with world.raw() as raw:
            store: Any = await raw.jetstream().object_store(f"{world.prefix}-objects")
            info = await store.get_info(digest)
            assert (info.name, info.size, info.bucket) == (digest, len(data), f"{world.prefix}-objects")
            assert info.chunks == await world.pieces()
            await store.put(their_digest, theirs)
            await store.put("notes.txt", b"somebody's own")
            assert {found.name for found in await store.list()} == {
                digest,
                digest_of(b""),
                their_digest,
                "notes.txt",
            }
        with a_folder() as folder:
            assert await read_by_nats_py(world, digest, folder) == data
        assert await bus.objects.get(their_digest) == theirs
        # What has no digest as its name is no object of ours, but none that is left over either.
        assert {e.digest for e in await bus.objects.entries()} == {digest, digest_of(b""), their_digest}
        pieces = await world.pieces()
        assert await bus.objects.remove_orphans(before_s=2e10) == 0
        assert await world.pieces() == pieces
        async with world.raw() as raw:
            store = await raw.jetstream().object_store(f"{world.prefix}-objects")
            await store.delete(their_digest)
        assert await bus.objects.find(their_digest) is None
        await bus.objects.put(their_digest, theirs)
        assert await bus.objects.get(their_digest) == theirs

    on_nats(check)(nats_server)


def test_reading_leaves_no_consumers_behind(nats_server: ServerProcess) -> None:
    """A thousand reads are not a thousand consumers that the server keeps for a while."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        data = data_of(LARGE)
        await bus.objects.put(digest_of(data), data)
        await bus.objects.put(digest_of(b"one chunk"), b"one chunk")
        for _ in range(5):
            assert await bus.objects.get(digest_of(data)) == data
            assert await bus.objects.get(digest_of(b"one chunk")) == b"one chunk"
            assert len(await bus.objects.entries()) == 2

        async def ask() -> bool | None:
            return not await world.consumers_of_objects() or None

        await until_answer(ask, what="no consumer of the object store is left")

    on_nats(check)(nats_server)


@pytest.mark.parametrize("gone", ["chunks", "everything", "stream"])
def test_an_object_that_is_removed_while_it_is_read_is_missing(nats_server: ServerProcess, gone: str) -> None:
    """Whoever reads it does not wait for ever for what is no more."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        data = data_of(8 * LARGE)
        digest = digest_of(data)
        await bus.objects.put(digest, data)
        reached, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            assert go_on.wait(20)

        got: list[bool] = []
        with a_folder() as folder, when_called(content.FileSink, "take", 2, wait):

            async def get() -> None:
                got.append(await bus.objects.get_file(digest, folder / "copy"))

            with with_limit("STALL_S", 0.5):
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(get)
                    await until(reached.is_set)
                    async with world.raw() as raw:
                        js = raw.jetstream()
                        if gone == "chunks":
                            await js.purge_stream(world.object_stream, subject=await world.chunks_of(raw, digest))
                        elif gone == "everything":
                            await js.purge_stream(world.object_stream)
                        else:
                            await js.delete_stream(world.object_stream)
                    go_on.set()
            assert got == [False]
            assert list(folder.iterdir()) == []
        assert await bus.objects.find(digest) is None
        await bus.objects.put(digest, data)
        assert await bus.objects.intact(digest)

    on_nats(check)(nats_server)


def test_a_put_whose_chunks_are_removed_meanwhile_begins_again(nats_server: ServerProcess) -> None:
    """Nothing is described whose bytes somebody took for an orphan's."""

    async def check(world: NatsWorld) -> None:
        bus, other = await world.bus(), await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        data = data_of(LARGE)
        digest = digest_of(data)
        reached = anyio.Event()
        count = 0

        def at_the_last(message: Message) -> Fault | None:
            nonlocal count
            count += 1
            if count == 13:
                reached.set()
                return Fault.LOST
            return None

        bus.chunk_fault = at_the_last
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(bus.objects.put, digest, data)
            await reached.wait()
            assert await other.objects.remove_orphans(before_s=2e10) > 0
        assert await bus.objects.get(digest) == data

    on_nats(check)(nats_server)


CHILD = """
import hashlib, os, resource, sys
from pathlib import Path
import anyio
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.settings import BusSettings

async def main(url, token, prefix, folder, size):
    file, copy, small = folder / "file", folder / "copy", folder / "small"
    found, piece = hashlib.sha256(), os.urandom(1024 * 1024)
    with file.open("wb") as opened:
        for i in range(size // len(piece)):
            part = i.to_bytes(8, "big") + piece[8:]
            opened.write(part)
            found.update(part)
    digest = found.hexdigest()
    async with NatsBus(BusSettings(url=url, token=token or None, prefix=prefix)) as bus:
        data = os.urandom(3 * 1024 * 1024)
        small.write_bytes(data)
        await bus.objects.put_file(hashlib.sha256(data).hexdigest(), small)
        assert await bus.objects.get_file(hashlib.sha256(data).hexdigest(), copy)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await bus.objects.put_file(digest, file)
        assert await bus.objects.get_file(digest, copy)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert copy.stat().st_size == size
    print((after - before) // 1024)

anyio.run(main, *sys.argv[1:4], Path(sys.argv[4]), int(sys.argv[5]))
"""


def test_three_hundred_megabytes_take_no_memory(nats_server: ServerProcess, tmp_path: Path) -> None:
    """Whoever puts and gets a file of 300 MB grows by less than a fifth of it."""
    folder = tmp_path / "files"
    folder.mkdir()

    async def check(world: NatsWorld) -> None:
        settings = world.settings
        command = [sys.executable, "-c", CHILD, str(settings.url), settings.token or "", world.prefix]
        try:
            found = await anyio.run_process([*command, str(folder), str(300 * 1024 * 1024)], stderr=sys.stderr)
        finally:
            await anyio.to_thread.run_sync(shutil.rmtree, folder)
        assert int(found.stdout.split()[-1]) < 60

    on_nats(check)(nats_server)


def test_all_lanes_are_listed_and_nothing_else(nats_server: ServerProcess) -> None:
    """The server gives 256 consumers at a time, and among them may be one that an operator watches with."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        stream = f"{world.prefix}-queue"
        async with world.raw() as raw:
            for i in range(270):
                config = lane_config(f"q{i:03}", 5, world.subjects.launches_of_lane(f"q{i:03}", 5), transient=False)
                await api(raw, f"CONSUMER.DURABLE.CREATE.{stream}.q{i:03}-5", {"stream_name": stream, "config": config})
            watch = {"durable_name": "watch-5", "ack_policy": "none", "filter_subject": world.subjects.all_launches}
            await api(raw, f"CONSUMER.DURABLE.CREATE.{stream}.watch-5", {"stream_name": stream, "config": watch})
            assert (await api(raw, f"CONSUMER.NAMES.{stream}", {}))["total"] == 271
        bus.launch(world.subjects.launch("q269", RUN, "s", 1), b"")
        wanted = [LaneState(f"q{i:03}", 5, int(i == 269), 0) for i in range(270)]

        async def ask() -> bool | None:
            return await bus.lanes() == wanted or None

        await until_answer(ask)

    on_nats(check)(nats_server)


def test_large_objects_hold_up_no_lease(nats_server: ServerProcess) -> None:
    """What matters does not wait behind the bytes of objects: entries of buckets are written while they go."""

    async def check(world: NatsWorld) -> None:
        bus = await world.bus()
        assert isinstance(bus, FaultyNatsBus)
        data = data_of(LARGE)
        held = anyio.Event()

        def hold(_: Message) -> Fault | None:
            held.set()
            return Fault.LOST

        bus.chunk_fault = hold
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(bus.objects.put, digest_of(data), data)
            await held.wait()
            assert await bus.bucket("leases").put("shard", b"mine", expected=0) is not None
            bus.chunk_fault = None
        assert await bus.objects.get(digest_of(data)) == data

    on_nats(check)(nats_server)
