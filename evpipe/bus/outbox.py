"""Messages on their way to a stream: sent in order, repeated until they are answered.

    put ──▶ queue ──▶ window ──▶ send(token, message) … answered(token, reply) ──▶ done(outcome)

The transport below (a NATS connection, or memory) only sends and hands replies back; every rule about
acknowledgements is here, so both buses keep the same ones. What is sent together is a `Flight`; today a
flight is one message, and where the transport can commit many at once it becomes many, without a
change for whoever calls `put`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.clock import loop_clock
from evpipe.bus.protocol import Done, Outcome
from evpipe.errors import BusClosed, BusRefused

log = structlog.get_logger(__name__)

#: Messages sent and not answered; enough to hide a round trip, few enough that a restart repeats little.
WINDOW: Final = 2_000
#: Silence after which a message is taken as unanswered. Acks come in order, so while others arrive nothing is lost.
ANSWER_WAIT_S: Final = 3.0
#: A message whose later neighbours were answered is unanswered for certain after this.
ANSWER_MAX_S: Final = 15.0
#: Pause before a message is sent again that the server could not take (full, no leader).
BACKOFF_S: Final = 0.25
#: Replies that ask for patience are logged once in this time.
COMPLAIN_EVERY_S: Final = 10.0


class Verdict(Enum):
    """What a reply that is not an outcome means."""

    #: The server cannot take it now: send it again after a pause.
    LATER = "later"
    #: The same, because there is no room for it.
    FULL = "full"


class Fatal:
    """A reply that no repetition can change."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Message:
    """One message on its way. Identity matters, so it is no dataclass."""

    __slots__ = (
        "done",
        "dropped",
        "fail",
        "full",
        "headers",
        "payload",
        "put_off",
        "repeated",
        "sent_at",
        "settled",
        "subject",
        "token",
    )

    def __init__(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        done: Done | None,
        fail: Callable[[Exception], None] | None,
        full: Callable[[], None] | None = None,
    ) -> None:
        self.subject = subject
        self.payload = payload
        self.headers = headers
        self.done = done
        self.fail = fail
        self.full = full
        self.dropped = False
        #: The server has said that it cannot take it now, and it was not sent since.
        self.put_off = False
        #: It was sent more than once, so it may have been taken more than once.
        self.repeated = False
        self.settled = False
        #: Given at the first sending and kept: a late reply to any copy settles the message.
        self.token = 0
        self.sent_at = 0.0

    def drop(self) -> None:
        self.dropped = True


class Outbox:
    """The window of messages on their way over one transport.

    Args:
        send: hands one message to the transport, with the token that its reply will carry.
    """

    def __init__(self, send: Callable[[int, Message], Awaitable[None]], *, window: int = WINDOW) -> None:
        self._send = send
        #: May be changed at any time.
        self.window = window
        self._queue: deque[Message] = deque()
        #: The loop's clock; there is none before the outbox runs.
        self._now: Callable[[], float] = anyio.current_time
        #: By token, all that was ever sent and has no outcome; what waits to be sent again is in here, too.
        self._unanswered: dict[int, Message] = {}
        #: Sent and not answered, in the order of sending.
        self._in_flight: dict[int, Message] = {}
        #: To be sent again after a pause.
        self._delayed: list[Message] = []
        self._token = 0
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._answered_at = -math.inf
        self._complained_at = -math.inf
        self._closed = False
        self.repeated_count = 0
        self.full_count = 0

    def put(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        done: Done | None = None,
        fail: Callable[[Exception], None] | None = None,
        full: Callable[[], None] | None = None,
    ) -> Message:
        """Queue a message.

        Args:
            done: called with the outcome.
            fail: called if there will never be one; without it that is only logged.
            full: called each time the server says that there is no room for it.
        """
        message = Message(subject, payload, headers, done, fail, full)
        if self._closed:
            self._fail(message, BusClosed("the bus is closed"))
            return message
        self._queue.append(message)
        self._wake.set()
        return message

    async def put_wait(self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None) -> Outcome:
        """Queue a message and wait for its outcome."""
        answered = anyio.Event()
        found: list[Outcome | Exception] = []

        def settle(outcome: Outcome | Exception) -> None:
            found.append(outcome)
            answered.set()

        message = self.put(subject, payload, headers=headers, done=settle, fail=settle)
        try:
            await answered.wait()
        finally:
            message.drop()
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def statistics(self) -> dict[str, int]:
        return {
            "queued": len(self._queue) + len(self._delayed),
            "in_flight": len(self._in_flight),
            "repeated": self.repeated_count,
            "full": self.full_count,
        }

    # ---- for the transport

    def answered(self, token: int, reply: Outcome | Verdict | Fatal) -> None:
        """Take the reply to a message; one to a message that is not on its way (any more) means nothing."""
        message = self._unanswered.get(token)
        if message is None:
            return
        self._answered_at = self._now()
        under_way = self._in_flight.pop(token, None) is not None
        if isinstance(reply, Verdict):
            if under_way:
                self.full_count += 1
                message.put_off = True
                self._delayed.append(message)
                self._complain(message)
                if reply is Verdict.FULL and message.full is not None and not message.dropped:
                    message.full()
        else:
            del self._unanswered[token]
            message.settled = True
            if isinstance(reply, Fatal):
                self._fail(message, BusRefused(f"the server refuses {message.subject}: {reply.reason}"))
            elif message.done is not None and not message.dropped:
                message.done(reply)
        self._wake.set()

    def reconnected(self) -> None:
        """Send everything unanswered again at once: the replies on the old connection are gone."""
        self._requeue(list(self._in_flight.values()))

    # ---- the sending task

    async def run(self, task_group: TaskGroup) -> None:
        """Send until cancelled; starts its helpers in `task_group`. May be run again after it was cancelled."""
        self._now = loop_clock()
        task_group.start_soon(self._repeat_unanswered)
        while True:
            self._wake = anyio.Event()
            while self._queue and len(self._in_flight) < self.window:
                message = self._queue.popleft()
                if message.dropped or message.settled:
                    self._unanswered.pop(message.token, None)
                    continue
                if not message.token:
                    self._token += 1
                    message.token = self._token
                    self._unanswered[message.token] = message
                message.sent_at = self._now()
                message.put_off = False
                self._in_flight[message.token] = message
                await self._send(message.token, message)
            if not self._queue and not self._unanswered:
                self._idle.set()
                self._idle = anyio.Event()
            await self._wake.wait()

    async def drain(self) -> None:
        """Wait until everything that was put is answered."""
        while self._queue or self._unanswered:
            await self._idle.wait()

    def close(self) -> None:
        """Give up on everything that is not answered."""
        self._closed = True
        unsent = [message for message in self._queue if not message.token]
        for message in (*self._unanswered.values(), *unsent):
            self._fail(message, BusClosed("the bus was closed before the message was answered"))
        self._unanswered.clear()
        self._in_flight.clear()
        self._delayed.clear()
        self._queue.clear()

    async def _repeat_unanswered(self) -> None:
        """Look, now and then, for messages to send again."""
        while True:
            await anyio.sleep(BACKOFF_S)
            delayed, self._delayed = self._delayed, []
            self._requeue(delayed)
            now = self._now()
            late: list[Message] = []
            # In the order of sending: the first that is not late ends the look.
            for message in self._in_flight.values():
                silent_s = now - max(message.sent_at, self._answered_at)
                if silent_s < ANSWER_WAIT_S and now - message.sent_at < ANSWER_MAX_S:
                    break
                late.append(message)
            if late:
                log.warning("publish_unanswered", messages=len(late), first=late[0].subject)
                self._requeue(late)

    def _requeue(self, messages: list[Message]) -> None:
        if not messages:
            return
        for message in messages:
            message.repeated = message.repeated or not message.put_off
            self._in_flight.pop(message.token, None)
        self.repeated_count += len(messages)
        self._queue.extendleft(reversed(messages))
        self._wake.set()

    def _fail(self, message: Message, error: Exception) -> None:
        if message.dropped:
            return
        if message.fail is not None:
            message.fail(error)
        else:
            log.error("publish_failed", subject=message.subject, error=str(error))

    def _complain(self, message: Message) -> None:
        now = self._now()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            log.warning("stream_full", subject=message.subject, waiting=len(self._delayed) + len(self._queue))
