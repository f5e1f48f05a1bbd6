"""Ctrl-C in debug mode ends a run as it does in the others: cancelled, with its finalisers; pressed twice it leaves."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from evpipe import (
    Pipeline,
    PipelineFunction,
    RunResult,
    RunSummary,
    command,
    pipeline,
    sleep,
    step,
)
from evpipe.client.family import Family
from evpipe.core.machine import Run
from evpipe.hosting.debug import run_debug
from evpipe.hosting.display import Display

#: What has happened, in order.
SEEN: list[str] = []
REQUEST = "cancelled request"


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    SEEN.clear()
    yield
    assert signal.getsignal(signal.SIGINT) is before


def press() -> None:
    """Do what a terminal does, from any thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@step(executor="thread")
def pressed(times: int = 1, *after: Any) -> str:
    for _ in range(times):
        try:
            press()
        finally:
            SEEN.append("pressed")
    return "went on"


@step
async def pressed_in_loop() -> str:
    try:
        threading.Timer(0.05, press).start()
        await anyio.sleep(20)
    finally:
        SEEN.append("left")
    return "went on"


@step(executor="thread")
def ran(*after: Any) -> str:
    SEEN.append("ran")
    return "ran"


@step
def raises() -> None:
    raise KeyboardInterrupt


@step
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@step(executor="thread")
def told(run: RunSummary) -> str:
    SEEN.append(f"{run['status']} {run['reason']} {run['message']}")
    return "told"


class Said(Display):
    """Keeps the run that it was told of, and what was said."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(self.text)
        self.runs: list[Run] = []

    def finished(self, family: Family) -> None:
        super().finished(family)
        run = family.run
        self.runs.append(run)


def interrupted(target: Pipeline | PipelineFunction[..., Any], **options: Any) -> tuple[RunResult[Any], str]:
    said = Said()
    with pytest.raises(KeyboardInterrupt):
        run_debug(target.build({}), said, **options)
    return RunResult.of(said.runs[0]), said.text.getvalue()


def ends(result: RunResult[Any]) -> dict[str, str]:
    return {name: f"{found.status} {found.reason or ''}".strip() for name, found in result.steps.items()}


@pipeline(on_exit=told)
def stopped() -> None:
    before = ran()
    now = pressed.options(after=[before])()
    later = ran.options(name="later", after=[now])()
    ran.options(name="clean_up", run_if="always", after=[later])()


def test_the_run_is_cancelled_and_its_finalisers_and_handlers_run() -> None:
    result, text = interrupted(stopped)
    assert ends(result) == {
        "ran": "succeeded",
        "pressed": REQUEST,
        "later": REQUEST,
        "clean_up": "succeeded",
        "told": "succeeded",
    }
    assert (result.status, result.reason, result.error) == ("cancelled", "request", "interrupted with Ctrl-C")
    assert SEEN == ["ran", "pressed", "ran", "cancelled request interrupted with Ctrl-C"]
    assert "note: cancelling (Ctrl-C again to leave at once)" in text
    assert text.splitlines()[-1].startswith("cancelled: 3 succeeded, 2 cancelled in ")
    assert result.steps["pressed"].attempts == 1
    assert result.steps["pressed"].started_at is not None
    assert result.steps["later"].attempts == 0


@pytest.mark.parametrize("looped", [False, True], ids=["no loop", "under a loop"])
def test_a_coroutine_is_cancelled(looped: bool) -> None:
    p = Pipeline("coroutine")
    p.step("waits", pressed_in_loop)
    if looped:

        async def main() -> tuple[RunResult[Any], str]:
            # As a notebook has it: its loop leaves the signal alone.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                return interrupted(p)
            finally:
                signal.signal(signal.SIGINT, before)

        result, _ = anyio.run(main)
    else:
        result, _ = interrupted(p)
    assert ends(result) == {"waits": REQUEST}
    assert SEEN == ["left"]


def test_a_program_is_killed() -> None:
    p = Pipeline("program")
    p.step("sleeps", command("kill -INT $PPID; sleep 60", shell=True))
    began = time.monotonic()
    result, _ = interrupted(p)
    assert ends(result) == {"sleeps": REQUEST}
    assert time.monotonic() - began < 20


def test_a_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    @pipeline
    def waits() -> None:
        nap = sleep(3_600, name="nap")
        ran.options(after=[nap])()

    monkeypatch.setattr(time, "sleep", lambda _: press())
    result, _ = interrupted(waits)
    assert ends(result) == {"nap": REQUEST, "ran": REQUEST}


@pipeline
def inner() -> str:
    now = pressed()
    later = ran.options(name="later", after=[now])()
    ran.options(name="clean_up", run_if="always", after=[later])()
    return later


@pipeline
def middle() -> str:
    return inner()


@pipeline(on_exit=told)
def outer() -> None:
    found = middle()
    ran(found)
    ran.options(name="clean_up", run_if="always", after=[found])()


def test_runs_in_runs_end_from_the_top() -> None:
    said = Said()
    with pytest.raises(KeyboardInterrupt):
        run_debug(outer.build({}), said)
    (run,) = said.runs
    result = RunResult.of(run)
    assert ends(result) == {"middle": REQUEST, "ran": REQUEST, "clean_up": "succeeded", "told": "succeeded"}
    assert result.status == "cancelled"
    assert SEEN == ["pressed", "ran", "ran", "cancelled request interrupted with Ctrl-C"]


@pipeline
def finalised() -> None:
    first = ran()
    inner_final = with_finaliser.options(run_if="always", after=[first])()
    ran.options(name="later", after=[inner_final])()


@pipeline
def with_finaliser() -> str:
    return ran.options(name="end")(pressed())


def test_a_finaliser_comes_to_its_end_also_where_it_is_a_run() -> None:
    result, _ = interrupted(finalised)
    assert ends(result) == {"ran": "succeeded", "with_finaliser": "succeeded", "later": REQUEST}
    assert SEEN == ["ran", "pressed", "ran"]


@step(executor="thread")
def pressed_at_the_end(run: RunSummary) -> None:
    press()


@pipeline(on_exit=pressed_at_the_end)
def handled() -> str:
    return ran()


def test_a_handler_comes_to_its_end_and_the_run_is_what_it_was_told() -> None:
    result, _ = interrupted(handled)
    assert ends(result) == {"ran": "succeeded", "pressed_at_the_end": "succeeded"}
    assert (result.status, result.value) == ("succeeded", "ran")


@pytest.mark.parametrize("final", [False, True])
def test_twice_leaves_at_once(final: bool) -> None:
    p = Pipeline("twice")
    p.step("pressed", pressed, run_if="always" if final else "all_succeeded", args={"times": 1 + final})
    if not final:
        p.step("pressed-2", pressed, run_if="always", after=["pressed"])
    p.step("clean_up", ran, run_if="always", after=["pressed"])
    said = Said()
    with pytest.raises(KeyboardInterrupt):
        run_debug(p.build({}), said)
    assert said.runs == []
    assert SEEN == ["pressed", "pressed"]


def test_what_a_finaliser_raises_itself_fails_it() -> None:
    p = Pipeline("raises")
    p.step("raises", raises, run_if="always")
    p.step("clean_up", ran, run_if="always", after=["raises"])
    result, _ = interrupted(p)
    assert ends(result) == {"raises": "failed error", "clean_up": "succeeded"}
    assert (result.status, result.reason) == ("cancelled", "request")


def test_time_that_is_over_comes_before_what_a_call_gave() -> None:
    @pipeline
    def inside() -> str:
        return ran.options(name="then")(slow(0.15))

    @pipeline(deadline_s=0.1, on_exit=told)
    def late() -> None:
        found = inside()
        ran(found)
        ran.options(name="clean_up", run_if="always", after=[found])()

    @pipeline(deadline_s=0.1)
    def napping() -> None:
        ran(sleep(60, name="nap"))

    @pipeline
    def within() -> str:
        return slow.options(timeout_s=0.02)(0.15)

    @pipeline(deadline_s=0.1)
    def stopped_before() -> None:
        ran(within())

    result = run_debug(late.build({}))
    assert ends(result) == {
        "inside": "cancelled deadline",
        "ran": "cancelled deadline",
        "clean_up": "succeeded",
        "told": "succeeded",
    }
    assert (result.status, result.reason) == ("failed", "deadline")
    assert result.error == "the run was not done 0.1 s after its submit"
    assert SEEN[-1] == "failed deadline the run was not done 0.1 s after its submit"
    of_inside = result.steps["inside"].result
    assert of_inside is not None
    assert ends(of_inside) == {"slow": "cancelled deadline", "then": "cancelled deadline"}

    began = time.monotonic()
    result = run_debug(napping.build({}))
    assert ends(result) == {"nap": "cancelled deadline", "ran": "cancelled deadline"}
    assert 0.1 <= time.monotonic() - began < 20

    # The time of the attempt was over before that of the run.
    result = run_debug(stopped_before.build({}))
    assert (result.status, result.steps["within"].steps["slow"].reason) == ("failed", "timeout")
