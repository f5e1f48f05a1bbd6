"""Folders of attempts on this machine: one for each that has artifacts, gone when it has ended.

They are below a folder of the worker's own, which it holds a lock on; what a killed worker left is removed by the next.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from evpipe.bus.locks import FileLock
from evpipe.client.cache_folder import cache_folder

#: Ends the name of the lock of a worker's folder, which is beside it.
_LOCK: Final = ".lock"


class Scratch:
    """The folders of one worker's attempts.

    Args:
        name: of the worker; no other has it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: Path | None = None
        #: The same, with what separates it from what is in it: a path costs more than all else of a quick attempt.
        self._below = ""
        self._lock: FileLock | None = None
        self._number = 0

    def open(self) -> None:
        """Make the worker's folder; a few calls of the system."""
        self._folder, self._lock = _open(self._name)
        self._below = os.path.join(self._folder, "")  # noqa: PTH118 - a text that ends in /

    async def close(self) -> None:
        """Remove all of them; whatever is cancelled meanwhile."""
        folder, lock = self._folder, self._lock
        self._folder = self._lock = None
        if folder is not None:
            await _remove(str(folder))
        if lock is not None:
            with suppress(OSError):
                lock.path.unlink()
            lock.release()

    def new(self) -> str:
        """Name the folder of an attempt. It is not made."""
        assert self._folder is not None, "opened"
        self._number += 1
        return f"{self._below}{self._number}"

    async def remove(self, folder: str) -> None:
        """Remove the folder of an attempt, if anybody made it; whatever is cancelled meanwhile."""
        await _remove(folder)


async def _remove(folder: str) -> None:
    # One look, which for most attempts and workers is all, takes less than a thread.
    if os.path.exists(folder):  # noqa: ASYNC240, PTH110 - as above
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _open(name: str) -> tuple[Path, FileLock | None]:
    base = cache_folder("attempts")
    for found in base.glob(f"*{_LOCK}"):
        with suppress(OSError):
            _remove_if_left(found)
    # The folder itself is made with the first of an attempt's; the lock comes before it.
    return base / name, FileLock.try_take(base / f"{name}{_LOCK}")


def _remove_if_left(path: Path) -> None:
    lock = FileLock.try_take(path)
    if lock is None:
        return
    folder = path.with_name(path.name.removesuffix(_LOCK))

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        lock.release()

    if folder.exists():
        # It may be gigabytes, and nobody waits for it.
        threading.Thread(target=remove, name="evpipe-clear", daemon=True).start()
    else:
        remove()
