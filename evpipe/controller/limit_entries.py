"""One shared limit as its controller sees it: what its entry in the bucket is to say, and who waits for it.

No IO: `limits` reads and writes the entries. What an entry says is hardened by compare-and-set, so where another
controller has written meanwhile, `merge` brings both together, and what does not fit any more is given back.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Collection
from typing import Final, TypeAlias

from evpipe.controller.dispatch import Held
from evpipe.core.limits import COUNT_MAX, Limit, Rate, Semaphore
from evpipe.wire.holds import (
    Holder,
    Launched,
    decode_holders,
    decode_launched,
    encode_holders,
    encode_launched,
    limit_key,
)

#: Run and step.
Key: TypeAlias = tuple[str, str]

#: A moment in an entry that lies further in the future than clocks differ counts as now.
AHEAD_MAX_S: Final = 5.0


def key_of(held: Held) -> Key:
    return held.case.run.id, held.command.step


class LimitEntry(ABC):
    """See the module's docstring."""

    def __init__(self, limit: Limit) -> None:
        self.key = limit_key(limit)
        self.name = limit.name
        #: Revision of what it was last read, or written, as; None: it is to be read.
        self.revision: int | None = None
        #: It says something else here than in the bucket.
        self.dirty = False
        #: Somebody reads or writes it now; looks at who holds it.
        self.busy = False
        self.examining = False
        #: Launches that have their place in it here, and not in the bucket yet; in the order in which they got it.
        self.unwritten: list[Held] = []
        #: A heap: who comes first is at 0.
        self.waiters: list[Held] = []

    def limit_of(self, held: Held) -> Limit:
        """Give what a launch declares of it."""
        for limit in held.step.limits:
            if limit.name == self.name and limit_key(limit) == self.key:
                return limit
        raise AssertionError(f"{held.command.step} does not name {self.key}")

    def wait(self, held: Held) -> None:
        heapq.heappush(self.waiters, held)

    def may_take(self, held: Held, now_s: float) -> bool:
        """Say whether there is room for a launch, and nobody waits who comes before it."""
        if self.revision is None:
            return False
        if self.has(held):
            return True
        first = self.waiters[0] if self.waiters else None
        if first is not None and not first.dropped and first is not held and first < held:
            return False
        return self.has_room(self.limit_of(held), now_s)

    def take_out_having(self) -> list[Held]:
        """Give the waiters that have their place already, and let them wait no more.

        Somebody who led before gave it to them. They are not to wait for those who wait for them.
        """
        names = self.names
        having = [held for held in self.waiters if not held.dropped and self.name_of(held) in names]
        if having:
            self.waiters = [held for held in self.waiters if held not in having]
            heapq.heapify(self.waiters)
        return having

    def give_back(self, now_s: float) -> list[Held]:
        """Take out what has no room any more; the newest first, and only what is not written."""
        refused = []
        for held in list(reversed(self.unwritten)):
            if not self.fits(held, now_s):
                self.unwritten.remove(held)
                self.remove(held)
                refused.append(held)
        return refused

    @property
    @abstractmethod
    def is_empty(self) -> bool: ...

    @abstractmethod
    def has(self, held: Held) -> bool:
        """Say whether this very launch has its place already: a repeated command."""

    @property
    @abstractmethod
    def names(self) -> Collection[tuple[object, ...]]:
        """Give what `name_of` gives of all that are in it."""

    @abstractmethod
    def name_of(self, held: Held) -> tuple[object, ...]: ...

    @abstractmethod
    def has_room(self, limit: Limit, now_s: float) -> bool:
        """Say whether there is room for one more that declares `limit`."""

    @abstractmethod
    def add(self, held: Held, now_s: float) -> None: ...

    @abstractmethod
    def remove(self, held: Held) -> None: ...

    @abstractmethod
    def fits(self, held: Held, now_s: float) -> bool:
        """Say whether what is in it leaves room for this one, which is in it."""

    @abstractmethod
    def encode(self, now_s: float) -> bytes:
        """Give what its entry is to say."""

    @abstractmethod
    def merge(self, data: bytes | None, now_s: float) -> None:
        """Take in what its entry says; None: there is none.

        Raises:
            RemoteProtocolError: if that is garbage; nothing has changed then.
        """


class SemaphoreEntry(LimitEntry):
    """A semaphore: who holds it."""

    def __init__(self, limit: Semaphore) -> None:
        super().__init__(limit)
        self.holders: dict[Key, Holder] = {}
        #: Those that have it from here; of the others only the bucket knows.
        self.own: set[Key] = set()
        #: Let go here; the bucket may still name them.
        self.gone: set[Key] = set()

    @property
    def is_empty(self) -> bool:
        return not self.holders

    @property
    def count(self) -> int:
        """Give the smallest count that one of its holders declares; 0 if there is none."""
        return min((holder.declared for holder in self.holders.values()), default=0)

    def has(self, held: Held) -> bool:
        return key_of(held) in self.holders

    @property
    def names(self) -> Collection[tuple[object, ...]]:
        return self.holders

    def name_of(self, held: Held) -> tuple[object, ...]:
        return key_of(held)

    def has_room(self, limit: Limit, now_s: float) -> bool:
        return len(self.holders) < min(limit.count, self.count or limit.count)

    def add(self, held: Held, now_s: float) -> None:
        run, step = key_of(held)
        self.put(Holder(run, step, held.command.attempt, self.limit_of(held).count))

    def put(self, holder: Holder) -> None:
        key = (holder.run, holder.step)
        self.gone.discard(key)
        self.own.add(key)
        self.holders[key] = holder

    def remove(self, held: Held) -> None:
        self.free(key_of(held))

    def free(self, key: Key) -> None:
        """Take out whoever it is."""
        self.own.discard(key)
        if self.holders.pop(key, None) is not None:
            self.gone.add(key)
            self.dirty = True

    def fits(self, held: Held, now_s: float) -> bool:
        return len(self.holders) <= self.count

    def encode(self, now_s: float) -> bytes:
        return encode_holders(list(self.holders.values()))

    def merge(self, data: bytes | None, now_s: float) -> None:
        found = decode_holders(data) if data is not None else []
        others = {(holder.run, holder.step): holder for holder in found}
        self.gone &= others.keys()
        # What is held here stays, also where somebody has deleted the bucket.
        own = {key: self.holders[key] for key in self.own}
        self.dirty = bool(self.dirty or own.keys() - others.keys() or self.gone)
        self.holders = {**{key: other for key, other in others.items() if key not in self.gone}, **own}


class RateEntry(LimitEntry):
    """A rate: what was launched under it, as far as it matters."""

    def __init__(self, limit: Rate) -> None:
        super().__init__(limit)
        #: In the order of time.
        self.launched: list[Launched] = []
        #: The longest time that was declared for it here.
        self.per_s = limit.per_s

    @property
    def is_empty(self) -> bool:
        return not self.launched

    def has(self, held: Held) -> bool:
        run, step = key_of(held)
        attempt = held.command.attempt
        return any((one.run, one.step, one.attempt) == (run, step, attempt) for one in reversed(self.launched))

    @property
    def names(self) -> Collection[tuple[object, ...]]:
        return {(one.run, one.step, one.attempt) for one in self.launched}

    def name_of(self, held: Held) -> tuple[object, ...]:
        return (*key_of(held), held.command.attempt)

    def room_at_s(self, limit: Limit) -> float:
        """Give when there is room for one more that declares `limit`; a moment in the past if there is now."""
        assert isinstance(limit, Rate)
        self.per_s = max(self.per_s, limit.per_s)
        if len(self.launched) < limit.count:
            return 0.0
        return self.launched[-limit.count].at_s + limit.per_s

    def has_room(self, limit: Limit, now_s: float) -> bool:
        return self.room_at_s(limit) <= now_s

    def add(self, held: Held, now_s: float) -> None:
        if not self.has(held):
            insort(self.launched, Launched(now_s, *key_of(held), held.command.attempt))

    def remove(self, held: Held) -> None:
        run, step = key_of(held)
        attempt = held.command.attempt
        self.launched = [one for one in self.launched if (one.run, one.step, one.attempt) != (run, step, attempt)]
        self.dirty = True

    def fits(self, held: Held, now_s: float) -> bool:
        limit = self.limit_of(held)
        assert isinstance(limit, Rate)
        return sum(one.at_s > now_s - limit.per_s for one in self.launched) <= limit.count

    def encode(self, now_s: float) -> bytes:
        self.launched = [one for one in self.launched[-COUNT_MAX:] if one.at_s > now_s - self.per_s]
        return encode_launched(self.launched)

    def merge(self, data: bytes | None, now_s: float) -> None:
        found = decode_launched(data) if data is not None else []
        mine = {(one.run, one.step, one.attempt): one for one in self.launched}
        others = {(one.run, one.step, one.attempt): one for one in found}
        self.dirty = bool(self.dirty or mine.keys() - others.keys())
        latest_s = now_s + AHEAD_MAX_S
        merged = [one if one.at_s <= latest_s else one._replace(at_s=now_s) for one in (others | mine).values()]
        self.launched = sorted(merged)
