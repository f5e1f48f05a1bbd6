"""What steps say from inside arrives, whatever becomes of them, and in every mode the same."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import anyio
import nats
import pytest

from evpipe import Client, Controller, MetricPoint, NotFound, RunResult, StepResult, Worker, connect, run
from evpipe.bus.memory import Fault, MemoryBus
from evpipe.bus.outbox import Message
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.handle import RunHandle
from evpipe.client.logs import LogEntry
from evpipe.client.notes import fill_notes, read_recorded
from evpipe.sdk.hook import Mode
from tests.e2e import context_pipelines as these
from tests.e2e.conftest import ConfiguredBus
from tests.e2e.helpers import until_async
from tests.support.worlds import api

MODES = get_args(Mode)
#: Nothing here takes longer than 10 s on two busy cores.
LIMIT_S = 60.0


def points(found: list[MetricPoint]) -> list[tuple[str, float, int | None]]:
    return [(point.name, point.value, point.iteration) for point in found]


def check_said(step: StepResult, many: int) -> None:
    """All of it, with the values that it had when it was said."""
    metrics = step.metrics
    assert {(point.step, point.attempt) for point in metrics} == {(step.name, 1)}
    assert points(metrics[:many]) == [("loss", 1 / (i + 1), i) for i in range(many)]
    nan, inf = metrics[many:]
    assert (nan.name, math.isnan(nan.value), nan.iteration) == ("odd", True, None)
    assert (inf.name, inf.value, inf.iteration) == ("odd", -math.inf, -1)
    assert [point.at for point in metrics] == sorted(point.at for point in metrics)
    assert step.metrics_left_out == 0
    assert list(step.artifacts) == ["note", "rows", "plot"]
    assert step.artifacts["note"] == {"rows": 3, "of": (1, 2)}
    assert step.artifacts["rows"] == these.ROWS
    assert step.artifacts["plot"].read_text() == "a plot"
    assert step.value["file"].read_text() == "another"
    assert (step.value["step"], step.value["attempt"], step.value["cancelled"]) == (step.name, 1, False)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_said_is_in_the_result(mode: Mode, embedded: Path) -> None:
    """In a process, a thread and a coroutine; few points, which travel, and many, which are stored."""
    for many in (3, these.MANY):
        result = run(these.says, {"many": many}, mode=mode)
        assert list(result.steps) == ["in_process", "in_thread", "in_loop"]
        for step in result.steps.values():
            check_said(step, many)


@pytest.mark.parametrize("mode", MODES)
def test_elements_of_a_mapped_step(mode: Mode, embedded: Path) -> None:
    """Each is a step of its own, under the name that a person writes."""
    result = run(these.mapped, mode=mode)
    assert result.value == ["names_itself[0]", "names_itself[1]"]
    for i, name in enumerate(result.value):
        step = result.steps[name]
        assert [(point.step, point.value) for point in step.metrics] == [(name, 5.0 + i)]
        assert dict(step.artifacts) == {"number": 5 + i}


@pytest.mark.parametrize("mode", MODES)
def test_attempts_that_fail_keep_what_they_said(mode: Mode, embedded: Path) -> None:
    """And what they must not say is why they fail."""
    result = run(these.ends, mode=mode)
    steps = result.steps
    assert result.value == 3
    assert points(steps["tries"].metrics) == [("tried", 3.0, None)]
    assert dict(steps["tries"].artifacts) == {"why": "attempt 3"}
    assert points(steps["fails"].metrics) == [("before", 1.0, None)]
    assert dict(steps["fails"].artifacts) == {"why": these.ROWS}
    assert steps["fails"].error == "KeyError: 'x'"
    assert steps["says_nothing"].metrics == []
    assert dict(steps["says_nothing"].artifacts) == {}
    assert steps["says_nonsense"].error.startswith("UsageError: the value of metric 'loss' must be a num")
    assert "LimitExceeded: the artifact 'text 259' of step 'keeps_too_much'" in steps["keeps_too_much"].error
    assert len(steps["keeps_too_much"].artifacts) == 259
    assert "the artifact 'lock' of step 'keeps_what_cannot_be' cannot be" in steps["keeps_what_cannot_be"].error


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_step_has_what_its_origin_said(mode: Mode, embedded: Path, tmp_path: Path) -> None:
    word = tmp_path.name + mode
    result = run(these.twice, {"word": word}, mode=mode)
    first, second = result.steps.values()
    assert (first.status, second.status) == ("succeeded", "cached")
    for step in (first, second):
        assert points(step.metrics) == [("length", float(len(word)), 1)]
        assert dict(step.artifacts) == {"word": word * 2_000}


@pytest.mark.parametrize("mode", MODES)
def test_each_attempt_has_a_folder_of_its_own(
    mode: Mode, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And relative paths stay those of the script."""
    monkeypatch.chdir(tmp_path)
    Path("given.csv").write_text("!")
    assert run(these.side_by_side, {"given": "given.csv"}, mode=mode).value == "process,thread!"


# ---- on a bus


@asynccontextmanager
async def working(
    server: ServerProcess | None, *, local_code: bool = True, telemetry: bool = True
) -> AsyncIterator[Client]:
    """A worker, on a real server or in this process; without local code all steps run in children."""

    def fault(message: Message) -> Fault | None:
        return Fault.LOST if message.subject.startswith("evpipe.telemetry.") and not telemetry else None

    async with MemoryBus(fault=fault) as bus:
        connection = Client(bus=bus) if server is None else Client(BusSettings(url=server.url))
        async with connection as client, Controller(client), Worker(client, slots=6, local_code=local_code):
            yield client


def in_loop(body: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(LIMIT_S):
            return await body()

    return anyio.run(bounded)


async def lines(handle: RunHandle[Any], step: str | None = None) -> list[LogEntry]:
    return [entry async for entry in handle.logs(step, follow=False)]


@pytest.mark.parametrize("kind", ["here", "children"])
def test_in_children_of_a_worker(kind: str) -> None:
    """Coroutines and threads in a host say what they say in the worker's own process; lines have level and fields."""

    async def body() -> None:
        async with working(None, local_code=kind == "here") as client:
            handle = await client.submit(these.says, {"many": these.MANY})
            result = await handle.result()
            for name, step in result.steps.items():
                check_said(step, these.MANY)
                (line,) = await lines(handle, name)
                assert (line.stream, line.level, line.text) == ("log", "info", "said")
                assert line.fields == {"rows": 3, "who": "a b"}
                assert line.line == "info     said rows=3 who='a b'"
                artifacts = await handle.artifacts(name)
                assert (artifacts["note"], artifacts["rows"]) == ({"rows": 3, "of": (1, 2)}, these.ROWS)
            told = await handle.metrics()
            assert len(told) == 3 * (these.MANY + 2)
            assert {point.step for point in told} == set(result.steps)

    in_loop(body)


def test_while_it_runs(server: ServerProcess, tmp_path: Path) -> None:
    """Points and progress are there before the end, and nothing is there twice after it."""
    gate = tmp_path / "gate"

    async def body() -> None:
        async with working(server) as client:
            handle = await client.submit(these.goes, {"gate": str(gate)})
            watched = []
            async for progress in handle.watch_progress():
                watched.append(progress)
                break
            await until_async(handle.progress, "its progress is told")
            for found in (watched[0], (await handle.progress())["goes_on"]):
                assert (found.step, found.attempt, found.fraction, found.message) == ("goes_on", 1, 0.5, "half\nway")

            async def told() -> bool:
                return len(await handle.metrics("goes_on")) == 3

            await until_async(told, "its points are told")
            assert points(await handle.metrics(attempt=1)) == [("loss", float(i), i) for i in range(3)]
            assert await handle.metrics(attempt=2) == []
            gate.touch()
            result: RunResult[Any] = await handle.result()
            assert result.value == "went on"
            assert points(await handle.metrics()) == [("loss", float(i), i) for i in range(4)]
            assert await handle.progress() == {}
            assert [progress async for progress in handle.watch_progress()] == []
            assert [line.line for line in await lines(handle)] == ["warning  waiting gate=True"]

    in_loop(body)


@pytest.mark.parametrize("kind", ["here", "children"])
def test_attempts_that_are_ended(kind: str, tmp_path: Path) -> None:
    """Of what is out of time is kept what it said until then; a thread can see that it is to end."""

    async def body() -> None:
        async with working(None, local_code=kind == "here") as client:
            handle = await client.submit(these.stopped, {"folder": str(tmp_path)})
            steps = (await handle.result()).steps
            for name in ("too_slow_in_thread", "too_slow_in_loop"):
                assert (steps[name].status, steps[name].reason) == ("failed", "timeout")
                assert points(steps[name].metrics) == [("loss", 1.0, None)]
            seen = (tmp_path / "thread", tmp_path / "loop")
            await until_async(_all(*seen), "the thread and the coroutine have seen it")
            assert [file.read_text() for file in seen] == ["True", "ended"]
            assert [line.text for line in await lines(handle, "too_slow_in_thread")] == []

    in_loop(body)


def test_processes_that_are_ended() -> None:
    """Of one that is killed for its time, or dies, nothing is lost of what it said."""

    async def body() -> None:
        async with working(None) as client:
            steps = (await (await client.submit(these.processes)).result()).steps
            many = [("loss", float(i), None) for i in range(these.MANY)]
            slow, dead, forked = steps["too_slow_in_process"], steps["dies"], steps["forks"]
            assert (slow.status, slow.reason) == ("failed", "timeout")
            assert points(slow.metrics) == many
            assert dict(slow.artifacts) == {"rows": these.ROWS}
            assert dead.error == "its process exited with code 3 without a result"
            assert points(dead.metrics) == many
            assert dict(dead.artifacts) == {"last": "words"}
            assert points(forked.metrics) == [("pid", float(forked.value), None), ("thread", 1.0, None)]

    in_loop(body)


@pytest.mark.parametrize("kind", ["here", "children"])
def test_a_cancelled_run(kind: str, tmp_path: Path) -> None:
    """Its threads are told; all that it said is kept, without telemetry, though it may be told after the run's end."""
    names = ["waits_in_process", "waits_in_thread", "waits_in_loop"]

    async def body() -> None:
        async with working(None, local_code=kind == "here", telemetry=False) as client:
            handle = await client.submit(these.cancelled, {"folder": str(tmp_path)})
            await until_async(_all(*(tmp_path / f"{name} began" for name in names)), "all of it runs")
            await handle.cancel()
            result = await handle.result()
            assert result.status == "cancelled"
            await until_async(_all(tmp_path / "ended"), "its thread has ended")
            said = [("loss", float(i), None) for i in range(these.MANY)]
            for name in names:
                wanted = [*said, ("loss", float(these.MANY), None)] if name == "waits_in_loop" else said

                async def kept(name: str = name, count: int = len(wanted)) -> bool:
                    return len(await handle.metrics(name)) >= count

                await until_async(kept, "what it said is kept")
                assert points(await handle.metrics(name)) == wanted
                assert await handle.artifacts(name, attempt=1) == {"rows": these.ROWS, "last": name}
                step = result.steps[name]
                assert points(step.metrics) == wanted
                assert dict(step.stored_artifacts) == {}
                assert dict(step.artifacts) == {"rows": these.ROWS, "last": name}
            assert [event.kind async for event in handle.events()][-1] == "finished"
            state = await handle.state()
            await fill_notes(client.bus, state, handle.pipeline)
            notes = [state.steps[name].notes for name in names]
            assert [note and len(note.metrics) for note in notes] == [these.MANY, these.MANY, these.MANY + 1]
            assert list(handle.result_of(state).steps["waits_in_loop"].stored_artifacts) == ["rows", "last"]

    in_loop(body)


def test_a_run_that_is_cancelled_in_this_thread() -> None:
    """Nobody stops a call, and what it said is there as if somebody had."""
    step = run(these.late, mode="debug").steps["is_late"]
    assert (step.status, step.reason) == ("cancelled", "deadline")
    assert points(step.metrics) == [("loss", 1.0, None)]
    assert dict(step.artifacts) == {"rows": these.ROWS}


def test_a_worker_that_leaves(tmp_path: Path) -> None:
    """Attempts that it does not wait for are begun again elsewhere; what they said is kept before it has gone."""
    names = ["waits_in_process", "waits_in_thread", "waits_in_loop"]

    async def body() -> None:
        async with MemoryBus() as bus, Client(bus=bus) as client, Controller(client):
            handle = await client.submit(these.cancelled, {"folder": str(tmp_path)})
            async with Worker(client, slots=6, local_code=False):
                await until_async(_all(*(tmp_path / f"{name} began" for name in names)), "all of it runs")
            kept = await read_recorded(bus, handle.id, handle.pipeline)
            assert {step: recorded.count for (step, _), recorded in kept.items()} == {
                "waits_in_process": these.MANY,
                "waits_in_thread": these.MANY,
                "waits_in_loop": these.MANY + 1,
            }
            for recorded in kept.values():
                loaded = await ArtifactStore(bus.objects).load(recorded.artifacts["rows"])
                assert loaded == these.ROWS

    in_loop(body)


def test_a_run_that_loses_its_worker(bus: ConfiguredBus, tmp_path: Path) -> None:
    """A worker is killed with -9 in the middle of a step: what it said is in the log, but for what it said last."""
    bus.host("controller")
    doomed = bus.host("worker")

    async def told(handle: RunHandle[Any]) -> int:
        """Give how many points of the first attempt are kept, without telemetry."""
        raw = await nats.connect(bus.url)
        assert (await api(raw, "STREAM.PURGE.evpipe-telemetry"))["success"]
        await raw.close()
        found = await handle.metrics(attempt=1)
        assert [point.value for point in found] == [float(i) for i in range(len(found))]
        return len(found)

    async def body() -> None:
        async with connect(bus.url) as client:
            handle = await client.submit(these.lost, {"folder": str(tmp_path)})

            async def half() -> bool:
                found = await read_recorded(client.bus, handle.id, handle.pipeline)
                return [recorded.count for recorded in found.values()] == [these.MANY]

            await until_async(half, "half of it is kept")
            (tmp_path / "seen").touch()
            await until_async(_all(tmp_path / "said"), "it has said all")
            doomed.kill()
            found = await told(handle)
            assert these.MANY <= found <= 2 * these.MANY
            (tmp_path / "killed").touch()
            bus.host("worker")
            assert (await handle.result()).value == 2
            assert await told(handle) == found
            assert points((await handle.result()).steps["loses_its_worker"].metrics)[-1][1] == 2 * these.MANY - 1
            assert len(await handle.metrics(attempt=2)) == 2 * these.MANY
            assert await handle.artifacts("loses_its_worker", attempt=1) == {"rows": these.ROWS}
            garbage = await client.collect_garbage(older_s=600.0)
            assert (garbage.removed, garbage.young) == (0, 0)

    in_loop(body)


def test_garbage(server: ServerProcess) -> None:
    """Points and artifacts are kept for as long as their run is in the log, also of a failed attempt."""

    async def body() -> None:
        async with working(server) as client:
            handle = await client.submit(these.ends)
            await handle.result()
            elements = await client.submit(these.mapped)
            await elements.result()
            assert [point.value for point in await elements.metrics("names_itself")] == [5.0, 6.0]
            assert [point.value for point in await elements.metrics("names_itself[1]")] == [6.0]
            assert await elements.artifacts("names_itself[1]") == {"number": 6}
            with pytest.raises(NotFound, match=r"has no step 'names_itself\[2\]': 'names_itself' has 2 elements$"):
                await elements.artifacts("names_itself[2]")
            says = await client.submit(these.says, {"many": these.MANY})
            await says.result()
            garbage = await client.collect_garbage(older_s=600.0)
            assert garbage.objects > 4
            assert (garbage.removed, garbage.young) == (0, 0)
            assert (await handle.artifacts("fails"))["why"] == these.ROWS
            assert [(await handle.artifacts("tries", attempt=k))["why"] for k in (1, 2, 3)] == [
                f"attempt {k}" for k in (1, 2, 3)
            ]
            assert [point.value for point in await handle.metrics("tries")] == [1.0, 2.0, 3.0]
            check_said((await says.result()).steps["in_process"], these.MANY)

    in_loop(body)


def _all(*files: Path) -> Callable[[], Any]:
    async def there() -> bool:
        # What is written to is there a moment before.
        return all(file.exists() and (file.name not in {"thread", "loop"} or file.read_text()) for file in files)

    return there
