"""Telemetry as payloads: the lines that a step's body writes, or logs with a level and fields.

Who ran the attempt tells them in batches, on a subject that says run, step and attempt. Nothing is decided by
them, so a batch may be lost; what a writer had to leave out, because there was too much, is counted in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from evpipe.core.notes import AT_S_MAX
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.codec import decode_map, encode_map
from evpipe.wire.limits import LINE_CHARS_MAX, PAYLOAD_BYTES_MAX
from evpipe.wire.values import check_size

#: Streams by their number on the wire.
_STREAMS: Final = {1: "stdout", 2: "stderr"}
_NUMBERS: Final = {name: number for number, name in _STREAMS.items()}
#: The stream of lines that were logged. On the wire they are lines of stderr with a level: who knows no levels shows
#: them as such.
LOG: Final = "log"
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
NO_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({})
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


class LogLine(NamedTuple):
    """One line of output."""

    #: When it was written, by its worker's clock, seconds since 1970.
    at_s: float
    #: "stdout", "stderr" or "log".
    stream: str
    #: Without the line's end.
    text: str
    #: Of a line that was logged; "" of others.
    level: str = ""
    #: What it was logged with: None, bools, numbers and texts.
    fields: Mapping[str, Any] = NO_FIELDS


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBatch:
    """Lines of one attempt, in the order in which they were written."""

    lines: tuple[LogLine, ...]
    #: Lines that were dropped before these, because there were too many.
    left_out: int = 0


def encode_log(batch: LogBatch) -> bytes:
    """Encode lines of output; a line over `LINE_CHARS_MAX` is cut and ends in "…".

    Raises:
        UsageError: if a line is of no stream that there is.
        LimitExceeded: if the batch is larger than a message may be.

    """
    lines: list[list[Any]] = []
    for line in batch.lines:
        if line.stream == LOG:
            lines.append([line.at_s, _NUMBERS["stderr"], _cut(line.text), line.level, dict(line.fields)])
            continue
        if line.stream not in _NUMBERS:
            raise UsageError(f"stream {line.stream!r} is none of {', '.join(_NUMBERS)}")
        lines.append([line.at_s, _NUMBERS[line.stream], _cut(line.text)])
    fields: dict[str, Any] = {"lines": lines}
    if batch.left_out:
        fields["left_out"] = batch.left_out
    data = encode_map(fields)
    check_size(data, "the batch of output lines", "PAYLOAD_BYTES_MAX", PAYLOAD_BYTES_MAX)
    return data


def decode_log(data: bytes) -> LogBatch:
    """Decode lines of output; RemoteProtocolError if they are none."""
    fields = decode_map(data, "the output")
    lines = tuple(_line(found) for found in fields.items("lines"))
    return LogBatch(lines=lines, left_out=fields.whole("left_out", 0))


def _line(found: Any) -> LogLine:
    # More entries than these, or others, are a newer writer's.
    if not isinstance(found, list) or len(found) < 3:
        raise RemoteProtocolError("the output: a line is a list of time, stream and text")
    at_s, stream, text = found[:3]
    if isinstance(at_s, bool) or not isinstance(at_s, (int, float)) or not 0 <= at_s <= AT_S_MAX:
        raise RemoteProtocolError("the output: the time of a line is no seconds since 1970")
    if isinstance(stream, bool) or not isinstance(stream, int) or stream not in _STREAMS:
        raise RemoteProtocolError("the output: a line is of no stream that there is")
    if not isinstance(text, str):
        raise RemoteProtocolError(f"the output: the text of a line is of type {type(text).__name__}")
    if len(found) >= 5 and found[3] in LEVELS and isinstance(found[4], dict):
        return LogLine(float(at_s), LOG, text, found[3], _fields(found[4]))
    return LogLine(float(at_s), _STREAMS[stream], text)


def _fields(found: dict[Any, Any]) -> Mapping[str, Any]:
    """Keep what may be shown: a newer writer may know more."""
    return {name: value for name, value in found.items() if type(name) is str and type(value) in _PLAIN}


def _cut(text: str) -> str:
    """Make a line fit for the wire: what a process wrote may be of any length and hold lone surrogates."""
    text = text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…"
    return text.encode(errors="backslashreplace").decode()
