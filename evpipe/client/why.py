"""Why a step does not run: what the log says, and what only the bus knows: who serves a queue, what it has to do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import anyio

from evpipe.bus.protocol import Bus
from evpipe.client.fingerprints import components_of
from evpipe.client.fold import RunFold
from evpipe.core.bindings import BindingError, resolve
from evpipe.core.names import nearest
from evpipe.core.why import Cause, Why, why
from evpipe.errors import EvpipeError, NotFound, RemoteProtocolError
from evpipe.wire.cache import BUCKET as CACHE_BUCKET
from evpipe.wire.cache import Marker, decode_entry
from evpipe.wire.presence import BUCKET as WORKERS_BUCKET
from evpipe.wire.presence import WorkerEntry, decode_worker

#: Who is there answers a question within milliseconds.
ANSWER_S: Final = 0.5
#: Steps in queues whose reasons are looked up.
LOOKED_UP_MAX: Final = 8
_INDEX: Final = re.compile(r"\[(\d+)\]")


async def explained(bus: Bus, fold: RunFold, step: str) -> Why:
    """Say why a step of a folded run is as it is.

    Args:
        step: its name, as people write it: "train", "train[2]".

    Raises:
        NotFound: if the run has no such step.
    """
    run = fold.run
    if run.graph is None and run.submitted_at_s is not None:
        return Why(
            run=run.id, step="", status=None, cause=Cause.REJECTED, message=f"the run was refused: {run.message}"
        )
    name = _INDEX.sub(r"=\1", step)
    if name not in run.steps:
        raise NotFound(f"run {run.id} has no step {step!r}{nearest(step, run.steps)}")
    found = why(run, name)
    if run.ended or found.cause is Cause.DONE:
        return found
    return await _Outside(bus, fold).of(found)


class _Outside:
    """What the bus knows, asked once for all links of a chain."""

    def __init__(self, bus: Bus, fold: RunFold) -> None:
        self._bus = bus
        self._fold = fold
        self._controller = True
        self._workers: list[WorkerEntry] = []
        #: Why each step in a queue waits there.
        self._found: dict[str, Why] = {}

    async def of(self, found: Why) -> Why:
        queued = [link.step for link in _links(found) if link.cause is Cause.QUEUED][:LOOKED_UP_MAX]
        async with anyio.create_task_group() as task_group:
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
        outside = self._found.get(link.step) if link.cause is Cause.QUEUED else None
        because = (outside,) if outside is not None else tuple(self._filled(inner) for inner in link.because)
        return replace(link, because=because)

    async def _ask_controller(self) -> None:
        answer = await self._bus.ask(self._bus.subjects.ping_controller, b"", timeout_s=ANSWER_S)
        self._controller = answer is not None

    async def _read_workers(self) -> None:
        for entry in await self._bus.bucket(WORKERS_BUCKET).entries():
            try:
                worker = decode_worker(entry.value)
            except RemoteProtocolError:
                continue
            if not worker.draining:
                self._workers.append(worker)

    async def _look_up(self, step: str) -> None:
        leader = await self._leader(step)
        if leader is not None:
            message = f"step {leader.step!r} of run {leader.run} computes the same now: its result is waited for"
            self._found[step] = self._about(Cause.SAME_RUNS, message)
            return
        submission = self._fold.submission
        queue = (submission.queue if submission is not None else "") or self._fold.run.spec(step).queue
        serving = [worker for worker in self._workers if queue in worker.queues]
        if not serving:
            # A worker that has just come has not said so yet, but answers.
            answer = await self._bus.ask(self._bus.subjects.ping_worker(queue), b"", timeout_s=ANSWER_S)
            if answer is None:
                message = f"no worker serves the queue {queue!r}: start one with `evpipe worker -q {queue}`"
                self._found[step] = self._about(Cause.NO_WORKER, message)
                return
        lanes = [lane for lane in await self._bus.lanes() if lane.queue == queue]
        waiting, taken = sum(lane.waiting for lane in lanes), sum(lane.taken for lane in lanes)
        slots, busy = sum(worker.slots for worker in serving), sum(worker.busy for worker in serving)
        if waiting or taken:
            has = f"the queue {queue!r} has {waiting:,} launches that wait, this one among them, and {taken:,} that run"
            self._found[step] = self._about(Cause.BEHIND, f"{has}; {busy} of {slots} slots of its workers are busy")

    async def _leader(self, step: str) -> Marker | None:
        """Give who computes the result of a cached step now, if that is another."""
        run, submission = self._fold.run, self._fold.submission
        spec = run.spec(step)
        if spec.cache is None or submission is None or submission.no_cache:
            return None
        try:
            arguments = resolve(spec.arguments, run.outputs, run.parameters)
            components = components_of(spec, arguments, submission.facts)
            entry = None
            if components is not None:
                entry = await self._bus.bucket(CACHE_BUCKET).get(components.fingerprint())
            content = decode_entry(entry.value) if entry is not None else None
        except (BindingError, EvpipeError):
            return None
        mine = isinstance(content, Marker) and (content.run, content.step) == (run.id, step)
        return content if isinstance(content, Marker) and not mine else None

    def _about(self, cause: Cause, message: str) -> Why:
        return Why(run=self._fold.run.id, step="", status=None, cause=cause, message=message)


def _links(found: Why) -> list[Why]:
    links = [found]
    for link in links:
        links.extend(link.because)
    return links
