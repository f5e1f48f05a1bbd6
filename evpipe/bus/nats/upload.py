"""Putting chunks into a stream: several on their way at once, and yet each stored once and in order.

The first try sends chunks without waiting for one another. A chunk that is sent again, because its reply was lost,
has the same message id, so the server takes it for a duplicate; but one that never arrived is stored behind those
that were sent after it, and ids are remembered for two minutes only. So the sequences have to rise and the server
has to count as many messages as there are chunks; otherwise the second try sends them one by one under another
name, each with the expected last sequence of its subject, which no accident gets past.

How much is under way at once depends on how long answers take: the client's pings wait behind it, and two that are
late end the connection.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Final

import anyio
import anyio.to_thread
import structlog

from evpipe.bus.clock import loop_clock
from evpipe.bus.content import Source
from evpipe.bus.nats.buckets import EXPECTED, NO_STREAM, last_message
from evpipe.bus.nats.connection import ApiError, Connection
from evpipe.bus.outbox import BACKOFF_S, Message, Outbox
from evpipe.bus.protocol import FULL_S, Outcome, Stored
from evpipe.errors import BusError, BusRefused

log = structlog.get_logger(__name__)

#: With an fsync for each message, large ones are worth more; measured, past this nothing is gained.
CHUNK_BYTES_MAX: Final = 512 * 1024
CHUNK_BYTES_MIN: Final = 64 * 1024
#: What of the server's max_payload a chunk leaves to its headers.
HEADERS_BYTES: Final = 4 * 1024
#: Chunks of one put that are read and not answered, and of all puts of a connection that are sent.
READ_AHEAD: Final = 8
WINDOW_MAX: Final = 16
#: Answers that take less let the window grow, and those that take more make it smaller.
QUICK_S: Final = 0.25
SLOW_S: Final = 1.0
#: What a put that has failed may take to clean up; what is left then is an orphan.
CLEAN_S: Final = 3.0


async def purge(connection: Connection, stream: str, subject: str) -> int:
    """Remove what a subject has; gives how many messages."""
    try:
        found = await connection.api_patiently(f"STREAM.PURGE.{stream}", {"filter": subject})
    except ApiError as error:
        if error.code != NO_STREAM:
            raise
        return 0
    return int(found.get("purged", 0))


class Pace:
    """How much may be under way on one connection, by how long answers take."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.chunk_bytes = CHUNK_BYTES_MAX
        outbox.window = 1

    def answered_after(self, seconds: float) -> None:
        outbox = self.outbox
        if seconds < QUICK_S:
            outbox.window = min(WINDOW_MAX, outbox.window + 1)
            self.chunk_bytes = min(CHUNK_BYTES_MAX, self.chunk_bytes * 2)
        elif seconds > SLOW_S:
            if outbox.window == 1:
                self.chunk_bytes = max(CHUNK_BYTES_MIN, self.chunk_bytes // 2)
            outbox.window = max(1, outbox.window // 2)


class Parcel:
    """A message on its way, and what is known of it."""

    __slots__ = ("_sender", "error", "message", "outcome")

    def __init__(self, sender: Sender, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        self._sender = sender
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.message: Message = sender.pace.outbox.put(
            subject, payload, headers=headers, done=self._done, fail=self._fail, full=sender.full
        )

    @property
    def settled(self) -> bool:
        return self.outcome is not None or self.error is not None

    def _done(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._sender.stored(self.message)

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._sender.changed()

    def let_go(self) -> None:
        """Forget what was sent; it is settled, or given up."""
        # The message knows the parcel, which knows the message: left to the garbage collector, chunks would gather.
        self.message.payload = b""
        self.message.done = self.message.fail = self.message.full = None


class Sender:
    """What one put sends, and how long it has been told that there is no room.

    Args:
        name: of the store, for people.
    """

    def __init__(self, connection: Connection, pace: Pace, stream: str, name: str) -> None:
        self.connection = connection
        self.pace = pace
        self.stream = stream
        self._name = name
        self._now = loop_clock()
        self._full_since: float | None = None
        self._changed = anyio.Event()
        #: Not settled, as far as is known here.
        self._under_way: dict[int, Parcel] = {}

    def full(self) -> None:
        if self._full_since is None:
            self._full_since = self._now()
            self.changed()

    def stored(self, message: Message) -> None:
        self._full_since = None
        if not message.repeated:
            self.pace.answered_after(self._now() - message.sent_at)
        self.changed()

    def changed(self) -> None:
        self._changed.set()

    def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> Parcel:
        parcel = Parcel(self, subject, payload, headers)
        self._under_way[id(parcel)] = parcel
        return parcel

    async def outcome_of(self, parcel: Parcel) -> Outcome:
        """Wait for what becomes of a parcel.

        Raises:
            BusRefused: if it is not taken: the store has been full for `FULL_S`, or another reason.
        """
        while not parcel.settled:
            self._changed = anyio.Event()
            left_s = FULL_S if self._full_since is None else self._full_since + FULL_S - self._now()
            if self._full_since is not None and left_s <= 0:
                raise BusRefused(await self._fullness())
            with anyio.move_on_after(left_s):
                await self._changed.wait()
        del self._under_way[id(parcel)]
        parcel.let_go()
        if parcel.error is not None:
            raise parcel.error
        assert parcel.outcome is not None
        return parcel.outcome

    async def _fullness(self) -> str:
        info = await self.connection.api_patiently(f"STREAM.INFO.{self.stream}")
        limit, found = int(info["config"].get("max_bytes", -1)), int(info["state"]["bytes"])
        size = f"{found:,} of {limit:,} bytes" if limit > 0 else f"{found:,} bytes, and its server has no room for more"
        return f"the object store {self._name} is full ({size}) for {FULL_S:g} s: `evpipe gc` frees space"

    async def settle(self) -> None:
        """Wait until nothing of it is under way; what has not left, or was put off, is held back."""
        while True:
            left = [parcel for parcel in self._under_way.values() if not parcel.settled]
            for parcel in left:
                if not parcel.message.token or parcel.message.put_off:
                    parcel.message.drop()
            if all(parcel.message.dropped for parcel in left):
                return
            self._changed = anyio.Event()
            # Nobody says that something was put off.
            with anyio.move_on_after(BACKOFF_S):
                await self._changed.wait()

    def drop(self) -> None:
        """Give up what is still under way."""
        for parcel in self._under_way.values():
            parcel.message.drop()
            parcel.let_go()
        self._under_way.clear()

    async def purge(self, subject: str) -> int:
        return await purge(self.connection, self.stream, subject)

    async def count(self, subject: str) -> int:
        """Count the messages of a subject at the stream's leader."""
        try:
            info = await self.connection.api_patiently(f"STREAM.INFO.{self.stream}", {"subjects_filter": subject})
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            # It is made again when the next message is published.
            return 0
        return int((info["state"].get("subjects") or {}).get(subject, 0))


class Upload:
    """The chunks of one object.

    Args:
        subjects: what the subject of chunks begins with; the name of their object comes behind it.
    """

    def __init__(self, sender: Sender, source: Source, subjects: str) -> None:
        self._sender = sender
        self._source = source
        self._subjects = subjects
        self.chunks = 0
        self.chunk_bytes = 0
        self.nuid = ""
        #: Where chunks may be that belong to nothing.
        self._litter: list[str] = []

    @property
    def subject(self) -> str:
        return f"{self._subjects}{self.nuid}"

    async def run(self, digest: str) -> None:
        """Store all of the source.

        Raises:
            UsageError: if what the source gave has another digest.
            BusRefused: if the store is full and stays so.
        """
        for send in (self._send_together, self._send_one_by_one):
            self._begin()
            whole = await send()
            if whole:
                await anyio.to_thread.run_sync(self._source.check, digest)
                return
            log.warning("chunks_out_of_order", digest=digest, chunks=self.chunks)
            await self._sender.purge(self.subject)
            self._litter.remove(self.subject)
        raise BusError(f"the chunks of object {digest} did not stay in the object store: somebody removes them")

    def _begin(self) -> None:
        self._source.rewind()
        self.nuid = secrets.token_hex(11)
        self.chunks = self.chunk_bytes = 0
        self._litter.append(self.subject)

    async def _read(self) -> bytes:
        payload_max = self._sender.connection.payload_bytes_max
        size = min(self._sender.pace.chunk_bytes, payload_max - HEADERS_BYTES)
        read = self._source.read
        chunk = await anyio.to_thread.run_sync(read, size) if self._source.blocks else read(size)
        if chunk:
            self.chunks += 1
            self.chunk_bytes = max(self.chunk_bytes, len(chunk))
        return chunk

    async def _send_together(self) -> bool:
        """Send chunks without waiting for one another; says whether they are there, in order."""
        parcels: deque[Parcel] = deque()
        last = 0
        rising = True
        repeated = ended = False
        while parcels or not ended:
            while not ended and len(parcels) < READ_AHEAD:
                chunk = await self._read()
                if chunk:
                    headers = {"Nats-Msg-Id": f"{self.nuid}.{self.chunks}"}
                    parcels.append(self._sender.send(self.subject, chunk, headers))
                else:
                    ended = True
            if not parcels:
                break
            parcel = parcels.popleft()
            outcome = await self._sender.outcome_of(parcel)
            sequence = outcome.sequence if isinstance(outcome, Stored) else 0
            rising = rising and sequence > last
            repeated = repeated or parcel.message.repeated
            last = sequence
            if not rising:
                # The rest of it would be in vain.
                await self._sender.settle()
                self._sender.drop()
                return False
        return rising and (await self._complete() if repeated or self.chunks > 1 else True)

    async def _complete(self) -> bool:
        """Whether the server has as many messages as chunks were sent: no more, and nobody has removed any."""
        return await self._sender.count(self.subject) == self.chunks

    async def _send_one_by_one(self) -> bool:
        """Send chunks each of which names the one before it: one that is sent again is stored once."""
        sender = self._sender
        last = 0
        while chunk := await self._read():
            outcome = await sender.outcome_of(sender.send(self.subject, chunk, {EXPECTED: str(last)}))
            if isinstance(outcome, Stored):
                sequence = outcome.sequence
            else:
                found = await last_message(sender.connection, sender.stream, self.subject)
                sequence = found[0].sequence if found is not None else 0
            if sequence <= last:
                return False
            last = sequence
        return not self.chunks or await self._complete()

    async def remove(self) -> None:
        """Remove what was stored of it."""
        for subject in self._litter:
            await self._sender.purge(subject)
