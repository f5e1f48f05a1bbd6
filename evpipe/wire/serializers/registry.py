"""Which serializer writes a value, and which one reads an artifact.

Standard library only: `@serializer` in a user's module comes here. A serializer of a library is in a module of its
own, which is imported when the first value of that library is met, or the first artifact of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from evpipe.core.names import check_name, nearest
from evpipe.errors import EvpipeError, UsageError
from evpipe.wire.extensions import LEAVES


class Stored(Protocol):
    """The bytes of an artifact, checked against their digest, for who reads it."""

    #: As `write` gave it.
    meta: Mapping[str, Any]
    size_bytes: int

    def open(self) -> BinaryIO:
        """Open the bytes from their start; the file may be seeked, and is the caller's to close."""

    def bytes(self) -> bytes:
        """Give all the bytes."""

    def folder(self) -> Path:
        """Make a folder that is this artifact's own and lives as long as the attempt (or the process) that reads it."""


class Serializer(Protocol):
    """Writes and reads the values of some types.

    Equal values must give equal bytes and equal meta, in every process: fingerprints go by them.
    """

    #: Names it on the wire: 1 to 64 of A-Z a-z 0-9 _ -.
    name: str
    #: Of what it writes.
    version: int

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        """Write a value, in memory that does not grow with its size where that can be.

        Args:
            file: may be written to and nothing else.

        Returns:
            What `read` needs beside the bytes: a small map of plain values (None, bool, int, float, str, lists, maps
            with text as keys), which is part of what the value is.

        Raises:
            Refused: if this value of the type cannot be written; says why.
        """

    def read(self, stored: Stored) -> Any:
        """Make the value. It must not run code that the bytes name.

        Raises:
            ArtifactUnreadable: if the bytes are none of this serializer's.
        """


class ArtifactUnreadable(EvpipeError):
    """An artifact cannot be read here: its serializer or a library of it is missing, or the bytes are none of it."""


#: Packages whose values have a serializer, by the first part of their classes' module, and the module that has it.
#: Such a module has `serializer_of(value) -> Serializer | None`.
LIBRARIES: Final = {
    "numpy": "evpipe.wire.serializers.numpy_arrays",
    "scipy": "evpipe.wire.serializers.sparse",
    "pandas": "evpipe.wire.serializers.pandas_frames",
    "polars": "evpipe.wire.serializers.polars_frames",
    "pyarrow": "evpipe.wire.serializers.arrow",
    "pathlib": "evpipe.wire.serializers.paths",
    "PIL": "evpipe.wire.serializers.images",
    "sklearn": "evpipe.wire.serializers.estimators",
    "torch": "evpipe.wire.serializers.torch_states",
    # A state of a module is an OrderedDict of tensors.
    "collections": "evpipe.wire.serializers.torch_states",
    "xgboost": "evpipe.wire.serializers.boosters",
    "lightgbm": "evpipe.wire.serializers.boosters",
    "catboost": "evpipe.wire.serializers.boosters",
}
#: Kinds of artifacts, and the module that has `SERIALIZERS`, a map of them by name.
KINDS: Final = {
    "numpy": "evpipe.wire.serializers.numpy_arrays",
    "scipy-sparse": "evpipe.wire.serializers.sparse",
    "pandas": "evpipe.wire.serializers.pandas_frames",
    "polars": "evpipe.wire.serializers.polars_frames",
    "arrow": "evpipe.wire.serializers.arrow",
    "file": "evpipe.wire.serializers.paths",
    "folder": "evpipe.wire.serializers.paths",
    "image": "evpipe.wire.serializers.images",
    "sklearn": "evpipe.wire.serializers.estimators",
    "torch": "evpipe.wire.serializers.torch_states",
    "xgboost": "evpipe.wire.serializers.boosters",
    "lightgbm": "evpipe.wire.serializers.boosters",
    "catboost": "evpipe.wire.serializers.boosters",
    "pickle": "evpipe.wire.serializers.pickles",
}
#: Kinds that no serializer of a user may have: those above, and values too large for an event.
RESERVED: Final = frozenset({*KINDS, "value"})

#: Beside leaves and the types of the standard library: what values are made of.
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset, bytearray})

#: Those of users, by the class that they write, and by name.
_by_class: dict[type, Serializer] = {}
_by_name: dict[str, Serializer] = {}


def register_serializer(cls: type, serializer: Serializer) -> None:
    """Add a serializer of a user's.

    It replaces itself, as when its module is loaded or its cell of a notebook is run again. For a class of a library
    that has a serializer here, it counts before that one.

    Raises:
        UsageError: if its name or version can be none, the name is one of evpipe's own, the class or the name has
            another serializer, or values of the class never come to one.
    """
    if not isinstance(cls, type):
        raise UsageError(f"a serializer is for a class, not for {cls!r}")
    check_name("serializer", serializer.name)
    if _never_comes(cls):
        raise UsageError(
            f"the serializer {serializer.name!r} would never be used: evpipe writes every {cls.__qualname__} by "
            "itself; write one for a class of your own"
        )
    if serializer.name in RESERVED:
        raise UsageError(f"the serializer of {cls.__qualname__} cannot be named {serializer.name!r}: evpipe has one")
    version = serializer.version
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 2**31:
        raise UsageError(f"serializer {serializer.name!r}: version must be a whole number from 1, not {version!r}")
    replaced: list[type] = []
    for known, its in _by_class.items():
        of_class = known is cls or (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
        if not of_class and its.name != serializer.name:
            continue
        # One class that is decorated twice does not replace itself, unless it is for the same.
        is_other = _written_as(its) is _written_as(serializer) and not (of_class and its.name == serializer.name)
        if is_other or not _is_same(its, serializer):
            raise UsageError(
                f"{_titled(serializer)} cannot be the serializer {serializer.name!r} of {cls.__qualname__}: "
                f"{_titled(its)} is the serializer {its.name!r} of {known.__qualname__}"
            )
        replaced.append(known)
    for known in replaced:
        del _by_name[_by_class.pop(known).name]
    _by_class[cls] = _by_name[serializer.name] = serializer


def _never_comes(cls: type) -> bool:
    """Say whether values of exactly this class are written before serializers are asked."""
    from evpipe.wire.standard import STANDARD_TYPES

    is_numpy_scalar = any((base.__module__, base.__name__) == ("numpy", "generic") for base in cls.__mro__)
    return cls in LEAVES or cls in _CONTAINERS or cls in STANDARD_TYPES or is_numpy_scalar


def _written_as(serializer: Serializer) -> Any:
    """Give the class that a user wrote."""
    return getattr(serializer, "written_as", type(serializer))


def _titled(serializer: Serializer) -> str:
    found = _written_as(serializer)
    return f"{found.__module__}.{found.__qualname__}"


def _is_same(one: Serializer, other: Serializer) -> bool:
    """Say whether both were made by the same lines, maybe of a module that is there as `__main__`, too."""
    found, wanted = _written_as(one), _written_as(other)
    if found.__qualname__ != wanted.__qualname__:
        return False
    return found.__module__ == wanted.__module__ or _file_of(found) == _file_of(wanted) is not None


def _file_of(cls: Any) -> str | None:
    code = getattr(getattr(cls, "write", None), "__code__", None)
    return None if code is None else code.co_filename


def is_registered(cls: type) -> bool:
    """Say whether a user gave a serializer for exactly this class: it counts before any other encoding."""
    return cls in _by_class


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value; None if nothing does."""
    for cls in type(value).__mro__:
        if cls in _by_class:
            return _by_class[cls]
        module = LIBRARIES.get(str(getattr(cls, "__module__", "")).partition(".")[0])
        if module is not None:
            found: Serializer | None = import_module(module).serializer_of(value)
            if found is not None:
                return found
    return None


def serializer_named(kind: str, version: int) -> Serializer:
    """Give what reads artifacts of a kind.

    Raises:
        ArtifactUnreadable: if there is nothing here that does, or only for another version.
    """
    found = _by_name.get(kind)
    if found is None and kind in KINDS:
        found = import_module(KINDS[kind]).SERIALIZERS[kind]
    if found is None:
        raise ArtifactUnreadable(
            f"an artifact of the kind {kind[:64]!r} cannot be read here: no serializer of that name is registered"
            f"{nearest(kind, _by_name)}; import the module that has its @serializer where the step's function is"
        )
    if found.version != version:
        raise ArtifactUnreadable(
            f"an artifact of the kind {kind!r} was written in version {version}: the serializer here is of version "
            f"{found.version}"
        )
    return found
