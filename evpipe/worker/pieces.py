"""Keeps what attempts record while they run: pieces of it, as events of the run's log.

    AttemptNotes ─▶ Pieces ─▶ `progress`, a second's points in one event ─▶ log

The event that ends an attempt has all of it, so pieces are for attempts that end without one of their own: cancelled,
superseded, or lost with their worker. They hold up neither a step nor its end: what the log has no room for is told
later with what comes, and what does not travel is stored in tasks of their own.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.clock import loop_clock
from evpipe.bus.protocol import Bus, Outcome, Sending
from evpipe.core.artifact import Artifact
from evpipe.errors import BusError
from evpipe.wire.artifacts import VALUE
from evpipe.wire.limits import PIECE_BYTES_MAX
from evpipe.wire.notes import encode_notes, encode_piece, encode_rows
from evpipe.wire.spool import OUT
from evpipe.wire.subjects import PROGRESS
from evpipe.wire.values import pack
from evpipe.worker.attempt_files import files_in

if TYPE_CHECKING:
    from evpipe.worker.notes import AttemptNotes

log = structlog.get_logger(__name__)

#: What was recorded is told about so soon, and an attempt that ends sooner has told nothing before its end.
EVERY_S: Final = 0.8
#: Of a long attempt it is told less often, after this part of the time that it has run: an hour of points makes some
#: 2,300 events, a week 7,400.
EVERY_PART: Final = 1 / 1_000
#: Attempts whose time has come are looked at together.
LOOK_S: Final = 0.1
#: A worker that leaves waits for so long for what it has still to tell.
LEAVE_S: Final = 5.0


class Part(NamedTuple):
    """What of an attempt's notes the log does not have."""

    #: Points before these.
    offset: int
    #: Rows one after the other, and how many.
    rows: bytes
    points: int
    #: Of the attempt so far.
    left_out: int
    #: New ones, and those that have another value, packed.
    artifacts: dict[str, bytes]


class Trail:
    """The pieces of one attempt."""

    __slots__ = ("began_at", "due_at", "notes", "number", "over", "sending", "stored", "storing")

    def __init__(self, notes: AttemptNotes, now: float) -> None:
        self.notes = notes
        #: When it recorded something first, and when it may tell of it; by the loop's clock.
        self.began_at = now
        self.due_at = now + EVERY_S
        #: Of the next piece.
        self.number = 0
        #: A piece that is not answered.
        self.sending: Sending | None = None
        #: A task stores what the next piece refers to.
        self.storing = False
        #: Files that the object store has.
        self.stored: set[str] = set()
        #: Nothing more is told of it, but what `Pieces.rest` tells.
        self.over = False


class Pieces:
    """The pieces of all attempts of one worker.

    Args:
        worker: its id.
        remove: removes the folder of an attempt.
    """

    def __init__(self, bus: Bus, worker: str, remove: Callable[[str], Awaitable[None]]) -> None:
        self._bus = bus
        self._worker = worker
        self._remove = remove
        self._now = anyio.current_time
        #: Attempts that have something to tell, in the order in which they had it.
        self._waiting: dict[Trail, None] = {}
        self._wake = anyio.Event()
        #: When they are looked at next.
        self._look_at = math.inf
        #: Attempts with a piece that is not answered.
        self._unanswered: dict[Trail, None] = {}
        #: Of tasks that store something.
        self._scopes: set[anyio.CancelScope] = set()
        self._settled = anyio.Event()
        self._task_group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._now = loop_clock()
        self._task_group = await anyio.create_task_group().__aenter__()
        self._task_group.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task_group is not None
        with anyio.move_on_after(LEAVE_S, shield=True):
            # Without a connection nobody answers, and nothing can be stored.
            while (self._unanswered or self._scopes) and self._bus.connected:
                self._settled = anyio.Event()
                await self._settled.wait()
        for trail in list(self._unanswered):
            self._drop(trail)
        for scope in self._scopes:
            scope.cancel()
        self._task_group.cancel_scope.cancel()
        await self._task_group.__aexit__(None, None, None)

    # ---- for attempts; in the worker's thread

    def note(self, notes: AttemptNotes) -> None:
        """Take note that an attempt under way has recorded something."""
        if notes.trail is None:
            notes.trail = Trail(notes, self._now())
        self._wait(notes.trail)

    def end(self, trail: Trail) -> None:
        """Tell no more of an attempt: its end does, with all that it has recorded."""
        trail.over = True
        self._waiting.pop(trail, None)
        self._drop(trail)

    def rest(self, notes: AttemptNotes) -> bool:
        """Tell the rest of an attempt that ends without an event of its own.

        Returns:
            Whether the attempt's folder is still needed here; it is removed then, afterwards.
        """
        part = notes.news()
        if part is None:
            return False
        if notes.trail is None:
            notes.trail = Trail(notes, self._now())
        self.end(notes.trail)
        if self._travels(part, notes):
            self._append(notes.trail, part, _packed(part))
            return False
        self._start(partial(self._store_rest, notes.trail, part))
        return True

    # ---- when it is time

    async def _run(self) -> None:
        while True:
            first_at = min((trail.due_at for trail in self._waiting), default=math.inf)
            self._look_at = max(first_at, self._now() + LOOK_S)
            self._wake = anyio.Event()
            with anyio.move_on_at(self._look_at):
                await self._wake.wait()
            now = self._now()
            for trail in [trail for trail in self._waiting if trail.due_at <= now]:
                del self._waiting[trail]
                self._tell(trail)

    def _wait(self, trail: Trail) -> None:
        # One at a time: where there is no room, what is new goes with the next.
        if trail.over or trail.sending is not None or trail.storing:
            return
        self._waiting[trail] = None
        if trail.due_at < self._look_at:
            self._wake.set()

    def _tell(self, trail: Trail) -> None:
        part = trail.notes.news()
        if part is None:
            return
        now = self._now()
        trail.due_at = now + max(EVERY_S, EVERY_PART * (now - trail.began_at))
        if self._travels(part, trail.notes):
            self._append(trail, part, _packed(part))
        else:
            trail.storing = True
            self._start(partial(self._store_piece, trail, part))

    def _append(self, trail: Trail, part: Part, metrics: bytes) -> None:
        notes, launch = trail.notes, trail.notes.launch
        packed = encode_notes(metrics, part.left_out, part.artifacts)
        payload = encode_piece(launch.attempt, self._worker, trail.number, part.offset, packed)
        trail.number += 1
        subject = self._bus.subjects.event(notes.pipeline, launch.run, launch.step, PROGRESS)
        self._unanswered[trail] = None
        trail.sending = self._bus.append(subject, payload, done=partial(self._answered, trail, part))

    def _answered(self, trail: Trail, part: Part, _: Outcome) -> None:
        trail.sending = None
        del self._unanswered[trail]
        if trail.notes.had(part):
            self._wait(trail)
        self._settled.set()

    def _drop(self, trail: Trail) -> None:
        if trail.sending is not None:
            trail.sending.drop()
            trail.sending = None
            del self._unanswered[trail]

    # ---- what does not travel

    @staticmethod
    def _travels(part: Part, notes: AttemptNotes) -> bool:
        """Say whether a piece needs nothing of the object store; one look takes less than a thread."""
        return len(part.rows) <= PIECE_BYTES_MAX and not Pieces._has_files(part, notes)

    @staticmethod
    def _has_files(part: Part, notes: AttemptNotes) -> bool:
        """Say whether there may be files of the artifacts of a piece; small ones are in it."""
        return bool(part.artifacts) and os.path.isdir(f"{notes.folder}/{OUT}")  # noqa: PTH112

    def _start(self, store: Callable[[], Awaitable[None]]) -> None:
        # Not cancelled with the worker: it is given a while to come to its end.
        scope = anyio.CancelScope(shield=True)
        self._scopes.add(scope)

        async def scoped() -> None:
            try:
                with scope:
                    await store()
            finally:
                self._scopes.discard(scope)
                self._settled.set()

        assert self._task_group is not None
        self._task_group.start_soon(scoped)

    async def _store_piece(self, trail: Trail, part: Part) -> None:
        try:
            metrics = await self._stored(trail, part)
        finally:
            trail.storing = False
        if trail.over:
            return
        if metrics is None:
            # Of the next second: there may be room then.
            self._wait(trail)
        else:
            self._append(trail, part, metrics)

    async def _store_rest(self, trail: Trail, part: Part) -> None:
        try:
            metrics = await self._stored(trail, part)
            if metrics is not None:
                self._append(trail, part, metrics)
        finally:
            await self._remove(trail.notes.folder)

    async def _stored(self, trail: Trail, part: Part) -> bytes | None:
        """Store what of a part does not travel; gives its points as they travel, None if there is no room."""
        folder, launch = Path(trail.notes.folder, OUT), trail.notes.launch
        try:
            if self._has_files(part, trail.notes):
                # They stay where they are: the end of the attempt may store them, too, at the same time.
                for digest, file in (await anyio.to_thread.run_sync(files_in, folder)).items():
                    if digest not in trail.stored:
                        await self._bus.objects.put_file(digest, file)
                        trail.stored.add(digest)
            if len(part.rows) <= PIECE_BYTES_MAX:
                return _packed(part)
            digest, rows = await anyio.to_thread.run_sync(_digested, part)
            await self._bus.objects.put(digest, rows)
        except (BusError, OSError) as error:
            log.warning("piece_not_stored", run_id=launch.run, step_id=launch.step, error=str(error))
            return None
        artifact = Artifact(kind=VALUE, digest=digest, size_bytes=len(rows), length=part.points)
        return pack(artifact, "the points")


def _packed(part: Part) -> bytes:
    return encode_rows(part.points, part.rows) if part.points else b""


def _digested(part: Part) -> tuple[str, bytes]:
    rows = encode_rows(part.points, part.rows)
    return hashlib.sha256(rows).hexdigest(), rows
