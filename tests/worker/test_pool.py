"""Children that start, do not start, make room for others, and are not needed any more."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evpipe import Client, RunStatus, StepStatus, pipeline
from evpipe.client.source import Source
from evpipe.core.states import Reason
from evpipe.worker.children import child
from tests.e2e.helpers import until as until_sync
from tests.support.worlds import until
from tests.worker import steps
from tests.worker.helpers import children_here, ended, in_loop, is_alive, pids_in, pool_of, run_of, working


@pipeline
def one() -> int:
    return steps.pid()


@pipeline
def hold(mark: str, gate: str) -> int:
    return steps.hold(mark, gate)


@pytest.mark.parametrize("local_code", [True, False])
def test_no_interpreter(monkeypatch: pytest.MonkeyPatch, *, local_code: bool) -> None:
    """Where no process can be started the attempt is lost, which says why; the worker goes on."""
    monkeypatch.setattr(sys, "executable", "/missing/python")
    found = run_of(
        one if local_code else steps.many_threads, local_code=local_code, **({} if local_code else {"count": 1})
    )
    (failed,) = found.result.steps.values()
    assert (failed.status, failed.reason) == (StepStatus.FAILED, Reason.LOST)
    sentence = "a process for the step did not start: [Errno 2] No such file or directory: '/missing/python'"
    assert failed.error == sentence


def test_interpreter_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once processes can be started again, steps run again on the same worker."""

    async def body() -> None:
        async with working() as (client, _):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", "/missing/python")
                assert (await ended(client, one)).status is RunStatus.FAILED
            assert (await ended(client, one)).status is RunStatus.SUCCEEDED

    in_loop(body)


@pytest.mark.parametrize(
    ("boot", "sentence"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("import os; os._exit(3)", "exited with code 3 without a result"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by signal 11 (SIGSEGV)"),
        ("import time; time.sleep(600)", "it said nothing for 0.5 s"),
    ],
)
def test_child_that_does_not_begin(monkeypatch: pytest.MonkeyPatch, boot: str, sentence: str) -> None:
    """What a process says, or how it ends, before it is ready is told; the attempt is lost, for nothing ran."""
    monkeypatch.setattr(child, "_BOOT", boot)
    monkeypatch.setattr(child, "START_S", 0.5)
    (failed,) = run_of(one).result.steps.values()
    assert failed.reason is Reason.LOST
    assert failed.error == f"a process for the step did not start: {sentence}"


def test_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of one source are not those of another; the one used longest ago makes room, and only that one."""

    async def pid_from(client: Client, name: str) -> int:
        # Read by the worker when it runs the first step of a run.
        monkeypatch.setattr(Source, "of_process", lambda: replace(here, paths=(f"/{name}", *here.paths)))
        return int((await ended(client, one)).value)

    here = Source.of_process()

    async def body() -> None:
        async with working(2) as (client, _):
            a, b = await pid_from(client, "a"), await pid_from(client, "b")
            assert a != b
            assert await pid_from(client, "a") == a
            c = await pid_from(client, "c")
            await until(lambda: children_here() == {a, c}, what="the child of b made room")
            assert await pid_from(client, "a") == a
            assert await pid_from(client, "b") != b

    in_loop(body)


def test_cancel_while_a_child_starts() -> None:
    """A child whose attempt is cancelled before it has begun is kept for the next, and nothing is left over."""

    async def body() -> None:
        async with working(1) as (client, worker):
            handle = await client.submit(one, {})
            await until(lambda: pool_of(worker)._singles, what="a child starts", poll_s=0)
            await handle.cancel()
            assert (await handle.result()).status is RunStatus.CANCELLED
            assert (await ended(client, one)).status is RunStatus.SUCCEEDED
            assert len(pool_of(worker)._singles) == 1
            await until(lambda: len(children_here()) == 1, what="there is one child")

    in_loop(body)


def test_leaving_while_children_start() -> None:
    """A worker that leaves at any moment of a child's start leaves nothing behind."""

    async def body() -> None:
        for turns in (0, 1, 3, 10, 40):
            async with working(3) as (client, worker):
                await client.submit(steps.many, {"count": 3})
                # All of them: one that comes while the worker leaves is another matter (it is not the pool's).
                await until(lambda worker=worker: len(pool_of(worker)._singles) == 3, what="three start", poll_s=0)  # type: ignore[misc]
                left = iter(range(turns))
                await until(lambda left=left: next(left, None) is None, what="some turns of the loop", poll_s=0)  # type: ignore[misc]
            assert not children_here()

    in_loop(body)


def test_idle_child_is_killed() -> None:
    """A warm child that somebody kills while it has nothing to do is no harm to the next step."""

    async def body() -> None:
        async with working(1) as (client, worker):
            first = (await ended(client, one)).value
            os.kill(first, 9)
            await until(lambda: not pool_of(worker)._idle, what="the pool knows")
            assert (await ended(client, one)).value != first

    in_loop(body)


def test_drain(tmp_path: Path) -> None:
    """A step in a child comes to its end while its worker drains; what has not ended by then is killed."""
    mark, gate = tmp_path / "mark", tmp_path / "gate"

    async def body() -> None:
        async with working(1) as (client, worker):
            handle = await client.submit(hold, {"mark": str(mark), "gate": str(gate)})
            await until(lambda: pids_in(mark), what="the step runs")
            assert await worker.drain(0.05) == 1
            gate.touch()
            assert await worker.drain(10.0) == 0
            assert {(await handle.result()).value} == pids_in(mark)

    in_loop(body)
    until_sync(lambda: not any(map(is_alive, pids_in(mark))), "the child has gone")
