"""What an attempt says of itself: kept until it ends, and told live.

    step ─▶ recorder (in its process) ─▶ AttemptNotes (here) ─┬─▶ telemetry: lines, points, progress; may be lost
                                                              └─▶ with the end of the attempt: all points, artifacts

What is kept is here, and not where the step runs, because a process may be killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from evpipe.core.artifact import Artifact
from evpipe.wire.artifacts import VALUE
from evpipe.wire.limits import LOG_BATCH_BYTES, METRIC_POINTS_MAX, NOTE_BYTES_MAX
from evpipe.wire.notes import METRIC, PROGRESS, encode_notes, encode_points, encode_progress, encode_rows
from evpipe.wire.subjects import LaunchSubject
from evpipe.wire.telemetry import LOG, LogLine
from evpipe.wire.values import pack
from evpipe.worker.telemetry import ATTEMPT_BYTES_MAX, BATCHES_PER_GATHERING, AttemptLog, LogBook

#: Lines that wait for the worker's loop; a thread that writes more meanwhile has the rest left out.
LINES_WAITING_MAX: Final = 10_000


class Kept:
    """What is told with the end of an attempt."""

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

    @property
    def any(self) -> bool:
        return bool(self.count or self.left_out or self.artifacts)

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

    # Most attempts say nothing: these are set by those that do, and one that is quick pays for two attributes.
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
    #: Lines of other threads, and how many there was no room for.
    _lines: list[LogLine] | None = None
    _missed = 0

    def __init__(self, book: LogBook, launch: LaunchSubject) -> None:
        self._book = book
        self._launch = launch

    @property
    def log(self) -> AttemptLog:
        """The lines that the attempt writes; for the worker's own thread."""
        if self._log is None:
            self._log = self._book.log_of(self._launch)
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
                self._keep().artifacts[name] = packed

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
            self._book.tell(self._book.subject(self._launch, PROGRESS), encode_progress(*progress))
        if live:
            self._tell_points(live)

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

    def _tell_points(self, live: list[tuple[bytes, int]]) -> None:
        batches, rows, count = 0, bytearray(), 0
        for packed, number in [*live, (b"", 0)]:
            if rows and (len(rows) + len(packed) > LOG_BATCH_BYTES or not number):
                payload = encode_points(encode_rows(count, bytes(rows)), self._live_left_out)
                self._book.tell(self._book.subject(self._launch, METRIC), payload)
                self._live_left_out = 0
                batches, rows, count = batches + 1, bytearray(), 0
            if batches >= BATCHES_PER_GATHERING or self._live_total > ATTEMPT_BYTES_MAX:
                # The attempt's end tells all of them.
                self._live_left_out += number
                continue
            rows += packed
            count += number
            self._live_total += len(packed)
