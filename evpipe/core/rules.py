"""Whether a step whose parents have all ended runs: its `run_if`, the branches it takes one of, its `when`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from evpipe.core.conditions import holds, shown
from evpipe.core.events import StepSkipped
from evpipe.core.graph import Step
from evpipe.core.mapping import asks_each, base_of, condition_at
from evpipe.core.names import SEPARATOR, for_people
from evpipe.core.states import STEP_VALUES, OnFailure, Reason, RunIf, StepStatus

if TYPE_CHECKING:
    from evpipe.core.run_state import RunState

#: Rules that look at all parents together, so that none of them can be decided on alone.
_ANY: Final = frozenset({RunIf.ANY_SUCCEEDED, RunIf.ANY_FAILED, RunIf.ALL_FAILED})
#: How a parent ended for whom everything must go well.
_GOOD: Final = frozenset({StepStatus.SUCCEEDED})


def reason_to_skip(run: RunState, name: str, step: Step) -> StepSkipped | None:
    """Decide about a step whose parents have all ended; None: it runs.

    Of a mapped step it is asked when its lists are known, and of each element when what that waits for has ended.

    Raises:
        BindingError: if its condition cannot be evaluated.
    """
    assert run.graph is not None
    of_branches = run.graph.branches.get(step.name, frozenset())
    parents = [parent for parent in run.parents_of(name) if parent not in of_branches]
    is_element = SEPARATOR in name
    asks = step.when is not None
    if step.mapped is not None:
        # Of a step that it maps over, each of its own elements looks at the one that it takes.
        gets_elements = name.count(SEPARATOR) < step.mapped.levels
        aligned = run.graph.aligned
        later = {
            p for p in parents if p in run.expansions and step.name in aligned.get(base_of(p), ()) and gets_elements
        }
        parents = [] if later and step.run_if in _ANY else [p for p in parents if p not in later]
        asks = asks and asks_each(step) == is_element and name.count(SEPARATOR) in {0, step.mapped.levels}
    ends = [outcome(run, parent) for parent in parents]
    if not rule_holds(step.run_if, ends):
        # A rule that asks for a failure and finds none is a choice; one that a failure breaks is its consequence.
        broken = StepStatus.FAILED in ends and step.run_if not in {RunIf.ANY_FAILED, RunIf.ALL_FAILED}
        message = f"its run_if {step.run_if.value} does not hold: {_shown_ends(run, parents)}"
        if step.run_if is RunIf.ALL_SUCCEEDED:
            parent, how = next((p, end) for p, end in zip(parents, ends, strict=True) if end not in _GOOD)
            failed = how is StepStatus.FAILED and run.steps[parent].status is StepStatus.FAILED
            message = f"step {for_people(parent)!r} {'failed' if failed else 'was skipped'}"
        reason = Reason.UPSTREAM if broken else Reason.CONDITION
        return StepSkipped(step=name, reason=reason, message=message)
    outcomes = [outcome(run, branch) for branch in of_branches]
    if outcomes and step.run_if is RunIf.ALL_SUCCEEDED and StepStatus.SUCCEEDED not in outcomes:
        message = f"no branch has a value: {_shown_ends(run, sorted(of_branches))}"
        return StepSkipped(step=name, reason=Reason.CONDITION, message=message)
    if asks:
        assert step.when is not None
        condition = condition_at(step, run.trees_of(name)) if is_element else step.when
        if not holds(condition, run.outputs, run.parameters):
            message = f"its condition is false: {shown(condition)}"
            return StepSkipped(step=name, reason=Reason.CONDITION, message=message)
    return None


def outcome(run: RunState, parent: str) -> StepStatus:
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


def _shown_ends(run: RunState, names: Sequence[str]) -> str:
    shown_names = [f"{for_people(name)} {run.steps[name].status.value}" for name in names[:4]]
    return ", ".join(shown_names) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
