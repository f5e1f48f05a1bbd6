"""Payloads: msgpack maps with a version field.

A reader keeps what it knows and ignores the rest, so a newer writer may add fields. `Fields` takes a
decoded map apart with one sentence per thing that is wrong; nothing past it needs to doubt a type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from evpipe.core.artifact import Artifact
from evpipe.core.names import repr_of
from evpipe.errors import RemoteProtocolError
from evpipe.wire.artifacts import ArtifactReader
from evpipe.wire.limits import ITEMS_MAX, VERSION, WHOLE_MAX
from evpipe.wire.values import pack_unchecked, unpack

_VERSION_FIELD = {"v": VERSION}


def encode_map(fields: Mapping[str, Any]) -> bytes:
    """Encode a payload of well-formed fields."""
    return pack_unchecked({**_VERSION_FIELD, **fields})


def encode_map_with(fields: Mapping[str, Any], key: str, packed: bytes) -> bytes:
    """Encode a payload of at most 13 fields and one more whose value is packed already.

    A value is encoded once, checked against its limit, and put in as it is.
    """
    head = pack_unchecked({**_VERSION_FIELD, **fields})
    assert 0x80 <= head[0] < 0x8F, "a fixmap with room for one more entry"
    return bytes((head[0] + 1,)) + head[1:] + pack_unchecked(key) + packed


def decode_map(
    data: bytes,
    what: str,
    *,
    items_max: int = ITEMS_MAX,
    reader: ArtifactReader | None = None,
    artifacts: list[Artifact] | None = None,
) -> Fields:
    """Decode a payload; as `values.unpack`.

    Raises:
        RemoteProtocolError: if it is not a map of this protocol, or of a version that this code cannot read.

    """
    try:
        found = unpack(data, items_max=items_max, reader=reader, artifacts=artifacts)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{what}: {error}") from error
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"{what} is a {type(found).__name__}, not a map")
    version = found.get("v")
    if version != VERSION or isinstance(version, bool):
        raise RemoteProtocolError(f"{what} has version {repr_of(version)}: this evpipe reads version {VERSION}")
    return Fields(found, what)


class Fields:
    """The fields of one decoded map."""

    __slots__ = ("map", "what")

    def __init__(self, found: dict[str, Any], what: str) -> None:
        self.map = found
        self.what = what

    def text(self, key: str, default: str | None = None) -> str:
        value = self.map.get(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "text")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.map.get(key, default)
        if type(value) is int and 0 <= value <= WHOLE_MAX:  # a bool is none
            return value
        self._wrong(key, value, "a whole number from 0")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.map.get(key, default)
        if type(value) is float:
            return value
        if type(value) is int and -WHOLE_MAX <= value <= WHOLE_MAX:
            return float(value)
        self._wrong(key, value, "a number")

    def maybe_number(self, key: str) -> float | None:
        return None if self.map.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.map.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.map.get(key, ())
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self._wrong(key, value, "a list of texts")

    def submap(self, key: str) -> dict[str, Any]:
        value = self.map.get(key, {})
        if not isinstance(value, dict):
            self._wrong(key, value, "a map")
        return value

    def items(self, key: str) -> list[Any]:
        value = self.map.get(key, [])
        if not isinstance(value, list):
            self._wrong(key, value, "a list")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> NoReturn:
        found = "is missing" if value is None else f"is of type {type(value).__name__}"
        raise RemoteProtocolError(f"{self.what}: field {key!r} {found}, it must be {wanted}")
