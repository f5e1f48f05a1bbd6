"""What the log says of one run so far, and the ways to look at it. Only the machine changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evpipe.core.bindings import BindingError, Gathered, Tree, resolve_all
from evpipe.core.events import CancelRequested, Decision, Failure, Finished, Origin, StepApproved
from evpipe.core.graph import Graph, Step
from evpipe.core.lineage import Parent
from evpipe.core.mapping import Expansion, arguments_at, base_of, element_of, split_element
from evpipe.core.names import SEPARATOR
from evpipe.core.notes import Notes
from evpipe.core.readiness import Readiness
from evpipe.core.states import RUN_ENDS, STEP_ENDS, STEP_TRANSITIONS, Reason, RunStatus, StepStatus
from evpipe.core.waits import shown_wait


@dataclass(slots=True)
class StepState:
    """What the log says of one step so far."""

    status: StepStatus = StepStatus.PENDING
    #: The current attempt, from 1; 0 before the first was decided.
    attempt: int = 0
    #: Failures charged to `retries`, and attempts lost with their worker, which are not.
    failures: int = 0
    losses: int = 0
    #: Log time at which the current attempt may begin, or a wait is over, while it is waited for.
    due_at_s: float | None = None
    #: Log time at which the step first became ready, its current attempt began, it ended.
    queued_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    #: Who said that it began the current attempt; "" if it ended before that was said.
    worker: str = ""
    reason: Reason | None = None
    message: str = ""
    failure: Failure | None = None
    #: Whose result it has, if the cache gave it.
    cached_from: Origin | None = None
    #: What the attempt that ended it recorded beside its output.
    notes: Notes | None = None

    @property
    def ended(self) -> bool:
        return self.status in STEP_ENDS

    @property
    def ended_by_others(self) -> bool:
        """Whether somebody else ended its last attempt, who does not know what that one recorded."""
        lost = self.status is StepStatus.FAILED and self.reason is Reason.LOST
        return self.notes is None and self.attempt > 0 and (lost or self.status is StepStatus.CANCELLED)

    def become(self, status: StepStatus) -> None:
        assert status in STEP_TRANSITIONS[self.status], f"{self.status} -> {status}"
        self.status = status


class RunState:
    """One run, as a prefix of its log shows it."""

    __slots__ = (
        "_choices",
        "_handlers",
        "_readiness",
        "_specs",
        "answers",
        "at_s",
        "began",
        "cancel",
        "decisions",
        "expansions",
        "failed",
        "graph",
        "id",
        "message",
        "open_count",
        "outputs",
        "parameters",
        "parent",
        "reason",
        "status",
        "steps",
        "submitted_at_s",
        "value",
    )

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.status = RunStatus.SUBMITTED
        self.reason: Reason | None = None
        self.message = ""
        self.value: Any = None
        #: The largest timestamp that the log has shown.
        self.at_s = 0.0
        self.submitted_at_s: float | None = None
        self.graph: Graph | None = None
        self.parameters: Mapping[str, Any] = {}
        #: The step of another run that this one is; None: it is nobody's.
        self.parent: Parent | None = None
        #: One entry per step of the graph, in the graph's order, then one per element of mapped steps, as they came.
        self.steps: dict[str, StepState] = {}
        #: Mapped steps whose elements are known; those of more than one level have elements that are in here, too.
        self.expansions: dict[str, Expansion] = {}
        #: The values of the steps that succeeded.
        self.outputs: dict[str, Any] = {}
        #: When the first attempt of steps began whose retries have a time, once one has failed; by the log's clock.
        self.began: dict[str, float] = {}
        #: The answers that approvals got.
        self.answers: dict[str, StepApproved] = {}
        #: Steps that failed for good, in the log's order.
        self.failed: list[str] = []
        self.cancel: CancelRequested | None = None
        #: What was decided and is not in the log yet, by subject: (step or "", kind).
        self.decisions: dict[tuple[str, type[Decision]], Decision] = {}
        #: Steps that have not ended.
        self.open_count = 0
        #: How many of the steps are `on_exit` handlers.
        self._handlers = 0
        self._readiness: Readiness | None = None
        #: The definition of each step, and of each element.
        self._specs: dict[str, Step] = {}
        #: Whether what becomes ready looks at how its parents ended: a step was skipped by a condition, or, in a graph
        #: with mapped steps, one ended without a value, maybe before there were the elements that wait for it.
        self._choices = False

    @property
    def ended(self) -> bool:
        return self.status in RUN_ENDS

    @staticmethod
    def is_end(event: Finished) -> bool:
        """Say whether this event ends the run it is folded into."""
        return event.status in RUN_ENDS

    def spec(self, name: str) -> Step:
        """Give the definition of a step of this run; of an element, that of the step that is mapped."""
        return self._specs[name]

    def trees_of(self, name: str) -> Mapping[str, Tree]:
        """Give the trees of a step's arguments; of an element, with what it takes in the places of the lists."""
        step = self.spec(name)
        if SEPARATOR not in name:
            return step.arguments
        node, index = split_element(name)
        return arguments_at(step, self.trees_of(node), self.expansions[node].at(index))

    def parents_of(self, name: str) -> tuple[str, ...]:
        """Give the steps that a step waits for; of an element, elements where it waits for no more than those."""
        assert self.graph is not None
        base = base_of(name)
        parents = self.graph.parents[base]
        if base == name:
            return parents
        aligned = self.graph.aligned
        return tuple(
            self._aligned_parent(parent, name[len(base) :]) if base in aligned.get(parent, ()) else parent
            for parent in parents
        )

    def _aligned_parent(self, parent: str, suffix: str) -> str:
        """Give the element with these indexes, or with as many of them as there are elements for."""
        while suffix and parent + suffix not in self.steps:
            suffix = suffix.rpartition(SEPARATOR)[0]
        return parent + suffix

    def in_order(self) -> Iterator[str]:
        """Yield the names of all steps in the graph's order, each mapped one before its elements."""
        above: list[str] = list(self.graph.steps)[::-1] if self.graph is not None else []
        while above:
            name = above.pop()
            yield name
            if name in self.expansions:
                above += [element_of(name, index) for index in reversed(range(self.expansions[name].count))]

    def counts(self) -> Counter[StepStatus]:
        """Count the steps by their states: of a mapped step, its elements."""
        found = Counter(state.status for state in self.steps.values())
        found.subtract(self.steps[name].status for name in self.expansions)
        return found

    def output_of(self, name: str) -> Any:
        """Give what a step gave, None if it gave nothing (yet); of a mapped one, the list of what its elements gave."""
        found = self.outputs.get(name)
        return found.values if type(found) is Gathered else found

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Give the values of a step's arguments as far as they are known now.

        Raises:
            BindingError: if an output has no such part.
        """
        return resolve_all(self.trees_of(name), self.outputs, self.parameters)

    def waits_for(self, name: str) -> str:
        """Say what a step waits for, in a few words; "" if it does not wait now."""
        spec, state = self.spec(name), self.steps[name]
        if spec.wait is None or state.status is not StepStatus.RUNNING:
            return ""
        try:
            return shown_wait(spec.wait, self.arguments_of(name))
        except BindingError:
            return "nobody knows what"
