"""Pipelines whose steps leave traces in a witness file, and can be held until the test opens a gate."""

from __future__ import annotations

import os
from pathlib import Path

from evpipe import pipeline, step
from tests.e2e.helpers import until


def witnessed(witness: str, what: str, name: str) -> None:
    """Write a line in one piece, whoever else is writing; with the number of the worker, whose child this is."""
    file = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{what} {name} {os.getppid()}\n".encode())
    finally:
        os.close(file)


def work(witness: str, name: str, gate: str) -> None:
    """Begin, wait for the gate if there is one, end."""
    witnessed(witness, "begin", name)
    if gate:
        until(Path(gate).exists, f"the gate {gate} opens")
    witnessed(witness, "end", name)


@step
def first(witness: str, rows: int) -> list[int]:
    work(witness, "first", "")
    return list(range(rows))


@step
def held(witness: str, gate: str, numbers: list[int], index: int) -> int:
    work(witness, f"held{index}", gate)
    return numbers[index] + 1


@step
def after(witness: str, number: int, index: int) -> int:
    work(witness, f"after{index}", "")
    return number * 10


@step
def last(witness: str, numbers: list[int]) -> int:
    work(witness, "last", "")
    return sum(numbers)


@pipeline(version="1")
def fan(witness: str, gate: str = "", width: int = 3) -> int:
    """first -> held x width -> after x width -> last."""
    numbers = first(witness, width)
    parts = [after(witness, held(witness, gate, numbers, i), i) for i in range(width)]
    return last(witness, parts)


def value_of_fan(width: int) -> int:
    return sum((i + 1) * 10 for i in range(width))


def begins_of_fan(width: int) -> dict[str, int]:
    """Each step once."""
    names = ["first", "last", *(f"{kind}{i}" for kind in ("held", "after") for i in range(width))]
    return dict.fromkeys(names, 1)


@step(queue="gpu")
def on_gpu(witness: str) -> str:
    work(witness, "on_gpu", "")
    return "trained"


@pipeline
def needs_gpu(witness: str) -> str:
    return on_gpu(witness)


@step
async def add(a: int, b: int) -> int:
    return a + b


@pipeline
def total(a: int, b: int = 1) -> int:
    return add(add(a, b), b)
