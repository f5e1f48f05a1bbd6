"""Why a step does not run, asked while it does not, and when its run has ended: in Python and on the command line."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import anyio
import pytest

from evpipe import Cache, Cause, Client, Controller, Mutex, NotFound, Pipeline, UsageError, Why, Worker, pipeline
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.handle import RunHandle
from tests.e2e.decision_pipelines import coin, fail, told
from tests.e2e.helpers import clean_environment, until_async


def waiting() -> Pipeline:
    p = Pipeline("waiting", queue="gpu")
    one = p.step("one", told, value=1, cache=Cache(version="of this test"))
    p.step("two", told, value=one)
    p.step("three", told, value=3, limits=Mutex("one-at-a-time"))
    return p


@pipeline
def inside(*, fails: bool) -> str:
    return told.options(name="later", after=[fail.options(queue="default" if fails else "gpu")()])(1)


@pipeline
def around(*, fails: bool) -> str:
    return told(inside(fails=fails))


def causes(found: Why) -> list[Cause]:
    return [found.cause, *(causes(found.because[0]) if found.because else [])]


async def begun(handle: RunHandle[Any], step: str) -> bool:
    """Say whether a step that is a run has begun, and a step of that waits in a queue."""
    found = await handle.why(step)
    return found.cause is Cause.CHILD and any(inner.cause is Cause.QUEUED for inner in found.because)


async def launched(client: Client, queue: str) -> bool:
    return any(lane.waiting for lane in await client.bus.lanes() if lane.queue == queue)


def test_what_holds_a_step_up(server: ServerProcess) -> None:
    async def main() -> None:
        async with Client(BusSettings(url=server.url)) as client:
            first = await client.submit(waiting())
            found = await first.why("two")
            assert causes(found) == [Cause.PARENTS, Cause.QUEUED, Cause.NO_WORKER]
            assert found.because[-1].cause is Cause.NO_CONTROLLER
            assert "`evpipe worker -q gpu`" in found.roots()[0].message
            with pytest.raises(NotFound, match="has no step 'tow'; did you mean 'two'"):
                await first.why("tow")
            async with Controller(client):
                async with client.bus.pull("gpu", 5, lambda _: None):
                    await until_async(lambda: launched(client, "gpu"), "a launch in the queue")
                    second = await client.submit(waiting())
                    found = await second.why("one")
                    assert causes(found) == [Cause.QUEUED, Cause.SAME_RUNS, Cause.QUEUED, Cause.NO_WORKER]
                    assert first.id in found.because[0].message
                    outer = await client.submit(around, {"fails": False})
                    await until_async(lambda: begun(outer, "inside"), "the child run has a launch")
                    found = await outer.why("told")
                    assert causes(found) == [Cause.PARENTS, Cause.CHILD, Cause.QUEUED, Cause.NO_WORKER]
                    found = await outer.why("inside/fail")
                    assert causes(found) == [Cause.QUEUED, Cause.NO_WORKER]
                    assert (found.step, found.run) == ("fail", (await outer.why("inside")).child)
                    for path, message in (
                        ("inside/fial", "has no step 'fial'; did you mean 'fail'"),
                        ("insid/fail", f"run {outer.id} has no step 'insid'; did you mean 'inside'"),
                        ("told/fail", f"run {outer.id} has no step 'told' that is a run"),
                    ):
                        with pytest.raises(NotFound, match=message):
                            await outer.why(path)
                    with pytest.raises(UsageError, match=r"step must be the name of a step, .* not 3"):
                        await outer.why(3)  # type: ignore[arg-type]
                    await outer.cancel()
                    found = await second.why("three")
                    # Its launch is in the queue: it holds the mutex all the same.
                    assert causes(found) == [Cause.QUEUED, Cause.SEMAPHORE, Cause.QUEUED, Cause.NO_WORKER]
                    completed = await anyio.run_process(
                        [sys.executable, "-m", "evpipe", "why", second.id, "three", "--url", server.url],
                        env=clean_environment(),
                    )
                    text = re.sub(r", since [-0-9: ]+", "", completed.stdout.decode())
                    no_worker = "no worker serves the queue 'gpu': start one with `evpipe worker -q gpu`"
                    assert text.splitlines() == [
                        "three (queued): is ready, and not launched yet",
                        f"  the mutex 'one-at-a-time' is held by step three of run {first.id}",
                        f"    three of run {first.id} (queued): waits in the queue 'gpu' for a worker",
                        f"      {no_worker}",
                        f"  {no_worker}",
                    ]
                    assert [root.cause for root in (await first.why("one")).roots()] == [Cause.NO_WORKER]
                async with Worker(client, ["gpu"], slots=1):
                    await first.result(timeout_s=20)
                    await second.result(timeout_s=20)
                    assert causes(await second.why("one")) == [Cause.DONE]
                run = await client.submit(coin, {"side": "edge"})
                outer = await client.submit(around, {"fails": True})
                async with Worker(client, ["default"], slots=2):
                    await run.result(timeout_s=20)
                    await outer.result(timeout_s=20)
                found = await outer.why("told")
                assert causes(found) == [Cause.UPSTREAM, Cause.FAILED, Cause.FAILED]
                assert found.roots()[0].run != outer.id
                found = await run.why("told")
                assert causes(found) == [Cause.CONDITION, Cause.CONDITION]
                assert found.because[0].message.endswith("(flip is 'edge')")
                completed = await anyio.run_process(
                    [sys.executable, "-m", "evpipe", "why", run.id, "told", "--url", server.url, "-o", "json"],
                    env=clean_environment(),
                )
                assert json.loads(completed.stdout)["because"][0]["cause"] == "condition"

    anyio.run(main)
