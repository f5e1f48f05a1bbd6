"""Two equal steps in one run."""

from __future__ import annotations

from evpipe import pipeline, step
from tests.e2e.row_pipelines import note


@step(cache=True)
def twin(x: int) -> int:
    note("twin")
    return x + 1


@pipeline
def twins(x: int) -> list[int]:
    return [twin(x), twin(x)]
