"""How a value of a user becomes bytes and comes back as what it was.

None, bool, int, float, str, bytes, list and dict with string keys are msgpack's own. Every other type has an extension
type (`extensions.py`). Tuples, NamedTuples, ints over 64 bits and the references of a graph's argument trees are packed
and unpacked here, by C in one pass; a value with any other type in it takes the way of `lowering.py` and
`restoring.py`, node by node. What has no encoding is refused there, with its place in the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import msgpack

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import OneOf, OutputRef, ParameterRef
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError
from evpipe.wire.artifacts import ArtifactReader, ArtifactWriter, artifact_form, artifact_of, is_key
from evpipe.wire.classes import check_class_count, class_name, find_class, layout_of, named_tuple_twin
from evpipe.wire.extensions import (
    ARTIFACT,
    INT,
    LEAVES,
    NAMED_TUPLE,
    ONE_OF,
    OUTPUT_REF,
    PARAMETER_REF,
    TUPLE,
    int_bytes,
)
from evpipe.wire.limits import DEPTH_MAX, INLINE_BYTES_MAX, ITEMS_MAX, LARGE_ITEMS_MAX, VALUE_BYTES_MAX
from evpipe.wire.serializers.registry import is_registered

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
#: What msgpack packs by itself and gives back as something else, or lets a value smuggle in.
_FOREIGN: Final = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})
_REFERENCES: Final = frozenset({OutputRef, ParameterRef, OneOf, Artifact})
_TEXT: Final = frozenset({str})
#: Levels that a payload may have around the deepest value in it.
WRAPPER_DEPTH_MAX: Final = 8
#: Classes of NamedTuples, looked up once per value.
NamedTuples: TypeAlias = dict[tuple[str, tuple[str, ...]], Any]
NOT_A_VALUE: Final = "not a value of this protocol"


class _NotPlain(Exception):
    """A type is inside that is restored node by node."""


class Decoding:
    """What one decoding knows and notes."""

    __slots__ = ("artifacts", "items_max", "named_tuples")

    def __init__(self, items_max: int, artifacts: list[Artifact] | None) -> None:
        self.items_max = items_max
        #: Classes of NamedTuples that were met.
        self.named_tuples: NamedTuples = {}
        #: Takes the artifacts that were met, in order; None: nobody asks.
        self.artifacts = artifacts


def pack(tree: Any, what: str, writer: ArtifactWriter | None = None, *, items_max: int = ITEMS_MAX) -> bytes:
    """Encode a value or an argument tree.

    Args:
        what: names the value in messages ("the output of step 'train'").
        writer: stores what has a serializer; None: that is refused.
        items_max: lists, maps and entries that the value may have.

    Raises:
        EncodingError: for a value of a type that has no encoding; says where in the value it is.
        LimitExceeded: if it is nested deeper than `DEPTH_MAX`.

    """
    data = pack_plain(tree, items_max=items_max)
    return _pack_lowered(tree, what, writer, items_max) if data is None else data


def pack_plain(tree: Any, *, items_max: int = ITEMS_MAX) -> bytes | None:
    """Encode a value that C packs in one pass; None if it is none."""
    if _well_formed(tree, containers_max=items_max, items_max=items_max):
        try:
            return pack_unchecked(tree)
        except (TypeError, ValueError, OverflowError, UnicodeError):
            pass  # a subclass of a list, a tuple or a dict, or a text with a lone surrogate
    return None


def packable(tree: Any, what: str, writer: ArtifactWriter | None = None) -> Any:
    """Give the tree as `pack_unchecked` takes it inside of a larger one: itself, if that is plain.

    Raises:
        EncodingError, LimitExceeded: as `pack`.

    """
    items_max = ITEMS_MAX if writer is None else LARGE_ITEMS_MAX
    data = pack_plain(tree, items_max=items_max)
    done = tree
    if data is None:
        from evpipe.wire.lowering import lowered

        # What the pass stores is stored once: the second look, at what is wrong, is without a writer.
        done = lowered(tree, what, writer=writer, items_max=items_max) if writer is not None else None
        try:
            data = pack_unchecked(done) if writer is not None else _pack_lowered(tree, what, None, items_max)
        except (TypeError, ValueError, OverflowError, UnicodeError) as error:
            lowered(tree, what, checked=True, writer=writer, items_max=items_max)
            raise EncodingError(f"{what} cannot be encoded: {error}") from error
        if writer is None:
            done = lowered(tree, what)
    if writer is None or len(data) <= INLINE_BYTES_MAX:
        return done
    from evpipe.wire.storing import store_constant

    return store_constant(data, tree, what, writer) or done


def _pack_lowered(tree: Any, what: str, writer: ArtifactWriter | None, items_max: int) -> bytes:
    from evpipe.wire.lowering import lowered

    try:
        return pack_unchecked(lowered(tree, what, writer=writer, items_max=items_max))
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        lowered(tree, what, checked=True, writer=writer, items_max=items_max)
        raise EncodingError(f"{what} cannot be encoded: {error}") from error


def unpack(
    data: bytes,
    *,
    items_max: int = ITEMS_MAX,
    reader: ArtifactReader | None = None,
    artifacts: list[Artifact] | None = None,
) -> Any:
    """Decode what `pack` made.

    Args:
        items_max: entries that one list or map may have.
        reader: gives the values of artifacts; None: they stay artifacts.
        artifacts: takes those that were met, in order.

    Raises:
        RemoteProtocolError: if the bytes are not such a value or go over a limit.

    """
    try:
        # Most payloads are a map of texts and numbers.
        found = _load(data, _extended, items_max)
        if type(found) is dict and LEAVES.issuperset(map(type, found.values())) and _TEXT.issuperset(map(type, found)):
            return found
    except _NotPlain:
        met: list[Artifact] = [] if artifacts is None else artifacts
        decoding = Decoding(items_max, met)
        try:
            found = _unpack(data, decoding, 0)
            whole = not met or reader is None
        except _NotPlain:
            whole = False
        if not whole:
            from evpipe.wire.restoring import restored

            met.clear()
            return restored(data, decoding, reader)
    if not _well_formed(found, DEPTH_MAX + WRAPPER_DEPTH_MAX, containers_max=len(data), items_max=len(data)):
        raise RemoteProtocolError(
            f"{NOT_A_VALUE}: nested too deep, a key that is not text or a type of another protocol"
        )
    return found


def _unpack(data: bytes, decoding: Decoding, depth: int) -> Any:
    if depth > DEPTH_MAX + 1:
        # Every level takes 50 KB of the C stack: a few hundred would kill the process.
        raise RemoteProtocolError(f"{NOT_A_VALUE}: nested deeper than {DEPTH_MAX} levels")
    return _load(data, lambda code, inner: _restore(code, inner, depth + 1, decoding), decoding.items_max)


def _extended(_code: int, _data: bytes) -> Any:
    raise _NotPlain


def _load(data: bytes, restore: Callable[[int, bytes], Any], items_max: int) -> Any:
    """Decode a value; `restore` makes those of the extension types in it."""
    try:
        return msgpack.unpackb(
            data, strict_map_key=True, ext_hook=restore, max_array_len=items_max, max_map_len=items_max
        )
    except (RemoteProtocolError, _NotPlain):
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException, OverflowError) as error:
        raise RemoteProtocolError(f"{NOT_A_VALUE}: {str(error) or type(error).__name__}") from error


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


def _well_formed(
    tree: Any, depth_max: int = DEPTH_MAX, containers_max: int = ITEMS_MAX, items_max: int = ITEMS_MAX
) -> bool:
    """Check, level by level, what msgpack does not: depth, length, that keys are strings, no types of its own."""
    level = [] if type(tree) in LEAVES else [tree]
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
                if type(node) in _REFERENCES:
                    continue
                return False
            nested = True
            if len(node) > items_max:
                return False
            children: Iterable[Any] = node
            if isinstance(node, dict):
                for key in node:
                    if type(key) is not str:
                        return False
                children = node.values()
            below += [child for child in children if type(child) not in LEAVES]
        depth += nested
        if depth > depth_max:
            return False
        level = below
    return True


def _extension(node: Any) -> msgpack.ExtType:
    """Encode what msgpack has no type for (called by it for each such node)."""
    cls = type(node)
    if cls is tuple:
        return msgpack.ExtType(TUPLE, pack_unchecked(list(node)))
    if cls is OutputRef:
        return msgpack.ExtType(OUTPUT_REF, msgpack.packb([node.step, list(node.path)]))
    if cls is ParameterRef:
        return msgpack.ExtType(PARAMETER_REF, msgpack.packb(node.name))
    if cls is OneOf:
        return msgpack.ExtType(ONE_OF, msgpack.packb([[ref.step, list(ref.path)] for ref in node.options]))
    if cls is int:
        return msgpack.ExtType(INT, int_bytes(node))
    if cls is Artifact:
        return msgpack.ExtType(ARTIFACT, pack_unchecked(artifact_form(node)))
    if isinstance(node, tuple):
        layout = layout_of(cls)
        if layout is not None and layout.code == NAMED_TUPLE and not is_registered(cls):
            return msgpack.ExtType(NAMED_TUPLE, pack_unchecked([class_name(cls), list(layout.fields), list(node)]))
    raise TypeError(cls.__name__)


def _restore(code: int, data: bytes, depth: int, decoding: Decoding) -> Any:
    if code == TUPLE:
        return tuple(as_list(_unpack(data, decoding, depth)))
    if code == NAMED_TUPLE:
        name, fields, values = as_list(_unpack(data, decoding, depth), 3)
        cls = class_of_named_tuple(name, fields, decoding.named_tuples)
        if len(as_list(values)) != len(fields):
            raise RemoteProtocolError("a named tuple whose fields and values do not fit")
        return tuple.__new__(cls, values)
    if code in {OUTPUT_REF, PARAMETER_REF, ONE_OF}:
        return reference(code, _unpack(data, decoding, depth))
    if code == ARTIFACT:
        artifact = artifact_of(_unpack(data, decoding, depth))
        if decoding.artifacts is not None:
            decoding.artifacts.append(artifact)
        return artifact
    if code == INT:
        return big_int(data)
    if 0 <= code < OUTPUT_REF:
        raise _NotPlain
    raise RemoteProtocolError(f"extension type {code} is not of this protocol")


def class_of_named_tuple(name: Any, fields: Any, known: NamedTuples) -> Any:
    """Give the class of this process, or a twin of it; RemoteProtocolError if it can be neither."""
    if not isinstance(name, str):
        raise RemoteProtocolError("a named tuple without a name")
    key = (name, as_texts(fields))
    cls = known.get(key)
    if cls is None:
        check_class_count(known)
        cls = known[key] = find_class(NAMED_TUPLE, *key) or named_tuple_twin(*key)
    return cls


def reference(code: int, content: Any) -> OutputRef | ParameterRef | OneOf:
    """Give the reference that the content of its extension type is."""
    if code == PARAMETER_REF:
        if not isinstance(content, str):
            raise RemoteProtocolError("a parameter reference that names no parameter")
        return ParameterRef(content)
    if code == ONE_OF:
        return OneOf(tuple(_output_ref(option) for option in as_list(content)))
    return _output_ref(content)


def _output_ref(content: Any) -> OutputRef:
    step, path = as_list(content, 2)
    if not isinstance(step, str) or not all(map(is_key, as_list(path))):
        raise RemoteProtocolError("an output reference that names no output")
    return OutputRef(step, tuple(path))


def big_int(data: bytes) -> int:
    """Give an int over 64 bits."""
    found = int.from_bytes(data, "big", signed=True)
    if _INT_MIN <= found <= _INT_MAX or int_bytes(found) != data:
        raise RemoteProtocolError("a large int that is none, or not as short as it can be")
    return found


def as_list(found: Any, length: int | None = None) -> list[Any]:
    """Refuse what is no list, or not of that length."""
    if not isinstance(found, list) or (length is not None and len(found) != length):
        raise RemoteProtocolError("an extension type with the wrong content")
    return found


def as_texts(found: Any) -> tuple[str, ...]:
    """Refuse what is no list of texts."""
    if not all(type(text) is str for text in as_list(found)):
        raise RemoteProtocolError("an extension type with the wrong content")
    return tuple(found)
