"""`RunResult`: how a run and its steps ended, and what they gave. Made from a folded log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from evpipe.core.events import Origin
from evpipe.core.lineage import child_run_id
from evpipe.core.mapping import element_of
from evpipe.core.names import SEPARATOR, for_people
from evpipe.core.notes import MetricPoint, Notes, points_of
from evpipe.core.states import RUN_ENDS, STEP_VALUES, Reason, RunStatus, StepStatus
from evpipe.errors import RunFailed

if TYPE_CHECKING:
    from evpipe.core.machine import Run

R_co = TypeVar("R_co", covariant=True)

#: Steps that ended without a value, and for a reason.
_ENDED_WITHOUT_VALUE = frozenset({StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED})


#: Gives a value with everything in the place of its artifacts.
Opener: TypeAlias = Callable[[Any], Any]
#: Gives the result of a run by its id and pipeline, if there is such a run.
Look: TypeAlias = "Callable[[str, str], RunResult[Any] | None]"
#: Gives what an attempt recorded that somebody else has ended, by its run, step (as the bus names it) and number.
Recall: TypeAlias = Callable[[str, str, int], Notes | None]


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StepResult:
    """What the log says of one step of a run."""

    #: The run that it is a step of, and that one's state.
    run_id: str
    run_status: RunStatus
    name: str
    status: StepStatus
    #: Number of its last attempt; 0 if there was none.
    attempts: int = 0
    #: Whose result the cache gave; None: it is this run's own.
    cached_from: Origin | None = None
    #: When it first became ready, when its last attempt began, when it ended; UTC.
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: Why it has no value, in one line; "" if it has one, or may get one.
    error: str = ""
    reason: Reason | None = None
    #: Of an approval: who answered, "" if they did not say; None if nobody has. It was when the step ended.
    answered_by: str | None = None
    #: What it waits for now, in a few words; "" if it does not.
    waits_for: str = ""
    #: Of its last failure; may be empty.
    traceback: str = ""
    #: Of a mapped step, those of its elements that there are, in order.
    elements: tuple[StepResult, ...] = ()
    #: The run that its last attempt is, of a pipeline that is a step; None: it is none, or was never begun.
    run: str | None = None
    _value: Any = None
    _notes: Notes | None = None
    _open: Opener = _as_it_is
    _child: Callable[[], RunResult[Any] | None] | None = None
    _recall: Callable[[], Notes | None] | None = None

    @property
    def result(self) -> RunResult[Any] | None:
        """What the log says of the run that it is; None if there is none. Fetched whenever this is read."""
        return None if self._child is None else self._child()

    @property
    def steps(self) -> Mapping[str, StepResult]:
        """The steps of the run that it is, none if it is no run. Fetched whenever this is read."""
        found = self.result
        return {} if found is None else found.steps

    @property
    def metrics(self) -> list[MetricPoint]:
        """Every point that the attempt which ended it recorded (`current().metric`), in that order.

        Of an attempt that was lost with its worker those of its last second may be missing. Of a cached step those of
        the attempt whose result it has. Fetched now, and again whenever this is read.

        Raises:
            ArtifactUnreadable: if they are missing or damaged.
        """
        notes = self._recorded()
        return [] if notes is None else points_of(self._open(notes.metrics), self.name, self.attempts)

    @property
    def metrics_left_out(self) -> int:
        """How many points were not kept, because there were too many."""
        notes = self._recorded()
        return 0 if notes is None else notes.left_out

    @property
    def artifacts(self) -> Mapping[str, Any]:
        """What that attempt kept beside its output (`current().artifact`), by name; each is fetched when it is read.

        Its `[name]` raises ArtifactUnreadable if the value is missing, damaged, or cannot be read in this process.
        """
        notes = self._recorded()
        return Artifacts({} if notes is None else notes.artifacts, self._open)

    @property
    def stored_artifacts(self) -> Mapping[str, Any]:
        """The artifacts that came with its end, with what stands for that of them which is stored beside the log.

        Reading it fetches nothing.
        """
        return {} if self._notes is None else self._notes.artifacts

    def _recorded(self) -> Notes | None:
        return self._notes if self._recall is None else self._recall()

    @property
    def value(self) -> Any:
        """What it returned. What of it is stored beside the log is fetched now, and again whenever this is read.

        Raises:
            RunFailed: if it returned nothing, because it did not succeed (yet).
            ArtifactUnreadable: if a part of it is missing, damaged, or cannot be read in this process.

        """
        if self.status in STEP_VALUES:
            return self._open(self._value)
        why = f" ({self.reason}): {self.error}" if self.reason else ""
        raise RunFailed(
            f"step {self.name!r} of run {self.run_id} has no value: it is {self.status}{why}",
            run_id=self.run_id,
            status=self.run_status,
            step=self.name,
            attempt=self.attempts,
            traceback=self.traceback,
        )

    @property
    def stored(self) -> Any:
        """The value as the log has it, with artifacts in the place of what is stored beside it; None if there is none.

        Reading it fetches nothing.
        """
        return self._value

    def __repr__(self) -> str:
        attempts = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"<step {self.name!r}: {self.status}{attempts}{f', {self.error}' if self.error else ''}>"

    @classmethod
    def of(
        cls,
        run: Run,
        name: str,
        opener: Opener,
        look: Look | None = None,
        recall: Recall | None = None,
        elements: tuple[StepResult, ...] = (),
    ) -> StepResult:
        """Show the state of a step in a folded log."""
        state = run.steps[name]
        # The state keeps the last failure through a retry; what succeeded in the end has no error to show.
        failed = state.status in _ENDED_WITHOUT_VALUE
        child, attempt = run.spec(name).child, state.attempt
        child_run, find = None, None
        if child is not None and attempt:
            child_run = child_run_id(run.id, name, attempt)
            find = None if look is None else partial(look, child_run, child.pipeline)
        recorded = None
        if recall is not None and state.ended_by_others and child is None and not elements:
            recorded = partial(recall, run.id, name, attempt)
        shows_traceback = state.status is StepStatus.FAILED and state.failure is not None
        return cls(
            run_id=run.id,
            run_status=run.status,
            name=for_people(name),
            status=state.status,
            attempts=0 if state.status is StepStatus.CACHED else state.attempt,
            cached_from=_shown_origin(state.cached_from),
            queued_at=_moment(state.queued_at_s),
            started_at=_moment(state.started_at_s),
            ended_at=_moment(state.ended_at_s),
            error=state.message if failed else "",
            reason=state.reason if failed else None,
            answered_by=run.answers[name].by if name in run.answers else None,
            waits_for=run.waits_for(name),
            traceback=state.failure.traceback if shows_traceback and state.failure else "",
            elements=elements,
            run=child_run,
            _value=run.output_of(name),
            _notes=state.notes,
            _open=opener,
            _child=find,
            _recall=recorded,
        )


class Artifacts(Mapping[str, Any]):
    """Named artifacts, each opened when it is read."""

    def __init__(self, stored: Mapping[str, Any], opener: Opener) -> None:
        self._stored = stored
        self._open = opener

    def __getitem__(self, name: str) -> Any:
        return self._open(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return f"<artifacts {', '.join(map(repr, self._stored)) or 'none'}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunResult(Generic[R_co]):
    """What the log says of a run."""

    id: str
    #: "" if what was submitted could not be read.
    pipeline: str
    status: RunStatus
    #: Why it has no value, in one line; "" if it has one, or may get one.
    error: str = ""
    reason: Reason | None = None
    #: One entry per step, in the order of the graph, and one per element of a mapped step ("train[2]") after that.
    steps: Mapping[str, StepResult] = field(default_factory=dict)
    #: The step that failed the run: the first one to fail for good.
    failed_step: str | None = None
    _value: R_co | None = None
    _open: Opener = _as_it_is

    @property
    def value(self) -> R_co:
        """What the pipeline returned. What of it is stored beside the log is fetched now, whenever this is read.

        Raises:
            RunFailed: unless the run succeeded; names the step that failed, its attempt and the traceback.
            ArtifactUnreadable: if a part of it is missing, damaged, or cannot be read in this process.

        """
        if self.status is RunStatus.SUCCEEDED:
            return cast("R_co", self._open(self._value))
        step = self.steps.get(self.failed_step) if self.failed_step is not None else None
        message = f"run {self.id}" + (f" of pipeline {self.pipeline!r}" if self.pipeline else "")
        if self.status not in RUN_ENDS:
            message += f" has no value yet: it is {self.status}"
        elif self.error:
            message += f" {self.status}: {self.error}"
        else:
            message += f" was {self.status}"
        if step is not None:
            message += f" (attempt {step.attempts})\n\n{step.traceback}".rstrip()
        raise RunFailed(
            message,
            run_id=self.id,
            status=self.status,
            step=step.name if step else None,
            attempt=step.attempts if step else 0,
            traceback=step.traceback if step else "",
        )

    @property
    def stored(self) -> Any:
        """The value as the log has it, with artifacts in the place of what is stored beside it; None if there is none.

        Reading it fetches nothing.
        """
        return self._value

    def __repr__(self) -> str:
        single = [step for step in self.steps.values() if not step.elements]
        done = sum(step.status in STEP_VALUES for step in single)
        error = f", {self.error}" if self.error else ""
        return f"<run {self.id} of pipeline {self.pipeline!r}: {self.status}, {done} of {len(single)} steps{error}>"

    @classmethod
    def of(
        cls, run: Run, opener: Opener | None = None, look: Look | None = None, recall: Recall | None = None
    ) -> RunResult[Any]:
        """Show a folded log; the run need not have ended.

        Args:
            opener: gives values with everything in the place of their artifacts; None: they stay artifacts.
            look: gives the results of the runs that its steps are; None: they have none.
            recall: gives what attempts recorded whose end does not say it; None: nothing.
        """
        opener = opener or _as_it_is
        return RunResult(
            id=run.id,
            pipeline=run.graph.pipeline if run.graph is not None else "",
            status=run.status,
            error=run.message,
            reason=run.reason,
            steps=_steps(run, opener, look, recall),
            failed_step=for_people(run.failed[0]) if run.failed else None,
            _value=run.value,
            _open=opener,
        )


def _steps(run: Run, opener: Opener, look: Look | None, recall: Recall | None) -> dict[str, StepResult]:
    names = list(run.in_order())
    made: dict[str, StepResult] = {}
    # Elements first: their node has them.
    for name in reversed(names):
        count = run.expansions[name].count if name in run.expansions else 0
        elements = tuple(made[for_people(element_of(name, index))] for index in range(count))
        made[for_people(name)] = StepResult.of(run, name, opener, look, recall, elements)
    return {shown: made[shown] for shown in map(for_people, names)}


def _shown_origin(origin: Origin | None) -> Origin | None:
    return origin if origin is None or SEPARATOR not in origin.step else replace(origin, step=for_people(origin.step))


def _moment(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, tz=UTC)
