"""Why a step does not run, with a real controller and worker on virtual time: the sentences that users read."""

from __future__ import annotations

import re

import anyio
import pytest

from evpipe import (
    Cache,
    Cause,
    Client,
    Mutex,
    NotFound,
    Pipeline,
    Rate,
    Retry,
    Semaphore,
    Why,
    Worker,
    approval,
    pipeline,
    step,
)
from evpipe.client.handle import RunHandle
from evpipe.core.states import Reason, StepStatus
from tests.controller.test_limits import Witness, body, hosted, one, play, seen

__all__ = ["seen"]


def said(found: Why) -> list[str]:
    """Every message of a chain, each below what it explains; ids of runs that are not its own are cut."""
    return [found.message, *(f"  {line}" for inner in found.because for line in said(inner))]


async def lines(handle: RunHandle[object], name: str = "s") -> list[str]:
    return said(await handle.why(name))


def test_a_turn_and_the_slots_of_workers(seen: Witness) -> None:
    """One slot: one step runs, one launch is in the queue, and the rest have not left; by priority, runs in turn."""

    async def main() -> None:
        async with hosted(slots=1) as (client, _):
            runs: list[RunHandle[object]] = []
            for name, priority in (("a", None), ("b", None), ("c", None), ("later", 8), ("d", None)):
                runs.append(await client.submit(one(name, takes_s=10, priority=priority)))
                await anyio.sleep(0.5)
            a, b, c, later, d = runs
            assert await lines(a) == [f"runs on worker {(await client.workers())[0].id}"]
            assert await lines(b) == [
                "waits in the queue 'default' for a worker",
                f"  is in the queue 'default', and the slot of its worker is busy: step s of run {a.id}",
            ]
            busy = f"step s of run {a.id}, step s of run {b.id} are under way, which keeps its workers busy"
            assert await lines(c) == [
                "is ready, and not launched yet",
                f"  waits for its turn in the queue 'default': {busy}",
            ]
            assert (await lines(d))[1].endswith(f"{busy}; 1 with its priority, 5, or a better one goes first")
            found = await later.why("s")
            assert [found.cause, found.because[0].cause] == [Cause.QUEUED, Cause.WINDOW]
            assert said(found)[1].endswith(f"{busy}; 2 with its priority, 8, or a better one go first")

    play(main)


def test_a_worker_that_has_gone_with_an_attempt(seen: Witness) -> None:
    """Until another is there nobody finds out that the attempt is lost."""

    async def main() -> None:
        async with hosted() as (client, stack):
            async with Worker(client, slots=1):
                handle = await client.submit(one("a", takes_s=10))
                await anyio.sleep(0.5)
                assert len(await lines(handle)) == 1
            runs, gone = await lines(handle)
            assert runs.startswith("runs on worker ")
            assert gone == (
                "  nothing is heard of that worker: if it is gone, one that serves 'default' repeats the attempt, and "
                "nobody does: `evpipe worker -q default`"
            )
            await stack.enter_async_context(Worker(client, slots=1))
            assert (await lines(handle))[1].endswith("repeats the attempt")
            assert (await handle.result()).status == "succeeded"

    play(main)


def test_a_large_run_before_it_counts_for_as_many_as_have_their_turns_before(seen: Witness) -> None:
    async def main() -> None:
        async with hosted(slots=1) as (client, _):
            large = Pipeline("large")
            for i in range(50):
                large.step(f"s{i}", body, args={"name": f"s{i}", "takes_s": 10.0})
            first = await client.submit(large)
            await anyio.sleep(0.5)
            small = await client.submit(one("small"))
            await anyio.sleep(0.5)
            assert (await lines(small))[1].endswith("; 1 with its priority, 5, or a better one goes first")
            assert (await lines(first, "s49"))[1].endswith("; 48 with its priority, 5, or a better one go first")

    play(main)


def test_limits(seen: Witness) -> None:
    """Who has what it waits for, step and run, how those are, and what changes it."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            first = await client.submit(one("m1", Mutex("db"), takes_s=100))
            await anyio.sleep(0.5)
            worker = (await client.workers())[0].id
            second = await client.submit(one("m2", Mutex("db"), takes_s=100))
            await anyio.sleep(0.5)
            third = await client.submit(one("m3", Mutex("db")))
            await anyio.sleep(0.5)
            assert await lines(second) == [
                "is ready, and not launched yet",
                f"  the mutex 'db' is held by step s of run {first.id}",
                f"    runs on worker {worker}",
            ]
            assert (await lines(third))[1] == f"  the mutex 'db' is held by step s of run {first.id}; 1 waits before it"
            found = (await second.why("s")).because[0]
            assert (found.cause, found.because[0].run, found.because[0].step) == (Cause.SEMAPHORE, first.id, "s")

            shared = [await client.submit(one(f"s{i}", Semaphore("gpu", 2), takes_s=100)) for i in range(2)]
            await anyio.sleep(0.5)
            last = await client.submit(one("s2", Semaphore("gpu", 2)))
            await anyio.sleep(0.5)
            both = f"step s of run {shared[0].id}, step s of run {shared[1].id}"
            assert (await lines(last))[1] == f"  the semaphore 'gpu' of 2 is held by {both}"

            for i in range(2):
                await client.submit(one(f"r{i}", Rate("api", 2, 60), takes_s=0))
            await anyio.sleep(0.5)
            late = await client.submit(one("r2", Rate("api", 2, 60), takes_s=0))
            await anyio.sleep(0.5)
            found = await late.why("s")
            assert said(found)[1] == "  the rate 'api' lets 2 leave in any 60 s"
            assert found.because[0].cause is Cause.RATE
            assert found.because[0].due_at_s is not None
            assert found.since_s is not None
            assert found.because[0].due_at_s - found.since_s == pytest.approx(59.5, abs=0.2)

            await client.limit_queue("default", 1)
            limited = await client.submit(one("q"))
            await anyio.sleep(1)
            changes = "(`evpipe queues limit default N` changes that)"
            sentence = f"the queue 'default' is limited to 1 at a time, and 3 are under way {changes}"
            assert await lines(limited) == ["waits in the queue 'default' for a worker", f"  {sentence}"]
            await anyio.sleep(12)
            found = (await limited.why("s")).because[0]
            assert found.cause is Cause.QUEUE_LIMIT
            named = ", ".join(f"step s of run {handle.id}" for handle in (first, *shared))
            assert found.message == f"the queue 'default' is limited to 1 at a time: {named} {changes}"

    play(main)


def test_what_runs_elsewhere_waits_for_something_itself(seen: Witness) -> None:
    """The chain goes on in the other run: an equal step, whose launch waits for a mutex, whose holder runs."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            holder = await client.submit(one("holder", Mutex("db"), takes_s=100))
            await anyio.sleep(0.5)
            equal = Pipeline("equal")
            equal.step(
                "s", body.options(cache=Cache(version="x"), limits=Mutex("db")), args={"name": "e", "takes_s": 0.0}
            )
            leader = await client.submit(equal)
            await anyio.sleep(0.5)
            other = await client.submit(equal)
            await anyio.sleep(0.5)
            found = await other.why("s")
            assert [found.cause, *(link.cause for link in found.because)] == [Cause.QUEUED, Cause.SAME_RUNS]
            assert said(found) == [
                "is ready, and not launched yet",
                f"  step s of run {leader.id} computes the same result",
                "    is ready, and not launched yet",
                f"      the mutex 'db' is held by step s of run {holder.id}",
                f"        runs on worker {(await client.workers())[0].id}",
            ]

    play(main)


@step
async def numbers() -> list[int]:
    await anyio.sleep(10)
    return [1, 2, 3]


@step
async def slow(n: int) -> int:
    await anyio.sleep(n * 100)
    return n


@step
async def fails() -> int:
    message = "no"
    raise ValueError(message)


@step
async def clean() -> None:
    await anyio.sleep(1_000)


@step
async def text() -> str:
    return "x"


@pipeline
def inner(n: int) -> int:
    return slow(slow.options(name="first")(n))


@pipeline
def cleaning(n: int) -> int:
    done = slow(n)
    clean.options(run_if="always", after=[done])()
    return done


@pipeline(on_exit=[clean])
def outer() -> list[int]:
    found = numbers()
    ran = inner.map(found)
    slow.options(name="last", after=[ran])(1)
    fails.options(name="again", retries=Retry(1, delay_s=500, jitter=0), on_failure="skip")()
    approval("Now?", name="ask")
    clean.options(name="finally", run_if="always", after=["last"])()
    cleaning.options(name="cleaned")(1)
    inner.options(name="wrong", on_failure="skip")(text())  # type: ignore[arg-type]  # what is refused
    return ran


async def tree(client: Client, handle: RunHandle[object]) -> None:
    """Mapped steps, runs in runs, finalisers, handlers, a retry, an answer, what was refused; then all cancelled."""
    await anyio.sleep(5)
    assert await lines(handle, "inner[1]/first") == await lines(handle, "inner")
    assert (await lines(handle, "inner"))[0] == "waits for step 'numbers'"
    assert (await handle.why("inner[1]")).step == "inner"
    await anyio.sleep(20)
    worker = (await client.workers())[0].id
    found = await handle.why("inner[2]/slow")
    assert said(found) == ["waits for step 'first'", f"  runs on worker {worker}"]
    assert found.run == (await handle.why("inner[2]")).child != handle.id
    assert said(await handle.why("inner[2]"))[1:] == [f"  runs on worker {worker}"]
    with pytest.raises(NotFound, match=r"has no step 'inner\[3\]': 'inner' has 3 elements"):
        await handle.why("inner[3]/slow")
    with pytest.raises(
        NotFound, match=r"'inner' of run \w+ is mapped, not a run itself.* 'inner\[0\]' to 'inner\[2\]'$"
    ):
        await handle.why("inner/slow")
    assert (await lines(handle, "inner"))[0] == "3 of its 3 elements have not ended"
    assert (await lines(handle, "last"))[:2] == [
        "waits for step 'inner'",
        "  3 of its 3 elements have not ended",
    ]
    assert (await lines(handle, "finally"))[0] == "waits for step 'last'"
    assert re.match(r"begins when all other steps have ended: \d+ have not", (await lines(handle, "clean"))[0])
    found = await handle.why("again")
    assert found.message == "attempt 2 begins later, the one before failed: ValueError: no"
    assert found.due_at_s is not None
    assert (await lines(handle, "ask")) == [f"waits for an answer (bool): Now? (`evpipe runs approve {handle.id} ask`)"]
    refused = await handle.why("wrong")
    assert (refused.cause, refused.reason, refused.because[0].cause) == (Cause.FAILED, Reason.REJECTED, Cause.REJECTED)
    sentence = "was refused: parameter 'n' of pipeline 'inner' must be int, not 'x' (str)"
    assert refused.because[0].message == f"run {refused.child} {sentence}"
    assert await lines(handle, "wrong/slow") == [refused.because[0].message]
    await handle.cancel("enough")
    await anyio.sleep(5)
    by = "cancelled on request: enough"
    assert (await lines(handle, "last")) == (await lines(handle, "again")) == [by]
    assert await lines(handle, "inner[2]/slow") == [
        f"cancelled with step 'inner[2]' of run {handle.id}, which it is a part of: enough"
    ]
    found = await handle.why("cleaned")
    assert found.status is StepStatus.RUNNING
    assert found.message == f"runs as run {found.child} of pipeline 'cleaning', which is asked to end"
    assert [(link.step, link.cause) for link in found.because] == [("clean", Cause.RUNNING)]
    assert (await lines(handle, "finally")) == [f"runs on worker {worker}"]
    assert (await lines(handle, "clean"))[0] == "begins when all other steps have ended: 2 have not"
    with anyio.fail_after(3_000):
        await handle.result()
    assert await lines(handle, "clean") == ["succeeded"]


def test_in_a_tree_of_runs_and_when_that_is_cancelled() -> None:
    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            await tree(client, await client.submit(outer))

    play(main)


def test_a_run_that_was_refused() -> None:
    async def main() -> None:
        async with hosted() as (client, _):
            bus = client.bus
            handle = await client.submit(one("a"))
            submitted = await bus.last(bus.subjects.event("one", handle.id, None, "submitted"))
            assert submitted is not None
            other = bus.subjects.event("two", "abcdefghijklmnopqrst", None, "submitted")
            await bus.append_wait(other, submitted.payload, expected=0)
            found = await (await client.get_run("abcdefghijklmnopqrst")).why("s")
            assert (found.cause, found.step, found.status) == (Cause.REJECTED, "", None)
            sentence = "was refused: submitted as a run of 'two', but its graph is that of 'one'"
            assert found.message == f"run abcdefghijklmnopqrst {sentence}"

    play(main)
