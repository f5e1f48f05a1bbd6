"""What is urgent begins first, from the first launch of a queue on: a real controller and worker, on virtual time."""

from __future__ import annotations

import anyio

from evpipe import Mutex, Pipeline, Worker
from tests.controller.test_limits import Witness, body, hosted, one, play, seen

__all__ = ["seen"]

SLOTS = 2
#: Launches that something urgent may find in the queue: one for each slot, and half as many.
AHEAD = SLOTS + SLOTS // 2


def many(queue: str = "default") -> Pipeline:
    """A run of one step after which something urgent follows, behind many that can wait."""
    made = Pipeline("many")
    for i in range(40):
        slow = body.options(priority=8, queue=queue)
        made.step(f"lo{i}", slow, args={"name": f"lo{i}", "takes_s": 1.0})
    first = made.step("first", body.options(queue=queue), args={"name": "first", "takes_s": 1.0})
    urgent = body.options(priority=1, queue=queue)
    for i in range(10):
        made.step(f"hi{i}", urgent, args={"name": f"hi{i}", "takes_s": 1.0}, after=[first])
    return made


def before(seen: Witness, name: str) -> list[str]:
    """Give which of those that can wait had begun earlier than the body of this name."""
    return [other for other, at in seen.began_at.items() if other.startswith("lo") and at < seen.began_at[name]]


def test_an_urgent_step_of_a_run_that_has_just_begun_does_not_wait_for_the_rest_of_it(seen: Witness) -> None:
    """Nothing has ever been launched for the queue: what workers it has is found out before it is filled."""

    async def main() -> None:
        async with hosted(slots=SLOTS) as (client, _):
            assert (await (await client.submit(many())).result()).status == "succeeded"

    play(main)
    assert len(before(seen, "first")) <= AHEAD
    assert max(len(before(seen, f"hi{i}")) for i in range(10)) <= 2 * AHEAD, "and none between them"


def test_an_urgent_run_does_not_wait_for_one_that_has_just_begun(seen: Witness) -> None:
    async def main() -> None:
        async with hosted(slots=SLOTS) as (client, _):
            handle = await client.submit(many())
            urgent = await client.submit(one("urgent", priority=0))
            for each in (handle, urgent):
                assert (await each.result()).status == "succeeded"

    play(main)
    assert len(before(seen, "urgent")) <= AHEAD


def test_a_queue_that_is_new_does_not_wait_for_the_next_look(seen: Witness) -> None:
    """All slots of its worker are busy at once, also where others were looked at just before."""

    async def main() -> None:
        async with hosted(slots=8) as (client, stack):
            await stack.enter_async_context(Worker(client, ["other"], slots=8))
            await client.submit(one("a"))
            await anyio.sleep(0.5)
            assert (await (await client.submit(many("other"))).result()).status == "succeeded"

    play(main)
    moments = [round(moment, 3) for (moment,) in seen.began_at.values()]
    assert moments[:10] == [0.0, *[0.5] * 8, 1.5]


def test_a_queue_is_looked_at_also_if_its_first_launch_has_to_wait_for_a_mutex(seen: Witness) -> None:
    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            await client.submit(one("a", Mutex("db")))
            await anyio.sleep(0.5)
            assert (await (await client.submit(many())).result()).status == "succeeded"

    play(main)
    moments = [round(moment, 3) for (moment,) in seen.began_at.values()]
    assert moments[:9] == [0.0, *[0.5] * 7, 1.0]
