"""The command line as a user has it: a process of its own. The one place where tests wait."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "evpipe"
PIPELINES = "tests/cli/pipelines.py"
MODULE = "tests.cli.pipelines"
#: Nothing here takes longer than 3 s on two busy cores.
PATIENCE_S = 20.0


def clean_environment() -> dict[str, str]:
    ours = ("EVPIPE_", "NATS_URL", "NO_COLOR", "FORCE_COLOR", "PYTHONSAFEPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What is on standard output, which must be one line."""
        assert self.out.count("\n") == 1, self
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    env: dict[str, str]
    cwd: Path
    #: All that was started, by this one and those made of it: the fixture cleans it up, however the test ends.
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    #: What runs the command line.
    program: tuple[str | Path, ...] = (PROGRAM,)

    def with_env(self, **more: str) -> CommandLine:
        return replace(self, env={**self.env, **more})

    def without(self, *names: str) -> CommandLine:
        return replace(self, env={key: value for key, value in self.env.items() if key not in names})

    def at(self, cwd: Path) -> CommandLine:
        return replace(self, cwd=cwd)

    def by(self, *program: str | Path) -> CommandLine:
        return replace(self, program=program)

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self.program, *args],
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def clean(self) -> None:
        """Kill what was started and still runs, and close its pipes."""
        for process in self.started:
            clean(process)

    def __call__(self, *args: str) -> Done:
        return finish(self.start(*args))


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for the end of a command line."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as late:
        # What it started may hold its pipes open for longer than it lives: nothing is read to the end here.
        clean(process)
        raise AssertionError(f"{process.args!r} does not end; it said {late.stdout!r} and {late.stderr!r}") from None
    return Done(process.returncode, out, err)


def clean(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended, and close what is open of it."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def until_said(process: subprocess.Popen[str], text: str) -> str:
    """Wait until a process has said a line with this text on its standard error, and give what it has said.

    It is up then: a Python that is still importing may swallow a Ctrl-C, or end by it in silence. What was read here
    is no longer part of what `finish` gives.
    """
    assert process.stderr is not None
    pipe = process.stderr.fileno()
    said = b""

    def has_said() -> bool:
        nonlocal said
        # Not by `readline`: what a text file has read ahead, a look at the descriptor does not show.
        if select.select([pipe], [], [], 0)[0]:
            read = os.read(pipe, 65_536)
            assert read, f"it ended, and said {said.decode()!r}"
            said += read
        return any(text.encode() in line and line.endswith(b"\n") for line in said.splitlines(keepends=True))

    until(has_said, f"{text!r} is said")
    return said.decode()


def story(out: str) -> list[tuple[str | None, str]]:
    """Give step and kind of each event (`-o json`) but `started`, which a body has that takes longer than others."""
    events = [(event["step"], event["kind"]) for event in map(json.loads, out.splitlines())]
    return [(step, kind) for step, kind in events if kind != "started"]


def leave(process: subprocess.Popen[str]) -> None:
    """End a process that ends with its standard input."""
    try:
        process.communicate(timeout=PATIENCE_S)
    finally:
        clean(process)


class Host:
    """A command line that serves until it is told to leave; its logs go to a file."""

    def __init__(self, line: CommandLine, folder: Path, *args: str) -> None:
        self._err = folder / "err"
        folder.mkdir()
        with (folder / "out").open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [PROGRAM, *args], env=line.env, cwd=line.cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Give its log lines of this event; whatever else it says is no log line."""
        lines = [line for line in self.err.splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n")]
        return [found for found in map(json.loads, lines) if found["event"] == event]

    def until_logged(self, event: str) -> Self:
        until(lambda: bool(self.logged(event)) or self.process.poll() is not None, f"{event} is logged")
        assert self.logged(event), self.err
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> int:
        """Wait for its end; gives its exit code."""
        return self.process.wait(PATIENCE_S)

    def clean(self) -> None:
        """End it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something outside of this process."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)
