"""Garbage of the object store: objects that no run and no result in the cache refers to."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from evpipe.bus.protocol import Bus, ObjectEntry
from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError
from evpipe.errors import RemoteProtocolError
from evpipe.wire.artifacts import VALUE
from evpipe.wire.cache import BUCKET, CacheEntry, decode_entry, is_entry_key
from evpipe.wire.graphs import children_in
from evpipe.wire.presence import BUCKET as WORKERS
from evpipe.wire.storing import artifacts_in
from evpipe.wire.subjects import PROGRESS
from evpipe.wire.values import unpack

#: Every reference is a digest in hex: whatever else there is in a payload, also of a newer version, it is found so.
_DIGEST: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
#: Kinds of events that may refer to objects.
_KINDS: Final = ("submitted", PROGRESS, "succeeded", "failed", "skipped", "cached", "received", "finished")
#: Objects that may refer to others are read; of stored values only those that say so.
_GRAPH_BYTES_MAX: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a collection found."""

    #: Objects of the store, and their bytes.
    objects: int
    size_bytes: int
    #: Of them, what was removed, or would be.
    removed: int
    removed_bytes: int
    #: Messages of uploads that never came to their end; 0 in a dry run.
    orphans: int
    #: What nobody refers to but is too young, or younger than a run that goes on.
    young: int


async def collect_garbage(bus: Bus, *, older_s: float, dry_run: bool = False) -> Garbage:
    """Remove objects that nothing refers to.

    What a run that goes on may be about to refer to is younger than that run, so nothing younger than the oldest of
    them is removed; and what is put again while this runs stays.

    Args:
        older_s: seconds that an object must be old.
        dry_run: only look.
    """
    now_s = await _now_s(bus)
    entries = await bus.objects.entries()
    last = await bus.last_sequence()
    found = _References(bus)
    submitted: dict[str, float] = {}
    for kind in _KINDS:
        async for records in bus.replay([bus.subjects.events_like(kind=kind)], up_to=last):
            for record in records:
                run = record.subject.split(".")[4] if record.subject.count(".") == 6 else ""
                if kind == "submitted":
                    submitted.setdefault(run, record.at_s)
                elif kind == "finished":
                    submitted.pop(run, None)
                found.add(record.payload, names_graph=kind == "submitted")
    for entry in await bus.bucket(BUCKET).entries():
        found.add(entry.value)
        if is_entry_key(entry.key):
            found.add(_event_of(entry.value))
    referred = await found.closed({entry.digest: entry for entry in entries})
    before_s = min([now_s - older_s, *submitted.values()])
    free = [entry for entry in entries if entry.digest not in referred]
    old = [entry for entry in free if entry.at_s < before_s]
    removed = old if dry_run else await _removed(bus, old)
    orphans = 0 if dry_run else await bus.objects.remove_orphans(before_s=before_s)
    return Garbage(
        objects=len(entries),
        size_bytes=_size(entries),
        removed=len(removed),
        removed_bytes=_size(removed),
        orphans=orphans,
        young=len(free) - len(old),
    )


async def _now_s(bus: Bus) -> float:
    """Give the bus's clock, by which objects are old."""
    bucket = bus.bucket(WORKERS)
    key = f"clock-{secrets.token_hex(8)}"
    await bucket.put(key, b"\0", ttl_s=1)
    entry = await bucket.get(key)
    # Gone in a second by itself. If it went before it was read, this is a slow day.
    return entry.at_s if entry is not None else 0.0


def _event_of(data: bytes) -> bytes:
    try:
        entry = decode_entry(data)
    except RemoteProtocolError:
        return b""
    return entry.event if isinstance(entry, CacheEntry) else b""


async def _removed(bus: Bus, entries: Iterable[ObjectEntry]) -> list[ObjectEntry]:
    return [entry for entry in entries if await bus.objects.remove(entry.digest, revision=entry.revision)]


def _size(entries: Iterable[ObjectEntry]) -> int:
    return sum(entry.size_bytes for entry in entries)


class _References:
    """The objects that payloads refer to, and those that these refer to."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._digests: set[str] = set()
        #: Objects that may refer to others: graphs, and stored values that have artifacts in them.
        self._graphs: set[str] = set()
        self._nested: set[str] = set()

    def add(self, payload: bytes, *, names_graph: bool = False) -> None:
        """Take note of what a payload refers to."""
        digests = [digest.decode() for digest in _DIGEST.findall(payload)]
        if not digests:
            return
        self._digests.update(digests)
        if names_graph:
            self._graphs.update(digests)
        self._note_nested(payload)

    def _note_nested(self, payload: bytes) -> None:
        met: list[Artifact] = []
        try:
            unpack(payload, artifacts=met)
        except RemoteProtocolError:
            return
        for artifact in met:
            if artifact.nested and artifact.kind == VALUE and artifact.data is None:
                self._nested.add(artifact.digest)

    async def closed(self, entries: dict[str, ObjectEntry]) -> set[str]:
        """Give all digests that are referred to, also by objects."""
        read: set[str] = set()
        while todo := [digest for digest in self._graphs | self._nested if digest in entries and digest not in read]:
            for digest in todo:
                read.add(digest)
                if digest in self._graphs and entries[digest].size_bytes > _GRAPH_BYTES_MAX:
                    continue
                data = await self._bus.objects.get(digest)
                if data is None:
                    continue
                if digest in self._graphs:
                    self.add(data)
                    self._graphs |= children_in(data)
                else:
                    self._add_value(data)
        return self._digests

    def _add_value(self, data: bytes) -> None:
        try:
            inner = artifacts_in(data)
        except (RemoteProtocolError, BindingError):
            return
        for artifact in inner:
            self._digests.add(artifact.digest)
            if artifact.nested and artifact.kind == VALUE and artifact.data is None:
                self._nested.add(artifact.digest)
