"""What the table shows of the progress of steps, on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from rich.console import Console

from evpipe import Client, Controller, Worker
from evpipe.bus.memory import MemoryBus
from evpipe.client.family import Family, Row
from evpipe.core.machine import Run
from evpipe.hosting.display import ROWS_MAX, Display, shown_rows
from tests.core.making import failed, folded, graph, started, step, submitted
from tests.e2e import context_pipelines as these
from tests.e2e.helpers import until_async


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word of a step that runs, on one line and harmless; nothing of it when the step has ended."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    gate, screen = tmp_path / "gate", Terminal()
    display = Display(screen)

    async def main() -> None:
        async with MemoryBus() as bus:
            client = Client(bus=bus)
            async with Controller(client), Worker(client):
                handle = await client.submit(these.goes, {"gate": str(gate)})
                async with display.live_progress(handle), anyio.create_task_group() as task_group:
                    task_group.start_soon(watch, handle)

                    async def shown() -> bool:
                        return "50% half way" in screen.getvalue()

                    await until_async(shown, "its progress is shown")
                    gate.touch()
                assert "half" not in str(screen.getvalue().rpartition("goes_on")[2])

    async def watch(handle: Any) -> None:
        async for family in handle.watch_tree():
            display.show(family)

    anyio.run(main)


def test_a_table_that_is_drawn_while_the_run_changes() -> None:
    """It is as it was last, until what is half done is done: the thread that draws must not end by it."""
    run = folded(submitted(graph(step("a"), step("b"))))
    screen = io.StringIO()
    display = Display(screen)
    display.show(Family(run, {"a": Run("bbbbbbbb")}))

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=80)
        console.print(display._render())
        return str(cast("io.StringIO", console.file).getvalue())

    before = drawn()
    assert "2 queued" in before
    # As when a mapped step is known to have an element, and the element is not there yet.
    state = run.steps.pop("b")
    assert drawn() == before
    run.steps["b"] = state
    run.step(started("b", at_s=run.at_s))
    assert "1 queued  1 running" in drawn()


def test_what_others_wrote_does_nothing_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of exceptions and of skips may hold anything; a stream that is no terminal gets them as they are."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    message = "ValueError: \x1b[2Jcl\x9b2Jear\x07"
    run = folded(submitted(graph(step("a"))), started("a"))
    run.step(failed("a", message=message, at_s=run.at_s))
    assert message in run.steps["a"].message
    family = Family(run, {})
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        display = Display(stream)
        with display.live(run.id):
            display.show(family)
            display.note(message)
        display.note(message)
        display.finished(family)
    assert screen.getvalue().count("ValueError: clear") >= 3
    assert not any(found in screen.getvalue() for found in ("\x1b[2J", "\x9b", "\x07"))
    assert file.getvalue().count(message) >= 2


def test_a_large_table_shows_the_steps_that_run_wherever_they_are() -> None:
    """Very many steps that are runs, all of them running, and one of their steps that runs, too, far down."""
    outer = folded(submitted(graph(*(step(f"c{i}") for i in range(40)))), *(started(f"c{i}") for i in range(40)))
    rows = []
    for i in range(40):
        inner = folded(submitted(graph(step("a"), step("b", "a"))), *([started("a")] if i == 33 else []))
        rows += [
            Row(f"c{i}", outer, f"c{i}", inner),
            Row(f"c{i}/a", inner, "a", None),
            Row(f"c{i}/b", inner, "b", None),
        ]
    chosen = [row.path for row in shown_rows(rows)]
    assert len(chosen) == ROWS_MAX
    assert chosen[-2:] == ["c33", "c33/a"]
    assert chosen[:4] == ["c0", "c0/a", "c1", "c1/a"], (
        "what waits for a worker is next, each below the step that it is in"
    )
    assert shown_rows(rows[:ROWS_MAX]) == rows[:ROWS_MAX]
