"""`Mutex`, `Semaphore` and `Rate`: what the steps of many runs share, as in `@step(limits=Mutex("db"))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from evpipe.core import limits as core
from evpipe.errors import UsageError


@dataclass(frozen=True, slots=True)
class Mutex:
    """One step at a time of all that name it, in all runs of an installation.

    Raises:
        UsageError: at construction, if the name is not allowed.
    """

    name: str

    def __post_init__(self) -> None:
        core.check_limits("limits", [_limit(self)])


@dataclass(frozen=True, slots=True)
class Semaphore:
    """At most `count` steps at a time of all that name it, in all runs of an installation.

    Where steps declare different counts for one name, the smallest of those that hold it, or ask for it, counts.

    Raises:
        UsageError: at construction, if the name is not allowed or the count is not a whole number from 1 to 1,000.
    """

    name: str
    count: int

    def __post_init__(self) -> None:
        core.check_limits("limits", [_limit(self)])


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` attempts of the steps that name it are launched in any `per_s` seconds, in all runs.

    Raises:
        UsageError: at construction, if the name is not allowed, the count is not a whole number from 1 to 1,000, or
            `per_s` is not above 0 and at most 86,400.
    """

    name: str
    count: int
    #: Seconds.
    per_s: float = 1.0

    def __post_init__(self) -> None:
        core.check_limits("limits", [_limit(self)])


Limit: TypeAlias = Mutex | Semaphore | Rate


def _limit(limit: Limit) -> core.Limit:
    match limit:
        case Mutex(name):
            return core.Semaphore(name, 1)
        case Semaphore(name, count):
            return core.Semaphore(name, count)
        case Rate(name, count, per_s):
            return core.Rate(name, count, per_s)


def limits_of(value: object, where: str) -> tuple[core.Limit, ...]:
    """Read the option `limits`: one, several in a list or tuple, or None.

    Raises:
        UsageError: for anything else, and for a name that is there twice.
    """
    if value is None:
        return ()
    given = value if isinstance(value, (list, tuple)) else (value,)
    for limit in given:
        if not isinstance(limit, (Mutex, Semaphore, Rate)):
            raise UsageError(
                f"{where}: limits takes Mutex(name), Semaphore(name, count) and Rate(name, count, per_s), one or "
                f"several in a tuple, not {limit!r}"
            )
    found = tuple(_limit(limit) for limit in given)
    core.check_limits(where, found)
    return found
