"""Telemetry on a NATS server: a stream with limits, published to without asking for an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from evpipe.bus.nats.buckets import NO_STREAM, OpenFeed, last_message, read_up_to
from evpipe.bus.nats.connection import ApiError, Connection, checked
from evpipe.bus.protocol import Record
from evpipe.wire.limits import PAYLOAD_BYTES_MAX

log = structlog.get_logger(__name__)


class NatsTelemetry:
    """See `bus.protocol.Telemetry`. A stream that somebody deleted is made again when it is next read."""

    def __init__(self, connection: Connection, stream: str, missing: Callable[[], None], feed: OpenFeed) -> None:
        self._connection = connection
        self._stream = stream
        self._missing = missing
        self._feed = feed

    def tell(self, subject: str, payload: bytes) -> None:
        if len(payload) > PAYLOAD_BYTES_MAX:
            # It would end the connection, and that for output that may be lost.
            log.warning("telemetry_too_large", subject=subject, size_bytes=len(payload))
            return
        self._connection.tell(checked(subject), payload)

    async def last_sequence(self) -> int:
        try:
            info = await self._connection.api_patiently(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            self._missing()
            return 0
        return int(info["state"]["last_seq"])

    async def last(self, subject: str) -> Record | None:
        try:
            found = await last_message(self._connection, self._stream, checked(subject))
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            self._missing()
            return None
        return None if found is None else found[0]

    def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        return read_up_to(self._feed, self._stream, list(subjects), after, up_to, since_s)

    @asynccontextmanager
    async def follow(
        self, subjects: Sequence[str], *, after: int = 0, since_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        async with self._feed(self._stream, list(subjects), after, since_s) as feed:
            yield feed
