"""Lines of output on the wire: as ever, whatever the text, and refused by name if they are none."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.limits import LINE_CHARS_MAX, LOG_BATCH_BYTES, PAYLOAD_BYTES_MAX, VERSION
from evpipe.wire.telemetry import LEVELS, NO_FIELDS, LogBatch, LogLine, decode_log, encode_log
from tests.core.budget import examples
from tests.wire.plain import LEAVES, trees

BATCH = LogBatch(lines=(LogLine(1.5, "stdout", "hi"), LogLine(2.0, "stderr", "é")), left_out=3)
#: Changes only with `VERSION`, and then this one stays and must still decode.
GOLDEN = "83a17601a56c696e65739293cb3ff800000000000001a2686993cb400000000000000002a2c3a9a86c6566745f6f757403"
GOLDEN_EMPTY = "82a17601a56c696e657390"
GOLDEN_LOGGED = "82a17601a56c696e65739195cb3ff800000000000002a66c6f61646564a4696e666f81a4726f777303"

TEXTS = st.text(max_size=40)
FIELDS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.just("text"),
    max_size=4,
)
LINES = st.builds(
    LogLine, st.floats(0, 2**33), st.sampled_from(["stdout", "stderr"]), TEXTS, st.just(""), st.just(NO_FIELDS)
) | st.builds(LogLine, st.floats(0, 2**33), st.just("log"), TEXTS, st.sampled_from(LEVELS), FIELDS)


def changed(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(bytes.fromhex(GOLDEN)), **fields})
    return packed


def test_a_batch_is_written_and_read_as_ever() -> None:
    assert encode_log(BATCH).hex() == GOLDEN
    assert decode_log(bytes.fromhex(GOLDEN)) == BATCH
    assert encode_log(LogBatch(lines=())).hex() == GOLDEN_EMPTY
    assert decode_log(bytes.fromhex(GOLDEN_EMPTY)) == LogBatch(lines=())


def test_a_line_that_was_logged_is_written_and_read_as_ever() -> None:
    """Who does not know levels reads it as a line of stderr."""
    line = LogLine(1.5, "log", "loaded", "info", {"rows": 3})
    assert encode_log(LogBatch(lines=(line,))).hex() == GOLDEN_LOGGED
    assert decode_log(bytes.fromhex(GOLDEN_LOGGED)).lines == (line,)
    assert msgpack.unpackb(bytes.fromhex(GOLDEN_LOGGED))["lines"] == [[1.5, 2, "loaded", "info", {"rows": 3}]]


def test_a_level_or_fields_of_a_newer_writer() -> None:
    """What is not known is not shown."""
    lines = [[1.0, 2, "a", "loud", {}], [1.0, 2, "b", "info", []], [1.0, 1, "c", "info", {"a": [1], "b": 2}]]
    found = decode_log(changed(lines=lines)).lines
    assert found == (
        LogLine(1.0, "stderr", "a"),
        LogLine(1.0, "stderr", "b"),
        LogLine(1.0, "log", "c", "info", {"b": 2}),
    )


def test_what_a_newer_writer_adds_is_ignored() -> None:
    assert decode_log(changed(added_later=[{}])) == BATCH
    longer = [[*line, "added later"] for line in msgpack.unpackb(bytes.fromhex(GOLDEN))["lines"]]
    assert decode_log(changed(lines=longer)) == BATCH


@given(st.lists(LINES, max_size=20).map(tuple), st.integers(0, 2**40))
@examples(100)
def test_a_batch_comes_back_as_it_was(lines: tuple[LogLine, ...], left_out: int) -> None:
    batch = LogBatch(lines=lines, left_out=left_out)
    fit = tuple(line._replace(text=line.text.encode(errors="backslashreplace").decode()) for line in lines)
    assert decode_log(encode_log(batch)) == LogBatch(lines=fit, left_out=left_out)


def test_a_long_line_is_cut_and_text_that_is_no_unicode_is_escaped() -> None:
    lines = tuple(LogLine(0.0, "stdout", text) for text in ("x" * LINE_CHARS_MAX, "x" * 10_000, "\udcff\ud800"))
    found = [line.text for line in decode_log(encode_log(LogBatch(lines=lines))).lines]
    assert found == ["x" * LINE_CHARS_MAX, "x" * (LINE_CHARS_MAX - 1) + "…", "\\udcff\\ud800"]


def test_a_batch_of_the_usual_size_fits_a_message_by_far() -> None:
    """Whoever captures output looks at the size after a line was added: the longest one is on top of it."""
    worst = "\ud800" * LINE_CHARS_MAX
    assert LOG_BATCH_BYTES + len(encode_log(LogBatch(lines=(LogLine(0.0, "stdout", worst),)))) < PAYLOAD_BYTES_MAX / 4


def test_what_cannot_be_written_is_refused_and_named() -> None:
    with pytest.raises(UsageError, match=r"^stream 'stdin' is none of stdout, stderr$"):
        encode_log(LogBatch(lines=(LogLine(0.0, "stdin", ""),)))
    with pytest.raises(LimitExceeded, match=r"^the batch of output lines is .* at most 921,600 are allowed$"):
        encode_log(LogBatch(lines=(LogLine(0.0, "stdout", "x" * 8_000),) * 120))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"v": 2}, "the output has version 2: this evpipe reads version 1"),
        ({"lines": {}}, "the output: field 'lines' is of type dict, it must be a list"),
        ({"lines": ["text"]}, "the output: a line is a list of time, stream and text"),
        ({"lines": [[1.0, 1]]}, "the output: a line is a list of time, stream and text"),
        ({"lines": [[True, 1, ""]]}, "the output: the time of a line is no seconds since 1970"),
        ({"lines": [["1", 1, ""]]}, "the output: the time of a line is no seconds since 1970"),
        ({"lines": [[float("nan"), 1, ""]]}, "the output: the time of a line is no seconds since 1970"),
        ({"lines": [[-1, 1, ""]]}, "the output: the time of a line is no seconds since 1970"),
        ({"lines": [[1e12, 1, ""]]}, "the output: the time of a line is no seconds since 1970"),
        ({"lines": [[1, 0, ""]]}, "the output: a line is of no stream that there is"),
        ({"lines": [[1, True, ""]]}, "the output: a line is of no stream that there is"),
        ({"lines": [[1, "stdout", ""]]}, "the output: a line is of no stream that there is"),
        ({"lines": [[1, [], ""]]}, "the output: a line is of no stream that there is"),
        ({"lines": [[1, 1, b""]]}, "the output: the text of a line is of type bytes"),
        ({"left_out": -1}, "the output: field 'left_out' is of type int, it must be a whole number from 0"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_log(changed(**fields))
    assert str(caught.value) == sentence


def check(data: bytes) -> None:
    """Bytes either decode into what can be shown, or are refused as those of a remote."""
    with contextlib.suppress(RemoteProtocolError):
        batch = decode_log(data)
        assert batch.left_out >= 0
        for line in batch.lines:
            assert (type(line.at_s), type(line.text)) == (float, str)
            assert line.stream in ("stdout", "stderr", "log")
            assert (line.level in LEVELS) == (line.stream == "log")


@given(st.binary(max_size=200))
@examples(200)
def test_arbitrary_bytes(data: bytes) -> None:
    check(data)


@given(st.data())
@examples(300)
def test_a_valid_batch_with_bytes_changed(data: st.DataObject) -> None:
    found = bytearray(bytes.fromhex(GOLDEN))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(found) - 1))
        found[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        found = found or bytearray(b"\x80")
    check(bytes(found))


@given(st.dictionaries(st.sampled_from(["lines", "left_out"]), trees(LEAVES) | st.lists(st.lists(LEAVES, max_size=4))))
@examples(300)
def test_well_formed_maps_with_any_value_in_any_field(fields: dict[str, Any]) -> None:
    check(msgpack.packb({"v": VERSION, **fields}, default=list))
