"""How a command that waits for a run ends: what it says, what it writes, its exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TextIO

from evpipe.cli.output import Exit, json_text, plain, say, value_text, write_data
from evpipe.errors import WaitTimeout

if TYPE_CHECKING:
    from evpipe.cli.talk import Talk
    from evpipe.sdk.result import RunResult

#: A stored value that is larger is not fetched to be shown.
SHOWN_BYTES_MAX: Final = 64 * 1024 * 1024
_CODES: Final = {"succeeded": Exit.SUCCEEDED, "cancelled": Exit.CANCELLED}


def conclude(talk: Talk, wait: Callable[[], RunResult[Any]], *, quiet: bool = False) -> tuple[RunResult[Any], Exit]:
    """Wait for the end of a run; errors before `talk` knows of one are raised, what comes after it is told."""
    try:
        result = wait()
    except (WaitTimeout, KeyboardInterrupt) as error:
        if talk.run is None:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        talk.error = "interrupted with Ctrl-C" if interrupted else str(error)
        if not interrupted:
            say(f"evpipe: {error}")
        return talk.result(), Exit.INTERRUPTED if interrupted else Exit.TIMEOUT
    _tell_failure(result, quiet=quiet)
    return result, _CODES.get(result.status, Exit.FAILED)


def _tell_failure(result: RunResult[Any], *, quiet: bool) -> None:
    """Show the traceback of the step that failed the run; the display has said the rest, if it may."""
    if result.status == "succeeded":
        return
    step = result.steps.get(result.failed_step) if result.failed_step is not None else None
    if step is not None and step.traceback:
        say(step.traceback.rstrip())
    if quiet:
        say(f"evpipe: run {result.id} {result.status}: {' '.join(result.error.split())}")


def write_result(talk: Talk, result: RunResult[Any], *, as_json: bool, stream: TextIO | None = None) -> None:
    """Write the value, or with -o json the object that tells all."""
    if as_json:
        write_data(json_text(described(result, talk.error)), stream)
    elif result.status == "succeeded" and result.stored is not None:
        write_data(value_text(opened(result)), stream)


def opened(result: RunResult[Any]) -> Any:
    """Give the value of a run for showing.

    Values of the protocol are fetched, up to a size, and what travels with the run is opened. What else is stored stays
    an artifact: nothing of a library is loaded, and no file is made, to be shown.
    """
    from evpipe.errors import EvpipeError
    from evpipe.wire.artifacts import VALUE
    from evpipe.wire.spool import Shelf
    from evpipe.wire.storing import artifacts_of, loaded

    value = result.stored
    artifacts = artifacts_of(value)
    if not artifacts:
        return value
    try:
        if all(found.kind == VALUE and not found.nested for found in artifacts):
            return result.value if sum(found.size_bytes for found in artifacts) <= SHOWN_BYTES_MAX else value
        if all(found.data is not None and found.kind not in {"file", "folder", "pickle"} for found in artifacts):
            return loaded(value, Shelf(_nowhere, _nowhere))
    except EvpipeError:
        # It is shown as what stands for it.
        return value
    return value


def _nowhere(*_: object) -> Any:
    return None


def described(result: RunResult[Any], error: str = "") -> dict[str, Any]:
    """Give the object that `-o json` writes of a run."""
    return {
        "id": result.id,
        "pipeline": result.pipeline,
        "status": str(result.status),
        "value": plain(opened(result)) if result.status == "succeeded" else None,
        "error": error or result.error or None,
        "reason": result.reason,
        "steps": {
            name: {
                "status": str(step.status),
                "attempts": step.attempts,
                "queued_at": step.queued_at,
                "started_at": step.started_at,
                "ended_at": step.ended_at,
                "error": step.error or None,
                "reason": step.reason,
                "cached_from": None if step.cached_from is None else step.cached_from.run,
                "run": step.run,
                "answered_by": step.answered_by,
                "waits_for": step.waits_for or None,
            }
            for name, step in result.steps.items()
        },
    }
