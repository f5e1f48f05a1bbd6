"""A stream of a bus in memory: records in the order of their sequences, and reading them as a server gives them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, Self, TypeAlias

import anyio

from evpipe.bus.protocol import Record

BATCH_MAX: Final = 1_000

#: Waits for records past a sequence; gives those that match some patterns, and how far was read.
Read: TypeAlias = Callable[[Sequence[str], int], Awaitable[tuple[list[Record], int]]]
#: Waits until there is a connection.
Reach: TypeAlias = Callable[[], Awaitable[None]]


def matches(pattern: str, subject: str) -> bool:
    """Say whether a subject matches a pattern with the wildcards `*` (one token) and `>` (the rest)."""
    wanted, found = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(found) > i
        if i >= len(found) or token not in ("*", found[i]):
            return False
    return len(wanted) == len(found)


class MemoryStream:
    """Records under one set of subjects.

    Args:
        everything: the pattern that all of its subjects match.
        bytes_max: of all payloads together; past it the oldest records go. None: all stay.
    """

    def __init__(self, everything: str, *, bytes_max: int | None = None) -> None:
        self.records: list[Record] = []
        self._everything = everything
        self._bytes_max = bytes_max
        self._bytes = 0
        #: Records that are gone, all of them before those that are there.
        self._dropped = 0
        self._appended = anyio.Event()

    @property
    def last_sequence(self) -> int:
        return self._dropped + len(self.records)

    def append(self, subject: str, payload: bytes, at_s: float) -> int:
        """Take a record; gives its sequence."""
        sequence = self.last_sequence + 1
        self.records.append(Record(sequence, at_s, subject, payload))
        if self._bytes_max is not None:
            self._bytes += len(payload)
            self._drop_over(self._bytes_max)
        self._appended.set()
        self._appended = anyio.Event()
        return sequence

    def _drop_over(self, bytes_max: int) -> None:
        count = 0
        while self._bytes > bytes_max and count < len(self.records):
            self._bytes -= len(self.records[count].payload)
            count += 1
        del self.records[:count]
        self._dropped += count

    async def read(self, patterns: Sequence[str], after: int) -> tuple[list[Record], int]:
        """Wait for records past `after`; give those that match, and how far was read."""
        while self.last_sequence <= after:
            await self._appended.wait()
        begin = max(0, after - self._dropped)
        found = self.records[begin : begin + BATCH_MAX]
        read = self._dropped + begin + len(found)
        if self._everything in patterns:
            return found, read
        return [r for r in found if any(matches(p, r.subject) for p in patterns)], read


async def replayed(
    read: Read, reach: Reach, subjects: Sequence[str], after: int, up_to: int, since_s: float | None = None
) -> AsyncGenerator[list[Record], None]:
    """Give the records between two sequences, then end."""
    while after < up_to:
        found, after = await read(subjects, after)
        await reach()
        found = [record for record in found if record.sequence <= up_to and record.at_s >= (since_s or 0.0)]
        if found:
            yield found


class MemoryFeed:
    """An open follow; iterate it. A wait for the next list may be cancelled, and begun again."""

    def __init__(self, read: Read, reach: Reach, subjects: Sequence[str], after: int, since_s: float = 0.0) -> None:
        self._read = read
        self._reach = reach
        self._subjects = list(subjects)
        self._after = after
        self._since_s = since_s

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        while True:
            found, read = await self._read(self._subjects, self._after)
            # Yields the processor even when there is always more to read.
            await self._reach()
            self._after = read
            found = [record for record in found if record.at_s >= self._since_s]
            if found:
                return found

    async def aclose(self) -> None:
        """Do as a generator does, which has to be closed by the task that reads it."""
