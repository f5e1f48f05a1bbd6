"""The server goes away in the middle of a run: frozen for 3 s, killed and started again after 3 s."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import anyio
import nats
import pytest

from evpipe import Client, Controller, Worker
from evpipe.bus.nats.provision import BUCKETS
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings

from .conftest import ConfiguredBus
from .helpers import Witness, pass_by, until, until_async
from .pipelines import begins_of_fan, fan, value_of_fan

WIDTH = 4
OUTAGE_S = 3.0


def freeze(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGSTOP)


def thaw(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("go_away", "come_back"), [(freeze, thaw), (ServerProcess.kill, ServerProcess.start)], ids=["frozen", "killed"]
)
def test_the_server_goes_away(
    server: ServerProcess,
    bus: ConfiguredBus,
    witness: Witness,
    gate: Path,
    go_away: Callable[[ServerProcess], None],
    come_back: Callable[[ServerProcess], None],
) -> None:
    """While the server is away the run stands still, then it goes on to the right end, and no step begins twice."""
    bus.host("controller,worker")
    program = bus.run("fan", {"witness": str(witness.path), "gate": str(gate), "width": WIDTH})
    until(lambda: all(witness.has_begun(f"held{i}") for i in range(WIDTH)), "the steps run")
    go_away(server)
    try:
        # Their results are ready in the middle of the outage.
        pass_by(OUTAGE_S / 2)
        gate.touch()
        until(lambda: sum(witness.ends.values()) == 1 + WIDTH, "the bodies end")
        pass_by(OUTAGE_S / 2)
        assert witness.begins["after0"] == 0
    finally:
        come_back(server)
    assert program.result()["value"] == value_of_fan(WIDTH)
    assert witness.begins == begins_of_fan(WIDTH)


def test_every_bucket_is_deleted(server: ServerProcess, witness: Witness, gate: Path) -> None:
    """Deleting every key-value bucket in the middle of a run changes nothing for it but time."""
    settings = BusSettings(url=server.url)

    async def main() -> None:
        async with Client(settings) as client, Controller(client), Worker(client, slots=4):
            handle = await client.submit(fan, {"witness": str(witness.path), "gate": str(gate), "width": WIDTH})
            async for event in handle.events():
                if event.kind == "started":
                    break
            raw = await nats.connect(server.url)
            jetstream = raw.jetstream()
            names = [stream.config.name for stream in await jetstream.streams_info()]
            buckets = [name for name in names if name and name.startswith("KV_evpipe-")]
            assert sorted(buckets) == sorted(f"KV_evpipe-{name}" for name in BUCKETS)
            for bucket in buckets:
                await jetstream.delete_stream(bucket)
            await raw.close()
            gate.touch()  # noqa: ASYNC240  # a file in memory
            result = await handle.result(timeout_s=20)
            assert result.value == value_of_fan(WIDTH)

            async def is_listed() -> bool:
                return [run.status for run in await client.runs() if run.run == handle.id] == ["succeeded"]

            await until_async(is_listed, "the registry shows the run")

    anyio.run(main)
    assert witness.begins == begins_of_fan(WIDTH)


def test_a_deleted_registry_is_restored(server: ServerProcess, witness: Witness, gate: Path) -> None:
    """Runs that ended before the registry was deleted are listed again when the next controller has taken over."""
    settings = BusSettings(url=server.url)
    gate.touch()

    async def main() -> None:
        async with Client(settings) as client:
            async with Controller(client), Worker(client, slots=4):
                handle = await client.submit(fan, {"witness": str(witness.path), "gate": str(gate), "width": 1})
                await handle.result(timeout_s=20)
            raw = await nats.connect(server.url)
            await raw.jetstream().delete_stream("KV_evpipe-registry")
            await raw.close()
            assert await client.runs() == []
            async with Controller(client):

                async def is_listed() -> bool:
                    return [(run.run, run.status) for run in await client.runs()] == [(handle.id, "succeeded")]

                await until_async(is_listed, "the registry shows the run")

    anyio.run(main)
