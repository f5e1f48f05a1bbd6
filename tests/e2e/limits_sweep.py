"""Kills holders of limits and the controllers that gave them with -9: no mutex or semaphore is ever exceeded.

    python -m tests.e2e.limits_sweep --moments 12 --seed 1

A nats-server, `evpipe controller` and two `evpipe worker`s, each a process of its own; this one submits runs whose
steps share a mutex and a semaphore. At each moment the controller, a worker, or all three of them are killed and
started again. Each body takes a lock of the kernel for each of its limits (`limits_graph`): one that cannot get it has
found the limit exceeded, whatever any of our own processes believe.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from evpipe import Client, connect
from evpipe.client.handle import RunHandle
from evpipe.hosting.logs import configure_logs
from evpipe.wire.holds import BUCKET, decode_holders
from tests.e2e.kill_stage import PREFIX, Stage, let_pass
from tests.e2e.limits_graph import guarded

CODE = ("--code", "local:tests.e2e.limits_graph")
#: The kill comes so long after the submit, at most; the victims are back so long after it, at most.
MOMENT_MAX_S = 1.0
AWAY_MAX_S = 2.0
PATIENCE_S = 60.0


@dataclass(slots=True)
class Tally:
    """What was seen."""

    moments: int = 0
    bodies: int = 0
    #: Bodies that were killed with something in their hands.
    killed: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.moments} moments, {self.bodies} bodies, {self.killed} of them killed while they held something: "
            f"{len(self.problems)} problems"
        )


async def sweep(
    moments: int, seed: int, directory: Path, *, runs: int = 3, steps: int = 6, seconds: float = 0.2
) -> Tally:
    """Play the moments one after the other on one installation."""
    tally = Tally()
    async with Stage.opened(directory, CODE) as stage, connect(stage.server.url, prefix=PREFIX) as client:
        for number in range(moments):
            folder = directory / f"moment{number}"
            folder.mkdir()
            try:
                with anyio.fail_after(PATIENCE_S):
                    await _moment(stage, client, folder, number, seed, runs, steps, seconds)
            except TimeoutError:
                tally.problems.append(f"moment {number}: the runs have not ended after {PATIENCE_S:g} s")
            tally.moments += 1
            _read(folder, number, tally)
            tally.problems += [f"moment {number}: {text}" for text in stage.dead()]
            if tally.problems:
                break
        else:
            await _check_nothing_is_held(client, tally)
    return tally


async def _moment(
    stage: Stage, client: Client, folder: Path, number: int, seed: int, runs: int, steps: int, seconds: float
) -> None:
    rng = random.Random(f"{seed}/{number}")
    handles: list[RunHandle[object]] = [
        await client.submit(guarded(folder, f"r{i}", steps, seconds), key=f"{seed}-{number}-{i}") for i in range(runs)
    ]
    while not (folder / "witness").exists():
        await let_pass(0.01)
    await let_pass(rng.random() * MOMENT_MAX_S)
    victims = ("all", "worker", "controller")[number % 3]
    if victims != "worker":
        assert stage.controller is not None
        stage.controller.clean()
    dead = [0, 1] if victims == "all" else [rng.randrange(2)] if victims == "worker" else []
    for i in dead:
        stage.workers[i].clean()
    await let_pass(rng.random() * AWAY_MAX_S)
    if victims != "worker":
        stage.controller = stage.start_controller()
    for i in dead:
        stage.workers[i] = stage.start_worker()
    for handle in handles:
        result = await handle.result()
        assert result.status == "succeeded", f"{handle.id} has {result.status}: {result.error}"


def _read(folder: Path, number: int, tally: Tally) -> None:
    lines = [line.split() for line in (folder / "witness").read_text().splitlines()]
    kinds = Counter(line[0] for line in lines)
    tally.bodies += kinds["begin"]
    tally.killed += kinds["begin"] - kinds["end"]
    tally.problems += [f"moment {number}: {' '.join(line)}" for line in lines if line[0] == "exceeded"]


async def _check_nothing_is_held(client: Client, tally: Tally) -> None:
    """All has been let go; a controller that was killed leaves it to whoever wants it next."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        entries = [e for e in await client.bus.bucket(BUCKET).entries() if e.key.startswith("semaphore.")]
        held = [holder for entry in entries for holder in decode_holders(entry.value)]
        live = {run.run for run in await client.runs() if run.ended_at_s is None}
        if not any(holder.run in live for holder in held):
            return
        await let_pass(0.1)
    tally.problems.append(f"in the end {held} hold something")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    configure_logs()
    directory = Path(tempfile.mkdtemp(prefix="evpipe-limits-"))
    tally = anyio.run(sweep, options.moments, options.seed, directory)
    print(tally)
    for problem in tally.problems:
        print(problem)
    print(f"logs in {directory}")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
