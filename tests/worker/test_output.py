"""What steps write comes line by line under the step and attempt that wrote it, bounded, and holds no step up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evpipe.wire.limits import LINE_CHARS_MAX
from evpipe.worker.children.output import Lines
from tests.core.budget import examples
from tests.worker import writing
from tests.worker.helpers import Ran, run_of

CUT = "x" * (LINE_CHARS_MAX - 1) + "…"
NEXT = ["next out 0", "next out 1", "next out 2", "next end"]


def own_lines(found: Ran, name: str) -> None:
    """Exactly what `both` writes, by stream, in order."""
    assert found.texts(name, 1, stream="stdout") == [*(f"{name} out {i}" for i in range(3)), f"{name} end"]
    assert found.texts(name, 1, stream="stderr") == [f"{name} err {i}" for i in range(3)]


def test_lines_by_step() -> None:
    """Two steps in one child, one after the other: each line is told once, and of its own step."""
    found = run_of(writing.chain, slots=1)
    assert {entry.step for entry in found.written} == {"both", "two"}
    assert found.texts("both", stream="stdout")[-1] == "one end"
    own_lines(found, "two")
    assert len(found.written) == 14
    assert [entry.at_s for entry in found.written] == sorted(entry.at_s for entry in found.written)


def test_lines_by_attempt(tmp_path: Path) -> None:
    """Attempts of one step are told apart."""
    found = run_of(writing.attempts, file=str(tmp_path / "attempts"))
    written = [(entry.attempt, entry.text) for entry in found.written]
    assert written == [(1, "attempt 1"), (2, "attempt 2"), (3, "attempt 3")]


@pytest.mark.parametrize("local_code", [True, False])
def test_steps_side_by_side(tmp_path: Path, local_code: bool) -> None:
    """Steps that run at once do not get each other's lines, in children and in threads of a host."""
    target = writing.turns if local_code else writing.turns_in_threads
    found = run_of(target, local_code=local_code, folder=str(tmp_path))
    assert found.texts("a") == ["a 1", "a 2"]
    assert found.texts("b") == ["b 1", "b 2"]


def test_binary_and_colours() -> None:
    """Bytes that are no text are replaced, characters are whole however they are written, colours stay."""
    found = run_of(writing.writes, slots=1, kind="junk")
    assert found.texts("junk") == ["\ufffd\ufffd\x00 binary", "\x1b[31mred\x1b[0m", "", "€ euro", "\ufffd"]
    assert found.texts("both", stream="stdout") == NEXT


def test_a_line_of_100_megabytes() -> None:
    """It is cut; the step is not held up, and the line after it is there."""
    found = run_of(writing.writes, slots=1, kind="endless_line")
    assert found.texts("endless_line") == [CUT, "the next line"]
    assert found.value[0] < 10.0
    assert found.texts("both", stream="stdout") == NEXT


def test_many_quick_lines() -> None:
    """Lines come in order, those that are missing are counted, the last ones are there."""
    count = 200_000
    found = run_of(writing.many_lines, count=count)
    at = 0
    for entry in found.written:
        if entry.stream == "evpipe":
            at += int(entry.text.split()[1].replace(",", ""))
        else:
            assert int(entry.text) == at
            at += 1
    assert at == count
    assert found.texts("quick")[-200:] == [str(i) for i in range(count - 200, count)]


def test_progress() -> None:
    """Of a bar that goes back to the start of its line, however often, its last state is the line."""
    found = run_of(writing.writes, slots=1, kind="progress")
    assert found.texts("progress") == ["100 %", "20 %"]


def test_subprocesses() -> None:
    """What a program writes that a step starts is the step's, at its place between the step's own lines."""
    found = run_of(writing.writes, slots=1, kind="subprocesses")
    assert found.texts("subprocesses", stream="stdout") == ["before", "from sh", "without an end"]
    assert found.texts("subprocesses", stream="stderr") == ["to err"]
    assert found.texts("both", stream="stdout") == NEXT


def test_replaced_stdout() -> None:
    """A stream that a step put aside is written out with that step, not with the next."""
    found = run_of(writing.writes, slots=1, kind="replace_stdout")
    assert found.texts("replace_stdout") == ["before"]
    assert found.texts("both", stream="stdout") == NEXT


def test_flood_in_a_host() -> None:
    """A host's steps may print megabytes in one call: lines are cut and counted as elsewhere, and the host lives."""
    found = run_of(writing.floods, local_code=False, count=500, length=10_000)
    assert found.value == 500
    counted = sum(
        int(entry.text.split()[1].replace(",", "")) if entry.stream == "evpipe" else 1 for entry in found.written
    )
    assert counted == 501
    assert found.texts("flood", stream="stdout")[-1] == "z" * (LINE_CHARS_MAX - 1) + "…"


def plainly(data: bytes) -> list[str]:
    """The same as `Lines`, of everything at once."""
    *lines, rest = data.split(b"\n")
    found = []
    for line in [*lines, rest] if rest else lines:
        text = line.removesuffix(b"\r").rpartition(b"\r")[2].decode(errors="replace")
        found.append(text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…")
    return found


PIECES = st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"word ", "日本".encode(), b"l" * 9_000, "é".encode() * 17_000])


@examples(150)
@given(pieces=st.lists(PIECES, max_size=14), cuts=st.lists(st.integers(0, 60_000), max_size=6))
@example(pieces=[b"l" * 9_000] * 5 + [b"\r", b"a", b"\n"], cuts=[45_000, 45_001])
@example(pieces=[b"l" * 9_000] * 5 + [b"\r", b"\n"], cuts=[45_000, 45_001])
def test_any_chunking(pieces: list[bytes], cuts: list[int]) -> None:
    """However a pipe cuts what is written, the same lines come of it."""
    data = b"".join(pieces)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    lines = Lines()
    found: list[str] = []
    for a, b in pairwise(edges):
        found += lines.feed(data[a:b])
        assert len(lines._rest) < 5 * LINE_CHARS_MAX, "more of a line is kept than is told"
    assert found + lines.end() == plainly(data)
