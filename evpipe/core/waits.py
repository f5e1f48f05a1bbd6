"""Steps that wait: for a moment, for a person's answer, for an event. They hold no worker and no slot.

What such a step takes is in its arguments, where handles may stand as in any other's:

    sleep       seconds
    approval    message, show (what the approver is shown, by name)
    signal      name, match (what must be equal in the payload, by key)
    run_event   run or pipeline, step, kind (of an event in the log of another run)

and, of all but a sleep, `default`: its value when its time is over. The time is counted by the log's clock, from the
event that made the step ready.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError, references
from evpipe.core.names import STEP_NAME, check_name, check_signal_name, for_people, from_people, repr_of
from evpipe.core.parameters import ParameterType
from evpipe.errors import UsageError

#: The longest time that anything may take or wait.
SECONDS_MAX: Final = 366 * 86_400.0
#: A `due` that comes sooner than this before its moment is in time: the clocks of two machines are no better.
EARLY_S: Final = 0.001
MESSAGE_CHARS_MAX: Final = 4_096


#: What an answer is that nothing else is said of.
BOOL: Final = ParameterType("bool")


class WaitKind(StrEnum):
    SLEEP = "sleep"
    APPROVAL = "approval"
    #: A named event that anybody sends.
    SIGNAL = "signal"
    #: An event in the log of another run.
    RUN_EVENT = "run_event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a step waits for, beside what its arguments say."""

    kind: WaitKind
    #: Of an approval: what its answer must be.
    answer: ParameterType = BOOL
    #: Of an approval: whether the answer False fails the step.
    reject_fails: bool = False
    #: Of events: whether those count that came before the step began to wait, since the run's submit.
    since_submit: bool = False

    @property
    def listens(self) -> bool:
        """Whether it waits for an event."""
        return self.kind is WaitKind.SIGNAL or self.kind is WaitKind.RUN_EVENT


_TAKES: Final = {
    WaitKind.SLEEP: frozenset({"seconds"}),
    WaitKind.APPROVAL: frozenset({"message", "show", "default"}),
    WaitKind.SIGNAL: frozenset({"name", "match", "default"}),
    WaitKind.RUN_EVENT: frozenset({"run", "pipeline", "step", "kind", "default"}),
}
_NEEDS: Final = {
    WaitKind.SLEEP: "seconds",
    WaitKind.APPROVAL: "message",
    WaitKind.SIGNAL: "name",
    WaitKind.RUN_EVENT: "kind",
}
_RUN_ID: Final = re.compile(r"[a-z0-9]{8,32}\Z")


def check_wait(where: str, wait: Wait, arguments: Mapping[str, Any], timeout_s: float | None) -> None:
    """Refuse a wait that can never be; what its handles stand for is checked when it begins.

    Raises:
        UsageError: says what would be accepted.
    """
    unknown = sorted(arguments.keys() - _TAKES[wait.kind])
    if unknown:
        takes = ", ".join(sorted(_TAKES[wait.kind]))
        raise UsageError(f"{where}: a wait of the kind {wait.kind} takes {takes}, not {unknown[0]!r}")
    need = _NEEDS[wait.kind]
    if need not in arguments:
        raise UsageError(f"{where}: a wait of the kind {wait.kind} needs {need!r}")
    if wait.kind is WaitKind.RUN_EVENT and ("run" in arguments) == ("pipeline" in arguments):
        raise UsageError(f"{where}: an event of another run is one of run=… or of pipeline=…, exactly one of them")
    if wait.kind is WaitKind.SLEEP and timeout_s is not None:
        raise UsageError(f"{where}: timeout_s means nothing for a sleep, which ends by itself")
    if "default" in arguments and timeout_s is None:
        raise UsageError(f"{where}: default is its value when timeout_s is over, and it has none")
    if wait.reject_fails and wait.answer.kind != "bool":
        raise UsageError(f"{where}: reject='fail' is for answers of the type bool, not {wait.answer}")
    if _has_path(wait.answer):
        raise UsageError(f"{where}: an answer cannot be a path: it is a plain value in the log")
    known = {name: tree for name, tree in arguments.items() if next(references(tree), None) is None}
    problem = _problem(wait, known)
    if problem:
        raise UsageError(f"{where}: {problem}")


def check_begun(wait: Wait, arguments: Mapping[str, Any]) -> None:
    """Refuse the values that the arguments of a wait came to.

    Raises:
        BindingError: says what would be accepted.
    """
    problem = _problem(wait, arguments)
    if problem:
        raise BindingError(problem)


def answer_problem(wait: Wait, answer: Any) -> str | None:
    """Say what is wrong with an answer to an approval, or None."""
    return wait.answer.problem(answer, "the answer")


def matches(match: Mapping[str, Any], payload: Any) -> bool:
    """Say whether a signal's payload has all of these values; a true is no 1."""
    if not match:
        return True
    return isinstance(payload, dict) and all(key in payload and _equal(payload[key], match[key]) for key in match)


def shown_wait(wait: Wait, arguments: Mapping[str, Any]) -> str:
    """Say what is waited for, in a few words."""
    match wait.kind:
        case WaitKind.SLEEP:
            return f"sleeps {arguments.get('seconds')} s"
        case WaitKind.APPROVAL:
            return f"waits for an answer ({wait.answer}): {arguments.get('message')}"
        case WaitKind.SIGNAL:
            match_text = f" with {repr_of(arguments['match']):.120}" if arguments.get("match") else ""
            return f"waits for the signal {arguments.get('name')}{match_text}"
        case WaitKind.RUN_EVENT:
            of_step = f" of step {for_people(str(arguments['step']))}" if "step" in arguments else ""
            where = f"run {arguments['run']}" if "run" in arguments else f"any run of {arguments.get('pipeline')}"
            return f"waits for the event {arguments.get('kind')}{of_step} of {where}"


def _equal(one: Any, other: Any) -> bool:
    """Compare as JSON does: a true is no 1, a tuple is a list. They are nested no deeper than values of the log are."""
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _problem(wait: Wait, known: Mapping[str, Any]) -> str | None:
    """Say what is wrong with arguments that are known."""
    found: str | None = None
    for name, value in known.items():
        if isinstance(value, Artifact) and name not in ("show", "default"):
            return f"{name} is {value}, which is stored: it must be a small plain value"
        match name:
            case "seconds":
                found = _seconds_problem(value)
            case "message":
                found = _text_problem("message", value)
            case "show" | "match":
                if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                    found = f"{name} must be a dict with text keys, not {_shown(value)}"
                elif name == "match" and any(isinstance(child, Artifact) for child in value.values()):
                    found = "match holds a value that is stored beside the log: it cannot be compared with a signal's"
            case "default":
                if wait.kind is WaitKind.APPROVAL:
                    found = wait.answer.problem(value, "default")
            case "run":
                if not isinstance(value, str) or _RUN_ID.match(value) is None:
                    found = f"run must be the id of a run, not {_shown(value)}"
            case _:
                found = _name_problem(name, value, wait)
        if found:
            return found
    return None


def _seconds_problem(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= SECONDS_MAX:
        return f"seconds must be a number from 0 to {SECONDS_MAX:,.0f}, not {_shown(value)}"
    return None


def _text_problem(name: str, value: Any) -> str | None:
    if not isinstance(value, str) or not value or len(value) > MESSAGE_CHARS_MAX:
        return f"{name} must be a text of 1 to {MESSAGE_CHARS_MAX:,} characters, not {_shown(value)}"
    return None


def _name_problem(name: str, value: Any, wait: Wait) -> str | None:
    try:
        if name == "name" and wait.kind is WaitKind.SIGNAL:
            check_signal_name(value)
        elif name != "step" or not isinstance(value, str) or STEP_NAME.match(from_people(value)) is None:
            check_name(name, value)
    except UsageError as error:
        return str(error)
    return None


def _has_path(found: ParameterType) -> bool:
    return found.kind == "path" or any(_has_path(inner) for inner in found.inner)


def _shown(value: Any) -> str:
    text = repr_of(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return text if len(text) < 60 else text[:59] + "…"
