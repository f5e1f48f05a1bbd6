"""Pipelines whose steps do not stop talking."""

from __future__ import annotations

from evpipe import pipeline, step


@step
def talk(index: int) -> None:
    while True:
        print("still here", index, "." * 40, flush=True)


@pipeline
def noisy_threads() -> list[None]:
    return [talk.options(executor="thread")(i) for i in range(2)]


@pipeline
def noisy_processes() -> list[None]:
    return [talk(i) for i in range(2)]
