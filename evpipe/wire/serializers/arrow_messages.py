"""What the messages of an Arrow stream say of themselves, read before Arrow reads them.

Arrow allocates what a message says that its body has, and what a compressed buffer says that it becomes. So the
messages are gone through first: each must be of the kinds that are written here, its body must be there, and nothing
may be compressed.

Source: Arrow columnar format, "Encapsulated message format"; Message.fbs; the layout of flatbuffers.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from evpipe.wire.serializers.borders import read_exactly
from evpipe.wire.serializers.registry import ArtifactUnreadable

#: Rows of a batch; every writer here cuts at these, so that equal tables are cut alike.
BATCH_ROWS: Final = 64 * 1024
#: The description of a message: it grows with the number of columns.
_HEAD_BYTES_MAX: Final = 1024**3
_BEGINS: Final = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3


def check_messages(file: BinaryIO, size_bytes: int) -> None:
    """Go through a stream from where the file is to its end.

    Raises:
        ArtifactUnreadable, struct.error: if it is none that is written here.
    """
    position = file.tell()
    kinds: list[int] = []
    while True:
        file.seek(position)
        begins, head_bytes = struct.unpack("<4si", read_exactly(file, 8))
        position += 8
        if begins != _BEGINS or not 0 <= head_bytes <= min(size_bytes - position, _HEAD_BYTES_MAX):
            raise ArtifactUnreadable("there is no Arrow stream, or it is cut off")
        if not head_bytes:
            break
        kind, body_bytes = _checked_head(read_exactly(file, head_bytes))
        kinds.append(kind)
        position += head_bytes + body_bytes
        if position > size_bytes:
            raise ArtifactUnreadable(f"a message of Arrow whose end is {position - size_bytes:,} bytes behind the last")
    if kinds[:1] != [_SCHEMA] or _SCHEMA in kinds[1:] or position != size_bytes:
        raise ArtifactUnreadable("an Arrow stream that is none")


def _checked_head(head: bytes) -> tuple[int, int]:
    message = _Table(head, _number(head, "<I", 0))
    kind = message.scalar(1, "<B")
    body_bytes = message.scalar(3, "<q")
    if kind not in {_SCHEMA, _DICTIONARY, _BATCH} or body_bytes < 0:
        raise ArtifactUnreadable(f"a message of Arrow of the kind {kind}")
    content = message.table(2)
    if content is None:
        raise ArtifactUnreadable("a message of Arrow without content")
    if kind == _SCHEMA:
        return kind, body_bytes
    batch = content.table(1) if kind == _DICTIONARY else content
    if batch is None or batch.table(3) is not None:
        raise ArtifactUnreadable("a batch of Arrow that is compressed, or none")
    rows = batch.scalar(0, "<q")
    # The values of a dictionary take a bit each at least.
    rows_max = BATCH_ROWS if kind == _BATCH else 8 * body_bytes
    if not 0 <= rows <= rows_max:
        raise ArtifactUnreadable(f"a batch of Arrow of {rows:,} rows: at most {rows_max:,} can be")
    return kind, body_bytes


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._fields_at = at - _number(data, "<i", at)
        self._fields_bytes = _number(data, "<H", self._fields_at)

    def scalar(self, field: int, layout: str) -> int:
        """Give the number in a field; 0 if it is not there."""
        at = self._place(field)
        return _number(self._data, layout, at) if at else 0

    def table(self, field: int) -> _Table | None:
        at = self._place(field)
        return _Table(self._data, at + _number(self._data, "<I", at)) if at else None

    def _place(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._fields_bytes:
            return 0
        offset = _number(self._data, "<H", self._fields_at + entry)
        return self._at + offset if offset else 0


def _number(data: bytes, layout: str, at: int) -> int:
    if at < 0:
        raise ArtifactUnreadable("a message of Arrow that points outside itself")
    number: int = struct.unpack_from(layout, data, at)[0]
    return number
