"""A pipeline that goes on after a cancel: finalisers, one of them a run, one mapped, and a handler, with a mutex."""

from __future__ import annotations

import time
from pathlib import Path

from evpipe import Mutex, pipeline, step


@step
def wait_long(started: str) -> int:
    Path(started).touch()
    time.sleep(60)
    return 1


@step(limits=Mutex("cleaning"))
def clean(number: int = 0) -> int:
    return number


@pipeline
def cleaning() -> int:
    return clean.options(run_if="always")()


@step
def tell() -> None:
    """Runs when all others have ended."""


@pipeline(on_exit=tell)
def cleaned(started: str) -> None:
    waited = wait_long(started)
    clean.options(run_if="always", after=[waited])()
    clean.options(name="each", run_if="always", after=[waited]).map([1, 2])
    cleaning.options(run_if="always", after=[waited])()


@pipeline
def after() -> int:
    return clean(7)
