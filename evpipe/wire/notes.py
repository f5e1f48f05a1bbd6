"""What an attempt records beside its output, on the wire: with its end, and live as telemetry.

With the event that ends it everything is kept: a field `notes`, a map with the points of its metrics and its named
artifacts. Before that they are kept in pieces, events of the kind `progress`, each with what is new; of an attempt that
nobody can end with its notes these are all there is. Live, points and progress are telemetry of the kinds `metric` and
`progress`, which may be lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgpack

from evpipe.core.artifact import Artifact
from evpipe.core.notes import AT_S_MAX, Notes
from evpipe.errors import LimitExceeded, RemoteProtocolError
from evpipe.wire.artifacts import ArtifactWriter
from evpipe.wire.codec import Fields, decode_map, encode_map
from evpipe.wire.limits import NOTE_BYTES_MAX, NOTES_BYTES_MAX
from evpipe.wire.storing import encode_stored, store_encoded
from evpipe.wire.values import pack, pack_unchecked

#: The kinds of telemetry.
METRIC: Final = "metric"
PROGRESS: Final = "progress"
#: The field of `succeeded`, `failed`, `skipped`, `cached`, and of the log's `progress`.
FIELD: Final = "notes"


class Progress(NamedTuple):
    """How far an attempt is, as it said last."""

    #: The step of the run, and the number of its attempt.
    step: str
    attempt: int
    #: From 0 to 1.
    fraction: float
    message: str
    #: When, by its worker's clock, seconds since 1970.
    at_s: float


class Piece(NamedTuple):
    """What an attempt recorded up to some moment of its work, from the last piece that the log had then on."""

    attempt: int
    #: Who ran it: where two did, each tells of its own execution.
    worker: str
    #: Counts the pieces of the worker's execution from 0. One that was stored twice has the same.
    number: int
    #: How many points it recorded before those in `notes`. Pieces may overlap: the log may have had one unanswered.
    offset: int
    #: `left_out` is of the attempt so far; artifacts are those that are new, or have another value now.
    notes: Notes

    @property
    def points(self) -> int:
        """How many points it has."""
        metrics = self.notes.metrics
        return metrics.length or 0 if isinstance(metrics, Artifact) else len(metrics)


# ---- with the end of an attempt


def encode_artifact(value: Any, name: str, step: str, writer: ArtifactWriter) -> bytes:
    """Encode a named artifact in a few bytes.

    Raises:
        EncodingError, LimitExceeded: as of an output.
    """
    what = f"the artifact {name!r} of step {step!r}"
    packed = encode_stored(value, what, writer)
    if len(packed) <= NOTE_BYTES_MAX:
        return packed
    return pack(store_encoded(packed, value, what, writer, part=True, numbers_max=0), what)


def check_room(size_bytes: int, name: str, step: str) -> None:
    """Refuse an artifact for which there is no room any more.

    Args:
        size_bytes: of all of the attempt's, as they travel in the event.
    """
    if size_bytes > NOTES_BYTES_MAX:
        raise LimitExceeded(
            f"the artifact {name!r} of step {step!r} is one too many: what stands for them has {size_bytes:,} bytes "
            f"then, and {NOTES_BYTES_MAX:,} are allowed; record one artifact that is a dict or a folder",
            limit="NOTES_BYTES_MAX",
            found=size_bytes,
            allowed=NOTES_BYTES_MAX,
        )


def encode_notes(metrics: bytes, left_out: int, artifacts: Mapping[str, bytes]) -> bytes:
    """Encode the notes of an attempt.

    Args:
        metrics: rows as a packed list, or the packed artifact that stands for them; b"" if there are none.
        artifacts: packed values by name.
    """
    parts = [part for name, packed in artifacts.items() for part in (pack_unchecked(name), packed)]
    found = [
        *((pack_unchecked("metrics"), metrics) if metrics else ()),
        *((pack_unchecked("left_out"), pack_unchecked(left_out)) if left_out else ()),
        *((pack_unchecked("artifacts"), _map_head(len(artifacts)), *parts) if artifacts else ()),
    ]
    return _map_head(bool(metrics) + bool(left_out) + bool(artifacts)) + b"".join(found)


def packed_row(name: str, value: float, iteration: int | None, at_s: float) -> bytes:
    """Make a point as it travels."""
    packed: bytes = msgpack.packb([name, value, iteration, at_s])
    return packed


def encode_rows(count: int, packed: bytes) -> bytes:
    """Make a list of rows that are packed one after the other."""
    if count < 16:
        return bytes((0x90 | count,)) + packed
    return b"\xdd" + count.to_bytes(4, "big") + packed


def with_notes(payload: bytes, notes: bytes) -> bytes:
    """Give the payload of an attempt's end with its notes, which are packed."""
    assert 0x80 <= payload[0] < 0x8F, "a fixmap with room for one more entry"
    return bytes((payload[0] + 1,)) + payload[1:] + pack_unchecked(FIELD) + notes


def notes_map(notes: Notes) -> dict[str, Any]:
    """Give decoded notes as they travel."""
    fields: dict[str, Any] = {}
    if isinstance(notes.metrics, Artifact) or notes.metrics:
        fields["metrics"] = notes.metrics
    if notes.left_out:
        fields["left_out"] = notes.left_out
    if notes.artifacts:
        fields["artifacts"] = dict(notes.artifacts)
    return fields


def notes_of(fields: Fields) -> Notes | None:
    """Read the notes of an event; None if it has none.

    Raises:
        RemoteProtocolError: if they are none. Of the points, this is seen when they are read.
    """
    if FIELD not in fields.map:
        return None
    found = Fields(fields.submap(FIELD), f"{fields.what}: its notes")
    metrics: Any = found.map.get("metrics", ())
    artifacts = found.submap("artifacts")
    if not isinstance(metrics, (list, tuple, Artifact)):
        raise RemoteProtocolError(f"{found.what}: field 'metrics' is of type {type(metrics).__name__}, not a list")
    if not all(isinstance(name, str) for name in artifacts):
        raise RemoteProtocolError(f"{found.what}: the name of an artifact is no text")
    return Notes(metrics=metrics, left_out=found.whole("left_out", 0), artifacts=artifacts)


def _map_head(length: int) -> bytes:
    return bytes((0x80 | length,)) if length < 16 else b"\xdf" + length.to_bytes(4, "big")


# ---- in pieces


def encode_piece(attempt: int, worker: str, number: int, offset: int, notes: bytes) -> bytes:
    """Encode a piece, whose notes are packed."""
    return with_notes(encode_map({"attempt": attempt, "worker": worker, "number": number, "offset": offset}), notes)


def decode_piece(data: bytes) -> Piece:
    """Decode a piece; RemoteProtocolError if it is none. Of its points, this is seen when they are read."""
    fields = decode_map(data, "the event 'progress'")
    notes = notes_of(fields)
    if notes is None:
        raise RemoteProtocolError(f"{fields.what}: field {FIELD!r} is missing")
    if isinstance(notes.metrics, Artifact) and notes.metrics.length is None:
        raise RemoteProtocolError(f"{fields.what}: its points are stored, and it does not say how many they are")
    return Piece(
        attempt=fields.whole("attempt"),
        worker=fields.text("worker", ""),
        number=fields.whole("number"),
        offset=fields.whole("offset"),
        notes=notes,
    )


# ---- live


class LivePoints(NamedTuple):
    """Points as they are told live."""

    rows: list[Any]
    #: Points before these that were not told, because there were too many.
    left_out: int = 0
    #: Who runs the attempt, and how many points it recorded before these; "" where an older writer does not say.
    worker: str = ""
    offset: int = 0


def encode_points(rows: bytes, left_out: int, worker: str = "", offset: int = 0) -> bytes:
    """Encode live points.

    Args:
        rows: as a packed list.
    """
    fields: dict[str, Any] = {"left_out": left_out} if left_out else {}
    if worker:
        fields |= {"worker": worker, "offset": offset}
    head = encode_map(fields)
    return bytes((head[0] + 1,)) + head[1:] + pack_unchecked("points") + rows


def decode_points(data: bytes) -> LivePoints:
    """Decode live points; RemoteProtocolError if they are none."""
    fields = decode_map(data, "the points")
    return LivePoints(
        fields.items("points"), fields.whole("left_out", 0), fields.text("worker", ""), fields.whole("offset", 0)
    )


def encode_progress(fraction: float, message: str, at_s: float) -> bytes:
    return encode_map({"fraction": fraction, "message": message, "at": at_s})


def decode_progress(data: bytes, step: str, attempt: int) -> Progress:
    """Decode what an attempt says of its progress; RemoteProtocolError if it is nothing of that kind."""
    fields = decode_map(data, "the progress")
    fraction, at_s = fields.number("fraction"), fields.number("at")
    if not 0 <= fraction <= 1:
        raise RemoteProtocolError(f"the progress: field 'fraction' is {fraction}, it must be from 0 to 1")
    if not 0 <= at_s <= AT_S_MAX:
        raise RemoteProtocolError("the progress: field 'at' is no seconds since 1970")
    return Progress(step, attempt, fraction, fields.text("message", ""), at_s)
