"""The processes of the kill sweep: one server, controller and two workers, killed and started again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import nats

from evpipe.bus.nats.lane import lane_consumer
from evpipe.bus.server import ServerProcess
from evpipe.wire.subjects import DEFAULT_PRIORITY
from tests.e2e.helpers import Program, clean_environment, until_async
from tests.e2e.kill_check import Kill, Victim

#: How a worker is told which module it runs.
CODE = ("--code", "local:tests.e2e.kill_graph")
QUEUE = "default"
PREFIX = "evpipe"
WORKERS = 2
#: So many that the controller lets as many launches leave as are wanted in flight.
SLOTS = 64
#: The kill comes up to so long after the first hundred launches are in flight; about the length of a run.
MOMENT_MAX_S = 2.0
#: The victim is back up to so long after that.
AWAY_MAX_S = 5.0


async def let_pass(seconds: float) -> None:
    """Let a seeded time pass: the moment of a kill and the length of an outage are what this is about."""
    await anyio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill, and for how long; the same for the same seed, victim, number and scale."""

    victim: Victim
    number: int
    #: Names it, and its graphs.
    seed: str
    after_s: float
    away_s: float
    worker: int

    @classmethod
    def of(cls, seed: int, victim: Victim, number: int, scale: float = 1.0) -> Moment:
        start = random.Random(f"{seed}/{victim}")
        # Additive recurrences: however many moments there are, they are spread evenly.
        after = (start.random() + number * (math.sqrt(5) - 1) / 2) % 1.0
        away = (start.random() + number * math.sqrt(2)) % 1.0
        name = f"{seed}/{victim}/{number}"
        return cls(victim, number, name, after * MOMENT_MAX_S * scale, away * AWAY_MAX_S * scale, number % WORKERS)


class Stage:
    """The processes of one installation."""

    def __init__(self, directory: Path, code: Sequence[str] = CODE) -> None:
        self.directory = directory
        self._code = code
        self.server = ServerProcess(directory / "nats")
        self._env: dict[str, str] = {}
        self._starts = 0
        self.controller: Program | None = None
        self.workers: list[Program] = []

    @classmethod
    @asynccontextmanager
    async def opened(cls, directory: Path, code: Sequence[str] = CODE) -> AsyncIterator[Stage]:
        stage = cls(directory, code)
        try:
            stage.server.start()
            stage._env = clean_environment(EVPIPE_NATS_URL=stage.server.url, EVPIPE_PREFIX=PREFIX)
            stage.controller = stage.start_controller()
            stage.workers = [stage.start_worker() for _ in range(WORKERS)]
            await stage._until_logged(stage.controller, "controller_leads")
            for worker in stage.workers:
                await stage._until_logged(worker, "worker_serves")
            yield stage
        finally:
            for program in (stage.controller, *stage.workers):
                if program is not None:
                    program.clean()
            stage.server.stop()

    def kill(self, moment: Moment) -> Kill:
        """Kill the victim with -9."""
        match moment.victim:
            case Victim.CONTROLLER:
                assert self.controller is not None
                pid, end = self.controller.pid, self.controller.clean
            case Victim.WORKER:
                pid, end = self.workers[moment.worker].pid, self.workers[moment.worker].clean
            case Victim.SERVER:
                pid, end = self.server.pid, self.server.kill
        at_ns, at_s = time.monotonic_ns(), time.time()
        end()
        return Kill(moment.victim, pid, at_ns, at_s)

    def start_again(self, moment: Moment) -> None:
        match moment.victim:
            case Victim.CONTROLLER:
                self.controller = self.start_controller()
            case Victim.WORKER:
                self.workers[moment.worker] = self.start_worker()
            case Victim.SERVER:
                self.server.start()

    async def until_back(self, moment: Moment) -> None:
        """Wait until the victim serves again: what is killed next is not one that has not begun."""
        match moment.victim:
            case Victim.CONTROLLER:
                assert self.controller is not None
                await self._until_logged(self.controller, "controller_leads")
            case Victim.WORKER:
                await self._until_logged(self.workers[moment.worker], "worker_serves")
            case Victim.SERVER:
                pass

    def dead(self) -> list[str]:
        """Name the processes that ended by themselves."""
        programs = [("controller", self.controller), *((f"worker {i}", w) for i, w in enumerate(self.workers))]
        found = [f"the {name} ended: {p.err[-2000:]}" for name, p in programs if p is not None and not p.alive]
        return found if self.server.alive else [*found, "the server ended"]

    def start_controller(self) -> Program:
        return self._evpipe("controller")

    def start_worker(self) -> Program:
        return self._evpipe("worker", "-q", QUEUE, "--slots", str(SLOTS), *self._code)

    def _evpipe(self, *args: str) -> Program:
        self._starts += 1
        where = self.directory / f"{args[0]}{self._starts}"
        return Program(where, self._env, "-c", "from evpipe.cli.main import main; main()", *args)

    async def _until_logged(self, program: Program, event: str) -> None:
        async def is_logged() -> bool:
            assert program.alive, f"it ended: {program.err}"
            return f'"{event}"' in program.err

        await until_async(is_logged, f"{event} in {program.err}")


class Queue:
    """Looks at the launches of an installation, as anybody on the bus can."""

    def __init__(self, stage: Stage, connection: Any) -> None:
        self._jetstream = connection.jetstream(timeout=5)
        self._name = f"{PREFIX}-queue"

    @classmethod
    @asynccontextmanager
    async def opened(cls, stage: Stage) -> AsyncIterator[Queue]:
        connection = await nats.connect(stage.server.url)
        try:
            yield cls(stage, connection)
        finally:
            await connection.close()

    async def in_flight(self) -> int:
        """Launches that were published and are not done: those that wait, and those with a worker."""
        info = await self._jetstream.consumer_info(self._name, lane_consumer(QUEUE, DEFAULT_PRIORITY))
        return int(info.num_pending or 0) + int(info.num_ack_pending or 0)

    async def is_empty(self) -> bool:
        return await self.in_flight() == 0
