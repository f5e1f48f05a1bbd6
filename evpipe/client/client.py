"""The client: submits runs, finds them, subscribes to events."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
import anyio.to_thread
import structlog

from evpipe.bus.protocol import YOUNG_S, Bus, Refused
from evpipe.bus.settings import BusSettings, load_settings
from evpipe.client.artifact_store import store_all
from evpipe.client.bundle import COMMANDS, bundle_of
from evpipe.client.cache import CacheView
from evpipe.client.command_files import command_files, commands_of, function_modules
from evpipe.client.events import RunEvent
from evpipe.client.fingerprints import facts_of_run
from evpipe.client.garbage import Garbage, collect_garbage
from evpipe.client.graphs import graph_bytes, store_graphs
from evpipe.client.handle import RunHandle
from evpipe.client.hooks import Filter, Hook, Hooks, Since, events_of
from evpipe.client.waiting import WaitingStep, waiting_of
from evpipe.core.fingerprint import NO_FACTS, RunFacts
from evpipe.core.graph import Graph, found_in
from evpipe.core.limits import check_priority
from evpipe.core.names import check_name, check_signal_name, nearest
from evpipe.core.states import RUN_ENDS
from evpipe.errors import Conflict, NotFound, RemoteProtocolError, UsageError
from evpipe.sdk.definition import AnyPipeline, Built, no_pipeline
from evpipe.sdk.loading import check_not_loading
from evpipe.wire.bundles import pack_bundle
from evpipe.wire.graphs import graph_digest
from evpipe.wire.holds import Hold, decode_hold
from evpipe.wire.messages import Submission, decode_submission, encode_submission, packed_parameters
from evpipe.wire.presence import BUCKET as WORKERS_BUCKET
from evpipe.wire.presence import WorkerEntry, decode_worker
from evpipe.wire.registry import BUCKET, RunEntry, decode_run_entry
from evpipe.wire.signals import encode_signal
from evpipe.wire.spool import spooled
from evpipe.wire.subjects import check_run_id
from evpipe.wire.values import pack

if TYPE_CHECKING:
    from evpipe.bus.embedded import EmbeddedServer

log = structlog.get_logger(__name__)

R = TypeVar("R")

_INDEX: Final = re.compile(r"\[(\d{1,9})\]")
#: A function that is called with events.
Hook_ = TypeVar("Hook_", bound=Callable[[RunEvent], object])

#: Objects that nothing refers to are kept for so long, by default.
GARBAGE_OLDER_S = 3_600.0
#: How often a user of the embedded server makes sure that its keeper lives.
KEEPER_LOOK_S = 1.0


def connect(
    url: str | None = None,
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    credentials: str | Path | None = None,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    prefix: str | None = None,
) -> Client:
    """Describe a connection; `async with` makes it, so the client may be handed on before.

    Args:
        url: of one or several NATS servers, with commas between; None: as configured by `EVPIPE_NATS_URL`,
            `NATS_URL` or a file, and if it is not, the embedded server of this user.
        credentials: path of a NATS credentials file.
        prefix: names the installation; a second prefix is a second, separate one.

    Raises:
        UsageError: if a setting is not usable.
    """
    return Client(
        load_settings(
            url=url,
            user=user,
            password=password,
            token=token,
            credentials=credentials,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            prefix=prefix,
        )
    )


class Client:
    """A connection to an installation: `async with connect() as client: …`.

    Args:
        settings: where the bus is; made by `connect`.
        bus: a bus to use instead, which somebody else has entered.
    """

    def __init__(self, settings: BusSettings | None = None, *, bus: Bus | None = None) -> None:
        self._settings = settings
        self._bus = bus
        self._stack = AsyncExitStack()
        self._hooks = Hooks()
        #: The embedded server, where that is what this client uses.
        self.embedded: EmbeddedServer | None = None

    async def __aenter__(self) -> Self:
        try:
            if self._bus is None:
                self._bus = await self._connected()
            # Ends before the bus does.
            task_group = await self._stack.enter_async_context(anyio.create_task_group())
            self._stack.callback(task_group.cancel_scope.cancel)
            self._stack.callback(self._hooks.stop)
            await self._hooks.start(self._bus, task_group)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _connected(self) -> Bus:
        settings = self._settings
        assert settings is not None
        # nats-py takes a third of a second to import: only who connects pays for it.
        from evpipe.bus.embedded import EmbeddedServer
        from evpipe.bus.nats.bus import NatsBus

        if settings.url is None:
            self.embedded = await anyio.to_thread.run_sync(EmbeddedServer.start, settings.data_dir)
            self._stack.callback(self.embedded.close)
            settings = embedded_settings(settings, self.embedded)
        if self.embedded is not None:
            task_group = await self._stack.enter_async_context(anyio.create_task_group())
            self._stack.callback(task_group.cancel_scope.cancel)
            task_group.start_soon(self._keep_embedded, self.embedded)
        return await self._stack.enter_async_context(NatsBus(settings))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._settings is not None:
            self._bus = None
        await self._stack.__aexit__(None, None, None)

    async def _keep_embedded(self, server: EmbeddedServer) -> None:
        while True:
            await anyio.sleep(KEEPER_LOOK_S)
            if await anyio.to_thread.run_sync(server.ensure) and self._settings is not None:
                # Its port was taken while it was away: what reconnects by itself must look elsewhere.
                self._relocate(embedded_settings(self._settings, server))

    def _relocate(self, settings: BusSettings) -> None:
        from evpipe.bus.nats.bus import NatsBus

        if isinstance(self._bus, NatsBus):
            self._bus.relocate(settings)

    @property
    def bus(self) -> Bus:
        """The bus; UsageError if the client was not entered."""
        if self._bus is None:
            raise UsageError("the client is not connected: use it inside `async with client:`")
        return self._bus

    def again(self) -> Client:
        """Make another client of the same installation, for a loop of its own."""
        if self._settings is not None:
            return Client(self._settings)
        settings = getattr(self._bus, "settings", None)
        # A bus in this process is no connection: every loop may use it.
        return Client(settings) if isinstance(settings, BusSettings) else Client(bus=self._bus)

    # ---- runs

    async def submit(
        self,
        target: AnyPipeline[..., R],
        parameters: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        queue: str = "",
        no_cache: bool = False,
        refresh: bool | Sequence[str] = False,
        priority: int | None = None,
    ) -> RunHandle[R]:
        """Submit a run.

        Args:
            target: a pipeline.
            parameters: values of its parameters; those with a default may be left out.
            key: makes the submit idempotent: the same key, graph and parameters are the same run.
            queue: takes all launches of the run, whatever queue its steps name; "" leaves them theirs.
            no_cache: take nothing from the cache, and record nothing there.
            refresh: names of steps that run even if the cache has their results, which are replaced; True: all.
            priority: 0 (first) to 9 (last), of its steps that have none of their own; None: the pipeline's.

        Returns:
            A handle of the run, which is in the log for good.

        Raises:
            UsageError: if the parameters or the graph are wrong; nothing was submitted.
            Conflict: if the key belongs to a run with another graph or other parameters.
        """
        if not isinstance(target, AnyPipeline):
            raise no_pipeline("submit", target)
        built = target.build(dict(parameters or {}))
        return await self.submit_built(
            built, key=key, queue=queue, no_cache=no_cache, refresh=refresh, priority=priority
        )

    async def submit_built(
        self,
        built: Built,
        *,
        key: str | None = None,
        queue: str = "",
        no_cache: bool = False,
        refresh: bool | Sequence[str] = False,
        priority: int | None = None,
        code_travels: bool = True,
    ) -> RunHandle[Any]:
        """Submit a graph that was built before; as `submit`.

        Args:
            code_travels: whether workers get the code of its steps from here; not if those that will run it have it.
        """
        check_not_loading()
        bus = self.bus
        await self._hooks.subscribe()
        if queue:
            check_name("queue", queue)
        if priority is not None:
            check_priority("priority", priority)
        refreshed = check_refresh(refresh, built.graph, no_cache=no_cache)
        source = await self._code(built.graph) if code_travels and not bus.in_process else {}
        source |= await self._command_files(built.graph)
        facts = None if no_cache else await self._facts(built.graph)
        with spooled() as spool:
            # First: what is refused for its size is not written into a graph before.
            encode = partial(packed_parameters, built.parameters, spool)
            parameters = encode() if bus.in_process else await anyio.to_thread.run_sync(encode)
            data, inner = await graph_bytes(built.graph, spool, here=bus.in_process)
            submission = Submission(
                graph=graph_digest(data),
                parameters=built.parameters,
                queue=queue,
                source=source,
                facts=facts or NO_FACTS,
                no_cache=no_cache,
                refresh=refreshed,
                priority=priority,
            )
            payload = encode_submission(submission, parameters=parameters)
            # Before the submit that names them.
            await store_all(bus, spool.files)
        run_id = new_run_id() if key is None else keyed_run_id(built.graph.pipeline, key)
        await store_graphs(bus, {**inner, submission.graph: data})
        subject = bus.subjects.event(built.graph.pipeline, run_id, None, "submitted")
        if await bus.append_wait(subject, payload, expected=0) is Refused.SEQUENCE:
            found = await bus.last(subject)
            if found is not None:
                _check_same_submit(found.payload, decode_submission(payload), run_id, key)
        log.debug("run_submitted", run_id=run_id, pipeline=built.graph.pipeline)
        return RunHandle(bus, run_id, built.graph.pipeline, self.again)

    async def _code(self, graph: Graph) -> dict[str, Any]:
        """Store the code of a graph's steps; gives how its launches name it."""
        bundle = await anyio.to_thread.run_sync(bundle_of, function_modules(graph))
        if bundle is None:
            return {}
        # Asked for with every submit, as with the graph: what was deleted meanwhile is put again.
        await self.bus.objects.put(bundle.digest, bundle.data)
        return bundle.as_map()

    async def _command_files(self, graph: Graph) -> dict[str, Any]:
        """Store the files that a graph's commands need; gives how its launches name them."""
        commands = commands_of(graph)
        if not commands:
            return {}
        files = await anyio.to_thread.run_sync(command_files, commands)
        if not files:
            return {}
        digest, data = await anyio.to_thread.run_sync(pack_bundle, files)
        await self.bus.objects.put(digest, data)
        return {COMMANDS: digest}

    async def _facts(self, graph: Graph) -> RunFacts | None:
        if self.bus.in_process:
            # Whoever runs it waits for it anyway.
            return facts_of_run(graph)
        return await anyio.to_thread.run_sync(facts_of_run, graph)

    async def get_run(self, run_id: str) -> RunHandle[Any]:
        """Give a handle of a run by its id; NotFound if there is none."""
        bus = self.bus
        check_run_id(run_id)
        pipelines: list[str] = []
        submits = bus.replay([bus.subjects.events_of_step(run_id, "_", "submitted")], up_to=await bus.last_sequence())
        async for records in submits:
            for record in records:
                try:
                    pipelines.append(bus.subjects.parse_event(record.subject).pipeline)
                except RemoteProtocolError:
                    continue
        if pipelines:
            return RunHandle(bus, run_id, pipelines[0], self.again)
        raise NotFound(f"there is no run {run_id}")

    async def find_runs(self, prefix: str) -> list[RunHandle[Any]]:
        """Give handles of the runs whose id begins like this, the oldest first, from the log."""
        bus = self.bus
        found: dict[str, RunHandle[Any]] = {}
        submits = bus.replay([bus.subjects.events_like(kind="submitted")], up_to=await bus.last_sequence())
        async for records in submits:
            for record in records:
                try:
                    subject = bus.subjects.parse_event(record.subject)
                except RemoteProtocolError:
                    continue
                if subject.run.startswith(prefix):
                    # Of a run that two pipelines claim the first has it, as in `get_run`.
                    found.setdefault(subject.run, RunHandle(bus, subject.run, subject.pipeline, self.again))
        return list(found.values())

    async def runs(
        self,
        *,
        pipeline: str | None = None,
        status: str | None = None,
        parent: str | None = None,
        children: bool = False,
    ) -> list[RunEntry]:
        """List runs, the newest first, from the registry (which may be a moment behind the log).

        Args:
            pipeline: only runs of it.
            status: only runs with it.
            parent: only the runs that are steps of this one.
            children: also the runs that are steps of others.
        """
        entries: list[RunEntry] = []
        for entry in await self.bus.bucket(BUCKET).entries():
            try:
                found = decode_run_entry(entry.value)
            except RemoteProtocolError:
                continue
            listed = found.parent == parent if parent is not None else children or not found.parent
            if listed and pipeline in (None, found.pipeline) and status in (None, found.status):
                entries.append(found)
        return sorted(entries, key=lambda entry: entry.submitted_at_s, reverse=True)

    async def waiting(self, *, pipeline: str | None = None) -> list[WaitingStep]:
        """List what waits for an answer, over all runs, what has waited longest first.

        Which runs go on is said by the registry, which may be a moment behind the log.

        Args:
            pipeline: only steps of its runs.
        """
        open_runs: list[str] = []
        for entry in await self.bus.bucket(BUCKET).entries():
            # All of them: a run that is a step of another may wait, too.
            with suppress(RemoteProtocolError):
                run = decode_run_entry(entry.value)
                if pipeline in (None, run.pipeline) and run.status not in RUN_ENDS:
                    open_runs.append(run.run)
        found = [step async for step in waiting_of(self.bus, open_runs)]
        return sorted(found, key=lambda step: step.since)

    async def events(
        self,
        *,
        pipeline: str | None = None,
        kind: str | None = None,
        since: Since = None,
    ) -> AsyncIterator[RunEvent]:
        """Subscribe to events; does not end.

        Args:
            pipeline: only events of its runs.
            kind: only events of this kind ("failed", "finished", …).
            since: a datetime (or seconds since 1970 as a float): events from then on; an int: events after that
                sequence of the log; None: those from now on.

        Raises:
            UsageError: if the pipeline's name or the kind is none.
        """
        async with aclosing(events_of(self.bus, Filter.of(pipeline, kind, since))) as events:
            async for event in events:
                yield event

    def on(
        self, *, pipeline: str | None = None, kind: str | None = None, since: Since = None
    ) -> Callable[[Hook_], Hook_]:
        """Decorate a function that is called with every event that matches, while this client is entered.

        `@client.on(pipeline="churn", kind="failed")` above `async def alarm(event)`. A plain function is called in a
        thread. Each function is called with one event after the other, in the order of the log, and holds up nobody
        else; what it raises is logged, and it is called with the next event. Leaving the client cancels a function that
        is under way, and waits for a plain one.

        It is called at most once for an event, and not for events while the client is not entered. Who must not miss
        any remembers the `sequence` of the event that was done last and gives it as `since`: then every event comes, at
        least once, for one that was done and not remembered comes again. What this client submits is seen by functions
        that were registered before.

        Args:
            pipeline: only events of its runs.
            kind: only events of this kind ("failed", "finished", …).
            since: as of `events`.

        Raises:
            UsageError: as `events`.
        """
        wanted = Filter.of(pipeline, kind, since)

        def register(function: Hook_) -> Hook_:
            self._hooks.add(Hook(function, wanted))
            return function

        return register

    async def send_signal(self, name: str, payload: Any = None) -> int:
        """Send a signal to all steps that wait for it, now and, for as long as it is kept, later (7 days, by default).

        Args:
            name: up to eight names with dots between them, as in "orders.created".
            payload: what JSON holds, of at most 64 KiB.

        Returns:
            Its sequence among all signals. After a lost answer it may have been sent twice.

        Raises:
            UsageError: if the name is not allowed.
            EncodingError, LimitExceeded: if the payload is not.
        """
        bus = self.bus
        subject = bus.subjects.signal(check_signal_name(name))
        return await bus.signals.send(subject, encode_signal(payload, name))

    @property
    def cache(self) -> CacheView:
        """The cache: list, explain, clear."""
        return CacheView(self.bus)

    async def collect_garbage(self, *, older_s: float = GARBAGE_OLDER_S, dry_run: bool = False) -> Garbage:
        """Remove objects that no run and no result in the cache refers to.

        Args:
            older_s: seconds that an object must be old to be removed; nothing that is younger than the oldest run that
                goes on is removed either.
            dry_run: only look.
        """
        if older_s < YOUNG_S:
            raise UsageError(f"older_s must be at least {YOUNG_S:g}: what is younger may be about to be used again")
        return await collect_garbage(self.bus, older_s=older_s, dry_run=dry_run)

    # ---- who is there

    async def workers(self) -> list[WorkerEntry]:
        """List the workers that are there, those that began first first."""
        found: list[WorkerEntry] = []
        for entry in await self.bus.bucket(WORKERS_BUCKET).entries():
            try:
                found.append(decode_worker(entry.value))
            except RemoteProtocolError:
                continue
        return sorted(found, key=lambda worker: (worker.started_at_s, worker.id))

    async def queues(self) -> list[QueueState]:
        """List the queues that a worker serves, or that have launches, by name."""
        workers = [worker for worker in await self.workers() if not worker.draining]
        limits = await self.bus.queue_limits()
        waiting: dict[str, list[int]] = {queue: [0, 0] for worker in workers for queue in worker.queues}
        waiting |= {queue: [0, 0] for queue in limits}
        for lane in await self.bus.lanes():
            if lane.queue not in waiting and not lane.waiting and not lane.taken:
                # Nobody serves it and nobody needs it: the own queue of a script that has ended, say.
                continue
            counts = waiting.setdefault(lane.queue, [0, 0])
            counts[0] += lane.waiting
            counts[1] += lane.taken
        return [
            QueueState(
                queue,
                counts[0],
                counts[1],
                tuple(worker.id for worker in workers if queue in worker.queues),
                limits.get(queue),
            )
            for queue, counts in sorted(waiting.items())
        ]

    async def limit_queue(self, queue: str, limit: int | None) -> None:
        """Let at most `limit` launches of a queue be under way at a time, whatever its workers have slots; None: any.

        It holds at once; what runs already runs on.

        Raises:
            UsageError: if the queue's name is not allowed, or the limit is not a whole number from 1 to 99,999.
        """
        check_name("queue", queue)
        await self.bus.limit_queue(queue, limit)

    async def holds(self, run_id: str, step: str, *, timeout_s: float = 2.0) -> Hold | None:
        """Ask the controller why a step that is `queued` is not launched.

        Args:
            step: its name; of an element of a mapped step as people write it, "train[2]".
            timeout_s: seconds to wait for an answer.

        Returns:
            What it waits for; None if it is held back by nothing (a worker has it, or it is on its way to one with a
            free slot, or it is not ready), or nobody has answered.
        """
        bus = self.bus
        name = _INDEX.sub(r"=\1", step)
        check_name("step", name.partition("=")[0])
        answer = await bus.ask(bus.subjects.held(check_run_id(run_id), name), b"", timeout_s=timeout_s)
        try:
            return decode_hold(answer) if answer is not None else None
        except RemoteProtocolError as error:
            log.warning("answer_quarantined", reason=str(error))
            return None

    async def controller_answers(self, timeout_s: float) -> bool:
        bus = self.bus
        return await bus.ask(bus.subjects.ping_controller, b"", timeout_s=timeout_s) is not None

    async def worker_answers(self, queue: str, timeout_s: float) -> bool:
        bus = self.bus
        return await bus.ask(bus.subjects.ping_worker(queue), b"", timeout_s=timeout_s) is not None


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it is now."""

    name: str
    #: Launches that no worker has taken yet, and launches that were taken and are not done.
    waiting: int
    taken: int
    #: Ids of the workers that serve it.
    workers: tuple[str, ...]
    #: How many launches may be under way at a time; None: as many as its workers have slots.
    limit: int | None = None


def embedded_settings(settings: BusSettings, server: EmbeddedServer) -> BusSettings:
    """The settings with which the embedded server is reached."""
    return BusSettings(
        url=server.url, token=server.token, prefix=settings.prefix, data_dir=settings.data_dir, replicas=1
    )


def new_run_id() -> str:
    """A random run id: 20 characters, 100 bits."""
    return _text_of(secrets.token_bytes(13))


def keyed_run_id(pipeline: str, key: str) -> str:
    """The id of the run that this key of this pipeline stands for."""
    if not isinstance(key, str) or not key:
        raise UsageError(f"key must be a text that is not empty, not {key!r}")
    return _text_of(hashlib.sha256(f"{pipeline}\0{key}".encode()).digest())


def _text_of(data: bytes) -> str:
    return base64.b32encode(data).decode().lower()[:20]


def check_refresh(refresh: bool | Sequence[str], graph: Graph, *, no_cache: bool) -> tuple[str, ...]:
    """Read the option `refresh` of a submit, as it travels.

    Raises:
        UsageError: if it names a step that the graph does not have, or one that is not cached, or means nothing.
    """
    if refresh is False or refresh is None:
        return ()
    if no_cache:
        raise UsageError("refresh means nothing with no_cache: nothing is recorded then")
    if refresh is True:
        return ("*",)
    if isinstance(refresh, str) or not all(isinstance(name, str) for name in refresh):
        raise UsageError(f"refresh must be True or names of steps in a list, not {refresh!r}")
    for name in refresh:
        _check_refreshed(name, graph)
    return tuple(refresh)


def _check_refreshed(path: str, graph: Graph) -> None:
    step, (inside, *_) = found_in(graph, path)
    if step is None:
        raise UsageError(
            f"refresh names the step {path!r}, which pipeline {inside.pipeline!r} does not have"
            f"{nearest(path.rpartition('/')[2], inside.steps)}"
        )
    if step.cache is None and step.child is None:
        raise UsageError(f"refresh names the step {path!r}, which is not cached: @step(cache=True) makes it so")


def _check_same_submit(stored: bytes, wanted: Submission, run_id: str, key: str | None) -> None:
    """Refuse a submit whose key belongs to a run that is not the same. The queue is no part of what a run is."""
    found = decode_submission(stored)
    for name in {**found.parameters, **wanted.parameters}:
        before, now = found.parameters.get(name), wanted.parameters.get(name)
        if pack(before, name) != pack(now, name):
            raise Conflict(
                f"the key {key!r} belongs to run {run_id}, which was submitted with {name} = {before!r}, not {now!r}",
                run_id=run_id,
            )
    if found.graph != wanted.graph:
        raise Conflict(
            f"the key {key!r} belongs to run {run_id}, which was submitted with another graph", run_id=run_id
        )
