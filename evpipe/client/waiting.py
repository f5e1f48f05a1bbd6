"""Steps that wait, as a client sees them, and answers to those that wait for a person.

    fold the run ─▶ does it wait for an answer? is this one? ─▶ `approved`, after the last of its subject ─▶ fold again

Whether an answer counts is decided by the fold of the log and by nothing else; so what is there already and does not
count, such as an answer that somebody wrote before there was a question, stands in nobody's way.
"""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from evpipe.bus.protocol import Bus, Stored
from evpipe.client.fold import RunFold
from evpipe.core.bindings import BindingError
from evpipe.core.events import StepApproved, StepReceived
from evpipe.core.machine import Run
from evpipe.core.names import for_people, nearest
from evpipe.core.parameters import ParameterType
from evpipe.core.states import StepStatus
from evpipe.core.waits import WaitKind, answer_problem
from evpipe.errors import AlreadyAnswered, NotFound, NotWaiting, UsageError
from evpipe.wire.messages import encode_event

#: Runs that are folded at a time when all are looked through.
CHUNK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingStep:
    """A step that waits."""

    run: str
    pipeline: str
    step: str
    #: "approval", "signal", "run_event" or "sleep".
    kind: str
    #: What is asked, of an approval; else what it waits for, in a few words.
    message: str
    #: What the approver is shown beside it, by name; what is stored beside the log is an artifact.
    show: Mapping[str, Any] = field(default_factory=dict)
    #: What an answer must be ("bool", "'a' or 'b'"); "" of other waits.
    accepts: str = ""
    #: Since when it waits, and when its time is over (None: never); UTC.
    since: datetime
    until: datetime | None = None
    description: str = ""
    #: What an answer must be, as data.
    answer: ParameterType = field(default_factory=ParameterType, repr=False)

    @classmethod
    def of(cls, run: Run, name: str) -> WaitingStep:
        """Show a step that waits in a folded log."""
        spec, state = run.spec(name), run.steps[name]
        assert spec.wait is not None
        assert run.graph is not None
        assert state.started_at_s is not None
        try:
            arguments = run.arguments_of(name)
        except BindingError:  # it would not wait then
            arguments = {}
        approval = spec.wait.kind is WaitKind.APPROVAL
        return cls(
            run=run.id,
            pipeline=run.graph.pipeline,
            step=name,
            kind=spec.wait.kind.value,
            message=str(arguments.get("message", "")) if approval else run.waits_for(name),
            show=arguments.get("show", {}),
            accepts=str(spec.wait.answer) if approval else "",
            since=datetime.fromtimestamp(state.started_at_s, UTC),
            until=None if state.due_at_s is None else datetime.fromtimestamp(state.due_at_s, UTC),
            description=spec.description,
            answer=spec.wait.answer,
        )


def waiting_steps(run: Run) -> list[WaitingStep]:
    """Give the steps of a folded run that wait, in the graph's order."""
    running = [name for name, state in run.steps.items() if state.status is StepStatus.RUNNING]
    return [WaitingStep.of(run, name) for name in running if run.spec(name).wait is not None]


async def waiting_of(bus: Bus, runs: Sequence[str]) -> AsyncIterator[WaitingStep]:
    """Give the steps of these runs that wait for an answer, run by run."""
    last = await bus.last_sequence()
    for begin in range(0, len(runs), CHUNK):
        folds = {run: RunFold(bus, run) for run in runs[begin : begin + CHUNK]}
        async for records in bus.replay([bus.subjects.events_of_run(run) for run in folds], up_to=last):
            for record in records:
                await folds[record.subject.split(".")[4]].fold(record)
        for fold in folds.values():
            for found in waiting_steps(fold.run) if not fold.run.ended and fold.run.cancel is None else ():
                if found.kind == WaitKind.APPROVAL:
                    yield found


async def answer_step(
    bus: Bus, run_id: str, pipeline: str, step: str, answer: Any, *, by: str | None, message: str
) -> None:
    """Answer a step that waits for it.

    Args:
        by: who; None: the user of this process.

    Raises:
        NotFound: if the run has no such step.
        NotWaiting: if the step does not wait for an answer.
        AlreadyAnswered: if somebody was first.
        UsageError: if the answer is not one that it takes.
    """
    event = StepApproved(step=step, answer=answer, by=this_user() if by is None else by, message=message)
    look = _Look(bus, run_id, pipeline, step)
    while True:
        await look.again()
        run = look.run
        _check_step(run, pipeline, step)
        if step in run.answers:
            found = run.answers[step]
            if look.tried and _same(found, event):
                return  # stored, and the news of it was lost
            raise _answered(run, step, found)
        _check_waits(run, step)
        wait = run.spec(step).wait
        problem = answer_problem(wait, answer) if wait is not None else None
        if problem is not None:
            raise UsageError(f"step {step!r} of run {run_id}: {problem}")
        _, kind, payload = encode_event(event)
        subject = bus.subjects.event(pipeline, run_id, step, kind)
        outcome = await bus.append_wait(subject, payload, expected=look.last)
        look.tried = True
        if isinstance(outcome, Stored):
            break
    await look.again()
    if look.counted_sequence != outcome.sequence:
        # The time was over, or the run was cancelled, between the look and the answer.
        if step in look.run.answers:
            raise _answered(look.run, step, look.run.answers[step])
        _check_waits(look.run, step)
        raise NotWaiting(
            f"step {step!r} of run {run_id} did not take the answer", run_id=run_id, step=step, status="running"
        )


class _Look:
    """A run as the log has it, and where the answers to one of its steps are in it."""

    def __init__(self, bus: Bus, run_id: str, pipeline: str, step: str) -> None:
        self._bus = bus
        self._step = step
        self._subject = bus.subjects.event(pipeline, run_id, step, "approved")
        self._fold = RunFold(bus, run_id)
        #: Last sequence of the subject of its answers, and of the answer that counts.
        self.last = 0
        self.counted_sequence = 0
        #: Whether an answer was sent from here.
        self.tried = False

    @property
    def run(self) -> Run:
        return self._fold.run

    async def again(self) -> None:
        """Fold what has come since."""
        fold, bus = self._fold, self._bus
        up_to = await bus.last_sequence()
        async for records in bus.replay([bus.subjects.events_of_run(fold.run.id)], up_to=up_to, after=fold.sequence):
            for record in records:
                before = self._step in fold.run.answers
                await fold.fold(record)
                if record.subject == self._subject:
                    self.last = record.sequence
                    if not before and self._step in fold.run.answers:
                        self.counted_sequence = record.sequence


def this_user() -> str:
    """Name the user of this process; "" if nobody knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _check_step(run: Run, pipeline: str, step: str) -> None:
    if step in run.steps:
        return
    if run.submitted_at_s is None or (run.graph is None and not run.ended):
        raise NotFound(f"run {run.id} has no steps yet")
    waits = [name for name in run.steps if _is_approval(run, name)]
    has = f" (it has {', '.join(waits[:12])} to answer)" if waits else ""
    raise NotFound(
        f"run {run.id} of pipeline {pipeline!r} has no step {step!r}{nearest(step, map(for_people, run.steps))}{has}"
    )


def _is_approval(run: Run, name: str) -> bool:
    wait = run.spec(name).wait
    return wait is not None and wait.kind is WaitKind.APPROVAL


def _check_waits(run: Run, step: str) -> None:
    state = run.steps[step]
    what = f"step {step!r} of run {run.id}"
    if not _is_approval(run, step):
        problem = f"{what} is no approval: it does not wait for an answer"
    elif state.ended:
        why = f" ({state.reason}: {state.message})" if state.reason else ""
        problem = f"{what} does not wait any more: it is {state.status}{why}"
    elif run.cancel is not None and not run.may_go_on(step):
        problem = f"{what} does not wait any more: the run is being cancelled ({run.cancel.message})"
    elif state.status is not StepStatus.RUNNING:
        problem = f"{what} does not wait yet: it is {state.status}"
    else:
        return
    raise NotWaiting(problem, run_id=run.id, step=step, status=str(state.status))


def _same(one: StepApproved, other: StepApproved) -> bool:
    return (one.answer, one.by, one.message) == (other.answer, other.by, other.message)


def _answered(run: Run, step: str, found: StepApproved) -> AlreadyAnswered:
    by = f" by {found.by}" if found.by else ""
    at = datetime.fromtimestamp(found.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return AlreadyAnswered(
        f"step {step!r} of run {run.id} was answered{by} at {at}: {found.answer!r:.80}; the first answer counts",
        run_id=run.id,
        step=step,
        answer=found.answer,
        by=found.by,
    )


async def give_event(bus: Bus, run_id: str, pipeline: str, step: str, value: Any) -> None:
    """Give a step the event that it waits for, as the controller does when it has come.

    Raises:
        EncodingError, LimitExceeded: if the value cannot be one.
    """
    _, kind, payload = encode_event(StepReceived(step=step, value=value))
    subject = bus.subjects.event(pipeline, run_id, step, kind)
    # What is there was first; and what is none will not be repeated for it.
    found = await bus.last(subject)
    await bus.append_wait(subject, payload, expected=found.sequence if found is not None else 0)
