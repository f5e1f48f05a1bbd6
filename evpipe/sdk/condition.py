"""Conditions of users: what a comparison of a handle gives, and `not_` and `one_of`.

heads = flip()
win = announce.options(when=heads == "heads")(…)
lose = console.options(when=not_(heads == "heads") & (stake > 3))(…)
report(one_of(win, lose))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

from evpipe.core import conditions
from evpipe.core.bindings import OneOf, OutputRef, Tree
from evpipe.core.states import RUN_ENDS
from evpipe.errors import NotKnownYet, UsageError
from evpipe.sdk.handle import ExitHandle, Handle, Placeholder

T = TypeVar("T")


class Condition:
    """What a comparison of a handle gives: true or false when the run comes to it. For `when=`."""

    __slots__ = ("_depth", "_make", "_parts", "_shown", "_sign")

    def __init__(
        self,
        make: Callable[[Callable[[Any], Tree]], conditions.Condition],
        shown: str,
        *,
        sign: str = "",
        parts: tuple[Condition, ...] = (),
    ) -> None:
        #: Makes the core's condition; is given what makes a tree of a value.
        self._make = make
        self._shown = shown
        #: What it is made of, with what between them.
        self._sign, self._parts = sign, parts
        self._depth: int = 1 + max((part._depth for part in parts), default=-1)
        if self._depth > conditions.DEPTH_MAX:
            raise UsageError(f"a condition has at most {conditions.DEPTH_MAX} levels of &, | and not_ in each other")

    def __and__(self, other: object) -> Condition:
        return _combined(conditions.AllOf, "&", self, other)

    def __rand__(self, other: object) -> Condition:
        return _combined(conditions.AllOf, "&", other, self)

    def __or__(self, other: object) -> Condition:
        return _combined(conditions.AnyOf, "|", self, other)

    def __ror__(self, other: object) -> Condition:
        return _combined(conditions.AnyOf, "|", other, self)

    def __invert__(self) -> Condition:
        return not_(self)

    def __bool__(self) -> NoReturn:
        raise NotKnownYet(
            f"the condition {self._shown} is not known while the pipeline is being built, so it cannot be used in "
            "`if`, `and`, `or` or `not`: give it to a step as when=…, and combine conditions with &, | and not_()"
        )

    def __repr__(self) -> str:
        return f"<condition {self._shown}>"


class Branches:
    """What `one_of` gives: the value of the first branch that was not skipped."""

    __slots__ = ("_handles",)

    def __init__(self, handles: tuple[Handle, ...]) -> None:
        self._handles = handles

    def tree(self, own: Callable[[Any], Any]) -> OneOf:
        """Give the core's form."""
        return OneOf(tuple(cast("OutputRef", own(handle)) for handle in self._handles))

    def __repr__(self) -> str:
        return f"<one of {', '.join(map(repr, self._handles))}>"


def compared(operator: str, left: Placeholder, right: object) -> Condition:
    """Make the condition of a comparison."""
    if isinstance(right, Condition):
        raise UsageError(f"{left!r} cannot be compared with {right!r}: combine conditions with & and |")
    if isinstance(left, ExitHandle) and right not in tuple(RUN_ENDS):
        raise UsageError(f"a run ends as {', '.join(sorted(RUN_ENDS))}, it is never {right!r}")
    return Condition(
        lambda tree: conditions.Comparison(operator, tree(left), tree(right)),
        f"{_name(left)} {operator} {_name(right)}",
    )


def not_(condition: object) -> Condition:
    """Turn a condition, or a handle's value, round."""
    inner = as_condition(condition)
    return Condition(
        lambda tree: conditions.Negation(inner._make(tree)), f"not ({inner._shown})", sign="not", parts=(inner,)
    )


def one_of(*branches: T) -> T:
    """Stand for the value of the first of several branches that was not skipped.

    A step that takes it runs when one of them has a value; it is skipped if all were, or one of them failed.

    Args:
        branches: handles.

    Raises:
        UsageError: if there is none, or one is no handle.
    """
    if not branches or not all(type(branch) is Handle for branch in branches):
        raise UsageError(f"one_of takes handles, the branches of which one has a value, not {branches!r}")
    found: Any = Branches(cast("tuple[Handle, ...]", branches))
    return cast("T", found)


def read_condition(given: object, tree: Callable[[Any], Tree], where: str) -> conditions.Condition | None:
    """Read the option `when`.

    Raises:
        UsageError: if it is neither a condition nor a handle.
    """
    if given is None:
        return None
    if not isinstance(given, (Condition, Placeholder, Branches)):
        raise UsageError(
            f"{where}: when must be a handle or a comparison of handles, as in when=score > 0.9, not {given!r}"
        )
    return as_condition(given)._make(tree)


def as_condition(given: object) -> Condition:
    """Give a condition for itself, and for a handle that its value is true.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(given, Condition):
        return given
    if isinstance(given, (Placeholder, Branches)):
        return Condition(lambda tree: conditions.IsTrue(tree(given)), _name(given))
    raise UsageError(f"a condition is made of handles and comparisons of handles, not of {given!r}")


def _combined(kind: type[conditions.AllOf | conditions.AnyOf], sign: str, left: object, right: object) -> Condition:
    parts: list[Condition] = []
    for side in (as_condition(left), as_condition(right)):
        # a & b & c is one level, however many there are.
        parts.extend(side._parts if side._sign == sign else (side,))
    return Condition(
        lambda tree: kind(tuple(part._make(tree) for part in parts)),
        f" {sign} ".join(f"({part._shown})" for part in parts),
        sign=sign,
        parts=tuple(parts),
    )


def _name(value: object) -> str:
    if isinstance(value, Placeholder):
        return str.strip(repr(value), "<>").split(" of pipeline")[0]
    return repr(value)
