"""Arrays of numpy."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.numpy_arrays import serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

# Later versions of numpy warn of dates without a unit, which hypothesis makes.
pytestmark = pytest.mark.filterwarnings("ignore:The 'generic' unit:DeprecationWarning")

_PADDED = np.dtype([("a", "i1"), ("b", "<f8"), ("c", [("d", "<i2"), ("e", "<M8[s]")], (2,))], align=True)


def _arrays() -> list[np.ndarray[Any, Any]]:
    grid = np.arange(24, dtype="<i4").reshape(2, 3, 4)
    padded = np.empty(5, _PADDED)
    padded["a"], padded["b"], padded["c"]["d"] = range(5), 0.5, 7
    padded["c"]["e"] = np.datetime64("2024-02-29T12:00:00")
    return [
        grid,
        grid.T,
        grid[:, ::2, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        grid.astype(">i2"),
        np.array(3.5),
        np.array("text"),
        np.zeros((0, 3), np.complex64),
        np.zeros((3, 0)),
        np.array([True, False]),
        np.array([1.5, np.nan, -0.0, np.inf], np.float16),
        np.array([1 + 2j, complex(np.nan, -0.0)]),
        np.array(["", "ä\U0001f600", "long" * 9]),
        np.array([b"", b"a\0b"]),
        np.array([b"12345678"], "V8"),
        np.array(["2024-01-01", "NaT"], "M8[D]"),
        np.array([1, 2], ">M8[25us]"),
        np.array([1, -2], "m8[ns]"),
        np.array([(1, "x")], [("ключ", "<i8"), ("ß", "U3")]),
        np.array([(1, 2)], [(("title", "a"), "i4"), ("b", "u1")]),
        np.zeros(2, [(f"field_{i}", "f4") for i in range(4000)]),
        padded,
        padded[::2],
    ]


@pytest.mark.parametrize("array", _arrays(), ids=lambda array: f"{array.dtype.str}-{array.shape}")
def test_arrays_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    """Dtype, shape, order and every bit survive, and the array is one to write into."""
    again = round_trip(array)
    assert type(again) is np.ndarray
    assert again.dtype == array.dtype
    assert again.dtype.names == array.dtype.names
    assert again.shape == array.shape
    assert again.flags.writeable
    assert again.flags.f_contiguous == (array.flags.f_contiguous or (again.flags.c_contiguous and again.ndim < 2))
    np.testing.assert_array_equal(again, array)
    if array.dtype.kind in "fc":
        assert again.tobytes() == array.tobytes()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(allow_subarrays=True))
    .filter(lambda dtype: dtype.itemsize > 0 and "g" not in str(dtype.char) and "f16" not in str(dtype))
    .filter(lambda dtype: "f16" not in str(dtype.descr) and "c32" not in str(dtype.descr))
    .flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
)
def test_any_array_comes_back(array: np.ndarray[Any, Any]) -> None:
    """Whatever dtype and shape numpy has."""
    try:
        again = round_trip(array)
    except Refused as refused:
        # numpy itself makes other dtypes of some, such as texts of no length.
        assert "no size" in refused.problem or "comes back as" in refused.problem  # noqa: PT017
        return
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes() or array.dtype.fields


def test_numpy_reads_what_is_written() -> None:
    """The bytes are an npy file that numpy's own reader takes, and ours takes numpy's."""
    for array in _arrays():
        _, data, _ = written(array)
        np.testing.assert_array_equal(np.load(io.BytesIO(data), max_header_size=10**6), array)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            np.save(file, array, allow_pickle=False)
        np.testing.assert_array_equal(read("numpy", file.getvalue(), {}), array)


def test_known_subclasses_come_back_as_such() -> None:
    """A matrix stays a matrix and a record array keeps its attributes."""
    matrix = round_trip(np.asarray([[1, 2], [3, 4]]).view(np.matrix))
    assert type(matrix) is np.matrix
    assert matrix[0].shape == (1, 2)
    records = np.rec.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    again = round_trip(records)
    assert type(again) is np.recarray
    assert again.b.tolist() == [2.5, 4.5]
    assert again.dtype == records.dtype


@pytest.mark.parametrize(
    ("value", "problem", "hint"),
    [
        (np.array([{}, None]), "Python objects", "tolist"),
        (np.array([(1, "x")], [("a", "i4"), ("b", "O")]), "Python objects", "tolist"),
        (np.ma.MaskedArray([1, 2], [True, False]), "masked array", "filled"),
        (np.zeros(2, np.longdouble), "other machines", "float64"),
        (np.zeros(2, [("a", np.clongdouble)]), "other machines", "float64"),
        (np.array(["a", "b"], np.dtypes.StringDType()), "Python objects", "astype"),
        (np.zeros(2, np.dtype("i4", metadata={"a": 1})), "metadata", "asarray"),
        (np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]}), "order", "repack_fields"),
        (np.zeros(3, "V0"), "no size", "accepted"),
    ],
)
def test_what_would_not_come_back_is_refused(value: Any, problem: str, hint: str) -> None:
    """No pickle, no change of dtype: the message says what to do instead."""
    with pytest.raises(Refused) as caught:
        written(value)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_other_subclasses_are_refused(tmp_path: Any) -> None:
    """A class that would be lost is named, with the way out."""
    mapped = np.memmap(tmp_path / "m", np.uint8, "w+", shape=(4,))
    with pytest.raises(Refused, match="memmap") as caught:
        written(mapped)
    assert "numpy.asarray" in caught.value.hint
    assert serializer_of(np.float64(1)) is None
    assert serializer_of(np.random.default_rng(1)) is None


def test_equal_arrays_have_equal_bytes() -> None:
    """Garbage between fields, views and other processes make no difference."""
    garbage = np.frombuffer(bytes(range(160)) * 4, _PADDED, 5).copy()
    clean = np.zeros(5, _PADDED)
    for field in ("a", "b"):
        clean[field] = garbage[field]
    clean["c"]["d"], clean["c"]["e"] = garbage["c"]["d"], garbage["c"]["e"]
    assert fingerprint(garbage) == fingerprint(clean)
    grid = np.arange(12)
    assert fingerprint(np.repeat(grid, 2)[::2]) == fingerprint(grid)
    assert fingerprints_elsewhere(__name__, "_arrays") == [fingerprint(array) for array in _arrays()]


class _Bad:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was run",))


def _npy(descr: str, shape: str, data: bytes, version: int = 1, more: str = "") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {more}}}".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


@pytest.mark.parametrize(
    "data",
    [
        _npy("'|O'", "(1,)", pickle.dumps(_Bad())),
        _npy("[('a', '|O')]", "(1,)", pickle.dumps(_Bad())),
        pickle.dumps(_Bad()),
        _npy("'<f8'", "(1000000000000,)", b""),
        _npy("'<f8'", "(9223372036854775807, 9223372036854775807)", b""),
        _npy("'<f8'", "(-1,)", b""),
        _npy("'<f8'", "(True,)", b"x" * 8),
        _npy("'<f8'", "(1,)", b"1234567"),
        _npy("'<f8'", "(1,)", b"123456789"),
        _npy("'V0'", "(4611686018427387904,)", b""),
        _npy("'<f8'", "(" * 5000, b""),
        _npy("__import__('os').system('true')", "(1,)", b""),
        _npy("'<f8'", "(1,)", b"12345678", more="'x': 1"),
        _npy("'<f8'", "()", b"12345678", version=9),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"",
    ],
)
def test_bad_bytes_are_unreadable(data: bytes) -> None:
    """Pickles are not opened, and nothing is allocated that is not there."""
    with pytest.raises(ArtifactUnreadable):
        read("numpy", data, {})


def test_bad_meta_is_unreadable() -> None:
    """A class that is none of ours is not looked for."""
    _, data, _ = written(np.zeros(1))
    with pytest.raises(ArtifactUnreadable, match="memmap"):
        read("numpy", data, {"class": "memmap"})


@pytest.mark.parametrize("array", [_arrays()[i] for i in (0, 12, 17, 21)])
def test_corrupted_bytes_are_unreadable_or_a_value(array: np.ndarray[Any, Any]) -> None:
    """No other exception comes out, whatever is broken."""
    assert check_corrupted(array, tries=150) > 40
