"""Following what runs say, of more and more runs: one subscription at a time, however many runs there are.

    members ─▶ subjects ─▶ one consumer at the bus ─▶ records ─▶ those of members
       │ a new one
       └─▶ what it has said so far ─▶ the consumer is made anew, if its subjects have to be others

A server is slow with a consumer of many subjects: it compares each with each other, and looks for all of them in what
it has stored (measured on nats-server 2.15: with 64 subjects 10 ms to begin at the end of a log, with 400 of them 10 s
to read 45,000 records, with 10,000 it answers nobody). So few subjects stand for many runs: all runs of a pipeline, or
everything; what others say is left out here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Final, NamedTuple, Protocol, Self

import anyio

from evpipe.bus.protocol import Bus, Record

#: Runs of one pipeline that are named one by one; of more, all runs of the pipeline are read.
NAMED_MAX: Final = 4
#: Subjects of one consumer.
SUBJECTS_MAX: Final = 64
#: A consumer is not made anew more often than this.
ANEW_S: Final = 0.1
#: Clocks of servers in a cluster may be apart.
APART_S: Final = 5.0


class Member(NamedTuple):
    """A run that is followed."""

    run: str
    pipeline: str
    #: It has said nothing before: sequence of the log, and the server's timestamp.
    after: int = 0
    since_s: float = 0.0


class Source(Protocol):
    """What is followed: what runs say in one stream."""

    def subjects(self, members: Collection[Member]) -> list[str]:
        """Give what covers these runs; of two that overlap there is only one."""

    def run_of(self, record: Record) -> str:
        """Give whose record it is; "" if it is nobody's."""

    def replay(self, members: Collection[Member], *, after: int, up_to: int) -> AsyncGenerator[list[Record], None]: ...

    def follow(
        self, members: Collection[Member], *, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        """Give what they say from `after` on; 0: all that they have said."""


class Events:
    """The log of runs."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def subjects(self, members: Collection[Member]) -> list[str]:
        of_pipeline = Counter(member.pipeline for member in members)
        subjects = [self._bus.subjects.events_of_pipeline(p) for p, count in of_pipeline.items() if count > NAMED_MAX]
        subjects += [
            self._bus.subjects.events_of_run(member.run, member.pipeline)
            for member in members
            if of_pipeline[member.pipeline] <= NAMED_MAX
        ]
        return subjects if len(subjects) <= SUBJECTS_MAX else [self._bus.subjects.all_events]

    def run_of(self, record: Record) -> str:
        tokens = record.subject.split(".")
        # Who may write to the log may write to any subject of it.
        return tokens[4] if len(tokens) > 4 else ""

    def replay(self, members: Collection[Member], *, after: int, up_to: int) -> AsyncGenerator[list[Record], None]:
        after = max(after, min(member.after for member in members))
        return self._bus.replay(self.subjects(members), after=after, up_to=up_to)

    def follow(
        self, members: Collection[Member], *, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        after = after or min(member.after for member in members)
        return self._bus.follow(self.subjects(members), after=after)


class Told:
    """What the attempts of runs tell, of one kind.

    Args:
        attempt: only attempts with this number; None: all.
        since_s: what is older is left out: seconds since 1970.
    """

    def __init__(self, bus: Bus, *, kind: str = "log", attempt: int | None = None, since_s: float = 0.0) -> None:
        self._bus = bus
        self._kind = kind
        self._attempt = attempt
        self._since_s = since_s

    def subjects(self, members: Collection[Member]) -> list[str]:
        runs = [member.run for member in members] if len(members) <= SUBJECTS_MAX else ["*"]
        return [self._bus.subjects.telemetry_of(run, None, self._attempt, self._kind) for run in runs]

    def run_of(self, record: Record) -> str:
        return record.subject.split(".")[2]

    def replay(self, members: Collection[Member], *, after: int, up_to: int) -> AsyncGenerator[list[Record], None]:
        subjects, since_s = self.subjects(members), self._since(members)
        return self._bus.telemetry.replay(subjects, after=after, up_to=up_to, since_s=since_s)

    def follow(
        self, members: Collection[Member], *, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Record]]]:
        return self._bus.telemetry.follow(self.subjects(members), after=after, since_s=self._since(members))

    def _since(self, members: Collection[Member]) -> float:
        # The streams may have two leaders, with a clock each.
        return max(self._since_s, min(member.since_s for member in members) - APART_S)


class GrowingFeed:
    """An open feed; iterate it for lists of records, never empty, of each run in order.

    A wait for the next list may be cancelled, and begun again. A run may be added, or dropped, between two waits; one
    at least is there.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        #: Whose records are all given up to the position; those that are behind it, and are being read; the rest.
        self._open: dict[str, Member] = {}
        self._behind: dict[str, Member] = {}
        self._new: dict[str, Member] = {}
        self._position = 0
        #: What those that are behind have said, as far as it was read.
        self._old: AsyncIterator[list[Record]] | None = None
        self._old_position = 0
        self._feed: AsyncIterator[list[Record]] | None = None
        self._subjects: list[str] = []
        self._made_at = -math.inf
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._look_no_more_back()
        await self._stack.aclose()

    def add(self, member: Member) -> None:
        self._new[member.run] = member

    def drop(self, run: str) -> None:
        """Give nothing of a run any more."""
        for members in (self._open, self._behind, self._new):
            members.pop(run, None)

    @property
    def members(self) -> list[Member]:
        """The runs that are followed."""
        return [*self._open.values(), *self._behind.values(), *self._new.values()]

    @property
    def position(self) -> int:
        """What was said up to this sequence was given, but of those that were added since."""
        return self._position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        while True:
            if self._behind or (self._new and self._left_s() <= 0):
                found = await self._look_back()
            else:
                found = await self._look_on()
            if found:
                return found

    async def rest(self, up_to: int = 0) -> AsyncGenerator[list[Record], None]:
        """Give what is left of what was said up to a sequence, also of runs that are added meanwhile, then end.

        Args:
            up_to: if it is less than what was given last, that.
        """
        while True:
            while self._new or self._behind:
                found = await self._look_back()
                if found:
                    yield found
            if not self._open or self._position >= up_to:
                return
            replay = self._source.replay(list(self._open.values()), after=self._position, up_to=up_to)
            async with aclosing(replay) as batches:
                async for records in batches:
                    self._position = records[-1].sequence
                    found = self._of(self._open, records)
                    if found:
                        yield found
            self._position = up_to

    def _left_s(self) -> float:
        """Give how long new runs have to wait: not at all if they are read already, and left out until now."""
        if self._feed is None or self._source.subjects([*self._open.values(), *self._new.values()]) == self._subjects:
            return 0.0
        return self._made_at + ANEW_S - anyio.current_time()

    async def _look_back(self) -> list[Record]:
        """Give what new runs have said so far; [] if that is all."""
        if not self._behind:
            # It may be read no more to its end: of those that it was about all were dropped.
            await self._look_no_more_back()
            self._behind, self._new = self._new, {}
            self._old_position = 0
        if self._old is None:
            self._old = self._source.replay(list(self._behind.values()), after=self._old_position, up_to=self._position)
        try:
            records = await anext(self._old)
        except StopAsyncIteration:
            self._old = None
            self._open |= self._behind
            self._behind = {}
            if self._feed is not None and self._source.subjects(self._open.values()) != self._subjects:
                await self._stack.aclose()
                self._feed = None
            return []
        except BaseException:
            # Cancelled: it is begun again from there.
            self._old = None
            raise
        self._old_position = records[-1].sequence
        return self._of(self._behind, records)

    async def _look_no_more_back(self) -> None:
        if isinstance(self._old, AsyncGenerator):
            await self._old.aclose()
        self._old = None

    async def _look_on(self) -> list[Record]:
        if self._feed is None:
            self._subjects = self._source.subjects(self._open.values())
            self._feed = await self._stack.enter_async_context(
                self._source.follow(list(self._open.values()), after=self._position)
            )
            self._made_at = anyio.current_time()
        with anyio.move_on_after(max(0.0, self._left_s()) if self._new else None):
            records = await anext(self._feed)
            self._position = records[-1].sequence
            return self._of(self._open, records)
        return []

    def _of(self, members: Collection[str], records: Sequence[Record]) -> list[Record]:
        return [record for record in records if self._source.run_of(record) in members]
