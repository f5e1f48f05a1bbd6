"""Artifacts between the object store and this machine: fetched once, checked, kept for the next who needs them.

    object store ──▶ cache folder of this user ──▶ (a link) folder of an attempt ──▶ its process

A file in the cache has its digest as its name and is never changed. What was checked once is checked again when its
size, its time or the file itself is another; a damaged one is fetched anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import anyio
import anyio.to_thread
import structlog

from evpipe.bus.protocol import Bus, Objects
from evpipe.client.cache_folder import cache_folder, draft_in
from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError
from evpipe.errors import LimitExceeded, RemoteProtocolError, only_one
from evpipe.wire.artifacts import VALUE
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import Shelf, TemporaryFolder
from evpipe.wire.storing import artifacts_in, artifacts_of, loaded

log = structlog.get_logger(__name__)

#: Bytes of artifacts that this user's machine keeps at the most; of the free space, at most half.
KEPT_BYTES_MAX: Final = 10 * 1024**3
#: When the cache is too large, it is cut to this part of what it may have.
KEPT_AFTER_CUT: Final = 0.8
#: A file that was used says so at most so often.
USED_EVERY_S: Final = 600.0
#: Folders for reading, and drafts, that are older were left by who was killed.
LEFT_S: Final = 3_600.0
_LOADING: Final = ".load-"
#: How often a file is fetched that does not stay.
TRIES_MAX: Final = 4
#: Uploads, and downloads, at the same time.
TRANSFERS_MAX: Final = 4
#: Artifacts that one value may need.
ARTIFACTS_MAX: Final = 100_000
#: Bytes that are decoded in less time than a thread takes to begin.
LIGHT_BYTES: Final = 16 * 1024


class Fetching(Protocol):
    """The part of an object store that reading needs."""

    async def get_file(self, digest: str, file: Path) -> bool:
        """As `Objects.get_file`."""


#: What of a file changes when its content does.
_Stamp: TypeAlias = tuple[int, int, int]


class ArtifactStore:
    """The artifacts of one installation, as this process sees them.

    Args:
        objects: where they are stored.
        kept_bytes_max: bytes that the cache folder may have.
    """

    def __init__(self, objects: Fetching, *, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._objects = objects
        self._kept_bytes_max = kept_bytes_max
        self._folder: Path | None = None
        #: Files that were checked, as they were then.
        self._checked: dict[str, _Stamp] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self._transfers = anyio.CapacityLimiter(TRANSFERS_MAX)
        self._opening = anyio.Lock()
        #: Bytes in the cache folder, about.
        self._kept_bytes = 0

    async def fetch(self, artifacts: Iterable[Artifact], into: Path) -> None:
        """Put the bytes of artifacts, and of those that are in them, into a folder, by their digests.

        Raises:
            ArtifactUnreadable: if one is missing in the object store, or damaged.
        """
        todo = [artifact for artifact in artifacts if artifact.data is None or artifact.nested]
        seen: set[tuple[object, ...]] = set()
        made = False
        while todo:
            if not made:
                await anyio.to_thread.run_sync(lambda: into.mkdir(mode=0o700, parents=True, exist_ok=True))
                made = True
            now, todo = todo, []
            new = [artifact for artifact in now if (artifact.digest, artifact.path) not in seen]
            seen |= {(artifact.digest, artifact.path) for artifact in new}
            if len(seen) > ARTIFACTS_MAX:
                raise LimitExceeded(
                    f"a value has more than {ARTIFACTS_MAX:,} artifacts",
                    limit="ARTIFACTS_MAX",
                    found=len(seen),
                    allowed=ARTIFACTS_MAX,
                )
            by_digest = {artifact.digest: artifact for artifact in new if artifact.data is None}
            await _together(partial(self._fetch_one, artifact, into) for artifact in by_digest.values())
            for artifact in new:
                if artifact.nested and artifact.kind == VALUE:
                    inner = await anyio.to_thread.run_sync(_inner, artifact, into)
                    todo += [found for found in inner if found.data is None or found.nested]

    async def store(self, objects: Objects, files: Mapping[str, Path]) -> None:
        """Put files into the object store, by their digests, and keep them here for those who need them next.

        Raises:
            BusError: if the object store does not take them.
        """
        await _together(partial(self._store_one, objects, digest, file) for digest, file in files.items())

    async def load(self, value: Any, *, pickles: bool = False) -> Any:
        """Give a decoded value with everything in the place of its artifacts.

        Files and folders in it are below a temporary folder, until this process ends.

        Raises:
            ArtifactUnreadable: if an artifact is missing, damaged, or cannot be read here.
        """
        artifacts = artifacts_of(value)
        if not artifacts:
            return value
        cache = await self._cache()
        await anyio.to_thread.run_sync(lambda: cache.mkdir(mode=0o700, parents=True, exist_ok=True))
        with tempfile.TemporaryDirectory(dir=cache, prefix=_LOADING) as name:
            into = Path(name)
            await self.fetch(artifacts, into)

            def find(digest: str) -> Path | None:
                file = into / digest
                return file if file.is_file() else None

            try:
                return await anyio.to_thread.run_sync(loaded, value, Shelf(find, lasting_folder, pickles=pickles))
            except BindingError as error:
                raise ArtifactUnreadable(str(error)) from error

    # ---- one at a time

    async def _fetch_one(self, artifact: Artifact, into: Path) -> None:
        digest = artifact.digest
        # Many steps may ask for the same one at once: it is fetched once.
        lock = self._locks.setdefault(digest, anyio.Lock())
        try:
            async with lock, self._transfers:
                for _ in range(TRIES_MAX):
                    # Somebody may clear the cache, or make room in it, at this moment.
                    with suppress(FileNotFoundError):
                        await self._put(artifact, into / digest)
                        return
        finally:
            if not lock.statistics().tasks_waiting:
                self._locks.pop(digest, None)
        raise ArtifactUnreadable(f"the artifact {artifact} does not stay in this machine's cache: is its disk full?")

    async def _put(self, artifact: Artifact, place: Path) -> None:
        """Put the artifact's file in its place, from the cache, or after it was fetched into that.

        Raises:
            FileNotFoundError: if it is not in the cache any more.
        """
        digest = artifact.digest
        file = await self._cache() / digest[:2] / digest
        if await anyio.to_thread.run_sync(self._is_intact, digest, file):
            await anyio.to_thread.run_sync(_link, file, place)
            return
        await anyio.to_thread.run_sync(lambda: file.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
        draft = draft_in(file.parent)
        if not await self._objects.get_file(digest, draft):
            raise ArtifactUnreadable(f"the artifact {artifact} is missing in the object store, or damaged")
        # Before it is kept: in a cache without room for all that is needed at once, each would be cut for the next.
        await anyio.to_thread.run_sync(_link, draft, place)
        await anyio.to_thread.run_sync(partial(self._keep, digest, draft, file, checked=True))
        log.debug("artifact_fetched", digest=digest, size_bytes=artifact.size_bytes)

    async def _store_one(self, objects: Objects, digest: str, file: Path) -> None:
        cache = await self._cache()
        async with self._transfers:
            await objects.put_file(digest, file)
            kept = cache / digest[:2] / digest

            def keep() -> None:
                kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Not read here, if the store had it already: whoever needs it first checks it.
                self._keep(digest, file, kept, checked=False)

            # It is stored: whether it is kept here, too, only saves time.
            with suppress(OSError):
                await anyio.to_thread.run_sync(keep)

    # ---- the cache folder; in threads

    async def _cache(self) -> Path:
        if self._folder is None:
            async with self._opening:
                if self._folder is None:
                    self._folder = await anyio.to_thread.run_sync(self._open)
        return self._folder

    def _open(self) -> Path:
        folder = cache_folder("artifacts")
        for found in folder.glob(f"{_LOADING}*"):
            # Of a process that was killed while it read.
            with suppress(OSError):
                if time.time() - found.stat().st_mtime > LEFT_S:
                    shutil.rmtree(found, ignore_errors=True)
        self._kept_bytes = sum(size for _, size, _ in _files(folder))
        free = shutil.disk_usage(folder).free
        self._kept_bytes_max = min(self._kept_bytes_max, (free + self._kept_bytes) // 2)
        return folder

    def _is_intact(self, digest: str, file: Path) -> bool:
        """Say whether the file is there and has its digest."""
        stamp = _stamp(file)
        if stamp is None:
            return False
        if self._checked.get(digest) != stamp:
            if _digest_of(file) != digest:
                log.warning("artifact_damaged", file=str(file))
                with suppress(OSError):
                    file.unlink()
                return False
            self._checked[digest] = stamp
        if time.time() - stamp[1] / 1e9 > USED_EVERY_S:
            with suppress(OSError):
                os.utime(file)
                self._checked[digest] = _stamp(file) or stamp
        return True

    def _keep(self, digest: str, draft: Path, file: Path, *, checked: bool) -> None:
        """Move a file into the cache; its digest was computed while it was written, or will be when it is read."""
        draft.chmod(0o400)
        draft.replace(file)
        stamp = _stamp(file)
        self._checked.pop(digest, None)
        if stamp is not None:
            if checked:
                self._checked[digest] = stamp
            self._kept_bytes += stamp[2]
        if self._kept_bytes > self._kept_bytes_max:
            self._cut(file.parents[1], but=file)

    def _cut(self, folder: Path, *, but: Path) -> None:
        """Remove what was not used for the longest time; whoever needs one now has a link to it."""
        found = sorted(_files(folder))
        self._kept_bytes = sum(size for _, size, _ in found)
        wanted = int(self._kept_bytes_max * KEPT_AFTER_CUT)
        for _, size, file in found:
            if self._kept_bytes <= wanted:
                return
            if file != but:
                with suppress(OSError):
                    file.unlink()
                self._checked.pop(file.name, None)
                self._kept_bytes -= size


_lasting: Final = TemporaryFolder("values")


def lasting_folder() -> Path:
    """Make a folder that goes with this process."""
    return Path(tempfile.mkdtemp(dir=_lasting.path))


async def _together(transfers: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Do several things at once; raises the first error by itself."""
    try:
        async with anyio.create_task_group() as task_group:
            for transfer in transfers:
                task_group.start_soon(transfer)
    except BaseExceptionGroup as group:
        error = only_one(group)
        raise error from error.__cause__


async def store_all(bus: Bus, files: Mapping[str, Path]) -> None:
    """Put files into the object store, without keeping them here.

    Raises:
        BusError: if it does not take them.
    """
    for digest, file in files.items():
        await bus.objects.put_file(digest, file)


async def is_intact(bus: Bus, value: Any, *, read_bytes_max: int) -> bool:
    """Say whether all artifacts of a decoded value are in the object store.

    Args:
        read_bytes_max: so much of them is read and checked; of what is beyond, only that it is there in its size.
    """
    todo = artifacts_of(value)
    seen: set[tuple[object, ...]] = set()
    while todo:
        artifact = todo.pop()
        key = (artifact.digest, artifact.path)
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > ARTIFACTS_MAX:
            return False
        if artifact.data is None:
            if artifact.size_bytes > read_bytes_max:
                found = await bus.objects.find(artifact.digest)
                if found is None or found.size_bytes != artifact.size_bytes:
                    return False
                continue
            read_bytes_max -= artifact.size_bytes
            if not artifact.nested:
                if not await bus.objects.intact(artifact.digest):
                    return False
                continue
        if artifact.nested and artifact.kind == VALUE:
            data = artifact.data if artifact.data is not None else await bus.objects.get(artifact.digest)
            if data is None:
                return False
            try:
                if len(data) <= LIGHT_BYTES:
                    todo += artifacts_in(data, artifact.path)
                else:
                    # It takes a while, and whoever asks leads runs.
                    todo += await anyio.to_thread.run_sync(artifacts_in, data, artifact.path)
            except (RemoteProtocolError, BindingError):
                return False
    return True


def _inner(artifact: Artifact, folder: Path) -> list[Artifact]:
    data = artifact.data if artifact.data is not None else (folder / artifact.digest).read_bytes()
    try:
        return artifacts_in(data, artifact.path)
    except RemoteProtocolError as error:
        raise ArtifactUnreadable(f"the artifact {artifact} is no value: {error}") from error
    except BindingError as error:
        raise ArtifactUnreadable(str(error)) from error


def _link(file: Path, place: Path) -> None:
    if place.exists():
        return
    try:
        os.link(file, place)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(file, place)


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """Give time, size and path of the files in the cache."""
    found: list[tuple[int, int, Path]] = []
    for part in folder.iterdir():
        if len(part.name) != 2 or not part.is_dir():
            continue
        for file in part.iterdir():
            with suppress(OSError):
                stat = file.stat()
                if file.name.startswith(".") and time.time() - stat.st_mtime < LEFT_S:
                    continue  # somebody writes it
                found.append((stat.st_mtime_ns, stat.st_size, file))
    return found
