"""Scalars of numpy: [dtype, bytes], little-endian; of `str_` and `bytes_` the text or the bytes themselves.

numpy is never imported here: who has such a scalar has imported it, and a process that has not gets a `NumpyTwin`.
"""

from __future__ import annotations

import re
import struct
import sys
from typing import Any, Final

from evpipe.wire.classes import NumpyTwin
from evpipe.wire.extensions import Refused

_DTYPE: Final = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]|<c(8|16)|<[Mm]8(\[[0-9]{0,9}[A-Za-z]{1,7}\])?")
_FLOATS: Final = {"<f2": "<e", "<f4": "<f", "<f8": "<d", "<c8": "<2f", "<c16": "<2d"}
_SIZE: Final = re.compile(r"[0-9]+")


def is_numpy_scalar(value: Any) -> bool:
    """Say whether it is one; False if numpy is not loaded."""
    generic = getattr(sys.modules.get("numpy"), "generic", None)
    return generic is not None and isinstance(value, generic)


def numpy_form(value: Any) -> list[Any]:
    """Give the scalar as it travels.

    Raises:
        Refused: if its dtype is none of a number, a bool, a text, bytes, a date or a duration.
    """
    if type(value) is NumpyTwin:
        return [value.dtype, value.data]
    numpy: Any = sys.modules["numpy"]
    if type(value) is numpy.str_:
        return ["U", str.__str__(value)]
    if type(value) is numpy.bytes_:
        return ["S", bytes(value)]
    dtype = value.dtype.newbyteorder("<")
    if not _DTYPE.fullmatch(dtype.str) or type(value) is not dtype.type:
        raise Refused(f"a numpy scalar of the type {type(value).__name__}")
    return [dtype.str, numpy.asarray(value).astype(dtype).tobytes()]


def numpy_value(dtype: Any, data: Any) -> Any:
    """Give the scalar of a form.

    Raises:
        ValueError, TypeError: if there is none.
    """
    if not isinstance(dtype, str) or not isinstance(data, str if dtype == "U" else bytes):
        raise TypeError("no numpy scalar")
    if dtype not in {"U", "S"}:
        if not _DTYPE.fullmatch(dtype):
            raise ValueError("a dtype of another protocol")
        size = _SIZE.search(dtype)
        if size is None or len(data) != int(size[0]):
            raise ValueError("a numpy scalar of the wrong length")
        if dtype == "|b1" and data not in {b"\0", b"\1"}:
            raise ValueError("neither true nor false")
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "frombuffer"):
        return NumpyTwin(dtype, data)
    if dtype == "U":
        return numpy.str_(data)
    if dtype == "S":
        return numpy.bytes_(data)
    return numpy.frombuffer(data, dtype=numpy.dtype(dtype)).astype(numpy.dtype(dtype).newbyteorder("="))[0]


def without_payload(form: list[Any]) -> list[Any]:
    """Give the form with every NaN in it the usual one: NaN equals NaN in a digest."""
    layout = _FLOATS.get(form[0])
    if layout is None:
        return form
    parts = struct.unpack(layout, form[1])
    if all(part == part for part in parts):
        return form
    return [form[0], struct.pack(layout, *(part if part == part else float("nan") for part in parts))]
