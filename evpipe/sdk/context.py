"""What a step says and asks while it runs: `current()` gives the attempt that this code is part of.

Outside of a run there is one, too, which records nothing and never raises, so a step may be tested as the function that
it is. Who runs a step enters a `Recorder`, which knows where all of it goes.
"""

from __future__ import annotations

import atexit
import contextvars
import math
import operator
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, SupportsFloat, SupportsIndex

from evpipe.errors import UsageError

#: Characters of the name of a metric or an artifact.
NAME_CHARS_MAX: Final = 200
MESSAGE_CHARS_MAX: Final = 1_000
#: Of the fields of a line: how many, and characters of each.
FIELDS_MAX: Final = 50
FIELD_CHARS_MAX: Final = 1_000
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
#: Of `logging`, whose calls are understood.
_NUMBERED: Final = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
_IGNORED: Final = ("stack_info", "stacklevel")
_PLAIN: Final = frozenset({int, float, bool, type(None)})
_INT_MAX: Final = 2**63 - 1


class Recorder(Protocol):
    """Takes what one attempt says. Called from any thread; what it is given was checked."""

    #: "" outside of a run.
    @property
    def run(self) -> str: ...

    @property
    def step(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    #: Whether the attempt is to end: its result is not wanted any more.
    @property
    def cancelled(self) -> bool: ...

    def progress(self, fraction: float, message: str, at_s: float) -> None: ...

    def metric(self, name: str, value: float, iteration: int | None, at_s: float) -> None: ...

    def artifact(self, name: str, value: Any) -> None: ...

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        """Take a line without an end; its fields are None, bools, ints, floats and texts."""

    def folder(self) -> Path:
        """Give the attempt's own folder, which is made with the first call."""


class StepContext:
    """The attempt that calls; made by `current`. It may be handed to threads."""

    __slots__ = ("_recorder",)

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def run(self) -> str:
        """Id of the run; "" outside of one."""
        return self._recorder.run

    @property
    def step(self) -> str:
        """Name of the step in its run; "" outside of one."""
        return self._recorder.step

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1; 1 outside of a run."""
        return self._recorder.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to end: its run was cancelled, its time is over, or another one took its place.

        A process is killed then, a coroutine cancelled at its next `await`, and a thread goes on until it looks here.
        """
        return self._recorder.cancelled

    @property
    def folder(self) -> Path:
        """A folder of this attempt's own, empty at first, which goes when it has ended.

        Files in it may be returned: their content travels. Outside of a run it stays until the process ends.
        """
        return self._recorder.folder()

    @property
    def log(self) -> StepLog:
        """A logger whose lines are among those that the step writes, with their level and fields."""
        return StepLog(self._recorder, {})

    def progress(self, fraction: SupportsFloat, message: str = "") -> None:
        """Say how far the attempt is; what was said last counts.

        Args:
            fraction: from 0 to 1.
            message: a few words, up to 1,000 characters.

        Raises:
            UsageError: if the fraction is none.
        """
        if type(self._recorder) is _Outside:
            return
        found = _number(fraction, "the fraction of progress")
        if not 0 <= found <= 1 + 1e-9:
            raise UsageError(f"the fraction of progress is {found:g}, it must be from 0 to 1")
        self._recorder.progress(min(found, 1.0), _clean(str(message), MESSAGE_CHARS_MAX), time.time())

    def metric(self, name: str, value: SupportsFloat, *, step: SupportsIndex | None = None) -> None:
        """Record one value of a metric. Every one is kept, up to 1,000,000 of one attempt; what is more is counted.

        Args:
            name: up to 200 printable characters, as in "train/loss".
            value: what `float` takes, also NaN and infinities; a tensor or an array of one element, too.
            step: a whole number that says where in the work it belongs: an epoch, a batch.

        Raises:
            UsageError: if one of them is none.
        """
        if type(self._recorder) is _Outside:
            return
        _check_name("metric", name)
        found = value if type(value) is float else _number(value, f"the value of metric {name!r}")
        iteration = step if step is None else _iteration(step, name)
        self._recorder.metric(name, found, iteration, time.time())

    def artifact(self, name: str, obj: Any) -> None:
        """Keep a value beside the output, under a name; the same name again replaces it.

        It is stored now, whatever becomes of the attempt, and may be of all types that steps may return.

        Args:
            name: up to 200 printable characters.

        Raises:
            UsageError: if the name is none.
            EncodingError: if a value of that type cannot be stored.
            LimitExceeded: if the attempt has too many, or it is too large.
        """
        if type(self._recorder) is _Outside:
            return
        _check_name("artifact", name)
        self._recorder.artifact(name, obj)

    def __repr__(self) -> str:
        if not self.run:
            return "<outside of a run>"
        return f"<attempt {self.attempt} of step {self.step!r} of run {self.run}>"


class StepLog:
    """A logger, called as those of `structlog` and `logging` are: `log.info("loaded", rows=3)`."""

    __slots__ = ("_bound", "_recorder")

    def __init__(self, recorder: Recorder, bound: Mapping[str, Any]) -> None:
        self._recorder = recorder
        self._bound = bound

    def bind(self, **fields: Any) -> StepLog:
        """Give a logger whose lines have these fields, too."""
        return StepLog(self._recorder, {**self._bound, **fields})

    def debug(self, event: object, *args: object, **fields: Any) -> None:
        self._tell("debug", event, args, fields)

    def info(self, event: object, *args: object, **fields: Any) -> None:
        """Write a line.

        Args:
            event: what happened; with `args`, a text with `%` in it.
            fields: what varies; what is no number, text, bool or None is written as its repr.
        """
        self._tell("info", event, args, fields)

    def warning(self, event: object, *args: object, **fields: Any) -> None:
        self._tell("warning", event, args, fields)

    def error(self, event: object, *args: object, **fields: Any) -> None:
        self._tell("error", event, args, fields)

    def critical(self, event: object, *args: object, **fields: Any) -> None:
        self._tell("critical", event, args, fields)

    def exception(self, event: object, *args: object, **fields: Any) -> None:
        """Write an error with the traceback of the exception that is being handled."""
        self._tell("error", event, args, {"exc_info": True, **fields})

    def log(self, level: int | str, event: object, *args: object, **fields: Any) -> None:
        """Write a line of a level of `logging`, by its number or its name."""
        name = _NUMBERED[min(50, max(10, level // 10 * 10))] if isinstance(level, int) else str(level).lower()
        self._tell(name if name in LEVELS else "info", event, args, fields)

    warn = warning
    fatal = critical

    def _tell(self, level: str, event: object, args: tuple[object, ...], given: dict[str, Any]) -> None:
        if type(self._recorder) is _Outside:
            return
        at_s = time.time()
        text = _formatted(event, args)
        raised = given.pop("exc_info", None)
        for name in _IGNORED:
            given.pop(name, None)
        extra = given.pop("extra", None)
        fields = {**self._bound, **(extra if isinstance(extra, Mapping) else {}), **given}
        plain = {_clean(str(name), NAME_CHARS_MAX): _field(fields[name]) for name in list(fields)[:FIELDS_MAX]}
        lines = text.splitlines() or [""]
        self._recorder.line(level, lines[0], plain, at_s)
        for line in [*lines[1:], *_traceback(raised)]:
            self._recorder.line(level, line, {}, at_s)


def current() -> StepContext:
    """Give the attempt that calls, inside a step; outside of a run one that records nothing.

    It is found in the step's own thread or coroutine, and what these start: tasks and, of a step with the executor
    "process", threads. Threads of other steps and processes that a step starts are outside: hand threads what this
    gives.
    """
    return StepContext(_current.get() or _of_process or _OUTSIDE)


class entered:  # noqa: N801 - used as a function; a generator would cost a quick step 2 µs
    """Let `current` give this in the block.

    Args:
        of_process: also in all threads of the process that are in no block of their own.
    """

    __slots__ = ("_before", "_of_process", "_recorder", "_token")

    def __init__(self, recorder: Recorder, *, of_process: bool = False) -> None:
        self._recorder = recorder
        self._of_process = of_process

    def __enter__(self) -> None:
        global _of_process
        self._token = _current.set(self._recorder)
        if self._of_process:
            self._before, _of_process = _of_process, self._recorder

    def __exit__(self, *_: object) -> None:
        global _of_process
        if self._of_process:
            _of_process = self._before
        _current.reset(self._token)


def enter(recorder: Recorder) -> None:
    """Let `current` give this until the task or thread that calls has ended."""
    _current.set(recorder)


@contextmanager
def plain_call() -> Iterator[None]:
    """Give a call of a step as a function a folder of its own, if it is outside of a run."""
    if _current.get() is not None or _of_process is not None:
        yield
        return
    token = _current.set(_Outside())
    try:
        yield
    finally:
        _current.reset(token)


class _Outside:
    """Records nothing."""

    run = ""
    step = ""
    attempt = 1
    cancelled = False

    def __init__(self) -> None:
        self._folder: Path | None = None

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        pass

    def metric(self, name: str, value: float, iteration: int | None, at_s: float) -> None:
        pass

    def artifact(self, name: str, value: Any) -> None:
        pass

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        pass

    def folder(self) -> Path:
        if self._folder is None or not self._folder.is_dir():
            import tempfile

            # What it is asked for may be a path that is returned: it stays for as long as the process.
            self._folder = Path(tempfile.mkdtemp(prefix="evpipe-step-"))
            atexit.register(_remove, self._folder, os.getpid())
        return self._folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


_OUTSIDE: Final = _Outside()
_current: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar("evpipe_current", default=None)
#: The attempt that this process runs, where it runs one at a time.
_of_process: Recorder | None = None


_A: Final = {"metric": "a metric", "artifact": "an artifact"}


def _check_name(kind: str, name: object) -> None:
    if type(name) is not str:
        raise UsageError(f"the name of {_A[kind]} must be a text, not {name!r:.100}")
    # What is printable has no lone surrogates either.
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"{name[:40]!r} is no name of {_A[kind]}: it has 1 to {NAME_CHARS_MAX} printable characters")


def _number(value: Any, what: str) -> float:
    if isinstance(value, (str, bytes, bytearray)):
        raise UsageError(f"{what} must be a number, not {value!r:.100}")
    try:
        # Of an array or a tensor of one element.
        item = getattr(value, "item", None)
        return float(item() if callable(item) else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception as error:
        raise UsageError(f"{what} must be a number, not {_shown(value):.100} ({error})") from error


def _iteration(step: Any, name: str) -> int:
    try:
        found = operator.index(step)
    except TypeError:
        raise UsageError(
            f"the step of metric {name!r} must be a whole number or None, not {_shown(step):.100}"
        ) from None
    if not -_INT_MAX <= found <= _INT_MAX:
        raise UsageError(f"the step of metric {name!r} must have at most 63 bits, not {found.bit_length()}")
    return found


def _formatted(event: object, args: tuple[object, ...]) -> str:
    try:
        text = str(event)
        # As `logging` has it: one mapping gives the names.
        return text % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args) if args else text
    except Exception:  # noqa: BLE001 - a line of a log is never why a step fails
        return " ".join(map(_shown, (event, *args)))


def _field(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value if type(value) is not int or -_INT_MAX <= value <= _INT_MAX else str(value)
    return _clean(value if type(value) is str else _shown(value), FIELD_CHARS_MAX)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - of a user's class
        return f"<a {type(value).__name__} whose repr raised {type(error).__name__}>"


def _clean(text: str, chars_max: int) -> str:
    text = text if len(text) <= chars_max else text[: chars_max - 1] + "…"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _traceback(raised: Any) -> list[str]:
    if not raised:
        return []
    if isinstance(raised, BaseException):
        error: Any = raised
    else:
        error = raised[1] if isinstance(raised, tuple) and len(raised) == 3 else sys.exc_info()[1]
    if not isinstance(error, BaseException):
        return []
    import traceback

    return "".join(traceback.format_exception(error)).splitlines()
