"""Tables of Arrow as streams: equal tables are written in equal bytes, and what is read is checked.

Two equal arrays of Arrow may differ in memory: in what lies under nulls, in bits behind the end, in how they are cut
into chunks. Batches of one length, each taken anew, do not. `arrow.py` and `pandas_frames.py` write with this, and
any tool that knows Arrow reads it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.arrow_messages import BATCH_ROWS, check_messages


def arrow() -> Any:
    """Give pyarrow with what is not in it until it is imported."""
    importlib.import_module("pyarrow.compute")
    importlib.import_module("pyarrow.ipc")
    return importlib.import_module("pyarrow")


def write_table(table: Any, file: BinaryIO) -> None:
    """Write a table batch by batch.

    Raises:
        Refused: if it has a type that is only known to this process.
    """
    pa = arrow()
    for field in table.schema:
        _check_type(field.type, field.name)
    if table.num_rows and not table.num_columns:
        raise Refused(f"an Arrow table of {table.num_rows:,} rows without columns", "pass the number of rows")
    table = _alike(table)
    schema = _sorted_metadata(table.schema)
    with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema) as writer:
        for batch in _batches(table, schema):
            writer.write_batch(batch)


def read_table(file: BinaryIO, size_bytes: int) -> Any:
    """Read a table.

    Raises:
        ArtifactUnreadable, Exception: if there is none.
    """
    pa = arrow()
    start = file.tell()
    check_messages(file, size_bytes)
    file.seek(start)
    with pa.ipc.open_stream(pa.PythonFile(file, mode="r")) as reader:
        batches = []
        for batch in reader:
            batch.validate(full=True)
            batches.append(batch)
        return pa.Table.from_batches(batches, reader.schema)


def _batches(table: Any, schema: Any) -> Iterator[Any]:
    pa = arrow()
    # One at least: the values of a dictionary come before the first batch.
    for start in range(0, max(table.num_rows, 1), BATCH_ROWS):
        rows = table.slice(start, BATCH_ROWS)
        order = pa.array(range(rows.num_rows), pa.int32())
        columns = [settled(joined(column), order) for column in rows.columns]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def settled(array: Any, order: Any = None) -> Any:
    """Give an array with nothing in memory but what it says: 0 under nulls, nothing before, behind or between.

    Args:
        order: its indices, where they are at hand.
    """
    pa = arrow()
    kind = array.type
    if order is None or len(order) != len(array):
        order = pa.array(range(len(array)), pa.int64())
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, settled(array.storage, order))
    if pa.types.is_null(kind):
        return pa.nulls(len(array))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        plain = pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
        return array.cast(plain).take(order).cast(kind)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(
            array.indices.take(order), settled(array.dictionary), ordered=kind.ordered, safe=False
        )
    if pa.types.is_struct(kind):
        # Of what is under a null of the whole there is nothing to keep.
        parts = [settled(part, order) for part in array.flatten()]
        mask = array.is_null() if array.null_count else None
        if not parts:
            return array.take(order)
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=mask)
    taken = array.take(order)
    if not _has_struct(kind):
        return taken
    if pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, len(taken), taken.buffers()[:1], children=[settled(taken.values)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        inner = taken.flatten() if not pa.types.is_map(kind) else _entries(taken)
        return pa.Array.from_buffers(kind, len(taken), taken.buffers()[:2], children=[settled(inner)])
    return taken


def _entries(array: Any) -> Any:
    """Give the pairs of a map that was just taken: all of them belong to it."""
    pa = arrow()
    kind = array.type
    fields = [kind.key_field, kind.item_field]
    return pa.StructArray.from_arrays([array.keys, array.items], fields=fields)


def _has_struct(kind: Any) -> bool:
    pa = arrow()
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_dictionary(kind):
        return True
    return any(_has_struct(kind.field(i).type) for i in range(kind.num_fields))


def joined(column: Any) -> Any:
    """Give a chunked array as one array.

    Raises:
        pyarrow.ArrowInvalid: if it is too long to be one.
    """
    if column.num_chunks == 1:
        return column.chunk(0)
    return arrow().concat_arrays(column.chunks) if column.num_chunks else arrow().array([], column.type)


def _alike(table: Any) -> Any:
    """Give all chunks of a column one dictionary, where they have several."""
    pa = arrow()
    if any(pa.types.is_dictionary(field.type) for field in table.schema):
        return table.unify_dictionaries()
    return table


def _check_type(kind: Any, where: str) -> None:
    pa = arrow()
    if isinstance(kind, pa.ExtensionType):
        hint = "pass its storage, or write an @serializer"
        raise Refused(
            f"an Arrow table with {where!r} of the extension type {kind}, which other processes may not know", hint
        )
    children = [kind.field(i).type for i in range(kind.num_fields)]
    if isinstance(kind, pa.BaseExtensionType):
        children.append(kind.storage_type)
    if pa.types.is_dictionary(kind):
        children.append(kind.value_type)
    for child in children:
        _check_type(child, where)


def _sorted_metadata(schema: Any) -> Any:
    pa = arrow()
    fields = [
        field.with_metadata(dict(sorted(field.metadata.items()))) if field.metadata else field for field in schema
    ]
    metadata = schema.metadata
    return pa.schema(fields, metadata=dict(sorted(metadata.items())) if metadata else None)
