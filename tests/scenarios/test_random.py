"""Random graphs end as a plain interpreter says, in debug mode and on the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given

from evpipe import Client, Controller, RunResult, Worker
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.core.states import RunStatus
from evpipe.hosting.debug import run_debug
from tests.core.budget import examples
from tests.core.oracle import End, filled, interpret, run_ends_as
from tests.core.plans import Plan, plans
from tests.scenarios.playing import Played, playable

OnBus: TypeAlias = Callable[[Plan], RunResult[Any]]


@asynccontextmanager
async def hosted(url: str) -> AsyncIterator[Client]:
    async with Client(BusSettings(url=url)) as client, Controller(client), Worker(client, slots=8):
        yield client


@pytest.fixture(scope="module")
def on_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnBus]:
    """Run a plan on a server, in one session for all of them."""
    folder: Path = tmp_path_factory.mktemp("nats")
    with (
        ServerProcess(folder, sync="default") as server,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(hosted(server.url)) as client,
    ):

        async def play(plan: Plan) -> RunResult[Any]:
            handle = await client.submit(Played(plan))
            return await handle.result(timeout_s=30)

        yield lambda plan: portal.call(play, plan)


def in_debug_mode(plan: Plan) -> RunResult[Any]:
    return run_debug(Played(plan).build({}))


def check(plan: Plan, result: RunResult[Any]) -> None:
    expected = interpret(plan)
    assert {name: End(step.status, step.reason, step.attempts) for name, step in result.steps.items()} == expected
    assert result.status is run_ends_as(plan.graph, expected)
    if result.status is RunStatus.SUCCEEDED:
        assert result.value == filled(plan.graph.output, expected)


@given(plans(order_free=True).map(playable))
@examples(50)
def test_in_debug_mode(plan: Plan) -> None:
    check(plan, in_debug_mode(plan))


@given(plans(order_free=True).map(playable))
@examples(30)
def test_on_the_bus(on_bus: OnBus, plan: Plan) -> None:
    check(plan, on_bus(plan))
