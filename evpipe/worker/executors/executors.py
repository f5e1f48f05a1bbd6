"""Which way an attempt is run, by the executor that its step names and by where this worker has its code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread
import structlog
from anyio import CancelScope

from evpipe.bus.protocol import Bus
from evpipe.bus.raised import log_raised
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.source import Source
from evpipe.core.events import Failure
from evpipe.core.states import Reason
from evpipe.errors import BusError, BusRefused, LimitExceeded, only_one
from evpipe.sdk.context import enter
from evpipe.wire.cache import BUCKET, CacheEntry, encode_entry, encode_made, made_key
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.notes import with_notes
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import IN, OUT
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles, files_in
from evpipe.worker.bundles import BundleStore
from evpipe.worker.children.child import ChildGone, Given, Role
from evpipe.worker.children.pool import Pool
from evpipe.worker.code import CodeNotFound, find_function
from evpipe.worker.conclusion import Conclusion, conclude_error, conclude_failure
from evpipe.worker.executors.here import call_here, conclude_here
from evpipe.worker.failures import timeout_failure, types_of
from evpipe.worker.notes import AttemptNotes
from evpipe.worker.pieces import Pieces
from evpipe.worker.recording import AttemptRecorder
from evpipe.worker.scratch import Scratch
from evpipe.worker.telemetry import LogBook

log = structlog.get_logger(__name__)

#: Points that are written in less time than a thread takes to begin.
LIGHT_POINTS: Final = 5_000
#: In what kind of child each executor runs its steps.
ROLES: Final[dict[str, Role]] = {"inline": "host", "thread": "host", "process": "single", "command": "single"}


class Executors:
    """Runs attempts.

    Args:
        worker: its id.
        local_code: this process has the code: inline and thread steps run in it, and children look where it looks.
            Otherwise all steps run in children, which have the code that the run was submitted with.
        allow_pickle: whether steps that ask for it may read and write pickles.
    """

    def __init__(self, bus: Bus, slots: int, *, worker: str, local_code: bool, allow_pickle: bool) -> None:
        self._local_code = local_code
        self._allow_pickle = allow_pickle
        self._scratch = Scratch(worker)
        self._objects = bus.objects
        self._artifacts = ArtifactStore(bus.objects)
        self._cache = bus.bucket(BUCKET)
        self._pool = Pool(slots)
        self._book = LogBook(bus, worker)
        self._pieces = Pieces(bus, worker, self._scratch.remove)
        self._bundles = BundleStore(bus)
        self._stack = AsyncExitStack()
        #: Of the run that the last attempt was of.
        self._source = ("", Source())
        self._cancelled: type[BaseException] = GeneratorExit

    async def __aenter__(self) -> Self:
        self._cancelled = anyio.get_cancelled_exc_class()
        self._book.open()
        self._scratch.open()
        self._stack.push_async_callback(self._scratch.close)
        await self._stack.enter_async_context(self._pieces)
        await self._stack.enter_async_context(self._pool)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    async def send_output(self) -> None:
        """Send what attempts write and say, until cancelled."""
        await self._book.run()

    async def execute(
        self, launch: LaunchSubject, order: LaunchOrder, payload: bytes, stopped: Callable[[], bool]
    ) -> Conclusion:
        """Run an attempt to its end; raises nothing but its own cancellation.

        Args:
            stopped: says whether the end that this gives will not be told.
        """
        folder = self._scratch.new()
        notes = AttemptNotes(self._book, launch, order.pipeline, folder, self._pieces)
        told = False
        try:
            if order.timeout_s is None:
                conclusion = await self._run(launch, order, payload, folder, notes)
            else:
                conclusion = await self._run_in_time(launch, order, payload, folder, notes, order.timeout_s)
            notes.end()
            conclusion = await self._stored(launch, order, conclusion, folder, notes)
            told = True
            return conclusion
        except BaseExceptionGroup as group:
            # Of several transfers; a cancellation comes by itself.
            return self._broken(launch, only_one(group))
        except Exception as error:  # noqa: BLE001 - told by `_broken`
            return self._broken(launch, error)
        finally:
            notes.end()
            # No event of its own has them where it was cancelled, or they could not be stored.
            if told or not self._pieces.rest(notes):
                await self._scratch.remove(folder)
            if told and stopped():
                # Maybe only now. What it refers to is stored.
                self._pieces.rest(notes)

    def _broken(self, launch: LaunchSubject, error: BaseException) -> Conclusion:
        """Make the end of an attempt that could not be run, or whose output could not be stored."""
        if isinstance(error, (ArtifactUnreadable, BusRefused, LimitExceeded)):
            failure = Failure(message=str(error), types=types_of(type(error)))
            return conclude_failure(launch, failure, time.time(), Reason.OUTPUT)
        # A bug of ours. Another worker may do better, and after some tries the step has failed and says why.
        said = {"run_id": launch.run, "step_id": launch.step, "attempt": launch.attempt}
        log_raised(log, "executor_broken", error, **said)
        failure = Failure(message=f"its worker failed: {type(error).__name__}: {error}")
        return conclude_failure(launch, failure, time.time(), Reason.LOST)

    async def _run_in_time(
        self,
        launch: LaunchSubject,
        order: LaunchOrder,
        payload: bytes,
        folder: str,
        notes: AttemptNotes,
        timeout_s: float,
    ) -> Conclusion:
        """Run the body, and end it when its time is over."""
        began_s = time.time()
        with CancelScope(deadline=anyio.current_time() + timeout_s):
            return await self._run(launch, order, payload, folder, notes)
        return conclude_failure(launch, timeout_failure(timeout_s), began_s, Reason.TIMEOUT)

    async def _stored(
        self, launch: LaunchSubject, order: LaunchOrder, conclusion: Conclusion, folder: str, notes: AttemptNotes
    ) -> Conclusion:
        """Store what an attempt gave and what it recorded; gives its end as it is to be told."""
        if notes.kept is not None and notes.kept.any:
            conclusion = await self._with_notes(launch, conclusion, folder, notes)
        elif conclusion.has_artifacts:
            await self._store(folder)
        if order.fingerprint and conclusion.kind == "succeeded":
            await self._record(launch, order, conclusion)
        return conclusion

    async def _with_notes(
        self, launch: LaunchSubject, conclusion: Conclusion, folder: str, notes: AttemptNotes
    ) -> Conclusion:
        kept = notes.kept
        assert kept is not None, "looked at before"

        def out() -> Path:
            made = Path(folder, OUT)
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            return made

        try:
            if kept.count > LIGHT_POINTS:
                packed, wrote = await anyio.to_thread.run_sync(kept.packed, out)
            else:
                packed, wrote = kept.packed(out)
            # One look takes less than a thread, and small artifacts are in what was sent.
            if wrote or conclusion.has_artifacts or (kept.artifacts and os.path.isdir(f"{folder}/{OUT}")):  # noqa: ASYNC240, PTH112
                await self._store(folder)
        except (BusError, OSError, BaseExceptionGroup) as error:
            if conclusion.kind == "succeeded":
                raise
            # Why it failed matters more than what it has recorded.
            log.warning("notes_not_stored", run_id=launch.run, step_id=launch.step, error=str(error))
            return conclusion
        return conclusion._replace(payload=with_notes(conclusion.payload, packed))

    async def _store(self, folder: str) -> None:
        await self._artifacts.store(self._objects, await anyio.to_thread.run_sync(files_in, Path(folder, OUT)))

    async def _record(self, launch: LaunchSubject, order: LaunchOrder, conclusion: Conclusion) -> None:
        """Put the result into the cache: before it is told, so that whoever sees the end finds it there."""
        entry = CacheEntry(
            fingerprint=order.fingerprint,
            pipeline=order.pipeline,
            run=launch.run,
            step=launch.step,
            attempt=launch.attempt,
            event=conclusion.payload,
            components=order.components,
            expired=order.expired,
        )
        await self._cache.put(made_key(order.pipeline, launch.step, order.fingerprint), encode_made(entry))
        await self._cache.put(order.fingerprint, encode_entry(entry))

    async def _run(
        self, launch: LaunchSubject, order: LaunchOrder, payload: bytes, folder: str, notes: AttemptNotes
    ) -> Conclusion:
        if order.artifacts:
            await self._artifacts.fetch(order.artifacts, Path(folder, IN))
        role = ROLES.get(order.executor)
        if role is None:
            known = ", ".join(ROLES)
            error = CodeNotFound(f"this worker has no executor {order.executor!r}: it has {known}")
            return conclude_error(launch, error, time.time())
        if self._local_code and role == "host":
            return await self._run_here(launch, order, payload, folder, notes)
        try:
            source = await self._source_of(launch, order)
            commands = await self._bundles.commands_of(order.source) if order.executor == "command" else ""
        except CodeNotFound as error:
            return conclude_error(launch, error, time.time())
        started_at_s = time.time()
        try:
            given = Given(payload, folder, bool(order.artifacts), self._allow_pickle, commands)
            return await self._pool.run(role, source, launch, given, notes)
        except ChildGone as gone:
            # Where nobody can say that it was the step, the attempt is lost, which is not charged to its retries.
            reason = Reason.LOST if gone.shared else Reason.ERROR
            return conclude_failure(launch, gone.failure, started_at_s, reason)

    async def _source_of(self, launch: LaunchSubject, order: LaunchOrder) -> Source:
        """Give where the step's code is; looked up once for all that follow of its run."""
        if launch.run != self._source[0]:
            source = Source.of_process() if self._local_code else await self._bundles.source_of(order.source)
            self._source = (launch.run, source)
            return source
        return self._source[1]

    async def _run_here(
        self, launch: LaunchSubject, order: LaunchOrder, payload: bytes, folder: str, notes: AttemptNotes
    ) -> Conclusion:
        started_at_s = time.time()
        files = AttemptFiles.below(folder, allow_pickle=self._allow_pickle)
        recorder = AttemptRecorder(launch, order, notes, files, folder)
        # For this task, which is the attempt's alone, and for its threads.
        enter(recorder)
        try:
            if order.artifacts:
                # So that the serializers of its module are known.
                find_function(order.code)
                order = await anyio.to_thread.run_sync(files.decode, payload, order)
            value = await call_here(order)
            return await conclude_here(launch, order, value, started_at_s, files)
        except self._cancelled:
            recorder.cancelled = True
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a step are its failure
            return conclude_error(launch, error, started_at_s)
        finally:
            recorder.closed = True
