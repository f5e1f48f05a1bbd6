"""Arrays of numpy (kind "numpy"): the npy format, which every tool knows, written and read here.

numpy's own writer leaves what was in memory between the fields of a structured dtype in the file, and its reader
allocates what the header says; both unpickle if asked to. The header is written as the format's description has it, so
that it does not depend on numpy's version. Scalars of numpy are not artifacts, see `numpy_scalars.py`.

Source: numpy.lib.format, "Format Version 1.0" to "3.0".
"""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.borders import fill, read_exactly, reading, refusing
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored

if TYPE_CHECKING:
    import numpy as np

_MAGIC: Final = b"\x93NUMPY"
#: A header has a line per field of the dtype; numpy itself writes up to 64 KiB before it changes the version.
_HEADER_BYTES_MAX: Final = 1024 * 1024
#: Elements per chunk while an array is written.
_CHUNK_ITEMS: Final = 64 * 1024
_DIMENSIONS_MAX: Final = 64
_ACCEPTED: Final = "bool, int, float, complex, str, bytes, void, datetime64, timedelta64 and structures of them"


class NumpySerializer:
    """Writes and reads arrays."""

    name = "numpy"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        import numpy as np

        if isinstance(value, np.ma.MaskedArray):
            raise Refused(
                "a masked array of numpy", "pass value.data and numpy.ma.getmaskarray(value), or value.filled()"
            )
        names = {np.ndarray: "ndarray", np.matrix: "matrix", np.recarray: "recarray"}
        name = names.get(type(value))
        if name is None:
            raise Refused(named(type(value)), "pass it as a plain array: numpy.asarray(value)")
        with refusing(f"a numpy array of the dtype {value.dtype}"):
            write_array(value.view(np.ndarray), file)
        return {} if name == "ndarray" else {"class": name}

    def read(self, stored: Stored) -> Any:
        with reading("numpy", "numpy"):
            import numpy as np

            classes = {"ndarray": np.ndarray, "matrix": np.matrix, "recarray": np.recarray}
            cls = classes.get(stored.meta.get("class", "ndarray"))
            if cls is None:
                raise ArtifactUnreadable(f"there is no class {stored.meta['class']!r:.100} of arrays")
            with stored.open() as file:
                array = read_array(file, stored.size_bytes)
                if file.read(1):
                    raise ArtifactUnreadable("there are bytes after the array")
            return array if cls is np.ndarray else array.view(cls)


SERIALIZERS: Final[dict[str, Serializer]] = {"numpy": NumpySerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of numpy; None if it is no array."""
    import numpy as np

    return SERIALIZERS["numpy"] if isinstance(value, np.ndarray) else None


def write_array(array: np.ndarray[Any, Any], file: BinaryIO) -> None:
    """Write an array in the npy format, in constant memory.

    Raises:
        Refused: if its dtype is none that bytes can hold.
    """
    import numpy as np

    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    file.write(_header(array, fortran))
    if not array.size:
        return
    padding = _padding(array.dtype)
    chunks: Iterable[Any] = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        buffersize=_CHUNK_ITEMS,
        order="F" if fortran else "C",
    )
    for chunk in chunks:
        if padding is None:
            file.write(chunk.tobytes())
            continue
        raw = np.frombuffer(chunk.tobytes(), np.uint8).reshape(len(chunk), array.dtype.itemsize).copy()
        raw[:, padding] = 0
        file.write(raw.tobytes())


def read_array(file: BinaryIO, size_bytes: int) -> np.ndarray[Any, Any]:
    """Read an array that begins where the file is.

    Args:
        size_bytes: of the whole file; the array is not larger than what is left of it.

    Raises:
        ArtifactUnreadable, ValueError: if there is none.
    """
    import numpy as np

    dtype, fortran, shape = check_header(file, size_bytes)
    count = math.prod(shape)
    array = np.empty(count, dtype)
    if count:
        fill(file, array.view(np.uint8).data)
    return array.reshape(shape, order="F" if fortran else "C")


def check_header(file: BinaryIO, size_bytes: int) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """Read the header of an array: its dtype, whether it is in Fortran's order, and its shape.

    Args:
        size_bytes: of the whole file; the array is not larger than what is left of it.

    Raises:
        ArtifactUnreadable, ValueError: if there is none, or a larger one.
    """
    dtype, fortran, shape = _read_header(file)
    count, left = math.prod(shape), size_bytes - file.tell()
    if count * dtype.itemsize > left:
        raise ArtifactUnreadable(f"an array of {count:,} times {dtype.itemsize} bytes in {left:,} bytes")
    return dtype, fortran, shape


def _header(array: np.ndarray[Any, Any], fortran: bool) -> bytes:
    descr = _descr(array.dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {tuple(map(int, array.shape))!r}, }}"
    try:
        data = text.encode("latin1")
        version, length = ((1, 0), "<H") if len(data) < 65_000 else ((2, 0), "<I")
    except UnicodeEncodeError:
        data, version, length = text.encode(), (3, 0), "<I"
    if len(data) > _HEADER_BYTES_MAX - 64:
        raise Refused("a numpy array whose dtype has too many fields", "pass its fields one by one, as a dict")
    before = len(_MAGIC) + 2 + struct.calcsize(length)
    data += b" " * (-(before + len(data) + 1) % 64) + b"\n"
    return _MAGIC + bytes(version) + struct.pack(length, len(data)) + data


def _descr(dtype: np.dtype[Any]) -> Any:
    """Give what names a dtype in a header.

    Raises:
        Refused: if it is one that would not come back.
    """
    import numpy as np

    if dtype.hasobject:
        hint = "pass it as a list, value.tolist(), or of a dtype such as str: value.astype(str)"
        raise Refused(f"a numpy array of the dtype {dtype}, which holds Python objects", hint)
    if any(part.type in {np.longdouble, np.clongdouble} for part in _scalars(dtype)):
        hint = "pass value.astype(numpy.float64) or numpy.complex128"
        raise Refused(f"a numpy array of the dtype {dtype}, which is another on other machines", hint)
    hint = f"accepted are {_ACCEPTED}"
    if any(part.metadata for part in (dtype, *_scalars(dtype))):
        raise Refused(f"a numpy array whose dtype {dtype} has metadata", "numpy.asarray(value, dtype=dtype.str)")
    if not dtype.itemsize:
        raise Refused(f"a numpy array of the dtype {dtype}, whose elements have no size", hint)
    try:
        descr = np.lib.format.dtype_to_descr(dtype)
        again = np.lib.format.descr_to_dtype(descr)
    except (ValueError, TypeError) as exc:
        hint = "numpy.lib.recfunctions.repack_fields(value)" if dtype.names else hint
        raise Refused(f"a numpy array of the dtype {dtype} ({exc})", hint) from exc
    if again != dtype:
        raise Refused(f"a numpy array of the dtype {dtype}, which comes back as {again}", hint)
    return descr


def _read_header(file: BinaryIO) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    import numpy as np

    magic = read_exactly(file, len(_MAGIC) + 2)
    version = tuple(magic[len(_MAGIC) :])
    if magic[: len(_MAGIC)] != _MAGIC or version not in {(1, 0), (2, 0), (3, 0)}:
        raise ArtifactUnreadable("there is no npy file")
    length = "<H" if version == (1, 0) else "<I"
    size = struct.unpack(length, read_exactly(file, struct.calcsize(length)))[0]
    if size > _HEADER_BYTES_MAX:
        raise ArtifactUnreadable(f"a header of {size:,} bytes: at most {_HEADER_BYTES_MAX:,} are allowed")
    # Only literals: nothing that the text names is run.
    header = ast.literal_eval(read_exactly(file, size).decode("utf-8" if version == (3, 0) else "latin1"))
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ArtifactUnreadable("a header that is none of an npy file")
    fortran, shape = header["fortran_order"], header["shape"]
    if type(fortran) is not bool or type(shape) is not tuple or len(shape) > _DIMENSIONS_MAX:
        raise ArtifactUnreadable("a header that is none of an npy file")
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ArtifactUnreadable(f"an array of the shape {shape}")
    dtype = np.lib.format.descr_to_dtype(header["descr"])
    if dtype.hasobject or not dtype.itemsize:
        raise ArtifactUnreadable(f"an array of the dtype {dtype}: objects are not read from bytes")
    return dtype, fortran, shape


def _scalars(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    """Give the dtypes that one is made of."""
    if dtype.subdtype is not None:
        return _scalars(dtype.subdtype[0])
    if dtype.fields is None:
        return [dtype]
    return [part for field in dtype.fields.values() for part in (field[0], *_scalars(field[0]))]


def _padding(dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """Mark the bytes of an element that belong to no field; None if there are none."""
    import numpy as np

    unused = np.ones(dtype.itemsize, bool)
    _mark(dtype, unused)
    return unused if unused.any() else None


def _mark(dtype: np.dtype[Any], unused: np.ndarray[Any, Any]) -> None:
    if dtype.subdtype is not None:
        base = dtype.subdtype[0]
        for element in unused.reshape(-1, base.itemsize) if base.itemsize else ():
            _mark(base, element)
    elif dtype.fields is not None:
        for field in dtype.fields.values():
            _mark(field[0], unused[field[1] : field[1] + field[0].itemsize])
    else:
        unused[:] = False
