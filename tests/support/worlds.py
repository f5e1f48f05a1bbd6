"""One interface to what a bus stands on, so that one suite runs on memory and on a real nats-server.

A `World` opens connections and does to them, and to the server behind them, what really happens: replies
are lost, connections break, servers are killed, somebody deletes a consumer. Tests see only `World` and
`Bus`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import nats
from anyio.abc import TaskGroup
from nats.aio.client import Client as RawClient
from nats.aio.msg import Msg

from evpipe.bus.memory import Fault, MemoryBus, MemoryServer
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.nats.provision import BUCKETS
from evpipe.bus.outbox import Message, Verdict
from evpipe.bus.protocol import Bus, Delivery, Pull, Record
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.wire.subjects import Subjects

#: What becomes of a message that is about to leave; None: it arrives.
FaultOf: TypeAlias = Callable[[Message], Fault | None]

POLL_S = 0.01
UNTIL_S = 12.0
#: In virtual time: how long a connection to a server in memory stays lost.
OUTAGE_S = 0.5
_prefixes = itertools.count(1)


Found = TypeVar("Found")


async def until(
    condition: Callable[[], object], *, timeout_s: float | None = None, what: str = "", poll_s: float = POLL_S
) -> None:
    """Wait until a condition holds; the only waiting on the clock in these tests.

    Args:
        poll_s: 0: look at every turn of the loop, for a moment that is short. Never on virtual time, which would
            stand still.
    """
    timeout_s = UNTIL_S if timeout_s is None else timeout_s
    end = anyio.current_time() + timeout_s
    while not condition():
        if anyio.current_time() > end:
            raise AssertionError(f"not so within {timeout_s:g} s: {what or condition}")
        await anyio.sleep(poll_s)


async def until_answer(
    ask: Callable[[], Awaitable[Found | None]], *, timeout_s: float | None = None, what: str = ""
) -> Found:
    """Ask again and again until the answer is not None, and give it; for conditions that only a server knows."""
    timeout_s = UNTIL_S if timeout_s is None else timeout_s
    end = anyio.current_time() + timeout_s
    while (found := await ask()) is None:
        if anyio.current_time() > end:
            raise AssertionError(f"no answer within {timeout_s:g} s: {what or ask}")
        await anyio.sleep(POLL_S)
    return found


async def pass_time(seconds: float) -> None:
    """Let time pass where time itself is what the test is about: nothing that could be seen would end the wait.

    On memory it is virtual and costs nothing.
    """
    end = anyio.current_time() + seconds
    await until(lambda: anyio.current_time() >= end, timeout_s=seconds + UNTIL_S)


def put_off(bus: Bus) -> int:
    """How often the server told this connection to send something later, because a stream is full."""
    assert isinstance(bus, MemoryBus | NatsBus)
    return bus._outbox.statistics()["full"]


async def stays(condition: Callable[[], object], *, for_s: float, what: str = "") -> None:
    """Make sure that a condition holds for a while."""
    end = anyio.current_time() + for_s
    while anyio.current_time() < end:
        assert condition(), what or f"did not stay for {for_s:g} s"
        await anyio.sleep(POLL_S)


class Hands:
    """Deliveries that a pull gave, in the order of arrival."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.pull: Pull | None = None

    def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def ask(self, count: int) -> None:
        assert self.pull is not None
        self.pull.ask(count)

    def __len__(self) -> int:
        return len(self.deliveries)

    def __getitem__(self, i: int) -> Delivery:
        return self.deliveries[i]

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self.deliveries)

    @property
    def subjects(self) -> list[str]:
        return [delivery.subject for delivery in self.deliveries]


@asynccontextmanager
async def pulling(bus: Bus, queue: str = "default", *, ask: int = 0, priority: int = 5) -> AsyncIterator[Hands]:
    """Hold a pull of a lane open."""
    hands = Hands()
    async with bus.pull(queue, priority, hands.take) as pull:
        hands.pull = pull
        if ask:
            pull.ask(ask)
        yield hands


class Reader:
    """Records that a follow gave, in the order of arrival."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    @property
    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.records]


class World(ABC):
    """What buses stand on; `async with` it, and leave it with everything closed."""

    kind: str
    subjects: Subjects

    def __init__(self) -> None:
        self._task_group: TaskGroup | None = None
        self._closing: dict[int, tuple[anyio.Event, anyio.Event]] = {}
        self.buses: list[Bus] = []

    async def __aenter__(self) -> Self:
        self._task_group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        assert self._task_group is not None
        try:
            if error[0] is None:
                for bus in list(self.buses):
                    await self.close(bus)
        finally:
            self._task_group.cancel_scope.cancel()
            await self._task_group.__aexit__(*error)

    # ---- connections

    async def bus(self, fault: FaultOf | None = None) -> Bus:
        """Open a connection. Each lives in a task of its own, so it can be closed at any time."""
        bus = self.make_bus(fault)
        opened, closing, closed = anyio.Event(), anyio.Event(), anyio.Event()
        self._closing[id(bus)] = (closing, closed)

        async def host() -> None:
            try:
                async with bus:  # type: ignore[attr-defined]  # entering is not part of the protocol
                    opened.set()
                    await closing.wait()
            finally:
                closed.set()

        assert self._task_group is not None
        self._task_group.start_soon(host)
        await opened.wait()
        self.buses.append(bus)
        return bus

    async def close(self, bus: Bus) -> None:
        closing, closed = self._closing.pop(id(bus))
        self.buses.remove(bus)
        closing.set()
        await closed.wait()

    @asynccontextmanager
    async def following(self, bus: Bus, subjects: list[str], **options: Any) -> AsyncIterator[Reader]:
        """Follow the log beside the test."""
        reader = Reader()

        async def read() -> None:
            async with bus.follow(subjects, **options) as feed:
                async for records in feed:
                    assert records, "a batch is never empty"
                    reader.records.extend(records)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(read)
            # The follow is open when it has been here for a turn; what is stored before that comes, too.
            await anyio.lowlevel.checkpoint()
            yield reader
            task_group.cancel_scope.cancel()

    @abstractmethod
    def make_bus(self, fault: FaultOf | None) -> Bus: ...

    @abstractmethod
    async def blink(self, bus: Bus) -> None:
        """Break one connection; it comes back."""

    # ---- the server

    @abstractmethod
    async def crash(self) -> None:
        """Kill the server with SIGKILL and start it again on the same data."""

    @abstractmethod
    async def delete_consumers(self) -> None:
        """Delete every consumer of both streams, as an operator may."""

    @abstractmethod
    async def until_acked(self, queue: str = "default", priority: int = 5) -> None:
        """Wait until the server has an ack of everything that it gave in a lane. Acks are not answered."""

    @abstractmethod
    def full(self, stream: str) -> Any:
        """While this async context is open, `log` or `queue` takes nothing more."""

    @abstractmethod
    async def delete_bucket(self, name: str) -> None: ...

    @abstractmethod
    async def damage(self, digest: str) -> None:
        """Lose a part of a stored object."""

    @abstractmethod
    async def spoil(self, digest: str) -> None:
        """Change a byte of a stored object; its size stays."""

    @abstractmethod
    async def leave_orphan(self, messages: int) -> int:
        """Leave what a put leaves that dies in the middle; gives how many messages of it stay."""

    @abstractmethod
    async def pieces(self) -> int:
        """Count the messages, or whatever it is, that hold the bytes of all objects."""

    @abstractmethod
    def break_now(self, bus: Bus) -> None:
        """Break a connection at once, from any thread; `mended` follows."""

    @abstractmethod
    async def mended(self, bus: Bus) -> None:
        """Wait until a connection that was broken is there again."""

    @abstractmethod
    def kill_now(self) -> None:
        """Kill the server at once, from any thread; `revive` follows."""

    @abstractmethod
    async def revive(self) -> None:
        """Start the server that was killed, and wait until all are connected."""

    @abstractmethod
    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish as anybody can, past everything that checks."""

    @abstractmethod
    def slip_in(self, bus: Bus, subject: str, payload: bytes) -> None:
        """Publish as anybody can, just before a message that this connection is about to send (from its fault)."""


class MemoryWorld(World):
    """In this process."""

    kind = "memory"

    def __init__(
        self,
        server: Callable[[], MemoryServer] = MemoryServer,
        bus: Callable[..., MemoryBus] = MemoryBus,
    ) -> None:
        super().__init__()
        self._make_server = server
        self._bus_class = bus

    async def __aenter__(self) -> Self:
        self.server = self._make_server()
        self.subjects = self.server.subjects
        self._full: set[str] = set()
        return await super().__aenter__()

    def make_bus(self, fault: FaultOf | None) -> Bus:
        def decide(message: Message) -> Fault | None:
            if any(message.subject.startswith(f"{self.subjects.prefix}.{name}.") for name in self._full):
                return Fault.FULL
            return fault(message) if fault is not None else None

        return self._bus_class(self.server, fault=decide)

    async def blink(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.disconnect()
        await pass_time(OUTAGE_S)
        bus.reconnect()

    async def crash(self) -> None:
        for bus in self.buses:
            assert isinstance(bus, MemoryBus)
            bus.disconnect()
        self.server.forget_acks()
        await pass_time(OUTAGE_S)
        for bus in self.buses:
            assert isinstance(bus, MemoryBus)
            bus.reconnect()

    async def delete_consumers(self) -> None:
        # Memory has no consumers; what their loss means for a lane is the same as a server that forgets.
        await self.crash()

    async def until_acked(self, queue: str = "default", priority: int = 5) -> None:
        lane = self.server.lane((queue, priority))
        await until(lambda: not lane.held, what="all is acked")

    @asynccontextmanager
    async def full(self, stream: str) -> AsyncIterator[None]:
        if stream == "objects":
            self.server.objects_bytes_max = 0
        self._full.add({"log": "event"}.get(stream, stream))
        try:
            yield
        finally:
            self._full.clear()
            self.server.objects_bytes_max = math.inf

    async def delete_bucket(self, name: str) -> None:
        self.server.buckets.pop(name, None)

    async def damage(self, digest: str) -> None:
        self.server.objects[digest] = self.server.objects[digest][:-1]

    async def spoil(self, digest: str) -> None:
        data = self.server.objects[digest]
        self.server.objects[digest] = bytes([data[0] ^ 1]) + data[1:]

    async def leave_orphan(self, messages: int) -> int:
        return 0

    async def pieces(self) -> int:
        return len(self.server.objects)

    def break_now(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.disconnect()

    async def mended(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        await pass_time(OUTAGE_S)
        bus.reconnect()

    def kill_now(self) -> None:
        for bus in self.buses:
            self.break_now(bus)
        self.server.forget_acks()

    async def revive(self) -> None:
        for bus in self.buses:
            await self.mended(bus)

    async def publish(self, subject: str, payload: bytes) -> None:
        prefix = self.subjects.prefix
        if subject.startswith((f"{prefix}.event.", f"{prefix}.queue.", f"{prefix}.signal.")):
            self.server.store(subject, payload, None)
        elif subject.startswith(f"{prefix}.telemetry."):
            self.server.telemetry.append(subject, payload, self.server.now_s())
        else:
            bus = MemoryBus(self.server)
            bus.signal(subject, payload)

    def slip_in(self, bus: Bus, subject: str, payload: bytes) -> None:
        self.server.append(subject, payload, None)


class FaultyNatsBus(NatsBus):
    """A connection on which messages and replies get lost as a test says."""

    def __init__(self, settings: BusSettings, fault: FaultOf | None) -> None:
        super().__init__(settings)
        self.fault = fault
        #: The same for the bytes and descriptions of objects.
        self.chunk_fault: FaultOf | None = None
        self._deaf: set[int] = set()
        self._deaf_to_chunks: set[int] = set()

    async def _send(self, token: int, message: Message) -> None:
        fault = self.fault(message) if self.fault is not None else None
        if fault is Fault.LOST:
            return
        if fault is Fault.FULL:
            self._outbox.answered(token, Verdict.LATER)
            return
        if fault is Fault.STORED_SILENTLY:
            self._deaf.add(token)
        await super()._send(token, message)

    def _answered(self, message: Msg) -> None:
        token = int(message.subject.rpartition(".")[2])
        if token in self._deaf:
            # Only the first reply is lost; the repetition is answered.
            self._deaf.discard(token)
            return
        super()._answered(message)

    async def _send_chunk(self, token: int, message: Message) -> None:
        fault = self.chunk_fault(message) if self.chunk_fault is not None else None
        if fault is Fault.LOST:
            return
        if fault is Fault.FULL:
            self._chunk_outbox.answered(token, Verdict.FULL)
            return
        if fault is Fault.STORED_SILENTLY:
            self._deaf_to_chunks.add(token)
        await super()._send_chunk(token, message)

    def _answered_chunk(self, message: Msg) -> None:
        token = int(message.subject.rpartition(".")[2])
        if token in self._deaf_to_chunks:
            self._deaf_to_chunks.discard(token)
            return
        super()._answered_chunk(message)

    def cut(self) -> None:
        """Break the socket."""
        client = self._connection._client
        transport = getattr(getattr(client, "_transport", None), "_io_writer", None)
        if transport is not None:
            transport.transport.abort()


class NatsWorld(World):
    """On a real server; every world has a prefix of its own."""

    kind = "nats"

    def __init__(self, process: ServerProcess, bus: Callable[..., NatsBus] = FaultyNatsBus) -> None:
        super().__init__()
        self.process = process
        self._bus_class = bus
        self.prefix = f"t{os.getpid()}-{next(_prefixes)}"
        self._loop: asyncio.AbstractEventLoop | None = None
        #: How many clients a connection had had when it was broken.
        self._broken: dict[int, int] = {}
        self.subjects = Subjects(self.prefix)

    async def __aexit__(self, *error: Any) -> None:
        try:
            await super().__aexit__(*error)
        finally:
            if self.process.alive:
                with anyio.move_on_after(10, shield=True):
                    await self._remove_streams()

    async def _remove_streams(self) -> None:
        # Streams reserve their bytes: what stays would leave less for the next world.
        async with self.raw() as raw:
            for name in ("log", "queue", "telemetry", "signals"):
                await api(raw, f"STREAM.DELETE.{self.prefix}-{name}")
            await api(raw, f"STREAM.DELETE.OBJ_{self.prefix}-objects")
            for name in BUCKETS:
                await api(raw, f"STREAM.DELETE.KV_{self.prefix}-{name}")

    @property
    def settings(self) -> BusSettings:
        return BusSettings(url=self.process.url, token=self.process.token, prefix=self.prefix)

    def make_bus(self, fault: FaultOf | None) -> Bus:
        self._loop = asyncio.get_running_loop()
        return self._bus_class(self.settings, fault)

    def break_now(self, bus: Bus) -> None:
        assert isinstance(bus, FaultyNatsBus)
        assert self._loop is not None
        self._broken[id(bus)] = bus._connection.generation
        self._loop.call_soon_threadsafe(bus.cut)

    async def mended(self, bus: Bus) -> None:
        assert isinstance(bus, NatsBus)
        before = self._broken[id(bus)]
        await until(lambda: bus._connection.generation > before and bus.connected, what="reconnected")

    def kill_now(self) -> None:
        for bus in self.buses:
            assert isinstance(bus, NatsBus)
            self._broken[id(bus)] = bus._connection.generation
        self.process.kill()

    async def revive(self) -> None:
        self.process.start()
        for bus in self.buses:
            await self.mended(bus)

    async def blink(self, bus: Bus) -> None:
        assert isinstance(bus, FaultyNatsBus)
        generation = bus._connection.generation
        bus.cut()
        await until(lambda: bus._connection.generation > generation and bus.connected, what="reconnected")

    async def crash(self) -> None:
        generations = [bus._connection.generation for bus in self.buses if isinstance(bus, NatsBus)]
        self.process.kill()
        self.process.start()
        await until(
            lambda: all(
                bus.connected and bus._connection.generation > before
                for bus, before in zip(self.buses, generations, strict=True)
                if isinstance(bus, NatsBus)
            ),
            what="reconnected to the server that was killed",
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While open, the server's process is stopped: its sockets live, nothing answers."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    async def delete_consumers(self) -> None:
        async with self.raw() as raw:
            for stream in (f"{self.prefix}-log", f"{self.prefix}-queue"):
                for name in (await api(raw, f"CONSUMER.NAMES.{stream}", {})).get("consumers") or []:
                    await api(raw, f"CONSUMER.DELETE.{stream}.{name}")

    async def lane(self, raw: RawClient, queue: str = "default", priority: int = 5) -> dict[str, Any]:
        """What the server says of a lane's consumer."""
        return await api(raw, f"CONSUMER.INFO.{self.prefix}-queue.{queue}-{priority}")

    async def until_lane(
        self, is_so: Callable[[dict[str, Any]], bool], queue: str = "default", priority: int = 5
    ) -> None:
        """Wait until what the server says of a lane's consumer is as wanted."""
        info: dict[str, Any] = {}

        async def ask() -> bool | None:
            nonlocal info
            info = await self.lane(raw, queue, priority)
            return is_so(info) or None

        async with self.raw() as raw:
            try:
                await until_answer(ask)
            except AssertionError as error:
                raise AssertionError(f"{error}: {info}") from None

    async def until_acked(self, queue: str = "default", priority: int = 5) -> None:
        await self.until_lane(lambda info: info.get("num_ack_pending") == 0, queue, priority)

    @asynccontextmanager
    async def full(self, stream: str) -> AsyncIterator[None]:
        name = f"OBJ_{self.prefix}-objects" if stream == "objects" else f"{self.prefix}-{stream}"
        async with self.raw() as raw:
            config = (await api(raw, f"STREAM.INFO.{name}"))["config"]
            await api(raw, f"STREAM.UPDATE.{name}", {**config, "max_bytes": 1})
            try:
                yield
            finally:
                await api(raw, f"STREAM.UPDATE.{name}", config)

    async def delete_bucket(self, name: str) -> None:
        async with self.raw() as raw:
            await api(raw, f"STREAM.DELETE.KV_{self.prefix}-{name}")

    @property
    def object_stream(self) -> str:
        return f"OBJ_{self.prefix}-objects"

    async def chunks_of(self, raw: RawClient, digest: str) -> str:
        """Give the subject of an object's bytes."""
        name = base64.urlsafe_b64encode(digest.encode()).decode()
        which = {"last_by_subj": f"$O.{self.prefix}-objects.M.{name}"}
        found = (await api(raw, f"STREAM.MSG.GET.{self.object_stream}", which))["message"]
        return f"$O.{self.prefix}-objects.C.{json.loads(base64.b64decode(found['data']))['nuid']}"

    async def damage(self, digest: str) -> None:
        async with self.raw() as raw:
            which = {"last_by_subj": await self.chunks_of(raw, digest)}
            sequence = (await api(raw, f"STREAM.MSG.GET.{self.object_stream}", which))["message"]["seq"]
            found = await api(raw, f"STREAM.MSG.DELETE.{self.object_stream}", {"seq": sequence, "no_erase": True})
            assert found["success"]

    async def spoil(self, digest: str) -> None:
        async with self.raw() as raw:
            subject = await self.chunks_of(raw, digest)
            chunks: list[bytes] = []
            after = 0
            while "message" in (
                found := await api(
                    raw, f"STREAM.MSG.GET.{self.object_stream}", {"next_by_subj": subject, "seq": after + 1}
                )
            ):
                after = found["message"]["seq"]
                chunks.append(base64.b64decode(found["message"]["data"]))
            await api(raw, f"STREAM.PURGE.{self.object_stream}", {"filter": subject})
            chunks[0] = bytes([chunks[0][0] ^ 1]) + chunks[0][1:]
            for chunk in chunks:
                await raw.request(subject, chunk, timeout=5)

    async def leave_orphan(self, messages: int) -> int:
        async with self.raw() as raw:
            for i in range(messages):
                await raw.request(f"$O.{self.prefix}-objects.C.orphan{messages}", str(i).encode(), timeout=5)
        return messages

    async def pieces(self) -> int:
        async with self.raw() as raw:
            which = {"subjects_filter": f"$O.{self.prefix}-objects.C.>"}
            state = (await api(raw, f"STREAM.INFO.{self.object_stream}", which))["state"]
            return sum((state.get("subjects") or {}).values())

    async def consumers_of_objects(self) -> list[str]:
        async with self.raw() as raw:
            found = await api(raw, f"CONSUMER.NAMES.{self.object_stream}", {})
            return list(found.get("consumers") or [])

    async def publish(self, subject: str, payload: bytes) -> None:
        async with self.raw() as raw:
            await raw.publish(subject, payload)
            await raw.flush()

    def slip_in(self, bus: Bus, subject: str, payload: bytes) -> None:
        # What is posted is written before what is sent.
        bus.signal(subject, payload)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[RawClient]:
        """Connect with nats-py itself."""
        options = {"token": self.process.token} if self.process.token else {}
        client = await nats.connect(self.process.url, **options)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()


async def api(raw: RawClient, request: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the JetStream API itself; the answer, also where it is an error."""
    payload = json.dumps(body).encode() if body is not None else b""
    found: dict[str, Any] = json.loads((await raw.request(f"$JS.API.{request}", payload, timeout=5)).data)
    return found


def once(fault: Fault, times: int = 1) -> FaultOf:
    """Give the first messages this fault, and none to those after them."""
    left = [times]

    def decide(_: Message) -> Fault | None:
        left[0] -= 1
        return fault if left[0] >= 0 else None

    return decide


Check: TypeAlias = Callable[[World], Awaitable[None]]
