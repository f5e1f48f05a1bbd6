"""A worker's word that it is there: an entry that goes by itself when it is not renewed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from evpipe.errors import RemoteProtocolError
from evpipe.wire.codec import decode_map, encode_map

BUCKET: Final = "workers"
#: How often a worker says that it is there, and how long its word counts.
RENEW_S: Final = 3.0
TTL_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEntry:
    """What a worker says of itself."""

    id: str
    host: str
    pid: int
    #: In the order in which it serves them.
    queues: tuple[str, ...]
    slots: int
    #: Attempts that it runs now.
    busy: int
    #: It takes no more launches and will leave.
    draining: bool
    #: When it began, by its own clock: seconds since 1970.
    started_at_s: float
    #: Of Python, and of this package.
    python: str
    version: str


def encode_worker(entry: WorkerEntry) -> bytes:
    return encode_map(
        {
            "id": entry.id,
            "host": entry.host,
            "pid": entry.pid,
            "queues": list(entry.queues),
            "slots": entry.slots,
            "busy": entry.busy,
            "draining": entry.draining,
            "started_at": entry.started_at_s,
            "python": entry.python,
            "version": entry.version,
        }
    )


def decode_worker(data: bytes) -> WorkerEntry:
    """Decode a worker's entry; RemoteProtocolError if it is none."""
    fields = decode_map(data, "the worker's entry")
    if not fields.text("id"):
        raise RemoteProtocolError(f"{fields.what} is of no worker")
    return WorkerEntry(
        id=fields.text("id"),
        host=fields.text("host", ""),
        pid=fields.whole("pid", 0),
        queues=fields.texts("queues"),
        slots=fields.whole("slots", 0),
        busy=fields.whole("busy", 0),
        draining=fields.flag("draining"),
        started_at_s=fields.number("started_at", 0.0),
        python=fields.text("python", ""),
        version=fields.text("version", ""),
    )
