"""A run and all that is below it, seen live as one tree: states, counts, lines, and what that costs the server."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from evpipe import Client, Controller, Worker
from evpipe.bus.memory import MemoryBus
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.family import Family
from evpipe.client.growing import NAMED_MAX
from evpipe.client.handle import RunHandle
from evpipe.core.lineage import child_run_id
from evpipe.core.states import StepStatus
from evpipe.errors import NotFound
from evpipe.hosting.debug import run_debug
from evpipe.hosting.display import ROWS_MAX, Display
from evpipe.sdk.hook import Mode
from tests.e2e import tree_pipelines as these

COUNT = 200
#: The steps that are no runs, and not mapped: two of each fit, one tried, three of `down`, and the rest of the root.
SUCCEEDED = 2 * COUNT + 1 + 3 + 2 + 2
SKIPPED = 1


def paths(count: int) -> list[str]:
    fits = [path for i in range(count) for path in (f"fit[{i}]", f"fit[{i}]/at_gate", f"fit[{i}]/said")]
    downs = ["down", "down/less", "down/down", "down/down/less", "down/down/down", "down/down/down/less"]
    inner = ["outer_fit", "outer_fit/fit", "outer_fit/fit/at_gate", "outer_fit/fit/said"]
    return ["fit", *fits, "trying", "trying/once_only", "added", *downs, "down/down/down/down", *inner, "added-2"]


class Watched:
    """What was seen of a run on its way."""

    def __init__(self) -> None:
        self.family: Family | None = None
        self.lines: list[tuple[str, str]] = []
        self.progress: set[str] = set()

    async def tree(self, handle: RunHandle[Any], gate: Path | None = None) -> None:
        """Open the gate when all that stands at it is seen there."""
        async for family in handle.watch_tree():
            self.family = family
            if gate is not None and all(self._at_gate(family, i) for i in range(COUNT)):
                await self.at_gate(handle)
                await anyio.Path(gate).touch()
                gate = None

    def _at_gate(self, family: Family, i: int) -> bool:
        run = family.below.get(f"fit[{i}]")
        return run is not None and "at_gate" in run.steps and run.steps["at_gate"].status is StepStatus.RUNNING

    async def at_gate(self, handle: RunHandle[Any]) -> None:
        screen = io.StringIO()
        display = Display(screen)
        assert self.family is not None
        display.show(self.family)
        Console(file=screen, width=100).print(display._render())
        lines = screen.getvalue().splitlines()
        assert len(lines) == 1 + ROWS_MAX + 2, "the head, what is shown of it, what is not, and the counts"
        assert [line.split()[:2] for line in lines[1:3]] == [["fit", "running"], ["fit[0]", "running"]]
        assert "fit[0]/at_gate" in screen.getvalue()
        anew = await handle.below()
        assert {f"fit[{i}]" for i in range(COUNT)} | {"outer_fit/fit"} <= set(anew)
        assert anew["fit[0]"].steps["at_gate"].status is StepStatus.RUNNING
        hidden = sum(1 for _ in self.family.rows()) - ROWS_MAX
        assert f"… {hidden:,} more" in lines[-2]

    async def logs(self, handle: RunHandle[Any]) -> None:
        async for entry in handle.logs(below=True):
            self.lines.append((entry.step, entry.text))

    async def told(self, handle: RunHandle[Any]) -> None:
        async for progress in handle.watch_progress():
            self.progress.add(progress.step)


class CountsConsumers(Watched):
    """On a server: what is open there is no more for very many runs than for one."""

    before = 0

    async def consumers(self, handle: RunHandle[Any]) -> int:
        bus = handle._bus
        assert isinstance(bus, NatsBus)
        names = (bus._names.log, bus._names.telemetry)
        found = [await bus._connection.api(f"STREAM.INFO.{name}") for name in names]
        return sum(int(info["state"]["consumer_count"]) for info in found)

    async def at_gate(self, handle: RunHandle[Any]) -> None:
        await super().at_gate(handle)
        # Three read the log, two what is told, and one of each may be on its way out.
        assert await self.consumers(handle) <= self.before + 5 + 5


@pytest.mark.parametrize("mode", ["bus", "local"])
def test_one_tree(mode: Mode, server: ServerProcess, tmp_path: Path) -> None:
    """Two hundred children, a retried one, a recursion, and a child of a child: live, and at the end as read anew."""
    assert COUNT > NAMED_MAX
    seen = CountsConsumers() if mode == "bus" else Watched()

    async def main() -> None:
        bus = NatsBus(BusSettings(url=server.url)) if mode == "bus" else MemoryBus()
        async with bus:
            client = Client(bus=bus)
            async with Controller(client), Worker(client, slots=COUNT + 8):
                handle = await client.submit(these.family, {"folder": str(tmp_path), "count": COUNT})
                if isinstance(seen, CountsConsumers):
                    seen.before = await seen.consumers(handle)
                with anyio.fail_after(60):
                    async with anyio.create_task_group() as task_group:
                        task_group.start_soon(seen.tree, handle, tmp_path / "gate")
                        task_group.start_soon(seen.logs, handle)
                        task_group.start_soon(seen.told, handle)
            anew = Family(await handle.state(), await handle.below())
            late = Watched()
            await late.tree(handle)
            await late.logs(handle)
            check(handle, anew)
            for found in (seen, late):
                assert found.family is not None
                check(handle, found.family)
                assert [(row.path, row.state.status) for row in found.family.rows()] == [
                    (row.path, row.state.status) for row in anew.rows()
                ]
                assert Counter(found.lines) == Counter(lines())
            await check_some(handle)
            assert len(seen.progress) == COUNT + 1
            assert {"fit[0]/said", "outer_fit/fit/said"} <= seen.progress

    def check(handle: RunHandle[Any], family: Family) -> None:
        assert [row.path for row in family.rows()] == paths(COUNT)
        assert family.counts() == {StepStatus.SUCCEEDED: SUCCEEDED, StepStatus.SKIPPED: SKIPPED}
        assert family.below["trying"].id == child_run_id(handle.id, "trying", 2)

    async def check_some(handle: RunHandle[Any]) -> None:
        for path in ("fit", "fit[7]", "outer_fit", "outer_fit/fit"):
            wanted = Counter(line for line in lines() if line[0].startswith((f"{path}/", f"{path}[")))
            assert wanted
            for follow in (True, False):
                entries = handle.logs(path, follow=follow)
                assert Counter([(entry.step, entry.text) async for entry in entries]) == wanted, (path, follow)
        assert [entry async for entry in handle.logs("down/less")] == []
        for path, said in (
            (f"fit[{COUNT}]", f"has no step 'fit[{COUNT}]': 'fit' has {COUNT} elements"),
            (f"fit[{COUNT}]/said", f"has no step 'fit[{COUNT}]': 'fit' has {COUNT} elements"),
            ("added[0]", "has no step 'added[0]'; did you mean 'added'?"),
            ("fit/said", f"is mapped, not a run itself: its elements are, 'fit[0]' to 'fit[{COUNT - 1}]'"),
            ("/added", "has no step ''"),
        ):
            for follow in (True, False):
                with pytest.raises(NotFound, match=f"{re.escape(said)}$"):
                    await anext(aiter(handle.logs(path, follow=follow)))

    def lines() -> list[tuple[str, str]]:
        of_fits = [(f"fit[{i}]", i) for i in range(COUNT)] + [("outer_fit/fit", 1_000)]
        gates = [(f"{path}/at_gate", f"at the gate {i}") for path, i in of_fits]
        tries = [("trying/once_only", f"tried before: {before}") for before in (False, True)]
        return gates + [(f"{path}/said", f"said {i}") for path, i in of_fits] + tries

    anyio.run(main)


def test_debug_mode_counts_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    talk = io.StringIO()
    run_debug(these.family.build({"folder": str(tmp_path), "count": 3}), Display(talk))
    said = talk.getvalue().splitlines()
    assert said[-1].startswith(f"succeeded: {2 * 3 + 8} succeeded, 1 skipped in ")
    assert "outer_fit/fit/said | info     said 1000" in said
