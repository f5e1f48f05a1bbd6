"""The bus on a NATS server with JetStream."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, Self

import anyio
import structlog
from anyio.abc import TaskGroup
from nats.aio.msg import Msg

from evpipe.bus.nats.buckets import EXPECTED, NatsBucket, last_message, read_up_to
from evpipe.bus.nats.connection import NO_LEADER, ApiError, Connection, NotAnswered, checked
from evpipe.bus.nats.feed import BATCH, BUFFER_MAX, Feed
from evpipe.bus.nats.lane import Lane, lane_states, limit_lanes
from evpipe.bus.nats.objects import NatsObjects
from evpipe.bus.nats.provision import StreamNames, check_jetstream, provision
from evpipe.bus.nats.signals import NatsSignals
from evpipe.bus.nats.telemetry import NatsTelemetry
from evpipe.bus.nats.upload import Pace
from evpipe.bus.outbox import Fatal, Message, Outbox, Verdict
from evpipe.bus.protocol import (
    Answer,
    Bucket,
    BusInfo,
    Delivery,
    Done,
    Entry,
    LaneState,
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
from evpipe.bus.settings import BusSettings
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.config import BUCKET as CONFIG_BUCKET
from evpipe.wire.config import check_queue_limit, decode_queue_config, encode_queue_config, queue_key
from evpipe.wire.subjects import Subjects

log = structlog.get_logger(__name__)

#: The usual answer to a publish, read without parsing it all.
ACK: Final = re.compile(rb'\{"stream":"[^"]*",\s*"seq":(\d+)\}')
#: "wrong last sequence", on one server and in a cluster; "wrong last sequence" in a batch.
WRONG_SEQUENCE: Final = frozenset({10071, 10164})
#: Two meanings in one code: the subject is taken, or the stream is full. Only the description tells.
STORE_FAILED: Final = 10077
#: Out of resources, which passes as well.
UNAVAILABLE: Final = NO_LEADER | {10023}
#: "insufficient storage resources": of the server, or of this user's account.
NO_STORAGE: Final = frozenset({10002, 10047})
#: A message with this id is just being stored: in a moment it is a duplicate.
DUPLICATE_UNDER_WAY: Final = 10158
REPROVISION_EVERY_S: Final = 1.0
#: Chunks of an object that may wait to be written when more are asked for.
CHUNKS_WAITING: Final = 4


class NatsBus:
    """A connection to an installation; see `bus.protocol.Bus`. Enter it before use."""

    def __init__(self, settings: BusSettings) -> None:
        if settings.url is None:
            raise UsageError("a NatsBus needs the URL of a server")
        self.settings = settings
        self.subjects = Subjects(settings.prefix)
        self.in_process = False
        self._names = StreamNames.of(settings.prefix)
        self._connection = Connection(settings)
        self._outbox = Outbox(self._send)
        self._acks = f"{self._connection.inbox}.ack."
        # Buckets and objects have an outbox of their own: a lease must not wait behind ten thousand launches.
        self._side_outbox = Outbox(self._send_aside)
        self._side_acks = f"{self._connection.inbox}.side."
        # And the bytes of objects have one, because neither must wait behind a gigabyte.
        self._chunk_outbox = Outbox(self._send_chunk)
        self._chunk_acks = f"{self._connection.inbox}.chunk."
        self._pace = Pace(self._chunk_outbox)
        self._stack = AsyncExitStack()
        self._missing = anyio.Event()
        self._task_group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        await self._connection.open()
        self._connection.add_part(self._run_outbox)
        task_group = self._task_group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(task_group.cancel_scope.cancel)
        try:
            for acks, answered in (
                (self._acks, self._answered),
                (self._side_acks, self._answered_aside),
                (self._chunk_acks, self._answered_chunk),
            ):
                await self._stack.enter_async_context(self._connection.subscribed(f"{acks}*", answered))
            task_group.start_soon(self._connection.run)
            await self._connection.wait_ready()
            await check_jetstream(self._connection)
            await provision(self._connection, self.subjects, self.settings.replicas)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        task_group.start_soon(self._provision_what_is_missing)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for outbox in (self._outbox, self._side_outbox, self._chunk_outbox):
            outbox.close()
        with anyio.CancelScope(shield=True):
            await self._connection.close()
        await self._stack.__aexit__(None, None, None)

    def relocate(self, settings: BusSettings) -> None:
        """Find the server at another address from the next connection on."""
        self._connection.relocate(settings)

    @property
    def connected(self) -> bool:
        return self._connection.connected

    # ---- publishing

    async def _run_outbox(self, task_group: TaskGroup) -> None:
        for outbox in (self._side_outbox, self._chunk_outbox):
            outbox.reconnected()
            task_group.start_soon(outbox.run, task_group)
        self._outbox.reconnected()
        await self._outbox.run(task_group)

    async def _send(self, token: int, message: Message) -> None:
        self._connection.send(message.subject, message.payload, f"{self._acks}{token}", message.headers)

    async def _send_aside(self, token: int, message: Message) -> None:
        self._connection.send(message.subject, message.payload, f"{self._side_acks}{token}", message.headers)

    async def _send_chunk(self, token: int, message: Message) -> None:
        self._connection.send(message.subject, message.payload, f"{self._chunk_acks}{token}", message.headers)

    def _answered(self, message: Msg) -> None:
        self._settle(self._outbox, int(message.subject[len(self._acks) :]), message.data)

    def _answered_aside(self, message: Msg) -> None:
        self._settle(self._side_outbox, int(message.subject[len(self._side_acks) :]), message.data)

    def _answered_chunk(self, message: Msg) -> None:
        self._settle(self._chunk_outbox, int(message.subject[len(self._chunk_acks) :]), message.data)

    def _settle(self, outbox: Outbox, token: int, data: bytes) -> None:
        """Take the server's answer to a publish."""
        if not data:
            # No responders: the stream is not there (yet, or any more).
            self._missing_stream()
            outbox.answered(token, Verdict.LATER)
            return
        found = ACK.match(data)
        if found is not None:
            outbox.answered(token, Stored(int(found[1])))
            return
        answer: dict[str, Any] = json.loads(data)
        error = answer.get("error")
        outbox.answered(token, _verdict(error) if error else Stored(int(answer["seq"])))

    def append(self, subject: str, payload: bytes, *, expected: int | None = None, done: Done | None = None) -> Sending:
        return self._outbox.put(checked(subject), payload, headers=_headers(expected), done=done)

    async def append_wait(self, subject: str, payload: bytes, *, expected: int | None = None) -> Outcome:
        return await self._outbox.put_wait(checked(subject), payload, headers=_headers(expected))

    def launch(self, subject: str, payload: bytes, *, done: Done | None = None) -> Sending:
        return self._outbox.put(checked(subject), payload, done=done)

    def _missing_stream(self) -> None:
        self._missing.set()

    async def _provision_what_is_missing(self) -> None:
        """Make streams again that somebody removed under us; what was published meanwhile is sent again."""
        while True:
            await self._missing.wait()
            self._missing = anyio.Event()
            try:
                await provision(self._connection, self.subjects, self.settings.replicas)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may fare better
                log.warning("provision_failed", error=str(error))
            await anyio.sleep(REPROVISION_EVERY_S)

    # ---- reading the log

    async def last_sequence(self) -> int:
        info = await self._connection.api_patiently(f"STREAM.INFO.{self._names.log}")
        return int(info["state"]["last_seq"])

    async def last(self, subject: str) -> Record | None:
        found = await last_message(self._connection, self._names.log, subject)
        return found[0] if found else None

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return read_up_to(self._open_feed, self._names.log, list(subjects), after, up_to, since_s)

    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        async with self._open_feed(self._names.log, list(subjects), after, since_s) as feed:
            yield feed

    @asynccontextmanager
    async def _open_feed(
        self,
        stream: str,
        subjects: list[str],
        after: int,
        since_s: float | None = None,
        batch: int = BATCH,
        buffer_max: int = BUFFER_MAX,
    ) -> AsyncIterator[Feed]:
        feed = Feed(
            self._connection, stream, subjects, after=after, since_s=since_s, batch=batch, buffer_max=buffer_max
        )
        with self._running(feed.run):
            try:
                yield feed
            finally:
                feed.forget()

    def _open_narrow_feed(
        self, stream: str, subjects: list[str], after: int, since_s: float | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Open a feed of large messages: few wait for their reader, who says how many are to be on their way."""
        return self._open_feed(stream, subjects, after, since_s, batch=1, buffer_max=CHUNKS_WAITING)

    @contextmanager
    def _running(self, part: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
        """Run something beside the caller, in the bus's own task group.

        Not in one of the caller's: a subscription is often an async generator that its user leaves early, and
        such a generator is closed later, in another task, where a task group may not be left.
        """
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await part()

        assert self._task_group is not None
        self._task_group.start_soon(run)
        try:
            yield
        finally:
            scope.cancel()

    # ---- the queue

    @asynccontextmanager
    async def pull(
        self, queue: str, priority: int, deliver: Callable[[Delivery], None], *, transient: bool = False
    ) -> AsyncIterator[Pull]:
        subject = self.subjects.launches_of_lane(queue, priority)

        async def limit() -> int | None:
            return await self._queue_limit(queue)

        lane = Lane(
            self._connection, self._names.queue, queue, priority, subject, deliver, transient=transient, limit=limit
        )
        with self._running(lane.run):
            await lane.opened.wait()
            yield lane

    async def drop_launches(self, run: str) -> None:
        await self._purge({"filter": self.subjects.launches_of_run(run)})

    async def last_launch_sequence(self) -> int:
        info = await self._connection.api_patiently(f"STREAM.INFO.{self._names.queue}")
        return int(info["state"]["last_seq"])

    async def first_launch_of(self, run: str) -> int | None:
        body = {"next_by_subj": self.subjects.launches_of_run(run), "seq": 1}
        try:
            found = await self._connection.api_patiently(f"STREAM.MSG.GET.{self._names.queue}", body)
        except ApiError:
            return None
        return int(found["message"]["seq"])

    async def truncate_launches(self, before: int) -> None:
        if before > 1:
            await self._purge({"seq": before})

    async def _purge(self, what: dict[str, Any]) -> None:
        await self._connection.api_patiently(f"STREAM.PURGE.{self._names.queue}", what)

    # ---- the rest

    async def lanes(self) -> list[LaneState]:
        return await lane_states(self._connection, self._names.queue, self.subjects)

    async def limit_queue(self, queue: str, limit: int | None) -> None:
        settings = self.bucket(CONFIG_BUCKET)
        if limit is None:
            await settings.delete(queue_key(queue))
        else:
            # First: whoever makes a consumer of the queue from now on reads it.
            await settings.put(queue_key(queue), encode_queue_config(check_queue_limit(limit)))
        await limit_lanes(self._connection, self._names.queue, queue, limit)

    async def queue_limits(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in await self.bucket(CONFIG_BUCKET).entries("queue"):
            limit = _limit_of(entry)
            if limit is not None:
                found[entry.key.partition(".")[2]] = limit
        return found

    async def _queue_limit(self, queue: str) -> int | None:
        entry = await self.bucket(CONFIG_BUCKET).get(queue_key(queue))
        return None if entry is None else _limit_of(entry)

    def bucket(self, name: str) -> Bucket:
        async def provision_again() -> None:
            await provision(self._connection, self.subjects, self.settings.replicas)

        return NatsBucket(
            self._connection, self._side_outbox, self._names.bucket(name), provision_again, self._open_feed
        )

    @property
    def objects(self) -> Objects:
        return NatsObjects(self._connection, self._pace, self._names.objects, self._open_feed, self._open_narrow_feed)

    @property
    def telemetry(self) -> Telemetry:
        return NatsTelemetry(self._connection, self._names.telemetry, self._missing_stream, self._open_feed)

    @property
    def signals(self) -> Signals:
        return NatsSignals(
            self._connection, self._side_outbox, self._names.signals, self._missing_stream, self._open_feed
        )

    def signal(self, subject: str, payload: bytes) -> None:
        self._connection.post(checked(subject), payload)

    @asynccontextmanager
    async def listen(self, subject: str, answer: Answer) -> AsyncIterator[None]:
        def received(message: Msg) -> None:
            found = answer(message.subject, message.data)
            if found is not None and message.reply:
                self._connection.post(message.reply, found)

        async with self._connection.subscribed(subject, received):
            yield

    async def ask(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes | None:
        started_at = anyio.current_time()
        try:
            return (await self._connection.request(checked(subject), payload, timeout_s=timeout_s)).data
        except NotAnswered:
            # "Nobody listens" is known at once, but the asker's patience is part of the question: who answers may
            # be about to come back.
            await anyio.sleep(max(0.0, timeout_s - (anyio.current_time() - started_at)))
            return None

    async def info(self) -> BusInfo:
        account = await self._connection.api("INFO")
        notes = [f"JetStream: {account.get('streams', 0)} streams, {account.get('storage', 0):,} bytes stored"]
        for name in (self._names.log, self._names.queue):
            state = await self._connection.api(f"STREAM.INFO.{name}")
            limit = state["config"].get("max_bytes", -1)
            found = state["state"]
            notes.append(f"stream {name}: {found['messages']:,} messages, {found['bytes']:,} of {limit:,} bytes")
        return BusInfo(url=self._connection.url, server_version=self._connection.server_version, notes=tuple(notes))

    def statistics(self) -> dict[str, int]:
        return self._outbox.statistics()


def _limit_of(entry: Entry) -> int | None:
    try:
        return decode_queue_config(entry.value)
    except RemoteProtocolError as error:
        log.warning("setting_quarantined", key=entry.key, reason=str(error))
        return None


def _verdict(error: dict[str, Any]) -> Outcome | Verdict | Fatal:
    code = int(error.get("err_code", error.get("code", 0)))
    text = str(error.get("description", ""))
    if code in WRONG_SEQUENCE:
        return Refused.SEQUENCE
    if code == STORE_FAILED:
        return Refused.LAUNCHED if "per subject" in text else Verdict.FULL
    if code in NO_STORAGE:
        return Verdict.FULL
    if code == DUPLICATE_UNDER_WAY or code in UNAVAILABLE or int(error.get("code", 0)) == 503:
        return Verdict.LATER
    return Fatal(f"{text} ({code})")


def _headers(expected: int | None) -> dict[str, str] | None:
    return None if expected is None else {EXPECTED: str(expected)}
