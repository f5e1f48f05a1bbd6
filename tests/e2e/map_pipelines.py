"""Pipelines that map: lists that are known now, or only at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import anyio

from evpipe import Pipeline, Retry, pipeline, step, unmapped


class Fit(TypedDict):
    name: str
    score: int


class Point(NamedTuple):
    x: int
    y: int


@step(executor="thread")
def numbers(count: int) -> list[int]:
    return list(range(count))


@step(executor="thread")
def large(count: int) -> list[str]:
    return [f"{i:06d}" * 100 for i in range(count)]


@step(executor="thread")
def add(a: int, b: int = 1) -> int:
    return a + b


@step(executor="thread")
def odd_fails(number: int) -> int:
    if number % 2:
        message = f"{number} is odd"
        raise ValueError(message)
    return number


@step(executor="thread")
def total(values: Sequence[int | None]) -> int:
    return sum(value or 0 for value in values)


@step(executor="thread")
def fit(name: str, score: int) -> Fit:
    return {"name": name, "score": score}


@step(executor="thread")
def joined(*parts: Any, **named: Any) -> str:
    return "-".join([*map(str, parts), *(f"{key}={value}" for key, value in named.items())])


@step(executor="thread")
def length(text: Any) -> int:
    return len(text)


@step(executor="thread")
def halves(number: int) -> list[int]:
    return [number, number + 10]


@step(executor="thread")
def same(value: Any) -> Any:
    return value


@pipeline
def known_now() -> Any:
    found = add.map([1, 2, 3], b=(10, 20, 30))
    return {"all": found, "first": found[0], "last": found[-1], "sum": total(found)}


@pipeline
def known_later(count: int = 3) -> Any:
    return total(add.map(numbers(count)))


@pipeline
def second_order() -> Any:
    return add.map(add.map(same([1, 2, 3]), b=0), b=10)


@pipeline
def none_at_all() -> Any:
    one = add.map(numbers(0))
    return {"sum": total(add.map(one)), "list": one, "now": add.map([])}


@pipeline
def named_parts() -> Any:
    fits = fit.map(["a", "b"], score=[1, 2])
    return {"scores": fits["score"], "sum": total(fits["score"]), "more": add.map(fits["score"]), "b": fits[1]["name"]}


@pipeline
def constants() -> Any:
    """A text, a dict, a NamedTuple and what is unmapped are the same for every element."""
    return joined.map([1, 2], "xy", {"k": 1}, unmapped([7, 8]), Point(3, 4), key=range(2), also=unmapped(same([5])))


@pipeline
def every_combination() -> Any:
    return joined.map(["a", "b"], same([1, 2, 3]), product=True)


@pipeline
def lists_of_lists() -> Any:
    inner = halves.map(numbers(2))
    found = add.map(inner, levels=2)
    return {"all": found, "one": found[1][0], "again": add.map(found, levels=2), "sums": total.map(found)}


@pipeline
def chosen() -> Any:
    """Each element decides by itself; what it leaves out is None in the list."""
    values: Any = numbers(4)
    kept = add.options(when=values > 1).map(values, b=0)
    below = add.options(name="below").map(kept)
    return {"kept": kept, "below": below, "sum": total(kept)}


@pipeline
def one_fails() -> Any:
    bad = odd_fails.map(numbers(3))
    below = add.options(name="below").map(bad)
    return total(below)


@pipeline
def may_fail() -> Any:
    bad = odd_fails.options(on_failure="continue").map(numbers(3))
    return {"bad": bad, "sum": total(bad), "below": same.map(bad)}


@pipeline
def may_fail_and_skip() -> Any:
    bad = odd_fails.options(on_failure="skip").map(numbers(3))
    below = add.options(name="below").map(bad)
    total(bad)
    return total.options(name="told", run_if="all_done")(below)


@pipeline
def cleaned() -> Any:
    bad = odd_fails.options(on_failure="skip").map(numbers(3))
    return same.options(run_if="any_failed", name="clean").map(bad)


@pipeline
def different_lengths() -> Any:
    return add.map(numbers(2), b=numbers(3))


@pipeline
def no_list() -> Any:
    return add.map(add(1))


@pipeline
def nothing_to_map() -> Any:
    """What it would map over was not chosen."""
    values = numbers.options(when=add(0) > 5)(3)
    return add.options(run_if="all_done").map(values)


@pipeline
def stored_list() -> Any:
    """A list that is too large for the log."""
    return total(length.map(large(200)))


@step(executor="thread")
def ragged(depth: int = 0) -> Any:
    """Lists in a list that is too large for the log and is stored as one, for each of them has few bytes."""
    lists = [[f"{i}{j}" + "x" * 1_800 for j in range(i % 3)] for i in range(40)]
    return [lists] if depth else lists


@step(executor="thread")
def head(text: str) -> str:
    return text.split("x", maxsplit=1)[0]


@pipeline
def heads_of(lists: Any) -> Any:
    return head.map(lists, levels=2)


@pipeline
def stored_lists_of_lists() -> Any:
    lists: Any = ragged()
    return {
        "heads": head.map(lists, levels=2),
        "one": head.options(name="one").map(lists[5]),
        "deep": head.options(name="deep").map(ragged(1), levels=3)[0],
        "child": heads_of(lists),
        "length": length(lists[-1]),
    }


built = Pipeline("built_map")
_rows: Any = built.param("rows", list[int], default=[1, 2])
built.step("numbers", numbers, count=2)
_more = built.map("more", add, a="${numbers.result}", b=_rows, retries=1)
_each = built.map("each", add, a=_rows, b=unmapped(5), when=_rows != 1)
built.output({"more": _more, "each": _each})


@step(executor="thread", retries=Retry(1, delay_s=0))
def flaky(folder: str, number: int) -> int:
    marker = Path(folder, str(number))
    if number and not marker.exists():
        marker.touch()
        message = "not yet"
        raise ValueError(message)
    return number


@pipeline
def retried(folder: str) -> Any:
    return flaky.map(folder, numbers(3))


@step(executor="inline")
async def first(folder: str, number: int) -> int:
    """The second element waits for what comes after the first."""
    while number and not Path(folder, "0").exists():  # noqa: ASYNC110, ASYNC240 - of a file, which takes no time
        await anyio.sleep(0.01)
    return number


@step(executor="thread")
def touch(folder: str, number: int) -> None:
    Path(folder, str(number)).touch()


@pipeline
def chain(folder: str) -> Any:
    return touch.map(folder, first.map(folder, [0, 1]))


@step(executor="thread", cache=True)
def squared(number: int) -> int:
    return number * number


@pipeline
def cached(numbers: list[int]) -> Any:
    return squared.map(numbers)


@step(executor="thread")
def texts(changed: int) -> list[str]:
    return [str(i) * 1_000 + ("!" if i == changed else "") for i in range(100)]


@step(executor="thread", cache=True)
def length_of(text: str) -> int:
    return len(text)


@pipeline
def cached_of_stored(changed: int) -> Any:
    return total(length_of.map(texts(changed)))


@step(executor="inline")
async def wait(_number: int) -> list[int]:
    await anyio.sleep_forever()
    return []


@pipeline
def waits() -> Any:
    waited = wait.map([1, 2, 3])
    after = same.options(name="after").map(waited)
    same.options(name="clean", run_if="always").map([1, 2])
    return add.options(name="whole").map(numbers.options(after=[waited], name="more")(1), unmapped(after))


def watching(run: str, of: str) -> Pipeline:
    """Waits for the cancel of an element of another run."""
    p = Pipeline("watching")
    p.output(p.wait_for_event("event", run=run, step=of, kind="cancelled"))
    return p
