"""Classes of users on the wire: they are named, never imported.

A class travels as `module:qualname`. A reader looks the name up among classes given to `register_class`, then along
the attributes of a module that is loaded already, then among classes met while encoding in this process (those
inside functions, which no path leads to). It counts only if it is of the same kind and has the same fields in the same
order; else there is a *twin*, which has the name and the fields, and is encoded to the same bytes.

Nothing here runs code of a module or a class: attributes are read from `__dict__`s, past `__getattr__`, descriptors
and metaclasses.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import keyword
import sys
import types
import weakref
from collections.abc import Sized
from typing import Any, ClassVar, Final, NoReturn

import msgpack

from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.extensions import DATACLASS, ENUM, NAMED_TUPLE, STRUCT
from evpipe.wire.limits import CLASSES_MAX

NAME_CHARS_MAX: Final = 512
_HEAP_TYPE: Final = 1 << 9
_TWIN: Final = "_evpipe_twin"

_module_of: Final = type.__dict__["__module__"].__get__
_qualname_of: Final = type.__dict__["__qualname__"].__get__
_mro_of: Final = type.__dict__["__mro__"].__get__
_namespace_of: Final = type.__dict__["__dict__"].__get__


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What of a class matters for its values."""

    #: Its extension type.
    code: int
    #: Empty for an enum.
    fields: tuple[str, ...] = ()
    #: Why its values do not travel, or "".
    problem: str = ""
    #: Slots that are no fields.
    extra_slots: tuple[Any, ...] = ()


#: Given to `register_class`, by name.
_registered: dict[str, type] = {}
#: Met while encoding. Weak: a function that makes a class each time it is called must not fill the memory.
_met: weakref.WeakValueDictionary[tuple[int, str, tuple[str, ...]], type] = weakref.WeakValueDictionary()
_layouts: weakref.WeakKeyDictionary[type, Layout] = weakref.WeakKeyDictionary()


def register_class(cls: type, name: str | None = None) -> None:
    """Make values that name this class come back as instances of it.

    Args:
        name: `module:qualname`, where it is not the class's own: that of a class that was moved.

    Raises:
        UsageError: if values of the class cannot travel.
    """
    layout = layout_of(cls)
    if layout is None or layout.problem:
        reason = layout.problem if layout else "it is no NamedTuple, dataclass, Enum or msgspec Struct"
        raise UsageError(f"values of {class_name(cls)} cannot travel: {reason}")
    _registered[class_name(cls) if name is None else name] = cls


def class_name(cls: type) -> str:
    """Give the name of a class as it travels; of a twin that of the class that it stands for."""
    namespace = _namespace_of(cls)
    if _TWIN in namespace:
        return str(namespace[_TWIN])
    module = _module_of(cls)
    # A child of a worker loads a script under its file's name and puts it in the place of `__main__`: both ways
    # its classes are those of `__main__`.
    if module != "__main__" and module in sys.modules and sys.modules[module] is sys.modules.get("__main__"):
        module = "__main__"
    return f"{module}:{_qualname_of(cls)}"


def layout_of(cls: type) -> Layout | None:
    """Give what matters of a class; None if it is of no kind that travels."""
    try:
        return _layouts[cls]
    except KeyError:
        pass
    found = _layout(cls)
    if found is None:
        return None
    _layouts[cls] = found
    if not found.problem and _TWIN not in _namespace_of(cls):
        _met[found.code, class_name(cls), found.fields] = cls
        if found.code == NAMED_TUPLE:
            # Logs of the first version have the class's own name only.
            _met[found.code, cls.__name__, found.fields] = cls
    return found


def find_class(code: int, name: str, fields: tuple[str, ...]) -> type | None:
    """Give the class of this process that a value names; None if there is none of that kind with those fields."""
    for cls in (_registered.get(name), _by_path(name), _met.get((code, name, fields))):
        if cls is not None:
            layout = layout_of(cls)
            if layout is not None and layout.code == code and layout.fields == fields and not layout.problem:
                return cls
    return None


def check_class_name(name: object) -> str:
    """Refuse what cannot be the name of a class."""
    if isinstance(name, str) and 0 < len(name) <= NAME_CHARS_MAX and _is_name(last_part(name)):
        return name
    raise RemoteProtocolError(f"the name of a class that is none: {str(name)[:80]!r}")


def check_class_count(known: Sized) -> None:
    """Refuse a value that names too many."""
    if len(known) >= CLASSES_MAX:
        raise RemoteProtocolError(f"a value that names more than {CLASSES_MAX:,} classes")


def last_part(name: str) -> str:
    """Give the class's own name."""
    return name.rpartition(":")[2].rpartition(".")[2]


def static_attribute(cls: type, name: str) -> Any:
    """Give an attribute of a class as it stands in it or in one of its bases, or None."""
    for base in _mro_of(cls):
        if name in _namespace_of(base):
            return _namespace_of(base)[name]
    return None


def _by_path(name: str) -> type | None:
    module_name, _, path = name.partition(":")
    found: Any = sys.modules.get(module_name)
    if not issubclass(type(found), types.ModuleType):
        return None
    namespace = object.__getattribute__(found, "__dict__")
    for part in path.split("."):
        found = namespace.get(part)
        if not issubclass(type(found), type):
            return None
        namespace = _namespace_of(found)
    # Under another name it would not be encoded to the same bytes.
    return found if class_name(found) == name else None


def _layout(cls: type) -> Layout | None:
    mro = _mro_of(cls)
    if enum.Enum in mro:
        return _checked(cls, Layout(ENUM))
    if tuple in mro:
        fields = static_attribute(cls, "_fields")
        # What msgpack packs as it is: a value that is one would come back as another.
        if cls is not msgpack.ExtType and type(fields) is tuple and all(type(name) is str for name in fields):
            return Layout(NAMED_TUPLE, fields)
        return None
    msgspec: Any = sys.modules.get("msgspec")
    struct: Any = getattr(msgspec, "Struct", None)
    # A metaclass of a user's own would be asked for the fields, and called for each value.
    if struct is not None and struct in mro and type(cls) is type(struct):
        fields = getattr(cls, "__struct_fields__")  # noqa: B009 - mypy knows no such attribute
        return _checked(cls, Layout(STRUCT, tuple(fields)))
    if isinstance(static_attribute(cls, "__dataclass_fields__"), dict):
        return _checked(cls, _dataclass_layout(cls))
    return None


def _dataclass_layout(cls: type) -> Layout:
    fields = tuple(field.name for field in dataclasses.fields(cls))
    problem = ""
    extra_slots: list[Any] = []
    for base in _mro_of(cls):
        if base is not object and base.__module__ != "typing" and not base.__flags__ & _HEAP_TYPE:
            problem = f"a dataclass that is a {base.__name__}, too"
        if _TWIN not in _namespace_of(base) and base is not Twin:
            extra_slots += [
                found
                for name, found in _namespace_of(base).items()
                if isinstance(found, types.MemberDescriptorType) and name not in fields
            ]
    for name in fields:
        found = static_attribute(cls, name)
        if hasattr(type(found), "__set__") and not isinstance(found, types.MemberDescriptorType):
            problem = f"a dataclass whose field {name!r} is a descriptor"
    return Layout(DATACLASS, fields, problem, tuple(extra_slots))


def _checked(cls: type, layout: Layout) -> Layout:
    if layout.problem:
        return layout
    if not all(map(may_be_field, layout.fields)):
        return dataclasses.replace(layout, problem="a class with a field that starts with two underscores")
    name = class_name(cls)
    if len(name) > NAME_CHARS_MAX or not _is_name(last_part(name)):
        return dataclasses.replace(layout, problem=f"a class with the name {name[:80]!r}")
    return layout


def may_be_field(name: object) -> bool:
    """Say whether a twin can have a field of this name: `__class__` and the like are no fields."""
    return isinstance(name, str) and _is_name(name) and not name.startswith(("__", "_evpipe"))


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


# ---- twins


class Twin:
    """A value of a dataclass or a msgspec Struct that this process does not have: its fields are attributes.

    It is compared and hashed by its bytes: what its class compares is not known, so two are equal only if all is.
    """

    _evpipe_twin: ClassVar[str] = ""
    _evpipe_code: ClassVar[int] = 0

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _bytes_of(self) == _bytes_of(other)

    def __hash__(self) -> int:
        return hash(_bytes_of(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"<{type(self)._evpipe_twin}>({shown})"


class EnumTwin:
    """A member of an enum that this process does not have, or has with another value. Bits of a flag have no name."""

    __slots__ = ("has_value", "name", "type_name", "value")

    type_name: str
    name: str | None
    value: Any
    has_value: bool

    def __init__(self, type_name: str, name: str | None, value: Any, has_value: bool = True) -> None:
        for slot, found in zip(("type_name", "name", "value", "has_value"), (type_name, name, value, has_value)):  # noqa: B905
            object.__setattr__(self, slot, found)

    __setattr__ = Twin.__setattr__
    __delattr__ = Twin.__delattr__

    def __eq__(self, other: object) -> bool:
        if type(other) is not EnumTwin:
            return NotImplemented
        return _bytes_of(self) == _bytes_of(other)

    def __hash__(self) -> int:
        return hash((self.type_name, self.name))

    def __repr__(self) -> str:
        return f"<{self.type_name}.{self.name}: {self.value!r}>"


@dataclasses.dataclass(frozen=True, slots=True)
class NumpyTwin:
    """A numpy scalar in a process that has not imported numpy."""

    dtype: str
    data: bytes | str


def _bytes_of(twin: object) -> bytes:
    from evpipe.wire.values import pack

    return pack(twin, "a twin")


# Bounded: bytes from elsewhere must not fill this process's memory with classes; kept, because a class takes
# 0.1 ms to make and a value may hold thousands of the same.
@functools.lru_cache(maxsize=256)
def named_tuple_twin(name: str, fields: tuple[str, ...]) -> Any:
    """Make the twin of a NamedTuple class.

    Raises:
        RemoteProtocolError: if the name or the fields cannot be those of one.
    """
    make: Any = collections.namedtuple  # made from data: its fields are no source
    try:
        twin = make(last_part(check_class_name(name)), fields, rename=True)
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError(f"a named tuple whose fields are none: {error}") from error
    # A field such as `_0` was renamed by the class that it is of; any other must stay what it is.
    if twin._fields != fields:
        raise RemoteProtocolError("a named tuple whose fields are none")
    setattr(twin, _TWIN, name)
    return twin


@functools.lru_cache(maxsize=256)
def record_twin(code: int, name: str, fields: tuple[str, ...]) -> type:
    """Make the twin of a dataclass or a msgspec Struct class.

    Raises:
        RemoteProtocolError: if the name or the fields cannot be those of one.
    """
    check_class_name(name)
    if len(set(fields)) != len(fields) or not all(map(may_be_field, fields)):
        raise RemoteProtocolError(f"a value of {name[:80]!r} whose fields are none")
    return dataclasses.make_dataclass(
        last_part(name),
        [(field, Any) for field in fields],
        bases=(Twin,),
        namespace={_TWIN: name, "_evpipe_code": code, "__doc__": f"Stands for {name}, which is not here."},
        init=False,
        repr=False,
        eq=False,
    )
