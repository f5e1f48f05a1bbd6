"""What a client reads of the output of a run's steps, on every bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest

from evpipe import Client, NotFound, UsageError, pipeline, step
from evpipe.client.handle import AnyRunHandle
from evpipe.client.logs import LogEntry, steps_of_run
from evpipe.core.events import Finished
from evpipe.core.states import RunStatus
from evpipe.wire.messages import encode_event
from evpipe.wire.telemetry import LogBatch, LogLine, encode_log
from tests.bus.test_telemetry import until_told
from tests.support.contract import contract
from tests.support.logs import captured_logs
from tests.support.worlds import World, until


@step
def load() -> int:
    return 1


@step
def fit(rows: int) -> int:
    return rows


@pipeline
def churn() -> int:
    return fit(load())


class Stage:
    """A run that nobody executes: the test tells what its steps write, and ends it."""

    def __init__(self, world: World, client: Client, run: AnyRunHandle) -> None:
        self.world = world
        self.client = client
        self.run = run

    def tell(
        self,
        *texts: str,
        step: str = "load",
        attempt: int = 1,
        stream: str = "stdout",
        at_s: float = 1.0,
        left: int = 0,
    ) -> None:
        lines = tuple(LogLine(at_s, stream, text) for text in texts)
        subject = self.world.subjects.telemetry(self.run.id, step, attempt)
        self.client.bus.telemetry.tell(subject, encode_log(LogBatch(lines=lines, left_out=left)))

    async def finish(self) -> None:
        _, kind, payload = encode_event(Finished(status=RunStatus.SUCCEEDED))
        await self.client.bus.append_wait(self.world.subjects.event("churn", self.run.id, None, kind), payload)

    async def there(self, step: str | None = None, attempt: int | None = None) -> list[LogEntry]:
        return [entry async for entry in self.run.logs(step, attempt=attempt, follow=False)]

    @asynccontextmanager
    async def following(self) -> AsyncIterator[tuple[list[LogEntry], anyio.Event]]:
        entries: list[LogEntry] = []
        ended = anyio.Event()

        async def read() -> None:
            async for entry in self.run.logs():
                entries.append(entry)  # noqa: PERF401 - one by one, for whoever looks meanwhile
            ended.set()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(read)
            yield entries, ended
            task_group.cancel_scope.cancel()


async def staged(world: World) -> Stage:
    client = Client(bus=await world.bus())
    return Stage(world, client, await client.submit(churn))


def texts(entries: list[LogEntry]) -> list[str]:
    return [entry.text for entry in entries]


@contract
async def test_what_there_is_comes_with_its_step_attempt_stream_and_time(world: World) -> None:
    stage = await staged(world)
    assert await stage.there() == []
    stage.tell("one", "two", at_s=1.5)
    stage.tell("three", step="fit", attempt=2, stream="stderr", at_s=2.0)
    await until_told(stage.client.bus, 2)
    assert await stage.there() == [
        LogEntry(at_s=1.5, step="load", attempt=1, stream="stdout", text="one"),
        LogEntry(at_s=1.5, step="load", attempt=1, stream="stdout", text="two"),
        LogEntry(at_s=2.0, step="fit", attempt=2, stream="stderr", text="three"),
    ]
    assert (await stage.there())[2].at == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert texts(await stage.there("load")) == ["one", "two"]
    assert texts(await stage.there(attempt=2)) == ["three"]
    assert texts(await stage.there("load", 2)) == []
    assert await steps_of_run(stage.client.bus, stage.run.id) == ("load", "fit")


@contract
async def test_following_ends_with_the_run_and_misses_nothing_told_before(world: World) -> None:
    """Lines come as they are told; those told just before the end come before it, too."""
    stage = await staged(world)
    stage.tell("early")
    async with stage.following() as (entries, ended):
        await until(lambda: texts(entries) == ["early"])
        for i in range(20):
            stage.tell(str(i))
            await until(lambda: len(entries) == i + 2)  # noqa: B023
        assert not ended.is_set()
        for i in range(20, 200):
            stage.tell(str(i))
        await stage.finish()
        await until(ended.is_set)
        assert texts(entries) == ["early", *map(str, range(200))]
    async with stage.following() as (again, ended):
        await until(ended.is_set)
        assert again == entries, "of a run that has ended it is all that is kept"


@contract
async def test_following_goes_on_across_a_reconnect_and_what_is_no_end(world: World) -> None:
    """A lost connection is waited for; an end that cannot be read, or of another pipeline, is none."""
    stage = await staged(world)
    prefix = world.subjects.event("churn", stage.run.id, None, "finished")
    async with stage.following() as (entries, ended):
        stage.tell("one")
        await until(lambda: len(entries) == 1)
        await world.publish(prefix, b"nonsense")
        await world.publish(prefix.replace(".churn.", ".another."), encode_event(Finished(status=RunStatus.FAILED))[2])
        await world.blink(stage.client.bus)
        stage.tell("two")
        await until(lambda: texts(entries) == ["one", "two"])
        assert not ended.is_set()
        await stage.finish()
        await until(ended.is_set)


@contract
async def test_what_was_left_out_is_an_entry_before_the_lines(world: World) -> None:
    stage = await staged(world)
    stage.tell("x", left=1234, at_s=5.0)
    stage.tell(left=1)
    await until_told(stage.client.bus, 2)
    found = await stage.there()
    assert [(entry.stream, entry.text) for entry in found] == [
        ("evpipe", "… 1,234 lines left out"),
        ("stdout", "x"),
        ("evpipe", "… 1 line left out"),
    ]
    assert found[0].at_s == 5.0
    assert found[2].at_s > 1_000_000_000, "the stream's own time, where there is no line"


@contract
async def test_garbage_is_skipped_and_logged(world: World) -> None:
    """Payloads that are no lines and subjects that are none of the protocol's: the rest comes."""
    stage = await staged(world)
    subjects, run = world.subjects, stage.run.id
    stage.tell("one")
    await until_told(stage.client.bus, 1)
    garbage = (b"", b"\xff\xfe", b"\x81\xa1v\x02", b"\x82\xa1v\x01\xa5lines\x91\x01", b"\x93" * 500)
    for payload in garbage:
        await world.publish(subjects.telemetry(run, "load", 1), payload)
    stage.tell("two")
    await until_told(stage.client.bus, 2 + len(garbage))
    for subject in (f"{run}.load.one.log", f"{run}.$.1.log", f"{run}.load.01.log", "x", f"{run}.a.b.c.d.log"):
        await world.publish(f"{subjects.prefix}.telemetry.{subject}", encode_log(LogBatch(lines=())))
    stage.tell("three")
    await until_told(stage.client.bus, 8 + len(garbage))
    with captured_logs() as logs:
        assert texts(await stage.there()) == ["one", "two", "three"]
    warned = [entry for entry in logs if entry["event"] == "output_unreadable"]
    assert len(warned) == len(garbage) + 3
    assert {entry["log_level"] for entry in warned} == {"warning"}


@contract
async def test_a_step_that_the_run_does_not_have_is_said_with_the_nearest(world: World) -> None:
    stage = await staged(world)
    with pytest.raises(NotFound, match=rf"^run {stage.run.id} has no step 'laod'; did you mean 'load'\?$"):
        await stage.there("laod")
    with pytest.raises(UsageError, match=r"^step name 'a\.b' is not allowed: "):
        await stage.there("a.b")
    for attempt in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match=rf"^attempt is {attempt}, it must be a whole number from 1$"):
            await stage.there("load", attempt)  # type: ignore[arg-type]


@contract
async def test_a_follower_that_leaves_early_leaves_nothing_behind(world: World) -> None:
    """As with a loop that is left at the first line."""
    stage = await staged(world)
    stage.tell("one", "two")
    async with aclosing(stage.run.logs()) as entries:  # type: ignore[type-var]  # it is a generator
        async for entry in entries:
            assert entry.text == "one"
            break
    await stage.finish()
