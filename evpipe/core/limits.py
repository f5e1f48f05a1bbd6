"""Limits that steps of many runs share: how many may run at a time, and how many may begin in a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from evpipe.core.names import check_name
from evpipe.errors import UsageError

#: 0 comes first.
PRIORITY_DEFAULT: Final = 5
PRIORITY_MAX: Final = 9
#: What is remembered of one limit is one entry of a bucket, of so many lines at most.
COUNT_MAX: Final = 1_000
PER_S_MAX: Final = 86_400.0
#: Of one step.
LIMITS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Semaphore:
    """At most `count` steps that name it run at a time, in all runs; a mutex is one with the count 1.

    Where steps declare different counts for one name, the smallest of those that hold it, or ask, counts.
    """

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` attempts of the steps that name it are launched in any `per_s` seconds, in all runs."""

    name: str
    count: int
    per_s: float


Limit: TypeAlias = Semaphore | Rate


def check_priority(what: str, value: object) -> int:
    """Return a priority; raise UsageError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= PRIORITY_MAX:
        raise UsageError(
            f"{what} must be a whole number from 0 (first) to {PRIORITY_MAX} (last; the default is "
            f"{PRIORITY_DEFAULT}), not {value!r}"
        )
    return value


def check_count(what: str, value: object) -> int:
    """Return the count of a limit; raise UsageError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= COUNT_MAX:
        raise UsageError(f"{what} must be a whole number from 1 to {COUNT_MAX:,}, not {value!r}")
    return value


def check_limits(where: str, limits: Iterable[Limit]) -> None:
    """Refuse limits of a step that are not allowed: a name, a count or a time that is none, one name twice."""
    seen: set[tuple[type, str]] = set()
    for limit in limits:
        what = f"{where}: {type(limit).__name__}"
        check_name(what, limit.name)
        check_count(f"{what} {limit.name!r}: count", limit.count)
        if isinstance(limit, Rate):
            per_s = limit.per_s
            if not isinstance(per_s, (int, float)) or isinstance(per_s, bool) or not 0 < per_s <= PER_S_MAX:
                raise UsageError(
                    f"{what} {limit.name!r}: per_s must be seconds above 0 and at most {PER_S_MAX:,.0f}, not {per_s!r}"
                )
        if (type(limit), limit.name) in seen:
            raise UsageError(f"{where}: the limit {limit.name!r} is there twice")
        seen.add((type(limit), limit.name))
    if len(seen) > LIMITS_MAX:
        raise UsageError(f"{where} has {len(seen)} limits: at most {LIMITS_MAX} are allowed")
