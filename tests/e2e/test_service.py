"""evpipe inside a service of somebody else: plain asyncio, a client, a controller and a worker in its own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from evpipe import Client, Controller, NotFound, RunStatus, UsageError, WaitTimeout, Worker, connect
from evpipe.bus.server import ServerProcess
from evpipe.client.events import RunEvent

from .helpers import Witness, until_async
from .pipelines import fan, total

RUNS = 20
LIMIT_S = 20.0


@asynccontextmanager
async def service(server: ServerProcess) -> AsyncIterator[Client]:
    async with asyncio.timeout(LIMIT_S):
        async with connect(server.url) as client, Controller(client), Worker(client, slots=8):
            yield client


def test_many_runs_at_once(server: ServerProcess) -> None:
    """Runs that are submitted at the same time all end right, and a subscriber sees each event of each once."""

    async def main() -> None:
        async with service(server) as client:
            began = datetime.now(UTC)
            handles = await asyncio.gather(*(client.submit(total, {"a": i}) for i in range(RUNS)))
            results = await asyncio.gather(*(handle.result(timeout_s=10) for handle in handles))
            assert [result.value for result in results] == [i + 2 for i in range(RUNS)]
            assert len({handle.id for handle in handles}) == RUNS

            ended: list[RunEvent] = []
            async for event in client.events(pipeline="total", kind="finished", since=began):
                ended.append(event)
                if len(ended) == RUNS:
                    break
            assert {event.run for event in ended} == {handle.id for handle in handles}
            assert [event.sequence for event in ended] == sorted(event.sequence for event in ended)

            one = await client.get_run(handles[3].id)
            kinds = [(event.step, event.kind) async for event in one.events()]
            assert kinds[0] == (None, "submitted")
            assert kinds[-1] == (None, "finished")
            assert sorted(kind for kind in kinds if kind[1] == "succeeded") == [
                ("add", "succeeded"),
                ("add-2", "succeeded"),
            ]
            assert await one.status() is RunStatus.SUCCEEDED
            again = await client.get_run(handles[3].id)
            assert (await again.result()).value == 5

    asyncio.run(main())


def test_subscribers_from_now_on(server: ServerProcess) -> None:
    """`events()` without `since` begins now, and does not end by itself."""

    async def main() -> None:
        async with service(server) as client:
            await (await client.submit(total, {"a": 1})).result()
            found: list[RunEvent] = []

            async def subscribe(ready: asyncio.Event) -> None:
                ready.set()
                async for event in client.events():
                    found.append(event)
                    if event.kind == "finished":
                        return

            ready = asyncio.Event()
            subscriber = asyncio.create_task(subscribe(ready))
            await ready.wait()
            # Whoever subscribes is subscribed when its first look at the log has been answered.
            await client.bus.last_sequence()
            handle = await client.submit(total, {"a": 2})
            await subscriber
            assert {event.run for event in found} == {handle.id}
            assert found[0].kind == "submitted"

    asyncio.run(main())


def test_cancel(server: ServerProcess, witness: Witness) -> None:
    """A run that is cancelled ends soon, with the message; the registry and a second look say the same."""

    async def main() -> None:
        async with service(server) as client:
            handle = await client.submit(fan, {"witness": str(witness.path), "gate": str(witness.path) + "-never"})
            with pytest.raises(WaitTimeout, match=rf"^run {handle.id} has not ended after 0\.2 s; it goes on$"):
                await handle.result(timeout_s=0.2)
            async for event in handle.events():
                if event.kind == "started" and event.step != "first":
                    break
            await handle.cancel("enough")
            await handle.cancel("again")
            result = await handle.result(timeout_s=5)
            assert (result.status, result.reason, result.error) == ("cancelled", "request", "enough")
            assert {step.status for name, step in result.steps.items() if name != "first"} == {"cancelled"}
            await handle.cancel("too late")
            assert (await handle.result()).error == "enough"
            await until_async(lambda: client.runs(pipeline="fan", status="cancelled"), "the registry shows it")
            entries = await client.runs()
            assert [(entry.run, entry.pipeline, entry.status) for entry in entries] == [(handle.id, "fan", "cancelled")]
            assert await client.runs(status="succeeded") == []

    asyncio.run(main())
    assert witness.ends == {"first": 1}


def test_what_is_not_there(server: ServerProcess) -> None:
    """A run that does not exist, and what is no run id, are named errors."""

    async def main() -> None:
        async with service(server) as client:
            with pytest.raises(NotFound, match=r"^there is no run aaaaaaaaaaaaaaaaaaaa$"):
                await client.get_run("a" * 20)
            with pytest.raises(UsageError, match=r"^'\*' is not a run id"):
                await client.get_run("*")
            with pytest.raises(UsageError, match="there is no event kind 'done'"):
                await anext(client.events(kind="done"))

    asyncio.run(main())


def test_before_it_is_entered(server: ServerProcess) -> None:
    """A client that was not entered says so."""

    async def main() -> None:
        await connect(server.url).submit(total, {"a": 1})

    with pytest.raises(UsageError, match="use it inside `async with client:`"):
        asyncio.run(main())
