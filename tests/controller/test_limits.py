"""Mutexes, semaphores, rates and limits of queues with a real controller and worker, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from evpipe import Client, Controller, Mutex, Pipeline, Rate, Retry, Semaphore, Worker, step
from evpipe.bus.memory import MemoryBus
from evpipe.client.handle import RunHandle
from evpipe.sdk.limits import Limit
from evpipe.wire.holds import BUCKET, Hold, Holder, HoldKind, encode_holders
from tests.controller.test_lease import on_virtual_time
from tests.support.worlds import until

Lines = list[tuple[float, str]]


@dataclass(slots=True)
class Witness:
    """What the bodies do, and when they began and ended."""

    began_at: dict[str, list[float]] = field(default_factory=dict)
    ended_at: dict[str, list[float]] = field(default_factory=dict)
    #: Bodies that fail so often.
    failures: dict[str, int] = field(default_factory=dict)
    #: Bodies that take so long to end when they are cancelled.
    stubborn_s: dict[str, float] = field(default_factory=dict)


witness: list[Witness] = []


@pytest.fixture(autouse=True)
def seen() -> Iterator[Witness]:
    witness.append(Witness())
    yield witness[-1]
    witness.pop()


@step
async def body(name: str, takes_s: float) -> str:
    now = witness[-1]
    now.began_at.setdefault(name, []).append(anyio.current_time())
    try:
        await anyio.sleep(takes_s)
    finally:
        if name in now.stubborn_s:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(now.stubborn_s[name])
        now.ended_at.setdefault(name, []).append(anyio.current_time())
    if len(now.ended_at[name]) <= now.failures.get(name, 0):
        raise ValueError(name)
    return name


def one(
    name: str,
    limits: Limit | tuple[Limit, ...] = (),
    *,
    takes_s: float = 1.0,
    retries: int | Retry = 0,
    priority: int | None = None,
    queue: str = "default",
) -> Pipeline:
    """A run of one step."""
    made = Pipeline("one")
    options = {"limits": limits, "retries": retries, "priority": priority, "queue": queue}
    made.step("s", body.options(**options), args={"name": name, "takes_s": takes_s})  # type: ignore[arg-type]
    return made


@asynccontextmanager
async def hosted(*, slots: int = 0, controller: bool = True) -> AsyncIterator[tuple[Client, AsyncExitStack]]:
    """A client with a controller, and a worker if it has slots; more may be entered into the stack."""
    async with MemoryBus() as bus, AsyncExitStack() as stack:
        client = Client(bus=bus)
        if controller:
            await stack.enter_async_context(Controller(client))
        if slots:
            await stack.enter_async_context(Worker(client, slots=slots))
        yield client, stack


async def until_held(client: Client, handle: RunHandle[object], name: str = "s") -> Hold:
    with anyio.fail_after(30):
        while True:
            hold = await client.holds(handle.id, name)
            if hold is not None:
                return hold


def play(main: Callable[[], Awaitable[None]]) -> None:
    on_virtual_time(main)


def test_who_takes_over_finds_who_holds_what(seen: Witness) -> None:
    """A launch that lies in the queue, and of which nothing is in the log, holds its mutex all the same."""

    async def main() -> None:
        async with hosted(controller=False) as (client, stack):
            async with Controller(client):
                first = await client.submit(one("first", Mutex("db")))
                await anyio.sleep(1)
            # It is adopted first, and its launch has not left.
            second = await client.submit(one("second", Mutex("db")))
            await stack.enter_async_context(Controller(client))
            hold = await until_held(client, second)
            assert (hold.kind, hold.name, hold.holders) == (HoldKind.SEMAPHORE, "db", ((first.id, "s"),))
            assert str(hold) == f"the mutex 'db' is held by step s of run {first.id}"
            await stack.enter_async_context(Worker(client, slots=4))
            await first.result()
            await second.result()
        assert seen.began_at["second"][0] >= seen.ended_at["first"][0]

    play(main)


@pytest.mark.parametrize("entry", [encode_holders([Holder("nobody00", "s", 1, 1)]), b"garbage", b""])
def test_what_an_entry_says_is_not_believed_against_the_log(entry: bytes, seen: Witness) -> None:
    """A holder whose run never was, or an entry that is none."""

    async def main() -> None:
        async with hosted(slots=1) as (client, _):
            await client.bus.bucket(BUCKET).put("semaphore.db", entry)
            handle = await client.submit(one("a", Mutex("db"), takes_s=0))
            with anyio.fail_after(5):
                assert (await handle.result()).status == "succeeded"

    play(main)


def test_a_mutex_is_kept_until_the_body_of_a_cancelled_step_has_ended(seen: Witness) -> None:
    seen.stubborn_s["first"] = 7.0

    async def main() -> None:
        async with hosted(slots=4) as (client, _):
            first = await client.submit(one("first", Mutex("db"), takes_s=100))
            await anyio.sleep(1)
            second = await client.submit(one("second", Mutex("db")))
            await first.cancel()
            assert (await first.result()).status == "cancelled"
            assert (await second.result()).status == "succeeded"
        assert seen.ended_at["first"] == [pytest.approx(8, abs=0.1)]
        # Nobody answers for it for a second: nobody runs it.
        assert 8 <= seen.began_at["second"][0] < 11

    play(main)


def test_while_a_step_waits_to_be_tried_again_it_holds_nothing(seen: Witness) -> None:
    seen.failures["first"] = 1

    async def main() -> None:
        async with hosted(slots=4) as (client, _):
            mutex = Mutex("db")
            retries = Retry(1, delay_s=50, jitter=0)
            first = await client.submit(one("first", mutex, retries=retries))
            await anyio.sleep(0.5)
            second = await client.submit(one("second", mutex, takes_s=100))
            assert (await first.result()).status == "succeeded"
            assert (await second.result()).status == "succeeded"
        assert seen.began_at["first"] == [0, pytest.approx(101, abs=0.2)], "not before the second has ended"
        assert seen.began_at["second"] == [pytest.approx(1, abs=0.1)]

    play(main)


def test_who_waits_is_served_by_priority_then_in_turn(seen: Witness) -> None:
    async def main() -> None:
        async with hosted(slots=4) as (client, _):
            handles = []
            for name, priority in (("a", None), ("b", None), ("c", 7), ("d", None), ("e", 0)):
                handles.append(await client.submit(one(name, Mutex("db"), priority=priority)))
                await anyio.sleep(0.01)
            for handle in handles:
                assert (await handle.result()).status == "succeeded"
        assert sorted(seen.began_at, key=lambda name: seen.began_at[name]) == ["a", "e", "b", "d", "c"]

    play(main)


def test_of_different_counts_for_one_name_the_smallest_of_those_together_counts(seen: Witness) -> None:
    """Three may share it, but not with one that wants it alone, whoever comes first."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            handles = [await client.submit(one(name, Semaphore("db", 3))) for name in ("a", "b")]
            await anyio.sleep(0.5)
            handles.append(await client.submit(one("alone", Mutex("db"))))
            await anyio.sleep(0.1)
            handles += [await client.submit(one(name, Semaphore("db", 3))) for name in ("c", "d", "e", "f")]
            for handle in handles:
                await handle.result()
        began = {name: round(moments[0]) for name, moments in seen.began_at.items()}
        assert began == {"a": 0, "b": 0, "alone": 1, "c": 2, "d": 2, "e": 2, "f": 3}

    play(main)


def test_several_limits_are_taken_together_or_not_at_all(seen: Witness) -> None:
    """Who waits for one of two does not keep the other from those who need only that."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            a, b = Mutex("a"), Mutex("b")
            names: dict[str, tuple[Limit, ...]] = {"a1": (a,), "ab": (a, b), "b1": (b,), "ba": (b, a)}
            handles = []
            for name, limits in names.items():
                handles.append(await client.submit(one(name, limits, takes_s=2)))
                await anyio.sleep(0.1)
            for handle in handles:
                assert (await handle.result()).status == "succeeded"
        assert seen.began_at["b1"][0] < 1, "ab waits for a and does not sit on b"
        for name, other in (("ab", "a1"), ("ab", "b1"), ("ba", "ab")):
            assert seen.began_at[name][0] >= seen.ended_at[other][0]

    play(main)


def test_a_rate_holds_for_every_stretch_of_its_time(seen: Witness) -> None:
    async def main() -> None:
        async with hosted(slots=20) as (client, _):
            rate = Rate("api", count=3, per_s=10)
            handles = [await client.submit(one(f"s{i}", rate, takes_s=0)) for i in range(7)]
            hold = await until_held(client, handles[6])
            assert (hold.kind, hold.name, hold.count) == (HoldKind.RATE, "api", 3)
            assert hold.until_s is not None
            for handle in handles:
                await handle.result()
        moments = sorted(round(moment) for found in seen.began_at.values() for moment in found)
        assert moments == [0, 0, 0, 10, 10, 10, 20]

    play(main)


def test_a_queue_takes_no_more_at_a_time_than_its_limit(seen: Witness) -> None:
    """Whatever slots its workers have; and as soon as it is taken away, more."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            await client.limit_queue("default", 2)
            handles = [await client.submit(one(f"s{i}", takes_s=10)) for i in range(40)]
            await anyio.sleep(5)
            assert len(seen.began_at) == 2
            hold = await until_held(client, handles[39])
            assert (hold.kind, hold.count) == (HoldKind.QUEUE, 2)
            assert [(queue.name, queue.taken, queue.limit) for queue in await client.queues()] == [("default", 2, 2)]
            await client.limit_queue("default", None)
            await anyio.sleep(3)
            assert len(seen.began_at) == 8
            hold = await until_held(client, handles[39])
            assert hold.kind is HoldKind.WINDOW
            assert hold.under_way == 12
            for handle in handles:
                await handle.result()
            assert await client.holds(handles[0].id, "s", timeout_s=0.1) is None

    play(main)


def test_launches_that_somebody_removed_from_the_queue_hold_up_no_others(seen: Witness) -> None:
    async def main() -> None:
        async with hosted() as (client, stack):
            bus = client.bus
            assert isinstance(bus, MemoryBus)
            worker = Worker(client, slots=1)
            async with worker:
                pass  # Its queue is there now, and served by nobody.
            lost = [await client.submit(one(f"lost{i}")) for i in range(60)]
            await until_held(client, lost[59])
            await anyio.sleep(1)
            bus.server.remove(lambda _: True)
            other = await client.submit(one("other"))
            await stack.enter_async_context(Worker(client, slots=1))
            with anyio.fail_after(100):
                assert (await other.result()).status == "succeeded"

    play(main)


def test_a_small_run_is_not_behind_a_large_one(seen: Witness) -> None:
    """All slots are busy with a run of very many short steps; a chain of three ends after some hundred of them."""

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            large = Pipeline("large")
            for i in range(1_500):
                large.step(f"s{i}", body, args={"name": "large", "takes_s": 0.01})
            running = await client.submit(large)
            await until(lambda: len(seen.ended_at.get("large", ())) >= 300)
            before = len(seen.ended_at["large"])
            small = Pipeline("small")
            for i in range(3):
                small.step(f"s{i}", body, args={"name": "small", "takes_s": 0.01}, after=[f"s{i - 1}"] if i else [])
            assert (await (await client.submit(small)).result()).status == "succeeded"
            between = len(seen.ended_at["large"]) - before
            # What may be on its way before each step of it: a launch for each slot, and what ends in 0.1 s.
            assert between < 3 * (8 + 80 + 8) + 50
            await running.cancel()

    play(main)
