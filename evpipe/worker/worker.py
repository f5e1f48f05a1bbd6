"""The worker: pulls launches into its slots, runs their bodies, publishes their results.

    launch ─▶ slot ─▶ (came again? examine) ─▶ body ─▶ result into the log ─▶ its ack ─▶ ack of the launch

The result is repeated until the log has it, and only then the launch is acked; so a worker that dies
anywhere leaves either a launch that comes again or a result that counts.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import anyio
import msgpack
import structlog

from evpipe.bus.clock import loop_clock
from evpipe.bus.protocol import ACK_WAIT_S, Bus, Delivery, Outcome, Record
from evpipe.client.client import Client
from evpipe.core.events import Failure, StepStarted
from evpipe.core.names import check_name
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.messages import decode_event, decode_launch, encode_event
from evpipe.wire.presence import WorkerEntry
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt import Attempt, lost
from evpipe.worker.conclusion import Conclusion, conclude_failure
from evpipe.worker.executors.executors import Executors
from evpipe.worker.intake import Intake
from evpipe.worker.presence import host_name, own_version, python_version, tell_presence
from evpipe.worker.redelivery import Verdict, examine
from evpipe.worker.spawning import Spawner

log = structlog.get_logger(__name__)

HEARTBEAT_S: Final = ACK_WAIT_S / 3
#: A launch that lay for longer than this when it is about to start is dropped: this process was paused, and
#: somebody else may have it.
STALE_S: Final = ACK_WAIT_S / 2
#: A body that ends sooner says that it started in its result.
STARTED_AFTER_S: Final = 0.05
SLOTS_MAX: Final = 10_000


class Worker:
    """Hosts a worker: `async with Worker(client, queues=["default"], slots=8): …`.

    Args:
        client: an entered client.
        queues: served strictly in this order.
        slots: attempts that may run at once; None: as many as there are CPUs.
        transient: the queues are this process's own: nothing of them stays when it has gone.
        local_code: steps are found where this process finds its modules, and those that are no processes run in it.
            If not, all run in children of it, with the code that each run was submitted with.
        allow_pickle: whether steps with `pickle=True` may read and write pickles: whoever may submit to these queues
            may then have any code read here, which he may have run here anyway.

    Raises:
        UsageError: if a queue has an illegal name or `slots` is not a whole number from 1 to 10,000.
    """

    def __init__(
        self,
        client: Client,
        queues: Sequence[str] = ("default",),
        slots: int | None = None,
        *,
        transient: bool = False,
        local_code: bool = True,
        allow_pickle: bool = False,
    ) -> None:
        if isinstance(queues, str) or not queues:
            raise UsageError(f"queues must be a list of queue names, not {queues!r}")
        for queue in queues:
            check_name("queue", queue)
        slots = (os.cpu_count() or 1) if slots is None else slots
        if not isinstance(slots, int) or isinstance(slots, bool) or not 1 <= slots <= SLOTS_MAX:
            raise UsageError(f"slots must be a whole number from 1 to {SLOTS_MAX:,}, not {slots!r}")
        self.id = f"worker-{secrets.token_hex(4)}"
        self.queues = tuple(queues)
        self.slots = slots
        self._host, self._version, self._started_at_s = host_name(), own_version(), time.time()
        self._client = client
        self._transient = transient
        self._bus: Bus = client.bus
        self._busy = 0
        self._attempts: dict[tuple[str, str, int], Attempt] = {}
        self._young: deque[Attempt] = deque()
        self._began = anyio.Event()
        #: Pipeline and run of every cancel.
        self._cancelled: set[tuple[str, str]] = set()
        self._stack = AsyncExitStack()
        self._spawner = Spawner()
        self._executors = Executors(self._bus, slots, worker=self.id, local_code=local_code, allow_pickle=allow_pickle)
        self._now = anyio.current_time
        self._cancelled_error: type[BaseException] = BaseException
        self._intake: Intake | None = None
        self._draining = False
        #: Set whenever an attempt has gone.
        self._gone = anyio.Event()

    async def __aenter__(self) -> Self:
        bus = self._bus
        task_group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(task_group.cancel_scope.cancel)
        self._now = loop_clock()
        self._cancelled_error = anyio.get_cancelled_exc_class()
        await task_group.start(self._follow_cancels)
        await self._stack.enter_async_context(bus.listen(bus.subjects.stop, self._stop_signal))
        await self._stack.enter_async_context(bus.listen(bus.subjects.all_who, self._who))
        # Outlives the attempts, which end their children when they are cancelled.
        await self._stack.enter_async_context(self._executors)
        task_group.start_soon(self._executors.send_output)
        self._spawner = await self._stack.enter_async_context(Spawner())
        for queue in self.queues:
            await self._stack.enter_async_context(bus.listen(bus.subjects.ping_worker(queue), self._here))
        task_group.start_soon(self._heartbeat)
        task_group.start_soon(tell_presence, bus, self._entry)
        task_group.start_soon(self._tell_started)
        self._intake = await self._stack.enter_async_context(
            Intake(bus, self.queues, self.slots, self._free, self._delivered, transient=self._transient)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    async def drain(self, timeout_s: float) -> int:
        """Take no more launches, and wait until the attempts here have ended and the log has their results.

        Launches whose bodies have not begun go back. What is left is cancelled when the block is left; its launches
        come again, to whoever serves their queue.

        Args:
            timeout_s: seconds to wait.

        Returns:
            How many attempts had not ended by then.
        """
        self._draining = True
        if self._intake is not None:
            await self._intake.close()
        with anyio.move_on_after(timeout_s):
            while self._attempts:
                self._gone = anyio.Event()
                await self._gone.wait()
        return len(self._attempts)

    # ---- launches in

    def _free(self) -> int:
        return self.slots - self._busy

    def _delivered(self, delivery: Delivery) -> None:
        try:
            launch = self._bus.subjects.parse_launch(delivery.subject)
        except RemoteProtocolError as error:
            log.warning("launch_quarantined", reason=str(error))
            delivery.ack()
            return
        key = (launch.run, launch.step, launch.attempt)
        if key in self._attempts:
            # It came again while it is here: the next heartbeat keeps it.
            return
        if self._draining or self._free() <= 0:
            delivery.release()
            return
        try:
            attempt = Attempt(delivery, launch, decode_launch(delivery.payload))
        except RemoteProtocolError as error:
            self._unreadable(delivery, launch, error)
            return
        self._attempts[key] = attempt
        self._busy += 1
        attempt.stop_task = self._spawner.start_soon(self._run, attempt)

    def _unreadable(self, delivery: Delivery, launch: LaunchSubject, error: RemoteProtocolError) -> None:
        """Fail an attempt whose launch is garbage: its subject is taken, so no good launch can follow it."""
        log.warning("launch_quarantined", run_id=launch.run, step_id=launch.step, reason=str(error))
        failed = conclude_failure(launch, Failure(message=str(error)))
        self._spawner.start_soon(self._fail_unreadable, delivery, launch, failed)

    async def _fail_unreadable(self, delivery: Delivery, launch: LaunchSubject, failed: Conclusion) -> None:
        # The launch does not say which pipeline it is of; its run's submit does.
        submitted = await self._bus.last(self._bus.subjects.events_of_step(launch.run, "_", "submitted"))
        if submitted is None:
            delivery.ack()
            return
        try:
            pipeline = self._bus.subjects.parse_event(submitted.subject).pipeline
        except RemoteProtocolError:
            delivery.ack()
            return
        subject = self._bus.subjects.event(pipeline, launch.run, launch.step, failed.kind)
        self._bus.append(subject, failed.payload, done=lambda _: delivery.ack())

    # ---- one attempt

    async def _run(self, attempt: Attempt) -> None:
        launch = attempt.launch
        published = False
        try:
            if attempt.delivery.redelivered and not await self._may_run(attempt):
                return
            cancelled = (attempt.order.pipeline, launch.run) in self._cancelled and not attempt.order.final
            if attempt.stopped or cancelled:
                # Its end is decreed by the controller.
                attempt.delivery.ack()
                return
            now = self._now()
            if now - attempt.alive_at > STALE_S:
                log.warning("launch_stale", run_id=launch.run, step_id=launch.step, attempt=launch.attempt)
                return
            if self._draining:
                attempt.delivery.release()
                return
            self._young.append(attempt)
            self._began.set()
            # The task's context ends with it, so nothing has to be unbound.
            structlog.contextvars.bind_contextvars(
                run_id=launch.run, step_id=launch.step, attempt=launch.attempt, worker_id=self.id
            )
            conclusion = await attempt.run_body(now, self._executors.execute, self._cancelled_error)
            if conclusion is None:
                attempt.delivery.ack()
                return
            self._publish(attempt, conclusion)
            published = True
        finally:
            if not published:
                self._forget(launch)
            self._busy -= 1
            if self._intake is not None:
                self._intake.refill()

    async def _may_run(self, attempt: Attempt) -> bool:
        """Look into a launch that may have been given before; heartbeats keep it meanwhile."""
        launch = attempt.launch
        await anyio.sleep_until(attempt.delivery.examine_at)
        verdict = await examine(self._bus, launch)
        log.debug("launch_came_again", run_id=launch.run, step_id=launch.step, verdict=verdict.value)
        if verdict is Verdict.RUN:
            attempt.extend(self._now())
            return True
        if verdict is Verdict.OVER:
            attempt.delivery.ack()
        elif verdict is Verdict.LOST:
            log.warning("attempt_lost", run_id=launch.run, step_id=launch.step, attempt=launch.attempt)
            gone = lost(launch)
            await self._bus.append_wait(self._subject(attempt, gone.kind), gone.payload)
            attempt.delivery.ack()
        return False

    def _publish(self, attempt: Attempt, conclusion: Conclusion) -> None:
        """Hand the result to the log; the launch is acked when the log has it. The slot is free meanwhile."""
        launch = attempt.launch

        def stored(_: Outcome) -> None:
            attempt.delivery.ack()
            self._forget(launch)

        if attempt.telling is not None:
            # Repeated after the result it would be the newest of its kind, and hide that of a later attempt.
            attempt.telling.drop()
        self._bus.append(self._subject(attempt, conclusion.kind), conclusion.payload, done=stored)

    def _forget(self, launch: LaunchSubject) -> None:
        self._attempts.pop((launch.run, launch.step, launch.attempt), None)
        self._gone.set()

    def _subject(self, attempt: Attempt, kind: str) -> str:
        return self._bus.subjects.event(attempt.order.pipeline, attempt.launch.run, attempt.launch.step, kind)

    # ---- signs of life

    async def _heartbeat(self) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_S)
            for attempt in list(self._attempts.values()):
                attempt.extend(self._now())
                if attempt.stopped:
                    # A body may swallow its cancellation; it gets another until it ends.
                    attempt.stop()

    async def _tell_started(self) -> None:
        """Publish `started` of bodies that have run for a while; not waited for."""
        while True:
            self._began = anyio.Event()
            while self._young:
                attempt = self._young[0]
                if not attempt.ended and not attempt.stopped:
                    due_at = (self._now() if attempt.began_at is None else attempt.began_at) + STARTED_AFTER_S
                    if self._now() < due_at:
                        await anyio.sleep_until(due_at)
                        continue
                    launch = attempt.launch
                    event = StepStarted(step=launch.step, attempt=launch.attempt, worker=self.id)
                    _, kind, payload = encode_event(event)
                    attempt.telling = self._bus.append(self._subject(attempt, kind), payload)
                self._young.popleft()
            await self._began.wait()

    def _entry(self) -> WorkerEntry:
        return WorkerEntry(
            id=self.id,
            host=self._host,
            pid=os.getpid(),
            queues=self.queues,
            slots=self.slots,
            busy=self._busy,
            draining=self._draining,
            started_at_s=self._started_at_s,
            python=python_version(),
            version=self._version,
        )

    def _here(self, *_: object) -> bytes | None:
        # One that drains serves nothing any more.
        return None if self._draining else self.id.encode()

    def _who(self, subject: str, _: bytes) -> bytes | None:
        for attempt in self._attempts.values():
            launch = attempt.launch
            if subject == self._bus.subjects.who(launch.run, launch.step, launch.attempt):
                return None if attempt.began_at is None else self.id.encode()
        return None

    # ---- orders to stop

    async def _follow_cancels(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        bus = self._bus
        wanted = [bus.subjects.events_like(kind="cancel-requested")]
        last = await bus.last_sequence()
        async for records in bus.replay(wanted, up_to=last):
            for record in records:
                self._cancel(record)
        task_status.started()
        async with bus.follow(wanted, after=last) as feed:
            async for records in feed:
                for record in records:
                    self._cancel(record)

    def _cancel(self, record: Record) -> None:
        try:
            subject = self._bus.subjects.parse_event(record.subject)
            decode_event(subject, record.payload, record.at_s)
        except RemoteProtocolError:
            # The controller does not take it for a cancel either: nobody would decree the end of what is stopped.
            return
        self._cancelled.add((subject.pipeline, subject.run))
        for attempt in list(self._attempts.values()):
            of_run = attempt.launch.run == subject.run and attempt.order.pipeline == subject.pipeline
            if of_run and not attempt.order.final:
                attempt.stop()

    def _stop_signal(self, _: str, payload: bytes) -> None:
        try:
            stops = msgpack.unpackb(payload)
            for run, step, number in stops:
                attempt = self._attempts.get((run, step, number))
                if attempt is not None:
                    attempt.stop()
        except (ValueError, TypeError) as error:
            log.warning("stop_quarantined", reason=str(error))
