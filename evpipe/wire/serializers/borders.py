"""The two borders of a serializer: what a library raises becomes a refusal, or an artifact that cannot be read.

Every serializer works inside one of these two contexts, so that whoever encodes or reads a value has one exception to
expect. Neither hides a cancellation, and `refusing` lets errors of the file that is written to pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.registry import ArtifactUnreadable

#: Bytes that are in memory at a time while something is copied.
CHUNK_BYTES: Final = 1024 * 1024
#: Characters of a library's message that go into ours.
_TEXT_CHARS_MAX: Final = 500


@contextmanager
def refusing(what: str, hint: str = "") -> Iterator[None]:
    """Turn what a library raises about a value into `Refused`.

    Args:
        what: names the value, as "an image of the mode 'F'".
        hint: what would be accepted.
    """
    try:
        yield
    except (Refused, OSError):
        raise
    except ImportError as exc:
        raise Refused(f"{what}, which needs a package that is not here ({exc})", "install it") from exc
    except Exception as exc:
        raise Refused(f"{what}, which its library cannot write ({said(exc)})", hint) from exc


@contextmanager
def reading(kind: str, *packages: str) -> Iterator[None]:
    """Turn what a library raises about bytes into `ArtifactUnreadable`.

    Args:
        packages: what has to be installed to read artifacts of this kind.
    """
    try:
        yield
    except ArtifactUnreadable:
        raise
    except ImportError as exc:
        raise ArtifactUnreadable(
            f"an artifact of the kind {kind!r} cannot be read here ({exc}): install {' and '.join(packages)}"
        ) from exc
    except Exception as exc:
        raise ArtifactUnreadable(f"the bytes are no artifact of the kind {kind!r}: {said(exc)}") from exc


def said(exc: BaseException) -> str:
    """Give what an exception says, in one line, with its type."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text[:_TEXT_CHARS_MAX]}" if text else type(exc).__name__


def read_exactly(file: BinaryIO, size_bytes: int) -> bytes:
    """Read a number of bytes that was checked against what is there.

    Raises:
        ArtifactUnreadable: if the file ends before.
    """
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise ArtifactUnreadable(f"the bytes end {size_bytes - len(data):,} too early")
    return data


def fill(file: BinaryIO, view: memoryview) -> None:
    """Fill memory from a file, a chunk at a time.

    Raises:
        ArtifactUnreadable: if the file ends before.
    """
    done = 0
    while done < len(view):
        data = file.read(min(CHUNK_BYTES, len(view) - done))
        if not data:
            raise ArtifactUnreadable(f"the bytes end {len(view) - done:,} too early")
        view[done : done + len(data)] = data
        done += len(data)


def meta_value(meta: Any, key: str, of: type) -> Any:
    """Give what the meta of an artifact says.

    Raises:
        ArtifactUnreadable: if it says nothing of that type under the key.
    """
    found = meta.get(key)
    if type(found) is not of:
        raise ArtifactUnreadable(f"its meta has no {key!r} of the type {of.__name__}, but {found!r:.100}")
    return found
