"""What an attempt recorded beside its output: the points of its metrics, and its named artifacts.

They travel with the event that ends it. The core hands them on and looks at nothing in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from evpipe.errors import RemoteProtocolError

#: The end of the year 9999: the last moment that a calendar of this language knows.
AT_S_MAX: Final = 253_402_300_799.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """The notes of one attempt."""

    #: Rows [name, value, iteration or None, seconds since 1970] in the order in which they were recorded, or the
    #: artifact that stands for all of them.
    metrics: Any = ()
    #: Points that were not kept, because there were too many.
    left_out: int = 0
    #: Values, or what stands for them, by name, in the order in which they were recorded first.
    artifacts: Mapping[str, Any] = field(default_factory=dict)


class MetricPoint(NamedTuple):
    """One value of a metric, as a step recorded it."""

    #: The step of the run, and the number of its attempt.
    step: str
    attempt: int
    name: str
    #: Also NaN or an infinity.
    value: float
    #: What was given as `step`: an epoch, a batch; None if nothing was.
    iteration: int | None
    #: When, by its worker's clock, seconds since 1970.
    at_s: float

    @property
    def at(self) -> datetime:
        """When, UTC."""
        return datetime.fromtimestamp(self.at_s, UTC)


def points_of(rows: Any, step: str, attempt: int) -> list[MetricPoint]:
    """Read the rows of an attempt's metrics.

    Raises:
        RemoteProtocolError: if they are none.
    """
    if not isinstance(rows, (list, tuple)):
        raise RemoteProtocolError(f"the metrics of step {step!r} are of type {type(rows).__name__}, not a list")
    return [_point(row, step, attempt) for row in rows]


def _point(row: Any, step: str, attempt: int) -> MetricPoint:
    # More entries than four are a newer writer's.
    if isinstance(row, (list, tuple)) and len(row) >= 4:
        name, value, iteration, at_s = row[:4]
        if (
            type(name) is str
            and _is_number(value)
            and (iteration is None or (type(iteration) is int and _is_number(iteration)))
            and type(at_s) in _NUMBERS
            and 0 <= at_s <= AT_S_MAX
        ):
            return MetricPoint(step, attempt, name, float(value), iteration, float(at_s))
    raise RemoteProtocolError(f"the metrics of step {step!r}: a point is a list of name, value, iteration and time")


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and -(2**63) <= value < 2**64)


_NUMBERS: Final = frozenset({int, float})
