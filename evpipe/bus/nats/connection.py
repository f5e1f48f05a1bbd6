"""One connection to a NATS server that never stays lost.

nats-py's own reconnecting is switched off. It has states that look connected and are deaf, and a client
that the server closed (a permission revoked, a control line too long) never comes back; so there is one
way to recover from anything: drop the client, build a new one, subscribe again, and tell the parts that
live on the connection. Pings every second and two missed find a frozen server in 3 s.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import anyio
import nats.errors
import structlog
from anyio.abc import TaskGroup
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from evpipe.bus.raised import log_raised
from evpipe.bus.settings import BusSettings
from evpipe.errors import BusClosed, BusError, BusRefused, BusUnreachable, UsageError
from evpipe.wire.limits import SUBJECT_CHARS_MAX

log = structlog.get_logger(__name__)

#: What a client raises whose connection is gone. The last two come from the loop: CPython 3.13.0 writes to a transport
#: that it has closed (AttributeError), and uvloop says so (RuntimeError).
LOST: Final = (nats.errors.Error, OSError, AttributeError, RuntimeError)

CONNECT_WAIT_S: Final = 5.0
#: One try to come back; a socket that is cut in the middle of it leaves the client waiting for an answer.
RECONNECT_WAIT_S: Final = 2.0
PING_EVERY_S: Final = 1
PINGS_MISSED_MAX: Final = 2
RECONNECT_EVERY_S: Final = 0.1
RECONNECT_EVERY_MAX_S: Final = 0.5
#: JetStream is starting, moving to another server, or without a leader: it passes.
NO_LEADER: Final = frozenset({503, 10008, 10009, 10039, 10074})
#: Bytes that may wait for the socket; nats-py flushes by itself long before.
PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
REQUEST_WAIT_S: Final = 5.0
#: The oldest server that has what the protocol needs.
SERVER_MIN: Final = (2, 14, 0)
#: Bytes told that may wait for the socket; what comes then is dropped.
TOLD_BYTES_MAX: Final = 4 * 1024 * 1024
#: Bytes told that are written at once: what matters waits behind no more of them.
TOLD_AT_ONCE_BYTES: Final = 128 * 1024
#: What the server says of a subject that the user's permissions do not cover.
DENIED: Final = re.compile(r'permissions violation for (?P<what>\w+) to "(?P<subject>[^"]*)', re.IGNORECASE)
#: nats-server's default. A message over the server's limit would end the connection, and again when it is repeated.
SERVER_PAYLOAD_MIN: Final = 1024 * 1024

Received: TypeAlias = Callable[[Msg], None]
#: Something that lives on one client: run when it is there, cancelled when it is lost.
Part: TypeAlias = Callable[[TaskGroup], Coroutine[Any, Any, None]]


class ApiError(BusError):
    """JetStream answered a request with an error."""

    def __init__(self, request: str, code: int, description: str) -> None:
        super().__init__(f"{request}: {description} ({code})")
        self.code = code


class NotAnswered(BusError):
    """A request got no answer: the server is away, or nothing serves the subject."""

    def __init__(self, request: str, *, no_responders: bool) -> None:
        super().__init__(f"{request}: " + ("nobody serves it" if no_responders else "no answer in time"))
        self.no_responders = no_responders


def publish_command(subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> bytes:
    """One PUB or HPUB of the NATS protocol.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol
    """
    if headers is None:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = len(block), len(block) + len(payload)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), reply.encode(), *sizes, block, payload)


def checked(subject: str) -> str:
    """Take a last look at a subject before the wire: a longer one ends the connection, a wildcard is stored as it is.

    Raises:
        UsageError: if it cannot be published to.
    """
    if len(subject) > SUBJECT_CHARS_MAX or "*" in subject or ">" in subject or " " in subject:
        raise UsageError(f"{subject[:80]!r} cannot be published to")
    return subject


class _Question:
    """A request that waits for its answer; answered without one when the client is lost."""

    __slots__ = ("answer", "answered", "denied", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.answered = anyio.Event()
        self.answer: Msg | None = None
        #: What this user may not do, where that is why there is no answer.
        self.denied = ""


class Connection:
    """A supervised connection; the parts above it see subjects, bytes and a `generation` that counts clients."""

    def __init__(self, settings: BusSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._ready = anyio.Event()
        self._lost = anyio.Event()
        self._subscriptions: dict[int, tuple[str, Received]] = {}
        self._subscribed: dict[int, Subscription] = {}
        self._subscribing = anyio.Lock()
        self._subscription = 0
        #: Subject, payload, reply, and the generation it was posted in.
        #: Encoded messages that wait to be written: for this client only, and for whichever comes.
        self._sends: list[bytes] = []
        self._posts: list[bytes] = []
        #: The same for messages that may be lost, which give way to the others.
        self._told: deque[bytes] = deque()
        self._told_bytes = 0
        self._unwritten = anyio.Event()
        self._last_error = ""
        #: The subject of answers, if the server does not let this user subscribe to it.
        self._deaf = ""
        self._closing = False
        self._parts: list[Part] = []
        self._request = 0
        #: Requests that wait for their answer, by the last token of their reply subject.
        self._questions: dict[str, _Question] = {}
        #: How many clients there have been.
        self.generation = 0
        self.inbox = Client().new_inbox()
        self._replies = f"{self.inbox}.reply."
        self._subscriptions[0] = (f"{self._replies}*", self._replied)

    # ---- life

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def url(self) -> str:
        return self._settings.url or ""

    @property
    def server_version(self) -> str:
        client = self._client
        return str(client._server_info.get("version", "")) if client else ""

    @property
    def payload_bytes_max(self) -> int:
        """What the server takes in one message, headers included; it has said so when it was connected to."""
        client = self._client
        return int(client._server_info.get("max_payload", SERVER_PAYLOAD_MIN)) if client else SERVER_PAYLOAD_MIN

    def relocate(self, settings: BusSettings) -> None:
        """Connect to another address from the next client on."""
        self._settings = settings

    def add_part(self, part: Part) -> None:
        """Run `part` on every client from the next on."""
        self._parts.append(part)

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            BusUnreachable: if no server answers within `CONNECT_WAIT_S`.
            BusRefused: if one does and refuses, or is too old.
        """
        self._client = await self._connect(CONNECT_WAIT_S)

    async def run(self) -> None:
        """Keep the connection until cancelled; `open` comes first."""
        while not self._closing:
            client = self._client or await self._reconnect()
            self._client = client
            self.generation += 1
            try:
                await self._live_on(client)
            except* LOST as errors:
                # It was lost while something was being handed to it.
                self._last_error = str(errors.exceptions[0])
            finally:
                self._client = None
                self._subscribed.clear()
                self._sends = []
                self._take_told(self._told_bytes)
                for question in self._questions.values():
                    # Its answer was to come to the client that is gone: whoever waits asks again now.
                    question.answered.set()
                self._ready = anyio.Event()
                _abandon(client)
            if not self._closing:
                log.warning("connection_lost", url=self.url, error=self._last_error)

    async def _live_on(self, client: Client) -> None:
        for key in list(self._subscriptions):
            await self._subscribe(client, key)
        async with anyio.create_task_group() as task_group:
            for part in self._parts:
                task_group.start_soon(part, task_group)
            task_group.start_soon(self._write, client)
            self._ready.set()
            while not client.is_closed:
                # The callback is quick; the look covers a client that hangs while it closes.
                with anyio.move_on_after(0.25):
                    await self._lost.wait()
            task_group.cancel_scope.cancel()

    async def close(self) -> None:
        """Hand over what was posted, and leave."""
        self._closing = True
        client, self._client = self._client, None
        if client is None:
            return
        with anyio.move_on_after(1.0, shield=True):
            try:
                last = [*self._posts, *self._take_told(self._told_bytes)]
                if last and not client.is_closed:
                    await client._send_command(b"".join(last))
                    self._posts = []
                # Closing flushes what the client has gathered.
                await client.close()
            except LOST as error:
                log.debug("close_failed", url=self.url, error=str(error))
        _abandon(client)

    async def wait_ready(self) -> None:
        """Wait until there is a client whose subscriptions are in place."""
        while not (self._ready.is_set() and self.connected):
            if self._closing:
                raise BusClosed("the bus was closed while the call was waiting")
            if self._ready.is_set():
                # Lost a moment ago; the supervisor is about to notice.
                await anyio.sleep(0.01)
            else:
                await self._ready.wait()

    async def _reconnect(self) -> Client:
        pause_s = RECONNECT_EVERY_S
        while True:
            try:
                client = await self._connect(RECONNECT_WAIT_S)
            except BusError as error:
                log.debug("reconnect_failed", error=str(error))
            else:
                log.info("connection_restored", url=self.url)
                return client
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_EVERY_MAX_S)

    async def _connect(self, wait_s: float) -> Client:
        settings = self._settings
        self._lost = anyio.Event()
        self._deaf = ""
        lost = self._lost
        errors: list[str] = []

        async def closed() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            text = str(error) or type(error).__name__
            errors.append(text)
            self._last_error = text
            denied = DENIED.search(text)
            if denied is not None:
                log.error("permission_denied", url=self.url, error=text)
                self._deny(denied["what"], denied["subject"])

        client = Client()
        try:
            with anyio.fail_after(wait_s):
                await client.connect(
                    servers=[part.strip() for part in self.url.split(",")],
                    name="evpipe",
                    allow_reconnect=False,
                    connect_timeout=int(wait_s),
                    # Even so nats-py tries a port that refuses 60 times, 2 s apart: whoever waits tries again itself.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=PING_EVERY_S,
                    max_outstanding_pings=PINGS_MISSED_MAX,
                    pending_size=PENDING_BYTES_MAX,
                    # Every subject is built of checked names.
                    skip_subject_validation=True,
                    closed_cb=closed,
                    error_cb=failed,
                    **_credentials(settings),
                )
        except TimeoutError:
            _abandon(client)
            raise _explained(self.url, TimeoutError(f"waited {wait_s:g} s"), errors) from None
        except (*LOST, ValueError, ImportError) as error:
            _abandon(client)
            raise _explained(self.url, error, errors) from error
        except BaseException:
            _abandon(client)
            raise
        payload_max = int(client._server_info.get("max_payload", 0))
        version = tuple(int(n) for n in re.findall(r"\d+", str(client._server_info.get("version", "")))[:3])
        if version < SERVER_MIN:
            await client.close()
            raise BusRefused(
                f"the NATS server at {self.url} is version {'.'.join(map(str, version)) or 'unknown'}: "
                f"at least {'.'.join(map(str, SERVER_MIN))} is needed"
            )
        if payload_max < SERVER_PAYLOAD_MIN:
            await client.close()
            raise BusRefused(
                f"the NATS server at {self.url} takes payloads of at most {payload_max:,} bytes: "
                f"set its max_payload to {SERVER_PAYLOAD_MIN:,} or more"
            )
        return client

    # ---- subjects and bytes

    def send(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None = None) -> None:
        """Hand a message to this client's socket; forgotten if the client is lost before.

        For what asks for an answer: it would come to this client, and on a later one whoever asked asks anew.
        """
        self._sends.append(publish_command(subject, payload, reply, headers))
        self._unwritten.set()

    def post(self, subject: str, payload: bytes) -> None:
        """Hand a message to the socket of this client, or of the next if there is none now."""
        self._posts.append(publish_command(subject, payload, "", None))
        self._unwritten.set()

    def tell(self, subject: str, payload: bytes) -> bool:
        """Hand a message that may be lost to this client's socket; it holds the others up by little.

        Returns:
            Whether it is on its way; not if there is no client now, or too much waits.
        """
        command = publish_command(subject, payload, "", None)
        if not self.connected or self._told_bytes + len(command) > TOLD_BYTES_MAX:
            return False
        self._told.append(command)
        self._told_bytes += len(command)
        self._unwritten.set()
        return True

    def _take_told(self, bytes_max: int) -> list[bytes]:
        """Take the oldest of what was told: at least one, if there is any."""
        taken: list[bytes] = []
        size = 0
        while self._told and (not taken or size + len(self._told[0]) <= bytes_max):
            taken.append(self._told.popleft())
            size += len(taken[-1])
        self._told_bytes -= size
        return taken

    async def _write(self, client: Client) -> None:
        """Write what is to be sent, all that has gathered at once.

        The client's own `publish` costs some microseconds of bookkeeping a message, which a buffer needs once.
        """
        while True:
            self._unwritten = anyio.Event()
            while self._posts or self._sends or self._told:
                chunk, self._posts, self._sends = [*self._posts, *self._sends], [], []
                told = self._take_told(TOLD_AT_ONCE_BYTES)
                # It goes first: the output of a step belongs before the event that it has ended.
                await client._send_command(b"".join([*told, *chunk]))
                # The client would buffer any amount: waited for, while the socket is slow `tell` drops it instead.
                await client._flush_pending(force_flush=bool(told))
            await self._unwritten.wait()

    @asynccontextmanager
    async def subscribed(self, subject: str, received: Received) -> AsyncIterator[None]:
        """Call `received` for every message on `subject`, on this client and those to come."""
        self._subscription += 1
        key = self._subscription
        self._subscriptions[key] = (subject, received)
        if self._client is not None:
            await self._subscribe(self._client, key)
        try:
            yield
        finally:
            del self._subscriptions[key]
            subscription = self._subscribed.pop(key, None)
            client = self._client
            if subscription is not None and client is not None and not client.is_closed:
                with anyio.move_on_after(1.0, shield=True):
                    try:
                        await subscription.unsubscribe()
                    except LOST as error:
                        log.debug("unsubscribe_failed", subject=subject, error=str(error))

    async def _subscribe(self, client: Client, key: int) -> None:
        # Both a new client and a new subscription come here, and they may come at the same time.
        async with self._subscribing:
            if key in self._subscribed or key not in self._subscriptions or client is not self._client:
                return
            subject, received = self._subscriptions[key]

            async def on_message(message: Msg) -> None:
                try:
                    received(message)
                except Exception as error:  # noqa: BLE001 - logged
                    # A bug; nats-py would hand it to a callback for errors of the connection.
                    log_raised(log, "message_not_handled", error, subject=message.subject)

            # What may come is bounded by what was asked for (pulls, acks); a limit here would drop.
            try:
                self._subscribed[key] = await client.subscribe(
                    subject, cb=on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
                )
            except LOST as error:
                # This client is lost; the next one subscribes to everything.
                self._last_error = str(error)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = REQUEST_WAIT_S) -> Msg:
        """Ask and wait for the first answer.

        Raises:
            NotAnswered: if there is none.
        """
        client = self._client
        if client is None:
            raise NotAnswered(subject, no_responders=False)
        self._request += 1
        token = str(self._request)
        question = self._questions[token] = _Question(subject)
        try:
            self.send(subject, payload, f"{self._replies}{token}")
            if self._deaf:
                self._deny("subscription", self._deaf)
            with anyio.move_on_after(timeout_s):
                await question.answered.wait()
        except LOST as error:
            raise NotAnswered(subject, no_responders=False) from error
        finally:
            del self._questions[token]
        answer = question.answer
        if question.denied:
            raise BusRefused(
                f"the NATS server at {self.url} does not let this user {question.denied}: give it that permission"
            )
        if answer is None:
            raise NotAnswered(subject, no_responders=False)
        if not answer.data and (answer.headers or {}).get("Status") == "503":
            raise NotAnswered(subject, no_responders=True)
        return answer

    def _deny(self, what: str, subject: str) -> None:
        """Answer the questions that the server will not hear, or whose answers it will not give."""
        publish = what.lower() == "publish"
        if not publish:
            if subject.lower() != f"{self._replies}*".lower():
                return
            self._deaf = subject
        for question in self._questions.values():
            if not publish:
                question.denied = f"subscribe to {subject}"
            elif question.subject.lower() == subject.lower():
                question.denied = f"publish to {question.subject}"
            else:
                continue
            question.answered.set()

    def _replied(self, message: Msg) -> None:
        question = self._questions.get(message.subject[len(self._replies) :])
        if question is not None:
            question.answer = message
            question.answered.set()

    async def api(self, request: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the JetStream API; `request` is the subject without its `$JS.API.`.

        Raises:
            ApiError: if it answers with an error.
            NotAnswered: if it does not answer.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        answer = await self.request(f"$JS.API.{request}", payload)
        found: dict[str, Any] = json.loads(answer.data)
        error = found.get("error")
        if error:
            raise ApiError(request, int(error.get("err_code", error.get("code", 0))), str(error.get("description")))
        return found

    async def api_patiently(self, request: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Like `api`, asking again for as long as nobody can answer (a restart, an election)."""
        while True:
            await self.wait_ready()
            try:
                return await self.api(request, body)
            except NotAnswered as error:
                log.debug("api_not_answered", request=request, no_responders=error.no_responders)
            except ApiError as error:
                if error.code not in NO_LEADER:
                    raise
                log.debug("api_not_ready", request=request, error=str(error))
            await anyio.sleep(RECONNECT_EVERY_S)


def _abandon(client: Client) -> None:
    """Cut a client's socket without waiting for anything."""
    transport = getattr(client, "_transport", None)
    inner = getattr(transport, "_io_writer", None)
    if inner is not None:
        inner.transport.abort()
    tasks = [getattr(client, name, None) for name in ("_reading_task", "_ping_interval_task", "_flusher_task")]
    tasks += [getattr(subscription, "_wait_for_msgs_task", None) for subscription in client._subs.values()]
    for task in tasks:
        if task is not None:
            task.cancel()
            task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    # What a client dies of is known by then; left alone, asyncio would print it when the task is collected.
    if not task.cancelled():
        task.exception()


def _credentials(settings: BusSettings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "user_credentials": str(settings.credentials) if settings.credentials else None,
    }
    if settings.tls_ca or settings.tls_cert:
        context = ssl.create_default_context(cafile=str(settings.tls_ca) if settings.tls_ca else None)
        if settings.tls_cert:
            context.load_cert_chain(str(settings.tls_cert), str(settings.tls_key) if settings.tls_key else None)
        found["tls"] = context
    return {key: value for key, value in found.items() if value is not None}


def _explained(url: str, error: BaseException, seen: list[str]) -> BusError:
    text = "; ".join(dict.fromkeys([*seen, str(error) or type(error).__name__]))
    lowered = text.lower()
    if "authorization" in lowered or "authentication" in lowered:
        return BusRefused(
            f"the NATS server at {url} refuses these credentials ({text}): "
            "set EVPIPE_NATS_USER and _PASSWORD, _TOKEN or _CREDENTIALS"
        )
    if isinstance(error, (ImportError, ValueError)):
        return BusRefused(f"cannot connect to {url}: {text}")
    return BusUnreachable(f"no NATS server answers at {url} ({text}): start one, or unset EVPIPE_NATS_URL")
