"""What `step.map(...)` is given: lists to map over, and what is the same for every element."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeVar, cast, overload

from evpipe.core.artifact import LEVELS_MAX
from evpipe.core.mapping import Mapped, Place
from evpipe.errors import UsageError

T = TypeVar("T")

#: Things that an error says of arguments.
SHOWN_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Unmapped:
    """What `unmapped` gives."""

    value: Any


class Elements(list[T]):
    """What `step.map(...)` gives, to a type checker: a list, of which a text key is taken of each element."""

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, key: SupportsIndex, /) -> T: ...
        @overload
        def __getitem__(self, key: slice, /) -> list[T]: ...
        @overload
        def __getitem__(self, key: str, /) -> Elements[Any]: ...
        def __getitem__(self, key: Any, /) -> Any: ...


def unmapped(value: T) -> T:
    """Give every element of a mapped step the whole of a list, as in `train.map(depths, data=unmapped(rows))`."""
    found: Any = Unmapped(value)
    return cast("T", found)


def read_mapped(
    bound: inspect.BoundArguments, stands_for_value: Callable[[object], bool], where: str, product: bool, levels: int
) -> tuple[inspect.BoundArguments, Mapped]:
    """Find what a call of `map` maps over.

    Args:
        stands_for_value: says of an argument whether it may turn out to be a list.

    Returns:
        The arguments as they are to be bound, with lists for ranges and without `unmapped`; and how they are mapped.

    Raises:
        UsageError: if there is nothing to map over, lists that go in step differ in length, or an option is wrong.
    """
    for option, is_given in (("product", product is not False), ("levels", levels != 1)):
        if is_given and option in bound.signature.parameters and option not in bound.arguments:
            raise UsageError(
                f"{where}: {option!r} is one of its parameters and an option of map: the former is given by position, "
                f"or in args={{{option!r}: …}} of Pipeline.map"
            )
    if not isinstance(product, bool):
        raise UsageError(f"{where}: product must be True or False, not {product!r}")
    if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= LEVELS_MAX:
        raise UsageError(f"{where}: levels must be a whole number from 1 to {LEVELS_MAX}, not {levels!r}")
    places: list[Place] = []
    #: What each of the other arguments is, and how it is made a list, if it can be.
    others: list[tuple[str, str]] = []
    lengths: dict[Place, int] = {}
    for place, name, value in _places(bound):
        if isinstance(value, Unmapped):
            _put(bound, name, place, value.value)
            continue
        if isinstance(value, range):
            value = list(value)
            _put(bound, name, place, value)
        if stands_for_value(value):
            places.append(place)
        elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            lengths[place] = len(value)
            places.append(place)
        elif isinstance(value, Iterator):
            raise UsageError(f"{where}: {_shown(place)} is an iterator: map takes lists, so make it one with list(...)")
        else:
            others.append((f"{_shown(place)} is a {type(value).__name__}", _way_to_list(value)))
    if not places:
        raise UsageError(f"{where}: nothing to map over: {_told(others)}")
    if not product and len(set(lengths.values())) > 1:
        told = ", ".join(f"{_shown(place)} has {length:,}" for place, length in lengths.items())
        raise UsageError(
            f"{where} is mapped over lists of different lengths: {told}; unmapped(...) makes one the same for all "
            "elements, product=True takes every combination"
        )
    return bound, Mapped(places=tuple(places), product=product, levels=levels)


def _places(bound: inspect.BoundArguments) -> Iterator[tuple[Place, str, Any]]:
    """Yield each argument: where it will be in the graph, the parameter that takes it, and it."""
    signature = bound.signature.parameters
    by_position = any(p.kind is p.VAR_POSITIONAL and bound.arguments.get(p.name) for p in signature.values())
    count = 0
    for name, value in list(bound.arguments.items()):
        parameter = signature[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            for child in value:
                yield count, name, child
                count += 1
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            by_position and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            yield count, name, value
            count += 1
        elif parameter.kind is parameter.VAR_KEYWORD:
            for key, child in value.items():
                yield key, name, child
        else:
            yield name, name, value


def _put(bound: inspect.BoundArguments, name: str, place: Place, value: Any) -> None:
    parameter = bound.signature.parameters[name]
    if parameter.kind is parameter.VAR_KEYWORD:
        bound.arguments[name] = {**bound.arguments[name], place: value}
    elif parameter.kind is parameter.VAR_POSITIONAL:
        assert isinstance(place, int)
        before = sum(1 for p, n, _ in _places(bound) if isinstance(p, int) and n != name)
        values = list(bound.arguments[name])
        values[place - before] = value
        bound.arguments[name] = tuple(values)
    else:
        bound.arguments[name] = value


def _told(others: list[tuple[str, str]]) -> str:
    """Say of what is no list what it is, and how those that can be are made one."""
    told = [f"{given}: {way}" for given, way in others if way]
    if not told:
        told = ["give at least one list, or a handle of one", *(given for given, _ in others)]
    return "; ".join(told[:SHOWN_MAX])


def _way_to_list(value: Any) -> str:
    """Say how to make a list of what may have been meant as one; "": it is the same for every element."""
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        return ""
    # Arrays, by what they can do: nothing here knows their libraries. What has no dimension is a number.
    if getattr(value, "shape", None) and callable(getattr(value, "tolist", None)):
        return "make it a list with .tolist()"
    if isinstance(value, Collection) and not hasattr(value, "shape"):
        return "make it a list with list(...)"
    return ""


def _shown(place: Place) -> str:
    return f"argument {place!r}" if isinstance(place, str) else f"positional argument {place + 1}"
