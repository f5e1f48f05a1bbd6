"""Results of cached steps on this user's disk, for runs without a server: those of the modes `local` and `debug`.

<folder>/entries/3f/3f2a…              what is under a fingerprint, and which objects it needs
<folder>/made/<pipeline>/<step>/3f2a…  its components, for whoever explains a miss
<folder>/hits/3f2a…                    who used it, a line each
<folder>/objects/9b/9b1c…              an object, under its digest
<folder>/uses/…                        links to the objects that processes need now: they keep them whatever is removed
<folder>/lock                          held by who writes, or makes room

Keys are those of the cache's bucket (`wire.cache`); markers are not kept. Any number of processes use it at once. A
file is written beside its place and renamed, an entry after its objects. What is read is checked: what is damaged is as
if it had never been there, and goes. What a disk does is no error of a run's: it is said once, and runs go on without.
All of it blocks.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import structlog

from evpipe.bus.content import BytesSource, FileSink, FileSource, Source
from evpipe.bus.locks import FileLock, require_posix
from evpipe.bus.settings import load_data_dir
from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.artifacts import VALUE
from evpipe.wire.cache import (
    HIT_TTL_S,
    CacheEntry,
    Hit,
    decode_entry,
    encode_hit,
    encode_made,
    hit_key,
    is_entry_key,
    made_key,
)
from evpipe.wire.codec import decode_map, encode_map
from evpipe.wire.storing import artifacts_in
from evpipe.wire.values import unpack

log = structlog.get_logger(__name__)

#: Its name below the data directory.
FOLDER: Final = "results"
#: Bytes that are kept at the most; of the free space, at most half.
KEPT_BYTES_MAX: Final = 2 * 1024**3
#: When it is too large, it is cut to this part of what it may have.
KEPT_AFTER_CUT: Final = 0.8
#: What others write is seen when this process has written so much.
RECOUNT_BYTES: Final = 64 * 1024**2
#: A file takes whole blocks of a disk.
BLOCK_BYTES: Final = 4_096
#: Whoever waits longer for the lock does without: a result only saves work.
LOCK_WAIT_S: Final = 10.0
#: Results that a miss is compared with, and hits that are remembered of each; the newest.
COMPARED_MAX: Final = 1_000
HITS_BYTES_MAX: Final = 64 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_DIGEST_BYTES: Final = 32
#: Of a key, after the first.
_TOKENS_MAX: Final = 3
_TOKEN: Final = re.compile(r"[A-Za-z0-9_=-]{1,200}\Z")

#: Gives where an object is, by its digest; None if it is nowhere.
Find: TypeAlias = Callable[[str], bytes | Path | None]


class Kept(NamedTuple):
    """What is kept under a key."""

    key: str
    value: bytes
    #: When it was written, seconds since 1970.
    at_s: float
    #: Digests of what it needs.
    objects: tuple[str, ...] = ()


def kept_results(note: Callable[[str], None]) -> ResultStore | None:
    """Open the results of this user; None if they cannot be kept.

    Args:
        note: is told why they are not kept, once.
    """
    try:
        require_posix()
        return ResultStore(load_data_dir() / FOLDER, note)
    except (OSError, UsageError) as error:
        note(_not_kept(error))
        return None


class ResultStore:
    """A folder of results.

    Args:
        note: is told once when something cannot be written.
        bytes_max: more than so much makes those go that were not used for the longest time.

    Raises:
        OSError: if the folder is none that this user can write to.
    """

    def __init__(self, folder: Path, note: Callable[[str], None], *, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.folder = folder
        self._note = note
        self._bytes_max = bytes_max
        self._noted = False
        self._mutex = threading.Lock()
        #: Bytes that are kept, about, and those that were written here since they were counted.
        self._kept_bytes: int | None = None
        self._new_bytes = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        probe = folder / f".{secrets.token_hex(8)}"
        probe.touch(mode=0o600)
        probe.unlink()

    # ---- reading

    def get(self, key: str, use: Use) -> Kept | None:
        """Give what is kept under a key, if all that it needs is there; `use` has that then.

        Its objects are read and checked, all of them: whoever takes a result takes it without asking again.
        """
        file = self._file(key)
        if file is None:
            return None
        try:
            found = self._read(file, key)
            if found is None:
                return None
            if not all(use.take(self._object_file(digest), digest) for digest in found.objects):
                log.warning("result_damaged", key=key)
                file.unlink(missing_ok=True)
                return None
            if is_entry_key(key):
                os.utime(file)
        except OSError as error:
            log.debug("result_not_read", key=key, error=str(error))
            return None
        return found

    def entries(self, under: str = "") -> list[Kept]:
        """Give what is kept under the keys that begin with these tokens, the oldest first; nothing is linked."""
        kind, *tokens = under.split(".")
        if under and (len(tokens) > _TOKENS_MAX or not all(map(_TOKEN.match, under.split(".")))):
            return []
        try:
            if kind == "hit":
                found = self._hits(tokens[0] if tokens else "*")
            elif kind == "made":
                found = self._made(tokens)
            elif kind:
                file = self._file(under)
                one = None if file is None else self._read(file, under)
                found = [] if one is None else [one]
            else:
                found = [*self._entries(), *self._made([]), *self._hits("*")]
        except OSError as error:
            log.debug("results_not_read", error=str(error))
            return []
        return sorted(found, key=lambda kept: kept.at_s)

    def _entries(self) -> list[Kept]:
        files = (self.folder / "entries").glob("??/*")
        return [found for file in files if (found := self._read(file, file.name)) is not None]

    def _made(self, tokens: list[str]) -> list[Kept]:
        base = self.folder.joinpath("made", *tokens)
        files = [base] if len(tokens) == 3 else list(base.glob("/".join("*" * (3 - len(tokens)))))
        if len(tokens) == 2 and len(files) > COMPARED_MAX:
            files = sorted(files, key=_mtime_ns)[-COMPARED_MAX:]
        found: list[Kept] = []
        for file in files:
            pipeline, step, fingerprint = file.parts[-3:]
            # Its result may have made room for others.
            if self._entry_file(fingerprint).exists():
                kept = self._read(file, f"made.{pipeline}.{step}.{fingerprint}")
                found += [] if kept is None else [kept]
        return found

    def _hits(self, fingerprint: str) -> list[Kept]:
        found: list[Kept] = []
        for file in (self.folder / "hits").glob(fingerprint):
            for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
                at, *tokens = line.split(" ")
                if len(tokens) != 3 or not all(map(_TOKEN.match, tokens)):
                    continue
                hit = Hit(file.name, *tokens)
                with suppress(ValueError):
                    if float(at) > time.time() - HIT_TTL_S:
                        found.append(Kept(hit_key(hit), encode_hit(hit), float(at)))
        return found

    def _read(self, file: Path, key: str) -> Kept | None:
        """Read a file; None if it is not there, or is not what was written for this key."""
        try:
            data = file.read_bytes() if _is_plain(file) else b""
        except FileNotFoundError:
            return None
        body = data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            return None
        try:
            fields = decode_map(body, "the result")
            value = fields.map.get("value")
            if fields.text("key") != key or not isinstance(value, bytes):
                return None
            return Kept(key, value, fields.number("at"), fields.texts("objects"))
        except RemoteProtocolError:
            # Of another version.
            return None

    # ---- writing

    def put(self, key: str, value: bytes, find: Find) -> bool:
        """Keep something under a key; the components of an entry are kept with it.

        Args:
            find: gives the objects that an entry needs.

        Returns:
            Whether it is kept now.
        """
        try:
            if key.startswith("hit."):
                self._add_hit(key, value)
                return True
            if not is_entry_key(key) or self._file(key) is None:
                return False
            entry = decode_entry(value)
            objects = objects_needed(entry, find) if isinstance(entry, CacheEntry) else None
            if not isinstance(entry, CacheEntry) or objects is None:
                return False
            with self._locked() as locked:
                return locked and self._put(entry, value, objects)
        except (OSError, UsageError) as error:
            self._trouble(error)
            return False

    def _put(self, entry: CacheEntry, value: bytes, objects: dict[str, bytes | Path]) -> bool:
        made = made_key(entry.pipeline, entry.step, entry.fingerprint)
        files = {
            self._entry_file(entry.fingerprint): _sealed(entry.fingerprint, value, list(objects)),
            self.folder.joinpath(*made.split(".")): _sealed(made, encode_made(entry), []),
        }
        with ExitStack() as stack:
            sources: list[tuple[Path, Source, str]] = []
            for digest, place in objects.items():
                file = self._object_file(digest)
                if isinstance(place, bytes):
                    sources.append((file, BytesSource(place), digest))
                else:
                    sources.append((file, stack.enter_context(FileSource(place)), digest))
            sources += [(file, BytesSource(data), "") for file, data in files.items()]
            size = sum(_on_disk(source.size_bytes) for _, source, _ in sources)
            if not self._has_room(size):
                log.debug("result_too_large", fingerprint=entry.fingerprint, size_bytes=size)
                return False
            for file, source, digest in sources:
                self._write(file, source, digest)
        return True

    def _write(self, file: Path, source: Source, digest: str = "") -> None:
        """Write a file; an object that is there in its size is there."""
        if digest and _size(file) == source.size_bytes:
            return
        try:
            sink = FileSink(file)
        except FileNotFoundError:
            # The first of its folder.
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sink = FileSink(file)
        with sink:
            while part := source.read(_PIECE_BYTES):
                sink.take([part])
            if digest:
                source.check(digest)
            sink.keep()
        file.chmod(0o400)

    def _add_hit(self, key: str, value: bytes) -> None:
        _, fingerprint, run, step = key.split(".")
        pipeline = decode_map(value, "the hit").text("pipeline")
        file = self.folder / "hits" / fingerprint
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if _size(file) > HITS_BYTES_MAX:
            lines = file.read_bytes().splitlines(keepends=True)
            with FileSink(file) as sink:
                sink.take(lines[len(lines) // 2 :])
                sink.keep()
        # One write, so that those of several processes do not mix.
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(opened, f"{time.time():.3f} {pipeline} {run} {step}\n".encode())
        finally:
            os.close(opened)

    def delete(self, key: str) -> None:
        """Keep it no longer; what it needed goes with the next `sweep`."""
        kind, _, rest = key.partition(".")
        file = self.folder / "hits" / rest.partition(".")[0] if kind == "hit" else self._file(key)
        try:
            if file is not None:
                file.unlink(missing_ok=True)
        except OSError as error:
            self._trouble(error)

    # ---- room

    def sweep(self) -> None:
        """Remove what nothing needs any more."""
        try:
            with self._locked() as locked:
                if locked:
                    self._sweep()
        except OSError as error:
            self._trouble(error)

    def _has_room(self, size_bytes: int) -> bool:
        """Make room for so much more, and take note that it is written; says whether there is."""
        if self._kept_bytes is None or self._new_bytes > RECOUNT_BYTES:
            self._kept_bytes, self._new_bytes = self._counted(), 0
        free = shutil.disk_usage(self.folder).free
        most = min(self._bytes_max, (free + self._kept_bytes) // 2)
        wanted = int(most * KEPT_AFTER_CUT)
        if size_bytes > wanted:
            return False
        if self._kept_bytes + size_bytes > most:
            # What was there already was counted again.
            self._kept_bytes = self._counted()
            if self._kept_bytes + size_bytes > most:
                self._cut(wanted - size_bytes)
                self._kept_bytes = self._counted()
        self._kept_bytes += size_bytes
        self._new_bytes += size_bytes
        return True

    def _counted(self) -> int:
        return sum(_on_disk(_size(file)) for file in self._files("entries", "made", "hits", "objects"))

    def _cut(self, wanted: int) -> None:
        """Remove what was not used for the longest time, until no more than so many bytes are kept."""
        kept = self._counted()
        entries = self._entries()
        needed = Counter(digest for entry in entries for digest in entry.objects)
        by_age = sorted((_mtime_ns(self._entry_file(entry.key)), entry) for entry in entries)
        for _, entry in by_age:
            if kept <= wanted:
                break
            file = self._entry_file(entry.key)
            kept -= _on_disk(_size(file))
            file.unlink(missing_ok=True)
            needed.subtract(entry.objects)
            kept -= sum(_on_disk(_size(self._object_file(digest))) for digest in entry.objects if not needed[digest])
        self._sweep()

    def _sweep(self) -> None:
        entries = self._entries()
        whole = {entry.key for entry in entries}
        needed = {digest for entry in entries for digest in entry.objects}
        for folder, names in (("objects", needed), ("entries", whole), ("made", whole), ("hits", whole)):
            # Whoever writes has the lock, so drafts are of those who were killed.
            for file in self._files(folder):
                if file.name not in names:
                    file.unlink(missing_ok=True)
        for file in self._files("uses"):
            if file.suffix == ".lock" and not FileLock.is_held(file):
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)
                file.unlink(missing_ok=True)

    def _files(self, *folders: str) -> Iterator[Path]:
        for folder in folders:
            for root, _, names in os.walk(self.folder / folder):
                yield from (Path(root, name) for name in names)

    # ----

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock; gives False if somebody else holds it for too long."""
        with self._mutex:
            lock = FileLock.take(self.folder / "lock", deadline=time.monotonic() + LOCK_WAIT_S)
            if lock is None:
                log.debug("results_locked", folder=str(self.folder))
                yield False
                return
            try:
                yield True
            finally:
                lock.release()

    def _trouble(self, error: Exception) -> None:
        log.debug("result_not_kept", error=str(error))
        if not self._noted:
            self._noted = True
            self._note(_not_kept(error))

    def _file(self, key: str) -> Path | None:
        """Name the file of a key; None if nothing can be kept under it."""
        tokens = key.split(".")
        if not all(map(_TOKEN.match, tokens)):
            return None
        if len(tokens) == 1:
            return self._entry_file(key)
        return self.folder.joinpath(*tokens) if tokens[0] == "made" and len(tokens) == 4 else None

    def _entry_file(self, fingerprint: str) -> Path:
        return self.folder / "entries" / fingerprint[:2] / fingerprint

    def _object_file(self, digest: str) -> Path:
        return self.folder / "objects" / digest[:2] / digest


class Use:
    """The objects that a process needs of a store: they are there for as long as this is.

    Args:
        store: whose objects they are.
    """

    def __init__(self, store: ResultStore) -> None:
        self._uses = store.folder / "uses"
        self._folder: Path | None = None
        self._mutex = threading.Lock()

    def file(self, digest: str) -> Path | None:
        """Give the file of an object that was taken."""
        file = None if self._folder is None else self._folder / digest
        return file if file is not None and file.is_file() else None

    def take(self, file: Path, digest: str) -> bool:
        """Take an object; says whether it is there, and is what its digest says. If it is damaged, it is removed.

        Raises:
            OSError: if it can neither be linked nor copied.
        """
        with self._mutex:
            if self.file(digest) is not None:
                return True
            place = self._made() / digest
            try:
                if not _is_plain(file):
                    return False
                _link(file, place)
            except FileNotFoundError:
                return False
            with place.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != digest:
                place.unlink()
                file.unlink(missing_ok=True)
            return found == digest

    def _made(self) -> Path:
        if self._folder is None:
            self._uses.mkdir(mode=0o700, exist_ok=True)
            # First: a folder whose lock nobody holds was left by somebody who was killed.
            lock = FileLock.try_take(self._uses / f"{secrets.token_hex(8)}.lock")
            assert lock is not None, "nobody else knows its name"
            self._folder = lock.path.with_suffix("")
            weakref.finalize(self, _end_use, self._folder, lock)
            self._folder.mkdir(mode=0o700)
        return self._folder


def _end_use(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        lock.path.unlink(missing_ok=True)
    lock.release()


def objects_needed(entry: CacheEntry, find: Find) -> dict[str, bytes | Path] | None:
    """Give the objects that an entry refers to, also by objects, by their digests; None if one is not to be had."""
    found: dict[str, bytes | Path] = {}
    todo: list[Artifact] = []
    opened: set[str] = set()
    try:
        unpack(entry.event, artifacts=todo)
        while todo:
            artifact = todo.pop()
            place: bytes | Path | None = artifact.data
            if place is None:
                place = found.get(artifact.digest) or find(artifact.digest)
                if place is None:
                    return None
                found[artifact.digest] = place
            if artifact.nested and artifact.kind == VALUE and artifact.digest not in opened:
                opened.add(artifact.digest)
                todo += artifacts_in(place if isinstance(place, bytes) else place.read_bytes())
    except (RemoteProtocolError, BindingError):
        return None
    return found


def _sealed(key: str, value: bytes, objects: list[str]) -> bytes:
    body = encode_map({"key": key, "at": time.time(), "value": value, "objects": objects})
    return hashlib.sha256(body).digest() + body


def _not_kept(error: Exception) -> str:
    return f"results of cached steps are not kept for other runs: {error}"


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except FileNotFoundError:
        raise
    except OSError:
        # A file system without links.
        shutil.copyfile(file, place)


def _is_plain(file: Path) -> bool:
    """Say whether it is a file, and nothing that reading might have no end of.

    Raises:
        FileNotFoundError: if it is not there.
    """
    return stat.S_ISREG(file.lstat().st_mode)


def _size(file: Path) -> int:
    """Give a file's size; -1 if it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _mtime_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _on_disk(size_bytes: int) -> int:
    return -(-max(size_bytes, 0) // BLOCK_BYTES) * BLOCK_BYTES
