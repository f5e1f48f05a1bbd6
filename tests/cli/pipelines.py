"""Pipelines that the tests of the command line run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from evpipe import pipeline, step


class Fit(NamedTuple):
    model: str
    score: float


@step
def load(rows: int) -> list[float]:
    print("loading", rows)
    return [float(i) for i in range(rows)]


@step
def total(numbers: list[float], scale: float) -> float:
    return sum(numbers) * scale


@pipeline
def churn(rows: int = 4, scale: float = 1.0) -> float:
    return total(load(rows), scale)


@step
def break_down(what: str) -> str:
    raise ValueError(what)


@step
def after(what: str) -> str:
    return what


@pipeline
def failing(what: str = "no such\nfile") -> str:
    return after(break_down(what))


@step
async def odd_values() -> dict[str, Any]:
    fit = Fit("tree", float("-inf"))
    return {"bytes": b"\x00\xff", "tuple": (1, 2), "nan": float("nan"), "fit": fit, "text": "é\n"}


@pipeline(name="odd-values")
def odd() -> dict[str, Any]:
    return odd_values()


@step
def read_text(file: Path) -> dict[str, Any]:
    return {"text": file.read_text(), "files": [file]}


@pipeline
def reading(file: Path) -> dict[str, Any]:
    return read_text(file)


@step
def wait_long(started: str) -> None:
    Path(started).touch()
    time.sleep(60)


@pipeline
def waiting(started: str) -> None:
    return wait_long(started)


@pipeline(deadline_s=0.3)
def late(started: str) -> None:
    return wait_long(started)


@pipeline
def nothing() -> None:
    return None


@pipeline
def broken_body(rows: int = 1) -> float:
    return total(load(rows), 1 / (rows - 1))


@pipeline
def impatient(rows: int = 1) -> float:
    if load(rows):
        return 1.0
    return 0.0


not_one = 3


@pipeline
def nested(rows: int = 2) -> float:
    return total([churn(rows), churn.options(name="again")(3)], 1.0)
