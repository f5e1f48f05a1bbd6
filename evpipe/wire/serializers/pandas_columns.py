"""One column of pandas as an array of Arrow and back, for every dtype that pandas has.

Arrow's own conversion changes what it has no word for: it makes None of NaN, loses units, the order of categories and
types of strings. So beside each array goes a description, a plain map, that says what it was; `pandas_frames.py`
keeps the descriptions. A column that would not come back as it was is refused.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.arrow_streams import arrow, joined, read_table, write_table
from evpipe.wire.serializers.borders import said
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.values import pack, unpack

#: What a column was: {"kind": …} and what that kind needs.
Description: TypeAlias = dict[str, Any]

#: Dtypes with a mask, by their name, and the dtypes of numpy below them.
_MASKED: Final = {
    **{f"Int{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"UInt{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"Float{bits}": f"float{bits}" for bits in (32, 64)},
    "boolean": "bool",
}
#: A cell of objects is an encoded value, or one of these, which no encoded value is.
_NA: Final = b""
_NAT: Final = b"\xc1"
_HINT: Final = "convert it to a dtype of numpy, pandas or Arrow, or pass what is in it as a list"


def encode_column(values: Any) -> tuple[Any, Description]:
    """Give an array of pandas, or of numpy, as one of Arrow.

    Raises:
        Refused: if it would not come back as it was.
    """
    array, description = _encoded(values)
    again = decode_column(array.slice(0, 0), description)
    if again.dtype != values.dtype or type(again) is not type(values):
        raise Refused(f"a column of the dtype {values.dtype}, which comes back as {again.dtype}", _HINT)
    return array, description


def decode_column(array: Any, description: Description) -> Any:
    """Give the array of pandas, or of numpy, which owns its memory.

    Raises:
        ArtifactUnreadable, Exception: if there is none.
    """
    decode = _DECODERS.get(description["kind"])
    if decode is None:
        raise ArtifactUnreadable(f"there is no kind {description['kind']!r:.100} of columns")
    return decode(joined(array) if hasattr(array, "num_chunks") else array, description)


def _encoded(values: Any) -> tuple[Any, Description]:
    pd = importlib.import_module("pandas")
    np = importlib.import_module("numpy")
    dtype = values.dtype
    if isinstance(values, np.ndarray):
        return _encode_objects(values) if dtype.kind == "O" else _encode_numpy(values)
    if isinstance(dtype, np.dtype) and dtype.kind in "Mm":
        array, description = _encode_numpy(values.to_numpy())
        return array, {"kind": "moments", "of": description}
    for cls, encode in _encoders(pd):
        if type(dtype) is cls:
            return encode(values)
    if dtype.name in _MASKED and type(dtype) is _masked_class(dtype.name):
        return _encode_masked(values)
    raise Refused(f"a column of the dtype {dtype} ({named(type(dtype))})", _HINT)


def _encoders(pd: Any) -> list[tuple[type, Callable[[Any], tuple[Any, Description]]]]:
    return [
        (pd.CategoricalDtype, _encode_category),
        (pd.DatetimeTZDtype, _encode_zoned),
        (pd.StringDtype, _encode_text),
        (pd.ArrowDtype, _encode_arrow),
        (pd.PeriodDtype, _encode_period),
        (pd.IntervalDtype, _encode_interval),
        (pd.SparseDtype, _encode_sparse),
    ]


# ---- numpy


def _encode_numpy(values: Any) -> tuple[Any, Description]:
    pa = arrow()
    dtype = values.dtype
    description = {"kind": "numpy", "dtype": dtype.str}
    if dtype.kind in "biufMm" and dtype.isnative and dtype.itemsize <= 8:
        return pa.array(values, from_pandas=False), description
    if (dtype.kind == "f" and dtype.itemsize > 8) or (dtype.kind == "c" and dtype.itemsize > 16):
        raise Refused(f"a column of the dtype {dtype}, which is another on other machines", "astype(float)")
    # What Arrow has no word for, as bytes.
    data = pa.py_buffer(values.tobytes())
    return pa.Array.from_buffers(pa.binary(dtype.itemsize), len(values), [None, data]), description


def _decode_numpy(array: Any, description: Description) -> Any:
    np = importlib.import_module("numpy")
    pa = arrow()
    dtype = np.dtype(description["dtype"])
    if dtype.hasobject or dtype.kind not in "biufcMm":
        raise ArtifactUnreadable(f"a column of the dtype {dtype}")
    if pa.types.is_fixed_size_binary(array.type):
        if array.null_count or array.type.byte_width != dtype.itemsize:
            raise ArtifactUnreadable(f"a column of the dtype {dtype} that is none")
        data = array.buffers()[1]
        return np.frombuffer(data or b"", dtype, len(array), array.offset * dtype.itemsize).copy()
    return _numbers(array, dtype)


def _numbers(array: Any, dtype: Any) -> Any:
    """Give numbers, bools or moments as they are; only moments may have nulls."""
    np = importlib.import_module("numpy")
    if array.null_count and dtype.kind not in "Mm":
        raise ArtifactUnreadable(f"nulls in a column of the dtype {dtype}")
    made = array.to_numpy(zero_copy_only=False)
    if made.dtype != dtype:
        raise ArtifactUnreadable(f"a column of the dtype {made.dtype} where {dtype} was written")
    return made if made.flags.writeable and made.flags.owndata else np.array(made)


def _decode_moments(array: Any, description: Description) -> Any:
    pd = importlib.import_module("pandas")
    made = decode_column(array, description["of"])
    return (pd.DatetimeIndex if made.dtype.kind == "M" else pd.TimedeltaIndex)(made).array


def _encode_objects(values: Any) -> tuple[Any, Description]:
    pa = arrow()
    cells = values.tolist()
    types = set(map(type, cells))
    if types <= {str, type(None)}:
        return pa.array(cells, pa.large_string()), {"kind": "texts", "missing": "None"}
    if types <= {str, float} and all(cell != cell for cell in cells if type(cell) is float):
        cells = [cell if type(cell) is str else None for cell in cells]
        return pa.array(cells, pa.large_string()), {"kind": "texts", "missing": "NaN"}
    return pa.array([_packed(cell, row) for row, cell in enumerate(cells)], pa.large_binary()), {"kind": "objects"}


def _packed(cell: Any, row: int) -> bytes | None:
    pd = importlib.import_module("pandas")
    if cell is None:
        return None
    if cell is pd.NA or cell is pd.NaT:
        return _NA if cell is pd.NA else _NAT
    try:
        return pack(cell, "it")
    except Exception as exc:
        hint = "convert the column to another dtype (infer_objects, convert_dtypes), or what is in it to lists"
        raise Refused(f"a column of objects with {named(type(cell))} in row {row} ({said(exc)})", hint) from exc


def _decode_texts(array: Any, description: Description) -> Any:
    missing = float("nan") if description["missing"] == "NaN" else None
    return _objects([missing if cell is None else _checked(cell, str) for cell in array.to_pylist()])


def _decode_objects(array: Any, description: Description) -> Any:
    pd = importlib.import_module("pandas")
    special = {_NA: pd.NA, _NAT: pd.NaT}
    cells = [cell if cell is None else _checked(cell, bytes) for cell in array.to_pylist()]
    return _objects([cell if cell is None else special[cell] if cell in special else unpack(cell) for cell in cells])


def _objects(cells: list[Any]) -> Any:
    np = importlib.import_module("numpy")
    made = np.empty(len(cells), object)
    for row, cell in enumerate(cells):
        made[row] = cell
    return made


def _checked(cell: Any, of: type) -> Any:
    if type(cell) is not of:
        raise ArtifactUnreadable(f"a column of {of.__name__} with {named(type(cell))} in it")
    return cell


# ---- pandas


def _masked_class(name: str) -> type:
    cls: type = getattr(importlib.import_module("pandas"), "BooleanDtype" if name == "boolean" else f"{name}Dtype")
    return cls


def _encode_masked(values: Any) -> tuple[Any, Description]:
    name = values.dtype.name
    numbers = values.to_numpy(dtype=_MASKED[name], na_value=False if name == "boolean" else 0)
    return arrow().array(numbers, mask=values.isna(), from_pandas=False), {"kind": "masked", "dtype": name}


def _decode_masked(array: Any, description: Description) -> Any:
    np = importlib.import_module("numpy")
    arrays = importlib.import_module("pandas").arrays
    name = description["dtype"]
    dtype = np.dtype(_MASKED[name])
    mask = np.array(array.is_null().to_numpy(zero_copy_only=False))
    numbers = _numbers(array.fill_null(False if name == "boolean" else 0), dtype)
    cls = {"b": arrays.BooleanArray, "f": arrays.FloatingArray}.get(dtype.kind, arrays.IntegerArray)
    return cls(numbers, mask)


def _encode_text(values: Any) -> tuple[Any, Description]:
    pd = importlib.import_module("pandas")
    pa = arrow()
    missing = "NA" if values.dtype.na_value is pd.NA else "NaN"
    array = pa.array(values)
    plain = (joined(array) if hasattr(array, "num_chunks") else array).cast(pa.large_string())
    return plain, {"kind": "string", "storage": values.dtype.storage, "missing": missing}


def _decode_text(array: Any, description: Description) -> Any:
    pd = importlib.import_module("pandas")
    storage, missing = description["storage"], description["missing"]
    dtype = pd.StringDtype(storage) if missing == "NA" else pd.StringDtype(storage, na_value=float("nan"))
    return dtype.__from_arrow__(array)


def _encode_category(values: Any) -> tuple[Any, Description]:
    pa = arrow()
    categories, description = encode_distinct(bare(values.categories))
    codes = pa.array(values.codes, mask=values.codes == -1)
    array = pa.DictionaryArray.from_arrays(codes, categories, ordered=bool(values.ordered))
    return array, {"kind": "category", "of": description}


def _decode_category(array: Any, description: Description) -> Any:
    np = importlib.import_module("numpy")
    pd = importlib.import_module("pandas")
    categories = bare_index(decode_column(array.dictionary, description["of"]))
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    dtype = pd.CategoricalDtype(categories, ordered=array.type.ordered)
    return pd.Categorical.from_codes(np.array(codes), dtype=dtype)


def _encode_zoned(values: Any) -> tuple[Any, Description]:
    pd = importlib.import_module("pandas")
    dtype = values.dtype
    zone = str(dtype.tz)
    try:
        comes_back = pd.DatetimeTZDtype(dtype.unit, zone) == dtype
    except (TypeError, ValueError, LookupError):
        comes_back = False
    if not comes_back:
        hint = "use a time zone by its name: value.dt.tz_convert('Europe/Berlin')"
        raise Refused(f"a column of moments in the time zone {dtype.tz!r}", hint)
    plain = arrow().array(values.tz_convert(None).to_numpy())
    return plain.cast(arrow().timestamp(dtype.unit, "UTC")), {"kind": "zoned", "unit": dtype.unit, "zone": zone}


def _decode_zoned(array: Any, description: Description) -> Any:
    np = importlib.import_module("numpy")
    pd = importlib.import_module("pandas")
    unit = description["unit"]
    plain = _numbers(array.cast(arrow().timestamp(unit)), np.dtype(f"M8[{unit}]"))
    zone = pd.DatetimeTZDtype(unit, description["zone"]).tz
    return pd.DatetimeIndex(plain).tz_localize("UTC").tz_convert(zone).array


def _encode_arrow(values: Any) -> tuple[Any, Description]:
    array = arrow().array(values)
    return joined(array) if hasattr(array, "num_chunks") else array, {"kind": "arrow"}


def _decode_arrow(array: Any, description: Description) -> Any:
    return importlib.import_module("pandas").arrays.ArrowExtensionArray(array)


def _encode_period(values: Any) -> tuple[Any, Description]:
    return arrow().array(values.asi8, mask=values.isna()), {"kind": "period", "freq": values.dtype.name[7:-1]}


def _decode_period(array: Any, description: Description) -> Any:
    np = importlib.import_module("numpy")
    pd = importlib.import_module("pandas")
    ordinals = _numbers(array.fill_null(np.iinfo(np.int64).min), np.dtype(np.int64))
    return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(description["freq"]))


def _encode_interval(values: Any) -> tuple[Any, Description]:
    left, description = encode_column(bare(values.left))
    right, _ = encode_column(bare(values.right))
    array = arrow().StructArray.from_arrays([left, right], ["left", "right"])
    return array, {"kind": "interval", "closed": values.closed, "of": description}


def _decode_interval(array: Any, description: Description) -> Any:
    pd = importlib.import_module("pandas")
    left, right = (bare_index(decode_column(side, description["of"])) for side in array.flatten())
    return pd.arrays.IntervalArray.from_arrays(left, right, closed=description["closed"])


def _encode_sparse(values: Any) -> tuple[Any, Description]:
    array, description = encode_column(values.to_dense())
    fill = pack(values.fill_value, "what a sparse column is filled with")
    return array, {"kind": "sparse", "of": description, "fill": fill, "index": values.kind}


def _decode_sparse(array: Any, description: Description) -> Any:
    pd = importlib.import_module("pandas")
    dense = decode_column(array, description["of"])
    fill = unpack(description["fill"])
    dtype = pd.SparseDtype(dense.dtype, fill)
    return pd.arrays.SparseArray(dense, fill_value=fill, kind=description["index"], dtype=dtype)


def encode_distinct(values: Any) -> tuple[Any, Description]:
    """Give what codes stand for, as the values of a dictionary of Arrow, which are no dictionary themselves.

    Raises:
        Refused: if it would not come back as it was.
    """
    pa = arrow()
    array, description = encode_column(values)
    if not pa.types.is_dictionary(array.type):
        return array, description
    file = io.BytesIO()
    write_table(pa.Table.from_arrays([array], names=["values"]), file)
    placeholder = pa.array([0] * len(array), pa.uint8())
    return placeholder, {"kind": "apart", "of": description, "stream": file.getvalue()}


def _decode_apart(array: Any, description: Description) -> Any:
    stream = description["stream"]
    return decode_column(read_table(io.BytesIO(stream), len(stream)).column(0), description["of"])


def bare(values: Any) -> Any:
    """Give the array below an index or a series: one of pandas, or of numpy where that is all there is."""
    pd = importlib.import_module("pandas")
    np = importlib.import_module("numpy")
    array = values.array
    plain = isinstance(values.dtype, np.dtype) or type(array) is pd.arrays.NumpyExtensionArray
    return array.to_numpy() if plain else array


def bare_index(values: Any) -> Any:
    """Give an index of an array, without a look for another dtype that it might have."""
    return importlib.import_module("pandas").Index(values, dtype=values.dtype, tupleize_cols=False)


_DECODERS: Final[dict[str, Callable[[Any, Description], Any]]] = {
    "numpy": _decode_numpy,
    "moments": _decode_moments,
    "texts": _decode_texts,
    "objects": _decode_objects,
    "masked": _decode_masked,
    "string": _decode_text,
    "category": _decode_category,
    "zoned": _decode_zoned,
    "arrow": _decode_arrow,
    "period": _decode_period,
    "interval": _decode_interval,
    "sparse": _decode_sparse,
    "apart": _decode_apart,
}
