"""Placeholders: what stands in a pipeline for a value that is not there yet.

A `Handle` is what a step call gives, a `ParameterHandle` what `Pipeline.param` gives. To a type checker either
is the value; at run time it can be passed on, and a handle can be indexed and, where its length is known,
unpacked. Whatever else Python may do with a value is refused at that line: code that goes on with a
placeholder as if it were the value goes wrong much later and far away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from evpipe.core.artifact import Key
from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.errors import NotKnownYet, UsageError
from evpipe.sdk.shape import Shape, of_names

if TYPE_CHECKING:
    from evpipe.sdk.build import Build


class Placeholder:
    """What refuses every use but being passed on."""

    # All names are private: a public one would hide a field of a NamedTuple.
    __slots__ = ("_build", "_ref")

    _build: Build
    _ref: OutputRef | ParameterRef

    def __init__(self, build: Build, ref: OutputRef | ParameterRef) -> None:
        for name, value in (("_build", build), ("_ref", ref)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name.endswith("_"):
            # A protocol asks whether it may (`__array_interface__`, `_repr_html_`), a debugger looks around.
            raise AttributeError(name)
        return self._attribute(name)

    # Equality makes a condition, and identity is all that a debugger or a dict of handles needs.
    __hash__ = object.__hash__

    def __and__(self, other: object) -> Any:
        return _and(self) & other

    def __rand__(self, other: object) -> Any:
        return other & _and(self)

    def __or__(self, other: object) -> Any:
        return _and(self) | other

    def __ror__(self, other: object) -> Any:
        return other | _and(self)

    def _attribute(self, name: str) -> Any:
        raise not_known_yet(self, f"asked for its attribute {name!r}", _RETURN_IT)


class ParameterHandle(Placeholder):
    """The value of a parameter of a `Pipeline`."""

    __slots__ = ()

    _ref: ParameterRef

    def __repr__(self) -> str:
        return f"<parameter {self._ref.name!r} of pipeline {self._build.pipeline!r}>"


class Handle(Placeholder):
    """The value of a step, or of a part of it, in the pipeline that is being built."""

    __slots__ = ("_shape",)

    _ref: OutputRef
    _shape: Shape

    def __init__(self, build: Build, ref: OutputRef, shape: Shape) -> None:
        super().__init__(build, ref)
        object.__setattr__(self, "_shape", shape)

    def __getitem__(self, key: object) -> Handle:
        if isinstance(key, slice):
            raise not_known_yet(self, "sliced", "pass it whole to a step and slice it there")
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise not_known_yet(
                self, f"indexed by {key!r}", "take a part by a text key or a whole number, or index it in a step"
            )
        return self._part(key)

    def __iter__(self) -> Iterator[Handle]:
        length = self._shape.length
        if length is None:
            names = self._shape.names
            instead = (
                f"its outputs are {of_names(names)}"
                if names
                else f"pass it whole to a step (to unpack it, annotate {self._ref.step!r} with a fixed tuple[A, B])"
            )
            raise not_known_yet(self, "iterated over or unpacked", instead)
        return iter([self._part(index) for index in range(length)])

    def __len__(self) -> int:
        if self._shape.length is None:
            raise not_known_yet(self, "measured with len()", "take its length in a step")
        return self._shape.length

    def __repr__(self) -> str:
        return f"<handle {self._ref} of pipeline {self._build.pipeline!r}>"

    def _attribute(self, name: str) -> Handle:
        shape = self._shape
        if shape.has_fields:
            return self._part(name)
        if shape.names:
            raise not_known_yet(self, f"asked for its attribute {name!r}", f"its outputs are {of_names(shape.names)}")
        raise not_known_yet(self, f"asked for its attribute {name!r}", _RETURN_IT)

    def _part(self, key: Key) -> Handle:
        if self._build.ended:
            raise UsageError(self._build.foreign(self))
        key = self._shape.key(key, describe(self._ref))
        return Handle(self._build, OutputRef(self._ref.step, (*self._ref.path, key)), self._shape.part(key))


class ExitHandle(Placeholder):
    """What an `on_exit` handler is told of its run; there is a run in whichever pipeline it is a handler."""

    __slots__ = ()

    def __init__(self, ref: OutputRef) -> None:
        object.__setattr__(self, "_ref", ref)

    def __repr__(self) -> str:
        return f"<{self._ref}>"


def describe(ref: OutputRef | ParameterRef) -> str:
    """Name a value for a person: "the value of step 'train'", "train['score']", "the parameter 'rows'"."""
    if isinstance(ref, ParameterRef):
        return f"the parameter {ref.name!r}"
    return str(ref) if ref.path else f"the value of step {ref.step!r}"


def not_known_yet(handle: Placeholder, done: str, instead: str) -> NotKnownYet:
    """Make the error for a use of a handle or a parameter.

    Args:
        done: what was done with it ("compared").
        instead: what to do about it.

    """
    what = describe(handle._ref)
    return NotKnownYet(f"{what} is not known while the pipeline is being built, so it cannot be {done}: {instead}")


_RETURN_IT = "use it in a step and return what you need"
_IN_A_STEP = "pass it to a step and do that there"
_SHOW = "pass it to a step and show it there (repr() names the handle)"

#: What Python may do with a value -> the special methods by which it does it, and what to do instead.
_REFUSED: dict[str, tuple[str, str]] = {
    "used as a condition": ("bool", "give it to a step as when=…, or pass it to a step and decide there"),
    "searched with in": ("contains", "pass it to a step and search it there"),
    "reversed": ("reversed", _IN_A_STEP),
    "calculated with": (
        (
            "add sub mul matmul truediv floordiv mod divmod pow lshift rshift xor "
            "radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rxor "
            "neg pos abs invert round trunc floor ceil"
        ),
        "pass it to a step and calculate there",
    ),
    "made a number": ("int float complex index", _IN_A_STEP),
    "made an array": ("array", _IN_A_STEP),
    "made text": ("str format", _SHOW),
    "made bytes or a path": ("bytes fspath", _IN_A_STEP),
    "called": ("call", "pass it to a step and call it there"),
    "awaited": ("await", "a step that takes it as an argument runs when it is there"),
    # A handle may be indexed and, where its length is known, iterated over and measured; a parameter never.
    "indexed": ("getitem", "pass it to a step and index it there"),
    "iterated over": ("iter next aiter anext", "pass it whole to a step"),
    "measured with len()": ("len", "take its length in a step"),
    "entered with `with`": ("enter exit aenter aexit", "pass it to a step and enter it there"),
    "changed": ("setattr delattr setitem delitem", "pass it to a step that returns the changed value"),
    "copied or pickled": ("copy deepcopy reduce reduce_ex", "pass the handle itself on, to as many steps as need it"),
}


def _and(placeholder: Placeholder) -> Any:
    from evpipe.sdk.condition import as_condition

    return as_condition(placeholder)


def _comparison(sign: str) -> Callable[[Placeholder, object], Any]:
    def compare(self: Placeholder, other: object) -> Any:
        # Here, for conditions are made of handles.
        from evpipe.sdk.condition import compared

        return compared(sign, self, other)

    return compare


for _method, _sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Placeholder, f"__{_method}__", _comparison(_sign))


def _refusal(done: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: Placeholder, *_: Any, **__: Any) -> NoReturn:
        raise not_known_yet(self, done, instead)

    return refuse


# By a table, because seventy methods that differ in a word would hide the word.
for _done, (_methods, _instead) in _REFUSED.items():
    for _method in _methods.split():
        setattr(Placeholder, f"__{_method}__", _refusal(_done, _instead))
