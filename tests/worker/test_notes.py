"""What an attempt says is kept in full or counted, and told live as far as there is room."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.artifact import Artifact
from evpipe.core.notes import Notes, points_of
from evpipe.wire import limits
from evpipe.wire.codec import decode_map, encode_map
from evpipe.wire.limits import LOG_BATCH_BYTES, NOTE_BYTES_MAX
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.notes import decode_points, decode_progress, notes_of, packed_row, with_notes
from evpipe.wire.storing import open_stored
from evpipe.wire.subjects import LaunchSubject
from evpipe.wire.telemetry import LogBatch, LogLine
from evpipe.wire.values import pack
from evpipe.worker import notes as module
from evpipe.worker import recording
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.notes import AttemptNotes
from evpipe.worker.recording import AttemptRecorder
from evpipe.worker.telemetry import BATCHES_PER_GATHERING, AttemptLog, LogBook
from tests.core.budget import examples

LAUNCH = LaunchSubject("default", 5, "aaaaaaaa", "train", 2)
ORDER = LaunchOrder(pipeline="churn", code={}, executor="thread", arguments={})


class Book:
    """A book that nobody reads from but the test; its thread is the test's."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.lines: list[LogLine] = []
        self.left_out = 0
        self.gathered: list[Any] = []
        self.lock = threading.Lock()
        self.worker = "worker-1"
        self._thread = threading.get_ident()

    @property
    def here(self) -> bool:
        return threading.get_ident() == self._thread

    def log_of(self, launch: LaunchSubject) -> AttemptLog:
        return AttemptLog(cast("LogBook", self), "log")

    def subject(self, launch: LaunchSubject, kind: str) -> str:
        return kind

    def gather(self, log: Any) -> None:
        self.gathered.append(log)

    gather_soon = gather

    def send(self, subject: str, batch: LogBatch) -> None:
        self.lines += batch.lines
        self.left_out += batch.left_out

    def tell(self, subject: str, payload: bytes) -> None:
        assert len(payload) <= LOG_BATCH_BYTES + 64, "larger than a batch may be"
        self.told.append((subject, payload))

    @property
    def points(self) -> tuple[list[Any], int]:
        """The rows that were told, and how many were left out before the last of them."""
        rows: list[Any] = []
        missing = 0
        for subject, payload in self.told:
            if subject == "metric":
                found = decode_points(payload)
                # Each says where it is: after all that were told or left out before.
                assert (found.worker, found.offset) == ("worker-1", len(rows) + missing + found.left_out)
                rows += found.rows
                missing += found.left_out
        return rows, missing


def made(tmp_path: Path) -> tuple[Book, AttemptNotes, AttemptRecorder]:
    book = Book()
    notes = AttemptNotes(cast("LogBook", book), LAUNCH)
    files = AttemptFiles.below(str(tmp_path), allow_pickle=False)
    return book, notes, AttemptRecorder(LAUNCH, ORDER, notes, files, str(tmp_path))


def kept(notes: AttemptNotes, folder: Path) -> tuple[Notes, bool]:
    assert notes.kept is not None
    packed, wrote = notes.kept.packed(lambda: folder)
    found = notes_of(decode_map(with_notes(encode_map({}), packed), "the event"))
    assert found is not None
    return found, wrote


def rows_of(found: Notes, folder: Path) -> list[Any]:
    if not isinstance(found.metrics, Artifact):
        return list(found.metrics)
    assert found.metrics.length is not None
    return cast("list[Any]", open_stored((folder / found.metrics.digest).read_bytes()))


def row(i: int, length: int) -> list[Any]:
    return ["x" * length, float(i), i, 1.5]


BURSTS = st.lists(
    st.tuples(st.sampled_from([1, 10, 200]), st.sampled_from([0, 1, 3, 200, 2_000])), min_size=1, max_size=6
)


@examples(20)
@given(bursts=BURSTS)
def test_every_point_is_kept(bursts: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """However they come; live all are told in order, or counted as left out before the next that is."""
    folder = tmp_path_factory.mktemp("out")
    book, notes, _ = made(folder)
    written: list[Any] = []
    for length, count in bursts:
        if not count:
            notes.flush()
        for _ in range(count):
            written.append(row(len(written), length))
            notes.points(packed_row(*written[-1]), 1)
    notes.end()
    if not written:
        assert notes.kept is None
        return
    found, wrote = kept(notes, folder)
    assert rows_of(found, folder) == written
    assert wrote == (sum(len(packed_row(*one)) for one in written) + 5 > NOTE_BYTES_MAX)
    assert points_of(rows_of(found, folder), "train", 2)[-1].value == len(written) - 1
    live, missing = book.points
    at = [one[2] for one in live]
    assert at == sorted(set(at))
    assert len(live) + missing <= len(written)
    assert all(one == written[one[2]] for one in live)


def test_a_flood_is_told_in_part(tmp_path: Path) -> None:
    """Between two gatherings only so many batches are told; what was left out is counted in the next."""
    book, notes, _ = made(tmp_path)
    count = 40_000
    for i in range(count):
        notes.points(packed_row(*row(i, 20)), 1)
    notes.flush()
    live, missing = book.points
    assert (len(book.told), missing) == (BATCHES_PER_GATHERING, 0)
    notes.points(packed_row(*row(count, 20)), 1)
    notes.end()
    rows, missing = book.points
    assert rows[-1] == row(count, 20)
    assert len(live) + missing == count
    assert len(rows_of(kept(notes, tmp_path)[0], tmp_path)) == count + 1


def test_points_past_the_limit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is not held up; it is said once among its lines."""
    monkeypatch.setattr(recording, "METRIC_POINTS_MAX", 10)
    book, notes, recorder = made(tmp_path)
    for i in range(25):
        recorder.metric("loss", float(i), i, 1.5)
    notes.end()
    found, _ = kept(notes, tmp_path)
    assert ([one[1] for one in found.metrics], found.left_out) == ([float(i) for i in range(10)], 15)
    assert [(line.level, line.text) for line in book.lines] == [
        ("warning", "metrics: 10 points are kept of an attempt, what follows is counted only")
    ]
    # Whoever counts does not believe who says it.
    monkeypatch.setattr(module, "METRIC_POINTS_MAX", 10)
    _, other, _ = made(tmp_path)
    for i in range(12):
        other.points(packed_row(*row(i, 1)), 1)
    assert other.kept is not None
    assert (other.kept.count, other.kept.left_out) == (10, 2)
    assert limits.METRIC_POINTS_MAX == 1_000_000


def test_artifacts_past_the_limit_are_left_out(tmp_path: Path) -> None:
    """A process that does not count them cannot make an event that no server takes."""
    _, notes, _ = made(tmp_path)
    for i in range(100):
        notes.artifact(f"a{i}", pack("x" * 4_000, "an artifact"))
    notes.artifact("a0", pack("y" * 4_000, "an artifact"))
    found, _ = kept(notes, tmp_path)
    assert list(found.artifacts) == [f"a{i}" for i in range(65)]
    assert found.artifacts["a0"] == "y" * 4_000


def test_very_many_artifacts_take_no_longer_each(tmp_path: Path) -> None:
    """The worker has other attempts: 20,000 took it 12 s when each was counted with all before it."""
    _, notes, recorder = made(tmp_path)
    began_s = time.process_time()
    for i in range(20_000):
        recorder.artifact(f"a{i}", i)
        recorder.artifact(f"a{i}", i)
    assert time.process_time() - began_s < 6
    found, _ = kept(notes, tmp_path)
    assert len(found.artifacts) == 20_000


def test_progress_is_told_when_it_changed(tmp_path: Path) -> None:
    """What was said last."""
    book, notes, recorder = made(tmp_path)
    for i in range(11):
        recorder.progress(i / 10, f"{i}", 1.5)
    assert len(book.gathered) == 1
    notes.flush()
    notes.flush()
    recorder.progress(0.5, "again", 2.0)
    notes.end()
    found = [decode_progress(payload, "train", 2) for _, payload in book.told]
    assert [(one.fraction, one.message) for one in found] == [(1.0, "10"), (0.5, "again")]
    assert notes.kept is None


def test_from_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many may speak at once; lines that are too many are counted."""
    monkeypatch.setattr(module, "LINES_WAITING_MAX", 50)
    book, notes, recorder = made(tmp_path)

    def speak(number: int) -> None:
        for i in range(200):
            recorder.metric(f"m{number}", float(i), i, 1.5)
            recorder.line("info", f"{number}: {i}", {"a": 1}, 1.5)

    threads = [threading.Thread(target=speak, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert book.lines == []
    assert book.gathered == [notes]
    notes.end()
    rows = rows_of(kept(notes, tmp_path)[0], tmp_path)
    for number in range(4):
        assert [one[1] for one in rows if one[0] == f"m{number}"] == [float(i) for i in range(200)]
    assert (len(book.lines), book.left_out) == (50, 750)


def test_after_its_end_nothing_is_taken(tmp_path: Path) -> None:
    """A thread that goes on says nothing more."""
    book, notes, recorder = made(tmp_path)
    recorder.metric("loss", 1.0, None, 1.5)
    notes.end()
    told = list(book.told)
    for one in (recorder, AttemptRecorder(LAUNCH, ORDER, notes, recorder._files, str(tmp_path))):
        one.metric("loss", 2.0, None, 1.5)
        one.artifact("late", 1)
        one.progress(1.0, "", 1.5)
        one.line("info", "late", {}, 1.5)
        one.closed = True
    notes.end()
    found, _ = kept(notes, tmp_path)
    assert (len(found.metrics), dict(found.artifacts), book.lines) == (1, {}, [])
    assert [payload for subject, payload in book.told if subject == "metric"] == [told[0][1]]


def test_artifacts_are_stored_when_they_are_named(tmp_path: Path) -> None:
    """What is small travels, what is not is a file; the folder is made by whoever needs it."""
    _, notes, recorder = made(tmp_path / "attempt")
    recorder.artifact("small", {"a": (1, 2)})
    assert not (tmp_path / "attempt").exists()
    recorder.artifact("large", list(range(5_000)))
    recorder.artifact("small", "again")
    found, wrote = kept(notes, tmp_path)
    assert not wrote
    assert list(found.artifacts) == ["small", "large"]
    assert found.artifacts["small"] == "again"
    large = found.artifacts["large"]
    assert isinstance(large, Artifact)
    assert (tmp_path / "attempt" / "out" / large.digest).stat().st_size == large.size_bytes
    assert recorder.folder() == recorder.folder() == tmp_path / "attempt" / "work"
    assert list(recorder.folder().iterdir()) == []
