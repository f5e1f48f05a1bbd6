"""Why a step does not run: what the log says, and what only the bus knows: who serves a queue, what it has to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import anyio

from evpipe.bus.protocol import Bus
from evpipe.client.family import child_of
from evpipe.client.fold import RunFold, folded
from evpipe.core.names import for_people, from_people, nearest
from evpipe.core.why import Cause, Why, why, why_of_run
from evpipe.errors import NotFound, RemoteProtocolError, UsageError
from evpipe.wire.holds import Hold, HoldKind, decode_hold
from evpipe.wire.presence import BUCKET as WORKERS_BUCKET
from evpipe.wire.presence import WorkerEntry, decode_worker

#: Who is there answers a question within milliseconds.
ANSWER_S: Final = 0.3
#: Steps in queues whose reasons are looked up.
LOOKED_UP_MAX: Final = 8
#: Runs in each other that are looked into.
LEVELS_MAX: Final = 4
_CAUSES: Final = {
    HoldKind.WINDOW: Cause.WINDOW,
    HoldKind.QUEUE: Cause.QUEUE_LIMIT,
    HoldKind.SEMAPHORE: Cause.SEMAPHORE,
    HoldKind.RATE: Cause.RATE,
    HoldKind.CACHE: Cause.SAME_RUNS,
}
#: What follows from how many workers a queue has: where there are none, that is the reason.
_OF_WORKERS: Final = frozenset({HoldKind.WINDOW, HoldKind.QUEUE})


async def explained(bus: Bus, fold: RunFold, step: str) -> Why:
    """Say why a step of a folded run is as it is.

    Args:
        step: its name, as people write it: "train", "train[2]"; of a run below by its path: "inner/train".

    Raises:
        NotFound: if the run has no such step.
        UsageError: if it is no text.
    """
    if not isinstance(step, str):
        raise UsageError(f"step must be the name of a step, a text such as 'train' or 'train[2]', not {step!r:.60}")
    run = fold.run
    if run.graph is None and run.submitted_at_s is not None:
        return Why(
            run=run.id, step="", status=None, cause=Cause.REJECTED, message=f"the run was refused: {run.message}"
        )
    outer, inside, rest = step.partition("/")
    name = from_people(outer)
    if name not in run.steps:
        raise NotFound(f"run {run.id} has no step {outer!r}{nearest(outer, map(for_people, run.steps))}")
    if inside:
        return await explained(bus, await folded(bus, child_of(run, name)), rest)
    return await _completed(bus, fold, why(run, name), 0)


async def _completed(bus: Bus, fold: RunFold, found: Why, level: int) -> Why:
    """Add what the log of its run does not say."""
    if not fold.run.ended and found.cause is not Cause.DONE:
        found = await _Outside(bus, fold, asks_controller=level == 0).of(found)
    return await _with_children(bus, found, level)


async def _with_children(bus: Bus, link: Why, level: int) -> Why:
    """Add to each step that is a run what that goes on with, or what failed it."""
    because = [await _with_children(bus, inner, level) for inner in link.because]
    if link.child and level < LEVELS_MAX:
        inside = await folded(bus, link.child)
        because += [await _completed(bus, inside, one, level + 1) for one in why_of_run(inside.run)]
    return replace(link, because=tuple(because))


class _Outside:
    """What the bus knows, asked once for all links of a chain."""

    def __init__(self, bus: Bus, fold: RunFold, *, asks_controller: bool) -> None:
        self._bus = bus
        self._asks_controller = asks_controller
        self._fold = fold
        self._controller = True
        self._workers: list[WorkerEntry] = []
        #: Why each step in a queue waits there.
        self._found: dict[str, list[Why]] = {}

    async def of(self, found: Why) -> Why:
        queued = [link.step for link in _links(found) if link.cause is Cause.QUEUED][:LOOKED_UP_MAX]
        async with anyio.create_task_group() as task_group:
            if self._asks_controller:
                task_group.start_soon(self._ask_controller)
            if queued:
                await self._read_workers()
            for step in queued:
                task_group.start_soon(self._look_up, step)
        whole = self._filled(found)
        if self._controller:
            return whole
        message = "no controller answers on this bus: nothing goes on until one is started"
        return replace(whole, because=(*whole.because, self._about(Cause.NO_CONTROLLER, message)))

    def _filled(self, link: Why) -> Why:
        inner = [self._filled(one) for one in link.because]
        outside = self._found.get(link.step, []) if link.cause is Cause.QUEUED else []
        return replace(link, because=(*inner, *outside))

    async def _ask_controller(self) -> None:
        self._controller = await self._ask(self._bus.subjects.ping_controller) is not None

    async def _read_workers(self) -> None:
        for entry in await self._bus.bucket(WORKERS_BUCKET).entries():
            try:
                worker = decode_worker(entry.value)
            except RemoteProtocolError:
                continue
            if not worker.draining:
                self._workers.append(worker)

    async def _look_up(self, step: str) -> None:
        found = self._found[step] = []
        hold = await self._hold(from_people(step))
        if hold is not None and hold.kind not in _OF_WORKERS:
            found.append(self._held(hold))
        submission = self._fold.submission
        queue = (submission.queue if submission is not None else "") or self._fold.run.spec(from_people(step)).queue
        serving = [worker for worker in self._workers if queue in worker.queues]
        if not serving and await self._ask(self._bus.subjects.ping_worker(queue)) is None:
            # A worker that has just come has not said so yet, but answers.
            message = f"no worker serves the queue {queue!r}: start one with `evpipe worker -q {queue}`"
            found.append(self._about(Cause.NO_WORKER, message))
        elif hold is not None:
            found[:] = [self._held(hold)]
        else:
            lanes = [lane for lane in await self._bus.lanes() if lane.queue == queue]
            waiting, taken = sum(lane.waiting for lane in lanes), sum(lane.taken for lane in lanes)
            slots, busy = sum(worker.slots for worker in serving), sum(worker.busy for worker in serving)
            if waiting or taken:
                has = f"{waiting:,} launches wait in the queue {queue!r}, this one among them, and {taken:,} run"
                found.append(self._about(Cause.BEHIND, f"{has}; {busy} of {slots} slots of its workers are busy"))

    async def _hold(self, step: str) -> Hold | None:
        """Ask the controller what holds a launch back."""
        answer = await self._ask(self._bus.subjects.held(self._fold.run.id, step))
        try:
            return decode_hold(answer) if answer is not None else None
        except RemoteProtocolError:
            return None

    async def _ask(self, subject: str) -> bytes | None:
        return await self._bus.ask(subject, b"", timeout_s=ANSWER_S)

    def _held(self, hold: Hold) -> Why:
        message = str(hold).removeprefix("it ")
        return replace(self._about(_CAUSES[hold.kind], message), due_at_s=hold.until_s)

    def _about(self, cause: Cause, message: str) -> Why:
        return Why(run=self._fold.run.id, step="", status=None, cause=cause, message=message)


def _links(found: Why) -> list[Why]:
    links = [found]
    for link in links:
        links.extend(link.because)
    return links
