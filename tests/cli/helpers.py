"""The command line as a user has it: a process of its own. The one place where tests wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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

    def with_env(self, **more: str) -> CommandLine:
        return CommandLine({**self.env, **more}, self.cwd)

    def without(self, *names: str) -> CommandLine:
        return CommandLine({key: value for key, value in self.env.items() if key not in names}, self.cwd)

    def at(self, cwd: Path) -> CommandLine:
        return CommandLine(self.env, cwd)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *args],
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *args: str) -> Done:
        return finish(self.start(*args))


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for the end of a command line."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} does not end; it said {out!r} and {err!r}") from None
    return Done(process.returncode, out, err)


def leave(process: subprocess.Popen[str]) -> None:
    """End a process that ends with its standard input."""
    try:
        process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


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
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something outside of this process."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)
