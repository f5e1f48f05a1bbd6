"""Functions that a service registers are called with the events that they ask for, in order, and disturb nobody."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from evpipe import Client, Controller, UsageError, Worker, pipeline, step
from evpipe.bus.memory import MemoryBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.events import RunEvent
from evpipe.client.hooks import Since
from tests.e2e.helpers import until_async

Seen = list[tuple[str, str | None]]


@step(on_failure="skip")
async def may_fail(n: int) -> int:
    if n % 2:
        raise ValueError(n)
    return n


@pipeline
def churn(count: int = 2) -> None:
    for n in range(count):
        may_fail(n)


@pipeline
def other() -> None:
    may_fail(1)


@pytest.fixture(params=["memory", "nats"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess | None]:
    if request.param == "memory":
        yield None
        return
    with ServerProcess(tmp_path_factory.mktemp("nats")) as server:
        yield server


@asynccontextmanager
async def connected(server: ServerProcess | None) -> AsyncIterator[tuple[Client, Client]]:
    """A client that has not been entered, and one with a controller and a worker."""
    async with MemoryBus() as bus:
        settings = BusSettings(url=server.url) if server is not None else None
        client, host = (Client(settings, bus=bus if server is None else None) for _ in range(2))
        async with host, Controller(host), Worker(host, slots=4):
            yield client, host


def in_loop(body: Any) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await body()

    anyio.run(bounded)


async def until(seen: Sequence[object], count: int) -> None:
    async def enough() -> bool:
        return len(seen) >= count

    await until_async(enough, f"it is called {count} times")


def test_hooks(server: ServerProcess | None) -> None:
    """Registered before and after the client is entered, async and plain, of all events and of some."""
    early: Seen = []
    late: Seen = []
    plain: Seen = []
    threads: set[int] = set()

    async def body() -> None:
        async with connected(server) as (client, host):

            @client.on(pipeline="churn", kind="failed")
            async def failed(event: RunEvent) -> None:
                early.append((event.pipeline, event.step))

            async with client:

                @client.on()
                async def all_of_it(event: RunEvent) -> None:
                    late.append((event.kind, event.step))

                @client.on(kind="finished")
                def finished(event: RunEvent) -> None:
                    plain.append((event.pipeline, event.run))
                    threads.add(threading.get_ident())

                handles = [await client.submit(target) for target in (churn, other)]
                for handle in handles:
                    await handle.result()
                events = [event for handle in handles for event in [event async for event in handle.events()]]
                await until(late, len(events))
                await until(plain, 2)
                await until(early, 1)
            # Nothing comes after it was left.
            await (await host.submit(other)).result()
            assert early == [("churn", "may_fail-2")]
            assert set(plain) == {(handle.pipeline, handle.id) for handle in handles}
            assert threading.get_ident() not in threads
            events.sort(key=lambda event: event.sequence)
            assert late == [(event.kind, event.step) for event in events]

    in_loop(body)


def test_since(server: ServerProcess | None) -> None:
    """What happened before comes from a sequence on, or from a moment on; entered again, from now on is now."""
    found: dict[str, list[int]] = {"after": [], "moment": [], "seconds": [], "now": []}

    async def body() -> None:
        async with connected(server) as (client, host):
            began = datetime.now(UTC)
            handle = await host.submit(churn)
            await handle.result()
            sequences = [event.sequence async for event in handle.events()]
            since: dict[str, Since] = {
                "after": sequences[2],
                "moment": began,
                "seconds": began.timestamp(),
                "now": None,
            }
            for name, when in since.items():

                @client.on(since=when)
                async def note(event: RunEvent, name: str = name) -> None:
                    found[name].append(event.sequence)

            async with client:
                for name, count in (("after", len(sequences) - 3), ("moment", len(sequences)), ("seconds", 0)):
                    await until(found[name], count or len(sequences))
                assert (found["after"], found["now"]) == (sequences[3:], [])
            for seen in found.values():
                seen.clear()
            async with client:
                more = await client.submit(other)
                await more.result()
                new = [event.sequence async for event in more.events()]
                await until(found["now"], len(new))
                assert found["now"] == new

    in_loop(body)


@pytest.fixture
def all_logs() -> Iterator[None]:
    """Nothing is filtered, whatever other tests want of it."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


def test_a_hook_that_raises_or_is_slow(all_logs: None) -> None:
    """It is logged, and disturbs neither the next call nor the others; each hook's calls come one by one."""
    seen: list[RunEvent] = []
    slow: list[RunEvent] = []
    inside = 0

    async def body() -> None:
        async with connected(None) as (client, _), client:
            stuck = anyio.Event()

            @client.on(kind="submitted")
            async def waits(event: RunEvent) -> None:
                await stuck.wait()

            @client.on()
            async def raises(event: RunEvent) -> None:
                seen.append(event)
                raise ExceptionGroup("several", [ValueError(event.kind)])

            @client.on()
            async def is_slow(event: RunEvent) -> None:
                nonlocal inside
                inside += 1
                assert inside == 1
                await anyio.sleep(0.001)
                slow.append(event)
                inside -= 1

            with capture_logs() as logs:
                handle = await client.submit(churn, {"count": 20})
                assert (await handle.result(timeout_s=20)).status == "succeeded"
                events = [event async for event in handle.events()]
                await until(seen, len(events))
                await until(slow, len(events))
            assert seen == slow == events
            failed = [entry for entry in logs if entry["event"] == "hook_failed"]
            assert [(entry["run_id"], entry["sequence"]) for entry in failed] == [
                (event.run, event.sequence) for event in events
            ]
            assert failed[0]["hook"].endswith("raises")

    in_loop(body)


def test_what_a_hook_raises_is_logged_without_the_values_of_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    """As structlog writes where nobody configured it: one line, and a traceback without local variables."""
    seen: Seen = []

    async def body() -> None:
        async with connected(None) as (client, _), client:

            @client.on(kind="submitted")
            def raises(event: RunEvent) -> None:
                seen.append((event.kind, event.step))
                of_the_user = f"secret-{event.data['parameters']['count'] + 40}"
                raise ValueError(f"{len(of_the_user)} characters")

            await client.submit(churn, {"count": 2})
            await until(seen, 1)

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    try:
        in_loop(body)
    finally:
        if before is not None:
            structlog.configure(**before)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    (first,) = [i for i, line in enumerate(lines) if "hook_failed" in line]
    assert "ValueError: 9 characters" in lines[first]
    assert lines[first + 1] == "Traceback (most recent call last):"
    assert "ValueError: 9 characters" in lines[first + 2 : first + 20]
    assert "secret-42" not in "".join(lines)


def test_leaving_ends_a_hook_that_is_under_way() -> None:
    """The client is left at once; the hook sees its cancellation."""
    seen: Seen = []

    async def body() -> None:
        async with connected(None) as (client, _):
            async with client:

                @client.on(kind="submitted")
                async def waits(event: RunEvent) -> None:
                    seen.append((event.kind, None))
                    try:
                        await anyio.sleep_forever()
                    finally:
                        seen.append(("ended", None))

                await client.submit(other)
                await until(seen, 1)
            assert seen == [("submitted", None), ("ended", None)]

    in_loop(body)


def test_what_cannot_be_asked_for() -> None:
    """Is refused where it is written."""
    client = Client(bus=MemoryBus())
    with pytest.raises(UsageError, match=r"^there is no event kind 'fail': there are .*failed"):
        client.on(kind="fail")
    with pytest.raises(UsageError, match="pipeline"):
        client.on(pipeline="a b")
    with pytest.raises(
        UsageError, match=r"^since is a datetime, seconds since 1970 as a float, or a sequence, not 'x'"
    ):
        client.on(since="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^client\.on\(…\) decorates a function that takes an event, not 3$"):
        client.on()(3)  # type: ignore[type-var]
