"""Bytes as values of all types: the way back of what `lowering.py` made.

msgpack gives plain trees with an `ExtType` where a value of another type stands; this pass puts the values there, from
the inside out, and checks on the way what it meets. Nothing is imported for data, and no code of a class runs but
`__hash__` and `__eq__` of what is in a set or is a key.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgpack

from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError
from evpipe.wire import extensions
from evpipe.wire.artifacts import ArtifactReader, artifact_of
from evpipe.wire.classes import EnumTwin, check_class_count, check_class_name, find_class, record_twin, static_attribute
from evpipe.wire.extensions import LEAVES, too_many_equal_hashes
from evpipe.wire.limits import DEPTH_MAX
from evpipe.wire.lowering import lowered
from evpipe.wire.numpy_scalars import numpy_form, numpy_value
from evpipe.wire.standard import standard_form, standard_value
from evpipe.wire.values import (
    NOT_A_VALUE,
    WRAPPER_DEPTH_MAX,
    Decoding,
    as_list,
    as_texts,
    big_int,
    class_of_named_tuple,
    pack_unchecked,
    reference,
)


def restored(data: bytes, decoding: Decoding, reader: ArtifactReader | None = None) -> Any:
    """Decode a value of any type.

    Args:
        reader: gives the values of artifacts; None: they stay artifacts.

    Raises:
        RemoteProtocolError: if the bytes are not one, or go over a limit.

    """
    try:
        return _Restoring(decoding, reader).node(_load(data, decoding.items_max), 0)
    except RecursionError as error:
        raise RemoteProtocolError(f"{NOT_A_VALUE}: {error}") from error


def _load(data: bytes, items_max: int) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=True, max_array_len=items_max, max_map_len=items_max)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException, OverflowError) as error:
        raise RemoteProtocolError(f"{NOT_A_VALUE}: {str(error) or type(error).__name__}") from error


class _Restoring:
    """One pass over one value."""

    def __init__(self, decoding: Decoding, reader: ArtifactReader | None) -> None:
        self._reader = reader
        self._artifacts = decoding.artifacts
        self._items_max = decoding.items_max
        #: Classes are looked up once per value.
        self._named_tuples = decoding.named_tuples
        self._makers: dict[tuple[int, str, tuple[str, ...]], Callable[[list[Any]], Any]] = {}
        self._members: dict[bytes, Any] = {}

    def node(self, node: Any, depth: int) -> Any:
        cls = type(node)
        if cls in LEAVES:
            return node
        if cls is msgpack.ExtType:
            return self._extension(node.code, node.data, depth)
        if cls is list:
            _enter(depth)
            for i, child in enumerate(node):
                if type(child) not in LEAVES:
                    node[i] = self.node(child, depth + 1)
            return node
        if cls is dict:
            _enter(depth)
            for key, child in node.items():
                if type(key) is not str:
                    raise RemoteProtocolError(f"{NOT_A_VALUE}: a key that is not text")
                if type(child) not in LEAVES:
                    node[key] = self.node(child, depth + 1)
            return node
        raise RemoteProtocolError(f"{NOT_A_VALUE}: a {cls.__name__}, which is a type of another protocol")

    def _extension(self, code: int, data: bytes, depth: int) -> Any:
        restore = _RESTORE.get(code)
        if restore is None:
            raise RemoteProtocolError(f"extension type {code} is not of this protocol")
        return restore(self, data, depth)

    def _items(self, data: bytes, depth: int) -> list[Any]:
        _enter(depth)  # before what is in it is read: a level takes memory
        found: list[Any] = self.node(as_list(self._load(data)), depth)
        return found

    def _tuple(self, data: bytes, depth: int) -> Any:
        return tuple(self._items(data, depth))

    def _set(self, data: bytes, depth: int) -> Any:
        return _hashed(self._items(data, depth), set)

    def _frozenset(self, data: bytes, depth: int) -> Any:
        return _hashed(self._items(data, depth), frozenset)

    def _dict(self, data: bytes, depth: int) -> Any:
        parts = self._items(data, depth)
        if len(parts) % 2:
            raise RemoteProtocolError("a dict with a key that has no value")
        return _hashed(parts[::2], lambda keys: dict(zip(keys, parts[1::2], strict=True)))

    def _artifact(self, data: bytes, depth: int) -> Any:
        artifact = artifact_of(self.node(self._load(data), depth))
        if self._artifacts is not None:
            self._artifacts.append(artifact)
        return artifact if self._reader is None else self._reader.read(artifact)

    def _reference(self, code: int, data: bytes) -> Any:
        return reference(code, self._load(data))

    def _load(self, data: bytes) -> Any:
        return _load(data, self._items_max)

    def _int(self, data: bytes, depth: int) -> Any:
        return big_int(data)

    def _bytearray(self, data: bytes, depth: int) -> Any:
        return bytearray(data)

    def _standard(self, data: bytes, depth: int) -> Any:
        name, *parts = as_list(self._load(data)) or [None]
        parts = [_part(part) for part in parts]
        if not isinstance(name, str):
            raise RemoteProtocolError("a value of a type without a name")
        try:
            value = standard_value(name, parts)
            same = pack_unchecked(standard_form(value)) == data
        except RemoteProtocolError:
            raise
        except Exception as error:
            raise RemoteProtocolError(f"a {name} that is none: {str(error)[:200] or type(error).__name__}") from error
        if not same:
            raise RemoteProtocolError(f"a {name} that is not in its one form")
        return value

    def _numpy(self, data: bytes, depth: int) -> Any:
        dtype, content = as_list(self._load(data), 2)
        try:
            value = numpy_value(dtype, content)
            same = pack_unchecked(numpy_form(value)) == data
        except Exception as error:
            raise RemoteProtocolError(f"a numpy scalar that is none: {str(error)[:200]}") from error
        if not same:
            raise RemoteProtocolError("a numpy scalar that is not in its one form")
        return value

    # ---- what is named by its class

    def _named_tuple(self, data: bytes, depth: int) -> Any:
        _enter(depth)
        name, fields, values = as_list(self._load(data), 3)
        cls = class_of_named_tuple(name, fields, self._named_tuples)
        if len(as_list(values)) != len(fields):
            raise RemoteProtocolError("a named tuple whose fields and values do not fit")
        return tuple.__new__(cls, self.node(values, depth))

    def _record(self, code: int, data: bytes, depth: int) -> Any:
        _enter(depth)
        name, fields, values = as_list(self._load(data), 3)
        key = (code, check_class_name(name), as_texts(fields))
        if len(as_list(values)) != len(fields):
            raise RemoteProtocolError("a value whose fields and values do not fit")
        make = self._makers.get(key)
        if make is None:
            check_class_count(self._makers)
            make = self._makers[key] = _maker(*key)
        return make(self.node(values, depth))

    def _dataclass(self, data: bytes, depth: int) -> Any:
        return self._record(extensions.DATACLASS, data, depth)

    def _struct(self, data: bytes, depth: int) -> Any:
        return self._record(extensions.STRUCT, data, depth)

    def _enum(self, data: bytes, depth: int) -> Any:
        if data not in self._members:
            self._members[data] = self._member(data, depth)
        return self._members[data]

    def _member(self, data: bytes, depth: int) -> Any:
        type_name, name, *value = _at_least_two(as_list(self._load(data)))
        type_name = check_class_name(type_name)
        if len(value) > 1 or not (isinstance(name, str) or (name is None and value and type(value[0]) is int)):
            raise RemoteProtocolError("a member of an enum that is none")
        cls = find_class(extensions.ENUM, type_name, ())
        member = None if cls is None else _member_of(cls, name, value)
        if member is not None:
            try:
                form = lowered(member, "a member")
            except (EncodingError, LimitExceeded):
                form = None
            # A class whose member of that name has another value is not the one that is meant.
            if form is not None and form.data == data:
                return member
        return EnumTwin(type_name, name, self.node(value[0], depth + 1) if value else None, bool(value))


_RESTORE: Final[dict[int, Callable[[_Restoring, bytes, int], Any]]] = {
    extensions.TUPLE: _Restoring._tuple,
    extensions.NAMED_TUPLE: _Restoring._named_tuple,
    extensions.SET: _Restoring._set,
    extensions.FROZENSET: _Restoring._frozenset,
    extensions.DICT: _Restoring._dict,
    extensions.INT: _Restoring._int,
    extensions.BYTEARRAY: _Restoring._bytearray,
    extensions.STANDARD: _Restoring._standard,
    extensions.ENUM: _Restoring._enum,
    extensions.DATACLASS: _Restoring._dataclass,
    extensions.STRUCT: _Restoring._struct,
    extensions.NUMPY: _Restoring._numpy,
    extensions.ARTIFACT: _Restoring._artifact,
    extensions.OUTPUT_REF: lambda self, data, depth: self._reference(extensions.OUTPUT_REF, data),
    extensions.ONE_OF: lambda self, data, depth: self._reference(extensions.ONE_OF, data),
    extensions.PARAMETER_REF: lambda self, data, depth: self._reference(extensions.PARAMETER_REF, data),
}


def _at_least_two(found: list[Any]) -> list[Any]:
    if len(found) < 2:
        raise RemoteProtocolError("an extension type with the wrong content")
    return found


def _enter(depth: int) -> None:
    if depth >= DEPTH_MAX + WRAPPER_DEPTH_MAX:
        raise RemoteProtocolError(f"{NOT_A_VALUE}: nested deeper than {DEPTH_MAX} levels")


def _part(part: Any) -> Any:
    """Give a part of a standard value: a leaf, or an int over 64 bits."""
    if type(part) is msgpack.ExtType and part.code == extensions.INT:
        return big_int(part.data)
    if type(part) not in LEAVES:
        raise RemoteProtocolError("an extension type with the wrong content")
    return part


def _hashed(elements: list[Any], make: Callable[[list[Any]], Any]) -> Any:
    try:
        if too_many_equal_hashes(elements):
            raise RemoteProtocolError("a set or a dict made to be slow: too many elements have the same hash")
        found = make(elements)
    except RemoteProtocolError:
        raise
    except Exception as error:
        raise RemoteProtocolError(f"a set or a dict with an element that has no hash: {str(error)[:200]}") from error
    if len(found) != len(elements):
        raise RemoteProtocolError("a set or a dict with an element that is there twice")
    return found


def _maker(code: int, name: str, fields: tuple[str, ...]) -> Callable[[list[Any]], Any]:
    """Give what makes a value of its fields' values, without running code of its class."""
    cls = find_class(code, name, fields)
    if cls is not None and code == extensions.STRUCT:
        cls = _without_post_init(cls)
        if cls is not None:
            return _struct_maker(cls, find_class(code, name, fields), fields)
    twin = record_twin(code, name, fields)

    def make(values: list[Any]) -> Any:
        for candidate in (cls, twin):
            if candidate is None:
                continue
            try:
                found: Any = object.__new__(candidate)
                for field, value in zip(fields, values, strict=True):
                    object.__setattr__(found, field, value)
            except (TypeError, AttributeError):
                continue  # an abstract class, or slots that are not those of its fields
            return found
        raise RemoteProtocolError(f"a value of {name[:80]!r} that cannot be made")

    return make


def _struct_maker(made: Any, cls: Any, fields: tuple[str, ...]) -> Callable[[list[Any]], Any]:
    def make(values: list[Any]) -> Any:
        found = made(**dict(zip(fields, values, strict=True)))
        if made is not cls:
            found.__class__ = cls
        return found

    return make


def _without_post_init(cls: Any) -> Any:
    """Give the Struct class, or a subclass that does not run its `__post_init__`; None if there can be none."""
    if static_attribute(cls, "__post_init__") is None:
        return cls
    hook = static_attribute(cls, "__init_subclass__")
    if hook is not object.__dict__["__init_subclass__"]:
        return None  # it would run
    namespace = {"__post_init__": lambda self: None, "__module__": __name__}
    try:
        return type(cls)(cls.__name__, (cls,), namespace, frozen=False)
    except (TypeError, ValueError):
        return None


def _member_of(cls: Any, name: str | None, value: list[Any]) -> Any:
    """Give the member of an enum of that name, or a flag of those bits; None if it has none."""
    if name is not None:
        return static_attribute(cls, "_member_map_").get(name)
    if enum.Flag not in cls.__mro__:
        return None
    found = static_attribute(cls, "_value2member_map_").get(value[0])
    if found is None:
        try:
            # The standard library's own, which makes the member of several bits; not one that the class may have.
            found = enum.Flag._missing_.__func__(cls, value[0])  # type: ignore[attr-defined]  # a classmethod
        except (ValueError, TypeError):
            return None
    return found
