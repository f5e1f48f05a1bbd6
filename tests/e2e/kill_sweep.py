"""Kills a controller, a worker and the server with -9 at many seeded moments: nothing is lost, and nothing runs twice.

    python -m tests.e2e.kill_sweep --moments 20 --seed 1 [--victim controller|worker|server|all]

Everything is a process of its own: a nats-server that syncs always, `evpipe controller`, two `evpipe worker`s; this one
submits. At each moment runs of `kill_graph` are submitted until a hundred launches are in flight, and again whenever
fewer are, so that runs of every age are there when the kill comes. When the victim is back and the runs have ended,
`kill_check` reads their logs and the witness of their bodies. The victims have installations of their own, side by
side. A problem names the moment that shows it again (`--first`), and the folder with everything that was logged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from evpipe import Client, WaitTimeout, connect
from evpipe.bus.protocol import Record
from evpipe.client.events import run_event
from evpipe.client.handle import AnyRunHandle
from evpipe.hosting.logs import configure_logs
from tests.e2e.helpers import until_async
from tests.e2e.kill_check import Kill, Verdict, Victim, check_run, read_run, read_witness
from tests.e2e.kill_graph import Node, kills, plan, value_of
from tests.e2e.kill_stage import PREFIX, Moment, Queue, Stage, let_pass

#: Launches that are in flight at every kill.
IN_FLIGHT_MIN = 100
#: With fewer, another run is submitted: some leave the queue before its fan is there.
IN_FLIGHT_WANTED = 150
#: A submit shows in the queue after its first step has ended.
SUBMIT_EVERY_S = 0.2
#: Between two looks at the queue.
LOOK_EVERY_S = 0.02
#: Runs that have not ended so long after the victim's return are taken as lost.
PATIENCE_S = 45.0
PROBLEMS_SHOWN = 20


@dataclass(slots=True)
class Tally:
    """What was found of one victim."""

    victim: Victim
    moments: int = 0
    runs: int = 0
    right: int = 0
    steps: int = 0
    beyond: int = 0
    allowed: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def row(self) -> list[str]:
        flights = f"{min(self.in_flight)}/{statistics.median(self.in_flight):.0f}" if self.in_flight else "-"
        return [
            self.victim.value,
            str(self.moments),
            f"{self.right} of {self.runs}",
            str(self.steps),
            str(self.beyond),
            str(self.allowed),
            f"{max(self.recoveries_s):.2f}" if self.recoveries_s else "-",
            flights,
        ]


HEADINGS = ("victim", "moments", "runs right", "steps", "begins beyond", "allowed", "slowest recovery (s)", "in flight")


def table(tallies: Sequence[Tally]) -> str:
    rows = [list(HEADINGS), *(tally.row for tally in tallies)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


class Sweep:
    """The moments of one victim, one after the other on one installation."""

    def __init__(self, victim: Victim, numbers: Sequence[int], seed: int, directory: Path, scale: float) -> None:
        self._scale = scale
        self._numbers = numbers
        self._seed = seed
        self._directory = directory / victim.value
        self._witness = self._directory / "witness" / "bodies"
        #: Bodies of each run that were there when it was looked at.
        self._begins: dict[str, int] = {}
        self.tally = Tally(victim)

    async def run(self) -> None:
        self._witness.parent.mkdir(parents=True)
        moment: Moment | None = None
        try:
            async with Stage.opened(self._directory) as stage, connect(stage.server.url, prefix=PREFIX) as client:
                for number in self._numbers:
                    moment = Moment.of(self._seed, self.tally.victim, number, self._scale)
                    await self._run_moment(moment, stage, client)
                self._check_late_begins()
        except Exception as error:  # noqa: BLE001 - the other victims go on
            where = moment.seed if moment is not None else "the start"
            (self._directory / "broke").write_text(traceback.format_exc())
            self.tally.problems.append(f"{where}: the sweep broke: {type(error).__name__}: {error}")

    async def _run_moment(self, moment: Moment, stage: Stage, client: Client) -> None:
        runs: list[tuple[AnyRunHandle, list[Node]]] = []

        async def submit() -> None:
            seed = f"{moment.seed}/{len(runs)}"
            handle = await client.submit(kills, {"witness": str(self._witness), "seed": seed})
            runs.append((handle, plan(seed)))

        async with Queue.opened(stage) as queue:
            in_flight = await _until_moment(queue, submit, moment.after_s)
            kill = stage.kill(moment)
        await let_pass(moment.away_s)
        kill = replace(kill, back_ns=time.monotonic_ns())
        stage.start_again(moment)
        ended = await self._results(moment, runs)
        ended_ns = time.monotonic_ns()
        await stage.until_back(moment)
        async with Queue.opened(stage) as queue:
            # What ended runs leave there is removed; until then it might still begin.
            await until_async(queue.is_empty, "the queue is empty")
        tally = self.tally
        tally.moments += 1
        tally.in_flight.append(in_flight)
        tally.problems += [f"{moment.seed}: {problem}" for problem in stage.dead()]
        verdicts = await self._check(moment, client, runs, ended, kill)
        recovery_s = _recovery_s(kill, verdicts)
        if recovery_s is not None:
            tally.recoveries_s.append(recovery_s)
        print(
            f"{moment.seed}: killed after {moment.after_s:.2f} s with {in_flight} launches in flight, "
            f"{len(runs)} runs; away {moment.away_s:.2f} s, all ended {(ended_ns - kill.back_ns) / 1e9:.2f} s later, "
            f"recovered in {'-' if recovery_s is None else f'{recovery_s:.2f} s'}, "
            f"{sum(v.beyond for v in verdicts)} begins beyond, {sum(v.allowed for v in verdicts)} allowed",
            flush=True,
        )

    async def _results(self, moment: Moment, runs: Sequence[tuple[AnyRunHandle, list[Node]]]) -> list[bool]:
        """Wait for the results of the runs; say of each whether it is right."""
        end = time.monotonic() + PATIENCE_S

        async def result(i: int) -> None:
            handle, nodes = runs[i]
            try:
                found = await handle.result(timeout_s=max(1.0, end - time.monotonic()))
            except WaitTimeout as error:
                self.tally.problems.append(f"{moment.seed}: {error}")
                return
            ended[i] = found.status == "succeeded" and found.value == value_of(nodes)
            if not ended[i]:
                self.tally.problems.append(f"{moment.seed}: run {handle.id} gave {found.status} {found.error}")

        ended = [False] * len(runs)
        async with anyio.create_task_group() as task_group:
            for i in range(len(runs)):
                task_group.start_soon(result, i)
        return ended

    async def _check(
        self,
        moment: Moment,
        client: Client,
        runs: Sequence[tuple[AnyRunHandle, list[Node]]],
        ended: Sequence[bool],
        kill: Kill,
    ) -> list[Verdict]:
        bodies = read_witness(self._witness)
        verdicts: list[Verdict] = []
        for (handle, nodes), good in zip(runs, ended, strict=True):
            records = await read_run(client, handle.id)
            found = await check_run(client, handle.id, nodes, bodies.get(handle.id, []), kill, records)
            verdicts.append(found)
            self.tally.runs += 1
            self.tally.right += good and not found.problems
            self.tally.steps += len(nodes)
            self.tally.beyond += found.beyond
            self.tally.allowed += found.allowed
            if found.problems or not good:
                self.tally.problems += [f"{moment.seed}: run {handle.id}: {problem}" for problem in found.problems]
                self._write_events(client, handle.id, records)
            self._begins[handle.id] = found.begins
        return verdicts

    def _check_late_begins(self) -> None:
        """Check that no body began after its run was looked at."""
        for run, bodies in read_witness(self._witness).items():
            late = bodies[self._begins.get(run, 0) :]
            self.tally.problems += [f"run {run}: {body.step} began after the run's end: {body}" for body in late]

    def _write_events(self, client: Client, run: str, records: Sequence[Record]) -> None:
        """Keep a run's log where a person can read it."""
        with (self._directory / f"events-{run}.jsonl").open("w") as file:
            for record in records:
                event = run_event(record, client.bus.subjects)
                if event is not None:
                    line = [str(event.at), event.sequence, event.step, event.attempt, event.kind, dict(event.data)]
                    print(json.dumps(line, default=str), file=file)


async def _until_moment(queue: Queue, submit: Callable[[], Any], after_s: float) -> int:
    """Submit runs until the moment has come with enough launches in flight; give how many there are."""
    await submit()
    submitted_at = time.monotonic()
    kill_at = math.inf
    while True:
        found = await queue.in_flight()
        now = time.monotonic()
        if found >= IN_FLIGHT_MIN:
            kill_at = min(kill_at, now + after_s)
            if now >= kill_at:
                return found
        if found < IN_FLIGHT_WANTED and now - submitted_at > SUBMIT_EVERY_S:
            await submit()
            submitted_at = time.monotonic()
        await let_pass(LOOK_EVERY_S)


def _recovery_s(kill: Kill, verdicts: Sequence[Verdict]) -> float | None:
    """How long it took to go on.

    Of a worker: from its death to the end of the last step that it had begun, by whomever. Of a controller and of the
    server: from the start of the next to the first body that was launched after the kill.
    """
    if kill.victim is Victim.WORKER:
        healed = [verdict.healed_at_s for verdict in verdicts if verdict.healed_at_s is not None]
        return max(healed) - kill.at_s if healed else None
    launched = [verdict.launched_ns for verdict in verdicts if verdict.launched_ns is not None]
    return (min(launched) - kill.back_ns) / 1e9 if launched else None


async def sweep(
    victims: Sequence[Victim], numbers: Sequence[int], seed: int, directory: Path, scale: float = 1.0
) -> list[Tally]:
    """Kill each victim at these moments; the victims have installations of their own, side by side.

    Args:
        numbers: of the moments.
        directory: for everything that is logged; it exists.
        scale: of the waits before and after a kill; less is sooner done.
    """
    sweeps = [Sweep(victim, numbers, seed, directory, scale) for victim in victims]
    async with anyio.create_task_group() as task_group:
        for one in sweeps:
            task_group.start_soon(one.run)
    return [one.tally for one in sweeps]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="for each victim")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first moment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=[*map(str, Victim), "all"], default="all")
    options = parser.parse_args(arguments)
    victims = list(Victim) if options.victim == "all" else [Victim(options.victim)]
    directory = Path(tempfile.mkdtemp(prefix="evpipe-kills-"))
    began = time.monotonic()
    tallies = asyncio.run(
        sweep(victims, range(options.first, options.first + options.moments), options.seed, directory)
    )
    print(table(tallies))
    problems = [problem for tally in tallies for problem in tally.problems]
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s, {len(problems)} problems")
    if not problems:
        shutil.rmtree(directory)
        return 0
    (directory / "problems").write_text("\n".join(problems))
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"PROBLEM {problem}")
    print(f"everything that was logged is in {directory}")
    return 1


if __name__ == "__main__":
    # Ended by whom it may, the processes are ended as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_logs("error")
    sys.exit(main())
