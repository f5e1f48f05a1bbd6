"""The options of a step: what they may be, checked where they are written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import EXECUTORS, check_seconds
from evpipe.core.limits import Limit, check_priority
from evpipe.core.names import check_name
from evpipe.core.retry import NO_RETRIES, RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.errors import UsageError
from evpipe.sdk.cache import cache_policy
from evpipe.sdk.functions import has_source
from evpipe.sdk.handle import Handle
from evpipe.sdk.limits import limits_of
from evpipe.sdk.retry import retry_policy

Executor: TypeAlias = Literal["inline", "thread", "process"]
OnFailureName: TypeAlias = Literal["fail", "skip", "continue"]
RunIfName: TypeAlias = Literal[
    "all_succeeded", "all_done", "any_succeeded", "any_failed", "none_failed", "all_failed", "always"
]


class Unset(Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


#: An option of `Step.options(...)` that stays as it is; None is a value for some of them.
UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """Checked options of a step, as the graph takes them."""

    #: None: the pipeline's.
    queue: str | None = None
    executor: str
    #: None: the return annotation says.
    outputs: tuple[str, ...] | None = None
    retries: RetryPolicy = NO_RETRIES
    timeout_s: float | None = None
    #: None: "fail", and "skip" of an `on_exit` handler.
    on_failure: OnFailure | None = None
    #: Handles and names of steps.
    after: tuple[Handle | str, ...] = ()
    #: None: it is not cached.
    cache: CachePolicy | None = None
    pickle: bool = False
    #: A condition, a handle, or None.
    when: object = None
    run_if: RunIf = RunIf.ALL_SUCCEEDED
    #: None: its run's.
    priority: int | None = None
    limits: tuple[Limit, ...] = ()
    description: str = ""


#: Options by their names.
OPTION_NAMES: Final = tuple(field.name for field in fields(StepOptions))


def check_options(given: Mapping[str, object], where: str, *, executors: Sequence[str]) -> dict[str, Any]:
    """Check options, and give them as fields of `StepOptions`; those that are `UNSET` are left out.

    Args:
        where: names the step in messages.
        executors: those that can run its function, the default one first.

    Raises:
        UsageError: for the first one that is not allowed.

    """
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if value is UNSET:
            continue
        checked[name] = _executor(value, where, executors) if name == "executor" else _CHECKS[name](value, where)
    return checked


def executors_of(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Name the executors that can run a function, the default one first."""
    if inspect.iscoroutinefunction(fn):
        return ("inline",)
    # What was typed into an interpreter that does not remember it no other process can import.
    return ("process", "thread") if has_source(fn) else ("thread",)


def _executor(value: object, where: str, executors: Sequence[str]) -> str:
    if value is None:
        return executors[0]
    if value in executors:
        return str(value)
    functions = [name for name in EXECUTORS if name != "command"]
    if value not in functions:
        hint = ": a program is a step by command(...)" if value == "command" else ""
        raise UsageError(f"{where}: executor must be one of {', '.join(functions)}, not {value!r}{hint}")
    instead = " or ".join(map(repr, executors))
    if executors[0] == "inline":
        raise UsageError(f"{where}: executor {value!r} is for `def`, and this is an `async def`: use {instead}")
    if value == "inline":
        raise UsageError(f"{where}: executor 'inline' is for `async def`, and this is a `def`: use {instead}")
    raise UsageError(f"{where}: executor {value!r} needs a function in a file or a notebook's cell: use {instead}")


def _queue(value: object, where: str) -> str | None:
    return None if value is None else check_name(f"{where}: queue", value)


def _outputs(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(value) if isinstance(value, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UsageError(
            f"{where}: outputs must be different names in a tuple, as in ('model', 'score'), not {value!r}"
        )
    return names


def _timeout_s(value: Any, where: str) -> float | None:
    check_seconds(f"{where}: timeout_s", value)
    return None if value is None else float(value)


def _on_failure(value: Any, where: str) -> OnFailure | None:
    if value is None:
        return None
    if value not in tuple(OnFailure):
        raise UsageError(f"{where}: on_failure must be one of {', '.join(OnFailure)}, not {value!r}")
    return OnFailure(value)


def _after(value: object, where: str) -> tuple[Handle | str, ...]:
    if isinstance(value, (str, Handle)):
        raise UsageError(f"{where}: after takes a list: after=[{value!r}]")
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: after takes a list of handles and names of steps, not {value!r}")
    for item in value:
        if not isinstance(item, (str, Handle)):
            raise UsageError(
                f"{where}: after takes handles (what a call of a step gives) and names of steps, not {item!r}"
            )
    return tuple(value)


def _when(value: object, where: str) -> object:
    """Take a condition as it is: it is read when the step is added, in the build whose handles it has."""
    return value


def _run_if(value: object, where: str) -> RunIf:
    if value not in tuple(RunIf):
        raise UsageError(f"{where}: run_if must be one of {', '.join(RunIf)}, not {value!r}")
    return RunIf(str(value))


def _priority(value: object, where: str) -> int | None:
    return None if value is None else check_priority(f"{where}: priority", value)


def _pickle(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where}: pickle must be True or False, not {value!r}")
    return value


def _description(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: description must be text, not {value!r}")
    return value


_CHECKS: Final[Mapping[str, Callable[[object, str], object]]] = {
    "queue": _queue,
    "outputs": _outputs,
    "retries": retry_policy,
    "timeout_s": _timeout_s,
    "on_failure": _on_failure,
    "after": _after,
    "cache": cache_policy,
    "pickle": _pickle,
    "when": _when,
    "run_if": _run_if,
    "priority": _priority,
    "limits": limits_of,
    "description": _description,
}
