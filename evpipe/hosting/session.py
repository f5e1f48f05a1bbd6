"""One `run` call: the bus, what is hosted beside it, the wait, and what Ctrl-C means."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.lowlevel import current_token

from evpipe.bus.memory import MemoryBus, MemoryServer
from evpipe.bus.results import kept_results
from evpipe.bus.settings import BusSettings, load_settings
from evpipe.client.client import Client, check_refresh
from evpipe.client.family import Family
from evpipe.client.handle import RunHandle
from evpipe.controller.controller import Controller
from evpipe.core.graph import queues_of, steps_in
from evpipe.core.machine import Run
from evpipe.errors import WaitTimeout
from evpipe.hosting.answers import Answers, answer_waits
from evpipe.hosting.display import Display
from evpipe.hosting.interrupts import CANCELLING, INTERRUPTED
from evpipe.hosting.orphans import cancel_orphans, own_queue
from evpipe.sdk.hook import Mode
from evpipe.sdk.pipeline import Built
from evpipe.sdk.result import RunResult
from evpipe.worker.worker import Worker

#: How long the absence of a controller, or of a worker for a queue, stays unsaid.
PATIENCE_S: Final = 4.0
#: The last lines of the steps may come after the news of the run's end.
OUTPUT_WAIT_S: Final = 2.0
#: So many lines are shown in so many seconds.
SHOW_LINES_MAX: Final = 500
SHOW_WINDOW_S: Final = 0.5
#: After Ctrl-C the steps of an embedded run are given this long to end.
CANCEL_WAIT_S: Final = 10.0


class Session:
    """Runs one run.

    Args:
        mode: "bus" or "local".
        watch: show what the steps write also where other processes run them.
        settings: of the bus; None: as configured.
        answers: as of `hosting.run.run`.
    """

    def __init__(
        self,
        built: Built,
        *,
        mode: Mode,
        key: str | None,
        timeout_s: float | None,
        no_cache: bool = False,
        refresh: bool | Sequence[str] = False,
        priority: int | None = None,
        display: Display | None = None,
        watch: bool = False,
        settings: BusSettings | None = None,
        answers: Mapping[str, Any] | None = None,
    ) -> None:
        self._built = built
        self._mode = mode
        self._key = key
        self._timeout_s = timeout_s
        self._no_cache = no_cache
        self._refresh = refresh
        self._priority = priority
        # What is wrong with it is said before any server is started.
        check_refresh(refresh, built.graph, no_cache=no_cache)
        self._answers = Answers(answers, built.graph)
        self._display = display or Display(sys.stderr)
        self._settings = settings
        self._watch = watch
        #: Whether steps of the run are executed by this process.
        self._hosts = True
        self._interrupted = False
        #: Hands an interrupt to the loop that this runs in; None while nobody there waits for one.
        self._interrupt: Callable[[], None] | None = None
        #: As last seen.
        self._family: Family | None = None

    async def run(self) -> RunResult[Any]:
        """Run it.

        Raises:
            WaitTimeout, BusError: as `hosting.run.run`.
            KeyboardInterrupt: after Ctrl-C.
        """
        try:
            return await self._run_to_end()
        except BaseExceptionGroup as group:
            # Task groups wrap what was raised inside them; a caller is promised the error itself.
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            raise error from error.__cause__

    def interrupt(self) -> bool:
        """Do what Ctrl-C does; for a thread that waits for the one in which `run` runs.

        Returns:
            Whether the run is far enough to be cancelled, or left to itself: then `run` ends soon.
        """
        if self._interrupt is None:
            return False
        self._interrupt()
        return True

    async def _run_to_end(self) -> RunResult[Any]:
        async with self._client() as (client, queue):
            handle = await client.submit_built(
                self._built,
                key=self._key,
                queue=queue,
                no_cache=self._no_cache,
                refresh=self._refresh,
                priority=self._priority,
                code_travels=not self._hosts,
            )
            self._display.submitted(handle)
            async with AsyncExitStack() as stack:
                task_group = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(task_group.cancel_scope.cancel)
                if not self._hosts:
                    task_group.start_soon(self._say_who_is_missing, client, handle)
                task_group.start_soon(self._on_interrupt, handle, task_group.cancel_scope)
                if self._answers.may_wait():
                    answering = partial(answer_waits, mode=self._mode, note=self._display.note)
                    task_group.start_soon(answering, client.bus, handle, self._answers)
                shown = anyio.Event()
                if self._hosts or self._watch:
                    task_group.start_soon(self._show_output, handle, shown)
                family = await self._wait(handle)
                if family.run.ended and (self._hosts or self._watch):
                    with anyio.move_on_after(OUTPUT_WAIT_S):
                        await shown.wait()
                task_group.cancel_scope.cancel()
            if self._interrupted:
                if self._family is not None and self._family.run.ended:
                    self._display.finished(self._family)
                raise KeyboardInterrupt
            self._display.finished(family)
            if not self._no_cache:
                await self._display.cache(client.cache, family.run)
            # Those of its own steps. Of others' workers whoever reads them says so, to `RunHandle.result`.
            pickles = self._hosts and any(step.pickle for step in steps_in(self._built.graph))
            return handle.result_of(family.run, allow_pickle=pickles)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[Client, str]]:
        """Connect, and host what this run needs; gives the client and the queue of the run's launches."""
        if self._mode == "local":
            self._display.bus("in this process, no server (mode local)")
            caches = not self._no_cache and any(step.cache is not None for step in steps_in(self._built.graph))
            results = kept_results(self._display.note) if caches else None
            async with MemoryBus(MemoryServer(results=results)) as bus:
                client = Client(bus=bus)
                async with Controller(client), Worker(client, [OWN_QUEUE], allow_pickle=True):
                    yield client, OWN_QUEUE
            return
        settings = self._settings or load_settings()
        if settings.url is not None:
            self._hosts = False
            self._display.bus(f"{settings.url} (configured)")
            async with Client(settings) as client:
                yield client, ""
            return
        async with Client(settings) as client:
            assert client.embedded is not None
            self._display.bus(f"{client.embedded.url} (embedded, data in {client.embedded.store_dir})")
            for note in client.embedded.notes:
                self._display.note(note)
            # A queue of its own: two scripts of one user do not run each other's code.
            queue = own_queue(client.embedded.user_id)
            async with (
                Controller(client) as controller,
                Worker(client, [queue], transient=True, allow_pickle=True),
                anyio.create_task_group() as task_group,
            ):
                task_group.start_soon(cancel_orphans, client, controller, client.embedded)
                yield client, queue
                task_group.cancel_scope.cancel()

    async def _show_output(self, handle: RunHandle[Any], shown: anyio.Event) -> None:
        """Show what its steps write, as it comes; of a flood a part, so that there is time for everything else."""
        window_at, count, skipped = anyio.current_time(), 0, 0
        below = any(step.child is not None for step in self._built.graph.steps.values())
        async for entry in handle.logs(below=below):
            if anyio.current_time() - window_at > SHOW_WINDOW_S:
                if skipped:
                    self._display.note(f"{skipped:,} lines of output are not shown; `evpipe runs logs` has them")
                window_at, count, skipped = anyio.current_time(), 0, 0
            if count >= SHOW_LINES_MAX:
                skipped += 1
                if skipped % SHOW_LINES_MAX == 0:
                    await anyio.lowlevel.checkpoint()
                continue
            count += 1
            self._display.output(entry)
        if skipped:
            self._display.note(f"{skipped:,} lines of output are not shown; `evpipe runs logs` has them")
        shown.set()

    async def _wait(self, handle: RunHandle[Any]) -> Family:
        family = Family(Run(handle.id))
        with anyio.move_on_after(self._timeout_s) as scope:
            async with self._display.live_progress(handle):
                async for family in handle.watch_tree():
                    self._saw(family)
        if scope.cancelled_caught and not family.run.ended:
            if self._hosts:
                with anyio.move_on_after(CANCEL_WAIT_S, shield=True):
                    await self._cancel(handle, f"its caller waited {self._timeout_s:g} s")
                raise WaitTimeout(
                    f"run {handle.id} had not ended after {self._timeout_s:g} s and was cancelled: this process ran it"
                )
            self._say_how_it_goes_on(handle)
            raise WaitTimeout(f"run {handle.id} has not ended after {self._timeout_s:g} s; it goes on")
        return family

    def _say_how_it_goes_on(self, handle: RunHandle[Any]) -> None:
        watch, cancel = f"`evpipe runs watch {handle.id}`", f"`evpipe runs cancel {handle.id}`"
        self._display.note(f"run {handle.id} goes on; watch it with {watch}, cancel it with {cancel}")

    def _saw(self, family: Family) -> None:
        self._family = family
        self._display.show(family)

    async def _cancel(self, handle: RunHandle[Any], message: str) -> None:
        """Cancel the run and wait for its end."""
        await handle.cancel(message)
        async for family in handle.watch_tree():
            self._saw(family)

    async def _on_interrupt(self, handle: RunHandle[Any], scope: anyio.CancelScope) -> None:
        with self._interrupts() as signals:
            async for _ in signals:
                self._interrupted = True
                if self._hosts:
                    self._display.note(CANCELLING)
                    with anyio.move_on_after(CANCEL_WAIT_S):
                        async with anyio.create_task_group() as task_group:
                            task_group.start_soon(self._second_interrupt, signals, task_group.cancel_scope)
                            await self._cancel(handle, INTERRUPTED)
                            task_group.cancel_scope.cancel()
                else:
                    self._say_how_it_goes_on(handle)
                scope.cancel()
                return

    @contextmanager
    def _interrupts(self) -> Iterator[AsyncIterator[object]]:
        """Give Ctrl-C as it comes: in the main thread by the signal, in any other by `interrupt`."""
        if threading.current_thread() is threading.main_thread():
            # SIGTERM, too: a run that this process executes would not end without it.
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                yield signals
            return
        send, receive = anyio.create_memory_object_stream[object](1)
        token = current_token()
        self._interrupt = lambda: anyio.from_thread.run_sync(send.send_nowait, None, token=token)
        try:
            with send, receive:
                yield receive
        finally:
            self._interrupt = None

    async def _second_interrupt(self, signals: AsyncIterator[object], scope: anyio.CancelScope) -> None:
        async for _ in signals:
            scope.cancel()
            return

    async def _say_who_is_missing(self, client: Client, handle: RunHandle[Any]) -> None:
        """Say within 5 s if nobody is there to run it."""
        queues = sorted(queues_of(self._built.graph))
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._say_if_no_controller, client)
            for queue in queues[:16]:
                task_group.start_soon(self._say_if_no_worker, client, queue)

    async def _say_if_no_controller(self, client: Client) -> None:
        if not await client.controller_answers(PATIENCE_S):
            self._display.note("no controller answers on this bus: the run waits until one is started")

    async def _say_if_no_worker(self, client: Client, queue: str) -> None:
        if not await client.worker_answers(queue, PATIENCE_S):
            self._display.note(f"no worker serves the queue {queue!r}: its steps wait until one does")


OWN_QUEUE: Final = "own"
