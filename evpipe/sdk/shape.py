"""What is known of a value before it exists: its named parts and its length, from the return annotation.

A handle asks its shape whether a key, an index or a field can be there, so that a misspelt name is
refused at its line and not by a run an hour later. Where nothing is known, everything is allowed.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack, get_args, get_origin, is_typeddict

from evpipe.core.artifact import Key
from evpipe.core.bindings import BindingError
from evpipe.core.names import nearest
from evpipe.errors import UsageError
from evpipe.sdk.annotations import class_namespace, evaluate, return_annotation
from evpipe.sdk.functions import namespace_of

_SEQUENCES = (list, Sequence)


@dataclass(frozen=True, slots=True)
class Shape:
    """The default knows nothing."""

    #: Its keys or fields, in order; None: it has none, or they are not known.
    names: tuple[str, ...] | None = None
    #: How many values it unpacks to; None: not known, or (a TypedDict) not to its values.
    length: int | None = None
    #: Whether its names are attributes too.
    has_fields: bool = False
    #: Whether a value may lack some of its names (a TypedDict with keys that are not required).
    is_partial: bool = False
    #: Whether a part is always referred to by its name: the value may come as a tuple or as a dict.
    is_declared: bool = False
    #: Annotations of the parts, in order; a single one where `length` and `names` are None: it is of all parts.
    parts: tuple[Any, ...] = ()
    #: Of a mapped step, the shape of what each element gives: a text key is taken of each, a number is an index.
    each: Shape | None = None
    #: Where the annotations of the parts were written.
    namespace: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """The outputs that a step's value must have."""
        return None if self.is_partial else self.names

    def key(self, key: Key, of: str) -> Key:
        """Return the key by which a reference names this part.

        Args:
            of: names the value in the message ("the value of step 'train'").

        Raises:
            BindingError: if the value will have no such part.

        """
        if self.each is not None:
            return self.each.key(key, f"an element of {of}") if isinstance(key, str) else key
        if isinstance(key, str):
            if self.names is not None and key not in self.names:
                has = ", ".join(repr(name) for name in self.names) or "none"
                raise BindingError(f"{of} has no output {key!r}{nearest(key, self.names)} (it has {has})")
            if self.names is None and self.length is not None:
                raise BindingError(f"{of} has no output {key!r}: it is a tuple of {self.length} without names")
            return key
        if self.length is None:
            if self.names is not None:
                raise BindingError(f"{of} has no index {key}: its outputs are {of_names(self.names)}")
            return key
        if not -self.length <= key < self.length:
            raise BindingError(f"{of} has no index {key}: it has {self.length} part{'s' * (self.length != 1)}")
        key %= self.length
        return self.names[key] if self.is_declared and self.names is not None else key

    def part(self, key: Key) -> Shape:
        """Give the shape of a part that `key` allowed."""
        if self.each is not None:
            return Shape(each=self.each.part(key)) if isinstance(key, str) else self.each
        if not self.parts:
            return Shape()
        if self.names is None and self.length is None:
            index = 0
        elif isinstance(key, str):
            index = (self.names or ()).index(key)
        else:
            index = key
        return shape_of(self.parts[index], self.namespace)


def of_names(names: tuple[str, ...]) -> str:
    """Say how named outputs are taken: "['model'] and ['score']"."""
    return " and ".join(f"[{name!r}]" for name in names)


def shape_of(annotation: Any, namespace: dict[str, Any]) -> Shape:
    """Read an annotation.

    Args:
        namespace: globals of the module in which it was written.

    """
    annotation = evaluate(annotation, namespace)
    origin, arguments = get_origin(annotation), get_args(annotation)
    # A generic TypedDict or NamedTuple, `Pair[int]`, has the parts of its class.
    cls: Any = origin if isinstance(origin, type) else annotation
    if is_typeddict(cls):
        hints = cls.__annotations__
        return Shape(
            names=tuple(hints),
            is_partial=bool(cls.__optional_keys__),
            parts=tuple(hints.values()),
            namespace=class_namespace(cls),
        )
    if not isinstance(cls, type):
        return Shape()
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names = tuple(cls._fields)
        hints = getattr(cls, "__annotations__", {})
        parts = tuple(hints.get(name, Any) for name in names)
        return Shape(names=names, length=len(names), has_fields=True, parts=parts, namespace=class_namespace(cls))
    if origin is tuple and annotation is not typing.Tuple:  # noqa: UP006 - what users may have written
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return Shape(parts=arguments[:1], namespace=namespace)
        if any(get_origin(part) is Unpack or getattr(part, "__unpacked__", False) for part in arguments):
            return Shape()
        return Shape(length=len(arguments), parts=arguments, namespace=namespace)
    if len(arguments) == 1 and cls in _SEQUENCES:
        return Shape(parts=arguments, namespace=namespace)
    if len(arguments) == 2 and cls is dict:
        return Shape(parts=arguments[1:], namespace=namespace)
    return Shape()


def output_shape(fn: Callable[..., Any], declared: tuple[str, ...] | None, where: str) -> Shape:
    """Give the shape of what a step's function returns.

    Args:
        declared: its `outputs=` option.
        where: names the step in messages.

    Raises:
        UsageError: if `outputs=` and the return annotation do not agree.

    """
    annotation = return_annotation(fn)
    shape = shape_of(annotation, namespace_of(fn))
    if declared is None:
        return shape
    if shape.names is not None:
        if shape.names != declared:
            raise UsageError(
                f"{where}: outputs={declared!r} differs from the outputs {', '.join(shape.names)} that the return "
                f"type {annotation.__name__} names: leave outputs= out"
            )
        return shape
    if shape.length is not None and shape.length != len(declared):
        raise UsageError(
            f"{where}: outputs={declared!r} names {len(declared)} outputs, but the return type has {shape.length}"
        )
    parts = shape.parts if shape.length is not None else ()
    return Shape(names=declared, length=len(declared), is_declared=True, parts=parts, namespace=shape.namespace)
