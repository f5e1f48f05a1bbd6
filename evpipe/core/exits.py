"""What `on_exit` handlers are told of their run: the steps that begin when all others have ended, however they did.

A handler takes it as the output of a step named `RUN`, which no step can be named: so conditions, arguments, the wire
and fingerprints need to know nothing of handlers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from evpipe.core.names import for_people

if TYPE_CHECKING:
    from evpipe.core.events import Finished
    from evpipe.core.run_state import RunState

#: Stands for the run in the place of a step's name, as in the subjects of its events.
RUN: Final = "_"
#: Failed steps that a summary names; it travels to every handler.
FAILED_NAMED_MAX: Final = 100


def summary_of(run: RunState, verdict: Finished) -> dict[str, Any]:
    """Give what is known of a run when only its handlers are left.

    Args:
        verdict: the end that it will have, unless a handler whose failure counts fails.
    """
    assert run.graph is not None
    return {
        "run": run.id,
        "pipeline": run.graph.pipeline,
        "parameters": dict(run.parameters),
        "status": verdict.status.value,
        "reason": verdict.reason.value if verdict.reason is not None else None,
        "message": verdict.message,
        "failed": [_failed(run, name) for name in run.failed[:FAILED_NAMED_MAX]],
        "failed_count": len(run.failed),
        "duration_s": run.at_s - (run.submitted_at_s or run.at_s),
    }


def _failed(run: RunState, name: str) -> dict[str, Any]:
    state = run.steps[name]
    reason = state.reason.value if state.reason is not None else None
    return {"step": for_people(name), "reason": reason, "message": state.message, "attempts": state.attempt}
