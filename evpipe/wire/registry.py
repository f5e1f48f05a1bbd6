"""The registry's entries: one per run, a projection of its log for lists and look-ups."""

from __future__ import annotations

from dataclasses import dataclass

from evpipe.core.states import RunStatus
from evpipe.errors import RemoteProtocolError
from evpipe.wire.codec import decode_map, encode_map

BUCKET = "registry"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """What a list of runs shows of one."""

    run: str
    pipeline: str
    status: RunStatus
    #: Log times, seconds since 1970.
    submitted_at_s: float
    ended_at_s: float | None = None
    message: str = ""
    #: The run that it is a step of, and the one at the top; "" if it is nobody's.
    parent: str = ""
    root: str = ""
    #: Sequence of the event that it shows the run after: an entry is only replaced by a later one.
    sequence: int = 0


def encode_run_entry(entry: RunEntry) -> bytes:
    lineage = {"parent": entry.parent, "root": entry.root} if entry.parent else {}
    return encode_map(
        {
            **lineage,
            "run": entry.run,
            "pipeline": entry.pipeline,
            "status": entry.status.value,
            "submitted_at": entry.submitted_at_s,
            "ended_at": entry.ended_at_s,
            "message": entry.message,
            "sequence": entry.sequence,
        }
    )


def decode_run_entry(data: bytes) -> RunEntry:
    """Decode an entry; RemoteProtocolError if it is not one."""
    fields = decode_map(data, "the registry entry")
    status = fields.text("status")
    if status not in tuple(RunStatus):
        raise RemoteProtocolError(f"the registry entry: status {status[:40]!r} is none of {', '.join(RunStatus)}")
    return RunEntry(
        run=fields.text("run"),
        pipeline=fields.text("pipeline"),
        status=RunStatus(status),
        submitted_at_s=fields.number("submitted_at"),
        ended_at_s=fields.maybe_number("ended_at"),
        message=fields.text("message", ""),
        parent=fields.text("parent", ""),
        root=fields.text("root", ""),
        sequence=fields.whole("sequence", 0),
    )
