"""Folders of attempts on this machine: one for each that has artifacts, gone when it has ended.

They are below a folder of the worker's own, which it holds a lock on; what a killed worker left is removed by the next.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from evpipe.bus.locks import FileLock
from evpipe.client.cache_folder import cache_folder


class Scratch:
    """The folders of one worker's attempts.

    Args:
        name: of the worker; no other has it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._number = 0

    async def open(self) -> None:
        self._folder, self._lock = await anyio.to_thread.run_sync(_open, self._name)

    async def close(self) -> None:
        """Remove all of them."""
        folder, lock = self._folder, self._lock
        self._folder = self._lock = None
        if folder is not None:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
        if lock is not None:
            with suppress(OSError):
                lock.path.unlink()
            lock.release()

    def new(self) -> Path:
        """Name the folder of an attempt. It is not made."""
        assert self._folder is not None, "opened"
        self._number += 1
        return self._folder / str(self._number)

    async def remove(self, folder: Path) -> None:
        """Remove the folder of an attempt, if anybody made it."""
        if folder.exists():  # noqa: ASYNC240 - one look, at most attempts cheaper than a thread
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _open(name: str) -> tuple[Path, FileLock | None]:
    base = cache_folder("attempts")
    for found in base.iterdir():
        if found.is_dir():
            with suppress(OSError):
                _remove_if_left(found)
    # The lock comes first: a folder that nobody holds one for is left over.
    lock = FileLock.try_take(_lock_of(base / name))
    folder = base / name
    folder.mkdir(mode=0o700)
    return folder, lock


def _remove_if_left(folder: Path) -> None:
    lock = FileLock.try_take(_lock_of(folder))
    if lock is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    lock.path.unlink(missing_ok=True)
    lock.release()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
