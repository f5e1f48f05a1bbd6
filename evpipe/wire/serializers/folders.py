"""The stream of a folder: what is in it, then the contents one after another.

    b"EVFOLDER" · version (1 byte) · length of the list (8 bytes, big-endian) · the list (msgpack) · the contents

The list has [path, size, executable] for each file and [path, -1, false] for each folder, sorted by path, every folder
before what is in it. There are no times, owners or links. `paths.py` decides what goes in; what is read here is only
ever a regular file or a folder, below the folder that it is read into.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgpack

from evpipe.wire.serializers.borders import CHUNK_BYTES, read_exactly
from evpipe.wire.serializers.registry import ArtifactUnreadable

_MAGIC: Final = b"EVFOLDER"
_VERSION: Final = 1
_LENGTH: Final = struct.Struct(">Q")
#: Files and folders in a folder.
ENTRIES_MAX: Final = 100_000
#: Of a path in it: half of what Linux takes, for it is read into a folder that has a path, too.
PATH_BYTES_MAX: Final = 2_048
#: Of one name in a path: what file systems allow.
NAME_BYTES_MAX: Final = 255
#: The list, packed.
LIST_BYTES_MAX: Final = 64 * 1024 * 1024
#: In the place of a size.
FOLDER: Final = -1


class Entry(NamedTuple):
    """A file or a folder in a folder."""

    #: Relative, with "/" between names.
    path: str
    #: `FOLDER` if it is one.
    size_bytes: int
    is_executable: bool

    @property
    def is_folder(self) -> bool:
        return self.size_bytes == FOLDER


def head(entries: Sequence[Entry]) -> bytes:
    """Give what stands before the contents."""
    listed = msgpack.packb([list(entry) for entry in entries])
    return _MAGIC + bytes([_VERSION]) + _LENGTH.pack(len(listed)) + bytes(listed)


def read_head(file: BinaryIO, size_bytes: int) -> list[Entry]:
    """Read what stands before the contents.

    Args:
        size_bytes: of the whole stream, which the contents must fill.

    Raises:
        ArtifactUnreadable: if the list is none, or would lead anywhere else.
    """
    before = read_exactly(file, len(_MAGIC) + 1 + _LENGTH.size)
    if before[: len(_MAGIC)] != _MAGIC or before[len(_MAGIC)] != _VERSION:
        raise ArtifactUnreadable("there is no folder")
    length = _LENGTH.unpack(before[-_LENGTH.size :])[0]
    left = size_bytes - len(before)
    if length > min(left, LIST_BYTES_MAX):
        raise ArtifactUnreadable(f"a list of {length:,} bytes where at most {min(left, LIST_BYTES_MAX):,} can be")
    listed = msgpack.unpackb(
        read_exactly(file, length), use_list=True, strict_map_key=True, max_array_len=ENTRIES_MAX, max_ext_len=0
    )
    if type(listed) is not list:
        raise ArtifactUnreadable("a folder without a list")
    entries = [_entry(each) for each in listed]
    _check_tree(entries)
    total = sum(entry.size_bytes for entry in entries if not entry.is_folder)
    if total != left - length:
        raise ArtifactUnreadable(f"files of {total:,} bytes where there are {left - length:,}")
    return entries


def path_problem(path: str) -> str:
    """Say why a text can be no path below a folder, or ""."""
    if not path.isprintable():
        return "has characters that cannot be shown"
    if "\\" in path:
        return "has a backslash"
    if len(path.encode()) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX:,} bytes"
    for name in path.split("/"):
        if name in {"", ".", ".."}:
            return "does not lead straight down"
        if len(name.encode()) > NAME_BYTES_MAX:
            return f"has a name longer than {NAME_BYTES_MAX} bytes"
    return ""


def copy(source: BinaryIO, target: Path, size_bytes: int) -> None:
    """Copy the next bytes of a file into one that is not there yet, in the kernel where it can.

    Raises:
        ArtifactUnreadable: if there are not as many.
        OSError: if the target is there, or cannot be written.
    """
    with target.open("xb") as file:
        done = _copied_in_kernel(source, file, size_bytes)
        while done < size_bytes:
            data = source.read(min(CHUNK_BYTES, size_bytes - done))
            if not data:
                raise ArtifactUnreadable(f"the bytes end {size_bytes - done:,} too early")
            file.write(data)
            done += len(data)


def _copied_in_kernel(source: BinaryIO, file: BinaryIO, size_bytes: int) -> int:
    """Copy what the system copies or shares by itself; gives how much that was."""
    copy_file_range = getattr(os, "copy_file_range", None)
    if copy_file_range is None or not isinstance(source, (io.BufferedReader, io.FileIO)):
        return 0
    offset, done = source.tell(), 0
    try:
        while done < size_bytes:
            copied = copy_file_range(source.fileno(), file.fileno(), size_bytes - done, offset + done, done)
            if not copied:
                break
            done += copied
    except OSError:
        # Another file system, or one that cannot: the rest is copied by hand.
        pass
    source.seek(offset + done)
    file.seek(done)
    return done


def _entry(listed: Any) -> Entry:
    if type(listed) is not list or len(listed) != 3 or [type(part) for part in listed] != [str, int, bool]:
        raise ArtifactUnreadable(f"an entry of a folder that is none: {listed!r:.300}")
    entry = Entry(*listed)
    if problem := path_problem(entry.path):
        raise ArtifactUnreadable(f"the path {entry.path!r:.300} {problem}")
    if entry.size_bytes < FOLDER or (entry.is_folder and entry.is_executable):
        raise ArtifactUnreadable(f"an entry of a folder that is none: {listed!r:.300}")
    return entry


def _check_tree(entries: Sequence[Entry]) -> None:
    """Check that every path is there once, and after the folder that it is in."""
    known = {""}
    before = ""
    for entry in entries:
        if entry.path <= before:
            raise ArtifactUnreadable(f"the path {entry.path!r:.300} is not in its place, or there twice")
        before = entry.path
        parent = entry.path.rpartition("/")[0]
        if parent not in known:
            raise ArtifactUnreadable(f"the path {entry.path!r:.300} is in no folder")
        if entry.is_folder:
            known.add(entry.path)
