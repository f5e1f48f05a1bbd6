"""Artifacts as files of a folder: written there by who makes a value, read from there by who needs it.

    child: value ──▶ Spool ──▶ <folder>/out/<digest>      worker: ──▶ object store, cache of this machine
    worker: object store, cache ──▶ <folder>/in/<digest>  child: Shelf ──▶ value

What is small stays in memory and travels in the event. Serializers write and read files, most of them in memory that
does not grow; a value of the protocol is encoded in memory, and its bytes are read into it.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from evpipe.core.artifact import Artifact, Lengths
from evpipe.core.bindings import BindingError, OutputRef, select
from evpipe.errors import EvpipeError, RemoteProtocolError
from evpipe.wire.artifacts import VALUE, check_meta
from evpipe.wire.extensions import Refused
from evpipe.wire.limits import INLINE_BYTES_MAX
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, serializer_named, serializer_of
from evpipe.wire.storing import loaded, open_stored
from evpipe.wire.values import pack

#: Where in an attempt's folder the artifacts that it needs are, and those that it made.
IN: Final = "in"
OUT: Final = "out"
CHUNK_BYTES: Final = 1024 * 1024


class Spool:
    """Writes artifacts; see `artifacts.ArtifactWriter`.

    Args:
        folder: gives the folder for files, which is made when there is the first one.
        pickles: whether what has no other encoding may be pickled.
    """

    def __init__(self, folder: Callable[[], Path], *, pickles: bool = False) -> None:
        self._folder = folder
        self._pickles = pickles
        #: What was written, by digest.
        self.files: dict[str, Path] = {}

    def write(self, value: Any) -> Artifact | None:
        serializer = serializer_of(value)
        if serializer is None and self._pickles:
            serializer = serializer_named("pickle", 1)
        return None if serializer is None else self._write(value, serializer)

    def write_bytes(
        self,
        data: bytes,
        *,
        content: str = "",
        length: int | None = None,
        is_list: bool = False,
        lengths: Lengths = (),
        nested: bool = False,
    ) -> Artifact:
        with _Draft(self._folder) as draft:
            draft.write(data)
            digest, size, held = draft.end(self.files)
        return Artifact(
            kind=VALUE,
            digest=digest,
            size_bytes=size,
            data=held,
            content=content,
            length=length,
            is_list=is_list,
            lengths=lengths,
            nested=nested,
        )

    def keep(self, artifact: Artifact) -> Artifact:
        if artifact.data is None:
            return artifact
        with _Draft(self._folder, inline_max=-1) as draft:
            draft.write(artifact.data)
            draft.end(self.files)
        return replace(artifact, data=None)

    def _write(self, value: Any, serializer: Serializer) -> Artifact:
        with _Draft(self._folder) as draft:
            try:
                meta = serializer.write(value, cast("BinaryIO", draft)) or {}
                check_meta(meta, len(pack(dict(meta), "its meta")))
            except Refused:
                raise
            except Exception as error:
                # Of a user's serializer, or a library's that nobody foresaw.
                what = f"a value of {type(value).__qualname__}, whose serializer {serializer.name!r} raised"
                raise Refused(f"{what} {type(error).__name__}: {error}", raised=error) from error
            digest, size, held = draft.end(self.files)
        return Artifact(
            kind=serializer.name,
            version=serializer.version,
            digest=digest,
            size_bytes=size,
            data=held,
            meta=dict(meta),
        )


class TemporaryFolder:
    """A folder that is made when it is first needed, and goes with this object, or with the process.

    Args:
        name: is part of its name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._path: Path | None = None
        self._remove: Callable[[], object] = lambda: None

    @property
    def path(self) -> Path:
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix=f"evpipe-{self._name}-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        return self._path

    def remove(self) -> None:
        """Remove it now, with all that is in it."""
        self._remove()


@contextmanager
def spooled(*, pickles: bool = False) -> Iterator[Spool]:
    """Give a spool over a temporary folder, which is made when there is the first file and goes with the block."""
    folder = TemporaryFolder("spool")
    try:
        yield Spool(lambda: folder.path, pickles=pickles)
    finally:
        folder.remove()


class _Draft(io.RawIOBase):
    """A file that is being written: in memory while it is small, and its digest beside it."""

    def __init__(self, folder: Callable[[], Path], *, inline_max: int = INLINE_BYTES_MAX) -> None:
        super().__init__()
        self._folder = folder
        self._inline_max = inline_max
        self._hash = hashlib.sha256()
        self._size = 0
        self._held = bytearray()
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        if self._file is None and self._size > self._inline_max:
            folder = self._folder()
            self._path = folder / f".{secrets.token_hex(8)}"
            self._file = self._path.open("xb", buffering=CHUNK_BYTES)
            self._file.write(self._held)
            self._held.clear()
        if self._file is None:
            self._held += view
        else:
            self._file.write(view)
        return len(view)

    def end(self, files: dict[str, Path]) -> tuple[str, int, bytes | None]:
        """Give the digest, the size and, if they are few, the bytes; a file gets its digest's name."""
        digest = self._hash.hexdigest()
        if self._file is None:
            return digest, self._size, bytes(self._held)
        self._file.close()
        assert self._path is not None
        # The same bytes, if it is there.
        files[digest] = self._path.replace(self._path.with_name(digest))
        self._path = None
        return digest, self._size, None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            # Not ended: the serializer raised.
            self._path.unlink(missing_ok=True)
            self._path = None
        super().close()


class Shelf:
    """Reads artifacts; see `artifacts.ArtifactReader`. Whoever put them there has checked their digests.

    Args:
        find: gives the file of a digest; None if it is not here.
        folder: gives a new folder for what a serializer unpacks.
        pickles: whether artifacts that are pickles may be read, which runs what is in them.
    """

    def __init__(
        self, find: Callable[[str], Path | None], folder: Callable[[], Path], *, pickles: bool = False
    ) -> None:
        self._find = find
        self._folder = folder
        self._pickles = pickles

    def read(self, artifact: Artifact) -> Any:
        stored = self._stored(artifact)
        if artifact.kind == VALUE:
            return self._read_value(artifact, stored)
        if artifact.kind == "pickle" and not self._pickles:
            raise ArtifactUnreadable(
                "the artifact is a pickle, which can run any code when it is read: this is for steps with pickle=True "
                "on workers with --allow-pickle only"
            )
        serializer = serializer_named(artifact.kind, artifact.version)
        try:
            value = serializer.read(stored)
        except EvpipeError:
            raise
        except Exception as error:
            raise ArtifactUnreadable(
                f"the artifact {artifact} cannot be read: its serializer raised {type(error).__name__}: {error}"
            ) from error
        return _part(value, artifact)

    def _read_value(self, artifact: Artifact, stored: StoredFile) -> Any:
        try:
            if not artifact.path:
                return open_stored(stored.bytes(), reader=self)
            # What is in other parts of it is not here.
            return loaded(select(open_stored(stored.bytes()), OutputRef("", artifact.path), "the stored value"), self)
        except RemoteProtocolError as error:
            raise ArtifactUnreadable(f"the artifact {artifact} is no value: {error}") from error

    def _stored(self, artifact: Artifact) -> StoredFile:
        if artifact.data is not None:
            if hashlib.sha256(artifact.data).hexdigest() != artifact.digest:
                raise ArtifactUnreadable(f"the artifact {artifact} is damaged: its bytes do not have its digest")
            return StoredFile(artifact.meta, artifact.size_bytes, artifact.data, self._folder)
        file = self._find(artifact.digest)
        if file is None:
            raise ArtifactUnreadable(
                f"the artifact {artifact} is not here: it is missing in the object store, or damaged"
            )
        return StoredFile(artifact.meta, artifact.size_bytes, file, self._folder)


class StoredFile:
    """The bytes of an artifact; see `registry.Stored`."""

    def __init__(
        self, meta: Mapping[str, Any], size_bytes: int, place: bytes | Path, folder: Callable[[], Path]
    ) -> None:
        self.meta = meta
        self.size_bytes = size_bytes
        self._place = place
        self._folder = folder

    def open(self) -> BinaryIO:
        return io.BytesIO(self._place) if isinstance(self._place, bytes) else self._place.open("rb")

    def bytes(self) -> bytes:
        return self._place if isinstance(self._place, bytes) else self._place.read_bytes()

    def folder(self) -> Path:
        return self._folder()


def _part(value: Any, artifact: Artifact) -> Any:
    """Take the part of a library's value that is meant, as the value itself gives it."""
    for key in artifact.path:
        try:
            value = value[key]
        except Exception as error:
            raise BindingError(
                f"{artifact} has no {key!r}: {type(value).__name__} raised {type(error).__name__}: {error}"
            ) from error
    return value


def attempt_spool(folder: str, *, pickles: bool = False) -> Spool:
    """Give what writes the artifacts of an attempt below its folder, which need not exist."""

    def made() -> Path:
        # Only here: most attempts make none.
        out = Path(folder, OUT)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        return out

    return Spool(made, pickles=pickles)


def attempt_shelf(folder: str, *, pickles: bool = False) -> Shelf:
    """Give what reads the artifacts that were put below an attempt's folder."""

    def find(digest: str) -> Path | None:
        file = Path(folder, IN, digest)
        return file if file.is_file() else None

    def made() -> Path:
        new = Path(folder, f"read-{secrets.token_hex(4)}")
        new.mkdir(mode=0o700, parents=True)
        return new

    return Shelf(find, made, pickles=pickles)
