"""A pipeline whose steps say something from inside."""

from __future__ import annotations

import math
import time
from pathlib import Path

from evpipe import current, pipeline, step


@step(on_failure="skip")
def train(epochs: int) -> str:
    context = current()
    for i in range(epochs):
        context.metric("loss", 1 / (i + 1), step=i)
    context.metric("acc", math.nan)
    context.artifact("small", {"a": 1})
    file = context.folder / "plot.txt"
    file.write_text("a plot")
    context.artifact("plot", file)
    context.artifact("a/b", "text")
    context.log.error("broken", part=2)
    raise ValueError("no")


@step
async def count(epochs: int) -> int:
    current().log.debug("counted")
    return epochs


@step(executor="thread")
def waits(gate: str) -> str:
    current().progress(0.42, "half \x1b[31mway")
    while gate and not Path(gate).exists() and not current().cancelled:
        time.sleep(0.005)
    return "done"


@pipeline
def says(epochs: int = 3, gate: str = "") -> list[object]:
    train(epochs)
    return [count(epochs), waits(gate)]
