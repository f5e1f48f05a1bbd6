"""Key-value buckets, as the NATS tools lay them out (`nats kv` reads them), and reading single messages."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final

from evpipe.bus.nats.connection import ApiError, Connection
from evpipe.bus.nats.feed import Feed
from evpipe.bus.outbox import Outbox
from evpipe.bus.protocol import Entry, Outcome, Record, Stored

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
#: JetStream's "no message found" and "stream not found".
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059

#: Of a stream, subjects, after a sequence and, where that is 0, since a time.
OpenFeed = Callable[[str, list[str], int, float | None], AbstractAsyncContextManager[Feed]]
Provision = Callable[[], Awaitable[None]]


async def last_message(connection: Connection, stream: str, subject: str) -> tuple[Record, dict[str, str]] | None:
    """Read the newest message of a subject (wildcards allowed) at the stream's leader, with its headers."""
    return await _message(connection, stream, {"last_by_subj": subject})


async def next_message(connection: Connection, stream: str, subject: str, sequence: int) -> Record | None:
    """Read the first message of a subject from a sequence on, at the stream's leader."""
    found = await _message(connection, stream, {"next_by_subj": subject, "seq": sequence})
    return found[0] if found is not None else None


async def _message(connection: Connection, stream: str, which: dict[str, Any]) -> tuple[Record, dict[str, str]] | None:
    try:
        found = await connection.api_patiently(f"STREAM.MSG.GET.{stream}", which)
    except ApiError as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    return _record(found["message"])


def _record(message: Mapping[str, Any]) -> tuple[Record, dict[str, str]]:
    headers: dict[str, str] = {}
    for line in base64.b64decode(message.get("hdrs", "")).decode(errors="replace").splitlines()[1:]:
        name, _, value = line.partition(":")
        headers[name.strip()] = value.strip()
    at_s = _seconds(str(message["time"]))
    record = Record(int(message["seq"]), at_s, message["subject"], base64.b64decode(message.get("data", "")))
    return record, headers


def _seconds(text: str) -> float:
    """Seconds since 1970 of the server's RFC 3339 time, which has up to nine digits of a second."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    base = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    # In whole nanoseconds first, as the reply subject of a delivery has them: the same moment is the same number.
    return (int(base.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)) / 1e9


class NatsBucket:
    """See `bus.protocol.Bucket`. A bucket that somebody deleted is made again: nothing in it is the only copy."""

    def __init__(self, connection: Connection, outbox: Outbox, name: str, provision: Provision, feed: OpenFeed) -> None:
        self._connection = connection
        self._outbox = outbox
        self._name = name
        self._stream = f"KV_{name}"
        self._provision = provision
        self._feed = feed

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def get(self, key: str) -> Entry | None:
        try:
            found = await last_message(self._connection, self._stream, self._subject(key))
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            await self._provision()
            return None
        if found is None or "KV-Operation" in found[1]:
            return None
        record = found[0]
        return Entry(key, record.payload, record.sequence, record.at_s)

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        headers: dict[str, str] = {}
        if expected is not None:
            headers[EXPECTED] = str(await self._revision(key) if expected == 0 else expected)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl_s))}s"
        outcome: Outcome = await self._outbox.put_wait(self._subject(key), value, headers=headers or None)
        return outcome.sequence if isinstance(outcome, Stored) else None

    async def _revision(self, key: str) -> int:
        """What a key that does not exist has as its last sequence: that of its delete marker, or 0."""
        try:
            found = await last_message(self._connection, self._stream, self._subject(key))
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            await self._provision()
            return 0
        return found[0].sequence if found is not None and "KV-Operation" in found[1] else 0

    async def delete(self, key: str) -> None:
        await self._outbox.put_wait(self._subject(key), b"", headers={"KV-Operation": "DEL"})

    async def entries(self, under: str = "") -> list[Entry]:
        newest: dict[str, Entry | None] = {}
        try:
            info = await self._connection.api_patiently(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            await self._provision()
            return []
        up_to = int(info["state"]["last_seq"])
        if not up_to or not info["state"]["messages"]:
            return []
        prefix = len(self._subject(""))
        subjects = [self._subject(under), self._subject(f"{under}.>")] if under else [self._subject(">")]
        async for records in read_up_to(self._feed, self._stream, subjects, 0, up_to):
            for record in records:
                newest[record.subject[prefix:]] = Entry(
                    record.subject[prefix:], record.payload, record.sequence, record.at_s
                )
        # A delete marker is an empty message; no entry of ours is empty.
        return [entry for entry in newest.values() if entry is not None and entry.value]


async def read_up_to(
    open_feed: OpenFeed, stream: str, subjects: list[str], after: int, up_to: int, since_s: float | None = None
) -> AsyncGenerator[list[Record], None]:
    """Give what a stream has on some subjects between two sequences, in order, then end."""
    if after >= up_to:
        return
    async with open_feed(stream, subjects, after, since_s) as feed:
        while True:
            records = await feed.next_or_end()
            if not records:
                return
            found = [record for record in records if record.sequence <= up_to]
            if found:
                yield found
            if records[-1].sequence >= up_to:
                return
