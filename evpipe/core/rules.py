"""Whether a step whose parents have all ended runs: its `run_if`, the branches it takes one of, its `when`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from evpipe.core.conditions import holds, shown
from evpipe.core.events import StepSkipped
from evpipe.core.graph import Step
from evpipe.core.states import STEP_VALUES, OnFailure, Reason, RunIf, StepStatus

if TYPE_CHECKING:
    from evpipe.core.machine import Run

#: How a parent ended for whom everything must go well.
_GOOD: Final = frozenset({StepStatus.SUCCEEDED})


def reason_to_skip(run: Run, name: str, step: Step) -> StepSkipped | None:
    """Decide about a step whose parents have all ended; None: it runs.

    Raises:
        BindingError: if its condition cannot be evaluated.
    """
    assert run.graph is not None
    of_branches = run.graph.branches.get(name, frozenset())
    parents = [parent for parent in run.graph.parents[name] if parent not in of_branches]
    ends = [outcome(run, parent) for parent in parents]
    if not rule_holds(step.run_if, ends):
        # A rule that asks for a failure and finds none is a choice; one that a failure breaks is its consequence.
        broken = StepStatus.FAILED in ends and step.run_if not in {RunIf.ANY_FAILED, RunIf.ALL_FAILED}
        message = f"its run_if {step.run_if.value} does not hold: {_shown_ends(run, parents)}"
        if step.run_if is RunIf.ALL_SUCCEEDED:
            message = f"step {next(p for p, end in zip(parents, ends, strict=True) if end not in _GOOD)!r} was skipped"
        reason = Reason.UPSTREAM if broken else Reason.CONDITION
        return StepSkipped(step=name, reason=reason, message=message)
    outcomes = [outcome(run, branch) for branch in of_branches]
    if outcomes and step.run_if is RunIf.ALL_SUCCEEDED and StepStatus.SUCCEEDED not in outcomes:
        message = f"no branch has a value: {_shown_ends(run, sorted(of_branches))}"
        return StepSkipped(step=name, reason=Reason.CONDITION, message=message)
    if step.when is not None and not holds(step.when, run.outputs, run.parameters):
        return StepSkipped(step=name, reason=Reason.CONDITION, message=f"its condition is false: {shown(step.when)}")
    return None


def outcome(run: Run, parent: str) -> StepStatus:
    """Give how a parent ended, as rules see it: an allowed failure is none, one skipped for a failure is one."""
    state = run.steps[parent]
    if state.status is StepStatus.FAILED and run.spec(parent).on_failure is OnFailure.CONTINUE:
        return StepStatus.SUCCEEDED
    if state.status in STEP_VALUES:
        return StepStatus.SUCCEEDED
    if state.status is StepStatus.SKIPPED and state.reason is Reason.CONDITION:
        return StepStatus.SKIPPED
    return StepStatus.FAILED


def rule_holds(rule: RunIf, ends: Sequence[StepStatus]) -> bool:
    """Say whether the ends of a step's parents are what its rule asks for; a step without parents always runs."""
    if not ends:
        return True
    failed, succeeded = StepStatus.FAILED in ends, StepStatus.SUCCEEDED in ends
    match rule:
        case RunIf.ALL_SUCCEEDED:
            return all(end is StepStatus.SUCCEEDED for end in ends)
        case RunIf.ALL_DONE | RunIf.ALWAYS:
            return True
        case RunIf.ANY_SUCCEEDED:
            return succeeded
        case RunIf.ANY_FAILED:
            return failed
        case RunIf.NONE_FAILED:
            return not failed
        case RunIf.ALL_FAILED:
            return all(end is StepStatus.FAILED for end in ends)


def _shown_ends(run: Run, names: Sequence[str]) -> str:
    shown_names = [f"{name} {run.steps[name].status.value}" for name in names[:4]]
    return ", ".join(shown_names) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
