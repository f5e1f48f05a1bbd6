"""The object store, as the NATS tools lay it out (`nats object` reads it).

An object's description is one message, its bytes are others: a put stores the bytes first, under a name of their
own, and then the description, which names them; so an object is there when all of it is, and bytes that nothing
describes are an orphan. A description is replaced, and removed, by its sequence: of a put that finds an object and
somebody who removes it, one is told that the other was quicker.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog

from evpipe.bus.content import BytesSink, BytesSource, FileSink, FileSource, HashSink, Sink, Source
from evpipe.bus.nats.buckets import EXPECTED, NO_MESSAGE, NO_STREAM, OpenFeed, last_message, next_message, read_up_to
from evpipe.bus.nats.connection import ApiError, Connection
from evpipe.bus.nats.upload import CLEAN_S, QUICK_S, Pace, Parcel, Sender, Upload, purge
from evpipe.bus.protocol import YOUNG_S, ObjectEntry, Record, Stored
from evpipe.errors import BusError

log = structlog.get_logger(__name__)

#: Chunks that are asked for at a time.
CHUNKS_ASKED_MAX: Final = 8
#: When a feed has given nothing for so long, what comes next is read without it.
STALL_S: Final = 5.0
#: What is hashed or written in a thread: a smaller piece is done before a thread has begun.
THREAD_BYTES: Final = 256 * 1024
#: An object is read so often before it is taken as damaged: what was read first may have been on its way out.
READS_MAX: Final = 2
#: What JetStream says where the message to delete is not there.
GONE: Final = frozenset({10043, 10057, NO_MESSAGE, NO_STREAM})


@dataclass(frozen=True, slots=True)
class Description:
    """An object's description, as it was read."""

    revision: int
    at_s: float
    nuid: str
    size_bytes: int
    chunks: int
    #: All that it says.
    fields: dict[str, Any]

    @property
    def young(self) -> bool:
        # Behind the server's clock by more than the half of it, this one says little.
        return -YOUNG_S / 2 < time.time() - self.at_s < YOUNG_S


def description_of(record: Record) -> Description | None:
    """Give what a description says; None where it says nothing, or that the object is gone."""
    try:
        fields: dict[str, Any] = json.loads(record.payload)
        size, nuid, chunks = fields["size"], fields["nuid"], fields.get("chunks", -1)
    except (ValueError, LookupError, TypeError):
        return None
    if not (isinstance(size, int) and size >= 0 and isinstance(nuid, str) and nuid and isinstance(chunks, int)):
        return None
    if fields.get("deleted"):
        return None
    return Description(record.sequence, record.at_s, nuid, size, chunks, fields)


def is_digest(name: object) -> bool:
    return isinstance(name, str) and len(name) == 64 and set(name) <= set("0123456789abcdef")


class NatsObjects:
    """See `bus.protocol.Objects`.

    Args:
        pace: of all puts of this connection.
        feed: opens one for descriptions.
        chunk_feed: opens one that asks for one message at a time, until it is told to ask for more.
    """

    def __init__(self, connection: Connection, pace: Pace, bucket: str, feed: OpenFeed, chunk_feed: OpenFeed) -> None:
        self._connection = connection
        self._pace = pace
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._feed = feed
        self._chunk_feed = chunk_feed

    # ---- subjects

    @property
    def _chunks(self) -> str:
        return f"$O.{self._bucket}.C."

    def _meta_subject(self, digest: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"

    # ---- descriptions

    async def _look(self, digest: str) -> tuple[int, Description | None]:
        """Read an object's description; gives the last sequence of its subject, too."""
        try:
            found = await last_message(self._connection, self._stream, self._meta_subject(digest))
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            # What is put next finds no stream, and that makes it again.
            return 0, None
        return (found[0].sequence, description_of(found[0])) if found is not None else (0, None)

    async def find(self, digest: str) -> ObjectEntry | None:
        _, found = await self._look(digest)
        return ObjectEntry(digest, found.size_bytes, found.at_s, found.revision) if found is not None else None

    async def entries(self) -> list[ObjectEntry]:
        return [
            ObjectEntry(name, found.size_bytes, found.at_s, found.revision)
            for name, found in (await self._descriptions()).items()
            if is_digest(name)
        ]

    async def _descriptions(self) -> dict[str, Description]:
        """Read all descriptions; by name, those of others, too."""
        last = await self._last_sequence()
        newest: dict[str, Description | None] = {}
        prefix = f"$O.{self._bucket}.M."
        async for records in read_up_to(self._feed, self._stream, [f"{prefix}>"], 0, last):
            for record in records:
                try:
                    name = base64.urlsafe_b64decode(record.subject[len(prefix) :]).decode()
                except ValueError:
                    name = record.subject
                newest[name] = description_of(record)
        return {name: found for name, found in newest.items() if found is not None}

    async def _last_sequence(self) -> int:
        try:
            info = await self._connection.api_patiently(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            return 0
        return int(info["state"]["last_seq"]) if info["state"]["messages"] else 0

    # ---- put

    async def put(self, digest: str, data: bytes) -> None:
        await self._put(digest, BytesSource(data))

    async def put_file(self, digest: str, file: Path) -> None:
        source = await anyio.to_thread.run_sync(FileSource, file)
        try:
            await self._put(digest, source)
        finally:
            source.close()

    async def _put(self, digest: str, source: Source) -> None:
        while not await self._put_once(digest, source):
            # Somebody puts or removes the same object: it is looked at again.
            pass

    async def _put_once(self, digest: str, source: Source) -> bool:
        """Store an object, or find that it is there; False if somebody else was quicker."""
        last, found = await self._look(digest)
        sender = Sender(self._connection, self._pace, self._stream, self._bucket)
        if found is not None and found.size_bytes == source.size_bytes:
            if found.young:
                return True
            again = self._describe(sender, digest, found.fields, last)
            try:
                return isinstance(await sender.outcome_of(again), Stored)
            finally:
                sender.drop()
        upload = Upload(sender, source, self._chunks)
        description: Parcel | None = None
        whole = False
        try:
            await upload.run(digest)
            description = self._describe(sender, digest, self._fields(digest, source.size_bytes, upload), last)
            await sender.outcome_of(description)
            whole = await self._is_described(digest, upload, description)
        finally:
            if not whole:
                await self._abandon(sender, digest, upload, description)
        if whole and found is not None:
            # It was of another size: whatever it was, it was not what its digest says.
            await self._purge(found.nuid)
        return whole

    async def _is_described(self, digest: str, upload: Upload, description: Parcel) -> bool:
        if isinstance(description.outcome, Stored):
            return True
        # Refused also where the reply was lost, and the description that is there is this one.
        _, now = await self._look(digest)
        return now is not None and now.nuid == upload.nuid

    async def _abandon(self, sender: Sender, digest: str, upload: Upload, description: Parcel | None) -> None:
        """Remove what was stored of a put that came to nothing, as far as that can be done soon."""
        with anyio.move_on_after(CLEAN_S, shield=True) as cleaning:
            try:
                # What is still to be stored cannot be removed.
                await sender.settle()
                if description is None or not await self._is_described(digest, upload, description):
                    await upload.remove()
            except BusError as error:
                log.debug("chunks_left", digest=digest, error=str(error))
        if cleaning.cancelled_caught:
            log.debug("chunks_left", digest=digest, waited_s=CLEAN_S)
        sender.drop()

    def _fields(self, digest: str, size_bytes: int, upload: Upload) -> dict[str, Any]:
        return {
            "name": digest,
            "bucket": self._bucket,
            "nuid": upload.nuid,
            "size": size_bytes,
            "chunks": upload.chunks,
            "mtime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "digest": "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode(),
            "options": {"max_chunk_size": upload.chunk_bytes},
        }

    def _describe(self, sender: Sender, digest: str, fields: dict[str, Any], last: int) -> Parcel:
        """Publish a description in the place of the one with sequence `last`."""
        headers = {"Nats-Rollup": "sub", EXPECTED: str(last)}
        return sender.send(self._meta_subject(digest), json.dumps(fields).encode(), headers)

    # ---- get

    async def get(self, digest: str) -> bytes | None:
        while (found := (await self._look(digest))[1]) is not None:
            for _ in range(READS_MAX):
                sink = BytesSink()
                if await self._read(digest, found, sink):
                    return sink.data
            if not await self._is_other(digest, found):
                return None
        return None

    async def get_file(self, digest: str, file: Path) -> bool:
        while (found := (await self._look(digest))[1]) is not None:
            for _ in range(READS_MAX):
                if await self._read_file(digest, found, file):
                    return True
            if not await self._is_other(digest, found):
                return False
        return False

    async def intact(self, digest: str) -> bool:
        while (found := (await self._look(digest))[1]) is not None:
            for _ in range(READS_MAX):
                if await self._read(digest, found, HashSink()):
                    return True
            if not await self._is_other(digest, found):
                return False
        return False

    async def _read_file(self, digest: str, found: Description, file: Path) -> bool:
        sink = await anyio.to_thread.run_sync(FileSink, file)
        try:
            whole = await self._read(digest, found, sink)
            if whole:
                await anyio.to_thread.run_sync(sink.keep)
            return whole
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(sink.__exit__, None, None, None)

    async def _is_other(self, digest: str, found: Description) -> bool:
        """Remove the description of an object that is not what its digest says; True if it has another by now."""
        try:
            if not await self._remove(digest, found):
                _, now = await self._look(digest)
                if now is not None and now.revision != found.revision:
                    return True
        except ApiError as error:
            log.warning("object_not_removed", digest=digest, error=str(error))
        log.error("object_damaged", digest=digest, size_bytes=found.size_bytes, chunks=found.chunks)
        return False

    async def _read(self, digest: str, found: Description, sink: Sink) -> bool:
        """Read an object's bytes; says whether all are there and are what its digest says."""
        subject = f"{self._chunks}{found.nuid}"
        left = found.size_bytes
        try:
            if found.chunks == 1 and left:
                # Not worth a consumer.
                only = await last_message(self._connection, self._stream, subject)
                left -= await _take(sink, [only[0]] if only is not None else [])
            elif left:
                left -= await self._read_chunks(subject, left, sink)
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
        return left == 0 and sink.digest == digest

    async def _read_chunks(self, subject: str, size_bytes: int, sink: Sink) -> int:
        """Read chunks until there are so many bytes, or no more chunks; gives how many bytes there were."""
        read = last = chunks = 0
        started_at = anyio.current_time()
        async with self._chunk_feed(self._stream, [subject], 0, None) as feed:
            while read < size_bytes:
                records: Sequence[Record] = ()
                with anyio.move_on_after(STALL_S):
                    records = await feed.next_or_end()
                if not records:
                    # The end, or so it seems to a consumer, which a server's copy that lags may serve.
                    following = await next_message(self._connection, self._stream, subject, last + 1)
                    if following is None:
                        break
                    records = [following]
                records = [record for record in records if record.sequence > last]
                if records:
                    last = records[-1].sequence
                    chunks += len(records)
                    read += await _take(sink, records)
                    # As with what is sent: answers to pings wait behind what is on its way.
                    chunks_in_time = chunks * QUICK_S / max(anyio.current_time() - started_at, 1e-3)
                    feed.batch = max(1, min(CHUNKS_ASKED_MAX, int(chunks_in_time)))
        return read

    # ---- remove

    async def remove(self, digest: str, *, revision: int | None = None) -> bool:
        while (found := (await self._look(digest))[1]) is not None:
            if revision is not None and found.revision != revision:
                return False
            if await self._remove(digest, found):
                return True
            if revision is not None:
                return False
        return False

    async def _remove(self, digest: str, found: Description) -> bool:
        """Remove an object if its description is still this one."""
        # By its sequence: a description that was put again has another. And a full store has room for no mark.
        which = {"seq": found.revision, "no_erase": True}
        try:
            await self._connection.api_patiently(f"STREAM.MSG.DELETE.{self._stream}", which)
        except ApiError as error:
            if error.code not in GONE:
                raise
            # Put again, or removed by somebody else, or by this very request, which was sent twice.
            removed = False
        else:
            removed = True
        last, now = await self._look(digest)
        if last == found.revision or (now is not None and now.nuid == found.nuid):
            return False
        await self._purge(found.nuid)
        return removed or now is None

    async def _purge(self, nuid: str) -> int:
        return await purge(self._connection, self._stream, f"{self._chunks}{nuid}")

    async def remove_orphans(self, *, before_s: float) -> int:
        # In this order: a put that comes to its end meanwhile is described by then.
        names = await self._names_of_chunks()
        described = {found.nuid for found in (await self._descriptions()).values()}
        removed = 0
        for nuid in names - described:
            # By its newest chunk: a put that takes long is no orphan.
            newest = await last_message(self._connection, self._stream, f"{self._chunks}{nuid}")
            if newest is not None and newest[0].at_s < before_s:
                removed += await self._purge(nuid)
        return removed

    async def _names_of_chunks(self) -> set[str]:
        """Give the names under which there are chunks; the server lists 100,000 at a time."""
        names: set[str] = set()
        listed = 0
        while True:
            try:
                info = await self._connection.api_patiently(
                    f"STREAM.INFO.{self._stream}", {"subjects_filter": f"{self._chunks}>", "offset": listed}
                )
            except ApiError as error:
                if error.code != NO_STREAM:
                    raise
                return names
            subjects: dict[str, int] = info["state"].get("subjects") or {}
            names.update(subject[len(self._chunks) :] for subject in subjects)
            listed += len(subjects)
            if not subjects or listed >= int(info.get("total", 0)):
                return names


async def _take(sink: Sink, records: Sequence[Record]) -> int:
    """Hand on what records have; gives how much it is."""
    parts = [record.payload for record in records]
    size = sum(map(len, parts))
    if size < THREAD_BYTES:
        sink.take(parts)
    else:
        await anyio.to_thread.run_sync(sink.take, parts)
    return size
