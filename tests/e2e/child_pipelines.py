"""Pipelines whose steps are pipelines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from evpipe import Pipeline, Retry, approval, one_of, pipeline, step


@step
def number(of: Any = 0) -> int:
    return int(of)


@step
def text() -> str:
    return "x"


@step
def add(a: int, b: int) -> int:
    return a + b


@step
def less(n: int) -> int:
    return n - 1


@step(cache=True)
def squared(n: int) -> int:
    return n * n


@step
def fail(n: int = 0) -> int:
    message = f"no {n}"
    raise ValueError(message)


@step
def flaky(folder: str) -> int:
    """Fail once, whatever attempt of whatever run it is."""
    mark = Path(folder) / "tried"
    if not mark.exists():
        mark.touch()
        message = "once"
        raise ValueError(message)
    return 1


@step
def wait() -> int:
    time.sleep(60)
    return 0


@step
def noted(folder: str, name: str) -> str:
    (Path(folder) / name).touch()
    return name


@step
def large(n: int) -> list[int]:
    return list(range(n))


@step
def total(numbers: list[int]) -> int:
    return sum(numbers)


@step
def letters(outer: str, inner: str, *before: Any) -> str:
    return outer + inner


class Ends(NamedTuple):
    low: int
    high: int


# ---- one in another


@pipeline
def inner(n: int, more: int = 10) -> int:
    return add(number(n), more)


@pipeline
def middle(n: int) -> int:
    return add(inner(n), inner(less(n), more=1))


@pipeline
def three_deep(n: int = 5) -> int:
    """Three levels; constants and handles; a default in the middle."""
    return add(middle(number(n)), middle(2))


@pipeline
def ends(n: int) -> Ends:
    return Ends(less(n), number(n))


@pipeline
def unpacked() -> int:
    low, high = ends(number(7))
    return add(add(low, high), ends(1).low)


@pipeline
def large_inside(numbers: list[int], more: list[list[int]]) -> Any:
    return {"sum": total(numbers), "numbers": numbers, "more": more}


@pipeline
def large_values() -> Any:
    """Arguments and values that do not fit into an event."""
    found = large_inside(large(40_000), [large(30_000), large(3)])
    return {"sum": found["sum"], "again": total(found["numbers"]), "small": found["more"][1]}


@pipeline
def diamond(letter: str, *, before: Any = None) -> str:
    first = letters.options(name="A")(letter, "A", before)
    left, right = letters.options(name="B")(letter, "B", first), letters.options(name="C")(letter, "C", first)
    return letters.options(name="D")(letter, "D", left, right)


@step
def joined(a: Any, b: Any) -> str:
    return f"{a}{b}"


@pipeline
def diamond_of_diamonds() -> str:
    """A1 (d) of the scenarios: 16 tasks; nothing of the outer B and C begins before the outer A has ended."""
    a = diamond.options(name="A")("a")
    b, c = diamond.options(name="B", after=[a])("b"), diamond.options(name="C", after=[a])("c")
    return diamond.options(name="D")("d", before=joined(b, c))


@step
def up_to(n: int) -> list[int]:
    return list(range(1, n + 1))


@pipeline
def mapped() -> Any:
    """Each element is a run, and one that fails does not hold the others up."""
    found = inner.map(up_to(3))
    again = inner.options(name="again").map(found, more=1)
    bad = failing.options(on_failure="continue").map([1, 2])
    return {"found": found, "again": again, "bad": bad}


# ---- recursion


@pipeline
def fib(n: int) -> int:
    return number(n) if n < 2 else add(fib(n - 1), fib(n - 2))


@pipeline
def countdown(n: int) -> Any:
    left = less(n)
    return one_of(countdown.options(when=left > 0)(left), number.options(when=left <= 0)(left))


@pipeline
def ping(n: int) -> Any:
    left = less(n)
    return one_of(pong.options(when=left > 0)(left), number.options(when=left <= 0)(100))


@pipeline
def pong(n: int) -> Any:
    left = less(n)
    return one_of(ping.options(when=left > 0)(left), number.options(when=left <= 0)(200))


@pipeline
def bottomless(n: int) -> Any:
    return bottomless(less(n))


# ---- failures


@pipeline
def failing(n: int = 1) -> int:
    return add(fail(n), 1)


@pipeline
def failing_inside(n: int = 1) -> int:
    return add(failing(n), 1)


@pipeline
def failed_deep() -> None:
    failing_inside(number(3))
    beside = number(4)
    number.options(name="told", run_if="any_failed", after=["failing_inside"])(beside)


@pipeline
def trying(folder: str) -> int:
    return add(flaky(folder), 1)


@pipeline
def retried(folder: str) -> int:
    """A run that failed is followed by another one."""
    return add(trying.options(retries=Retry(1, on=(ValueError,)))(folder), 1)


@pipeline
def retried_in_vain() -> int:
    return add(failing.options(retries=1)(2), 1)


@pipeline
def not_of_this_kind() -> None:
    failing.options(retries=Retry(3, on=(KeyError,)))(2)


@pipeline
def allowed() -> Any:
    """What a failed run means for the rest is said as of any step."""
    bad = failing.options(on_failure="continue")(1)
    return {"bad": bad, "good": number(5)}


@pipeline
def wrong_value() -> int:
    untyped: Any = text()
    return inner(untyped)


@pipeline
def strict(n: int) -> int:
    return number(n)


@pipeline
def no_such_part() -> int:
    return strict(large(3)[7])


@pipeline
def chosen(n: int = 1) -> int:
    left = inner.options(when=number(n) > 1)(n)
    return one_of(left, number(0))


@pipeline
def cached_inside(n: int) -> int:
    return squared(n)


@pipeline
def cached_twice() -> int:
    """The second run finds what a step of the first has computed."""
    first = cached_inside(3)
    return cached_inside.options(after=[first])(3)


@pipeline
def asking(n: int) -> Any:
    return {"n": number(n), "ok": approval("go on?", name="ok")}


@pipeline
def asks_inside() -> Any:
    return asking(3)


@pipeline
def asks_in_each() -> Any:
    return asking.map([1, 2, 3])


@pipeline
def empty(n: int = 3) -> int:
    return n


@pipeline
def handed_on() -> Any:
    """A run without a step has a value, too."""
    return [empty(number(5)), empty()]


# ---- time and cancels


@pipeline
def waiting() -> int:
    return wait()


@pipeline
def cleaning(folder: str) -> int:
    waited = wait()
    noted.options(name="clean", run_if="always", after=[waited])(folder, "cleaned")
    return waited


@pipeline
def timed_out() -> None:
    waiting.options(timeout_s=0.5)()


@pipeline(deadline_s=0.5)
def too_long() -> int:
    return wait()


@pipeline
def too_long_inside() -> None:
    too_long()


@pipeline(fail_fast=True)
def fail_fast(folder: str) -> None:
    cleaning(folder)
    failing()


@pipeline
def outer_cleaning(folder: str) -> int:
    """The run of `inside` is two levels down; what comes after it begins when its finaliser has ended."""
    found = cleaning_inside(folder)
    noted.options(name="last", run_if="always", after=[found])(folder, "last")
    return found


@pipeline
def cleaning_inside(folder: str) -> int:
    return cleaning(folder)


# ---- builder


def built() -> Pipeline:
    """A pipeline that is built by calls, of steps and pipelines of both styles, and calls itself."""
    p = Pipeline("built")
    n = p.param("n", int)
    left = p.step("left", less, n=n)
    p.step("again", p, n=left, when=left > 0)
    p.step("style", inner, n="${left.result}", more=2)
    p.output([left])
    return p
