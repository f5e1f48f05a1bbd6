"""Tables, batches, arrays and schemas of Arrow (kind "arrow"): Arrow's own stream, see `arrow_streams.py`.

An array is a table of one column. How a table or a chunked array is cut into chunks is no part of the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import named
from evpipe.wire.serializers.arrow_streams import arrow, joined, read_table, write_table
from evpipe.wire.serializers.borders import meta_value, reading, refusing
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored


class ArrowSerializer:
    """Writes and reads what Arrow has."""

    name = "arrow"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        hint = "cast what Arrow cannot take apart to another type"
        with refusing(named(type(value)), hint):
            form, table = _tabled(value)
            write_table(table, file)
            return {"form": form}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "pyarrow"):
            pa = arrow()
            form = meta_value(stored.meta, "form", str)
            with stored.open() as file:
                table = read_table(file, stored.size_bytes)
            if form == "table":
                return table
            if form == "schema":
                return table.schema
            if form == "batch":
                columns = [joined(column) for column in table.columns]
                return pa.RecordBatch.from_arrays(columns, schema=table.schema)
            if form not in {"array", "chunked"} or table.num_columns != 1:
                raise ArtifactUnreadable(f"there is no {form!r:.100} in this table of {table.num_columns} columns")
            return table.column(0) if form == "chunked" else joined(table.column(0))


SERIALIZERS: Final[dict[str, Serializer]] = {"arrow": ArrowSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of pyarrow; None if it is neither a table nor an array."""
    pa = arrow()
    classes = (pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray, pa.Schema)
    return SERIALIZERS["arrow"] if isinstance(value, classes) else None


def _tabled(value: Any) -> tuple[str, Any]:
    pa = arrow()
    if isinstance(value, pa.Table):
        return "table", value
    if isinstance(value, pa.RecordBatch):
        return "batch", pa.Table.from_batches([value])
    if isinstance(value, pa.Schema):
        return "schema", value.empty_table()
    schema = pa.schema([pa.field("", value.type)])
    if isinstance(value, pa.Array):
        return "array", pa.Table.from_arrays([value], schema=schema)
    return "chunked", pa.Table.from_arrays([value], schema=schema)
