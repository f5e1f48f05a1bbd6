"""Pulling launches: one durable consumer per queue and priority, shared by all workers of that queue."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import structlog
from nats.aio.msg import Msg

from evpipe.bus.clock import loop_clock
from evpipe.bus.nats.buckets import NO_STREAM
from evpipe.bus.nats.connection import ApiError, Connection
from evpipe.bus.nats.pulling import HEARTBEAT_S, SILENCE_MAX_S, origin_of, pull_body, status_of
from evpipe.bus.protocol import ACK_PENDING_MAX, ACK_WAIT_S, SETTLE_S, Delivery, LaneState
from evpipe.core.limits import PRIORITY_MAX
from evpipe.errors import BusRefused
from evpipe.wire.subjects import Subjects

log = structlog.get_logger(__name__)

#: A lane that belongs to one process is forgotten when nobody has pulled from it for this long.
TRANSIENT_S: Final = 300
#: JetStream's "consumer not found".
NO_CONSUMER: Final = 10014
#: Until the end of the queue is noted, every launch may have been given before.
UNKNOWN: Final = sys.maxsize
#: Open pulls of one lane, several for each worker. The server's default of 512 leaves the workers past it without any.
PULLS_MAX: Final = 65_536


def lane_consumer(queue: str, priority: int) -> str:
    """Name of a lane's consumer: stable, so that its lag can be watched from outside."""
    return f"{queue}-{priority}"


def lane_config(
    queue: str, priority: int, filter_subject: str, *, transient: bool, limit: int | None = None
) -> dict[str, Any]:
    """The one description of a lane's consumer, whoever creates it."""
    config: dict[str, Any] = {
        "durable_name": lane_consumer(queue, priority),
        "name": lane_consumer(queue, priority),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * 1e9),
        # Who gives up on an attempt is the controller, by the log; the server gives a launch for ever.
        "max_deliver": -1,
        "max_ack_pending": limit or ACK_PENDING_MAX,
        "max_waiting": PULLS_MAX,
        "filter_subject": filter_subject,
        "replay_policy": "instant",
    }
    if transient:
        config["inactive_threshold"] = TRANSIENT_S * 1_000_000_000
    return config


async def lane_states(connection: Connection, stream: str, subjects: Subjects) -> list[LaneState]:
    """Give what there is in every lane that has a consumer, by queue and priority."""
    found: dict[tuple[str, int], LaneState] = {}
    listed = 0
    while True:
        try:
            page = await connection.api_patiently(f"CONSUMER.LIST.{stream}", {"offset": listed})
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            # It is made again when something is launched, or pulled.
            return []
        consumers: list[dict[str, Any]] = page.get("consumers") or []
        for consumer in consumers:
            queue, _, priority = str(consumer["name"]).rpartition("-")
            # Whatever else has a consumer on the queue is no lane.
            if priority.isdecimal() and consumer["config"].get("filter_subject") == subjects.launches_of_lane(
                queue, int(priority)
            ):
                limit = int(consumer["config"].get("max_ack_pending", ACK_PENDING_MAX))
                state = LaneState(
                    queue,
                    int(priority),
                    int(consumer["num_pending"]),
                    int(consumer["num_ack_pending"]),
                    limit if 0 < limit < ACK_PENDING_MAX else None,
                )
                found[queue, int(priority)] = state
        listed += len(consumers)
        if not consumers or listed >= int(page["total"]):
            return [found[lane] for lane in sorted(found)]


async def limit_lanes(connection: Connection, stream: str, queue: str, limit: int | None) -> None:
    """Set how many launches the consumers of a queue that exist let be taken at a time."""
    for priority in range(PRIORITY_MAX + 1):
        name = lane_consumer(queue, priority)
        try:
            info = await connection.api_patiently(f"CONSUMER.INFO.{stream}.{name}")
            wanted = limit or ACK_PENDING_MAX
            if info["config"].get("max_ack_pending") == wanted:
                continue
            config = {**info["config"], "max_ack_pending": wanted}
            body = {"stream_name": stream, "config": config, "action": "update"}
            await connection.api_patiently(f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", body)
        except ApiError as error:
            if error.code not in (NO_CONSUMER, NO_STREAM):
                raise BusRefused(f"the limit of the queue {queue!r} cannot be set: {error}") from error


class LaneDelivery:
    """See `bus.protocol.Delivery`."""

    __slots__ = ("_connection", "_reply", "arrived_at", "examine_at", "payload", "redelivered", "subject")

    def __init__(
        self, connection: Connection, message: Msg, *, redelivered: bool, arrived_at: float, examine_at: float
    ) -> None:
        self._connection = connection
        self._reply = message.reply
        self.subject = message.subject
        self.payload = message.data
        self.redelivered = redelivered
        self.arrived_at = arrived_at
        self.examine_at = examine_at

    def ack(self) -> None:
        self._connection.post(self._reply, b"+ACK")

    def extend(self) -> None:
        self._connection.post(self._reply, b"+WPI")

    def release(self) -> None:
        self._connection.post(self._reply, b"-NAK")


class Lane:
    """An open pull of one lane; see `bus.protocol.Pull`."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        queue: str,
        priority: int,
        filter_subject: str,
        deliver: Callable[[Delivery], None],
        *,
        transient: bool,
        limit: Callable[[], Awaitable[int | None]],
    ) -> None:
        self.asked = 0
        self._connection = connection
        self._stream = stream
        self._consumer = lane_consumer(queue, priority)
        self._make_config = partial(lane_config, queue, priority, filter_subject, transient=transient)
        self._config = self._make_config()
        self._limit = limit
        self._deliver = deliver
        self._open = False
        #: The client on which the pull is open.
        self._generation = 0
        #: Set when its consumer was there for the first time.
        self.opened = anyio.Event()
        self._broken = anyio.Event()
        self._heard_at = -math.inf
        self._examine_at = -math.inf
        self._now = loop_clock()
        #: Where its launches come, of this opening only.
        self._inbox = ""
        #: Launches up to this sequence of the queue may have been given to somebody before: a server that was
        #: killed, or a consumer that was made again, has forgotten what was acked.
        self._noted_sequence = 0
        #: The consumer's count at its last delivery to this pull.
        self._consumer_sequence = 0

    def ask(self, count: int) -> None:
        self.asked += count
        if self._live:
            self._request(count)

    @property
    def _live(self) -> bool:
        """Whether the pull is open on the client of now: on a later one all that is asked for is asked again."""
        return self._open and self._connection.connected and self._connection.generation == self._generation

    async def run(self) -> None:
        """Keep the pull open until cancelled."""
        while True:
            self._open = False
            await self._connection.wait_ready()
            self._generation = self._connection.generation
            # Requests of before may still be open at the server. Where nobody listens they end; what they were
            # given meanwhile comes again.
            self._inbox = f"{self._connection.inbox}.lane.{secrets.token_hex(4)}"
            async with self._connection.subscribed(self._inbox, self._received):
                await self._serve()

    async def _serve(self) -> None:
        """Keep the pull open until it breaks."""
        self._broken = anyio.Event()
        try:
            await self._create()
        except (ApiError, BusRefused) as error:
            log.warning("lane_refused", consumer=self._consumer, error=str(error))
            await anyio.sleep(HEARTBEAT_S)
            return
        if self.opened.is_set():
            # A launch that comes again now may be somebody's who is only later to connect, with its result in hand.
            self._examine_at = self._now() + SETTLE_S
        self._open = True
        self.opened.set()
        self._heard_at = self._now()
        if self.asked and self._live:
            self._request(self.asked)
        while not self._broken.is_set() and self._connection.generation == self._generation:
            with anyio.move_on_after(HEARTBEAT_S / 2):
                await self._broken.wait()
            if not self._connection.connected:
                return
            if self._noted_sequence == UNKNOWN:
                await self._note()
            if self.asked and self._now() - self._heard_at > SILENCE_MAX_S:
                log.warning("lane_silent", consumer=self._consumer)
                return

    async def _create(self) -> None:
        limit = await self._limit()
        while True:
            self._config = self._make_config(limit=limit)
            body = {"stream_name": self._stream, "config": self._config, "action": ""}
            await self._connection.api_patiently(
                f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{self._config['filter_subject']}", body
            )
            # Somebody may have set another one in between, before there was a consumer to set it of.
            before, limit = limit, await self._limit()
            if limit == before:
                break
        await self._note()
        self._consumer_sequence = 0

    async def _note(self) -> None:
        info = await self._connection.api_patiently(f"STREAM.INFO.{self._stream}")
        self._noted_sequence = int(info["state"]["last_seq"])

    def _request(self, count: int) -> None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        if self._now() - self._heard_at > HEARTBEAT_S:
            # Nothing was asked for, so nothing was to be heard: the silence begins now.
            self._heard_at = self._now()
        self._connection.send(subject, pull_body(count), self._inbox)

    def _received(self, message: Msg) -> None:
        now = self._heard_at = self._now()
        if message.reply:
            origin = origin_of(message.reply)
            self.asked = max(0, self.asked - 1)
            if origin.consumer_sequence <= self._consumer_sequence:
                # It counts from the beginning: another worker has made it again while nothing was asked for here.
                self._noted_sequence = UNKNOWN
            self._consumer_sequence = origin.consumer_sequence
            # Where the end of the queue was noted on an earlier client, nothing is known of this message.
            noted = self._connection.generation == self._generation
            redelivered = origin.deliveries > 1 or not noted or origin.sequence <= self._noted_sequence
            delivery = LaneDelivery(
                self._connection, message, redelivered=redelivered, arrived_at=now, examine_at=self._examine_at
            )
            self._deliver(delivery)
            return
        status = status_of(message)
        if status is None or status.heartbeat:
            return
        if status.ended:
            if status.left and self._live:
                self._request(min(status.left, self.asked))
        else:
            # The consumer is gone, or moves to another server: make sure of it and ask again.
            self._broken.set()
