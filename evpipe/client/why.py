"""Why a step does not run: what the log says, and what only the bus knows: who serves a queue, what it has to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import anyio

from evpipe.bus.protocol import Bus
from evpipe.client.family import child_of
from evpipe.client.fold import RunFold, find_step, folded
from evpipe.core.events import Finished
from evpipe.core.machine import Run
from evpipe.core.names import for_people, from_people
from evpipe.core.waits import WaitKind
from evpipe.core.why import Cause, Why, why, why_of_run
from evpipe.errors import RemoteProtocolError, UsageError
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
    HoldKind.SLOTS: Cause.BEHIND,
    HoldKind.SEMAPHORE: Cause.SEMAPHORE,
    HoldKind.RATE: Cause.RATE,
    HoldKind.CACHE: Cause.SAME_RUNS,
}
#: What keeps a launch from leaving for its queue.
_HELD: Final = frozenset({Cause.WINDOW, Cause.SEMAPHORE, Cause.RATE, Cause.SAME_RUNS})
#: What follows from how many workers a queue has: where there are none, that is the reason.
_OF_WORKERS: Final = frozenset({HoldKind.WINDOW, HoldKind.QUEUE, HoldKind.SLOTS})
#: Of what others have: they may wait for something themselves.
_OF_OTHERS: Final = frozenset({HoldKind.SEMAPHORE, HoldKind.CACHE})
#: Of those that have what a step waits for, so many are looked at.
HOLDERS_MAX: Final = 2


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
        return _rejected(run)
    outer, inside, rest = step.partition("/")
    name = find_step(run, outer)
    if name != from_people(outer):
        # What its elements are is known when it begins: what holds it up is asked for.
        inside = ""
    if inside:
        state = run.steps[name]
        if state.attempt or run.spec(name).child is None or name in run.expansions:
            below = await folded(bus, child_of(run, name))
            if below.run.submitted_at_s is not None:
                return await explained(bus, below, rest)
        # Before it begins what holds it up is asked for.
    return await _completed(bus, fold, why(run, name), 0)


def _rejected(run: Run) -> Why:
    decided = run.decisions.get(("", Finished))
    # What is wrong with it everybody sees, before its end is in the log.
    found = decided.message if isinstance(decided, Finished) else run.message
    message = f"run {run.id} was refused: {found}"
    return Why(run=run.id, step="", status=None, cause=Cause.REJECTED, message=message)


async def _completed(bus: Bus, fold: RunFold, found: Why, level: int) -> Why:
    """Add what the log of its run does not say."""
    if not fold.run.ended and found.cause is not Cause.DONE:
        found = await _Outside(bus, fold, level).of(found)
    return await _with_children(bus, found, level)


async def _with_children(bus: Bus, link: Why, level: int) -> Why:
    """Add to each step that is a run what that goes on with, or what failed it."""
    because = [await _with_children(bus, inner, level) for inner in link.because]
    if link.child and level < LEVELS_MAX:
        inside = await folded(bus, link.child)
        if inside.run.graph is None and inside.run.submitted_at_s is not None:
            because.append(_rejected(inside.run))
        because += [await _completed(bus, inside, one, level + 1) for one in why_of_run(inside.run)]
    return replace(link, because=tuple(because))


class _Outside:
    """What the bus knows, asked once for all links of a chain."""

    def __init__(self, bus: Bus, fold: RunFold, level: int) -> None:
        self._bus = bus
        self._level = level
        self._fold = fold
        self._controller = True
        self._workers: list[WorkerEntry] = []
        #: Ids of those that are here, also of those that take nothing more.
        self._here: set[str] = set()
        #: Why each step in a queue waits there.
        self._found: dict[str, list[Why]] = {}

    async def of(self, found: Why) -> Why:
        links = _links(found)
        queued = [link.step for link in links if link.cause is Cause.QUEUED][:LOOKED_UP_MAX]
        runs = any(link.cause is Cause.RUNNING and link.worker for link in links)
        async with anyio.create_task_group() as task_group:
            if self._level == 0:
                task_group.start_soon(self._ask_controller)
            if queued or runs:
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
        if link.cause is Cause.WAIT:
            return replace(link, message=link.message + self._how_to_answer(link.step))
        if link.cause is Cause.RUNNING and link.worker and link.worker not in self._here:
            queue = self._queue(link.step)
            message = f"nothing is heard of that worker: if it is gone, one that serves {queue!r} repeats the attempt"
            if not any(queue in worker.queues for worker in self._workers):
                message += f", and nobody does: `evpipe worker -q {queue}`"
            return replace(link, because=(*inner, self._about(Cause.NO_WORKER, message)))
        if link.cause is not Cause.QUEUED or link.step not in self._found:
            return replace(link, because=tuple(inner))
        outside = self._found[link.step]
        attempt = self._fold.run.steps[from_people(link.step)].attempt
        message = f"attempt {attempt} " if attempt > 1 else ""
        if any(one.cause in _HELD for one in outside):
            message += "is ready, and not launched yet"
        else:
            message += f"waits in the queue {self._queue(link.step)!r} for a worker"
        return replace(link, message=message, because=(*inner, *outside))

    def _how_to_answer(self, step: str) -> str:
        wait = self._fold.run.spec(from_people(step)).wait
        is_approval = wait is not None and wait.kind is WaitKind.APPROVAL
        return f" (`evpipe runs approve {self._fold.run.id} {step}`)" if is_approval else ""

    def _queue(self, step: str) -> str:
        submission = self._fold.submission
        return (submission.queue if submission is not None else "") or self._fold.run.spec(from_people(step)).queue

    async def _ask_controller(self) -> None:
        self._controller = await self._ask(self._bus.subjects.ping_controller) is not None

    async def _read_workers(self) -> None:
        for entry in await self._bus.bucket(WORKERS_BUCKET).entries():
            try:
                worker = decode_worker(entry.value)
            except RemoteProtocolError:
                continue
            self._here.add(worker.id)
            if not worker.draining:
                self._workers.append(worker)

    async def _look_up(self, step: str) -> None:
        found = self._found[step] = []
        hold = await self._hold(from_people(step))
        if hold is not None and hold.kind not in _OF_WORKERS:
            found.append(await self._held(hold))
        queue = self._queue(step)
        serving = [worker for worker in self._workers if queue in worker.queues]
        if not serving and await self._ask(self._bus.subjects.ping_worker(queue)) is None:
            # A worker that has just come has not said so yet, but answers.
            message = f"no worker serves the queue {queue!r}: start one with `evpipe worker -q {queue}`"
            found.append(self._about(Cause.NO_WORKER, message))
        elif hold is not None and not found:
            found.append(await self._held(hold))
        elif hold is None:
            lanes = [lane for lane in await self._bus.lanes() if lane.queue == queue]
            waiting, taken = sum(lane.waiting for lane in lanes), sum(lane.taken for lane in lanes)
            slots, busy = sum(worker.slots for worker in serving), sum(worker.busy for worker in serving)
            limit = min((lane.limit for lane in lanes if lane.limit is not None), default=None)
            if limit is not None and taken >= limit:
                # The controller looks at that less often.
                message = f"the queue {queue!r} is limited to {limit:,} at a time, and {taken:,} are under way"
                found.append(self._about(Cause.QUEUE_LIMIT, message + _how_to_change(queue)))
            elif waiting or taken:
                has = f"{waiting:,} {'launch waits' if waiting == 1 else 'launches wait'} in the queue {queue!r}"
                message = f"{has}, and its workers have taken {taken:,}; {busy} of their {slots} slots are busy"
                found.append(self._about(Cause.BEHIND, message))

    async def _hold(self, step: str) -> Hold | None:
        """Ask the controller what holds a launch back."""
        answer = await self._ask(self._bus.subjects.held(self._fold.run.id, step))
        try:
            return decode_hold(answer) if answer is not None else None
        except RemoteProtocolError:
            return None

    async def _ask(self, subject: str) -> bytes | None:
        return await self._bus.ask(subject, b"", timeout_s=ANSWER_S)

    async def _held(self, hold: Hold) -> Why:
        message = str(hold).removeprefix("it ")
        if hold.kind is HoldKind.QUEUE:
            message += _how_to_change(hold.queue)
        because: list[Why] = []
        if hold.kind in _OF_OTHERS and self._level < LEVELS_MAX:
            because = [await self._other(run, step) for run, step in hold.holders[:HOLDERS_MAX]]
        return replace(self._about(_CAUSES[hold.kind], message), due_at_s=hold.until_s, because=tuple(because))

    async def _other(self, run: str, step: str) -> Why:
        """Say of a step of another run how it is."""
        fold = await folded(self._bus, run)
        if step not in fold.run.steps:
            return Why(run=run, step=for_people(step), status=None, cause=Cause.DONE, message="nothing is known of it")
        return await _completed(self._bus, fold, why(fold.run, step), self._level + 1)

    def _about(self, cause: Cause, message: str) -> Why:
        return Why(run=self._fold.run.id, step="", status=None, cause=cause, message=message)


def _how_to_change(queue: str) -> str:
    return f" (`evpipe queues limit {queue} N` changes that)"


def _links(found: Why) -> list[Why]:
    links = [found]
    for link in links:
        links.extend(link.because)
    return links
