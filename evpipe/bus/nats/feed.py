"""Following a stream: every matching message once, in order, whatever happens to the connection.

A feed owns a consumer without acks at the server. That consumer does not know what arrived here, so the
feed does: the consumer counts its deliveries, and on a gap, a lost connection or silence the feed makes a
new consumer that starts after the last message it has passed on.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self

import anyio
import structlog
from nats.aio.msg import Msg

from evpipe.bus.clock import loop_clock
from evpipe.bus.nats.connection import ApiError, Connection, NotAnswered
from evpipe.bus.nats.pulling import HEARTBEAT_S, SILENCE_MAX_S, origin_of, pull_body, status_of
from evpipe.bus.protocol import Record
from evpipe.errors import BusRefused

log = structlog.get_logger(__name__)

BATCH: Final = 2_000
#: Records that wait here for a reader that is slower than the server; past it nothing more is asked for.
BUFFER_MAX: Final = 20_000
#: What a moment may lose when it is written in microseconds.
ROUNDED_S: Final = 2e-6
#: The server forgets a consumer that nobody pulled from for this long.
INACTIVE_S: Final = 30


class Feed:
    """An open feed of one stream; iterate it for lists of records, never empty.

    A wait for the next list may be cancelled, and begun again.

    Args:
        since_s: where `after` is 0, what is older than this time (seconds since 1970) is left out.
        batch: records that are asked for at a time.
        buffer_max: records waiting for their reader past which no more are asked for.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        subjects: Sequence[str],
        *,
        after: int,
        since_s: float | None = None,
        batch: int = BATCH,
        buffer_max: int = BUFFER_MAX,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subjects = list(subjects)
        self._last = after
        self._since_s = since_s if not after else None
        #: May be changed at any time.
        self.batch = batch
        self._buffer_max = buffer_max
        self._buffer: list[Record] = []
        self._filled = anyio.Event()
        self._broken = anyio.Event()
        self._consumer = ""
        self._consumer_sequence = 0
        self._left = 0
        self._heard_at = -math.inf
        self._now = loop_clock()
        #: Matching messages that the server still has for this feed, as far as is known; None before it said.
        self.pending: int | None = None
        self._inbox = f"{connection.inbox}.feed.{secrets.token_hex(4)}"

    async def run(self) -> None:
        """Keep the feed flowing until cancelled."""
        async with self._connection.subscribed(f"{self._inbox}.*", self._received):
            while True:
                await self._connection.wait_ready()
                generation = self._connection.generation
                self._broken = anyio.Event()
                try:
                    await self._create()
                except (ApiError, BusRefused) as error:
                    log.warning("feed_refused", stream=self._stream, error=str(error))
                    await anyio.sleep(HEARTBEAT_S)
                    continue
                self._ask()
                while not self._broken.is_set() and self._connection.generation == generation:
                    with anyio.move_on_after(HEARTBEAT_S / 2):
                        await self._broken.wait()
                    silent_s = self._now() - self._heard_at
                    if self._left and silent_s > SILENCE_MAX_S:
                        log.warning("feed_silent", stream=self._stream, silent_s=round(silent_s, 1))
                        break
                    if not self._connection.connected:
                        break

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        while not self._buffer:
            await self._filled.wait()
            self._filled = anyio.Event()
        records, self._buffer = self._buffer, []
        self._ask()
        return records

    async def next_or_end(self) -> list[Record]:
        """Give the next records, or [] when the server has no more for now."""
        while not self._buffer and self.pending != 0:
            with anyio.move_on_after(HEARTBEAT_S) as waiting:
                await self._filled.wait()
                self._filled = anyio.Event()
            if waiting.cancelled_caught:
                await self._look_again()
        return await self.__anext__() if self._buffer else []

    def forget(self) -> None:
        """Let the server know that nobody will read on; otherwise it keeps the consumer for `INACTIVE_S`."""
        if self._consumer:
            subject = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
            # Nobody waits for the answer, and the server gives none without a place for it.
            self._connection.send(subject, b"", f"{self._inbox}.forgotten")

    async def _look_again(self) -> None:
        """Ask what is pending: what the server had for this feed may have made room for newer messages since."""
        consumer, delivered = self._consumer, self._consumer_sequence
        if not consumer:
            return
        try:
            info = await self._connection.api(f"CONSUMER.INFO.{self._stream}.{consumer}")
        except (ApiError, NotAnswered) as error:
            log.debug("feed_not_told", stream=self._stream, error=str(error))
            return
        # Unless something is on its way.
        if (consumer, delivered) == (self._consumer, int(info["delivered"]["consumer_seq"])):
            self.pending = int(info["num_pending"])

    async def _create(self) -> None:
        # A new name each time: messages of an earlier consumer that still arrive are told apart by it.
        self._consumer = f"feed-{secrets.token_hex(8)}"
        self._consumer_sequence = 0
        self._left = 0
        start: dict[str, Any] = {"deliver_policy": "all"}
        if self._last:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}
        elif self._since_s is not None:
            # A little before: the server has nanoseconds, of which neither a float nor what is written here has all.
            since = datetime.fromtimestamp(self._since_s - ROUNDED_S, UTC).isoformat()
            start = {"deliver_policy": "by_start_time", "opt_start_time": since}
        config = {
            "name": self._consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subjects": self._subjects,
            "inactive_threshold": INACTIVE_S * 1_000_000_000,
            "num_replicas": 1,
            "mem_storage": True,
            **start,
        }
        request = f"CONSUMER.CREATE.{self._stream}.{self._consumer}"
        info = await self._connection.api_patiently(request, {"stream_name": self._stream, "config": config})
        self.pending = int(info.get("num_pending", 0))
        self._heard_at = self._now()
        self._filled.set()

    def _ask(self) -> None:
        if not self._consumer or self._left > self.batch // 2 or len(self._buffer) > self._buffer_max:
            return
        self._left += self.batch
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        self._connection.send(subject, pull_body(self.batch), f"{self._inbox}.{self._consumer}")

    def _received(self, message: Msg) -> None:
        if message.reply:
            if f".{self._consumer}." not in message.reply:
                return
            origin = origin_of(message.reply)
            self._heard_at = self._now()
            self._left -= 1
            if origin.consumer_sequence != self._consumer_sequence + 1:
                log.warning("feed_gap", stream=self._stream, after=self._last)
                self._broken.set()
                return
            self._consumer_sequence = origin.consumer_sequence
            self._last = origin.sequence
            self.pending = origin.pending
            if self._since_s is None or origin.at_s >= self._since_s:
                self._buffer.append(Record(origin.sequence, origin.at_s, message.subject, message.data))
            self._filled.set()
            if self._left <= self.batch // 2:
                self._ask()
            return
        status = status_of(message)
        if status is None or not message.subject.endswith(self._consumer):
            return
        self._heard_at = self._now()
        if status.heartbeat:
            return
        if status.ended:
            self._left = max(0, self._left - status.left)
            self._ask()
        else:
            self._broken.set()
