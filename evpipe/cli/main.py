"""`evpipe`: the command line. One module per command; what is heavy is imported when a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from evpipe.cli.doctor import doctor
from evpipe.cli.events import events
from evpipe.cli.output import DEBUG_VARIABLE, Exit, json_text, say, show_if_debugging, write_data
from evpipe.cli.run import run
from evpipe.core.names import nearest

EPILOG = f"""\
Exit codes: 0 succeeded, 1 the run failed, 2 wrong usage or refused before submit, 3 not found, 4 cancelled,
5 no bus, 124 --timeout is over, 130 Ctrl-C.

Data goes to standard output, everything else to standard error. EVPIPE_NATS_URL chooses the bus, EVPIPE_LOG the level
of logs (debug, info, warning, error), {DEBUG_VARIABLE}=1 shows tracebacks, NO_COLOR=1 leaves out colours.
"""


class Group(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            text = error.format_message()
            # Newer versions of click suggest a command themselves.
            if "did you mean" in text.lower():
                raise
            raise click.UsageError(text.rstrip(".") + nearest(args[0], self.commands), ctx) from error


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
cli.add_command(events)
cli.add_command(doctor)


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command line and end the process."""
    args = sys.argv[1:] if args is None else args
    if sys.stderr is None:
        # Closed by whoever started us: the talk goes nowhere, and no other file becomes descriptor 2.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    sys.exit(_code(args))


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
