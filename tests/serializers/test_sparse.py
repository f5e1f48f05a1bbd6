"""Sparse matrices of scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.serializers.sparse import CLASSES, serializer_of
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

sp: Any = pytest.importorskip("scipy.sparse", reason="scipy is not installed")

_DENSE = np.array([[0, 1.5, 0, 0], [0, 0, 0, np.nan], [0, 0, 0, 0], [2, 0, -3, 0.0]])


def _matrices() -> list[Any]:
    made = [getattr(sp, name)(dense) for name in sorted(CLASSES) for dense in (_DENSE, _DENSE > 0)]
    made += [getattr(sp, name)((3, 5), dtype="i2") for name in sorted(CLASSES)]
    made.append(sp.coo_array((np.array([1, 2]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 2)))
    made.append(sp.coo_array(np.array([0, 1, 0, 2])))
    made.append(sp.coo_array(np.arange(8).reshape(2, 2, 2)))
    made.append(sp.csr_array((np.array([0.0, 5.0]), np.array([3, 1]), np.array([0, 2, 2])), shape=(2, 4)))
    wide = sp.csr_matrix(_DENSE)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    made.append(wide)
    return made


@pytest.mark.parametrize("matrix", _matrices(), ids=lambda matrix: f"{type(matrix).__name__}-{matrix.dtype}")
def test_matrices_come_back_as_they_were(matrix: Any) -> None:
    """Class, shape, dtype, and the parts with their own dtypes."""
    again = round_trip(matrix)
    assert type(again) is type(matrix)
    assert again.shape == matrix.shape
    assert again.dtype == matrix.dtype
    np.testing.assert_array_equal(again.toarray(), matrix.toarray())
    for part in ("data", "indices", "indptr", "offsets", "row", "col"):
        if hasattr(matrix, part) and matrix.format not in {"lil", "dok"}:
            assert getattr(again, part).dtype == getattr(matrix, part).dtype
            np.testing.assert_array_equal(getattr(again, part), getattr(matrix, part))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(CLASSES)),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0, 1),
    st.integers(0, 99),
    st.sampled_from(["f4", "f8", "c16", "i1", "u8"]),
)
def test_any_matrix_comes_back(name: str, rows: int, columns: int, density: float, seed: int, dtype: str) -> None:
    """Whatever is in it."""
    matrix = getattr(sp, name)(sp.random_array((rows, columns), density=density, rng=seed).astype(dtype))
    again = round_trip(matrix)
    assert again.nnz == matrix.nnz
    np.testing.assert_array_equal(again.toarray(), matrix.toarray())


def test_equal_matrices_have_equal_bytes() -> None:
    """The order in which a dict of keys was filled makes no difference, nor does the process."""
    one, other = sp.dok_array((2, 2)), sp.dok_array((2, 2))
    one[0, 1], one[1, 0] = 1, 2
    other[1, 0], other[0, 1] = 2, 1
    assert fingerprint(one) == fingerprint(other)
    assert fingerprints_elsewhere(__name__, "_matrices") == [fingerprint(matrix) for matrix in _matrices()]


def test_what_would_not_come_back_is_refused() -> None:
    """A class of somebody's own, and objects."""

    class Own(sp.csr_array):  # type: ignore[misc]
        pass

    with pytest.raises(Refused, match="Own"):
        written(Own(_DENSE))
    objects = sp.csr_array(_DENSE)
    objects.data = objects.data.astype(object)
    with pytest.raises(Refused, match="Python objects"):
        written(objects)
    assert serializer_of(object()) is None


def test_bad_parts_are_unreadable() -> None:
    """Indices that point outside the matrix are found before scipy follows them."""
    for name, part, value in [("csr_array", "indices", 99), ("csc_array", "indptr", 99), ("coo_array", "row", 99)]:
        matrix = getattr(sp, name)(_DENSE)
        getattr(matrix, part)[-1] = value
        _, data, meta = written(matrix)
        with pytest.raises(ArtifactUnreadable):
            read("scipy-sparse", data, meta)
    _, data, meta = written(sp.csr_array(_DENSE))
    for bad in (
        {},
        meta | {"class": "os_array"},
        meta | {"shape": [2, -2]},
        meta | {"shape": [2, 2]},
        meta | {"shape": []},
        meta | {"class": "dia_array"},
        meta | {"class": "coo_array"},
        meta | {"class": "bsr_array"},
    ):
        with pytest.raises(ArtifactUnreadable):
            read("scipy-sparse", data, bad)


def test_two_values_in_one_place_are_unreadable() -> None:
    """A dict of keys has one."""
    twice = sp.coo_array((np.array([1, 2]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 2))
    _, data, meta = written(twice)
    with pytest.raises(ArtifactUnreadable, match="one place"):
        read("scipy-sparse", data, meta | {"class": "dok_array"})


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_corrupted_bytes_are_unreadable_or_a_value(name: str) -> None:
    """No other exception comes out, whatever is broken."""
    assert check_corrupted(getattr(sp, name)(_DENSE), tries=100) > 20
