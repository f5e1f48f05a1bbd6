"""What the tests of serializers share: stored bytes without a store, round trips, and a second interpreter."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from evpipe.wire.artifacts import check_meta
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, serializer_named, serializer_of


class StoredBytes:
    """Bytes in memory, as a reader of artifacts would hand them to a serializer."""

    def __init__(self, data: bytes, meta: Mapping[str, Any]) -> None:
        self.meta = meta
        self.size_bytes = len(data)
        self._data = data
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)

    def bytes(self) -> bytes:
        return self._data

    def folder(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
        return Path(self._folder.name)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


class StoredFile:
    """A file on disk, likewise."""

    def __init__(self, path: Path, meta: Mapping[str, Any], folder: Path) -> None:
        self.meta = meta
        self.size_bytes = path.stat().st_size
        self._path = path
        self._folder = folder

    def open(self) -> BinaryIO:
        return self._path.open("rb")

    def bytes(self) -> bytes:
        return self._path.read_bytes()

    def folder(self) -> Path:
        self._folder.mkdir(exist_ok=True)
        return self._folder


class OnlyWrite(io.RawIOBase):
    """A file that may be written to and nothing else."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(memoryview(data).cast("B")) if memoryview(data).nbytes else 0

    def tell(self) -> int:
        raise AssertionError("it may be written to and nothing else")

    def seek(self, offset: int, whence: int = 0) -> int:
        raise AssertionError("it may be written to and nothing else")


def written(value: Any) -> tuple[Serializer, bytes, dict[str, Any]]:
    """Write a value; its meta goes over the wire and back."""
    serializer = serializer_of(value)
    assert serializer is not None, f"nothing writes {type(value)}"
    file = OnlyWrite()
    meta = dict(serializer.write(value, file))  # type: ignore[arg-type]
    packed = msgpack.packb(meta)
    check_meta(meta, len(packed))
    return serializer, bytes(file.data), msgpack.unpackb(packed)


def read(kind: str, data: bytes, meta: Mapping[str, Any]) -> Any:
    """Read bytes as an artifact of a kind."""
    with closing(StoredBytes(data, meta)) as stored:
        return serializer_named(kind, 1).read(stored)


def round_trip(value: Any) -> Any:
    """Give what comes back of a value, after a look at whether it would be written alike again."""
    serializer, data, meta = written(value)
    again = serializer_named(serializer.name, serializer.version).read(StoredBytes(data, meta))
    second, data_again, meta_again = written(again)
    assert second.name == serializer.name
    assert meta_again == meta
    assert data_again == data, "what came back is written in other bytes"
    return again


def fingerprint(value: Any) -> str:
    """Give a digest of what is written of a value."""
    serializer, data, meta = written(value)
    return hashlib.sha256(b"\0".join([serializer.name.encode(), msgpack.packb(meta), data])).hexdigest()


def fingerprints_elsewhere(module: str, function: str, seeds: tuple[str, ...] = ("1", "77")) -> list[str]:
    """Give the digests of the values that a function makes, as other interpreters find them.

    Each has other hashes of text, and other garbage in memory that it gets.
    """
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        f"from {module} import {function} as make\n"
        "from tests.serializers.helpers import fingerprint\n"
        "print('\\n'.join(fingerprint(value) for value in make()))\n"
    )
    children = []
    for i, seed in enumerate(seeds):
        garbage = {"MALLOC_PERTURB_": str(85 + i), "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=Path(__file__).parents[2],
                env=os.environ | garbage | {"PYTHONHASHSEED": seed},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = []
    ended = [child.communicate(timeout=100) for child in children]
    for child, (out, err) in zip(children, ended, strict=True):
        assert child.returncode == 0, err
        outputs.append(out)
    assert len(set(outputs)) == 1, "equal values have other bytes in another process"
    return outputs[0].split()


def check_corrupted(value: Any, *, tries: int = 60, seed: int = 1) -> int:
    """Flip and cut what was written of a value: a read gives some value or says that it cannot.

    Returns:
        How many of the corrupted artifacts were refused.
    """
    serializer, data, meta = written(value)
    dice = random.Random(seed)
    refused = 0
    for i in range(tries):
        broken = bytearray(data)
        if i % 3 == 0:
            del broken[dice.randrange(len(broken)) :]
        else:
            # The start is where sizes and names are.
            at = dice.randrange(min(len(broken), 200) if i % 3 == 1 else len(broken))
            broken[at] ^= 1 << dice.randrange(8)
        try:
            read(serializer.name, bytes(broken), meta)
        except ArtifactUnreadable:
            refused += 1
    return refused
