"""Tables and arrays of Arrow."""

from __future__ import annotations

import datetime as dt
import decimal
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.arrow import serializer_of
from evpipe.wire.serializers.arrow_messages import BATCH_ROWS
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def _columns() -> dict[str, Any]:
    day, noon = dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 12)  # noqa: DTZ001
    return {
        "int": pa.array([1, None, -3]),
        "small": pa.array([1, 2, 3], pa.uint8()),
        "float": pa.array([1.5, None, float("nan")]),
        "half": pa.array(np.array([1.5, 2, 3], np.float16)),
        "bool": pa.array([True, None, False]),
        "text": pa.array(["ä", None, ""]),
        "large": pa.array(["ä", None, ""], pa.large_string()),
        "view": pa.array(["a text of more than twelve bytes", None, ""], pa.string_view()),
        "bytes": pa.array([b"\0", None, b""], pa.binary()),
        "fixed": pa.array([b"abc", None, b"def"], pa.binary(3)),
        "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")]),
        "date": pa.array([day, None, day]),
        "moment": pa.array([noon, None, noon], pa.timestamp("ms", "Europe/Berlin")),
        "duration": pa.array([1, None, 2], pa.duration("us")),
        "list": pa.array([[1, None], None, []]),
        "pairs": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
        "structs": pa.array([[{"a": [1]}], None, [{"a": None}, None]]),
        "map": pa.array([[("a", {"b": 1})], None, []], pa.map_(pa.string(), pa.struct([("b", pa.int32())]))),
        "category": pa.array(["x", None, "x"]).dictionary_encode(),
        "ordered": pa.DictionaryArray.from_arrays(pa.array([0, None, 1], pa.int8()), ["b", "a"], ordered=True),
        "null": pa.nulls(3),
        "uuid": pa.array([b"0123456789abcdef", None, b"0123456789abcdef"], pa.uuid()),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12).reshape(3, 2, 2)),
    }


def _values() -> list[Any]:
    columns = _columns()
    table = pa.table(columns).replace_schema_metadata({"b": "2", "a": "1"})
    schema = pa.schema([pa.field("a", pa.int8(), nullable=False, metadata={"k": "v"}), ("a", pa.string())])
    return [
        *columns.values(),
        table,
        pa.record_batch(columns),
        schema,
        schema.empty_table(),
        pa.table({}),
        pa.chunked_array([[1, 2], [], [3]]),
        pa.chunked_array([], pa.string()),
        pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()]),
        pa.array([], pa.list_(pa.int8())),
        pa.RecordBatch.from_pylist([], schema=schema),
        pa.array(range(BATCH_ROWS * 2 + 1), pa.int32()),
        pa.record_batch({"a": range(BATCH_ROWS + 1)}),
    ]


@pytest.mark.parametrize("value", _values(), ids=lambda value: str(getattr(value, "type", type(value).__name__)))
def test_values_come_back_as_they_were(value: Any) -> None:
    """Class, types, nulls and metadata."""
    again = round_trip(value)
    assert type(again) is type(value)
    if isinstance(value, pa.Schema):
        assert again.equals(value, check_metadata=True)
        return
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        assert again.schema.equals(value.schema, check_metadata=True)
        assert again.num_rows == value.num_rows
        # As text: NaN is not equal to itself.
        assert repr([column.to_pylist() for column in again.columns]) == repr(
            [column.to_pylist() for column in value.columns]
        )
        return
    assert again.type == value.type
    assert again.to_pylist().__repr__() == value.to_pylist().__repr__()
    again.validate(full=True)


def _garbage(fill: int) -> Any:
    """A batch with something else under its nulls, but equal to any other of these."""
    n = 10
    mask = np.arange(n) % 3 == 0
    valid = pa.array(~mask).buffers()[1]
    numbers = np.where(mask, fill, np.arange(n))
    child = pa.array(numbers)
    text = b"".join(b"%03d" % fill if null else b"abc" for null in mask)
    offsets = pa.py_buffer((np.arange(n + 1) * 3).astype("i4").tobytes())
    ones = pa.py_buffer(np.arange(n + 1).astype("i4").tobytes())
    structs = pa.Array.from_buffers(pa.struct([("a", pa.int64())]), n, [valid], children=[child])
    indices = pa.Array.from_buffers(
        pa.int8(), n, [valid, pa.py_buffer(np.where(mask, fill % 3, 0).astype("i1").tobytes())]
    )
    return pa.record_batch(
        {
            "number": pa.Array.from_buffers(pa.int64(), n, [valid, pa.py_buffer(numbers.tobytes())]),
            "text": pa.Array.from_buffers(pa.string(), n, [valid, offsets, pa.py_buffer(text)]),
            "struct": structs,
            "list": pa.Array.from_buffers(pa.list_(pa.int64()), n, [valid, ones], children=[child]),
            "structs": pa.Array.from_buffers(pa.list_(structs.type), n, [None, ones], children=[structs]),
            "pair": pa.Array.from_buffers(pa.list_(structs.type, 1), n, [valid], children=[structs]),
            "category": pa.DictionaryArray.from_arrays(indices, ["x", "y", "z"]),
            "sliced": pa.concat_arrays([pa.array([5] * fill), pa.array(range(n))]).slice(fill),
        }
    )


def test_equal_values_have_equal_bytes() -> None:
    """What is under nulls, how it is cut and which process it is in make no difference."""
    one, other = _garbage(1), _garbage(5)
    assert one.equals(other)
    assert fingerprint(one) == fingerprint(other)
    table = pa.table({"a": range(100)})
    assert fingerprint(pa.concat_tables([table.slice(0, 30), table.slice(30)])) == fingerprint(table)
    chunks = [pa.array(["a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]
    again = round_trip(pa.chunked_array(chunks))
    assert again.to_pylist() == ["a", "b"]
    metadata = table.replace_schema_metadata({"a": "1", "b": "2"}), table.replace_schema_metadata({"b": "2", "a": "1"})
    assert fingerprint(metadata[0]) == fingerprint(metadata[1])
    assert fingerprints_elsewhere(__name__, "_values") == [fingerprint(value) for value in _values()]


class _OwnType(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.int64(), "own.type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Any:
        return cls()


def test_what_would_not_come_back_is_refused() -> None:
    """A type of somebody's own, wherever it is; what Arrow itself cannot take apart."""
    own = pa.ExtensionArray.from_storage(_OwnType(), pa.array([1]))
    nested = pa.StructArray.from_arrays([own], ["a"])
    for value in (own, pa.table({"a": own}), nested):
        with pytest.raises(Refused, match="extension type") as caught:
            written(value)
        assert "storage" in caught.value.hint
    with pytest.raises(Refused) as caught:
        written(pa.table({"a": [1, 2]}).select([]))
    assert "without columns" in caught.value.problem
    assert serializer_of(pa.scalar(1)) is None
    assert serializer_of(pa.int8()) is None


def _stream(write: Callable[[Any], None], schema: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        write(writer)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_compressed_streams_are_unreadable() -> None:
    """What a buffer becomes is not known before it is allocated; nothing here writes one."""
    batch = pa.record_batch({"a": [0] * 1000})
    for codec in ("lz4", "zstd"):
        data = _stream(lambda writer: writer.write_batch(batch), batch.schema, compression=codec)
        with pytest.raises(ArtifactUnreadable, match="compressed"):
            read("arrow", data, {"form": "batch"})
    words = pa.record_batch({"a": pa.array(["x" * 1000]).dictionary_encode()})
    data = _stream(lambda writer: writer.write_batch(words), words.schema, compression="zstd")
    with pytest.raises(ArtifactUnreadable, match="compressed"):
        read("arrow", data, {"form": "batch"})


def test_bombs_are_unreadable() -> None:
    """Rows without bytes, and bodies that are not there."""
    nulls = pa.record_batch([pa.nulls(1234)], ["a"])
    data = _stream(lambda writer: writer.write_batch(nulls), nulls.schema)
    data = data.replace(struct.pack("<q", 1234), struct.pack("<q", 10**12))
    with pytest.raises(ArtifactUnreadable, match="rows"):
        read("arrow", data, {"form": "batch"})
    batch = pa.record_batch({"a": range(1000)})
    data = _stream(lambda writer: writer.write_batch(batch), batch.schema)
    at = data.index(struct.pack("<q", 8000))
    huge = data[:at] + struct.pack("<q", 2**50) + data[at + 8 :]
    with pytest.raises(ArtifactUnreadable):
        read("arrow", huge, {"form": "batch"})
    with pytest.raises(ArtifactUnreadable):
        read("arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f", {"form": "table"})
    with pytest.raises(ArtifactUnreadable):
        read("arrow", data + b"more", {"form": "table"})


@pytest.mark.parametrize("meta", [{}, {"form": "frame"}, {"form": "array"}, {"form": 1}])
def test_bad_meta_is_unreadable(meta: dict[str, Any]) -> None:
    """It has to fit the bytes."""
    _, data, _ = written(pa.table({"a": [1], "b": [2]}))
    with pytest.raises(ArtifactUnreadable):
        read("arrow", data, meta)


def test_offsets_that_lead_outside_are_unreadable() -> None:
    """Arrow does not look at them unless it is told to."""
    _, data, meta = written(pa.array(["ab", "cd"]))
    at = data.index(struct.pack("<3i", 0, 2, 4))
    broken = data[:at] + struct.pack("<3i", 0, 2, 10**6) + data[at + 12 :]
    with pytest.raises(ArtifactUnreadable):
        read("arrow", broken, meta)


@pytest.mark.parametrize("name", ["text", "structs", "category", "map", "moment"])
def test_corrupted_bytes_are_unreadable_or_a_value(name: str) -> None:
    """No other exception comes out, whatever is broken, and the process lives."""
    assert check_corrupted(pa.table({name: _columns()[name]}), tries=300) > 100
