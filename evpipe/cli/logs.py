"""`evpipe runs logs`: what the steps of a run write."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from evpipe.cli.output import Command, Exit, coloured, json_text, output_option, say, url_option, write_data
from evpipe.cli.runs import find_run, on_bus, run_argument
from evpipe.hosting.terminal import shown

if TYPE_CHECKING:
    from evpipe.client.client import Client
    from evpipe.client.logs import LogEntry

#: Levels of lines that stand out.
LOUD: Final = frozenset({"warning", "error", "critical"})
#: Colours of the steps' names, in the graph's order, then again from the first.
STEP_COLOURS: Final = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_magenta")


@click.command(cls=Command)
@run_argument
@click.argument("step", required=False)
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only attempts with this number.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@url_option
@output_option
def logs(run_id: str, step: str | None, attempt: int | None, follow: bool, url: str | None, output: str) -> Exit:
    """Show what the steps of a run write, or what STEP alone does.

    Steps of runs that are its steps are among them, as inner/train; of a STEP that is a run, all of its steps.

    Output is kept for 7 days, less where there is much of it. On a terminal it is shown without its escape sequences.

    With -o json each line is an object: at, step, attempt, stream ("stdout", "stderr", "log", or "evpipe" where lines
    were left out), text; of the stream "log", what steps log with `current().log`, also level and fields.
    """
    from evpipe.core.names import STEP_NAME, check_name, from_people

    for part in step.split("/") if step is not None else ():
        if STEP_NAME.match(from_people(part)) is None:
            check_name("step", part)

    async def write(client: Client) -> None:
        from evpipe.client.family_logs import lines_below

        handle = await find_run(client, run_id)
        run = await handle.state()
        below = {} if follow or step is not None else await handle.below(run)
        steps = [*run.graph.steps] if run.graph is not None else []
        steps += [f"{path}/{name}" for path, one in below.items() if one.graph is not None for name in one.graph.steps]
        lines = Lines(tuple(steps) if step is None else (), of=step)
        entries = (
            lines_below(client.bus, run, below, attempt=attempt)
            if below
            else handle.logs(step, attempt=attempt, follow=follow, below=True)
        )
        some = False
        async for entry in entries:
            some = True
            write_data(_object_line(entry) if output == "json" else lines.text(entry))
        if not some:
            of = f"step {step!r} of run {handle.id}" if step is not None else f"run {handle.id}"
            say(f"no output is kept of {of}")

    on_bus(url, write)
    return Exit.SUCCEEDED


def _object_line(entry: LogEntry) -> str:
    line = {
        "at": entry.at,
        "step": entry.step,
        "attempt": entry.attempt,
        "stream": entry.stream,
        "text": entry.text,
    }
    return json_text({**line, "level": entry.level, "fields": dict(entry.fields)} if entry.level else line)


class Lines:
    """Writes entries as lines for standard output.

    Args:
        steps: the names of the run's steps, in the graph's order; others may come, such as those of runs below.
        of: the step whose they are, so that its name needs no telling, but those of steps below it do; None: of all.
    """

    def __init__(self, steps: tuple[str, ...], *, of: str | None) -> None:
        self._depth = None if of is None else of.count("/")
        self._width = max(map(len, steps), default=0)
        self._colours = {name: STEP_COLOURS[i % len(STEP_COLOURS)] for i, name in enumerate(steps)}
        # There is none where whoever started us closed it.
        self._coloured = sys.stdout is not None and coloured(sys.stdout)
        #: What goes to a file or a program goes there as it is.
        self._harmless = sys.stdout is not None and sys.stdout.isatty()

    def text(self, entry: LogEntry) -> str:
        text = shown(entry.line) if self._harmless else entry.line
        if self._coloured and (entry.stream == "stderr" or entry.level in LOUD):
            text = click.style(text, fg="yellow")
        elif self._coloured and (entry.stream == "evpipe" or entry.level == "debug"):
            text = click.style(text, dim=True)
        if entry.step.count("/") == self._depth:
            return text
        self._width = max(self._width, len(entry.step))
        name = f"{entry.step:<{self._width}} |"
        if self._coloured:
            colour = self._colours.setdefault(entry.step, STEP_COLOURS[len(self._colours) % len(STEP_COLOURS)])
            name = click.style(name, fg=colour)
        return f"{name} {text}"
