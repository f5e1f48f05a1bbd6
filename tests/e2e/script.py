"""What a user writes and starts with `python script.py WITNESS GATE`: its steps are those of `__main__`.

With a third argument, `notebook`, it calls `run` as a cell of a notebook does: under a running loop, and with Python's
own Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import sys

from evpipe import RunResult, pipeline, step
from tests.e2e.pipelines import work


@step
def load(witness: str, rows: int) -> list[int]:
    work(witness, "load", "")
    return list(range(rows))


@step
def hold(witness: str, gate: str, numbers: list[int]) -> list[int]:
    work(witness, "hold", gate)
    return numbers


@step
def add_up(witness: str, numbers: list[int]) -> int:
    work(witness, "add_up", "")
    return sum(numbers)


@pipeline
def report(witness: str, gate: str, rows: int = 5) -> int:
    return add_up(witness, hold(witness, gate, load(witness, rows)))


async def cell() -> RunResult[int]:
    return report.run(witness=sys.argv[1], gate=sys.argv[2])


if __name__ == "__main__":
    if "notebook" in sys.argv:
        # Not asyncio.run, which takes Ctrl-C for itself.
        result = asyncio.new_event_loop().run_until_complete(cell())
    else:
        result = report.run(witness=sys.argv[1], gate=sys.argv[2])
    print(json.dumps({"id": result.id, "status": result.status, "value": result.value}))
