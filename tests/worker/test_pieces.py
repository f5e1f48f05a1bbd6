"""What attempts record is in the log while they run: a second's worth at a time, once, and never in their way."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe.bus.memory import Fault, MemoryBus
from evpipe.bus.outbox import Message
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.logs import Choice
from evpipe.client.notes import read_metrics, read_recorded
from evpipe.core.artifact import Artifact
from evpipe.wire.notes import Piece, decode_piece, packed_row
from evpipe.wire.spool import OUT
from evpipe.wire.subjects import LaunchSubject
from evpipe.wire.values import pack
from evpipe.worker.notes import AttemptNotes
from evpipe.worker.pieces import EVERY_PART, EVERY_S, LOOK_S, Pieces
from evpipe.worker.telemetry import GATHER_S, LogBook
from tests.support.loops import Kind, run_in

RUN, PIPELINE = "aaaaaaaa", "churn"
LAUNCH = LaunchSubject("default", 5, RUN, "train", 1)
#: What is recorded is told about so late at the most.
LATE_S = GATHER_S + EVERY_S + LOOK_S + 0.01


def row(i: int, name: str = "loss") -> tuple[str, float, int, float]:
    return (name, float(i), i, 1.5)


@dataclass
class Scene:
    """One worker's pieces and book, and one attempt of it."""

    bus: MemoryBus
    pieces: Pieces
    book: LogBook
    folder: Path
    #: What becomes of messages to the log.
    fault: Fault | None = None
    removed: list[str] = field(default_factory=list)
    said: int = 0

    def attempt(self) -> AttemptNotes:
        return AttemptNotes(self.book, LAUNCH, PIPELINE, str(self.folder), self.pieces)

    def say(self, notes: AttemptNotes, count: int = 1) -> None:
        for _ in range(count):
            notes.points(packed_row(*row(self.said)), 1)
            self.said += 1

    @property
    def told(self) -> list[Piece]:
        return [decode_piece(record.payload) for record in self.bus.server.records]

    async def read(self) -> list[int | None]:
        found = await read_metrics(self.bus, RUN, PIPELINE, Choice(None), None)
        assert {(point.step, point.attempt) for point in found} <= {("train", 1)}
        return [point.iteration for point in found]


@asynccontextmanager
async def scene(folder: Path, *, telemetry: bool, worker: str = "worker-1", bus: Any = None) -> AsyncIterator[Scene]:
    def fault(message: Message) -> Fault | None:
        if message.subject.startswith(f"{there.bus.subjects.prefix}.telemetry."):
            return None if telemetry else Fault.LOST
        return there.fault

    async with MemoryBus(None if bus is None else bus.server, fault=fault) as own:
        removed: list[str] = []

        async def remove(name: str) -> None:
            removed.append(name)

        book = LogBook(own, worker)
        book.open()
        async with anyio.create_task_group() as task_group, Pieces(own, worker, remove) as pieces:
            there = Scene(own, pieces, book, folder, removed=removed)
            task_group.start_soon(book.run)
            yield there
            task_group.cancel_scope.cancel()


BACKENDS: list[Kind] = ["asyncio", "trio"]


def play(kind: Kind, main: Callable[[], Any]) -> None:
    run_in(kind, main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_second_of_points_is_one_event(kind: Kind, tmp_path: Path) -> None:
    """All that is older is there without telemetry, in order and once."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            notes = there.attempt()
            for i in range(200):
                there.say(notes)
                await anyio.sleep(0.05)
                if i % 20 == 19:
                    found = await there.read()
                    assert found == list(range(len(found)))
                    assert len(found) >= there.said - LATE_S / 0.05
            assert 8 <= len(there.told) <= 10 / EVERY_S
            await anyio.sleep(LATE_S)
            assert await there.read() == list(range(200))
            told = len(there.told)
            await anyio.sleep(60)
            notes.end()
            assert len(there.told) == told

    play(kind, main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_who_ends_soon_has_told_nothing(kind: Kind, tmp_path: Path) -> None:
    """Its end tells; and of one whose end nobody tells, all is told at once."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            for _ in range(3):
                notes = there.attempt()
                there.say(notes, 5)
                notes.artifact("a", b"\1")
                await anyio.sleep(EVERY_S - LOOK_S)
                notes.end()
            await anyio.sleep(60)
            assert there.told == []
            there.said = 0
            notes = there.attempt()
            there.say(notes, 5)
            notes.artifact("a", pack([1, 2], "a"))
            notes.end()
            assert not there.pieces.rest(notes)
            await anyio.wait_all_tasks_blocked()
            assert await there.read() == list(range(5))
            (recorded,) = (await read_recorded(there.bus, RUN, PIPELINE)).values()
            assert dict(recorded.artifacts) == {"a": [1, 2]}
            assert not there.pieces.rest(notes), "the log has it"

    play(kind, main)


def test_a_long_attempt_tells_less_often(tmp_path: Path) -> None:
    """Every thousandth of its time: so many hours cost little more than the first."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            notes = there.attempt()
            for _ in range(4_000):
                there.say(notes)
                await anyio.sleep(5)
            # Each point by itself at first, then fewer and fewer: 1,000 and 1,000 ln 4.
            assert 2_300 < len(there.told) < 2_450
            found = await there.read()
            assert found == list(range(len(found)))
            assert len(found) >= there.said - (LATE_S + 20_000 * EVERY_PART) / 5 - 1

    play("asyncio", main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_what_is_newer_is_telemetry(kind: Kind, tmp_path: Path) -> None:
    """At every moment each point is given once, wherever it is."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=True) as there:
            notes = there.attempt()
            for i in range(60):
                there.say(notes, 1 + i % 3)
                await anyio.sleep(0.11)
                assert await there.read() == list(range(there.said))
            assert there.told

    play(kind, main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_log_without_room(kind: Kind, tmp_path: Path) -> None:
    """One piece waits for room, and what is new meanwhile goes with the next; the end of an attempt waits for none."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            there.fault = Fault.FULL
            notes, other = there.attempt(), there.attempt()
            there.say(other)
            for _ in range(300):
                there.say(notes)
                await anyio.sleep(0.1)
            assert there.told == []
            other.end()
            there.fault = None
            await anyio.sleep(2 * LATE_S)
            # The piece that had waited, and one with all that came meanwhile; nothing of the one that has ended.
            assert there.told[0].offset == 0
            assert len(there.told) <= 3
            assert await there.read() == list(range(1, 301))

    play(kind, main)


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.STORED_SILENTLY, Fault.FULL])
def test_a_piece_that_nobody_answered(fault: Fault, tmp_path: Path) -> None:
    """The rest has what was in it again, and what is there twice is given once."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            notes = there.attempt()
            there.fault = fault
            there.say(notes, 3)
            notes.artifact("a", b"\1")
            await anyio.sleep(LATE_S)
            there.say(notes, 2)
            notes.artifact("a", b"\2")
            there.pieces.rest(notes)
            # It leaves, or is repeated, when there is room again.
            await anyio.sleep(10)
            there.fault = None
            await anyio.sleep(20)
            assert await there.read() == list(range(5))
            (recorded,) = (await read_recorded(there.bus, RUN, PIPELINE)).values()
            assert (dict(recorded.artifacts), recorded.count) == ({"a": 2}, 5)
            if fault is Fault.STORED_SILENTLY:
                numbers = [piece.number for piece in there.told]
                assert len(numbers) > len(set(numbers)) == 2

    play("asyncio", main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_what_does_not_travel_is_stored(kind: Kind, tmp_path: Path) -> None:
    """Many points, and files of artifacts, are objects before an event names them; the folder stays until then."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            notes = there.attempt()
            there.say(notes, 10_000)
            await until(lambda: bool(there.told))
            (piece,) = there.told
            assert isinstance(piece.notes.metrics, Artifact)
            assert piece.points == 10_000
            assert len(there.bus.server.records[0].payload) < 400
            data = b"a model" * 20_000
            artifact = ArtifactFile(data)
            artifact.write(tmp_path)
            there.say(notes, 10_000)
            notes.artifact("model", artifact.packed)
            notes.end()
            assert there.pieces.rest(notes)
            await until(lambda: bool(there.removed))
            assert there.removed == [str(tmp_path)]
            assert await there.read() == list(range(20_000))
            (recorded,) = (await read_recorded(there.bus, RUN, PIPELINE)).values()
            loaded = await ArtifactStore(there.bus.objects).load(recorded.artifacts["model"])
            assert loaded == data

    play(kind, main)


@pytest.mark.parametrize("ends", [False, True])
def test_many_points_beside_an_artifact_without_a_file(ends: bool, tmp_path: Path) -> None:
    """The points are stored, and the artifact is in the piece: nobody looks for a folder that is not there."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            notes = there.attempt()
            there.say(notes, 10_000)
            notes.artifact("a", pack(1, "a"))
            if ends:
                notes.end()
                assert there.pieces.rest(notes)
            await until(lambda: bool(there.told))
            assert await there.read() == list(range(10_000))
            (recorded,) = (await read_recorded(there.bus, RUN, PIPELINE)).values()
            assert dict(recorded.artifacts) == {"a": 1}

    play("asyncio", main)


def test_a_store_without_room(tmp_path: Path) -> None:
    """A piece that cannot be stored holds up nothing; when there is room, all of it is told."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=False) as there:
            there.bus.server.objects_bytes_max = 0
            notes = there.attempt()
            there.say(notes, 10_000)
            await anyio.sleep(LATE_S)
            there.say(notes, 10_000)
            await anyio.sleep(300)
            assert there.told == []
            there.bus.server.objects_bytes_max = 10**9
            await until(lambda: sum(piece.points for piece in there.told) >= 20_000)
            assert await there.read() == list(range(20_000))

    play("trio", main)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_worker_that_leaves(kind: Kind, tmp_path: Path) -> None:
    """It waits for the answers, for a while; where there is no connection, for none."""

    async def main() -> None:
        for connected, fault, most_s in ((True, None, 0.01), (True, Fault.FULL, 5.1), (False, None, 0.01)):
            async with scene(tmp_path, telemetry=False) as there:
                notes = there.attempt()
                there.say(notes, 5)
                notes.end()
                there.fault = fault
                if not connected:
                    there.bus.disconnect()
                there.pieces.rest(notes)
                began = anyio.current_time()
                await there.pieces.__aexit__(None, None, None)
                assert anyio.current_time() - began <= most_s
                assert [piece.points for piece in there.told] == ([5] if connected and fault is None else [])
                await there.pieces.__aenter__()

    play(kind, main)


def test_an_attempt_that_was_begun_twice(tmp_path: Path) -> None:
    """What two workers tell of their executions is not mixed: that of the one that began to tell last is given."""

    async def main() -> None:
        async with scene(tmp_path, telemetry=True) as one:
            notes = one.attempt()
            one.say(notes, 5)
            await anyio.sleep(LATE_S)
            async with scene(tmp_path, telemetry=True, worker="worker-2", bus=one.bus) as two:
                again = two.attempt()
                two.say(again, 2)
                await anyio.sleep(LATE_S)
                one.say(notes, 5)
                await anyio.sleep(LATE_S)
                assert {piece.worker for piece in two.told} == {"worker-1", "worker-2"}
                assert await two.read() == [0, 1]
                two.say(again, 2)
                await anyio.sleep(2 * GATHER_S)
                assert await two.read() == [0, 1, 2, 3]

    play("asyncio", main)


class ArtifactFile:
    """An artifact that is a file of its attempt."""

    def __init__(self, data: bytes) -> None:
        self._data = pack(data, "the data")
        self._digest = hashlib.sha256(self._data).hexdigest()

    def write(self, folder: Path) -> None:
        (folder / OUT).mkdir()
        (folder / OUT / self._digest).write_bytes(self._data)

    @property
    def packed(self) -> bytes:
        return pack(Artifact(kind="value", digest=self._digest, size_bytes=len(self._data)), "the artifact")


async def until(condition: Callable[[], bool]) -> None:
    # Threads store, and the virtual clock does not wait for them.
    with anyio.fail_after(10**6):
        while not condition():
            await anyio.to_thread.run_sync(partial(int))
            await anyio.sleep(0.05)
