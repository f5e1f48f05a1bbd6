"""`evpipe`: the command line. One module per command or group; what is heavy is imported when a command runs."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from evpipe.cli.cache import cache
from evpipe.cli.controller import controller
from evpipe.cli.dev import dev
from evpipe.cli.doctor import doctor
from evpipe.cli.events import events
from evpipe.cli.logs import logs
from evpipe.cli.metrics import metrics
from evpipe.cli.output import DEBUG_VARIABLE, Exit, Group, json_text, say, show_if_debugging, write_data
from evpipe.cli.run import run
from evpipe.cli.runs import runs
from evpipe.cli.signal import signal
from evpipe.cli.storage import gc
from evpipe.cli.why import why
from evpipe.cli.worker import worker
from evpipe.cli.workers import queues, workers

#: The name of the thread executor's threads.
STEP_THREAD = "evpipe-step"

EPILOG = f"""\
Exit codes: 0 succeeded, 1 the run failed, 2 wrong usage or refused before submit, 3 not found, 4 cancelled,
5 no bus, 124 --timeout is over, 130 Ctrl-C.

Data goes to standard output, everything else to standard error. EVPIPE_NATS_URL chooses the bus, EVPIPE_LOG the level
of logs (debug, info, warning, error), {DEBUG_VARIABLE}=1 shows tracebacks, NO_COLOR=1 leaves out colours.
"""


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        write_data(f"evpipe {version('evpipe')}")
        ctx.exit()


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Pipelines driven by events, on NATS."""


cli.add_command(run)
runs.add_command(logs)
runs.add_command(metrics)
cli.add_command(runs)
cli.add_command(events)
cli.add_command(signal)
cli.add_command(dev)
cli.add_command(controller)
cli.add_command(worker)
cli.add_command(queues)
cli.add_command(workers)
cli.add_command(why)
cli.add_command(cache)
cli.add_command(gc)
cli.add_command(doctor)


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command line and end the process.

    Args:
        args: the command line; None: this process's own. Who gives one may catch the SystemExit and go on.
    """
    own = args is None
    args = sys.argv[1:] if args is None else args
    if sys.stderr is None:
        # Closed by whoever started us: the talk goes nowhere, and no other file becomes descriptor 2.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    code = _code(args)
    if own:
        _leave_step_threads(code)
    sys.exit(code)


def _leave_step_threads(code: int) -> None:
    """End the process here if bodies of steps still run, because they were cancelled or timed out.

    Nothing can end a thread. They are daemons and would die with the process, but Python's own end crashes where one
    of them is just writing to a standard stream.
    """
    if not any(thread.name == STEP_THREAD for thread in threading.enumerate()):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _code(args: list[str]) -> int:
    try:
        found: Any = cli.main(args, prog_name="evpipe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return Exit.USAGE
    except click.ClickException as error:
        show_if_debugging()
        sentence = error.format_message().rstrip(".")
        help_of = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "evpipe"
        say(f"evpipe: {sentence} (see `{help_of} --help`)")
        if _wants_json(args):
            write_data(json_text({"error": sentence}))
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return int(found or 0)


def _wants_json(args: list[str]) -> bool:
    """Say whether a command line that could not be read asks for JSON."""
    text = "\0".join(args).replace("=", "\0").replace("-ojson", "-o\0json")
    return "-o\0json" in text or "--output\0json" in text
