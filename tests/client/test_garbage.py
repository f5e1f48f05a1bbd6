"""What is removed from the object store, and above all what is not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

from evpipe import Client, Controller, Worker, pipeline, step
from evpipe.bus.memory import MemoryBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.garbage import collect_garbage
from evpipe.wire.storing import artifacts_of


@step(executor="inline")
async def make(n: int, large: Any) -> dict[str, Any]:
    return {"array": np.arange(n), "numbers": [float(i) for i in range(n)], "given": large}


@step(executor="inline", cache=True)
async def many(n: int) -> list[Any]:
    return [np.full(n, i) for i in range(1_100)]


@step(executor="inline")
async def first(arrays: list[Any]) -> int:
    return int(arrays[0][0])


@pipeline
def makes(n: int = 20_000) -> Any:
    return make(n, np.ones(30_000))


@pipeline
def names_many() -> int:
    return first(many(9_000))


@pytest.fixture(params=["memory", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def nats_server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if kind == "memory":
        yield None
        return
    with ServerProcess(tmp_path_factory.mktemp("nats")) as server:
        yield server


@asynccontextmanager
async def connected(server: ServerProcess | None) -> AsyncIterator[Client]:
    if server is None:
        async with MemoryBus() as bus:
            yield Client(bus=bus)
    else:
        async with Client(BusSettings(url=server.url)) as client:
            yield client


async def put(client: Client, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    await client.bus.objects.put(digest, data)
    return digest


async def digests(client: Client) -> set[str]:
    return {entry.digest for entry in await client.bus.objects.entries()}


async def until_older(client: Client, digest: str) -> None:
    """Wait until the bus's clock has passed the moment at which an object was stored."""
    found = await client.bus.objects.find(digest)
    assert found is not None
    with anyio.fail_after(10):
        while True:
            await client.bus.bucket("workers").put("clock", b"x", ttl_s=1)
            entry = await client.bus.bucket("workers").get("clock")
            if entry is not None and entry.at_s > found.at_s + 0.01:
                return
            await anyio.lowlevel.checkpoint()


def test_what_runs_refer_to_stays_and_the_rest_goes(nats_server: ServerProcess | None) -> None:
    """Graph, constants, outputs and what is in them; also of a run that ended long ago."""

    async def main() -> None:
        async with connected(nats_server) as client, Controller(client), Worker(client, slots=2):
            handle = await client.submit(makes)
            result = await handle.result(timeout_s=30)
            assert result.error == ""
            needed = await digests(client)
            garbage = await put(client, b"nobody needs this")
            await until_older(client, garbage)
            looked = await collect_garbage(client.bus, older_s=0, dry_run=True)
            assert (looked.removed, looked.removed_bytes) == (1, 17)
            assert await digests(client) == needed | {garbage}
            done = await collect_garbage(client.bus, older_s=0)
            assert (done.removed, done.objects) == (1, len(needed) + 1)
            assert await digests(client) == needed
            value = await handle.value("make")
            assert (len(value["numbers"]), float(value["given"].sum())) == (20_000, 30_000.0)

    anyio.run(main)


def test_what_is_named_by_a_stored_value_stays(nats_server: ServerProcess | None) -> None:
    """A list of 1,100 arrays is one object that names 1,100 others, in the run and in the cache."""

    async def main() -> None:
        async with connected(nats_server) as client, Controller(client), Worker(client, slots=2):
            handle = await client.submit(names_many)
            assert (await handle.result(timeout_s=60)).value == 0
            before = await digests(client)
            assert len(before) > 1_100
            assert (await collect_garbage(client.bus, older_s=-1)).removed == 0
            assert await digests(client) == before

    anyio.run(main)


def test_what_is_young_stays(nats_server: ServerProcess | None) -> None:
    """An upload whose event is still to come is younger than what may be removed."""

    async def main() -> None:
        async with connected(nats_server) as client:
            digest = await put(client, b"on its way")
            found = await collect_garbage(client.bus, older_s=3_600)
            assert (found.removed, found.young) == (0, 1)
            assert await digests(client) == {digest}

    anyio.run(main)


def test_nothing_younger_than_a_run_that_goes_on_is_removed(nats_server: ServerProcess | None) -> None:
    """Its steps may have stored what their events have not named yet."""

    async def main() -> None:
        async with connected(nats_server) as client:
            old = await put(client, b"older than the run")
            await until_older(client, old)
            # Nobody runs it, so it goes on.
            await client.submit(makes)
            digest = await put(client, b"of a step that is about to end")
            await until_older(client, digest)
            found = await collect_garbage(client.bus, older_s=0)
            assert (found.removed, found.young) == (1, 1)
            assert digest in await digests(client)
            assert old not in await digests(client)

    anyio.run(main)


def test_what_the_cache_refers_to_goes_with_its_entry(nats_server: ServerProcess | None) -> None:
    """A run keeps what it has; the cache's own results go with `clear`."""

    async def main() -> None:
        async with connected(nats_server) as client, Controller(client), Worker(client, slots=2):
            handle = await client.submit(names_many)
            await handle.result(timeout_s=60)
            assert len(await client.cache.results()) == 1
            assert await client.cache.clear(pipeline="names_many") == 1
            assert await client.cache.results() == []
            # The run's log refers to them still.
            assert (await collect_garbage(client.bus, older_s=-1)).removed == 0
            assert artifacts_of((await handle.state()).outputs["many"])

    anyio.run(main)
