"""Values of any size: what is small travels in the event, what is large, or of a library, is stored beside it.

A value that is too large is taken apart once, so that a step which returns `{"model": …, "score": …}` keeps its score
in the event, and whoever needs only that fetches nothing. What stands for the parts are artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from evpipe.core.artifact import LENGTHS_MAX, Artifact, lengths_in
from evpipe.core.bindings import OutputRef, references, select
from evpipe.errors import EncodingError, RemoteProtocolError
from evpipe.wire.artifacts import ArtifactReader, ArtifactWriter
from evpipe.wire.classes import class_name, layout_of
from evpipe.wire.digests import value_digest
from evpipe.wire.extensions import NAMED_TUPLE, TUPLE
from evpipe.wire.limits import (
    INLINE_BYTES_MAX,
    LARGE_ITEMS_MAX,
    LARGE_VALUE_BYTES_MAX,
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_MAX,
)
from evpipe.wire.serializers.registry import is_registered
from evpipe.wire.values import check_size, pack, pack_plain, pack_unchecked, unpack

#: Types with a length that whoever maps over them has to know.
_SIZED: Final = (list, tuple, dict, set, frozenset, str, bytes)


def encode_stored(value: Any, what: str, writer: ArtifactWriter) -> bytes:
    """Encode a value in at most `INLINE_BYTES_MAX`, whatever its size.

    Args:
        what: names the value in messages.
        writer: takes what does not go into these bytes.

    Raises:
        EncodingError: for a value of a type that has neither an encoding nor a serializer.
        LimitExceeded: if it is nested too deep, or larger than `LARGE_VALUE_BYTES_MAX`.
    """
    plain = pack_plain(value)
    if plain is not None and len(plain) <= INLINE_BYTES_MAX:
        return plain
    parts = _Parts.of(value)
    if parts is None:
        data = pack(value, what, writer, items_max=LARGE_ITEMS_MAX)
        if len(data) <= INLINE_BYTES_MAX:
            return _readable(data, what)
        return pack(store_encoded(data, value, what, writer), what)
    packed: list[bytes] = []
    for child, place in zip(parts.children, parts.places, strict=True):
        try:
            packed.append(pack(child, what, writer, items_max=LARGE_ITEMS_MAX))
        except EncodingError as error:
            raise _in_place(error, place) from error.__cause__
    data = parts.join(packed)
    if len(data) <= INLINE_BYTES_MAX:
        return _readable(data, what)
    # Each that is stored leaves what stands for it: more than so many of them are no smaller than the whole.
    if sum(min(len(part), PART_BYTES_MIN) for part in packed) <= INLINE_BYTES_MAX:
        large = [i for i, part in enumerate(packed) if len(part) > PART_BYTES_MAX]
        numbers_max = LENGTHS_MAX // max(1, len(large))
        stored = {
            i: store_encoded(packed[i], parts.children[i], what, writer, part=True, numbers_max=numbers_max)
            for i in large
        }
        # What only who maps over a part has to know of it must not keep all of them together.
        for small in (stored, {i: artifact.brief() for i, artifact in stored.items()}):
            joined = parts.join([pack(small[i], what) if i in small else part for i, part in enumerate(packed)])
            if len(joined) <= INLINE_BYTES_MAX:
                return _readable(joined, what)
    return pack(store_encoded(data, value, what, writer), what)


def store_constant(data: bytes, tree: Any, what: str, writer: ArtifactWriter) -> Artifact | None:
    """Store a constant of a graph; None if something in it stands for a value that is not there yet."""
    return None if any(True for _ in references(tree)) else store_encoded(data, tree, what, writer)


def open_stored(data: bytes, *, reader: ArtifactReader | None = None) -> Any:
    """Decode the bytes of a stored value (kind "value").

    Raises:
        RemoteProtocolError: if they are none.
    """
    return unpack(data, items_max=LARGE_ITEMS_MAX, reader=reader)


def artifacts_in(data: bytes, path: Sequence[str | int] = ()) -> list[Artifact]:
    """Give the artifacts in the bytes of a stored value.

    Args:
        path: only those in this part of it.

    Raises:
        RemoteProtocolError: if the bytes are no value.
        BindingError: if it has no such part.
    """
    met: list[Artifact] = []
    found = unpack(data, items_max=LARGE_ITEMS_MAX, artifacts=met)
    return artifacts_of(select(found, OutputRef("", tuple(path)), "the stored value")) if path else met


def artifacts_of(value: Any) -> list[Artifact]:
    """Give the artifacts that are leaves of a decoded value."""
    if type(value) is Artifact:
        return [value]
    met: list[Artifact] = []
    unpack(pack(value, "the value", items_max=LARGE_ITEMS_MAX), items_max=LARGE_ITEMS_MAX, artifacts=met)
    return met


def loaded(value: Any, reader: ArtifactReader) -> Any:
    """Give a decoded value with everything in the place of its artifacts.

    Raises:
        ArtifactUnreadable, BindingError: if one cannot be read.
    """
    if type(value) is Artifact:
        return reader.read(value)
    return unpack(pack(value, "the value", items_max=LARGE_ITEMS_MAX), items_max=LARGE_ITEMS_MAX, reader=reader)


def _readable(data: bytes, what: str) -> bytes:
    """Return an encoding that whoever folds the run can read: else its end would be no event.

    Raises:
        EncodingError: if it cannot (a set that has something in it which has no hash where its class is not known).
    """
    try:
        unpack(data)
    except RemoteProtocolError as error:
        raise EncodingError(f"{what} cannot be encoded: {error}") from error
    return data


def store_encoded(
    data: bytes,
    value: Any,
    what: str,
    writer: ArtifactWriter,
    *,
    part: bool = False,
    numbers_max: int = LENGTHS_MAX,
) -> Artifact:
    """Store an encoded value; of one that is an artifact already, its bytes.

    Args:
        part: it is a part of a value that is too large: its bytes do not travel with it.
        numbers_max: how many numbers the lengths of the lists in it may be; else it is told without them.

    Raises:
        EncodingError: if the bytes cannot be read.
        LimitExceeded: if they are more than `LARGE_VALUE_BYTES_MAX`.
    """
    check_size(data, what, "LARGE_VALUE_BYTES_MAX", LARGE_VALUE_BYTES_MAX)
    met: list[Artifact] = []
    try:
        opened = unpack(data, items_max=LARGE_ITEMS_MAX, artifacts=met)
    except RemoteProtocolError as error:
        raise EncodingError(f"{what} cannot be encoded: {error}") from error
    if type(opened) is Artifact:
        return writer.keep(opened).brief(numbers_max)
    length = len(value) if isinstance(value, _SIZED) else None
    content = value_digest(opened, what, items_max=LARGE_ITEMS_MAX)
    # Those whose bytes are in these need not be fetched.
    nested = any(artifact.data is None or artifact.nested for artifact in met)
    is_list = type(value) is list or type(value) is tuple
    lengths = lengths_in(value) if is_list else ()
    stored = writer.write_bytes(
        data, content=content, length=length, is_list=is_list, lengths=lengths, nested=nested
    ).brief(numbers_max)
    return writer.keep(stored) if part else stored


class _Parts:
    """A value taken apart, so that each part of it may travel in its own way."""

    def __init__(
        self,
        children: Sequence[Any],
        places: Sequence[str],
        head: bytes,
        keys: Sequence[bytes] = (),
        code: int | None = None,
    ) -> None:
        self.children = children
        self.places = places
        self._head = head
        #: Of a dict: what stands before each part.
        self._keys = keys
        #: The extension type around it; None: it is msgpack's own.
        self._code = code

    def join(self, packed: Sequence[bytes]) -> bytes:
        """Give the encoding of the whole from those of its parts."""
        if self._keys:
            packed = [part for pair in zip(self._keys, packed, strict=True) for part in pair]
        data = self._head + b"".join(packed)
        return data if self._code is None else pack_unchecked(msgpack.ExtType(self._code, data))

    @classmethod
    def of(cls, value: Any) -> _Parts | None:
        """Take a value apart; None if it is better left whole."""
        kind = type(value)
        if kind is dict:
            if not 0 < len(value) <= PARTS_MAX or not all(type(key) is str for key in value):
                return None
            keys = [pack(key, "a key") for key in value]
            places = [f"[{key!r}]" for key in value]
            return cls(list(value.values()), places, msgpack.Packer().pack_map_header(len(value)), keys)
        if not isinstance(value, (list, tuple)) or not 0 < len(value) <= PARTS_MAX:
            return None
        header = msgpack.Packer().pack_array_header(len(value))
        places = [f"[{i}]" for i in range(len(value))]
        if kind is list:
            return cls(value, places, header)
        if kind is tuple:
            return cls(value, places, header, code=TUPLE)
        if not isinstance(value, tuple):
            return None
        if is_registered(kind):
            return None
        layout = layout_of(kind)
        if layout is None or layout.code != NAMED_TUPLE or layout.problem:
            return None
        head = msgpack.Packer().pack_array_header(3) + pack([class_name(kind)], "a class")[1:]
        head += pack(list(layout.fields), "its fields") + header
        places = [f".{field}" for field in layout.fields]
        return cls(list(tuple.__iter__(value)), places, head, code=NAMED_TUPLE)


def _in_place(error: EncodingError, place: str) -> EncodingError:
    """Give the error with the place of the part before the place in it."""
    text = str(error).removesuffix(error.advice)
    if error.path:
        text = text.removesuffix(f" at {error.path}")
    path = place + error.path
    return EncodingError(f"{text} at {path}{error.advice}", path=path, advice=error.advice)
