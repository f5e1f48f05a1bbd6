"""Every scenario ends as its row says, on the bus, locally and in debug mode."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import anyio
import pytest

from evpipe import Client, Controller, RunResult, Worker, run
from evpipe.bus.memory import MemoryBus
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.protocol import Bus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.family import Family
from evpipe.client.handle import RunHandle
from evpipe.core.machine import Run
from evpipe.hosting.debug import run_debug
from evpipe.hosting.display import Display
from tests.e2e.helpers import clean_environment, until_async
from tests.scenarios import pipelines as these
from tests.scenarios.row import Row, agree, states
from tests.scenarios.table import ROWS

PATIENCE_S: Final = 60
#: Lines of rows that take results of runs before them.
CACHED: Final = {"A14a", "A14b", "F7(7)", "C1"}
#: The scenarios that there are, with their variants.
SCENARIOS: Final = (
    "A1a A1b A1c A1d A2 A3 A5a A5b A7a A7b A7c A8a A8b A8c A8d A8e A9a A9b A9c A12 A13a A13b A13c A14a A14b F1 F3 F5 "
    "F7(1) F7(2) F7(3) F7(4) F7(5) F7(6) F7(7) F7(8) F11 C1"
)


@pytest.fixture(scope="module", autouse=True)
def nothing_configured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("NATS_URL", "EVPIPE_NATS_URL"):
            patch.delenv(variable, raising=False)
        yield


# One test for all rows of a mode: they share a session, and tests that share one may be run by several processes.
@pytest.mark.parametrize("mode", ["debug", "local", "bus"])
def test_every_scenario_ends_as_its_row_says(mode: str, tmp_path: Path) -> None:
    these.start_again()
    rows = [row for row in ROWS if mode not in row.not_in]
    if mode == "debug":
        found = {row.id: in_debug_mode(row) for row in rows}
    elif mode == "local":
        found = anyio.run(on_bus, rows, MemoryBus())
    else:
        with ServerProcess(tmp_path / "nats") as server:
            found = anyio.run(on_bus, rows, NatsBus(BusSettings(url=server.url)), server.url)
    assert len(found) == len(rows)
    assert {name: problems for name, problems in found.items() if problems} == {}


# The rows above share a bus. What is kept from one start of a script to the next is another matter.
def test_results_are_kept_for_other_runs_in_local_mode() -> None:
    these.start_again()
    rows = [row for row in ROWS if row.after in CACHED]
    assert {row.after for row in rows} == CACHED
    found = {row.id: in_local_mode(row) for row in rows}
    assert {name: problems for name, problems in found.items() if problems} == {}


def in_local_mode(row: Row) -> list[str]:
    time.sleep(row.pause_s)
    these.BROKEN.update(row.broken)
    result = run(row.pipeline, dict(row.parameters), mode="local", refresh=row.refresh)
    these.BROKEN.difference_update(row.broken)
    return problems_of(row, result)


def in_debug_mode(row: Row) -> list[str]:
    time.sleep(row.pause_s)
    given = {**row.parameters, **row.in_debug}
    these.BROKEN.update(row.broken)
    if row.cancel_at:
        result = interrupted(row, given)
    else:
        result = run(row.pipeline, given, mode="debug", answers=dict(row.answers), refresh=row.refresh)
    these.BROKEN.difference_update(row.broken)
    return problems_of(row, result)


class Seen(Display):
    """Keeps the run that it was told of."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.ended: list[Run] = []

    def finished(self, family: Family) -> None:
        self.ended.append(family.run)


class Terminal:
    """Somebody who presses Ctrl-C when asked."""

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        signal.raise_signal(signal.SIGINT)
        return "yes"


def interrupted(row: Row, given: dict[str, Any]) -> RunResult[Any]:
    """Press Ctrl-C while that runs, or is asked, which is to have begun; all that comes before it has ended by then."""
    last = [step for step, kind in row.cancel_at if kind == "started"]

    def press(step: str) -> None:
        if step in last:
            signal.raise_signal(signal.SIGINT)

    these.TELL.append(press)
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", Terminal())
        with pytest.raises(KeyboardInterrupt):
            run_debug(row.pipeline.build(given), seen)
    these.TELL.remove(press)
    return RunResult.of(seen.ended[0])


async def on_bus(rows: Sequence[Row], unopened: Any, url: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.after or row.id, []).append(row)

    async def line(client: Client, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.restarts:
                found[row.id] = await restarted(row, url)
            elif row.dies:
                found[row.id] = await lost(client, row, url)
            else:
                found[row.id] = await one(client, row)

    async with unopened as bus:
        client = Client(bus=bus)
        async with Controller(client), Worker(client, ["default"], slots=16), anyio.create_task_group() as task_group:
            for together in lines.values():
                task_group.start_soon(line, client, together)
    return found


async def one(client: Client, row: Row) -> list[str]:
    await anyio.sleep(row.pause_s)
    these.BROKEN.update(row.broken)
    handle = await client.submit(row.pipeline, row.parameters, refresh=row.refresh)
    if row.answers or row.cancel_at:
        await drive(handle, row)
    result = await handle.result(timeout_s=PATIENCE_S)
    these.BROKEN.difference_update(row.broken)
    return problems_of(row, result)


async def lost(client: Client, row: Row, url: str) -> list[str]:
    """Play a row whose worker is a process of its own, which is killed when it has begun a step; another takes over."""
    worker = f"-m evpipe worker --url {url} -q {row.dies} --code local:{these.__name__}".split()
    async with await anyio.open_process(
        [sys.executable, *worker], env=clean_environment(), stdout=DEVNULL, stderr=DEVNULL
    ) as dies:
        try:
            handle = await client.submit(row.pipeline, row.parameters)
            await begun(handle)
        finally:
            dies.kill()
    async with Worker(client, [row.dies]):
        return problems_of(row, await handle.result(timeout_s=PATIENCE_S))


async def restarted(row: Row, url: str) -> list[str]:
    """Play a row in a world of its own, whose controller ends while an answer is waited for; another follows."""
    unopened: Any = NatsBus(BusSettings(url=url, prefix="restarted")) if url else MemoryBus()
    async with unopened as bus:
        client = Client(bus=bus)
        async with Worker(client, ["default"], slots=1):
            async with Controller(client):
                handle = await client.submit(row.pipeline, row.parameters)
                await begun(handle, *row.answers)
            # Acks may be a moment later.
            await until_async(lambda: is_idle(bus), "nothing is in a queue or with a worker")
            before = await under_way(handle)
            async with Controller(client) as second:
                await until_async(lambda: leads(second), "the second controller leads")
                after = await under_way(handle)
                await drive(handle, row)
                result = await handle.result(timeout_s=PATIENCE_S)
    if not before == after == dict.fromkeys(row.answers, "running"):
        return [f"{before} before the restart, {after} after it"]
    return problems_of(row, result)


async def leads(controller: Controller) -> bool:
    return controller.leading


async def is_idle(bus: Bus) -> bool:
    return not any(lane.waiting or lane.taken for lane in await bus.lanes())


async def under_way(handle: RunHandle[Any]) -> dict[str, str]:
    """Give the steps that have begun and not ended."""
    steps = (await handle.state()).steps
    return {name: state.status.value for name, state in steps.items() if state.attempt and not state.ended}


async def begun(handle: RunHandle[Any], *steps: str) -> None:
    """Wait until these steps have begun; without any, until one has."""
    left = {*steps}
    with anyio.fail_after(PATIENCE_S):
        async for event in handle.events():
            if event.kind == "started":
                left.discard(event.step or "")
                if not left:
                    break


async def drive(handle: RunHandle[Any], row: Row) -> None:
    """Answer what is asked, and cancel the run when it is time to."""
    left = {*row.cancel_at, *((step, "started") for step in row.answers)}
    with anyio.fail_after(PATIENCE_S):
        async for event in handle.events():
            step = event.step or ""
            if event.kind == "started" and step in row.answers:
                await handle.approve(step, row.answers[step], by="ann")
            left.discard((step, event.kind))
            if not left:
                break
    if row.cancel_at:
        await handle.cancel()


def problems_of(row: Row, result: RunResult[Any]) -> list[str]:
    """Say what is not as the row says, now that the run has ended: later rows may change what is counted."""
    found = {name: shown(step.status, step.reason) for name, step in result.steps.items()}
    wanted = states(row.ours)
    problems = [
        f"{name} {found.get(name)}, not {wanted.get(name)}"
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
    ]
    run_wanted = "failed error" if row.our_run == "failed" else row.our_run
    if shown(result.status, result.reason) != run_wanted:
        problems.append(f"the run {shown(result.status, result.reason)}, not {run_wanted}: {result.error}")
    if result.status == "succeeded" and result.value != row.value:
        problems.append(f"the value {result.value!r}, not {row.value!r}")
    try:
        if row.check is not None:
            row.check(result)
    except AssertionError as error:
        problems.append(str(error))
    return problems


def shown(status: object, reason: object) -> str:
    return f"{status} {reason}" if reason else str(status)


def test_a_wrong_row_is_seen() -> None:
    row = next(row for row in ROWS if row.id == "A2")
    wrong = replace(row, ours=row.ours.replace("x3: skipped upstream", "x3: succeeded"), our_run="succeeded")
    assert in_debug_mode(row) == []
    assert [problem.split(",")[0] for problem in in_debug_mode(wrong)] == [
        "x3 skipped upstream",
        "the run failed error",
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_why_it_differs(row: Row) -> None:
    assert row.differs or agree(row), "it ends otherwise than there, and does not say why"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_why_it_is_not_played(row: Row) -> None:
    assert row.not_in.keys() < {"bus", "local", "debug"}
    assert all(" " in why for why in row.not_in.values()), "it leaves a mode out, and does not say why"


def test_the_table_has_every_scenario() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    found = {row.id.partition(" ")[0] for row in ROWS}
    assert found >= set(SCENARIOS.split())
