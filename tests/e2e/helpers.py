"""Programs of users as processes of their own, what their steps left behind, and the one place where tests wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

REPOSITORY = Path(__file__).parents[2]
#: Nothing here takes longer than 10 s on two busy cores.
PATIENCE_S = 30.0


def until(condition: Callable[[], object], what: str = "", *, patience_s: float = PATIENCE_S) -> float:
    """Poll until the condition holds; fail after a bounded time. Gives the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + patience_s, f"waited {patience_s:g} s for: {what or condition}"
        time.sleep(0.005)
    return time.monotonic() - began


async def until_async(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """The same for a condition that asks a bus."""
    end = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for: {what}"
        await anyio.sleep(0.005)


def pass_by(seconds: float) -> None:
    """Let some time pass: the length of an outage, or of a body that is too slow."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, patience_s=seconds + PATIENCE_S)


def clean_environment(**more: object) -> dict[str, str]:
    """This process's environment without any setting of evpipe's, and with some others."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("EVPIPE_", "NATS_URL"))}
    return {**found, "PYTHONPATH": str(REPOSITORY), **{name: str(value) for name, value in more.items()}}


def bare_environment(folder: Path) -> Path:
    """Make a virtual environment with nothing installed, and give its scripts folder."""
    venv.create(folder, symlinks=True)
    return folder / "bin"


def is_running(pid: int) -> bool:
    """Whether a process exists (a zombie counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Program:
    """A process; what it says is read from files, so nothing ever waits for a full pipe."""

    def __init__(self, directory: Path, env: dict[str, str], *args: object) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._out, self._err = directory / "out", directory / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, args)],
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def _end(self) -> str:
        return f"the end of {self._process.args!r}: {self.out} {self.err}"

    def finish(self) -> int:
        """Wait for its end; gives its code."""
        until(lambda: not self.alive, f"the end of {self._process.args!r}: {self.out} {self.err}")
        return self._process.returncode

    def result(self) -> dict[str, Any]:
        """Wait for its end and give the object that it printed."""
        code = self.finish()
        assert code == 0, f"ended with {code}: {self.out} {self.err}"
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    def until_said(self, text: str) -> Program:
        """Wait until it has written a text, to either stream."""
        until(
            lambda: text in self.out or text in self.err or not self.alive, f"{text!r} is said: {self.out} {self.err}"
        )
        assert text in self.out or text in self.err, f"it ended: {self.out} {self.err}"
        return self

    def clean(self) -> None:
        """End it if it has not ended, and close what is open."""
        if self.alive:
            self.kill()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()


class Witness:
    """A file to which the steps themselves write, one line per beginning and end: `begin name pid`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[tuple[str, str, int]]:
        if not self.path.exists():
            return []
        rows = (line.split() for line in self.path.read_text().splitlines())
        return [(what, name, int(pid)) for what, name, pid in rows]

    @property
    def begins(self) -> Counter[str]:
        """How often each step began."""
        return Counter(name for what, name, _ in self.lines if what == "begin")

    @property
    def ends(self) -> Counter[str]:
        return Counter(name for what, name, _ in self.lines if what == "end")

    def has_begun(self, name: str, times: int = 1) -> bool:
        return self.begins[name] >= times
