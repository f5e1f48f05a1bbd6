"""Telemetry as payloads: the lines that a step's body writes.

Who ran the attempt tells them in batches, on a subject that says run, step and attempt. Nothing is decided by
them, so a batch may be lost; what a writer had to leave out, because there was too much, is counted in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.codec import decode_map, encode_map
from evpipe.wire.limits import LINE_CHARS_MAX, PAYLOAD_BYTES_MAX
from evpipe.wire.values import check_size

#: Streams by their number on the wire.
_STREAMS: Final = {1: "stdout", 2: "stderr"}
_NUMBERS: Final = {name: number for number, name in _STREAMS.items()}
#: The end of the year 9999: the last moment that a calendar of this library knows.
_AT_S_MAX: Final = 253_402_300_799.0


class LogLine(NamedTuple):
    """One line of output."""

    #: When it was written, by its worker's clock, seconds since 1970.
    at_s: float
    #: "stdout" or "stderr".
    stream: str
    #: Without the line's end.
    text: str


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
    # More entries than three are a newer writer's.
    if not isinstance(found, list) or len(found) < 3:
        raise RemoteProtocolError("the output: a line is a list of time, stream and text")
    at_s, stream, text = found[:3]
    if isinstance(at_s, bool) or not isinstance(at_s, (int, float)) or not 0 <= at_s <= _AT_S_MAX:
        raise RemoteProtocolError("the output: the time of a line is no seconds since 1970")
    if isinstance(stream, bool) or not isinstance(stream, int) or stream not in _STREAMS:
        raise RemoteProtocolError("the output: a line is of no stream that there is")
    if not isinstance(text, str):
        raise RemoteProtocolError(f"the output: the text of a line is of type {type(text).__name__}")
    return LogLine(float(at_s), _STREAMS[stream], text)


def _cut(text: str) -> str:
    """Make a line fit for the wire: what a process wrote may be of any length and hold lone surrogates."""
    text = text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…"
    return text.encode(errors="backslashreplace").decode()
