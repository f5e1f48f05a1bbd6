"""Frames, series, indexes and arrays of pandas (kind "pandas"): a stream of Arrow with all that Arrow does not know.

The columns are those of an Arrow table, the index before them, so that any tool reads the numbers. What they were is
in the table's metadata (see `pandas_columns.py`), with the labels of the columns, which are an index like any other
and may be of any type, or twice. `attrs` are kept.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.limits import LARGE_ITEMS_MAX
from evpipe.wire.serializers.arrow_streams import arrow, joined, read_table, write_table
from evpipe.wire.serializers.borders import meta_value, reading, refusing, said
from evpipe.wire.serializers.pandas_columns import (
    Description,
    bare,
    bare_index,
    decode_column,
    encode_column,
    encode_distinct,
)
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored
from evpipe.wire.values import pack, unpack

#: Keys of the table's metadata: what the columns were, and a stream with the labels of a frame's columns.
_DESCRIPTION: Final = b"evpipe.pandas"
_LABELS: Final = b"evpipe.labels"
_OWN: Final = "pass it as a plain one of pandas, or write an @serializer"


class PandasSerializer:
    """Writes and reads what pandas has."""

    name = "pandas"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        with refusing(named(type(value)), "reset what is special about it: reset_index(), attrs, dtypes"):
            pd = importlib.import_module("pandas")
            table = _Written()
            if isinstance(value, pd.DataFrame):
                form = "frame"
                table.frame(value)
            elif isinstance(value, pd.Series):
                form = "series"
                table.series(value)
            elif isinstance(value, pd.Index):
                form = "index"
                table.index(value, "index")
            else:
                form = "array"
                table.column(bare_array(value), "")
            table.write(file)
            return {"form": form}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "pandas", "pyarrow"):
            importlib.import_module("pandas")
            form = meta_value(stored.meta, "form", str)
            with stored.open() as file:
                table = _Read(read_table(file, stored.size_bytes))
            made = {"frame": table.frame, "series": table.series, "index": table.index, "array": table.column}.get(form)
            if made is None:
                raise ArtifactUnreadable(f"there is no {form!r:.100} in pandas")
            value = made()
            table.check_empty()
            return value


SERIALIZERS: Final[dict[str, Serializer]] = {"pandas": PandasSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of pandas; None if it is neither a frame nor anything that is in one."""
    pd = importlib.import_module("pandas")
    classes = (pd.DataFrame, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)
    return SERIALIZERS["pandas"] if isinstance(value, classes) else None


def bare_array(value: Any) -> Any:
    """Give an array of pandas as it is.

    Raises:
        Refused: if it is only numpy's in disguise, which a column would not give back.
    """
    if type(value) is importlib.import_module("pandas").arrays.NumpyExtensionArray:
        raise Refused(named(type(value)), "pass value.to_numpy()")
    return value


class _Written:
    """A table that is put together, column by column."""

    def __init__(self) -> None:
        self._arrays: list[Any] = []
        self._names: list[str] = []
        #: What each array was, and each index; in the order in which they are read again.
        self._columns: list[Description] = []
        self._indexes: list[Description] = []
        self._more: Description = {}
        self._labels = b""

    def frame(self, value: Any) -> None:
        pd = importlib.import_module("pandas")
        _check_class(value, pd.DataFrame)
        self._describe(value)
        self.index(value.index, "index")
        labels = _Written()
        labels.index(value.columns, "label")
        stream = io.BytesIO()
        labels.write(stream)
        self._labels = stream.getvalue()
        for i, (label, column) in enumerate(value.items()):
            name = label if type(label) is str else str(i)
            try:
                self.column(bare(column), name)
            except Refused as refused:
                raise Refused(f"{refused.problem}, the column {label!r:.100} of a frame", refused.hint) from refused

    def series(self, value: Any) -> None:
        pd = importlib.import_module("pandas")
        _check_class(value, pd.Series)
        self._describe(value)
        self._more["name"] = value.name
        self.index(value.index, "index")
        self.column(bare(value), "values")

    def index(self, value: Any, name: str) -> None:
        pd = importlib.import_module("pandas")
        kinds = (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.PeriodIndex, pd.IntervalIndex, pd.CategoricalIndex)
        if type(value) is pd.RangeIndex:
            bounds = [value.start, value.stop, value.step]
            self._indexes.append({"kind": "range", "range": bounds, "name": value.name})
        elif type(value) is pd.MultiIndex:
            self._multi_index(value, name)
        elif type(value) in kinds:
            freq = getattr(value, "freq", None) if type(value) is not pd.PeriodIndex else None
            if freq is not None and pd.tseries.frequencies.to_offset(freq.freqstr) != freq:
                raise Refused(f"an index with the frequency {freq!r}", "take it out: value.index.freq = None")
            self.column(bare(value), name)
            self._indexes.append({"kind": "plain", "name": value.name, "freq": freq and freq.freqstr})
        else:
            raise Refused(named(type(value)), _OWN)

    def _multi_index(self, value: Any, name: str) -> None:
        pa = arrow()
        np = importlib.import_module("numpy")
        levels = []
        for i, (level, codes) in enumerate(zip(value.levels, value.codes, strict=True)):
            values, description = encode_distinct(bare(level))
            numbers = np.asarray(codes)
            self._arrays.append(pa.DictionaryArray.from_arrays(pa.array(numbers, mask=numbers == -1), values))
            self._names.append(f"{name} {i}")
            levels.append(description)
        self._indexes.append({"kind": "multi", "levels": levels, "names": list(value.names)})

    def column(self, values: Any, name: str) -> None:
        array, description = encode_column(values)
        self._arrays.append(array)
        self._names.append(name)
        self._columns.append(description)

    def write(self, file: BinaryIO) -> None:
        pa = arrow()
        try:
            description = pack([self._columns, self._indexes, self._more], "its labels", items_max=LARGE_ITEMS_MAX)
        except Exception as exc:
            raise Refused(f"a value of pandas with labels, names or attrs that {said(exc)}", "use texts") from exc
        metadata = {_DESCRIPTION: description} | ({_LABELS: self._labels} if self._labels else {})
        write_table(pa.Table.from_arrays(self._arrays, names=self._names, metadata=metadata), file)

    def _describe(self, value: Any) -> None:
        self._more["attrs"] = dict(value.attrs)
        self._more["unique"] = not value.flags.allows_duplicate_labels


class _Read:
    """A table that is taken apart, column by column."""

    def __init__(self, table: Any) -> None:
        metadata = table.schema.metadata or {}
        self._left = list(table.columns)
        self._rows = table.num_rows
        self._labels = metadata.get(_LABELS, b"")
        description = unpack(metadata.get(_DESCRIPTION, b"\xc0"), items_max=LARGE_ITEMS_MAX)
        if type(description) is not list or len(description) != 3:
            raise ArtifactUnreadable("a table of Arrow that was not written of pandas")
        self._columns, self._indexes, self._more = description

    def frame(self) -> Any:
        pd = importlib.import_module("pandas")
        rows = self.index()
        labels_file = io.BytesIO(self._labels)
        labels = _Read(read_table(labels_file, len(self._labels)))
        columns = labels.index()
        labels.check_empty()
        if len(columns) != len(self._left):
            raise ArtifactUnreadable(f"a frame of {len(self._left):,} columns with {len(columns):,} labels")
        # By position, for labels may be there twice.
        made = {i: self._series() for i in range(len(columns))}
        frame = pd.DataFrame(made) if made else pd.DataFrame(index=rows)
        frame.index, frame.columns = rows, columns
        return self._finished(frame)

    def series(self) -> Any:
        rows = self.index()
        series = self._series()
        series.index = rows
        series.name = self._more["name"]
        return self._finished(series)

    def index(self) -> Any:
        pd = importlib.import_module("pandas")
        description = self._indexes.pop(0)
        kind = description["kind"]
        if kind == "range":
            made = pd.RangeIndex(*description["range"], name=description["name"])
        elif kind == "multi":
            return self._multi_index(description)
        else:
            made = bare_index(self.column())
            made.name = description["name"]
            if description["freq"] is not None:
                made.freq = description["freq"]
        if self._left and len(made) != self._rows:
            raise ArtifactUnreadable(f"an index of {len(made):,} labels for {self._rows:,} rows")
        return made

    def _multi_index(self, description: Description) -> Any:
        pd = importlib.import_module("pandas")
        levels, codes = [], []
        for level in description["levels"]:
            array = self._taken()
            levels.append(bare_index(decode_column(array.dictionary, level)))
            codes.append(array.indices.fill_null(-1).to_numpy(zero_copy_only=False))
        return pd.MultiIndex(levels, codes, names=description["names"], verify_integrity=True)

    def column(self) -> Any:
        return decode_column(self._taken(), self._columns.pop(0))

    def check_empty(self) -> None:
        if self._left or self._columns or self._indexes:
            raise ArtifactUnreadable("a table of Arrow with more columns than the value of pandas had")

    def _series(self) -> Any:
        values = self.column()
        return importlib.import_module("pandas").Series(values, dtype=values.dtype, copy=False)

    def _taken(self) -> Any:
        return joined(self._left.pop(0))

    def _finished(self, made: Any) -> Any:
        made.attrs = self._more["attrs"]
        return made.set_flags(allows_duplicate_labels=False) if self._more["unique"] is True else made


def _check_class(value: Any, cls: type) -> None:
    if type(value) is not cls:
        raise Refused(named(type(value)), _OWN)
