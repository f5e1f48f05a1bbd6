"""The worker's side of its guard: see `guard.py`."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from evpipe.worker.children import guard


class Guard:
    """Tells the guard which children end with this worker; the guard starts with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = anyio.Lock()

    async def start(self) -> None:
        """Start it, if it has not been started.

        Raises:
            OSError: if that cannot be done.
        """
        async with self._starting:
            if self._process is None:
                self._process = await anyio.to_thread.run_sync(_spawn)

    def add(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    async def close(self) -> None:
        """End it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        await anyio.to_thread.run_sync(self._process.wait)
        self._process = None

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            # A few bytes into a pipe that is read at once.
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def _spawn() -> subprocess.Popen[bytes]:
    # Without site packages: it starts in a few milliseconds.
    command = [sys.executable, "-S", "-E", "-P", str(Path(guard.__file__))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
