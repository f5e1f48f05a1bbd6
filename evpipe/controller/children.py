"""Runs that are steps of other runs: submitted, cancelled and ended from here.

    parent's log                 SubmitRun ─▶ `submitted` of the child, expected to be its first record
    parent's log                 CancelRun ─▶ the child's `submitted` again ─▶ its `cancel-requested`
    child's log          Finished, decided ─▶ `succeeded`, `failed` or `cancelled` of the parent's step ─▶ `finished`

Each arrow waits for the answer to what is before it. Whoever takes a run over begins again at its beginning: what was
there already is refused, which is an answer, too. The two runs may be led by two controllers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus, Refused
from evpipe.client.artifact_store import store_all
from evpipe.client.cancelling import readable, request_cancel
from evpipe.core.children import EndOfStep, end_of_step
from evpipe.core.commands import CancelRun, SubmitRun
from evpipe.core.events import CancelRequested, Decision, Finished
from evpipe.core.lineage import Parent, child_run_id
from evpipe.core.names import for_people
from evpipe.errors import BusError, EvpipeError, LimitExceeded, UsageError
from evpipe.wire.artifacts import ArtifactWriter
from evpipe.wire.children import encode_child, encode_end_of_step, refusal_of_child, submission_of_child, unstorable
from evpipe.wire.spool import spooled

if TYPE_CHECKING:
    from evpipe.controller.case import Case

log = structlog.get_logger(__name__)

#: Arguments and values that are made of more bytes than this are encoded in a thread.
LARGE_BYTES: Final = 256 * 1024
#: Who leaves gives the end of a run this long to be said.
LEAVE_S: Final = 1.0


class Children:
    """The runs of one controller, as far as they are steps of others or have such steps.

    Args:
        append: puts a decision into the log of a run.
    """

    def __init__(self, bus: Bus, task_group: TaskGroup, append: Callable[[Case, Decision], None]) -> None:
        self._bus = bus
        self._subjects = bus.subjects
        self._task_group = task_group
        self._append = append
        #: When those that lead no more are left to others; and what is not to be left halfway.
        self._leaving_at = math.inf
        self._finishing: set[anyio.CancelScope] = set()

    # ---- down: a step begins, or is cancelled

    def submit(self, case: Case, command: SubmitRun) -> None:
        """Submit the run that an attempt is; nothing happens if it was submitted before."""
        if case.size_of_inputs(command.step) > LARGE_BYTES:
            # Encoding them takes a while, and the lease has to be renewed.
            self._task_group.start_soon(self._submit_large, case, command)
            return
        try:
            subject, payload = self._encoded(case, command)
        except LimitExceeded:
            self._task_group.start_soon(self._submit_large, case, command)
        except EvpipeError as error:
            self._refuse(case, command, error)
        else:
            self._bus.append(subject, payload, expected=0)

    async def _submit_large(self, case: Case, command: SubmitRun) -> None:
        try:
            await self._submit_and_wait(case, command)
        except (EvpipeError, OSError) as error:
            self._refuse(case, command, error)

    async def _submit_and_wait(self, case: Case, command: SubmitRun) -> None:
        """Submit it, with arguments of any size, and wait until it is in the log."""
        with spooled() as spool:
            if case.size_of_inputs(command.step) > LARGE_BYTES:
                subject, payload = await anyio.to_thread.run_sync(self._encoded, case, command, spool)
            else:
                subject, payload = self._encoded(case, command, spool)
            await store_all(self._bus, spool.files)
            await self._bus.append_wait(subject, payload, expected=0)

    def _encoded(self, case: Case, command: SubmitRun, writer: ArtifactWriter | None = None) -> tuple[str, bytes]:
        """Give subject and payload of the submit of an attempt's run."""
        assert case.submission is not None, "a run with steps has a submit that could be read"
        step = case.run.spec(command.step)
        assert step.child is not None
        submission = submission_of_child(
            case.submission,
            step,
            run=case.run.id,
            pipeline=case.pipeline,
            name=command.step,
            attempt=command.attempt,
        )
        payload = encode_child(submission, command.arguments, f"step {for_people(command.step)!r}", writer)
        child = child_run_id(case.run.id, command.step, command.attempt)
        return self._subjects.event(step.child.pipeline, child, None, "submitted"), payload

    def _refuse(self, case: Case, command: SubmitRun, error: EvpipeError | OSError) -> None:
        self._append(case, refusal_of_child(command.step, command.attempt, error))

    async def cancel(self, case: Case, command: CancelRun) -> None:
        """Cancel the run that an attempt is."""
        run = case.run
        asked, child = run.cancel, run.spec(command.step).child
        assert asked is not None, "a step is cancelled because its run is"
        assert child is not None, "only of steps that are runs"
        try:
            await self._submit_and_wait(case, run.submit_again(command.step))
            cancel = CancelRequested(cause=asked.cause, message=asked.message, by_parent=True)
            child_run = child_run_id(run.id, command.step, command.attempt)
            await request_cancel(self._bus, child.pipeline, child_run, cancel)
        except BusError as error:
            log.warning("child_not_cancelled", run_id=run.id, step_id=command.step, error=str(error))
        except (EvpipeError, OSError) as error:
            # It never could be submitted, so there is nobody whose end could be waited for.
            self._refuse(case, SubmitRun(command.step, command.attempt, {}), error)

    # ---- up: a run ends

    async def finish(self, case: Case, end: Finished) -> None:
        """Say the end of a run to the step that it is, then to its own log."""
        parent = case.run.parent
        assert parent is not None, "only of runs that are steps"
        # The end of the run around it may be what this process waited for: it does not leave between the two.
        with anyio.CancelScope(shield=True, deadline=self._leaving_at) as scope:
            self._finishing.add(scope)
            try:
                await self._end_step(case, parent, end_of_step(case.run, end))
                if not case.run.ended:
                    # Else another has led it to its end meanwhile: what is expected to be its last record is another.
                    self._append(case, end)
            except BusError as error:
                log.warning("parent_not_told", run_id=case.run.id, error=str(error))
            finally:
                self._finishing.discard(scope)

    def close(self) -> None:
        """Begin nothing any more; what is under way has a moment to come to its end."""
        self._leaving_at = anyio.current_time() + LEAVE_S
        for scope in self._finishing:
            scope.deadline = self._leaving_at

    async def _end_step(self, case: Case, parent: Parent, event: EndOfStep) -> None:
        with spooled() as spool:
            try:
                if sum(case.sizes.values()) > LARGE_BYTES:
                    kind, payload = await anyio.to_thread.run_sync(encode_end_of_step, event, spool)
                else:
                    kind, payload = encode_end_of_step(event, spool)
                await store_all(self._bus, spool.files)
            except (UsageError, OSError) as error:
                kind, payload = encode_end_of_step(unstorable(case.run, error), spool)
        subject = self._subjects.event(parent.pipeline, parent.run, parent.step, kind)
        expected = 0
        while await self._bus.append_wait(subject, payload, expected=expected) is Refused.SEQUENCE:
            found, expected = await readable(self._bus, subject)
            if isinstance(found, EndOfStep) and found.attempt >= parent.attempt:
                # Said by whoever led this run before, or leads it, too.
                return
