"""A command step from its launch to its end: the words, the program, and what becomes of what it left."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evpipe.core.events import Failure
from evpipe.core.states import Reason
from evpipe.errors import CommandFailed, UsageError
from evpipe.sdk.command_line import CommandLine
from evpipe.sdk.command_outputs import EXIT_CODE, LINES, PATH, Taken, check_below
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.commands.program import (
    LINES_CHARS_MAX,
    LINES_MAX,
    RESULT_BYTES_MAX,
    TAIL_LINES,
    Ended,
    Folders,
    Place,
    Tell,
    TimedOut,
    environment,
    own_interpreter,
    run_program,
)
from evpipe.worker.conclusion import Conclusion, conclude_failure, conclude_value
from evpipe.worker.failures import timeout_failure, types_of

#: What a command that declares no outputs gives of its lines: they travel in an event.
LAST_LINES: Final = 100
LAST_CHARS_MAX: Final = 16 * 1024
#: Of a command in a message.
_SHOWN_CHARS: Final = 200
_GLOB: Final = frozenset("*?[")


class OutputMissing(Exception):
    """The program ended well, and did not leave what the step is to give."""


def conclude_command(
    launch: LaunchSubject,
    order: LaunchOrder,
    place: Place,
    files: AttemptFiles,
    tell: Tell,
    *,
    timeout_s: float | None = None,
) -> Conclusion:
    """Run the program of a launch and make the end of its attempt.

    Args:
        order: with the values of its artifacts.
        place: where it runs; a folder is made there and left.
        files: take what does not travel in the event.
        tell: is told what it writes.
        timeout_s: seconds after which it is killed; None: whoever started this ends it.
    """
    started_at_s = time.time()
    try:
        line = CommandLine.from_code(order.code)
        _, values = order.call()
        if missing := [name for name in line.fields if name not in values]:
            raise UsageError(f"the launch has no value for the placeholder {{{missing[0]}}}")
        cwd = None if line.cwd is None else line.cwd.text(values)
        folders = Folders(place, str(order.code.get("name")), cwd)
        variables = {name: text.text(values) for name, text in line.env.items()}
        argv = own_interpreter(folders.placed(line, line.argv(values)))
        environ = environment(line, place, folders, launch, variables)
        ended = _run(argv, environ, folders, tell, timeout_s)
        if ended.code not in line.ok_codes:
            failure = Failure(
                message=_message(argv, ended), types=types_of(CommandFailed), traceback="\n".join(_tail(ended))
            )
            return conclude_failure(launch, failure, started_at_s)
        value = _value(line, ended, values)
    except TimedOut:
        return conclude_failure(launch, timeout_failure(timeout_s), started_at_s, Reason.TIMEOUT)
    except OutputMissing as error:
        return conclude_failure(launch, Failure(message=str(error)), started_at_s, Reason.OUTPUT)
    except UsageError as error:
        return conclude_failure(launch, Failure(message=str(error), types=types_of(type(error))), started_at_s)
    return conclude_value(launch, order, value, started_at_s, files)


def _run(argv: list[str], environ: Mapping[str, str], folders: Folders, tell: Tell, timeout_s: float | None) -> Ended:
    if not folders.cwd.is_dir():
        raise UsageError(f"the folder in which the command is to run is not there: {folders.cwd}")
    try:
        return run_program(argv, environ, folders, tell, timeout_s)
    except FileNotFoundError as error:
        raise UsageError(f"the program {argv[0]!r} is not on this worker: {error.strerror}") from error
    except PermissionError as error:
        raise UsageError(f"the program {argv[0]!r} cannot be run: {error.strerror}; is it executable?") from error
    except OSError as error:
        raise UsageError(f"the command {_shown(argv)} cannot be started: {error.strerror}") from error


def _message(argv: list[str], ended: Ended) -> str:
    if ended.code >= 0:
        how = f"exited with code {ended.code}"
    else:
        known = -ended.code in set(signal.Signals)
        how = f"was killed by signal {-ended.code} ({signal.Signals(-ended.code).name if known else 'unknown'})"
    last = next((text for text in reversed(_tail(ended)) if text.strip()), "")
    return f"the command {_shown(argv)} {how}" + (f": {last.strip()}" if last else "")


def _shown(argv: list[str]) -> str:
    text = argv[2] if argv[:2] == ["/bin/sh", "-c"] else shlex.join(argv)
    return f"`{text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + '…'}`"


def _tail(ended: Ended) -> list[str]:
    """Give the last lines that say what was wrong: of standard error, or if there are none of the other."""
    lines = ended.stderr.lines or ended.stdout.lines
    return list(lines)[-TAIL_LINES:]


def _value(line: CommandLine, ended: Ended, values: Mapping[str, Any]) -> Any:
    """Give what the step gives."""
    outputs = line.outputs
    if outputs.whole is not None:
        return _taken(outputs.whole, ended, values)
    if outputs.named is not None:
        return {name: _taken(taken, ended, values) for name, taken in outputs.named.items()}
    last = list(ended.stdout.lines)[-LAST_LINES:]
    while sum(map(len, last)) > LAST_CHARS_MAX:
        del last[0]
    return {"exit_code": ended.code, "lines": last, "json": _result(ended) if ended.result != b"" else None}


def _taken(taken: Taken, ended: Ended, values: Mapping[str, Any]) -> Any:
    if taken.source == EXIT_CODE:
        return ended.code
    if taken.source == LINES:
        if ended.stdout.cut:
            raise OutputMissing(
                f"the command wrote more lines than can be its output: {LINES_MAX:,} lines and {LINES_CHARS_MAX:,} "
                "characters are allowed; let it write a file, and take that by its Path"
            )
        return list(ended.stdout.lines)
    if taken.source == PATH:
        return _path(ended.folder, check_below(taken.path.text(values), "the command"))
    found = _result(ended)
    for i, key in enumerate(taken.keys):
        if not isinstance(found, dict) or key not in found:
            where = "".join(f"[{done!r}]" for done in taken.keys[:i])
            raise OutputMissing(f"the command's result{where} has no {key!r}: {_described(found)}")
        found = found[key]
    return found


def _described(found: Any) -> str:
    if not isinstance(found, dict):
        return f"it is of type {type(found).__name__}"
    shown = ", ".join(map(repr, list(found)[:12])) + (", …" if len(found) > 12 else "")
    return f"it has {shown}" if found else "it has no keys"


def _result(ended: Ended) -> Any:
    if ended.result is None:
        raise OutputMissing(f"the command's result is larger than {RESULT_BYTES_MAX:,} bytes: let it write a file")
    if not ended.result:
        raise OutputMissing(
            "the command wrote no result: it writes JSON into the file that the variable EVPIPE_RESULT names"
        )
    try:
        return json.loads(ended.result)
    except (ValueError, RecursionError) as error:
        raise OutputMissing(f"what the command wrote as its result is no JSON: {error}") from error


def _path(folder: Path, text: str) -> Any:
    if _GLOB & set(text):
        return sorted(folder.glob(text))
    found = folder / text
    if not found.exists():
        there = sorted(path.name for path in folder.iterdir())
        has = ", ".join(there[:12]) + (", …" if len(there) > 12 else "") or "nothing"
        raise OutputMissing(f"the command left no {text!r} in its folder, which has {has}")
    return found
