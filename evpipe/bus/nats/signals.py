"""Signals on a NATS server: a stream with limits, that anybody may publish to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from evpipe.bus.nats.buckets import NO_STREAM, OpenFeed, read_up_to
from evpipe.bus.nats.connection import ApiError, Connection, checked
from evpipe.bus.outbox import Outbox
from evpipe.bus.protocol import Outcome, Record, Stored


class NatsSignals:
    """See `bus.protocol.Signals`. A stream that somebody deleted is made again when it is next used."""

    def __init__(
        self, connection: Connection, outbox: Outbox, stream: str, missing: Callable[[], None], feed: OpenFeed
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._stream = stream
        self._missing = missing
        self._feed = feed

    async def send(self, subject: str, payload: bytes) -> int:
        outcome: Outcome = await self._outbox.put_wait(checked(subject), payload)
        assert isinstance(outcome, Stored), "nothing was expected of its subject"
        return outcome.sequence

    async def last_sequence(self) -> int:
        try:
            info = await self._connection.api_patiently(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            self._missing()
            return 0
        return int(info["state"]["last_seq"])

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return read_up_to(self._feed, self._stream, list(subjects), after, up_to, since_s)

    @asynccontextmanager
    async def follow(self, subjects: Sequence[str], *, after: int = 0) -> AsyncIterator[AsyncIterator[list[Record]]]:
        async with self._feed(self._stream, list(subjects), after, None) as feed:
            yield feed
