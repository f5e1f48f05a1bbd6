"""What the command line says: data on standard output, talk on standard error, and the exit code.

Values on standard output as JSON are those of the run, with what JSON does not have written like this: bytes as
`{"base64": "…"}`, what is stored beside the run as `{"artifact": kind, "bytes": …, "digest": "…"}`, tuples as lists,
named tuples as objects, NaN and infinities as the strings "NaN", "Infinity" and "-Infinity", times in ISO 8601 (UTC),
anything else as its repr.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TextIO

import click

from evpipe.core.artifact import Artifact
from evpipe.core.names import nearest
from evpipe.errors import (
    BusError,
    EvpipeError,
    NotFound,
    ProtocolError,
    RunFailed,
    UsageError,
    WaitTimeout,
    only_one,
)
from evpipe.hosting.terminal import shown_lines

DEBUG_VARIABLE: Final = "EVPIPE_DEBUG"
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])\Z")


class Exit(IntEnum):
    """Exit codes of every command."""

    SUCCEEDED = 0
    #: The run failed, also by its deadline; or evpipe itself has a fault.
    FAILED = 1
    #: Wrong usage, or refused before anything was submitted.
    USAGE = 2
    NOT_FOUND = 3
    CANCELLED = 4
    #: The bus is unreachable or refuses, or there is no server binary to start one with.
    BUS = 5
    #: `--timeout` of the waiting command.
    TIMEOUT = 124
    #: Ctrl-C.
    INTERRUPTED = 130
    #: Whoever read standard output has gone; the code that a shell shows for SIGPIPE.
    PIPE = 141


class UserCodeRaised(UsageError):
    """The user's own code raised where nothing was submitted yet; `traceback` begins in the user's file."""

    def __init__(self, message: str, *, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


class Command(click.Command):
    """A command whose callback returns its exit code, and whose errors become one sentence and a code."""

    def invoke(self, ctx: click.Context) -> Any:
        as_json = ctx.params.get("output") == "json"
        try:
            code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the border: what it is, is told by `report`
            code = report(error, as_json=as_json)
        except KeyboardInterrupt:
            show_if_debugging()
            code = Exit.INTERRUPTED
        ctx.exit(int(code or 0))


class Group(click.Group):
    """Commands under one name; a name that is nearly one is told."""

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


def seconds(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Read an option's number of seconds."""
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0.")
    return found


def duration_s(text: str) -> float | None:
    """Read a duration, as in 90s, 10m, 2h and 1d; None if it is none."""
    found = _DURATION.match(text)
    return None if found is None else float(found[1]) * _UNITS_S[found[2]]


def age(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Read an option's duration, or number of seconds."""
    if text is None:
        return None
    found = duration_s(text)
    if found is None:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
    if not 0 < found < math.inf:
        raise click.BadParameter(f"{text!r} is not a duration (90s, 10m, 2h, 1d) or a number of seconds above 0.")
    return found


output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the data."
)
url_option = click.option(
    "--url", metavar="URL", help="NATS server(s) to use; else as configured, else the embedded one."
)


# ---- data


def plain(value: Any) -> Any:
    """Give a value as JSON can hold it; see the module's docstring."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ("NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity")
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Artifact):
        return {"artifact": value.kind, "bytes": value.size_bytes, "digest": value.digest}
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {key: plain(child) for key, child in zip(value._fields, value, strict=True)}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    return repr(value)


def is_plain(value: Any) -> bool:
    """Say whether JSON holds the value as it is, so that nothing is lost in showing it so."""
    if isinstance(value, list):
        return all(is_plain(child) for child in value)
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(child) for key, child in value.items())
    if type(value) is float:
        return math.isfinite(value)
    # A member of an IntEnum or a scalar of numpy is more than JSON can say.
    return value is None or type(value) in {bool, int, str}


def json_text(value: Any) -> str:
    """Write one line of JSON."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def value_text(value: Any) -> str:
    """Write a value for a person: JSON if that shows it as it is, else its repr."""
    return json_text(value) if is_plain(value) else repr(value)


def write_data(line: str, stream: TextIO | None = None) -> None:
    """Write one line of data, whatever characters it has, and flush it."""
    stream = stream or sys.stdout
    if stream is None:  # closed by whoever started us
        return
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
    stream.flush()


@contextmanager
def data_apart() -> Iterator[TextIO | None]:
    """Give standard output to nobody but the caller: what the user's code prints goes to standard error.

    It is done on the descriptors, so that child processes and a debugger's prompt follow, and ends with the block.
    """
    if sys.stdout is None:  # closed by whoever started us
        yield None
        return
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed: there is nothing to keep apart
        yield sys.stdout
        return
    with os.fdopen(kept, "w", encoding=sys.stdout.encoding or "utf-8", errors="backslashreplace") as stream:
        try:
            yield stream
        finally:
            sys.stdout.flush()
            os.dup2(stream.fileno(), 1)


def one_line(text: str, chars_max: int = 200) -> str:
    """Make a text that somebody else wrote fit for one line of a terminal: no line ends, no control characters."""
    text = " ".join(text[: 4 * chars_max].split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= chars_max else shown[: chars_max - 1] + "…"


def coloured(stream: TextIO) -> bool:
    """Say whether colours may be used on a stream (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str]) -> list[str]:
    """Write a table for a person: columns side by side, whatever its cells hold on one line each.

    Args:
        colours: of cells, by what they say; empty where there are to be none.
    """
    # The last column has room; a cell before it never is long.
    lines = [[one_line(cell) or "-" for cell in row[:-1]] + [one_line(row[-1])] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  ".join(_coloured_cell(cell.ljust(width), colours) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _coloured_cell(cell: str, colours: Mapping[str, str]) -> str:
    colour = colours.get(cell.rstrip())
    return click.style(cell, fg=colour) if colour else cell


# ---- errors


def report(error: BaseException, *, as_json: bool, stream: TextIO | None = None) -> Exit:
    """Tell an error in one sentence on standard error, and as an object on standard output if that is asked for.

    Returns:
        The exit code that it stands for.
    """
    error = only_one(error)
    if isinstance(error, BrokenPipeError):
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.PIPE
    code = exit_code(error)
    if isinstance(error, EvpipeError):
        sentence = str(error)
    else:
        sentence = f"internal error, {type(error).__name__}: {error} ({DEBUG_VARIABLE}=1 shows where)"
    if debugging():
        say("".join(traceback.format_exception(error)).rstrip())
    elif isinstance(error, UserCodeRaised):
        say(error.traceback.rstrip())
    say(f"evpipe: {sentence}")
    if as_json:
        write_data(json_text({"error": sentence}), stream)
    return code


def exit_code(error: BaseException) -> Exit:
    """Give the exit code that an error stands for."""
    match error:
        case WaitTimeout():
            return Exit.TIMEOUT
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case RunFailed():
            return Exit.CANCELLED if error.status == "cancelled" else Exit.FAILED
        case NotFound():
            return Exit.NOT_FOUND
        case UsageError():
            return Exit.USAGE
        case BusError() | ProtocolError():
            return Exit.BUS
        case _:
            return Exit.FAILED


def exit_of_signal(number: signal.Signals) -> Exit:
    """Give the exit code of what served until this signal came."""
    return Exit.INTERRUPTED if number == signal.SIGINT else Exit.SUCCEEDED


def say(line: str) -> None:
    """Talk: on standard error, whatever characters it has; on a terminal without what would move or colour it."""
    if sys.stderr is not None:
        write_data(shown_lines(line) if sys.stderr.isatty() else line, sys.stderr)


def debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def show_if_debugging() -> None:
    """Show the traceback of the exception being handled if `EVPIPE_DEBUG` asks for it."""
    if debugging():
        say(traceback.format_exc().rstrip())
