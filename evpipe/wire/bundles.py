"""A bundle: source files as one object, the same bytes for the same files.

A msgpack map of relative paths to contents, compressed. It is read by our own code and never by an archive program:
it can hold nothing but regular files below one folder, and its caps are checked before anything is written.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.limits import BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX, BUNDLE_UNPACKED_BYTES_MAX, VERSION

#: Characters of one path in a bundle.
PATH_CHARS_MAX: Final = 512
#: Smaller files are not worth more time.
_LEVEL: Final = 6
#: Of what is compressed: the files, and for each its path and the lengths of both.
_CONTENT_BYTES_MAX: Final = BUNDLE_UNPACKED_BYTES_MAX + BUNDLE_FILES_MAX * (4 * PATH_CHARS_MAX + 16) + 64


def pack_bundle(files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Make a bundle.

    Args:
        files: contents by relative path, with "/" between its parts.

    Returns:
        Its digest, and its bytes.

    Raises:
        LimitExceeded: if there are too many files, or they are too large.
        UsageError: if a file has a path that no bundle takes.
    """
    if len(files) > BUNDLE_FILES_MAX:
        raise LimitExceeded(
            f"the code has {len(files):,} files: {BUNDLE_FILES_MAX:,} are allowed",
            limit="BUNDLE_FILES_MAX",
            found=len(files),
            allowed=BUNDLE_FILES_MAX,
        )
    for path in files:
        if not _is_legal(path):
            raise UsageError(
                f"the code has a file with the path {path[:80]!r}, which cannot travel: use letters, digits, '.', '_' "
                "and '-'"
            )
    size = sum(map(len, files.values()))
    if size > BUNDLE_UNPACKED_BYTES_MAX:
        raise _too_large(files, size, "BUNDLE_UNPACKED_BYTES_MAX", BUNDLE_UNPACKED_BYTES_MAX)
    content: bytes = msgpack.packb({"v": VERSION, "files": [[path, files[path]] for path in sorted(files)]})
    data = zlib.compress(content, _LEVEL)
    if len(data) > BUNDLE_BYTES_MAX:
        raise _too_large(files, len(data), "BUNDLE_BYTES_MAX", BUNDLE_BYTES_MAX)
    return hashlib.sha256(data).hexdigest(), data


def unpack_bundle(data: bytes) -> dict[str, bytes]:
    """Give the files of a bundle.

    Raises:
        RemoteProtocolError: if it is none, goes over a cap, or names a file that is not below its folder.
    """
    if len(data) > BUNDLE_BYTES_MAX:
        raise RemoteProtocolError(f"the bundle has {len(data):,} bytes: {BUNDLE_BYTES_MAX:,} are allowed")
    inflate = zlib.decompressobj()
    shape = _Shape()
    try:
        # No more than that is ever unpacked, whatever it says.
        content = inflate.decompress(data, _CONTENT_BYTES_MAX + 1)
        if not inflate.eof or inflate.unused_data:
            raise RemoteProtocolError("the bundle is cut, too large or followed by something else")
        found = msgpack.unpackb(
            content,
            list_hook=shape.see_list,
            object_hook=shape.see_map,
            max_array_len=BUNDLE_FILES_MAX,
            max_map_len=8,
        )
        if not isinstance(found, dict) or found.get("v") != VERSION:
            raise RemoteProtocolError("the bundle is of another version")
        files = {_checked(path): _content(text) for path, text in found["files"]}
    except (zlib.error, ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"the bundle cannot be read: {type(error).__name__}: {error}") from error
    if len(files) != len(found["files"]):
        raise RemoteProtocolError("the bundle has a file twice")
    if sum(map(len, files.values())) > BUNDLE_UNPACKED_BYTES_MAX:
        raise RemoteProtocolError(f"the bundle's files have more than {BUNDLE_UNPACKED_BYTES_MAX:,} bytes")
    folders = {parent for path in files for parent in _parents(path)}
    if folders & files.keys():
        raise RemoteProtocolError("the bundle has a file that is a folder as well")
    return files


class _Shape:
    """Ends the reading of what is no bundle early: a byte of nothing but lists becomes 64 in memory."""

    def __init__(self) -> None:
        self._lists = 0
        self._long = 0
        self._maps = 0

    def see_list(self, found: list[Any]) -> list[Any]:
        """Take note of a list that was read: one of the files, and in it one of two for each."""
        self._lists += 1
        self._long += len(found) > 2
        if self._lists > BUNDLE_FILES_MAX + 1 or self._long > 1:
            raise ValueError("too many lists")
        return found

    def see_map(self, found: dict[Any, Any]) -> dict[Any, Any]:
        self._maps += 1
        if self._maps > 1:
            raise ValueError("too many maps")
        return found


def _checked(path: object) -> str:
    if not isinstance(path, str) or not _is_legal(path):
        raise RemoteProtocolError(f"the bundle has a file with the path {str(path)[:80]!r}")
    return path


def _is_legal(path: str) -> bool:
    return (
        len(path) <= PATH_CHARS_MAX
        and not any(part in {"", ".", ".."} for part in path.split("/"))
        and not any(char in path for char in "\\:\0")
        and path.isprintable()
    )


def _content(found: object) -> bytes:
    if not isinstance(found, bytes):
        raise RemoteProtocolError("the bundle has a file without content")
    return found


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _too_large(files: Mapping[str, bytes], found: int, limit: str, allowed: int) -> LimitExceeded:
    largest = sorted(files, key=lambda path: -len(files[path]))[:3]
    named = ", ".join(f"{path} ({len(files[path]):,} bytes)" for path in largest)
    return LimitExceeded(
        f"the code of the steps has {found:,} bytes, {allowed:,} are allowed; the largest files are {named}",
        limit=limit,
        found=found,
        allowed=allowed,
    )
