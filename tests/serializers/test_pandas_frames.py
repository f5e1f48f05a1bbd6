"""Frames and what is in them."""

from __future__ import annotations

import datetime as dt
import decimal
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.arrow_messages import BATCH_ROWS
from evpipe.wire.serializers.pandas_frames import serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

pd: Any = pytest.importorskip("pandas", reason="pandas is not installed")
pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

_DAYS = ["2024-02-29", None, "1969-12-31"]


def _columns() -> dict[str, Any]:
    """A series of every dtype, of three rows each."""
    columns = {
        **{name: pd.Series([1, 0, 3], dtype=name) for name in ("int8", "uint8", "int16", "uint32", "int64", "uint64")},
        **{name: pd.Series([1.5, np.nan, -0.0], dtype=name) for name in ("float16", "float32", "float64")},
        "bool": pd.Series([True, False, True]),
        "complex": pd.Series([1 + 2j, np.nan, -0.0j]),
        "complex64": pd.Series([1 + 2j, np.nan, 0j], dtype="complex64"),
        "big-endian": pd.Series(np.array([1.5, 2, 3], ">f8")),
        **{
            f"datetime-{unit}": pd.Series(pd.to_datetime(_DAYS)).astype(f"M8[{unit}]")
            for unit in ("s", "ms", "us", "ns")
        },
        **{f"timedelta-{unit}": pd.Series([1, None, -5]).astype(f"m8[{unit}]") for unit in ("s", "ms", "us", "ns")},
        **{
            f"zoned-{zone}": pd.Series(pd.to_datetime(["2024-10-27 00:30", None, "2024-10-27 01:30"]))
            .dt.as_unit("ms")
            .dt.tz_localize("UTC")
            .dt.tz_convert(zone)
            for zone in ("UTC", "Europe/Berlin", "+02:30")
        },
        **{name: pd.Series([1, None, 3], dtype=name) for name in ("Int8", "UInt64", "Float32", "Float64")},
        "boolean": pd.Series([True, None, False], dtype="boolean"),
        "nan-and-na": pd.Series(pd.arrays.FloatingArray(np.array([1, np.nan, 0]), np.array([False, False, True]))),
        "str": pd.Series(["a", None, "ä"], dtype="str"),
        "string-python": pd.Series(["a", None, "ä"], dtype=pd.StringDtype("python")),
        "string-pyarrow": pd.Series(["a", None, "ä"], dtype=pd.StringDtype("pyarrow")),
        "string-nan": pd.Series(["a", None, "ä"], dtype=pd.StringDtype("python", na_value=np.nan)),
        "object-str": pd.Series(["a", None, "ä"], dtype=object),
        "object-nan": pd.Series(["a", np.nan, "ä"], dtype=object),
        "object-mixed": pd.Series([1, "a", 2.5], dtype=object),
        "object-missing": pd.Series([None, pd.NA, pd.NaT], dtype=object),
        "object-nones": pd.Series([None, np.nan, "x"], dtype=object),
        "object-lists": pd.Series([[1, [2]], None, []], dtype=object),
        "object-other": pd.Series([decimal.Decimal("1.50"), dt.date(2024, 1, 1), (1, {"k": {2}})], dtype=object),
        "object-big": pd.Series([2**70, True, b"\0"], dtype=object),
        "category": pd.Series(pd.Categorical(["b", None, "a"], categories=["b", "a", "unused"])),
        "ordered": pd.Series(pd.Categorical([3, 1, 3], categories=[3, 2, 1], ordered=True)),
        "category-days": pd.Series(pd.Categorical(pd.to_datetime(_DAYS))),
        "category-bins": pd.Series(pd.cut([1, 5, 9], 3)),
        "category-objects": pd.Series(pd.Categorical([1, "a", 1], categories=pd.Index([1, "a"], dtype=object))),
        "category-empty": pd.Series(pd.Categorical([None, None, None])),
        "period-D": pd.Series(pd.PeriodIndex(_DAYS, freq="D")),
        "period-Q": pd.Series(pd.PeriodIndex(_DAYS, freq="Q-NOV")),
        "interval": pd.Series(pd.arrays.IntervalArray.from_breaks([0, 1, 2, 5], closed="left")),
        "interval-nan": pd.Series(pd.arrays.IntervalArray.from_tuples([(0.5, 1), None, (2, 3)])),
        "interval-days": pd.Series(pd.interval_range(pd.Timestamp("2024-01-01"), periods=3, freq="D", closed="both")),
        "sparse": pd.Series(pd.arrays.SparseArray([0, 0, 5])),
        "sparse-nan": pd.Series(pd.arrays.SparseArray([np.nan, 1.5, np.nan])),
        "sparse-one": pd.Series(pd.arrays.SparseArray([1, 0, 1], fill_value=1, kind="block")),
        "arrow-int": pd.Series([1, None, 3], dtype="int64[pyarrow]"),
        "arrow-list": pd.Series([[1], None, []], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
        "arrow-struct": pd.Series([{"a": 1}, None, {"a": None}], dtype=pd.ArrowDtype(pa.struct([("a", pa.int8())]))),
        "arrow-zoned": pd.Series(pd.to_datetime(_DAYS), dtype=pd.ArrowDtype(pa.timestamp("s", "Asia/Tokyo"))),
        "arrow-text": pd.Series(["a", None, "ä"], dtype=pd.ArrowDtype(pa.string())),
        "arrow-category": pd.Series(["a", None, "ä"], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))),
    }
    return columns  # noqa: RET504


def _indexes() -> dict[str, Any]:
    codes = [[0, 1, -1], [1, 1, 0]]
    return {
        "range": pd.RangeIndex(4, 10, 2, name="r"),
        "default": pd.RangeIndex(3),
        "int": pd.Index([3, 1, 1], name="i"),
        "float": pd.Index([1.5, np.nan, 2]),
        "bool": pd.Index([True, False, True]),
        "text": pd.Index(["a", "b", "a"], name=("a", 1)),
        "object": pd.Index([1, "a", None], dtype=object, name=5),
        "tuples": pd.Index([("a", 1), ("b", 2), ("c", 3)], tupleize_cols=False),
        "days": pd.date_range("2024-01-01", periods=3, freq="B", name="day"),
        "moments": pd.date_range("2024-03-30", periods=3, freq="D", tz="Europe/Berlin", unit="ms"),
        "irregular": pd.DatetimeIndex(["2024-01-01", None, "2024-01-01"]),
        "durations": pd.timedelta_range("1h", periods=3, freq="2h"),
        "periods": pd.period_range("2024-01", periods=3, freq="M"),
        "intervals": pd.interval_range(0, 3),
        "categories": pd.CategoricalIndex(["b", "a", "b"], categories=["b", "a", "z"], ordered=True),
        "masked": pd.Index([1, None, 3], dtype="Int64"),
        "arrow": pd.Index([1, None, 3], dtype="int64[pyarrow]"),
        "multi": pd.MultiIndex.from_tuples([("b", 1), ("a", 2), ("b", 3)], names=["x", None]),
        "multi-odd": pd.MultiIndex([["z", "a", "unused"], pd.to_datetime(["2024-01-02", "2024-01-01"])], codes),
        "multi-category": pd.MultiIndex.from_arrays(
            [pd.Categorical(["b", "a", "b"], ["b", "a"]), [1, 2, 3]], names=["c", 7]
        ),
    }


def _frames() -> dict[str, Any]:
    columns = _columns()
    twice = pd.DataFrame([[1, "a", 2.5]] * 3, columns=["x", "x", 0])
    named_columns = pd.DataFrame({"a": [1, 2, 3]})
    named_columns.columns.name = "labels"
    noted = pd.DataFrame({"a": [1]})
    noted.attrs = {"source": "test", "n": [1, (2,)]}
    crossed = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=_indexes()["multi"], columns=_indexes()["multi-odd"])
    return {
        "all": pd.DataFrame(columns),
        "twice": twice,
        "named": named_columns,
        "attrs": noted,
        "crossed": crossed,
        "unique": pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False),
        "no-rows": pd.DataFrame(columns).iloc[:0],
        "no-columns": pd.DataFrame(index=_indexes()["days"]),
        "no-columns-range": pd.DataFrame(index=range(5)),
        "nothing": pd.DataFrame(),
        "int-labels": pd.DataFrame(np.zeros((2, 3), "f4")),
        "day-labels": pd.DataFrame(np.zeros((2, 3)), columns=_indexes()["days"]),
        "tuple-labels": pd.DataFrame([[1, 2]], columns=pd.Index([(1, "a"), None], tupleize_cols=False)),
        "long": pd.DataFrame(
            {
                "a": range(BATCH_ROWS + 5),
                "b": pd.Categorical(["x", "y", None, "x", "y"] * (BATCH_ROWS // 5 + 1) + ["x"])[: BATCH_ROWS + 5],
            }
        ),
        "long-bins": pd.DataFrame({"a": pd.cut(np.arange(BATCH_ROWS + 5), 4)}),
        **{f"index-{name}": pd.DataFrame({"v": [1, 2, 3]}, index=index) for name, index in _indexes().items()},
    }


def _same_array(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    if isinstance(one.dtype, pd.CategoricalDtype):
        assert list(one.categories) == list(other.categories)
        assert one.categories.dtype == other.categories.dtype
        assert one.ordered == other.ordered
    cells = [repr(list(values)) for values in (one, other)]
    assert cells[0] == cells[1]


def _same_index(one: Any, other: Any) -> None:
    pd.testing.assert_index_equal(one, other, exact=True)
    assert list(one.names) == list(other.names)
    assert getattr(one, "freq", None) == getattr(other, "freq", None)
    if isinstance(one, pd.MultiIndex):
        for level, other_level in zip(one.levels, other.levels, strict=True):
            pd.testing.assert_index_equal(level, other_level, exact=True)
    else:
        _same_array(one.array, other.array)


def _same_frame(one: Any, other: Any) -> None:
    pd.testing.assert_frame_equal(
        one, other, check_index_type=True, check_column_type=True, check_freq=True, check_flags=True, check_exact=True
    )
    _same_index(one.index, other.index)
    _same_index(one.columns, other.columns)
    for (_, column), (_, other_column) in zip(one.items(), other.items(), strict=True):
        _same_array(column.array, other_column.array)
    assert one.attrs == other.attrs


@pytest.mark.parametrize("name", list(_columns()))
def test_series_come_back_as_they_were(name: str) -> None:
    """Dtype, missing values of each sort, name and index; empty ones too."""
    column = _columns()[name].rename(("a", name))
    for series in (column, column.iloc[:0], column.iloc[1:], column.set_axis(_indexes()["multi"])):
        again = round_trip(series)
        assert type(again) is pd.Series
        pd.testing.assert_series_equal(again, series, check_exact=True, check_index_type=True)
        assert again.name == series.name
        _same_array(again.array, series.array)
        _same_index(again.index, series.index)


@pytest.mark.parametrize("name", list(_columns()))
def test_arrays_and_indexes_of_every_dtype_come_back(name: str) -> None:
    """An array alone, and an index of it where pandas has one."""
    column = _columns()[name]
    if not isinstance(column.array, pd.arrays.NumpyExtensionArray):
        _same_array(round_trip(column.array), column.array)
    if name == "float16":
        return
    _same_index(round_trip(pd.Index(column)), pd.Index(column))


@pytest.mark.parametrize("name", list(_indexes()))
def test_indexes_come_back_as_they_were(name: str) -> None:
    """Class, names, levels and frequency."""
    _same_index(round_trip(_indexes()[name]), _indexes()[name])


@pytest.mark.parametrize("name", list(_frames()))
def test_frames_come_back_as_they_were(name: str) -> None:
    """Rows, columns, labels, dtypes, flags and attrs; and it is one to write into."""
    frame = _frames()[name]
    again = round_trip(frame)
    assert type(again) is pd.DataFrame
    _same_frame(again, frame)
    if len(again) and len(again.columns) and again.iloc[:, 0].dtype.kind in "if":
        again.iloc[0, 0] = 7
        assert again.iloc[0, 0] == 7


def test_numbers_are_bit_for_bit() -> None:
    """Also NaN with a payload, and -0.0."""
    column = pd.Series(np.array([0x7FF8000000000123, 0x8000000000000000, 1], np.uint64).view(np.float64))
    assert round_trip(column).to_numpy().tobytes() == column.to_numpy().tobytes()


def test_equal_frames_have_equal_bytes() -> None:
    """How it was put together, and the process, make no difference."""
    whole = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    parts = pd.concat([whole.iloc[:1], whole.iloc[1:]])
    assert fingerprint(parts.reset_index(drop=True)) == fingerprint(whole)
    masked = pd.Series(pd.arrays.IntegerArray(np.array([1, 99]), np.array([False, True])))
    assert fingerprint(masked) == fingerprint(pd.Series([1, None], dtype="Int64"))
    here = [fingerprint(frame) for frame in _made()]
    assert fingerprints_elsewhere(__name__, "_made") == here


def _made() -> list[Any]:
    return [*_frames().values(), *_columns().values(), *_indexes().values()]


def test_any_tool_reads_the_table() -> None:
    """It is a stream of Arrow, with the labels as names."""
    _, data, _ = written(pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[5, 6]))
    table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
    assert table.to_pydict() == {"index": [5, 6], "a": [1, 2], "b": ["x", None]}


class _OwnFrame(pd.DataFrame):  # type: ignore[misc]
    pass


class _Unencodable:
    pass


def _refusals() -> list[tuple[Any, str, str]]:
    noted = pd.DataFrame({"a": [1]})
    noted.attrs = {"x": _Unencodable()}
    return [
        (_OwnFrame({"a": [1]}), "_OwnFrame", "plain"),
        (pd.DataFrame({"a": [1], "b": [_Unencodable()]}), "the column 'b'", "infer_objects"),
        (pd.Series([np.zeros(2)]), "numpy.ndarray in row 0", "lists"),
        (pd.Series([pd.Timestamp("2024-01-01"), 1], dtype=object), "in row 0", "infer_objects"),
        (pd.Series([1], name=_Unencodable()), "names", "texts"),
        (noted, "attrs", "texts"),
        (pd.array([1, 2], dtype=np.dtype("int64")), "NumpyExtensionArray", "to_numpy"),
        (pd.Series(["\udcff"], dtype=object), "surrogates", ""),
        (pd.Series(np.zeros(2, np.longdouble)), "other machines", "float"),
        (
            pd.Series(pd.to_datetime(["2024-01-01"])).dt.tz_localize(dt.timezone(dt.timedelta(hours=1), "odd")),
            "time zone",
            "tz_convert",
        ),
        (pd.bdate_range("2024-01-01", periods=2, freq="C", holidays=["2024-01-02"]), "frequency", "freq = None"),
    ]


@pytest.mark.parametrize("number", range(len(_refusals())))
def test_what_would_not_come_back_is_refused(number: int) -> None:
    """It says which column it is, and what would do."""
    value, problem, hint = _refusals()[number]
    with pytest.raises(Refused) as caught:
        written(value)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_other_values_of_pandas_have_no_serializer() -> None:
    """They are looked for elsewhere."""
    for value in (pd.Timestamp("2024-01-01"), pd.NA, pd.DataFrame({"a": [1]}).groupby("a"), pd.Int64Dtype()):
        assert serializer_of(value) is None


@pytest.mark.parametrize("meta", [{}, {"form": "series"}, {"form": "index"}, {"form": "array"}, {"form": "panel"}])
def test_bad_meta_is_unreadable(meta: dict[str, Any]) -> None:
    """It has to fit the bytes."""
    _, data, _ = written(pd.DataFrame({"a": [1], "b": [2]}, index=[5]))
    with pytest.raises(ArtifactUnreadable):
        read("pandas", data, meta)


def test_other_tables_are_unreadable() -> None:
    """A table of Arrow alone does not say what it was."""
    _, data, _ = written(pa.table({"a": [1]}))
    with pytest.raises(ArtifactUnreadable):
        read("pandas", data, {"form": "frame"})


@pytest.mark.parametrize("name", ["twice", "crossed", "index-categories"])
def test_corrupted_bytes_are_unreadable_or_a_value(name: str) -> None:
    """No other exception comes out, whatever is broken, and the process lives."""
    assert check_corrupted(_frames()[name], tries=200) > 60


_cells = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text() | st.binary() | st.dates()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(_cells | st.lists(_cells, max_size=2), min_size=3, max_size=3), max_size=4), st.randoms())
def test_any_frame_of_objects_comes_back(rows: list[list[Any]], dice: Any) -> None:
    """Cells keep their types, whatever is beside them."""
    frame = pd.DataFrame(rows, columns=["a", "b", "a"], dtype=object)
    try:
        again = round_trip(frame)
    except Refused as refused:
        assert "surrogate" in str(refused)  # noqa: PT017
        return
    assert again.dtypes.tolist() == frame.dtypes.tolist()
    assert repr(again.to_numpy().tolist()) == repr(frame.to_numpy().tolist())
