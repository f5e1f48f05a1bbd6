"""Servers that cannot be used: the error's type and its sentence, each of them."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from nats.aio.client import Client

from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.server import CONFIG_NAME, ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.errors import BusError, BusRefused, BusUnreachable
from tests.support.logs import captured_logs
from tests.support.worlds import FaultyNatsBus, NatsWorld, api, until


def refusal(settings: BusSettings, *, within_s: float = 12.0) -> BusError:
    """Enter a bus and give the error that it raises, which must be one and come in time."""
    found: list[BusError] = []

    async def main() -> None:
        with anyio.fail_after(within_s):
            try:
                async with NatsBus(settings):
                    pass
            except BusError as error:
                found.append(error)

    anyio.run(main)
    assert found, "the server was taken for a usable one"
    return found[0]


class ConfiguredServer(ServerProcess):
    """A server with a configuration of the test's."""

    def __init__(self, directory: Path, change: Callable[[str], str]) -> None:
        super().__init__(directory, sync="default")
        self._change = change

    def _write_config(self) -> None:
        super()._write_config()
        path = self.directory / CONFIG_NAME
        path.write_text(self._change(path.read_text()))


@contextmanager
def configured(folder: Path, change: Callable[[str], str]) -> Iterator[ServerProcess]:
    with ConfiguredServer(folder, change) as process:
        yield process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_no_server_at_the_url() -> None:
    """Nobody listens: the URL, and what to do."""
    url = f"nats://127.0.0.1:{free_port()}"
    error = refusal(BusSettings(url=url))
    assert type(error) is BusUnreachable
    assert re.fullmatch(rf"no NATS server answers at {url} \(.*\): start one, or unset EVPIPE_NATS_URL", str(error)), (
        error
    )


def test_a_host_that_does_not_exist() -> None:
    """A name that nobody knows reads like a server that is not there."""
    error = refusal(BusSettings(url="nats://no-such-host.invalid:4222"))
    assert type(error) is BusUnreachable
    assert str(error).startswith("no NATS server answers at nats://no-such-host.invalid:4222")


def test_something_else_listens_at_the_url() -> None:
    """A listener that says nothing, as a web server does, is not waited for."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        error = refusal(BusSettings(url=url))
        assert type(error) is BusUnreachable
        assert f"no NATS server answers at {url}" in str(error)


def test_jetstream_is_off(tmp_path: Path) -> None:
    """A plain nats-server answers, and is refused with the switch that it lacks."""
    with configured(tmp_path, lambda text: re.sub(r"jetstream \{.*?\n\}", "", text, flags=re.DOTALL)) as process:
        error = refusal(BusSettings(url=process.url))
        assert type(error) is BusRefused
        assert str(error) == (
            f"the NATS server at {process.url} runs without JetStream: start it with -js, "
            "or give its configuration a jetstream block"
        )


INFO = (
    b'INFO {"server_id":"x","version":"2.9.0","proto":1,"host":"127.0.0.1","port":4222,"headers":true,'
    b'"max_payload":1048576}\r\n'
)


def test_a_server_that_is_too_old() -> None:
    """The version found and the one needed."""
    found: list[BusError] = []
    ports: list[int] = []

    async def talk(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(INFO)
            with anyio.move_on_after(5):
                while True:
                    if b"PING" in await stream.receive():
                        await stream.send(b"PONG\r\n")

    async def serve(listener: Any) -> None:
        async def handle(stream: anyio.abc.SocketStream) -> None:
            try:
                await talk(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

        await listener.serve(handle)

    async def main() -> None:
        with anyio.fail_after(10):
            async with (
                await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
                anyio.create_task_group() as task_group,
            ):
                task_group.start_soon(serve, listener)
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                try:
                    async with NatsBus(BusSettings(url=f"nats://127.0.0.1:{port}")):
                        pass
                except BusError as error:
                    found.append(error)
                    ports.append(port)
                task_group.cancel_scope.cancel()

    anyio.run(main)
    assert type(found[0]) is BusRefused
    url = f"nats://127.0.0.1:{ports[0]}"
    assert str(found[0]) == f"the NATS server at {url} is version 2.9.0: at least 2.14.0 is needed"


def test_a_wrong_token(tmp_path: Path) -> None:
    """Credentials that are refused are told from a server that is away, and the token is not shown."""
    with ServerProcess(tmp_path, token="right", sync="default") as process:
        for settings in (BusSettings(url=process.url, token="wrong-secret"), BusSettings(url=process.url)):
            error = refusal(settings)
            assert type(error) is BusRefused
            assert re.fullmatch(
                rf"the NATS server at {process.url} refuses these credentials \(.*\): "
                "set EVPIPE_NATS_USER and _PASSWORD, _TOKEN or _CREDENTIALS",
                str(error),
            ), error
            assert "wrong-secret" not in str(error)


@pytest.mark.parametrize(
    ("stream", "change", "sentence"),
    [
        (
            "log",
            {"max_age": 3_600_000_000_000},
            "stream {name} exists with a max_age, which would remove events of runs that still go on: set it to 0",
        ),
        ("log", {"discard": "old"}, "stream {name} exists with discard = 'old': evpipe needs 'new'"),
        ("log", {"subjects": ["{prefix}.event.*"]}, "stream {name} exists with subjects = ['{prefix}.event.*']"),
        (
            "queue",
            {"discard_new_per_subject": False},
            "stream {name} exists with discard_new_per_subject = False: evpipe needs True",
        ),
        (
            "queue",
            {"max_msgs_per_subject": 5},
            "stream {name} exists with max_msgs_per_subject = 5: evpipe needs 1",
        ),
        (
            "queue",
            {"retention": "workqueue"},
            "stream {name} exists with retention = 'workqueue': evpipe needs 'limits'",
        ),
        ("queue", {"max_age": 3_600_000_000_000}, "stream {name} exists with a max_age"),
    ],
)
def test_a_stream_with_settings_that_break_a_promise(
    nats_server: ServerProcess, stream: str, change: dict[str, Any], sentence: str
) -> None:
    """A stream that exists with other settings is refused: which, what was found, what is needed."""
    world = NatsWorld(nats_server)
    name = f"{world.prefix}-{stream}"
    token = "event" if stream == "log" else "queue"
    config: dict[str, Any] = {
        "name": name,
        "subjects": [f"{world.prefix}.{token}.>"],
        "discard": "new",
        "storage": "file",
    }
    if stream == "queue":
        config |= {"max_msgs_per_subject": 1, "discard_new_per_subject": True}
    config |= change
    config["subjects"] = [subject.format(prefix=world.prefix) for subject in config["subjects"]]

    async def main() -> None:
        async with world, world.raw() as raw:
            made = await api(raw, f"STREAM.CREATE.{name}", config)
            assert "error" not in made, made
            with pytest.raises(BusRefused) as caught:
                async with NatsBus(world.settings):
                    pass
            assert sentence.format(name=name, prefix=world.prefix) in str(caught.value)
            if "max_age" not in change:
                assert str(caught.value).endswith("; change it, or choose another installation with EVPIPE_PREFIX")

    anyio.run(main)


def permissions(text: str) -> str:
    return text + "authorization { users: [ { user: a, password: b, permissions: { %s } } ] }\n"


@pytest.mark.parametrize(
    ("allowed", "what"),
    [
        ('publish: "evpipe.>"', "$JS.API.INFO"),
        ('publish: ["evpipe.>", "$JS.API.INFO"]', "$JS.API.STREAM.INFO.evpipe-log"),
        ('publish: ["evpipe.>", "$JS.API.INFO", "$JS.API.STREAM.INFO.>"]', "$JS.API.STREAM.CREATE.evpipe-log"),
        ('subscribe: "evpipe.>"', "_INBOX"),
    ],
)
def test_a_user_without_the_permissions(tmp_path: Path, allowed: str, what: str) -> None:
    """A user who may connect and not do what is needed is told what that is, and does not wait for ever."""
    with configured(tmp_path, lambda text: permissions(text) % allowed) as process:
        started_at = time.monotonic()
        error = refusal(BusSettings(url=process.url, user="a", password="b"), within_s=20.0)
        assert type(error) is BusRefused, error
        assert str(error).startswith(f"the NATS server at {process.url} does not let this user ")
        assert what.lower() in str(error).lower()
        assert time.monotonic() - started_at < 8.0


def test_a_server_that_is_frozen_is_noticed_and_comes_back(nats_server: ServerProcess) -> None:
    """A stopped process keeps its sockets: pings find that out, and what was sent meanwhile is stored after it."""
    world = NatsWorld(nats_server)

    async def main() -> None:
        with anyio.fail_after(40):
            async with world:
                bus = await world.bus()
                done: list[object] = []
                async with world.following(bus, [world.subjects.all_events]) as reader:
                    with world.frozen():
                        for i in range(10):
                            subject = world.subjects.event("churn", "aaaaaaaa", f"s{i}", "progress")
                            bus.append(subject, b"", expected=0, done=done.append)
                        await until(lambda: not bus.connected, timeout_s=6, what="the frozen server is noticed")
                    await until(lambda: len(done) == 10 and len(reader.records) == 10, timeout_s=15)
                    assert await bus.last_sequence() == 10

    anyio.run(main)


def test_a_connection_that_breaks_at_every_moment_breaks_nothing(nats_server: ServerProcess) -> None:
    """The socket is cut again and again under signals, pulls, new subscriptions and appends: the bus lives on."""
    world = NatsWorld(nats_server)
    #: Signals that came, to whichever of the listeners.
    heard: list[str] = []
    done: list[object] = []

    async def chatter(bus: FaultyNatsBus) -> None:
        while True:
            for _ in range(20):
                bus.signal(world.subjects.stop, b"x" * 1_000)
            # A subscription lives for as long as a message takes to come back to the listeners.
            before, generation = len(heard), bus._connection.generation
            async with bus.listen(world.subjects.stop, lambda subject, _: heard.append(subject)):
                bus.signal(world.subjects.stop, b"")
                await until(
                    lambda: len(heard) > before or bus._connection.generation > generation,  # noqa: B023
                    poll_s=0.001,
                )

    async def moment(bus: FaultyNatsBus, number: int, cut: Client | None) -> None:
        """Wait for one of the moments in a connection's life, the next one each time."""
        answered, said = len(done), len(heard)
        moments: tuple[Callable[[], object], ...] = (
            lambda: True,
            lambda: bus._connection._client is not cut,  # its loss is noticed
            lambda: bus._connection._client not in (cut, None),  # the next one is there, and has no subscriptions
            lambda: bus.connected and bus._connection._ready.is_set(),
            lambda: len(heard) > said,
            lambda: len(done) > answered or len(done) > number,
        )
        await until(moments[number % len(moments)], poll_s=0, what=f"moment {number}")
        for _ in range(number % 5):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        with anyio.fail_after(90):
            async with world:
                bus = await world.bus()
                assert isinstance(bus, FaultyNatsBus)
                cut: Client | None = None
                async with anyio.create_task_group() as task_group, bus.pull("default", 5, lambda _: None) as pull:
                    for _ in range(3):
                        task_group.start_soon(chatter, bus)
                    for i in range(25):
                        subject = world.subjects.event("churn", "aaaaaaaa", f"s{i}", "progress")
                        bus.append(subject, b"", expected=0, done=done.append)
                        pull.ask(1)
                        await moment(bus, i, cut)
                        cut = bus._connection._client
                        bus.cut()
                    # A cut in the middle of a connect costs its time-out, one right after it two missed pings.
                    await until(lambda: len(done) == 25, timeout_s=60)
                    task_group.cancel_scope.cancel()
                assert await bus.last_sequence() == 25

    anyio.run(main)


def test_closing_is_quiet_and_leaves_no_connection(nats_server: ServerProcess) -> None:
    """A bus that is left closes its one connection, does not open another, and logs no loss."""

    world = NatsWorld(nats_server)

    async def main() -> None:
        async with world:
            bus = await world.bus()
            assert isinstance(bus, FaultyNatsBus)
            connection = bus._connection
            await world.close(bus)
            assert connection._client is None
            assert not bus.connected

    with captured_logs() as logs:
        anyio.run(main)
    assert [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")] == []
