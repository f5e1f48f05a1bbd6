"""A worker that is killed with -9: all that its children started is gone soon, and the run ends right elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

from evpipe import connect, pipeline
from tests.e2e.conftest import ConfiguredBus
from tests.e2e.helpers import Program, until
from tests.worker import steps
from tests.worker.helpers import is_alive, pids_in


@pipeline
def holds_trees(folder: str, count: int) -> list[str]:
    return [steps.tree_until(folder, i) for i in range(count)]


def test_killed_worker(bus: ConfiguredBus, spawn: Callable[..., Program], tmp_path: Path) -> None:
    """Children, their forks and what has a session of its own end within seconds, with nobody left to kill them."""
    count = 2
    bus.host("controller")
    doomed = bus.host("worker")

    async def submit() -> str:
        async with connect(bus.url) as client:
            return (await client.submit(holds_trees, {"folder": str(tmp_path), "count": count})).id

    run = anyio.run(submit)
    files = [tmp_path / f"tree{i}" for i in range(count)]
    until(lambda: all(Path(f"{file}.ready").exists() for file in files), "the trees are there")
    pids = set().union(*map(pids_in, files))
    assert len(pids) == 4 * count
    doomed.kill()
    until(lambda: not any(map(is_alive, pids)), "all of it is gone", patience_s=5.0)
    (tmp_path / "gate").touch()
    bus.host("worker")

    async def result() -> list[str]:
        async with connect(bus.url) as client:
            found: list[str] = (await (await client.get_run(run)).result(timeout_s=45)).value
            return found

    assert anyio.run(result) == ["tree0", "tree1"]
    again = set().union(*map(pids_in, files)) - pids
    until(lambda: not any(map(is_alive, again)), "what the second attempts left is gone, too")
