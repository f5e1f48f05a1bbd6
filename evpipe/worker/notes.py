"""What an attempt says of itself: kept until it ends, and told live.

    step ─▶ recorder (in its process) ─▶ AttemptNotes (here) ─┬─▶ telemetry: lines, points, progress; may be lost
                                                              ├─▶ pieces: points and artifacts, every second
                                                              └─▶ with the end of the attempt: all points, artifacts

What is kept is here, and not where the step runs, because a process may be killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from evpipe.core.artifact import Artifact
from evpipe.wire.artifacts import VALUE
from evpipe.wire.limits import LOG_BATCH_BYTES, METRIC_POINTS_MAX, NOTE_BYTES_MAX, NOTES_BYTES_MAX
from evpipe.wire.notes import METRIC, PROGRESS, encode_notes, encode_points, encode_progress, encode_rows
from evpipe.wire.subjects import LaunchSubject
from evpipe.wire.telemetry import LOG, LogLine
from evpipe.wire.values import pack
from evpipe.worker.pieces import Part, Pieces, Trail
from evpipe.worker.telemetry import ATTEMPT_BYTES_MAX, BATCHES_PER_GATHERING, AttemptLog, LogBook

#: Lines that wait for the worker's loop; a thread that writes more meanwhile has the rest left out.
LINES_WAITING_MAX: Final = 10_000


class Kept:
    """What is told with the end of an attempt."""

    #: What of it the log has in pieces: bytes of rows, points, points that were left out, artifacts.
    _had_bytes = 0
    _had_count = 0
    _had_left_out = 0
    _had_artifacts: Mapping[str, bytes] = MappingProxyType({})
    #: Of names and artifacts, all together: there may be tens of thousands.
    _artifact_bytes = 0

    def __init__(self) -> None:
        #: Rows one after the other, and how many.
        self._rows = bytearray()
        self.count = 0
        self.left_out = 0
        #: By name, packed.
        self.artifacts: dict[str, bytes] = {}

    def add_rows(self, rows: bytes, count: int, left_out: int = 0) -> bool:
        """Take points.

        Returns:
            Whether there was room for them; if not, they are counted.
        """
        self.left_out += left_out
        if self.count + count > METRIC_POINTS_MAX:
            self.left_out += count
            return False
        self._rows += rows
        self.count += count
        return True

    def add_artifact(self, name: str, packed: bytes) -> None:
        """Take an artifact; one that is too many is refused where it is recorded, and left out here."""
        before = self.artifacts.get(name)
        others = self._artifact_bytes - (0 if before is None else len(name) + len(before))
        together = others + len(name) + len(packed)
        if together <= NOTES_BYTES_MAX:
            self.artifacts[name] = packed
            self._artifact_bytes = together

    @property
    def any(self) -> bool:
        return bool(self.count or self.left_out or self.artifacts)

    def news(self) -> Part | None:
        """Give what the log does not have; None if it has all."""
        new = {name: packed for name, packed in self.artifacts.items() if self._had_artifacts.get(name) is not packed}
        if self.count == self._had_count and self.left_out == self._had_left_out and not new:
            return None
        rows = bytes(memoryview(self._rows)[self._had_bytes :])
        return Part(self._had_count, rows, self.count - self._had_count, self.left_out, new)

    def had(self, part: Part) -> bool:
        """Take note that the log has a part; says whether there is more by now."""
        # A part begins where the log had ended when it was made, which may have had another since.
        if part.offset == self._had_count:
            self._had_bytes += len(part.rows)
            self._had_count += part.points
        self._had_left_out = max(self._had_left_out, part.left_out)
        self._had_artifacts = {**self._had_artifacts, **part.artifacts}
        return (
            self.count > self._had_count
            or self.left_out > self._had_left_out
            or self.artifacts != dict(self._had_artifacts)
        )

    def packed(self, folder: Callable[[], Path]) -> tuple[bytes, bool]:
        """Give the notes as they travel.

        Args:
            folder: gives the folder to which points are written, by their digest, that are too many to travel.

        Returns:
            The packed notes, and whether there is such a file.
        """
        if not self.count:
            return encode_notes(b"", self.left_out, self.artifacts), False
        rows = encode_rows(self.count, bytes(self._rows))
        if len(rows) <= NOTE_BYTES_MAX:
            return encode_notes(rows, self.left_out, self.artifacts), False
        digest = hashlib.sha256(rows).hexdigest()
        (folder() / digest).write_bytes(rows)
        artifact = Artifact(kind=VALUE, digest=digest, size_bytes=len(rows), length=self.count)
        return encode_notes(pack(artifact, "the points"), self.left_out, self.artifacts), True


class AttemptNotes:
    """The notes of one attempt of this worker. Attempts in its process call from their threads, too."""

    # Most attempts say nothing: these are set by those that do, and one that is quick pays for none of them.
    _closed = False
    _waiting = False
    _log: AttemptLog | None = None
    #: None: it has recorded nothing.
    kept: Kept | None = None
    _progress: tuple[float, str, float] | None = None
    #: Points on their way to telemetry: rows, and how many.
    _live: list[tuple[bytes, int]] | None = None
    _live_left_out = 0
    _live_total = 0
    #: Points that were told or left out.
    _live_count = 0
    #: Lines of other threads, and how many there was no room for.
    _lines: list[LogLine] | None = None
    _missed = 0

    #: Its pieces, if it has some.
    trail: Trail | None = None

    def __init__(
        self, book: LogBook, launch: LaunchSubject, pipeline: str = "", folder: str = "", pieces: Pieces | None = None
    ) -> None:
        self._book = book
        self._pieces = pieces
        self.launch = launch
        self.pipeline = pipeline
        #: Of the attempt; need not exist.
        self.folder = folder

    @property
    def log(self) -> AttemptLog:
        """The lines that the attempt writes; for the worker's own thread."""
        if self._log is None:
            self._log = self._book.log_of(self.launch)
        return self._log

    # ---- from the attempt

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        with self._book.lock:
            self._progress = (fraction, message, at_s)
            self._wake()

    def points(self, rows: bytes, count: int, left_out: int = 0) -> None:
        """Take points, as rows one after the other."""
        with self._book.lock:
            if self._closed:
                return
            if self._keep().add_rows(rows, count, left_out) and count:
                if self._live is None:
                    self._live = []
                self._live.append((rows, count))
                self._wake()

    def artifact(self, name: str, packed: bytes) -> None:
        with self._book.lock:
            if not self._closed:
                self._keep().add_artifact(name, packed)
                self._wake()

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        line = LogLine(at_s, LOG, text, level, fields)
        if self._book.here:
            if not self._closed:
                self.log.take((line,))
            return
        with self._book.lock:
            if self._lines is None:
                self._lines = []
            if len(self._lines) < LINES_WAITING_MAX:
                self._lines.append(line)
            else:
                self._missed += 1
            self._wake()

    def _keep(self) -> Kept:
        if self.kept is None:
            self.kept = Kept()
        return self.kept

    def _wake(self) -> None:
        if self._waiting or self._closed:
            return
        self._waiting = True
        if self._book.here:
            self._book.gather(self)
        else:
            self._book.gather_soon(self)

    # ---- from the worker

    def flush(self) -> None:
        """Tell what has gathered."""
        with self._book.lock:
            self._waiting = False
            progress, self._progress = self._progress, None
            live, self._live = self._live, None
            lines, self._lines = self._lines, None
            missed, self._missed = self._missed, 0
        if lines:
            self.log.take(lines)
        if missed:
            self.log.miss(missed)
        if progress is not None:
            self._book.tell(self._book.subject(self.launch, PROGRESS), encode_progress(*progress))
        if live:
            self._tell_points(live)
        if self.kept is not None and self._pieces is not None and not self._closed:
            self._pieces.note(self)

    def news(self) -> Part | None:
        """Give what the log does not have of what was recorded; None if it has all."""
        with self._book.lock:
            return None if self.kept is None else self.kept.news()

    def had(self, part: Part) -> bool:
        """Take note that the log has a part; says whether there is more by now."""
        with self._book.lock:
            return self.kept is not None and self.kept.had(part)

    def end(self) -> None:
        """Tell the rest: the attempt has ended, and what it goes on to say is nobody's."""
        if self._closed:
            return
        if self.kept is None and self._progress is None and self._lines is None:
            self._closed = True
        else:
            with self._book.lock:
                self._closed = True
            self.flush()
        if self._log is not None:
            self._log.end()
        if self.trail is not None and self._pieces is not None:
            self._pieces.end(self.trail)

    def _tell_points(self, live: list[tuple[bytes, int]]) -> None:
        batches, rows, count, offset = 0, bytearray(), 0, 0
        for packed, number in [*live, (b"", 0)]:
            if rows and (len(rows) + len(packed) > LOG_BATCH_BYTES or not number):
                packed_rows = encode_rows(count, bytes(rows))
                payload = encode_points(packed_rows, self._live_left_out, self._book.worker, offset)
                self._book.tell(self._book.subject(self.launch, METRIC), payload)
                self._live_left_out = 0
                batches, rows, count = batches + 1, bytearray(), 0
            if batches >= BATCHES_PER_GATHERING or self._live_total > ATTEMPT_BYTES_MAX:
                # The attempt's end tells all of them.
                self._live_left_out += number
                self._live_count += number
                continue
            if not rows:
                offset = self._live_count
            self._live_count += number
            rows += packed
            count += number
            self._live_total += len(packed)
