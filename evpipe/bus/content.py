"""The bytes of objects on their way: read from a file or from memory piece by piece, written to a new file.

What goes through here is measured and hashed on the way. Everything blocks: a bus on a network calls it in a thread.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from evpipe.errors import UsageError


class Source(Protocol):
    """What is put: read from its beginning to its end, perhaps twice."""

    #: As it was when it was opened.
    size_bytes: int
    #: Whether a read may wait for a disk.
    blocks: bool

    def read(self, size_bytes: int) -> bytes:
        """Give what comes next, at most so much; b"" at the end."""

    def rewind(self) -> None:
        """Begin again."""

    def check(self, digest: str) -> None:
        """Make sure that what was read has this digest.

        Raises:
            UsageError: if it has another.
        """


class BytesSource:
    """Of bytes in memory."""

    blocks = False

    def __init__(self, data: bytes) -> None:
        self.size_bytes = len(data)
        self._data = data
        self._at = 0

    def read(self, size_bytes: int) -> bytes:
        found = self._data[self._at : self._at + size_bytes]
        self._at += len(found)
        return found

    def rewind(self) -> None:
        self._at = 0

    def check(self, digest: str) -> None:
        found = hashlib.sha256(self._data).hexdigest()
        if found != digest:
            raise UsageError(f"the {self.size_bytes:,} bytes to store have the digest {found}, not {digest}")


class FileSource:
    """Of a file; closed by whoever has made it."""

    blocks = True

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = file.open("rb")
        self._hash = hashlib.sha256()
        self._read_bytes = 0
        self.size_bytes = self._opened.seek(0, 2)
        self._opened.seek(0)

    def read(self, size_bytes: int) -> bytes:
        # A file that grows faster than it is read would have no end.
        found = self._opened.read(min(size_bytes, self.size_bytes - self._read_bytes))
        self._hash.update(found)
        self._read_bytes += len(found)
        return found

    def rewind(self) -> None:
        self._opened.seek(0)
        self._hash = hashlib.sha256()
        self._read_bytes = 0

    def check(self, digest: str) -> None:
        found = self._hash.hexdigest()
        if found != digest:
            raise UsageError(f"{self._file} has the digest {found}, not {digest}: it was changed meanwhile")

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Sink(Protocol):
    """Where what is read goes."""

    def take(self, parts: Sequence[bytes]) -> None: ...

    @property
    def digest(self) -> str:
        """Of all that was taken."""


class HashSink:
    """Nowhere."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def take(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            self._hash.update(part)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class BytesSink(HashSink):
    """Memory."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def take(self, parts: Sequence[bytes]) -> None:
        super().take(parts)
        self._parts += parts

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


class FileSink(HashSink):
    """A file that is nobody's before it is `kept`: written beside the place where it will be; leave it with it gone."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        # In the same folder, so that it can be renamed.
        self._draft: Path | None = file.with_name(f".{secrets.token_hex(8)}.part")
        self._opened = self._draft.open("xb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()
        if self._draft is not None:
            with suppress(OSError):
                self._draft.unlink()

    def take(self, parts: Sequence[bytes]) -> None:
        super().take(parts)
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._opened.write(view) :]

    def keep(self) -> None:
        """Give it its name."""
        self._opened.close()
        assert self._draft is not None
        self._draft.replace(self._file)
        self._draft = None
