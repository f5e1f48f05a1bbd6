"""Buses that break one rule each, and are otherwise right."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from evpipe.bus import memory
from evpipe.bus.memory import (
    MemoryBucket,
    MemoryBus,
    MemoryDelivery,
    MemoryObjects,
    MemoryPull,
    MemoryServer,
)
from evpipe.bus.memory_stream import matches
from evpipe.bus.outbox import Fatal, Message, Outbox, Verdict
from evpipe.bus.protocol import Answer, Delivery, Entry, Outcome, Record, Refused, Stored

Patch = Callable[[pytest.MonkeyPatch], None]


class NoSequenceCheck(MemoryServer):
    def append(self, subject: str, payload: bytes, expected: int | None) -> Outcome:
        return super().append(subject, payload, None)


class SequenceOfTheLog(MemoryServer):
    """The expected sequence is compared with the log's, not the subject's."""

    def append(self, subject: str, payload: bytes, expected: int | None) -> Outcome:
        if expected is not None and expected != len(self.records):
            return Refused.SEQUENCE
        return super().append(subject, payload, None)


class DeduplicatesByContent(MemoryServer):
    def append(self, subject: str, payload: bytes, expected: int | None) -> Outcome:
        for record in self.records:
            if (record.subject, record.payload) == (subject, payload):
                return Stored(record.sequence)
        return super().append(subject, payload, expected)


class KeepsTheNewestOfASubject(MemoryServer):
    """A log that keeps one record per subject."""

    async def read(self, patterns: Sequence[str], after: int) -> tuple[list[Record], int]:
        found, read = await super().read(patterns, after)
        return [r for r in found if self._last_by_subject[r.subject] == r.sequence], read


class SubjectsFreeAfterAck(MemoryServer):
    """A work queue: what was acked is gone, and its subject free again."""

    def launch(self, subject: str, payload: bytes) -> Outcome:
        kept = self.launches.get(subject)
        if kept is not None and kept.acked:
            del self.launches[subject]
        return super().launch(subject, payload)


class LaunchesTwice(MemoryServer):
    def launch(self, subject: str, payload: bytes) -> Outcome:
        self.launches.pop(subject, None)
        return super().launch(subject, payload)


class DropsNothing(MemoryServer):
    def remove(self, gone: Callable[[Any], bool]) -> None:
        return


class DropsEverything(MemoryServer):
    def remove(self, gone: Callable[[Any], bool]) -> None:
        super().remove(lambda _: True)


class DropsFromTheStreamOnly(MemoryServer):
    """What is dropped stays with the consumer, and is given again."""

    def remove(self, gone: Callable[[Any], bool]) -> None:
        for kept in [kept for kept in self.launches.values() if gone(kept)]:
            del self.launches[kept.subject]


class OneLane(MemoryServer):
    def lane(self, key: tuple[str, int]) -> Any:
        return super().lane(("", 0))


class LocalClock(MemoryServer):
    """Time stamps are the moments of nothing in particular."""

    def now_s(self) -> float:
        return 1_000.0 - len(self.records)


class FirstOfASubject(MemoryServer):
    """`last` gives the oldest."""

    def last(self, pattern: str) -> Record | None:
        return next((r for r in self.records if matches(pattern, r.subject)), None)


class LastWithoutWildcards(MemoryServer):
    def last(self, pattern: str) -> Record | None:
        return super().last(pattern) if "*" not in pattern else None


class LosesItsTailInACrash(MemoryServer):
    """What was answered last is gone after a kill."""

    def forget_acks(self) -> None:
        super().forget_acks()
        del self.records[-3:]


class Inclusive(MemoryBus):
    """`up_to` and `after` are one off."""

    async def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        async for batch in super().replay(subjects, up_to=up_to, after=max(0, after - 1)):
            yield batch


class ReplayEndsEarly(MemoryBus):
    async def replay(
        self, subjects: Sequence[str], *, up_to: int, after: int = 0, since_s: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        async for batch in super().replay(subjects, up_to=max(0, up_to - 1), after=after):
            yield batch


class FollowsFromTheEnd(MemoryBus):
    """A follow gives what comes after it was opened."""

    async def _follow(self, subjects: Sequence[str], after: int, since_s: float) -> AsyncGenerator[list[Record], None]:
        async for batch in super()._follow(subjects, max(after, len(self.server.records)), since_s):
            yield batch


class FollowsWithoutFilter(MemoryBus):
    async def _follow(self, subjects: Sequence[str], after: int, since_s: float) -> AsyncGenerator[list[Record], None]:
        async for batch in super()._follow([self.subjects.all_events], after, since_s):
            yield batch


class FollowsTwice(MemoryBus):
    """After a reconnect a follow gives the batch before it again."""

    async def _follow(self, subjects: Sequence[str], after: int, since_s: float) -> AsyncGenerator[list[Record], None]:
        link = self._reached
        async for batch in super()._follow(subjects, after, since_s):
            yield batch
            if self._reached is not link:
                link = self._reached
                yield batch


class FollowsWithGaps(MemoryBus):
    """What is stored while there is no connection is not given later."""

    async def _follow(self, subjects: Sequence[str], after: int, since_s: float) -> AsyncGenerator[list[Record], None]:
        link = self._reached
        async for batch in super()._follow(subjects, after, since_s):
            if self._reached is link:
                yield batch
            link = self._reached


class FollowsSinceEver(MemoryBus):
    async def _follow(self, subjects: Sequence[str], after: int, since_s: float) -> AsyncGenerator[list[Record], None]:
        async for batch in super()._follow(subjects, after, 0.0):
            yield batch


class NotesNothing(MemoryBus):
    """Only the server's own count says what was given before."""

    @asynccontextmanager
    async def pull(
        self, queue: str, priority: int, deliver: Callable[[Delivery], None], *, transient: bool = False
    ) -> AsyncIterator[Any]:
        async with super().pull(queue, priority, deliver, transient=transient) as pull:
            assert isinstance(pull, MemoryPull)
            pull._noted_sequence = 0
            self.noted_sequence = 0
            yield pull

    def reconnect(self) -> None:
        super().reconnect()
        self.noted_sequence = 0


class NotesOnceOnly(MemoryBus):
    """The end of the queue is noted when the bus is made, never at a reconnect."""

    def reconnect(self) -> None:
        noted = self.noted_sequence
        super().reconnect()
        self.noted_sequence = noted


class EverythingIsRedelivered(MemoryBus):
    def reconnect(self) -> None:
        super().reconnect()
        self.noted_sequence = 10**9

    async def __aenter__(self) -> Any:
        self.noted_sequence = 10**9
        return await super().__aenter__()


class AnswersAtOnce(MemoryBus):
    """The asker does not wait: silence is known at once."""

    async def ask(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes | None:
        return await super().ask(subject, payload, timeout_s=0.0)


class TellsOne(MemoryBus):
    """A signal goes to the first who listens."""

    def signal(self, subject: str, payload: bytes) -> None:
        for pattern, answer in list(self.server.listeners.values()):
            if matches(pattern, subject):
                answer(subject, payload)
                return


class TellsAllSubjects(MemoryBus):
    def signal(self, subject: str, payload: bytes) -> None:
        for _, answer in list(self.server.listeners.values()):
            answer(subject, payload)


class DeafAfterReconnect(MemoryBus):
    def disconnect(self) -> None:
        super().disconnect()
        self.server.listeners.clear()

    @asynccontextmanager
    async def listen(self, subject: str, answer: Answer) -> AsyncIterator[None]:
        key = id(self) + 10_000
        self.server.listeners[key] = (subject, answer)
        try:
            yield
        finally:
            self.server.listeners.pop(key, None)


class NeverGivenBack(MemoryDelivery):
    def release(self) -> None:
        return


class NotKept(MemoryDelivery):
    def extend(self) -> None:
        return


class KeptByTheNewestOnly(MemoryDelivery):
    """A sign of life counts on the last delivery alone."""

    __slots__ = ("_number",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._number = self._kept.deliveries

    def extend(self) -> None:
        if self._number == self._kept.deliveries:
            super().extend()


class NeverAcked(MemoryDelivery):
    def ack(self) -> None:
        return


class DamagedObjects(MemoryObjects):
    """What is stored is given without a look at it."""

    async def get(self, digest: str) -> bytes | None:
        return self._server.objects.get(digest)


class EmptyIsMissing(MemoryObjects):
    async def get(self, digest: str) -> bytes | None:
        return await super().get(digest) or None


class AppendsObjects(MemoryObjects):
    """A second put is stored behind the first."""

    async def put(self, digest: str, data: bytes) -> None:
        await self._bus.reach()
        self._server.objects[digest] = self._server.objects.get(digest, b"") + data


class AnyRevision(MemoryBucket):
    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        return await super().put(key, value, expected=None, ttl_s=ttl_s)


class ForEver(MemoryBucket):
    """Nothing goes by itself."""

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        return await super().put(key, value, expected=expected)


class NeverDeleted(MemoryBucket):
    async def delete(self, key: str) -> None:
        return


class OldestFirstWrite(MemoryBucket):
    """Entries come in the order of their first writes."""

    async def entries(self, under: str = "") -> list[Entry]:
        return sorted(await super().entries(under), key=lambda entry: entry.key)


def patch(target: Any, name: str, value: Any) -> Patch:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(target, name, value)

    apply.__name__ = getattr(value, "__name__", name)
    return apply


def delivery(replacement: type[MemoryDelivery]) -> Patch:
    return patch(memory, "MemoryDelivery", replacement)


def _never(*_: Any, **__: Any) -> None:
    return


async def _never_again(_: Outbox) -> None:
    await anyio.sleep_forever()


def _full_is_launched(self: Outbox, token: int, reply: Outcome | Verdict | Fatal) -> None:
    _answered(self, token, Refused.LAUNCHED if reply is Verdict.LATER else reply)


def _full_is_refused(self: Outbox, token: int, reply: Outcome | Verdict | Fatal) -> None:
    _answered(self, token, Fatal("full") if reply is Verdict.LATER else reply)


def _done_each_time(self: Outbox, token: int, reply: Outcome | Verdict | Fatal) -> None:
    """`done` is called for each copy's reply."""
    message = self._unanswered.get(token)
    _answered(self, token, reply)
    if message is not None and message.done is not None and isinstance(reply, (Stored, Refused)):
        message.done(reply)


def _answered_at_once(self: Outbox, subject: str, payload: bytes, **options: Any) -> Message:
    """A message counts as stored when it was put."""
    done = options.pop("done", None)
    message = _put(self, subject, payload, **{**options, "fail": None})
    if done is not None:
        done(Stored(1))
    return message


def _closed_quietly(self: Outbox) -> None:
    """Whoever waits is told that it was stored."""
    for message in self._unanswered.values():
        if message.done is not None:
            message.done(Stored(1))
    _close(self)


def _reversed(self: Outbox, messages: list[Message]) -> None:
    _requeue(self, messages[::-1])


_answered, _put, _close, _requeue = Outbox.answered, Outbox.put, Outbox.close, Outbox._requeue


class AsksForMore(MemoryPull):
    def ask(self, count: int) -> None:
        super().ask(count + 1)


class AsksForOne(MemoryPull):
    def ask(self, count: int) -> None:
        super().ask(1)


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch is given again as soon as it was given."""
    monkeypatch.setattr(memory, "ACK_WAIT_S", 0.05)


def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ACK_WAIT_S", 1e9)


def gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch is given ten times and no more."""

    class Limited(MemoryDelivery):
        def release(self) -> None:
            if self._kept.deliveries >= 10:
                self.ack()
            else:
                super().release()

    monkeypatch.setattr(memory, "MemoryDelivery", Limited)
