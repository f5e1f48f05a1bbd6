"""What is on the bus about limits: who holds one, what was launched under a rate, why a launch is held back.

The bucket has, by limit:

semaphore.<name>    who holds it
rate.<name>         what was launched under it lately
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from evpipe.core.limits import COUNT_MAX, Limit, Rate
from evpipe.core.names import for_people
from evpipe.errors import RemoteProtocolError
from evpipe.wire.codec import decode_map, encode_map

BUCKET: Final = "limits"
#: An entry that says nothing goes by itself after this.
EMPTY_TTL_S: Final = 3_600.0
#: Holders that an answer names.
HOLDERS_SHOWN_MAX: Final = 16
#: Holders that a sentence names.
HOLDERS_NAMED_MAX: Final = 3


class Holder(NamedTuple):
    """A step that has a semaphore."""

    run: str
    step: str
    attempt: int
    #: What its step declares: at most so many at a time.
    declared: int


class Launched(NamedTuple):
    """An attempt that was launched under a rate."""

    #: The bus's clock, seconds since 1970.
    at_s: float
    run: str
    step: str
    attempt: int


def limit_key(limit: Limit) -> str:
    """Name the entry of a limit."""
    return f"{'rate' if isinstance(limit, Rate) else 'semaphore'}.{limit.name}"


def encode_holders(holders: list[Holder]) -> bytes:
    return encode_map({"holders": [list(holder) for holder in holders]})


def decode_holders(data: bytes) -> list[Holder]:
    """Decode who holds a semaphore; RemoteProtocolError if it is not that."""
    return [Holder(*_checked(row, (str, str, int, int))) for row in _rows(data, "holders")]


def encode_launched(launched: list[Launched]) -> bytes:
    return encode_map({"launched": [list(found) for found in launched]})


def decode_launched(data: bytes) -> list[Launched]:
    """Decode what was launched under a rate; RemoteProtocolError if it is not that."""
    return [Launched(*_checked(row, (float, str, str, int))) for row in _rows(data, "launched")]


def _rows(data: bytes, key: str) -> list[Any]:
    rows = decode_map(data, "the entry of a limit").items(key)
    # Of two controllers at once each may add as much as there is room for.
    if len(rows) > 2 * COUNT_MAX:
        raise RemoteProtocolError(
            f"the entry of a limit has {len(rows):,} lines: at most {2 * COUNT_MAX:,} are allowed"
        )
    return rows


def _checked(row: Any, types: tuple[type, ...]) -> list[Any]:
    if not isinstance(row, list) or len(row) < len(types):
        raise RemoteProtocolError("a line of the entry of a limit is none")
    for value, wanted in zip(row, types, strict=False):
        if type(value) is not wanted:
            raise RemoteProtocolError(f"a line of the entry of a limit has a {type(value).__name__} for a {wanted}")
    return row[: len(types)]


class HoldKind(StrEnum):
    """What a launch waits for."""

    #: Its turn: what keeps the workers of its queue busy has left already.
    WINDOW = "window"
    #: The queue's limit.
    QUEUE = "queue"
    #: A slot of a worker: it has left for its queue.
    SLOTS = "slots"
    #: A mutex or a semaphore.
    SEMAPHORE = "semaphore"
    #: A rate.
    RATE = "rate"
    #: The result of an equal step of another run.
    CACHE = "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Why a step that is `queued` is not launched."""

    kind: HoldKind
    #: Where it is to go.
    queue: str
    #: Of the semaphore or the rate.
    name: str = ""
    #: How many the limit allows; of a window, how many launches may be on their way; of slots, how many there are.
    count: int = 0
    #: How many there are now.
    under_way: int = 0
    #: (run, step) of those that have what it waits for, 16 at most.
    holders: tuple[tuple[str, str], ...] = ()
    #: When a rate allows the next launch: seconds since 1970 by the bus's clock.
    until_s: float | None = None
    #: How many others wait before it.
    ahead: int = 0
    #: Of a rate: so many seconds are looked at together.
    per_s: float = 0.0
    #: Of a window: the priority that it has.
    priority: int | None = None

    def __str__(self) -> str:
        before = f"; {self.ahead:,} {'waits' if self.ahead == 1 else 'wait'} before it" if self.ahead else ""
        match self.kind:
            case HoldKind.WINDOW:
                goes = "goes" if self.ahead == 1 else "go"
                urgent = f" with its priority, {self.priority}, or a better one" if self.priority is not None else ""
                first = f"; {self.ahead:,}{urgent} {goes} first" if self.ahead else ""
                shown = self._shown_holders() or f"{self.under_way:,}"
                are = "is" if self.under_way == 1 else "are"
                return (
                    f"it waits for its turn in the queue {self.queue!r}: {shown} {are} under way, which keeps its "
                    f"workers busy{first}"
                )
            case HoldKind.QUEUE:
                shown = f": {self._shown_holders()}" if self.holders else ""
                return f"the queue {self.queue!r} is limited to {self.count:,} at a time{shown}{before}"
            case HoldKind.SLOTS:
                slots = (
                    "the slot of its worker is" if self.count == 1 else f"all {self.count:,} slots of its workers are"
                )
                return f"it is in the queue {self.queue!r}, and {slots} busy: {self._shown_holders()}"
            case HoldKind.SEMAPHORE:
                what = (
                    f"the mutex {self.name!r}" if self.count == 1 else f"the semaphore {self.name!r} of {self.count:,}"
                )
                shown = self._shown_holders() or "nobody it knows of"
                return f"{what} is held by {shown}{before}"
            case HoldKind.RATE:
                in_s = f" in any {self.per_s:g} s" if self.per_s else " in its time"
                return f"the rate {self.name!r} lets {self.count:,} leave{in_s}{before}"
            case HoldKind.CACHE:
                return f"{self._shown_holders()} computes the same result"

    def _shown_holders(self) -> str:
        named = [f"step {for_people(step)} of run {run}" for run, step in self.holders[:HOLDERS_NAMED_MAX]]
        more = max(len(self.holders), self.under_way) - len(named)
        return ", ".join(named) + (f" and {more:,} more" if named and more > 0 else "")


def encode_hold(hold: Hold | None) -> bytes:
    """Encode the answer of the controller that leads a run; None: the launch is not held back."""
    if hold is None:
        return encode_map({})
    fields: dict[str, Any] = {
        "kind": hold.kind.value,
        "queue": hold.queue,
        "name": hold.name,
        "count": hold.count,
        "under_way": hold.under_way,
        "holders": [list(holder) for holder in hold.holders[:HOLDERS_SHOWN_MAX]],
        "ahead": hold.ahead,
    }
    if hold.until_s is not None:
        fields["until"] = hold.until_s
    if hold.per_s:
        fields["per_s"] = hold.per_s
    if hold.priority is not None:
        fields["priority"] = hold.priority
    return encode_map(fields)


def decode_hold(data: bytes) -> Hold | None:
    """Decode the answer of a controller.

    Returns:
        None if it is not held back, or for a kind that this version does not know.

    Raises:
        RemoteProtocolError: if it is none.
    """
    fields = decode_map(data, "the answer to why a launch is held back")
    kind = fields.text("kind", "")
    if kind not in tuple(HoldKind):
        return None
    holders = [_checked(row, (str, str)) for row in fields.items("holders")]
    return Hold(
        kind=HoldKind(kind),
        queue=fields.text("queue", ""),
        name=fields.text("name", ""),
        count=fields.whole("count", 0),
        under_way=fields.whole("under_way", 0),
        holders=tuple((run, step) for run, step in holders),
        until_s=fields.maybe_number("until"),
        ahead=fields.whole("ahead", 0),
        per_s=fields.maybe_number("per_s") or 0.0,
        priority=fields.whole("priority", 0) if "priority" in fields.map else None,
    )
