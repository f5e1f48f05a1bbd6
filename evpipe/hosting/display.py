"""What a person sees of a run: a line that names the bus, a live table of steps on a terminal, a line at the end."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

import anyio
import structlog

from evpipe.client.cache import CacheView, cache_line
from evpipe.core.lineage import child_run_id
from evpipe.core.machine import Run
from evpipe.core.run_state import StepState
from evpipe.core.states import STEP_VALUES, RunStatus, StepStatus
from evpipe.errors import EvpipeError
from evpipe.hosting.terminal import shown, shown_lines
from evpipe.wire.notes import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from evpipe.client.family import Family, Row
    from evpipe.client.handle import RunHandle
    from evpipe.client.logs import LogEntry

log = structlog.get_logger(__name__)

#: What the cache did is told if it can be found out in this time.
EXPLAIN_WAIT_S: Final = 2.0
#: How far the log's clock is apart is not found out more often: every event is shown, and runs below are many.
OFFSET_S: Final = 0.1
#: Rows of the table: what is under way first, then what ended last.
ROWS_MAX: Final = 16
PATH_CHARS_MAX: Final = 48
STYLES: Final = {
    StepStatus.PENDING: "dim",
    StepStatus.QUEUED: "cyan",
    StepStatus.RUNNING: "yellow",
    StepStatus.SUCCEEDED: "green",
    StepStatus.CACHED: "blue",
    StepStatus.FAILED: "bold red",
    StepStatus.SKIPPED: "dim",
    StepStatus.CANCELLED: "magenta",
}
#: Levels of lines that stand out.
LOUD: Final = frozenset({"warning", "error", "critical"})
_ORDER: Final = [
    StepStatus.RUNNING,
    StepStatus.FAILED,
    StepStatus.QUEUED,
    StepStatus.PENDING,
    StepStatus.CANCELLED,
    StepStatus.SKIPPED,
    StepStatus.CACHED,
    StepStatus.SUCCEEDED,
]


class Display:
    """Talks on a stream that is not the result's.

    Args:
        stream: usually standard error.
        quiet: say nothing but warnings.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._live: Live | None = None
        self._family: Family | None = None
        self._offset_s = 0.0
        #: When that was found out.
        self._offset_at_s = -math.inf
        #: What was drawn last.
        self._drawn: RenderableType = ""
        #: By the path of the step; of attempts that may have ended.
        self._progress: dict[str, Progress] = {}

    def bus(self, where: str) -> None:
        self._say(f"bus: {where}")

    def submitted(self, handle: RunHandle[Any]) -> None:
        self._say(f"run: {handle.id} of pipeline {handle.pipeline}")

    def note(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(shown_lines(f"note: {text}"), highlight=False, markup=False)
        else:
            self._write(f"note: {text}")

    def output(self, entry: LogEntry) -> None:
        """Show a line that a step wrote."""
        if self._quiet:
            return
        if self._live is None:
            text = shown(entry.line) if self._stream.isatty() else entry.line
            self._say(f"{entry.step} | {text}")
            return
        from rich.text import Text

        # Above the table, which stays below.
        style = "yellow" if entry.stream == "stderr" or entry.level in LOUD else ""
        line = Text.assemble((f"{entry.step} | ", "cyan"), (shown(entry.line), style))
        self._live.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def live(self, run_id: str) -> Iterator[None]:
        """Show a live table while the block runs, if there is a terminal to show it on."""
        if self._quiet or not self._stream.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream)
        with Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @asynccontextmanager
    async def live_progress(self, handle: RunHandle[Any]) -> AsyncIterator[None]:
        """As `live`, with what the steps say of their progress."""
        with self.live(handle.id):
            if self._live is None:
                yield
                return
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(self._take_progress, handle)
                yield
                task_group.cancel_scope.cancel()

    async def _take_progress(self, handle: RunHandle[Any]) -> None:
        try:
            async with aclosing(handle.watch_progress()) as told:
                async for progress in told:
                    self.progress(progress)
        except EvpipeError as error:
            # The run is shown without it.
            log.debug("progress_not_shown", error=str(error))

    def show(self, family: Family) -> None:
        """Take the run, and those below it, as they are now; the table is drawn from them at its own pace."""
        self._family = family
        now_s = time.time()
        if not 0 <= now_s - self._offset_at_s < OFFSET_S:
            # Durations of what runs are shown by the log's clock, which need not be this machine's.
            self._offset_at_s = now_s
            self._offset_s = max(run.at_s for run in (family.run, *family.below.values())) - now_s

    def progress(self, told: Progress) -> None:
        """Take what a step says of its progress."""
        self._progress[told.step] = told

    def finished(self, family: Family) -> None:
        run, counts = family.run, family.counts()
        parts = [f"{counts[status]} {status}" for status in StepStatus if counts[status]]
        took_s = run.at_s - (run.submitted_at_s or run.at_s)
        line = f"{run.status}: {', '.join(parts) or 'no steps'} in {took_s:.2f} s"
        if run.status is not RunStatus.SUCCEEDED and run.message:
            # The message of a user's exception may have many lines; this is the one line at the end.
            line += f": {' '.join(run.message.split())}"
        self._say(line)

    async def cache(self, view: CacheView, run: Run) -> None:
        """Say what of the run was taken from the cache, and why the rest ran; the run does not depend on it."""
        try:
            with anyio.move_on_after(EXPLAIN_WAIT_S):
                line = await cache_line(view, run)
                if line:
                    self._say(f"cache: {' '.join(line.split())}")
        except EvpipeError as error:
            log.debug("cache_not_explained", error=str(error))

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._write(line)

    def _write(self, text: str) -> None:
        # Messages and names in it are of others.
        self._stream.write((shown_lines(text) if self._stream.isatty() else text) + "\n")
        self._stream.flush()

    def _render(self) -> RenderableType:
        # In a thread of its own, which would end by what is raised where a step gets its elements meanwhile. They are
        # there when it is drawn again.
        with suppress(KeyError, RuntimeError):
            self._drawn = self._table()
        return self._drawn

    def _table(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        family = self._family
        if family is None:
            return Text("waiting for the controller …", style="dim")
        counts = family.counts()
        caption = "  ".join(f"{counts[s]} {s}" for s in StepStatus if counts[s])
        table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left", expand=True)
        for column in ("step", "status", "attempt", "time"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        # The rest of the line, however long it is.
        table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
        now_s = time.time() + self._offset_s
        rows = list(family.rows())
        for row in shown_rows(rows):
            state = row.state
            status = Text(state.status, style=STYLES[state.status])
            attempt = str(state.attempt) if state.attempt > 1 else ""
            note = self._note(row, now_s)
            first = shown(note.splitlines()[0]) if note else ""
            table.add_row(Text(_shortened(row.path)), status, attempt, _took(state, now_s), Text(first, "dim"))
        hidden = len(rows) - ROWS_MAX
        if hidden > 0:
            table.add_row(Text(f"… {hidden:,} more", style="dim"))
        return table

    def _note(self, row: Row, now_s: float) -> str:
        """Say beside a row what there is to say: what the step waits for, how far it is, why it ended."""
        run, state = row.run, row.state
        waits_for = run.waits_for(row.name)
        if waits_for:
            left = "" if state.due_at_s is None else f" ({max(0.0, state.due_at_s - now_s):.0f} s left)"
            return waits_for + left
        if state.due_at_s is not None:
            return f"again in {max(0.0, state.due_at_s - now_s):.1f} s: {state.message}"
        if state.status is StepStatus.RUNNING and state.attempt and run.spec(row.name).child is not None:
            return f"run {child_run_id(run.id, row.name, state.attempt)}"
        told = self._progress.get(row.path)
        if told is not None and told.attempt == state.attempt and not state.ended:
            return progress_text(told)
        return state.message if state.status not in STEP_VALUES else ""


def progress_text(told: Progress) -> str:
    """Write progress for a person: "40% epoch 4"."""
    return shown(f"{told.fraction:.0%} {' '.join(told.message.split())}".rstrip())


def shown_rows(rows: list[Row]) -> list[Row]:
    """Choose the rows of the table: the most telling ones, in the order in which they are.

    A step that is a run tells less than the steps of that, and is shown with those.
    """
    if len(rows) <= ROWS_MAX:
        return rows
    places = {row.path: i for i, row in enumerate(rows) if row.inside is not None}
    chosen: set[int] = set()
    for is_run in (False, True):
        by_status: dict[StepStatus, list[int]] = {status: [] for status in _ORDER}
        for i, row in enumerate(rows):
            if (row.inside is not None) is is_run:
                by_status[row.state.status].append(i)
        for status in _ORDER:
            # Of what has ended the last are news, of what is to come the first.
            for i in reversed(by_status[status]) if status in STEP_VALUES else by_status[status]:
                if len(chosen) == ROWS_MAX:
                    return [rows[i] for i in sorted(chosen)]
                above = {places[path] for path in _above(rows[i].path)} if places else set()
                chosen |= {i, *above} if len(chosen | above | {i}) <= ROWS_MAX else {i}
    return [rows[i] for i in sorted(chosen)]


def _above(path: str) -> Iterator[str]:
    """Give the paths of the steps that are the runs around a step."""
    while path := path.rpartition("/")[0]:
        yield path


def _shortened(path: str) -> str:
    """Leave out the beginning of a path that is deep."""
    return path if len(path) <= PATH_CHARS_MAX else f"…{path[1 - PATH_CHARS_MAX :]}"


def _took(state: StepState, now_s: float) -> str:
    if state.started_at_s is None or state.status is StepStatus.PENDING:
        return ""
    return f"{max(0.0, (state.ended_at_s or now_s) - state.started_at_s):.2f} s"
