"""A worker without code of its own runs coroutines and threads in one host child per source, many at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from evpipe import Client, RunResult, RunStatus
from evpipe.client.handle import RunHandle
from evpipe.core.states import Reason
from evpipe.worker.children import child, pool
from tests.support.worlds import until
from tests.worker import hosted
from tests.worker.helpers import children_here, ended, in_loop, pids_in, run_of, texts, working


def test_at_once_in_one_process(tmp_path: Path) -> None:
    """Coroutines and a thread that wait for each other share one process, not the worker's; lines are told apart."""
    found = run_of(hosted.meeting, slots=3, local_code=False, folder=str(tmp_path))
    assert len(set(found.value)) == 1
    assert found.value[0] != os.getpid()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        assert found.texts(name) == [f"{name} is here", f"{name} met {other}"]


def test_local_code() -> None:
    """With code of its own the worker runs them in its own process."""
    assert set(run_of(hosted.pids, count=3).value) == {os.getpid()}


def test_one_host(tmp_path: Path) -> None:
    """The first attempts of all come at once: they still share one host, as do later runs."""

    async def body() -> None:
        async with working(8, local_code=False) as (client, _):
            first = await ended(client, hosted.pids, count=20)
            second = await ended(client, hosted.pids, count=20)
            assert len({*first.value, *second.value}) == 1
            assert children_here() == set(first.value)

    in_loop(body)


def test_time_out(tmp_path: Path) -> None:
    """A coroutine that runs too long is cancelled, its lines are kept, and the host goes on."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2, local_code=False) as (client, _):
            handle = await client.submit(hosted.late, {"file": str(file)})
            result = await handle.result()
            assert result.steps["stay"].reason is Reason.TIMEOUT
            assert {result.value[1]} == pids_in(file)
            await until((tmp_path / "pids.cancelled").exists, what="the coroutine was cancelled")
            assert await texts(handle, "stay") == ["stays"]

    in_loop(body)


def test_a_blocked_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that blocks the loop of its host cannot be cancelled there: the host is killed, others run in the next."""
    monkeypatch.setattr(child, "STUCK_S", 0.1)
    monkeypatch.setattr(pool, "LOOK_S", 0.1)
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2, local_code=False) as (client, _):
            handle = await client.submit(hosted.blocked, {"file": str(file)})
            await until(lambda: pids_in(file), what="the coroutine runs")
            (blocked,) = pids_in(file)
            await handle.cancel()
            assert (await handle.result()).status is RunStatus.CANCELLED
            assert blocked not in (await ended(client, hosted.pids, count=1)).value
            await until(lambda: not Path(f"/proc/{blocked}").exists(), what="the host that was blocked is gone")

    in_loop(body)


def test_cancel(tmp_path: Path) -> None:
    """The same for a cancel."""
    file = tmp_path / "pids"

    async def body() -> None:
        async with working(2, local_code=False) as (client, _):
            handle = await client.submit(hosted.stays, {"file": str(file)})
            await until(lambda: pids_in(file), what="the coroutine runs")
            await handle.cancel()
            assert (await handle.result()).status is RunStatus.CANCELLED
            await until((tmp_path / "pids.cancelled").exists, what="the coroutine was cancelled")
            assert set((await ended(client, hosted.pids, count=2)).value) == pids_in(file)

    in_loop(body)


async def killed_while_held(client: Client, folder: Path, count: int) -> tuple[int, RunResult[Any], RunHandle[Any]]:
    """Kill a host while it runs so many; gives its number and how the run ended."""
    file, gate = folder / "pids", folder / "gate"
    handle = await client.submit(hosted.holds, {"file": str(file), "gate": str(gate), "count": count})
    await until(lambda: file.exists() and file.read_text().count("\n") == count, what="all are held")
    (host,) = pids_in(file)
    os.kill(host, signal.SIGKILL)
    gate.touch()
    return host, await handle.result(), handle


def test_killed_with_one_step(tmp_path: Path) -> None:
    """A host that dies while it runs one step died of that: it is the step's failure."""

    async def body() -> None:
        async with working(4, local_code=False) as (client, _):
            _, result, _ = await killed_while_held(client, tmp_path, 1)
            failed = result.steps["held"]
            assert (failed.reason, failed.attempts) == (Reason.ERROR, 1)
            assert failed.error.startswith("its process was killed by signal 9 (SIGKILL)")
            assert (await ended(client, hosted.pids, count=1)).status is RunStatus.SUCCEEDED

    in_loop(body)


def test_killed_with_several_steps(tmp_path: Path) -> None:
    """Nobody can say which of several it died of: all are lost, charged to none, and run again in another host."""

    async def body() -> None:
        async with working(4, local_code=False) as (client, _):
            host, result, handle = await killed_while_held(client, tmp_path, 3)
            assert [number for number, _ in result.value] == [0, 1, 2]
            others = {pid for _, pid in result.value}
            assert len(others) == 1
            assert host not in others
            assert {step.attempts for step in result.steps.values()} == {2}
            kinds = [event.kind async for event in handle.events()]
            assert "retried" not in kinds

    in_loop(body)


def test_a_worker_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the worker itself ends the attempt as lost, and after some tries the run, with the reason."""

    async def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(pool.Pool, "run", broken)

    async def body() -> None:
        async with working(1, local_code=False) as (client, _):
            result = await ended(client, hosted.pids, count=1)
            step = result.steps["host_pid"]
            assert (step.status, step.reason, step.attempts) == ("failed", Reason.LOST, 4)
            assert step.error == "its worker failed: RuntimeError: no such thing"

    in_loop(body)
