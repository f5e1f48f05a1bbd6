"""A run with very many below it, which stand at a gate: what is seen of them while they go on."""

from __future__ import annotations

from pathlib import Path

import anyio

from evpipe import Retry, current, one_of, pipeline, step
from tests.e2e.helpers import until_async


@step
async def at_gate(n: int, gate: str) -> int:
    current().log.info(f"at the gate {n}")
    await until_async(lambda: anyio.Path(gate).exists(), "the gate is open")
    return n


@step
async def said(n: int) -> int:
    current().log.info(f"said {n}")
    current().progress(0.5, "half")
    return n


@step
async def less(n: int) -> int:
    return n - 1


@step
async def once_only(folder: str) -> int:
    """Fail once, whatever attempt of whatever run it is."""
    mark = Path(folder) / "tried"
    current().log.info(f"tried before: {mark.exists()}")
    if not mark.exists():
        mark.touch()
        message = "once"
        raise ValueError(message)
    return 1


@step
async def added(numbers: list[int]) -> int:
    return sum(numbers)


@pipeline
def fit(n: int, gate: str) -> int:
    return said(at_gate(n, gate))


@pipeline
def outer_fit(n: int, gate: str) -> int:
    return fit(n, gate)


@pipeline
def trying(folder: str) -> int:
    return once_only(folder)


@pipeline
def down(n: int) -> int:
    left = less(n)
    return one_of(down.options(when=left > 0)(left), left)


@pipeline
def family(folder: str, count: int) -> int:
    gate = f"{folder}/gate"
    fits = fit.map(list(range(count)), gate=gate)
    again = trying.options(retries=Retry(1, delay_s=0.01))(folder)
    return added([added(fits), again, down(3), outer_fit(1_000, gate)])
