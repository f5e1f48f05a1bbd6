"""A bus in this process: debug runs without a server, tests, simulation.

`MemoryServer` is what a nats-server is to evpipe, `MemoryBus` a connection to it. Both sides keep the same
contract as `bus.nats` (one suite runs on both); in addition a test can make a connection misbehave the way
real ones do: a message that never arrives, one that is stored while its reply is lost, a full stream, a
disconnect, a server that comes back having forgotten its acknowledgements.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from evpipe.bus.content import BytesSink, BytesSource, FileSink, FileSource, HashSink, Sink, Source
from evpipe.bus.memory_cache import KeptBehind
from evpipe.bus.memory_stream import MemoryFeed, MemoryStream, matches, replayed
from evpipe.bus.outbox import BACKOFF_S, Message, Outbox, Verdict
from evpipe.bus.protocol import (
    ACK_WAIT_S,
    FULL_S,
    SETTLE_S,
    YOUNG_S,
    Answer,
    Bucket,
    BusInfo,
    Delivery,
    Done,
    Entry,
    LaneState,
    ObjectEntry,
    Objects,
    Outcome,
    Pull,
    Record,
    Refused,
    Sending,
    Signals,
    Stored,
    Telemetry,
)
from evpipe.bus.results import ResultStore
from evpipe.errors import BusClosed, BusRefused
from evpipe.wire.cache import BUCKET as CACHE
from evpipe.wire.config import check_queue_limit
from evpipe.wire.limits import PAYLOAD_BYTES_MAX
from evpipe.wire.subjects import Subjects

#: As much of what steps write as one process keeps, where no server does.
TELEMETRY_BYTES_MAX: Final = 32 * 1024**2
SIGNALS_BYTES_MAX: Final = 32 * 1024**2
#: What of an object is read, written or hashed before others may go on.
PIECE_BYTES: Final = 1024 * 1024


class Fault(Enum):
    """What becomes of one message on its way to the server."""

    #: It never arrives.
    LOST = "lost"
    #: It is stored; the reply is lost, so the sender cannot know.
    STORED_SILENTLY = "stored silently"
    #: The stream is full: the server answers with the other meaning of its code 10077.
    FULL = "full"


@dataclass(slots=True)
class _Kept:
    """A launch in the queue stream, and what the lane's consumer knows of it."""

    sequence: int
    subject: str
    payload: bytes
    lane: tuple[str, int]
    deliveries: int = 0
    acked: bool = False
    #: When it is given again, while somebody holds it.
    expires_at: float | None = None


class _Lane:
    """The consumer of one queue and priority."""

    def __init__(self) -> None:
        #: Whether anybody has pulled from it: a server makes its consumer then.
        self.pulled = False
        #: How many may be held at a time.
        self.limit: float = math.inf
        self.waiting: deque[_Kept] = deque()
        self.held: dict[int, _Kept] = {}
        self.wake = anyio.Event()

    def notify(self) -> None:
        self.wake.set()
        self.wake = anyio.Event()

    def state(self, queue: str, priority: int) -> LaneState:
        # As a server counts: what was released, or taken by somebody who died, was taken.
        left = [kept.deliveries > 0 for kept in self.waiting if not kept.acked]
        limit = None if self.limit == math.inf else int(self.limit)
        return LaneState(queue, priority, left.count(False), len(self.held) + left.count(True), limit)


class MemoryServer:
    """The streams, buckets and objects that the connections of one process share."""

    def __init__(self, prefix: str = "evpipe", *, results: ResultStore | None = None) -> None:
        """Begin empty.

        Args:
            results: where results of cached steps are kept for other runs; None: they are not.
        """
        self.subjects = Subjects(prefix)
        self._log = MemoryStream(self.subjects.all_events)
        self.records = self._log.records
        self._last_by_subject: dict[str, int] = {}
        self.telemetry = MemoryStream(self.subjects.all_telemetry, bytes_max=TELEMETRY_BYTES_MAX)
        self.signals = MemoryStream(self.subjects.all_signals, bytes_max=SIGNALS_BYTES_MAX)
        self.launches: dict[str, _Kept] = {}
        self.launch_sequence = 0
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self.queue_limits: dict[str, int] = {}
        self.buckets: dict[str, dict[str, tuple[Entry, float | None]]] = {}
        self.revision = 0
        self.objects: dict[str, bytes] = {}
        #: Objects that came with results of other runs.
        self.object_files: dict[str, Path] = {}
        self.behind = None if results is None else KeptBehind(self, results)
        #: Of each object, the revision and the moment of its description.
        self._described: dict[str, tuple[int, float]] = {}
        #: Past it objects wait for room.
        self.objects_bytes_max: float = math.inf
        self.listeners: dict[int, tuple[str, Answer]] = {}
        self._epoch: tuple[float, float] | None = None

    def now_s(self) -> float:
        """The server's clock: seconds since 1970, running with the event loop's (so a virtual one moves it)."""
        if self._epoch is None:
            self._epoch = (time.time(), anyio.current_time())
        return self._epoch[0] + anyio.current_time() - self._epoch[1]

    def store(self, subject: str, payload: bytes, expected: int | None) -> Outcome:
        """Take a message into the stream that its subject belongs to."""
        if subject.startswith(f"{self.subjects.prefix}.queue."):
            return self.launch(subject, payload)
        if subject.startswith(f"{self.subjects.prefix}.signal."):
            return Stored(self.signals.append(subject, payload, self.now_s()))
        return self.append(subject, payload, expected)

    # ---- the log

    def append(self, subject: str, payload: bytes, expected: int | None) -> Outcome:
        last = self._last_by_subject.get(subject, 0)
        if expected is not None and expected != last:
            return Refused.SEQUENCE
        sequence = self._log.append(subject, payload, self.now_s())
        self._last_by_subject[subject] = sequence
        return Stored(sequence)

    def last(self, pattern: str) -> Record | None:
        if "*" not in pattern and ">" not in pattern:
            sequence = self._last_by_subject.get(pattern)
            return self.records[sequence - 1] if sequence else None
        return next((r for r in reversed(self.records) if matches(pattern, r.subject)), None)

    async def read(self, patterns: Sequence[str], after: int) -> tuple[list[Record], int]:
        """Wait for records past `after`; give those that match, and how far was read."""
        return await self._log.read(patterns, after)

    # ---- the queue

    def launch(self, subject: str, payload: bytes) -> Outcome:
        if subject in self.launches:
            return Refused.LAUNCHED
        # As a server does it, which takes whatever the stream's subjects match and gives it to whose filter does.
        tokens = subject.split(".")
        legal = len(tokens) > 4 and tokens[3].isdecimal()
        self.launch_sequence += 1
        kept = _Kept(self.launch_sequence, subject, payload, (tokens[2], int(tokens[3])) if legal else ("", 0))
        self.launches[subject] = kept
        lane = self.lane(kept.lane)
        lane.waiting.append(kept)
        lane.notify()
        return Stored(kept.sequence)

    def lane(self, key: tuple[str, int]) -> _Lane:
        if key not in self._lanes:
            self._lanes[key] = _Lane()
            self._lanes[key].limit = self.queue_limits.get(key[0], math.inf)
        return self._lanes[key]

    def lane_states(self) -> list[LaneState]:
        return [lane.state(*key) for key, lane in sorted(self._lanes.items()) if lane.pulled]

    def remove(self, gone: Callable[[_Kept], bool]) -> None:
        for kept in [kept for kept in self.launches.values() if gone(kept)]:
            del self.launches[kept.subject]
            kept.acked = True
            lane = self.lane(kept.lane)
            lane.held.pop(kept.sequence, None)

    def forget_acks(self) -> None:
        """Behave like a server that was killed: what was acked lately is given again, as if it were fresh."""
        for kept in self.launches.values():
            lane = self.lane(kept.lane)
            lane.held.pop(kept.sequence, None)
            if kept not in lane.waiting:
                lane.waiting.append(kept)
            kept.acked, kept.deliveries, kept.expires_at = False, 0, None
            lane.notify()

    # ---- objects

    @property
    def objects_bytes(self) -> int:
        return sum(map(len, self.objects.values()))

    def describe_object(self, digest: str) -> None:
        self.revision += 1
        self._described[digest] = (self.revision, self.now_s())

    def object_entry(self, digest: str) -> ObjectEntry | None:
        if digest in self.objects:
            size_bytes = len(self.objects[digest])
        elif digest in self.object_files:
            size_bytes = self.object_files[digest].stat().st_size
        else:
            return None
        if digest not in self._described:
            # Somebody has put it here by hand.
            self.describe_object(digest)
        revision, at_s = self._described[digest]
        return ObjectEntry(digest, size_bytes, at_s, revision)

    def remove_object(self, digest: str) -> None:
        self.objects.pop(digest, None)
        self.object_files.pop(digest, None)
        self._described.pop(digest, None)


class MemoryDelivery:
    """See `bus.protocol.Delivery`."""

    __slots__ = ("_bus", "_kept", "_lane", "arrived_at", "examine_at", "payload", "redelivered", "subject")

    def __init__(self, bus: MemoryBus, lane: _Lane, kept: _Kept, *, redelivered: bool) -> None:
        self._bus = bus
        self._lane = lane
        self._kept = kept
        self.subject = kept.subject
        self.payload = kept.payload
        self.redelivered = redelivered
        self.arrived_at = anyio.current_time()
        self.examine_at = bus.examine_at

    def ack(self) -> None:
        if not self._bus.connected:
            return
        self._kept.acked = True
        self._kept.expires_at = None
        if self._lane.held.pop(self._kept.sequence, None) is not None and self._lane.waiting:
            self._lane.notify()

    def extend(self) -> None:
        # As the real server does: a sign of life on an old delivery keeps the launch where it is.
        if self._bus.connected and self._kept.sequence in self._lane.held:
            self._kept.expires_at = anyio.current_time() + ACK_WAIT_S

    def release(self) -> None:
        if self._bus.connected and self._lane.held.pop(self._kept.sequence, None) is not None:
            self._kept.expires_at = None
            self._lane.waiting.appendleft(self._kept)
            self._lane.notify()


class MemoryPull:
    """See `bus.protocol.Pull`."""

    def __init__(self, bus: MemoryBus, lane: _Lane, deliver: Callable[[Delivery], None]) -> None:
        self.asked = 0
        #: As the bus's: what lay in the queue when this pull was opened may have been given before.
        self._noted_sequence = bus.server.launch_sequence
        self._bus = bus
        self._lane = lane
        self._deliver = deliver

    def ask(self, count: int) -> None:
        self.asked += count
        self._lane.notify()

    async def run(self) -> None:
        lane = self._lane
        while True:
            wake = lane.wake
            now = anyio.current_time()
            for kept in [k for k in lane.held.values() if k.expires_at is not None and k.expires_at <= now]:
                del lane.held[kept.sequence]
                lane.waiting.append(kept)
            while self.asked and lane.waiting and len(lane.held) < lane.limit and self._bus.connected:
                kept = lane.waiting.popleft()
                if kept.acked:
                    continue
                self.asked -= 1
                kept.deliveries += 1
                kept.expires_at = anyio.current_time() + ACK_WAIT_S
                lane.held[kept.sequence] = kept
                noted_sequence = max(self._noted_sequence, self._bus.noted_sequence)
                redelivered = kept.deliveries > 1 or kept.sequence <= noted_sequence
                self._deliver(MemoryDelivery(self._bus, lane, kept, redelivered=redelivered))
            waits = [k.expires_at for k in lane.held.values() if k.expires_at is not None]
            with anyio.move_on_at(min(waits)) if waits else anyio.CancelScope():
                await wake.wait()


class MemoryBucket:
    """See `bus.protocol.Bucket`."""

    def __init__(self, bus: MemoryBus, name: str) -> None:
        self._bus = bus
        self._server = bus.server
        self._name = name
        self._behind = bus.server.behind if name == CACHE else None

    def _all(self) -> dict[str, tuple[Entry, float | None]]:
        return self._server.buckets.setdefault(self._name, {})

    def _find(self, key: str) -> Entry | None:
        """Give an entry if its time is not over; it costs no more where the bucket has very many."""
        entries = self._all()
        entry, gone_at = entries.get(key, (None, None))
        if gone_at is not None and gone_at <= anyio.current_time():
            del entries[key]
            return None
        return entry

    async def _found(self, key: str) -> Entry | None:
        """As `_find`, also behind it: what is found there is here from then on."""
        found = self._find(key)
        if found is not None or self._behind is None:
            return found
        kept = await self._behind.get(key)
        # Others may have written meanwhile.
        found = self._find(key)
        if found is None and kept is not None:
            self._server.revision += 1
            found = Entry(key, kept.value, self._server.revision, kept.at_s)
            self._all()[key] = (found, None)
        return found

    async def get(self, key: str) -> Entry | None:
        await self._bus.reach()
        return await self._found(key)

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        await self._bus.reach()
        found = self._find(key) if expected is None else await self._found(key)
        if expected is not None and expected != (found.revision if found else 0):
            return None
        self._server.revision += 1
        entry = Entry(key, value, self._server.revision, self._server.now_s())
        entries = self._all()
        entries.pop(key, None)
        entries[key] = (entry, anyio.current_time() + ttl_s if ttl_s is not None else None)
        if self._behind is not None:
            await self._behind.put(key, value)
        return entry.revision

    async def delete(self, key: str) -> None:
        await self._bus.reach()
        self._all().pop(key, None)
        if self._behind is not None:
            await self._behind.delete(key)

    async def entries(self, under: str = "") -> list[Entry]:
        await self._bus.reach()
        found = [entry for key in list(self._all()) if (entry := self._find(key)) is not None]
        found = [entry for entry in found if not under or f"{entry.key}.".startswith(f"{under}.")]
        if self._behind is not None:
            here = {entry.key for entry in found}
            kept = [one for one in await self._behind.entries(under) if one.key not in here]
            # Of other runs, so before all that was written here.
            found = [Entry(one.key, one.value, 0, one.at_s) for one in kept] + found
        return found


class MemoryObjects:
    """See `bus.protocol.Objects`. The loop itself reads and writes files: threads know no virtual time."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._server = bus.server

    async def put(self, digest: str, data: bytes) -> None:
        await self._put(digest, BytesSource(data))

    async def put_file(self, digest: str, file: Path) -> None:
        with FileSource(file) as source:
            await self._put(digest, source)

    async def _put(self, digest: str, source: Source) -> None:
        await self._bus.reach()
        found = await self.find(digest)
        if found is None or found.size_bytes != source.size_bytes:
            parts = []
            while part := source.read(PIECE_BYTES):
                parts.append(part)
                await self._bus.reach()
            source.check(digest)
            await self._wait_for_room(source.size_bytes)
            self._server.objects[digest] = b"".join(parts)
        elif self._server.now_s() - found.at_s < YOUNG_S:
            return
        self._server.describe_object(digest)

    async def _wait_for_room(self, size_bytes: int) -> None:
        end = anyio.current_time() + FULL_S
        while self._server.objects_bytes + size_bytes > self._server.objects_bytes_max:
            if anyio.current_time() >= end:
                raise BusRefused(
                    f"the object store is full ({self._server.objects_bytes:,} of {self._server.objects_bytes_max:,} "
                    f"bytes) for {FULL_S:g} s: `evpipe gc` frees space"
                )
            await anyio.sleep(BACKOFF_S)
            await self._bus.reach()

    async def get(self, digest: str) -> bytes | None:
        sink = BytesSink()
        return sink.data if await self._read(digest, sink) else None

    async def get_file(self, digest: str, file: Path) -> bool:
        if await self.find(digest) is None:
            return False
        with FileSink(file) as sink:
            whole = await self._read(digest, sink)
            if whole:
                sink.keep()
        return whole

    async def intact(self, digest: str) -> bool:
        return await self._read(digest, HashSink())

    async def _read(self, digest: str, sink: Sink) -> bool:
        """Give an object's bytes to a sink; says whether they are what its digest says. If not, it is removed."""
        await self._bus.reach()
        data = self._server.objects.get(digest)
        if data is None:
            return await self._read_file(digest, sink)
        for begin in range(0, len(data), PIECE_BYTES):
            sink.take([data[begin : begin + PIECE_BYTES]])
            await self._bus.reach()
        if sink.digest != digest:
            if self._server.objects.get(digest) is data:
                self._server.remove_object(digest)
            return False
        return True

    async def _read_file(self, digest: str, sink: Sink) -> bool:
        file = self._server.object_files.get(digest)
        if file is None:
            return False
        with FileSource(file) as source:
            while part := source.read(PIECE_BYTES):
                sink.take([part])
                await self._bus.reach()
        if sink.digest != digest:
            self._server.remove_object(digest)
        return sink.digest == digest

    async def find(self, digest: str) -> ObjectEntry | None:
        await self._bus.reach()
        return self._server.object_entry(digest)

    async def remove(self, digest: str, *, revision: int | None = None) -> bool:
        found = await self.find(digest)
        if found is None or (revision is not None and found.revision != revision):
            return False
        self._server.remove_object(digest)
        return True

    async def entries(self) -> list[ObjectEntry]:
        await self._bus.reach()
        found = [self._server.object_entry(digest) for digest in {**self._server.objects, **self._server.object_files}]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.revision)

    async def remove_orphans(self, *, before_s: float) -> int:
        # What is put is here when all of it is.
        await self._bus.reach()
        return 0


class MemoryTelemetry:
    """See `bus.protocol.Telemetry`."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._stream = bus.server.telemetry

    def tell(self, subject: str, payload: bytes) -> None:
        bus = self._bus
        if not bus.connected or len(payload) > PAYLOAD_BYTES_MAX:
            return
        fault = bus.fault(Message(subject, payload, None, None, None)) if bus.fault is not None else None
        # Whether a reply gets lost is all the same: nobody asks for one.
        if fault in (None, Fault.STORED_SILENTLY):
            self._stream.append(subject, payload, bus.server.now_s())

    async def last_sequence(self) -> int:
        await self._bus.reach()
        return self._stream.last_sequence

    async def last(self, subject: str) -> Record | None:
        await self._bus.reach()
        return next((record for record in reversed(self._stream.records) if record.subject == subject), None)

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return replayed(self._stream.read, self._bus.reach, subjects, after, up_to, since_s)

    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        yield MemoryFeed(self._stream.read, self._bus.reach, subjects, after, since_s or 0.0)


class MemorySignals:
    """See `bus.protocol.Signals`."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._stream = bus.server.signals

    async def send(self, subject: str, payload: bytes) -> int:
        outcome = await self._bus.append_wait(subject, payload)
        assert isinstance(outcome, Stored), "nothing was expected of its subject"
        return outcome.sequence

    async def last_sequence(self) -> int:
        await self._bus.reach()
        return self._stream.last_sequence

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return replayed(self._stream.read, self._bus.reach, subjects, after, up_to, since_s)

    @asynccontextmanager
    async def follow(self, subjects: Sequence[str], *, after: int = 0) -> AsyncIterator[AsyncIterator[list[Record]]]:
        yield MemoryFeed(self._stream.read, self._bus.reach, subjects, after)


class MemoryBus:
    """A connection to a `MemoryServer`; see `bus.protocol.Bus`.

    Args:
        server: what it connects to; a new one if there is none.
        fault: asked for each message that is sent, what becomes of it; None: it arrives.
    """

    def __init__(
        self, server: MemoryServer | None = None, *, fault: Callable[[Message], Fault | None] | None = None
    ) -> None:
        self.server = server or MemoryServer()
        self.subjects = self.server.subjects
        self.fault = fault
        self.in_process = True
        self.connected = True
        self.examine_at = -math.inf
        self._reached = anyio.Event()
        #: The queue's last sequence when this connection was made: launches up to it may have been given before.
        self.noted_sequence = self.server.launch_sequence
        self._outbox = Outbox(self._send)
        self._stack = AsyncExitStack()
        self._listener = 0
        self._task_group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        task_group = self._task_group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(task_group.cancel_scope.cancel)
        task_group.start_soon(self._outbox.run, task_group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outbox.close()
        await self._stack.__aexit__(None, None, None)

    # ---- the connection, for tests

    def disconnect(self) -> None:
        """Lose the connection: nothing arrives in either direction."""
        self.connected = False

    def reconnect(self) -> None:
        """Come back: note where the queue is, send what is unanswered again."""
        self.connected = True
        self.examine_at = anyio.current_time() + SETTLE_S
        self._reached.set()
        self._reached = anyio.Event()
        self.noted_sequence = self.server.launch_sequence
        self._outbox.reconnected()
        for lane in list(self.server._lanes.values()):
            lane.notify()

    async def reach(self) -> None:
        """Wait until there is a connection, as every question to a server does."""
        await anyio.lowlevel.checkpoint()
        while not self.connected:
            await self._reached.wait()

    async def _send(self, token: int, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.connected:
            return
        fault = self.fault(message) if self.fault is not None else None
        if fault is Fault.LOST:
            return
        if fault is Fault.FULL:
            self._outbox.answered(token, Verdict.LATER)
            return
        expected = (message.headers or {}).get("expected")
        outcome = self.server.store(message.subject, message.payload, int(expected) if expected else None)
        if fault is not Fault.STORED_SILENTLY:
            self._outbox.answered(token, outcome)

    # ---- Bus

    def append(self, subject: str, payload: bytes, *, expected: int | None = None, done: Done | None = None) -> Sending:
        return self._outbox.put(subject, payload, headers=_headers(expected), done=done)

    async def append_wait(self, subject: str, payload: bytes, *, expected: int | None = None) -> Outcome:
        return await self._outbox.put_wait(subject, payload, headers=_headers(expected))

    async def last_sequence(self) -> int:
        await self.reach()
        return len(self.server.records)

    async def last(self, subject: str) -> Record | None:
        await self.reach()
        return self.server.last(subject)

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return replayed(self.server.read, self.reach, subjects, after, up_to, since_s)

    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        # Closed here, in the task that reads it: left to the garbage collector it would end in another.
        async with aclosing(self._follow(subjects, after, since_s or 0.0)) as feed:
            yield feed

    def _follow(
        self, subjects: Sequence[str], after: int, since_s: float
    ) -> MemoryFeed | AsyncGenerator[list[Record], None]:
        return MemoryFeed(self.server.read, self.reach, subjects, after, since_s)

    def launch(self, subject: str, payload: bytes, *, done: Done | None = None) -> Sending:
        return self._outbox.put(subject, payload, done=done)

    @asynccontextmanager
    async def pull(
        self, queue: str, priority: int, deliver: Callable[[Delivery], None], *, transient: bool = False
    ) -> AsyncIterator[Pull]:
        lane = self.server.lane((queue, priority))
        lane.pulled = True
        pull = MemoryPull(self, lane, deliver)
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await pull.run()

        assert self._task_group is not None
        self._task_group.start_soon(run)
        try:
            yield pull
        finally:
            scope.cancel()

    async def drop_launches(self, run: str) -> None:
        await self.reach()
        pattern = self.subjects.launches_of_run(run)
        self.server.remove(lambda kept: matches(pattern, kept.subject))

    async def last_launch_sequence(self) -> int:
        await self.reach()
        return self.server.launch_sequence

    async def first_launch_of(self, run: str) -> int | None:
        await self.reach()
        pattern = self.subjects.launches_of_run(run)
        return min((k.sequence for k in self.server.launches.values() if matches(pattern, k.subject)), default=None)

    async def truncate_launches(self, before: int) -> None:
        await self.reach()
        self.server.remove(lambda kept: kept.sequence < before)

    async def lanes(self) -> list[LaneState]:
        await self.reach()
        return self.server.lane_states()

    async def limit_queue(self, queue: str, limit: int | None) -> None:
        await self.reach()
        if limit is None:
            self.server.queue_limits.pop(queue, None)
        else:
            self.server.queue_limits[queue] = check_queue_limit(limit)
        for (name, _), lane in self.server._lanes.items():
            if name == queue:
                lane.limit = limit or math.inf
                lane.notify()

    async def queue_limits(self) -> dict[str, int]:
        await self.reach()
        return dict(self.server.queue_limits)

    def bucket(self, name: str) -> Bucket:
        return MemoryBucket(self, name)

    @property
    def objects(self) -> Objects:
        return MemoryObjects(self)

    @property
    def telemetry(self) -> Telemetry:
        return MemoryTelemetry(self)

    @property
    def signals(self) -> Signals:
        return MemorySignals(self)

    def signal(self, subject: str, payload: bytes) -> None:
        if self.connected:
            for pattern, answer in list(self.server.listeners.values()):
                if matches(pattern, subject):
                    answer(subject, payload)

    @asynccontextmanager
    async def listen(self, subject: str, answer: Answer) -> AsyncIterator[None]:
        self._listener += 1
        key = id(self) + self._listener
        self.server.listeners[key] = (subject, lambda s, p: answer(s, p) if self.connected else None)
        try:
            yield
        finally:
            del self.server.listeners[key]

    async def ask(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        if self.connected:
            for pattern, answer in list(self.server.listeners.values()):
                if matches(pattern, subject):
                    found = answer(subject, payload)
                    if found is not None:
                        return found
        await anyio.sleep(timeout_s)
        return None

    async def info(self) -> BusInfo:
        await anyio.lowlevel.checkpoint()
        if not self.connected:
            raise BusClosed("the memory bus is disconnected")
        return BusInfo(url="memory", server_version="memory")


def _headers(expected: int | None) -> dict[str, str] | None:
    return None if expected is None else {"expected": str(expected)}
