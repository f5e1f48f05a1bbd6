"""All that a step starts ends with it, however far it got away; what it had written until then is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evpipe import RunStatus, pipeline
from evpipe.core.states import Reason
from tests.support.worlds import until
from tests.worker import steps
from tests.worker.helpers import ended, in_loop, is_alive, pids_in, texts, working

#: The step's own process, a fork, one with a session of its own, and a daemon.
COUNT = 4
LINES = ["tree from printf", "tree from printf without an end, and from write"]


@pipeline
def times_out(file: str) -> list[Any]:
    late = steps.leave_tree.options(timeout_s=1.5, on_failure="continue")(file, "tree", stays=True)
    return [late, steps.pid(late)]


@pipeline
def stays(file: str) -> str:
    return steps.leave_tree(file, "tree", stays=True)


@pipeline
def returns(file: str) -> list[Any]:
    value = steps.leave_tree(file, "tree", stays=False)
    return [value, steps.pid(value)]


@pipeline
def leaves_one(file: str, way: str) -> list[Any]:
    value = steps.leave_one(file, way)
    return [value, steps.pid(value)]


def gone(file: Path) -> bool:
    return not any(is_alive(pid) for pid in pids_in(file))


def test_time_out(tmp_path: Path) -> None:
    """When the time-out is told, nothing of the tree is alive, and the log has even the line without an end."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2) as (client, _):
            handle = await client.submit(times_out, {"file": str(file)})
            result = await handle.result()
            pids = pids_in(file)
            assert len(pids) == COUNT
            assert gone(file)
            assert result.steps["leave_tree"].reason is Reason.TIMEOUT
            assert result.steps["leave_tree"].error == "the attempt ran longer than 1.5 s"
            assert result.value[0] is None
            assert result.value[1] not in pids
            assert await texts(handle, "leave_tree") == LINES

    in_loop(body)


def test_cancel(tmp_path: Path) -> None:
    """After a cancel everything is gone soon, and the lines are there."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2) as (client, _):
            handle = await client.submit(stays, {"file": str(file)})
            await until((tmp_path / "pids.ready").exists, what="the tree is there")
            assert len(pids_in(file)) == COUNT
            await handle.cancel("enough")
            assert (await handle.result()).status is RunStatus.CANCELLED
            await until(lambda: gone(file), timeout_s=5.0, what="the tree is gone")
            # The controller does not wait for the worker, so these may come after the run's end.
            found: list[str] = []
            while found != LINES:
                found = await texts(handle, "leave_tree")

    in_loop(body)


def test_leaving_worker(tmp_path: Path) -> None:
    """A worker that leaves takes its children's trees with it."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2) as (client, _):
            await client.submit(stays, {"file": str(file)})
            await until((tmp_path / "pids.ready").exists, what="the tree is there")
        assert len(pids_in(file)) == COUNT
        assert gone(file)

    in_loop(body)


def test_left_behind(tmp_path: Path) -> None:
    """What a step leaves running ends when it has returned; its result counts, the next step has another child."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(1) as (client, _):
            handle = await client.submit(returns, {"file": str(file)})
            value, after = (await handle.result()).value
            assert value == "tree"
            assert after not in pids_in(file)
            assert len(pids_in(file)) == COUNT
            await until(lambda: gone(file), timeout_s=5.0, what="the tree is gone")
            assert await texts(handle, "leave_tree") == LINES

    in_loop(body)


def test_left_behind_one_by_one(tmp_path: Path) -> None:
    """The same for each way alone; a child that has ended, but was not waited for, is nothing left behind."""

    async def body() -> None:
        async with working(1) as (client, _):
            for way, other in (("fork", True), ("session", True), ("daemon", True), ("zombie", False)):
                file = tmp_path / way
                child, after = (await ended(client, leaves_one, file=str(file), way=way)).value
                assert (after != child) is other, way
                await until(lambda file=file: gone(file), timeout_s=5.0, what=f"{way} is gone")  # type: ignore[misc]

    in_loop(body)
