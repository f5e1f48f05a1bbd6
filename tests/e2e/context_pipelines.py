"""Steps that say something from inside."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from evpipe import Retry, current, pipeline, step

#: Enough that they do not travel with the event.
MANY = 1_500
ROWS = [float(i) for i in range(20_000)]


def say(many: int) -> dict[str, Any]:
    """Say something of every kind."""
    context = current()
    context.progress(0.25)
    for i in range(many):
        context.metric("loss", 1 / (i + 1), step=i)
    context.metric("odd", math.nan)
    context.metric("odd", -math.inf, step=-1)
    context.artifact("note", "first")
    context.artifact("note", {"rows": 3, "of": (1, 2)})
    context.artifact("rows", ROWS)
    file = context.folder / "plot.txt"
    file.write_text("a plot")
    context.artifact("plot", file)
    file.write_text("another")
    context.log.info("said", rows=3, who="a b")
    context.progress(1, "done")
    return {"step": context.step, "attempt": context.attempt, "file": file, "cancelled": context.cancelled}


@step
def in_process(many: int) -> dict[str, Any]:
    return say(many)


@step(executor="thread")
def in_thread(many: int) -> dict[str, Any]:
    return say(many)


@step
async def in_loop(many: int) -> dict[str, Any]:
    return say(many)


@pipeline
def says(many: int = 3) -> list[Any]:
    return [in_process(many), in_thread(many), in_loop(many)]


@step
async def names_itself(number: int) -> str:
    current().metric("number", number)
    current().artifact("number", number)
    return current().step


@pipeline
def mapped() -> list[str]:
    return names_itself.map([5, 6])


# ---- attempts that end otherwise


@step(retries=Retry(2, delay_s=0))
def tries() -> int:
    context = current()
    context.metric("tried", context.attempt)
    context.artifact("why", f"attempt {context.attempt}")
    if context.attempt < 3:
        raise ValueError(context.attempt)
    return context.attempt


@step(on_failure="skip")
def fails() -> None:
    current().metric("before", 1)
    current().artifact("why", ROWS)
    raise KeyError("x")


@step(on_failure="skip")
def says_nonsense() -> None:
    current().metric("loss", "much")  # type: ignore[arg-type]


@step(on_failure="skip")
def keeps_too_much() -> None:
    for i in range(2_000):
        current().artifact(f"text {i}", "x" * 1_000)


@step(on_failure="skip")
def keeps_what_cannot_be() -> None:
    current().artifact("lock", threading.Lock())


@step
def says_nothing() -> int:
    return 1


@pipeline
def ends() -> int:
    fails()
    says_nonsense()
    keeps_too_much()
    keeps_what_cannot_be()
    says_nothing()
    return tries()


@step(cache=True)
async def remembered(word: str) -> str:
    current().metric("length", len(word), step=1)
    current().artifact("word", word * 2_000)
    return word


@pipeline
def twice(word: str) -> list[str]:
    first = remembered(word)
    return [first, remembered.options(after=[first])(word)]


# ---- side by side


@step
def writes(name: str) -> Path:
    file = current().folder / "same.txt"
    assert not file.exists()
    file.write_text(name)
    return file


@step
def reads(files: list[Path], given: str) -> str:
    # A relative path is the script's, as ever.
    return ",".join(file.read_text() for file in files) + Path(given).read_text()


@pipeline
def side_by_side(given: str) -> str:
    return reads([writes.options(executor=how)(how) for how in ("process", "thread")], given)


# ---- while they run


def wait_for(file: str) -> None:
    while not Path(file).exists() and not current().cancelled:
        time.sleep(0.005)


@step
def goes_on(gate: str) -> str:
    context = current()
    context.progress(0.5, "half\nway")
    for i in range(3):
        context.metric("loss", i, step=i)
    context.log.warning("waiting", gate=True)
    wait_for(gate)
    context.metric("loss", 3, step=3)
    return "went on"


@pipeline
def goes(gate: str) -> str:
    return goes_on(gate)


# ---- that are to end


@step(executor="thread", timeout_s=0.7, on_failure="skip")
def too_slow_in_thread(noted: str) -> None:
    context = current()
    context.metric("loss", 1)
    while not context.cancelled:
        time.sleep(0.005)
    # Its end has been told: this is nobody's.
    context.metric("loss", 2)
    context.progress(0.9)
    context.log.info("too late")
    Path(noted).write_text(f"{context.cancelled}")


@step(timeout_s=2, on_failure="skip")
def too_slow_in_process() -> None:
    context = current()
    for i in range(MANY):
        context.metric("loss", i)
    context.artifact("rows", ROWS)
    time.sleep(60)


@step(timeout_s=0.7, on_failure="skip")
async def too_slow_in_loop(noted: str) -> None:
    context = current()
    context.metric("loss", 1)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.to_thread(Path(noted).write_text, "ended")


@step(on_failure="skip")
def dies() -> None:
    context = current()
    context.artifact("last", "words")
    for i in range(MANY):
        context.metric("loss", i)
    os._exit(3)


@step
def forks() -> int:
    """A process that it starts is no part of it."""
    pid = os.fork()
    current().metric("pid", pid)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    thread = threading.Thread(target=lambda: current().metric("thread", 1))
    thread.start()
    thread.join()
    return pid


@pipeline
def processes() -> list[Any]:
    forked = forks()
    # In a process that is there, so that its time is enough for what it has to say.
    too_slow_in_process.options(after=[forked])()
    dies.options(after=["too_slow_in_process"], run_if="all_done")()
    return [forked]


@pipeline
def stopped(folder: str) -> None:
    # The host is there, then.
    first = says_nothing.options(executor="thread")()
    too_slow_in_thread.options(after=[first])(f"{folder}/thread")
    too_slow_in_loop.options(after=[first])(f"{folder}/loop")


def say_and_begin(folder: str) -> None:
    """Say a lot; then the test cancels, at once."""
    context = current()
    context.artifact("rows", ROWS)
    for i in range(MANY):
        context.metric("loss", i)
    context.artifact("last", context.step)
    Path(folder, f"{context.step} began").touch()


@step
def waits_in_process(folder: str) -> None:
    say_and_begin(folder)
    time.sleep(60)


@step(executor="thread")
def waits_in_thread(folder: str) -> None:
    say_and_begin(folder)
    wait_for("/nowhere")
    Path(folder, "ended").touch()
    sys.exit(1)


@step
async def waits_in_loop(folder: str) -> None:
    say_and_begin(folder)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        # And is ended all the same: what it gives is nobody's.
        current().metric("loss", MANY)


@pipeline
def cancelled(folder: str) -> None:
    waits_in_process(folder)
    waits_in_thread(folder)
    waits_in_loop(folder)


@step
async def is_late() -> None:
    current().artifact("rows", ROWS)
    current().metric("loss", 1)
    await asyncio.sleep(0.4)


@pipeline(deadline_s=0.3)
def late() -> None:
    is_late()


@step
def loses_its_worker(folder: str) -> int:
    """Say a lot, and more when the test has seen that; then the test kills the worker, at once."""
    context = current()
    context.artifact("rows", ROWS)
    for i in range(2 * MANY):
        if i == MANY:
            wait_for(f"{folder}/seen")
        context.metric("loss", i)
    Path(folder, "said").touch()
    wait_for(f"{folder}/killed")
    return context.attempt


@pipeline
def lost(folder: str) -> int:
    return loses_its_worker(folder)
