"""Sparse matrices and arrays of scipy (kind "scipy-sparse"): their parts, one npy file after another.

The class and the shape are in the meta. Indices keep their dtype, and what is read is checked before it is used: scipy
follows indices of a matrix that points outside itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.borders import meta_value, reading, refusing
from evpipe.wire.serializers.numpy_arrays import read_array, write_array
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored

_COMPRESSED: Final = ("data", "indices", "indptr")
#: The arrays that make a matrix, by its format. `lil` and `dok` are lists and a dict: written as `csr` and `coo`.
_PARTS: Final = {
    "csr": _COMPRESSED,
    "csc": _COMPRESSED,
    "bsr": _COMPRESSED,
    "dia": ("data", "offsets"),
}
_FORMATS: Final = ("csr", "csc", "bsr", "dia", "coo", "lil", "dok")
CLASSES: Final = frozenset(f"{format_}_{kind}" for format_ in _FORMATS for kind in ("matrix", "array"))
_DIMENSIONS_MAX: Final = 64


class SparseSerializer:
    """Writes and reads sparse matrices."""

    name = "scipy-sparse"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        name = type(value).__name__
        if name not in CLASSES or type(value) is not _class(name):
            raise Refused(named(type(value)), "pass it as a scipy.sparse.csr_array(value)")
        with refusing(f"a sparse matrix ({name}) of the dtype {value.dtype}"):
            for part in _parts(value):
                write_array(part, file)
            return {"class": name, "shape": [int(length) for length in value.shape]}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "scipy", "numpy"):
            import_module("scipy.sparse")
            name, shape = meta_value(stored.meta, "class", str), meta_value(stored.meta, "shape", list)
            if name not in CLASSES:
                raise ArtifactUnreadable(f"there is no class {name!r:.100} of sparse matrices")
            if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
                raise ArtifactUnreadable(f"a sparse matrix of the shape {shape!r:.200}")
            if not 0 < len(shape) <= _DIMENSIONS_MAX:
                raise ArtifactUnreadable(f"a sparse matrix of {len(shape)} dimensions")
            with stored.open() as file:
                parts = [read_array(file, stored.size_bytes) for _ in range(_parts_number(name, len(shape)))]
                if file.read(1):
                    raise ArtifactUnreadable("there are bytes after the matrix")
            return _made(name, tuple(shape), parts)


SERIALIZERS: Final[dict[str, Serializer]] = {"scipy-sparse": SparseSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of scipy; None if it is nothing sparse."""
    return SERIALIZERS["scipy-sparse"] if import_module("scipy.sparse").issparse(value) else None


def _class(name: str) -> Any:
    return getattr(import_module("scipy.sparse"), name)


def _parts(value: Any) -> list[Any]:
    format_ = value.format
    if format_ in _PARTS:
        return [getattr(value, name) for name in _PARTS[format_]]
    if format_ == "lil":
        return _parts(value.tocsr())
    coo = value
    if format_ == "dok":
        import numpy as np

        # A dict has the order in which it was filled: equal ones may have others.
        coo = value.tocoo()
        order = np.lexsort(coo.coords[::-1])
        return [coo.data[order], *(coords[order] for coords in coo.coords)]
    return [coo.data, *coo.coords]


def _parts_number(name: str, dimensions: int) -> int:
    format_ = name.partition("_")[0]
    if format_ in {"coo", "dok"}:
        return 1 + dimensions
    return len(_PARTS["csr" if format_ == "lil" else format_])


def _made(name: str, shape: tuple[int, ...], parts: list[Any]) -> Any:
    format_, _, kind = name.partition("_")
    for part in parts[1:]:
        if part.dtype.kind != "i" or part.ndim != 1:
            raise ArtifactUnreadable(f"a sparse matrix with indices of the dtype {part.dtype}")
    if format_ in {"coo", "dok"}:
        made = _class(f"coo_{kind}")((parts[0], tuple(parts[1:])), shape=shape)
        made.coords = tuple(parts[1:])
        return made if format_ == "coo" else _dok(made)
    if format_ == "dia":
        return _class(name)((parts[0], parts[1]), shape=shape)
    compressed = _class(f"csr_{kind}" if format_ == "lil" else name)(tuple(parts), shape=shape)
    compressed.check_format(full_check=True)
    # Its constructor chooses the dtype of indices.
    compressed.indices, compressed.indptr = parts[1], parts[2]
    return compressed.tolil() if format_ == "lil" else compressed


def _dok(coo: Any) -> Any:
    import numpy as np

    coords = np.stack(coo.coords)
    if np.unique(coords, axis=1).shape != coords.shape:
        raise ArtifactUnreadable("a sparse matrix with two values in one place")
    return coo.todok()
