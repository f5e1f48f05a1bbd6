"""The narrow waist: what evpipe needs of a bus, and no more.

Everything above speaks to a `Bus`; what it runs on is `bus.nats` or, in one process, `bus.memory`. Both pass
one contract suite. The rules that every bus keeps:

- **append** and **launch** go on until they are answered. An unknown outcome (a time-out, a lost connection)
  is published again; that is safe because every message has a name: an append may carry the expected last
  sequence of its subject, a launch's subject takes one message for as long as its run lives. `Refused` is
  therefore an answer like `Stored`: what was to be there is there.
- A full stream is back-pressure: the bus waits and goes on; nothing is dropped.
- **follow** gives each record of the log once, in the order of sequence, across reconnects.
- **tell** is best effort: it neither waits nor repeats, and nothing that matters hangs on it.
- **pull** gives a launch again when it was neither acked nor extended for `ACK_WAIT_S`, to anyone, for ever.
  `Delivery.redelivered` is true whenever it may have been given before, also where the server has forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from evpipe.wire.subjects import Subjects

#: How long a launch may lie with a worker without a sign of life.
ACK_WAIT_S: Final = 2.0
#: After an outage everybody is given this long to connect again and say what they have to say.
SETTLE_S: Final = 1.0
#: What was stored, or put again, less long ago is young: putting it again changes nothing. Whoever removes old objects
#: waits for longer than this after the last use that he knows of.
YOUNG_S: Final = 600.0
#: How long a put into a full object store waits for room.
FULL_S: Final = 60.0
#: The server's default lets 1,000 launches be under way per consumer, and stalls there.
ACK_PENDING_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Stored:
    """The message is in the stream."""

    #: Its sequence; 0 where the answer was not asked for it.
    sequence: int


class Refused(Enum):
    """The message is not stored, because what it would have been is there already."""

    #: The subject's last sequence is not the expected one: somebody else's message is there.
    SEQUENCE = "sequence"
    #: The launch's subject is taken: this attempt was launched before.
    LAUNCHED = "launched"


Outcome: TypeAlias = Stored | Refused
Done: TypeAlias = Callable[[Outcome], None]


class Sending(Protocol):
    """A message on its way."""

    def drop(self) -> None:
        """Do not send it (again): if it has not left, it never will. `done` is not called then."""


class Record(NamedTuple):
    """One message of the log."""

    sequence: int
    #: The server's timestamp, seconds since 1970.
    at_s: float
    subject: str
    payload: bytes


class Delivery(Protocol):
    """A launch that this worker holds."""

    subject: str
    payload: bytes
    #: Whether this launch may have been given to somebody before.
    redelivered: bool
    #: When it arrived here, by `anyio.current_time()`.
    arrived_at: float
    #: Before this time, by the same clock, the log may lack what was said of it while the server was away.
    examine_at: float

    def ack(self) -> None:
        """Let it go for good."""

    def extend(self) -> None:
        """Say that it is being worked on: it is not given again for another `ACK_WAIT_S`."""

    def release(self) -> None:
        """Give it back now."""


class Pull(Protocol):
    """An open pull of one lane (queue and priority)."""

    #: Launches asked for that may still come.
    asked: int

    def ask(self, count: int) -> None:
        """Ask for `count` more launches; they come to the pull's callback, whenever there are any."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """How much there is to do in one lane of the queue."""

    queue: str
    priority: int
    #: Launches that nobody has taken yet.
    waiting: int
    #: Launches that were taken and have not been acked.
    taken: int
    #: How many may be taken at a time; None: no limit was set.
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a key-value bucket."""

    key: str
    value: bytes
    #: Revision: grows with each write of the bucket.
    revision: int
    #: The server's timestamp of the write, seconds since 1970.
    at_s: float


class Bucket(Protocol):
    """A key-value bucket. Deleting it loses nothing: every bucket is a projection, or presence."""

    async def get(self, key: str) -> Entry | None: ...

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        """Write an entry.

        Args:
            expected: revision that the key must have (0: it must not exist); None: any.
            ttl_s: seconds until it goes by itself, at least 1.

        Returns:
            The new revision; None if the key had another than the expected one.
        """

    async def delete(self, key: str) -> None: ...

    async def entries(self, under: str = "") -> list[Entry]:
        """Give all entries, oldest write first.

        Args:
            under: only those whose key begins with these tokens ("hit.3f2a" gives "hit.3f2a.x", not "hit.3f2ab").
        """


class Telemetry(Protocol):
    """What attempts tell while they run: a stream that is bounded, where the oldest makes room for the newest."""

    def tell(self, subject: str, payload: bytes) -> None:
        """Keep it for a while; best effort, returns at once, dropped while there is no connection."""

    async def last_sequence(self) -> int:
        """Sequence of the newest record, 0 if there was never one; read at the stream's leader."""

    async def last(self, subject: str) -> Record | None:
        """Give the newest record of a subject, if there is one; read at the stream's leader."""

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """As `Bus.replay`; records that made room for others are simply not there."""

    def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        """As `Bus.follow`; records that made room for others before they were read are simply not there."""


class Signals(Protocol):
    """Named events that anybody sends and that steps wait for: a stream that is bounded by age and size, oldest out."""

    async def send(self, subject: str, payload: bytes) -> int:
        """Store a signal; goes on until it is answered, so after a lost answer it may be there twice.

        Returns:
            Its sequence.
        """

    async def last_sequence(self) -> int:
        """Sequence of the newest signal, 0 if there was never one; read at the stream's leader."""

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """As `Bus.replay`; what made room for newer ones is simply not there."""

    def follow(
        self, subjects: Sequence[str], *, after: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        """As `Bus.follow`."""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object of the store, as its description says."""

    digest: str
    size_bytes: int
    #: When it was stored, or last put again; the server's timestamp, seconds since 1970.
    at_s: float
    #: Revision of its description; changes with every put.
    revision: int


class Objects(Protocol):
    """Large immutable things by their digest, the SHA-256 of their bytes in hex.

    Who gives a file gets or reads it in memory that does not grow with its size. What is read is checked against its
    digest, always. Where the store is full, a put waits for `FULL_S` and then raises.
    """

    async def put(self, digest: str, data: bytes) -> None:
        """Store `data` under its digest; where it is already, it only becomes young again (see `remove`, `YOUNG_S`).

        Raises:
            BusRefused: if the store is full and stays so.
            UsageError: if the digest is another's; nothing is stored then.
        """

    async def put_file(self, digest: str, file: Path) -> None:
        """As `put`, of the content of a file."""

    async def get(self, digest: str) -> bytes | None:
        """Give what is stored under a digest, checked against it; None if there is nothing (or it is damaged)."""

    async def get_file(self, digest: str, file: Path) -> bool:
        """Write what is stored under a digest to a new file.

        Returns:
            False if there is nothing, or it is damaged; then there is no file.
        """

    async def find(self, digest: str) -> ObjectEntry | None:
        """Give what the store says of an object, without reading it; None if it is not there."""

    async def intact(self, digest: str) -> bool:
        """Read an object and say whether it is there and is what its digest says."""

    async def remove(self, digest: str, *, revision: int | None = None) -> bool:
        """Remove an object.

        Args:
            revision: only if its description has this one still: nobody has put it again since.

        Returns:
            Whether it was removed.
        """

    async def entries(self) -> list[ObjectEntry]:
        """Give all objects of the store."""

    async def remove_orphans(self, *, before_s: float) -> int:
        """Remove the bytes of puts that never came to their end and began before a moment.

        Returns:
            How many messages were removed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BusInfo:
    """Who answers at the other end."""

    #: Where it is, as a person would say it.
    url: str
    server_version: str
    #: What was checked and found, in lines for `evpipe doctor`.
    notes: tuple[str, ...] = ()


#: Gives an answer to a question, or None to be silent.
Answer: TypeAlias = Callable[[str, bytes], bytes | None]


class Bus(Protocol):
    """See the module's docstring for the rules."""

    subjects: Subjects
    #: Whether all that speak on it are in this process: what one of them has, the others have.
    in_process: bool

    # ---- the log

    def append(self, subject: str, payload: bytes, *, expected: int | None = None, done: Done | None = None) -> Sending:
        """Append an event; returns at once, `done` is called with the outcome.

        Args:
            expected: sequence that the last message of `subject` must have (0: there must be none); None: any.
        """

    async def append_wait(self, subject: str, payload: bytes, *, expected: int | None = None) -> Outcome:
        """Append an event and wait for the outcome; `Stored` has its sequence."""

    async def last_sequence(self) -> int:
        """Sequence of the newest event, 0 if there was never one; read at the stream's leader."""

    async def last(self, subject: str) -> Record | None:
        """Newest event whose subject matches (wildcards allowed), read at the stream's leader."""

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """Give the records with `after` < sequence <= `up_to` whose subject matches, in order, then end.

        Args:
            since_s: where `after` is 0, what is older than this time (seconds since 1970) may be left out.
        """

    def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        """Give the records with sequence > `after` as they come, in order, without end. Lists are never empty.

        A wait for the next list may be cancelled: whoever waits again is given what came meanwhile.

        Args:
            since_s: where `after` is 0, leave out what is older than this time (seconds since 1970).
        """

    # ---- the queue

    def launch(self, subject: str, payload: bytes, *, done: Done | None = None) -> Sending:
        """Publish a launch; returns at once."""

    def pull(
        self, queue: str, priority: int, deliver: Callable[[Delivery], None], *, transient: bool = False
    ) -> AbstractAsyncContextManager[Pull]:
        """Open a pull on a lane, creating its consumer if need be.

        Args:
            deliver: called for each launch that comes.
            transient: the lane belongs to one process: its consumer goes when nobody has pulled for a while.
        """

    async def drop_launches(self, run: str) -> None:
        """Remove all launches of a run that has ended, whatever their queue."""

    async def last_launch_sequence(self) -> int: ...

    async def first_launch_of(self, run: str) -> int | None:
        """Sequence of the oldest launch kept of a run."""

    async def truncate_launches(self, before: int) -> None:
        """Remove all launches with a sequence below `before`."""

    # ---- the rest

    async def lanes(self) -> list[LaneState]:
        """Give every lane of the queue that launches were pulled from, by queue and priority."""

    async def limit_queue(self, queue: str, limit: int | None) -> None:
        """Let at most `limit` launches of a queue be taken at a time, by all its workers together; None: any number.

        It holds for pulls that are open and for those that will be. What was taken before is not taken back.

        Raises:
            UsageError: if the limit is not a whole number from 1 to 99,999.
        """

    async def queue_limits(self) -> dict[str, int]:
        """Give the limits of queues that were set."""

    def bucket(self, name: str) -> Bucket: ...

    @property
    def objects(self) -> Objects: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def signals(self) -> Signals: ...

    def signal(self, subject: str, payload: bytes) -> None:
        """Tell whoever listens now; best effort."""

    def listen(self, subject: str, answer: Answer) -> AbstractAsyncContextManager[None]:
        """Call `answer` for each signal or question on a subject (wildcards allowed)."""

    async def ask(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes | None:
        """Ask whoever listens; the first answer, or None if there is none in time."""

    async def info(self) -> BusInfo: ...

    @property
    def connected(self) -> bool:
        """Whether the server answered lately."""
