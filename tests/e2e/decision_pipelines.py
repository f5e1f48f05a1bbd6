"""Pipelines that decide: what runs depends on what came before."""

from __future__ import annotations

import time
from typing import Any

from evpipe import Mutex, Pipeline, Retry, RunSummary, SkipStep, current, exit_status, not_, one_of, pipeline, step


@step
def flip(side: str) -> str:
    return side


@step
def heads(word: str) -> str:
    return f"H:{word}"


@step
def tails(word: str) -> str:
    return f"T:{word}"


@step
def told(value: Any) -> str:
    return f"told {value}"


@step
def fail() -> str:
    message = "no"
    raise ValueError(message)


@step
def wait() -> str:
    time.sleep(60)
    return "waited"


@step
def clean() -> str:
    return "cleaned"


@pipeline
def coin(side: str = "heads") -> dict[str, Any]:
    found = flip(side)
    h = heads.options(when=found == "heads")(found)
    t = tails.options(when=not_(found == "heads") & (found != "edge"))(found)
    joined = told(one_of(h, t))
    return {"joined": joined}


@pipeline
def without_its_value(side: str = "tails") -> Any:
    """What needs a step that was not chosen is not chosen either."""
    h = heads.options(when=flip(side) == "heads")(side)
    told(h)
    return told.options(name="all", run_if="all_done", after=[h])(side)


@pipeline
def of_a_parameter(side: str = "tails") -> None:
    told.options(name="a", when=flip(side) == side)(1)
    told.options(name="b", when=(flip(side) == "x") | (flip(side) == side))(2)


@pipeline
def no_such_key(side: str = "tails") -> None:
    told.options(name="a", when=flip(side)["key"] == "x")(1)  # type: ignore[index]


@pipeline
def no_such_order(side: str = "tails") -> None:
    told.options(name="a", when=flip(side) > 3)(1)  # type: ignore[operator]


@pipeline
def rules() -> None:
    failed = fail()
    good = clean()
    told(failed)
    for rule in ("all_done", "any_succeeded", "any_failed", "none_failed", "all_failed", "always"):
        told.options(name=rule, run_if=rule, after=[failed, good])(rule)
    told.options(name="mourned", run_if="all_failed", after=[failed])("mourned")
    told.options(name="no_mourning", run_if="any_failed", after=[good])("mourned")


@pipeline
def cleaned_after_a_failure() -> None:
    clean.options(run_if="always", after=[told(fail())])()


@pipeline(fail_fast=True)
def cleaned_after_the_first_failure() -> None:
    w = wait()
    failed = fail()
    told.options(name="done", run_if="all_done", after=[failed])(1)
    clean.options(run_if="always", after=[w, failed])()


@pipeline(deadline_s=1)
def cleaned_after_the_deadline() -> None:
    w = wait()
    told.options(name="beside", run_if="always")(1)
    clean.options(run_if="always", after=[told(w)])()


@step
def notify(about: RunSummary) -> dict[str, Any]:
    """Give what it was told, less what differs from run to run."""
    return {**about, "duration_s": about["duration_s"] >= 0, "run": bool(about["run"])}


@pipeline(on_exit=notify)
def cleaned_after_a_cancel() -> None:
    w = wait()
    cleaned = clean.options(run_if="always", after=[told(w)])()
    failed = fail.options(name="fails", run_if="always", retries=1, after=[cleaned])()
    clean.options(name="last", run_if="always", after=[failed])()


celebrate = clean.options(when=exit_status == "succeeded")
cry = fail.options(when=exit_status != "succeeded", retries=Retry(1, delay_s=0))


@pipeline(on_exit=[notify, celebrate, cry])
def with_handlers(badly: bool) -> str:
    told.options(name="kept", run_if="always")(1)
    return told(fail() if badly else clean())


@pipeline(on_exit=[fail.options(on_failure="fail"), notify], fail_fast=True)
def with_a_handler_that_counts() -> str:
    return told(1)


@pipeline(on_exit=notify, deadline_s=0.5)
def handled_after_the_deadline() -> str:
    return told(wait())


def built_with_handlers() -> Pipeline:
    p = Pipeline("built", on_exit=notify)
    p.output(p.step("notify", told, value=p.param("word", str)))
    return p


@step(cache=True, retries=Retry(3, delay_s=0), limits=Mutex("not_today"))
def not_today(word: str) -> str:
    current().metric("looked", current().attempt)
    message = f"no {word} today"
    raise SkipStep(message)


@step(executor="inline", retries=Retry(1, delay_s=0))
async def at_the_second_look(word: str) -> str:
    message = f"no {word} today"
    raise ValueError(message) if current().attempt == 1 else SkipStep(message)


@step
def handles_nothing(*, status: str) -> None:
    message = f"nothing to tell: {status}"
    raise SkipStep(message)


@step
def no_evens(number: int) -> int:
    if number % 2 == 0:
        raise SkipStep
    return number


@step(limits=Mutex("not_today"))
def afterwards(value: Any) -> str:
    return f"after {value}"


@pipeline(on_exit=handles_nothing)
def skip_themselves() -> dict[str, Any]:
    """Of each executor one, what comes after them, and elements of a map."""
    child = not_today.options(name="child", executor="process", on_failure="fail")("child")
    thread = not_today.options(name="thread", executor="thread", on_failure="continue")("thread")
    coroutine = at_the_second_look.options(name="coroutine")("coroutine")
    below = told.options(name="below")(child)
    each = no_evens.map([1, 2, 3])
    return {
        "after": afterwards.options(run_if="all_done", after=[child, thread, coroutine])(below),
        "one": one_of(thread, each[0]),
        "none_failed": told.options(name="none_failed", run_if="none_failed")([child, thread]),
        "mourned": told.options(name="mourned", run_if="any_failed")(coroutine),
        "each": each,
        "element": told.options(name="of_element")(each[1]),
    }
