"""Elements of mapped steps, with what else a step may have: limits, the cache."""

from __future__ import annotations

import anyio
import pytest

from evpipe import Client, Controller, Mutex, Pipeline, pipeline, run, step
from evpipe.client import lists
from tests.controller.test_limits import Witness, body, hosted, play, seen

__all__ = ["seen"]

#: Elements of a list that is stored beside the log.
COUNT = 100


@step
async def many(name: str) -> list[str]:
    return [f"{i}{name * 1_000}" for i in range(COUNT)]


@step
async def join(a: str, b: str, c: str) -> str:
    return "".join(text.rstrip("abc") for text in (a, b, c))


def two(**options: object) -> Pipeline:
    """A run of a step with two elements."""
    made = Pipeline("two")
    made.map("s", body.options(**options), args={"name": ["a", "b"], "takes_s": 1.0})  # type: ignore[arg-type]
    return made


def test_who_takes_over_leaves_the_mutex_to_the_elements(seen: Witness) -> None:
    """The step that is mapped runs, and holds nothing."""

    async def main() -> None:
        async with hosted(slots=2, controller=False) as (client, stack):
            async with Controller(client):
                handle = await client.submit(two(limits=Mutex("db")))
                await anyio.sleep(0.5)
            await stack.enter_async_context(Controller(client))
            with anyio.fail_after(30):
                assert (await handle.result()).status == "succeeded"
        assert seen.began_at["b"][0] >= seen.ended_at["a"][0]

    play(main)


@step
async def passed(x: int) -> int:
    await anyio.sleep(0.05)
    return x


def test_elements_come_to_the_end_of_their_chains_while_others_wait_for_their_turn() -> None:
    """Of a map that is larger than its window: no stage of it is run for all before the next begins."""
    made = Pipeline("chains")
    given = [*range(300)]
    last = made.map("c", passed, x=made.map("b", passed, x=made.map("a", passed, x=given)))
    made.output(last)

    async def main() -> None:
        async with hosted(slots=2) as (client, _):
            result = await (await client.submit(made)).result()
            assert result.value == given
            ended = sorted(
                (element.ended_at, name)
                for name in "abc"
                for element in result.steps[name].elements
                if element.ended_at
            )
            order = [name for _, name in ended]
            assert order.index("c") < 30, "the first chain is through"
            assert order[:450].count("c") > 120, "and half of them half-way"

    play(main)


@step
async def same(x: int) -> int:
    return x


def test_debug_mode_calls_the_chain_of_an_element_to_its_end_first() -> None:
    made = Pipeline("chains")
    made.output(made.map("c", same, x=made.map("b", same, x=made.map("a", same, x=[*range(3)]))))
    result = run(made, mode="debug")
    ended = sorted((found.ended_at, name) for name, found in result.steps.items() if "[" in name and found.ended_at)
    assert [name for _, name in ended] == [f"{stage}[{i}]" for i in range(3) for stage in "abc"]


@pipeline
def chain(x: int) -> int:
    return passed.options(name="b")(passed.options(name="a")(x))


def test_runs_of_a_map_come_to_their_end_while_others_wait_and_are_no_crowd() -> None:
    made = Pipeline("chains")
    made.map("chain", chain, x=[*range(100)])
    small = Pipeline("small")
    small.step("s", passed, x=small.step("r", passed, x=small.step("q", passed, x=1)))

    async def main() -> None:
        async with hosted(slots=2) as (client, _):
            handle = await client.submit(made)
            await anyio.sleep(0.5)
            began_at = anyio.current_time()
            await (await client.submit(small)).result()
            assert anyio.current_time() - began_at < 1, "it has its turns beside all of them together"
            await handle.result()
            runs = (await handle.below()).values()
            order = [
                name for _, name in sorted((run.steps[name].ended_at_s or 0.0, name) for run in runs for name in "ab")
            ]
            assert order.index("b") < 10, "the first is through"
            assert order[:100].count("b") > 40, "and half of them half-way"

    play(main)


def test_the_cache_knows_elements_by_the_step_that_is_mapped(seen: Witness) -> None:
    async def statuses(client: Client, refresh: tuple[str, ...] = ()) -> list[str]:
        result = await (await client.submit(two(cache=True), refresh=refresh)).result()
        return [element.status for element in result.steps["s"].elements]

    async def main() -> None:
        async with hosted(slots=2) as (client, _):
            assert await statuses(client) == ["succeeded"] * 2
            again = await (await client.submit(two(cache=True))).result()
            origin = again.steps["s[1]"].cached_from
            assert origin is not None
            assert origin.step == "s[1]"
            assert await statuses(client, refresh=("s",)) == ["succeeded"] * 2
            refreshed = await client.submit(two(cache=True), refresh=["s"])
            await refreshed.result()
            assert (await client.cache.explain(refreshed.id, "s[1]")).short == "refreshed"
            assert {found.step for found in await client.cache.results(step="s")} == {"s[0]", "s[1]"}
            assert [found.step for found in await client.cache.results(step="s[1]")] == ["s[1]"]
            assert await client.cache.clear(step="s") == 2
            assert await statuses(client) == ["succeeded"] * 2

    play(main)


def test_lists_that_are_not_open_together_are_opened_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all modes: an element takes what it needs of one, which may be closed for the next."""
    monkeypatch.setattr(lists, "OPEN_BYTES_MAX", 70_000)
    made = Pipeline("joined")
    texts = [made.step(name, many, name=name) for name in ("a", "b", "c")]
    made.output(made.map("joined", join, a=texts[0], b=texts[1], c=texts[2]))
    expected = [f"{i}{i}{i}" for i in range(COUNT)]

    async def main() -> None:
        async with hosted(slots=8) as (client, _):
            # The lists are opened by threads, which take none of the virtual clock's time: it may run far ahead.
            assert (await (await client.submit(made)).result()).value == expected

    play(main)
    assert run(made, mode="debug").value == expected
