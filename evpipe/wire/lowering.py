"""Values of all types as trees of what msgpack packs: the way of every value that is not plain.

`lowered` gives a tree in which an `ExtType` stands for each value of a type that msgpack does not have, or raises with
the place of the first one that has no encoding. `values.pack` comes here only if it must: plain values, tuples and
NamedTuples are packed by C in one pass.
"""

from __future__ import annotations

import enum
import functools
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgpack

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import OneOf, OutputRef, ParameterRef
from evpipe.errors import EncodingError, LimitExceeded
from evpipe.wire import classes, extensions
from evpipe.wire.artifacts import ArtifactWriter, artifact_form, canonical_form
from evpipe.wire.classes import EnumTwin, NumpyTwin, Twin, class_name, layout_of
from evpipe.wire.extensions import (
    ACCEPTED,
    ACCEPTED_STORED,
    EQUAL_HASHES_MAX,
    LEAVES,
    Refused,
    named,
    too_many_equal_hashes,
)
from evpipe.wire.limits import DEPTH_MAX, ITEMS_MAX
from evpipe.wire.numpy_scalars import is_numpy_scalar, numpy_form, without_payload
from evpipe.wire.serializers.registry import is_registered
from evpipe.wire.standard import STANDARD_TYPES, standard_form
from evpipe.wire.values import pack_unchecked

#: NaN is not itself: a set or a dict may have several, and so do the bytes.
_MAY_BE_NAN: Final = (float, complex)


def lowered(
    tree: Any,
    what: str,
    *,
    checked: bool = False,
    canonical: bool = False,
    writer: ArtifactWriter | None = None,
    items_max: int = ITEMS_MAX,
) -> Any:
    """Give a tree that msgpack packs.

    Args:
        what: names the value in messages.
        checked: whether texts are looked at, too: msgpack refuses those with lone surrogates by itself.
        canonical: whether values that are equal give the same tree: keys in order, NaN without its payload.
        writer: stores what has a serializer; None: that is refused.
        items_max: lists, maps and entries that it may have.

    Raises:
        EncodingError: for a value of a type that has no encoding; says where in the value it is.
        LimitExceeded: if it is nested deeper than `DEPTH_MAX`, or has more than `items_max` items.

    """
    try:
        lowering = Lowering(what, checked=checked, canonical=canonical, writer=writer, items_max=items_max)
        return lowering.node(tree, 0)
    except Refused as refused:
        path = "".join(reversed(refused.path))
        where = f" at {path}" if path else ""
        if refused.hint:
            advice = f" ({refused.hint})"
        elif refused.raised is not None:
            advice = ""
        else:
            # Nothing better is known to be said.
            advice = f"; accepted are {ACCEPTED if writer is None else ACCEPTED_STORED}"
        raise EncodingError(
            f"{what} cannot be encoded: {refused.problem}{where}{advice}", path=path, advice=advice
        ) from refused.raised


class Lowering:
    """One pass over one value."""

    def __init__(
        self, what: str, *, checked: bool, canonical: bool, writer: ArtifactWriter | None, items_max: int
    ) -> None:
        self._what = what
        self._canonical = canonical
        self._writer = writer
        self._items_max = items_max
        #: What needs no second look: a text may have to be checked, and a float to become the usual NaN.
        self._leaves = LEAVES - {str} if checked else LEAVES - {float} if canonical else LEAVES
        self._containers = 0

    def node(self, node: Any, depth: int) -> Any:
        cls = type(node)
        if cls in LEAVES:
            return self._leaf(node, cls)
        lower = _LOWER.get(cls)
        return self._other(node, cls, depth) if lower is None else lower(self, node, depth)

    def _leaf(self, node: Any, cls: type) -> Any:
        if cls is str:
            _check_text(node)
        elif cls is float and node != node and self._canonical:
            return float("nan")
        return node

    # ---- containers

    def _enter(self, length: int, depth: int) -> None:
        self._containers += 1
        if depth >= DEPTH_MAX:
            raise LimitExceeded(
                f"{self._what} is nested deeper than {DEPTH_MAX} levels (or contains itself)",
                limit="DEPTH_MAX",
                found=DEPTH_MAX + 1,
                allowed=DEPTH_MAX,
            )
        found = max(length, self._containers)
        if found > self._items_max:
            raise LimitExceeded(
                f"{self._what} has more than {self._items_max:,} items",
                limit="ITEMS_MAX",
                found=found,
                allowed=self._items_max,
            )

    def _items(self, node: Iterable[Any], length: int, depth: int) -> list[Any]:
        self._enter(length, depth)
        leaves, done = self._leaves, []
        try:
            for child in node:
                done.append(child if type(child) in leaves else self.node(child, depth + 1))  # noqa: PERF401
        except Refused as refused:
            refused.path.append(f"[{len(done)}]")
            raise
        return done

    def _list(self, node: list[Any], depth: int) -> Any:
        return self._items(node, len(node), depth)

    def _tuple(self, node: tuple[Any, ...], depth: int) -> Any:
        return self._extension(extensions.TUPLE, self._items(node, len(node), depth))

    def _dict(self, node: dict[Any, Any], depth: int) -> Any:
        if not all(type(key) is str for key in node):
            return self._keyed(node, depth)
        self._enter(len(node), depth)
        leaves, done = self._leaves, {}
        if str not in leaves:
            for key in node:
                _check_text(key, "a key that is ")
        try:
            for key, child in node.items():
                done[key] = child if type(child) in leaves else self.node(child, depth + 1)
        except Refused as refused:
            refused.path.append(f"[{key!r}]")
            raise
        return dict(sorted(done.items())) if self._canonical else done

    def _keyed(self, node: dict[Any, Any], depth: int) -> Any:
        self._enter(len(node), depth)
        self._check_hashes(node)
        pairs: list[tuple[bytes, Any, Any]] = []
        for key, child in node.items():
            try:
                lower_key = self.node(key, depth + 1)
                packed = self._packed(lower_key)
            except Refused as refused:
                refused.path.append(f".keys()[{len(pairs)}]")
                raise
            try:
                pairs.append((packed, lower_key, self.node(child, depth + 1)))
            except Refused as refused:
                refused.path.append(f"[{shown(key)}]")
                raise
        self._check_distinct(list(node), [packed for packed, _, _ in pairs], "dict with two keys")
        if self._canonical:
            pairs.sort(key=lambda pair: pair[0])
        return self._extension(extensions.DICT, [part for _, key, child in pairs for part in (key, child)])

    def _set(self, node: set[Any] | frozenset[Any], depth: int) -> Any:
        self._enter(len(node), depth)
        self._check_hashes(node)
        elements, done = list(node), []
        for element in elements:
            try:
                done.append(self._packed(self.node(element, depth + 1)))
            except Refused as refused:
                refused.path.append(f"{{{shown(element)}}}")
                raise
        self._check_distinct(elements, done, "set with two elements")
        # The order of a set differs from process to process; in that of the bytes equal sets have equal bytes.
        data = msgpack.Packer().pack_array_header(len(done)) + b"".join(sorted(done))
        return msgpack.ExtType(extensions.SET if type(node) is set else extensions.FROZENSET, data)

    def _check_hashes(self, node: Any) -> None:
        if len(node) > EQUAL_HASHES_MAX and too_many_equal_hashes(list(node)):
            raise Refused(f"{named(type(node))} with more than {EQUAL_HASHES_MAX:,} elements of one hash")

    def _check_distinct(self, elements: list[Any], packed: list[bytes], what: str) -> None:
        if len(set(packed)) == len(packed):
            return
        seen: set[bytes] = set()
        for element, data in zip(elements, packed, strict=True):
            if data in seen and not (isinstance(element, _MAY_BE_NAN) and element != element):
                raise Refused(f"a {what} that are encoded alike, {shown(element)}")
            seen.add(data)

    # ---- what is there by its class

    def _standard(self, node: Any, depth: int) -> Any:
        form = standard_form(node)
        assert form is not None, "only of the types that have one"
        if self._canonical and type(node) is complex:
            form = [self._leaf(part, type(part)) for part in form]
        return self._extension(extensions.STANDARD, [_checked_text(part) for part in form])

    def _other(self, node: Any, cls: type, depth: int) -> Any:
        if cls is EnumTwin:
            return self._enum(node.type_name, node.name, node.value, node.has_value, depth)
        if isinstance(node, Twin):
            return self._record(node._evpipe_code, cls, tuple(vars(node)), tuple(vars(node).values()), depth)
        if is_numpy_scalar(node) or cls is NumpyTwin:
            form = [_checked_text(part) for part in numpy_form(node)]
            return self._extension(extensions.NUMPY, without_payload(form) if self._canonical else form)
        layout = layout_of(cls)
        if self._writer is not None and (layout is None or layout.problem or is_registered(cls)):
            stored = self._writer.write(node)
            if stored is not None:
                return self._artifact(stored, depth)
        if layout is None:
            from evpipe.wire.refusals import hint_for

            raise Refused(named(cls), hint_for(node))
        if layout.problem:
            raise Refused(f"{named(cls)}, which is {layout.problem}")
        if layout.code == extensions.ENUM:
            bits = isinstance(node, enum.Flag)
            return self._enum(class_name(cls), None if bits else node._name_, node._value_, True, depth)
        if layout.code == extensions.NAMED_TUPLE:
            values = self._items(tuple.__iter__(node), tuple.__len__(node), depth)
            return self._extension(layout.code, [class_name(cls), list(layout.fields), values])
        return self._record(layout.code, cls, layout.fields, _field_values(node, cls, layout), depth)

    def _enum(self, type_name: str, name: str | None, value: Any, has_value: bool, depth: int) -> Any:
        parts: list[Any] = [type_name, name]
        if has_value:
            try:
                parts.append(self.node(value, depth + 1))
            except Refused:
                if name is None:
                    raise
                # Its name says which it is.
        return self._extension(extensions.ENUM, parts)

    def _record(self, code: int, cls: type, fields: tuple[str, ...], values: tuple[Any, ...], depth: int) -> Any:
        self._enter(len(fields), depth)
        done: list[Any] = []
        try:
            for child in values:
                done.append(self.node(child, depth + 1))  # noqa: PERF401
        except Refused as refused:
            refused.path.append(f".{fields[len(done)]}")
            raise
        return self._extension(code, [class_name(cls), list(fields), done])

    def _bytearray(self, node: bytearray, depth: int) -> Any:
        return msgpack.ExtType(extensions.BYTEARRAY, bytes(node))

    def _reference(self, node: OutputRef | ParameterRef | OneOf, depth: int) -> Any:
        return node

    def _artifact(self, node: Artifact, depth: int) -> Any:
        return self._extension(extensions.ARTIFACT, (canonical_form if self._canonical else artifact_form)(node))

    # ---- bytes

    def _extension(self, code: int, content: list[Any]) -> Any:
        return msgpack.ExtType(code, self._packed(content))

    def _packed(self, content: Any) -> bytes:
        try:
            return pack_unchecked(content)
        except UnicodeEncodeError:
            # Found by the pass with `checked`, which says where.
            raise _Surrogate from None


class _Surrogate(ValueError):
    """A text that msgpack cannot pack is inside."""


_LOWER: Final[dict[type, Callable[[Lowering, Any, int], Any]]] = {
    list: Lowering._list,
    tuple: Lowering._tuple,
    dict: Lowering._dict,
    set: Lowering._set,
    frozenset: Lowering._set,
    bytearray: Lowering._bytearray,
    OutputRef: Lowering._reference,
    ParameterRef: Lowering._reference,
    OneOf: Lowering._reference,
    Artifact: Lowering._artifact,
    **dict.fromkeys(STANDARD_TYPES, Lowering._standard),
}


def _field_values(node: Any, cls: type, layout: classes.Layout) -> tuple[Any, ...]:
    """Give the values of the fields; refuses what would be lost: an attribute that is no field."""
    for name in getattr(node, "__dict__", ()):
        # What a cached property has kept comes back when it is asked for.
        if name not in layout.fields and not isinstance(classes.static_attribute(cls, name), functools.cached_property):
            raise Refused(f"{named(cls)} with the attribute {name!r}, which is no field of it", "make it a field")
    for slot in layout.extra_slots:
        if hasattr(node, slot.__name__):
            raise Refused(f"{named(cls)} with the attribute {slot.__name__!r}, which is no field of it")
    values = []
    for name in layout.fields:
        try:
            values.append(getattr(node, name))
        except AttributeError:
            raise Refused(f"{named(cls)} whose field {name!r} is not set") from None
    return tuple(values)


def shown(value: Any) -> str:
    """Show a key or an element, shortly; its class may fail to."""
    try:
        return reprlib.repr(value)
    except Exception:  # noqa: BLE001 - code of a user
        return named(type(value))


def _check_text(text: str, what: str = "") -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{what}text with a lone surrogate ({text[:20]!a})") from None


def _checked_text(part: Any) -> Any:
    if type(part) is str:
        _check_text(part)
    return part
