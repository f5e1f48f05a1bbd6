"""What the table shows of the progress of steps, on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe import Client, Controller, Worker
from evpipe.bus.memory import MemoryBus
from evpipe.hosting.display import Display
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
