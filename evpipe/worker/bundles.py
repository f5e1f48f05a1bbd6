"""Bundles of code on this machine: fetched by digest, written once, kept for the next run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog

from evpipe.bus.protocol import Bus
from evpipe.client.bundle import COMMANDS, KIND
from evpipe.client.cache_folder import cache_folder, draft_in
from evpipe.client.source import Source
from evpipe.errors import RemoteProtocolError
from evpipe.wire.artifacts import is_digest
from evpipe.wire.bundles import unpack_bundle
from evpipe.worker.code import CodeNotFound

log = structlog.get_logger(__name__)

#: A bundle that no worker of this user has needed for so long is removed.
KEPT_S: Final = 30 * 24 * 3600.0


class BundleStore:
    """The bundles of one installation's runs, unpacked below a folder of this user's cache."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._folder: Path | None = None
        self._lock = anyio.Lock()

    async def source_of(self, found: Mapping[str, Any]) -> Source:
        """Give where the code that a launch names is on this machine, after putting it there.

        Raises:
            CodeNotFound: if it is not in the object store, or is no bundle.
        """
        if found.keys() <= {COMMANDS}:
            # All installed: where this interpreter looks anyway.
            return Source()
        kind, digest = found.get("kind"), found.get("digest")
        files, main = found.get("files", {}), found.get("main", "")
        if kind != KIND or not isinstance(digest, str) or not is_digest(digest):
            raise CodeNotFound(
                f"the launch names its code as {str(kind)[:40]!r}: this worker knows 'bundle' with digest"
            )
        if not isinstance(files, dict) or not isinstance(main, str):
            raise CodeNotFound("the launch does not say which module is which file of its bundle")
        folder = await self._kept(digest)
        places = {}
        for module, inside in files.items():
            if not isinstance(module, str) or not isinstance(inside, str) or not _is_below(inside):
                raise CodeNotFound(f"the launch says that the module {str(module)[:80]!r} is {str(inside)[:80]!r}")
            places[module] = str(folder / inside)
        return Source((str(folder),), places, main)

    async def commands_of(self, found: Mapping[str, Any]) -> str:
        """Give the folder of the files of a run's commands, after putting it there; "" if they have none.

        Raises:
            CodeNotFound: if it is not in the object store, or is no bundle.
        """
        digest = found.get(COMMANDS, "")
        if digest == "":
            return ""
        if not isinstance(digest, str) or not is_digest(digest):
            raise CodeNotFound(f"the launch names the files of its command as {str(digest)[:40]!r}")
        return str(await self._kept(digest))

    async def _kept(self, digest: str) -> Path:
        # Looked at every time: whoever clears the cache may do so while this lives, and its age says who needs it.
        async with self._lock:
            return await self._folder_of(digest)

    async def _folder_of(self, digest: str) -> Path:
        if self._folder is None:
            self._folder = await anyio.to_thread.run_sync(_bundles_folder)
        folder = self._folder / digest
        if not await anyio.to_thread.run_sync(_touch, folder):
            # Checked against the digest by the bus: what is damaged is not there.
            data = await self._bus.objects.get(digest)
            if data is None:
                raise CodeNotFound(f"the bundle {digest} of the run's code is not in the object store, or is damaged")
            try:
                files = await anyio.to_thread.run_sync(unpack_bundle, data)
            except RemoteProtocolError as error:
                raise CodeNotFound(str(error)) from error
            await anyio.to_thread.run_sync(_write, folder, files)
            log.debug("bundle_unpacked", digest=digest, files=len(files))
        return folder


def _is_below(inside: str) -> bool:
    return bool(inside) and not any(part in {"", ".", ".."} for part in inside.split("/")) and "\0" not in inside


def _bundles_folder() -> Path:
    """Make the folder of this user's bundles, and remove those that nobody needs any more."""
    folder = cache_folder("bundles")
    with suppress(OSError):
        _remove_old(folder)
    return folder


def _remove_old(folder: Path) -> None:
    before = time.time() - KEPT_S
    for found in folder.iterdir():
        with suppress(OSError):
            if found.stat().st_mtime < before:
                # In one step, as it came: another worker finds all of it or nothing.
                gone = found.rename(draft_in(folder))
                _make_writable(gone)
                shutil.rmtree(gone)


def _touch(folder: Path) -> bool:
    """Say whether a bundle is there, and that it is in use."""
    try:
        os.utime(folder)
    except OSError:
        return False
    return True


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files beside its place and move them there in one step; nobody may change them afterwards."""
    # By the paths that `unpack_bundle` has checked, into a folder that nobody else has.
    draft = draft_in(folder.parent)
    # The cache may have been cleared away since it was opened.
    draft.mkdir(mode=0o700, parents=True)
    try:
        for inside, content in files.items():
            file = draft / inside
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o400)
        for found in draft.rglob("*"):
            if found.is_dir():
                found.chmod(0o500)
        draft.rename(folder)
        # Not before: some systems do not let one be moved that cannot be written.
        folder.chmod(0o500)
    except OSError:
        _make_writable(draft)
        shutil.rmtree(draft, ignore_errors=True)
        if not folder.is_dir():
            raise
        # Another worker was quicker: its files are the same.


def _make_writable(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o700)
        for found in folder.iterdir():
            if found.is_dir() and not found.is_symlink():
                _make_writable(found)
