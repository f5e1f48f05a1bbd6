"""How a value of a user becomes bytes and comes back as what it was.

None, bool, int (64 bits), float, str, bytes, list and dict with string keys are msgpack's own. A tuple,
and a tuple with named fields, have an extension type each, so they come back as what they were. The
references of a graph's argument trees have one each, too. Everything else is refused by name: further
types get an extension code here and their own module beside this one.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError
from evpipe.wire.limits import DEPTH_MAX, ITEMS_MAX, VALUE_BYTES_MAX

TUPLE: Final = 1
NAMED_TUPLE: Final = 2
OUTPUT_REF: Final = 16
PARAMETER_REF: Final = 17

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_PLAIN: Final = (type(None), bool, float)
_LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
#: What msgpack packs by itself and gives back as something else, or lets a value smuggle in.
_FOREIGN: Final = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})
#: Levels that a payload may have around the deepest value in it.
_WRAPPER_DEPTH_MAX: Final = 8
_ACCEPTED = "None, bool, int, float, str, bytes, list, tuple, NamedTuple and dict with string keys"

#: Named tuple classes met in this process, by (class name, fields). Data never imports a class: one that is
#: not known here comes back as a structural twin with the same name and fields.
_named_tuples: dict[tuple[str, tuple[str, ...]], Any] = {}


def register_named_tuple(cls: Any) -> None:
    """Make values of this NamedTuple class come back as instances of it."""
    _named_tuples.setdefault((cls.__name__, tuple(cls._fields)), cls)


def pack(tree: Any, what: str) -> bytes:
    """Encode a value or an argument tree.

    Args:
        what: names the value in messages ("the output of step 'train'").

    Raises:
        EncodingError: for a value of a type that has no encoding; says where in the value it is.
        LimitExceeded: if it is nested deeper than `DEPTH_MAX`.

    """
    if not _well_formed(tree):
        _explain(tree, what)
    try:
        return pack_unchecked(tree)
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        _explain(tree, what)
        raise EncodingError(f"{what} cannot be encoded: {error}") from error


def unpack(data: bytes, *, items_max: int = ITEMS_MAX) -> Any:
    """Decode what `pack` made.

    Args:
        items_max: entries that one list or map may have.

    Raises:
        RemoteProtocolError: if the bytes are not such a value or go over a limit.

    """
    found = _unpack(data, items_max, 0)
    if not _well_formed(found, DEPTH_MAX + _WRAPPER_DEPTH_MAX, containers_max=len(data)):
        raise RemoteProtocolError(
            "not a value of this protocol: nested too deep, a key that is not text or a type of another protocol"
        )
    return found


def _unpack(data: bytes, items_max: int, depth: int) -> Any:
    if depth > DEPTH_MAX + 1:
        # Every level takes 50 KB of the C stack: a few hundred would kill the process.
        raise RemoteProtocolError(f"not a value of this protocol: nested deeper than {DEPTH_MAX} levels")
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=True,
            ext_hook=lambda code, inner: _restore(code, inner, depth + 1),
            max_array_len=items_max,
            max_map_len=items_max,
        )
    except RemoteProtocolError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException, OverflowError) as error:
        raise RemoteProtocolError(f"not a value of this protocol: {str(error) or type(error).__name__}") from error


def encode_value(value: Any, what: str) -> bytes:
    """Encode what a step returned.

    Raises:
        EncodingError, LimitExceeded: as `pack`, and if it is larger than `VALUE_BYTES_MAX`.

    """
    data = pack(value, what)
    check_size(data, what, "VALUE_BYTES_MAX", VALUE_BYTES_MAX)
    return data


def check_size(data: bytes, what: str, limit: str, allowed: int) -> None:
    """Refuse bytes over a named limit."""
    if len(data) > allowed:
        raise LimitExceeded(
            f"{what} is {len(data):,} bytes when encoded: at most {allowed:,} are allowed",
            limit=limit,
            found=len(data),
            allowed=allowed,
        )


def pack_unchecked(tree: Any) -> bytes:
    """Encode a tree that is known to be well formed."""
    # One pass of C: strict_types keeps msgpack from taking a subclass, a tuple or a named tuple for its base,
    # and every type that it does not know comes to `_extension`.
    packed: bytes = msgpack.packb(tree, strict_types=True, default=_extension)
    return packed


def _well_formed(tree: Any, depth_max: int = DEPTH_MAX, containers_max: int = ITEMS_MAX) -> bool:
    """Check, level by level, what msgpack does not: depth, length, that keys are strings, no types of its own."""
    level = [] if type(tree) in _LEAVES else [tree]
    containers = depth = 0
    while level:
        containers += len(level)
        if containers > containers_max:
            return False
        below: list[Any] = []
        nested = False
        for node in level:
            if type(node) in _FOREIGN:
                return False
            if not isinstance(node, (list, tuple, dict)):
                continue  # a reference, or what `_extension` refuses
            nested = True
            if len(node) > ITEMS_MAX:
                return False
            children: Iterable[Any] = node
            if isinstance(node, dict):
                for key in node:
                    if type(key) is not str:
                        return False
                children = node.values()
            below += [child for child in children if type(child) not in _LEAVES]
        depth += nested
        if depth > depth_max:
            return False
        level = below
    return True


def _extension(node: Any) -> msgpack.ExtType:
    """Encode what msgpack has no type for (called by it for each such node)."""
    if isinstance(node, OutputRef):
        return msgpack.ExtType(OUTPUT_REF, msgpack.packb([node.step, list(node.path)]))
    if isinstance(node, ParameterRef):
        return msgpack.ExtType(PARAMETER_REF, msgpack.packb(node.name))
    cls = type(node)
    if cls is tuple:
        return msgpack.ExtType(TUPLE, pack_unchecked(list(node)))
    if isinstance(node, tuple) and hasattr(cls, "_fields"):
        if cls.__module__ != __name__:  # not a twin
            register_named_tuple(cls)
        return msgpack.ExtType(NAMED_TUPLE, pack_unchecked([cls.__name__, list(cls._fields), list(node)]))
    raise TypeError(type(node).__name__)


def _restore(code: int, data: bytes, depth: int) -> Any:
    if code == TUPLE:
        return tuple(_list(_unpack(data, ITEMS_MAX, depth)))
    if code == NAMED_TUPLE:
        name, fields, values = _list(_unpack(data, ITEMS_MAX, depth), 3)
        key = (str(name), tuple(str(f) for f in _list(fields)))
        if not key[0].isidentifier() or len(set(key[1])) != len(key[1]) or len(_list(values)) != len(key[1]):
            raise RemoteProtocolError("a named tuple whose name, fields and values do not fit")
        cls = _named_tuples.get(key) or _twin(*key)
        return cls._make(values)
    if code == OUTPUT_REF:
        step, path = _list(_unpack(data, ITEMS_MAX, depth), 2)
        if not isinstance(step, str) or not all(isinstance(key, (str, int)) for key in _list(path)):
            raise RemoteProtocolError("an output reference that names no output")
        return OutputRef(step, tuple(path))
    if code == PARAMETER_REF:
        name = _unpack(data, ITEMS_MAX, depth)
        if not isinstance(name, str):
            raise RemoteProtocolError("a parameter reference that names no parameter")
        return ParameterRef(name)
    raise RemoteProtocolError(f"extension type {code} is not of this protocol")


# Bounded: bytes from elsewhere must not fill this process's memory with classes; kept, because a class takes
# 0.1 ms to make and a value may hold thousands of the same.
@functools.lru_cache(maxsize=256)
def _twin(name: str, fields: tuple[str, ...]) -> Any:
    make: Any = collections.namedtuple  # made from data: its fields are no source
    return make(name, fields)


def _list(found: Any, length: int | None = None) -> list[Any]:
    if not isinstance(found, list) or (length is not None and len(found) != length):
        raise RemoteProtocolError("an extension type with the wrong content")
    return found


def _too_deep(what: str) -> LimitExceeded:
    return LimitExceeded(
        f"{what} is nested deeper than {DEPTH_MAX} levels (or contains itself)",
        limit="DEPTH_MAX",
        found=DEPTH_MAX + 1,
        allowed=DEPTH_MAX,
    )


def _explain(tree: Any, what: str) -> None:
    """Find the first node that cannot be encoded and raise for it, with its place in the value."""
    stack: list[tuple[Any, str, int]] = [(tree, "", 0)]
    items = 0
    while stack:
        node, path, depth = stack.pop()
        items += 1
        if depth > DEPTH_MAX:
            raise _too_deep(what)
        if items > ITEMS_MAX:
            raise LimitExceeded(
                f"{what} has more than {ITEMS_MAX:,} items", limit="ITEMS_MAX", found=items, allowed=ITEMS_MAX
            )
        problem = _problem(node)
        if problem:
            where = f" at {path}" if path else ""
            raise EncodingError(f"{what} cannot be encoded: {problem}{where}; accepted are {_ACCEPTED}", path=path)
        if isinstance(node, dict):
            stack.extend((child, f"{path}[{key!r}]", depth + 1) for key, child in reversed(node.items()))
        elif isinstance(node, (list, tuple)):
            children = list(enumerate(node))
            stack.extend((child, f"{path}[{i}]", depth + 1) for i, child in reversed(children))


def _problem(node: Any) -> str | None:
    cls = type(node)
    if cls in _FOREIGN:
        return _named(cls)
    if cls in _PLAIN or cls in (list, bytes, OutputRef, ParameterRef):
        return None
    if cls is int:
        return None if _INT_MIN <= node <= _INT_MAX else "an int of more than 64 bits"
    if cls is str:
        try:
            node.encode()
        except UnicodeEncodeError:
            return f"text with a lone surrogate ({node[:20]!a})"
        return None
    if cls is tuple or (isinstance(node, tuple) and hasattr(cls, "_fields")):
        return None
    if cls is dict:
        bad = next((key for key in node if type(key) is not str), None)
        return None if bad is None and all(type(k) is str for k in node) else f"a dict with the key {bad!r}"
    return f"a value of type {cls.__module__}.{cls.__qualname__}" if cls.__module__ != "builtins" else _named(cls)


def _named(cls: type) -> str:
    return f"{'an' if cls.__name__[0] in 'aeiou' else 'a'} {cls.__name__}"
