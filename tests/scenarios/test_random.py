"""Random graphs end as a plain interpreter says, in debug mode and on the bus."""

from __future__ import annotations

import io
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st

from evpipe import Client, Controller, RunResult, Worker
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.family import Family
from evpipe.core.machine import Run
from evpipe.core.names import from_people
from evpipe.core.states import Reason, RunIf, RunStatus, StepStatus
from evpipe.hosting.debug import run_debug
from evpipe.hosting.display import Display
from tests.core.budget import examples
from tests.core.oracle import End, filled, interpret, run_ends_as
from tests.core.plans import Plan, plans
from tests.core.test_maps import mapped_plans, plain_name
from tests.scenarios import playing
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


class Seen(Display):
    """Keeps the run that it was told of."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.ended: list[Run] = []

    def finished(self, family: Family) -> None:
        self.ended.append(family.run)


def check(plan: Plan, result: RunResult[Any]) -> None:
    expected = interpret(plan)
    assert {name: End(step.status, step.reason, step.attempts) for name, step in result.steps.items()} == expected
    assert result.status is run_ends_as(plan.graph, expected)
    if result.status is RunStatus.SUCCEEDED:
        assert result.value == filled(plan.graph.output, expected)


def check_mapped(plan: Plan, unrolled: Plan, result: RunResult[Any]) -> None:
    """Each element ends as the step that it would be in a graph without maps."""
    expected = interpret(unrolled)
    found = {plain_name(from_people(name)): step for name, step in result.steps.items() if not is_mapped(plan, name)}
    assert found.keys() <= expected.keys()
    assert {name: End(s.status, s.reason, s.attempts) for name, s in found.items()} == {
        name: expected[name] for name in found
    }
    # What never had elements was skipped for what each of them would have been.
    assert all(end.status is StepStatus.SKIPPED for name, end in expected.items() if name not in found)
    assert result.status is run_ends_as(unrolled.graph, expected)


def is_mapped(plan: Plan, name: str) -> bool:
    step = plan.graph.steps.get(name)
    return step is not None and step.mapped is not None


@given(mapped_plans())
@examples(50)
def test_maps_in_debug_mode(found: tuple[Plan, Plan]) -> None:
    plan, unrolled = map(playable, found)
    check_mapped(plan, unrolled, in_debug_mode(plan))


@given(mapped_plans())
@examples(30)
def test_maps_on_the_bus(on_bus: OnBus, found: tuple[Plan, Plan]) -> None:
    plan, unrolled = map(playable, found)
    check_mapped(plan, unrolled, on_bus(plan))


@given(plans(order_free=True).map(playable))
@examples(50)
def test_in_debug_mode(plan: Plan) -> None:
    check(plan, in_debug_mode(plan))


@given((plans() | mapped_plans().map(lambda found: found[0])).map(playable), st.integers(1, 6))
@examples(60)
def test_ctrl_c_in_debug_mode(plan: Plan, nth: int) -> None:
    """Whenever it comes, every step ends, and nothing begins after it that does not run whatever happens."""
    called: list[str] = []

    def press(step: str) -> None:
        called.append(step)
        if len(called) == nth:
            signal.raise_signal(signal.SIGINT)

    playing.TELL.append(press)
    seen = Seen()
    try:
        run_debug(Played(plan).build({}), seen)
    except KeyboardInterrupt:
        assert len(called) >= nth
    else:
        assert len(called) < nth
    finally:
        playing.TELL.clear()
    (run,) = seen.ended
    assert run.ended
    assert all(state.ended for state in run.steps.values())
    final = {name: run.spec(name).run_if is RunIf.ALWAYS for name in run.steps}
    assert all(final[from_people(name)] for name in called[nth:])
    assert all(not final[name] for name, state in run.steps.items() if state.status is StepStatus.CANCELLED)
    if len(called) >= nth and not final[from_people(called[nth - 1])]:
        state = run.steps[from_people(called[nth - 1])]
        assert (state.status, state.reason) == (StepStatus.CANCELLED, Reason.REQUEST)
        assert (run.status, run.reason) == (RunStatus.CANCELLED, Reason.REQUEST)


@given(plans(order_free=True).map(playable))
@examples(30)
def test_on_the_bus(on_bus: OnBus, plan: Plan) -> None:
    check(plan, on_bus(plan))
