"""Small pipelines, one for each thing that a pipeline can say, for `test_modes`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, TypedDict

from evpipe import Mutex, Rate, Retry, Semaphore, pipeline, step
from tests.e2e.helpers import pass_by

#: Counts attempts, by a word that each run has to itself. Every mode runs its steps in this process.
attempts: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


class Fit(TypedDict):
    model: dict[str, list[int]]
    score: float


class Split(NamedTuple):
    train: list[int]
    test: list[int]


class Rude(Exception):
    def __str__(self) -> str:
        raise ValueError("no text of mine")


@step
def number(x: int) -> int:
    return x


@step
def double(x: int) -> int:
    return 2 * x


@step
async def increase(x: int) -> int:
    return x + 1


@step
def add_up(xs: list[int | None]) -> int:
    return sum(x or 0 for x in xs)


@step
def split(xs: list[int]) -> Split:
    return Split(xs[:-1], xs[-1:])


@step
def fit(xs: list[int]) -> Fit:
    return {"model": {"weights": xs}, "score": len(xs) / 2}


@step(outputs=("low", "high"))
def bounds(xs: list[int]) -> tuple[int, int]:
    return min(xs), max(xs)


@step
def append(xs: list[int], x: int) -> list[int]:
    xs.append(x)
    return xs


@step
def fail(message: str) -> int:
    raise KeyError(message)


@step
def anything(x: Any) -> Any:
    return x


@step
def unencodable() -> Any:
    return {"ok": 1, "bad": [object()]}


@step
def wrong_outputs() -> Fit:
    return {"model": {}}  # type: ignore[typeddict-item]  # what the test is about


@step
def leave() -> NoReturn:
    raise SystemExit(3)


@step
def be_rude() -> NoReturn:
    raise Rude


@step
def talk_a_lot() -> NoReturn:
    raise ValueError("word " * 200_000)


@step
def surrogate() -> NoReturn:
    raise ValueError("bad name \udcff")


@step(retries=Retry(3, delay_s=0.01, jitter=0, on=(OSError,)))
def flaky(word: str, fails: int, kind: str) -> int:
    attempt = next(attempts[word])
    if attempt <= fails:
        raise {"reset": ConnectionResetError, "key": KeyError}[kind](f"attempt {attempt}")
    return attempt


@step(timeout_s=0.1, retries=Retry(1, delay_s=0))
def too_slow() -> int:
    pass_by(0.3)
    return 1


@step
def slow(x: int) -> int:
    pass_by(0.4)
    return x


@step
def hang(x: int) -> int:
    """Goes on until it is killed, however long that takes where much else goes on."""
    pass_by(600)
    return x


@pipeline
def chain() -> int:
    return double(increase(double(number(1))))


@pipeline
def fan() -> int:
    return add_up([double(number(i)) for i in range(5)])


@pipeline
def diamond() -> dict[str, Any]:
    top = number(5)
    left, right = double(top), increase(top)
    return {"sum": add_up([left, right]), "parts": (left, right), "constant": None}


@pipeline
def nested() -> dict[str, Any]:
    train, test = split([1, 2, 3])
    fitted = fit(train)
    bound = bounds(train)
    return {
        "score": fitted["score"],
        "second": fitted["model"]["weights"][1],
        "high": bound["high"],  # type: ignore[call-overload]  # named by outputs=, which no type checker reads
        "low": bound[0],
        "test": test[0],
        "split": split([7, 8]),
        "whole": [fitted, bound],
    }


@pipeline
def no_shared_arguments() -> list[list[int]]:
    xs = append([], 1)
    return [append(xs, 2), append(xs, 3), xs]


@pipeline
def failure_fails() -> int:
    bad = fail("x")
    return add_up([double(bad), number(2)])


@pipeline
def failure_skips() -> list[Any]:
    bad = fail.options(on_failure="skip")("x")
    return [bad, double(bad), number(2)]


@pipeline
def failure_continues() -> int:
    bad = fail.options(on_failure="continue")("x")
    return add_up([bad, number(2)])


@pipeline
def retried(word: str, fails: int, kind: str = "reset") -> int:
    return double(flaky(word, fails, kind))


@pipeline
def times_out() -> int:
    return double(too_slow())


@pipeline(fail_fast=True)
def fails_fast() -> int:
    bad = fail("x")
    return add_up([bad, double(hang.options(name="slow")(1))])


@pipeline(deadline_s=0.2)
def misses_deadline() -> int:
    return double(slow(1))


@pipeline
def empty() -> dict[str, int]:
    return {"constant": 3}


@pipeline
def output_missing() -> Any:
    return anything({"a": 1})["b"]


@pipeline
def argument_missing() -> Any:
    return anything(anything([1, 2])[5])


@pipeline
def returns_object() -> Any:
    return anything(unencodable())


@pipeline
def returns_too_little() -> Any:
    return wrong_outputs()["model"]


@pipeline
def exits() -> Any:
    return leave()


@pipeline
def rude() -> Any:
    return be_rude()


@pipeline
def talkative() -> Any:
    return talk_a_lot()


@pipeline
def surrogates() -> Any:
    return surrogate()


@pipeline
def after_without_data() -> int:
    late = number.options(name="late", after=["early"])(1)
    number.options(name="early")(2)
    return late


@pipeline(priority=3)
def limited() -> int:
    several = (Mutex("one"), Semaphore("two", 2), Rate("many", 100, 1.0))
    numbers: list[int | None] = [number.options(limits=several[i:], priority=i)(i) for i in range(4)]
    return add_up(numbers)
