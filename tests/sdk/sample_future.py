"""The same with annotations that are strings, some of which name nothing at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from evpipe import pipeline, step

if TYPE_CHECKING:
    from decimal import Decimal


@step
def later(data: Decimal) -> Later:
    return Later(1, "x")


@step
def unresolvable(data: int) -> Decimal:
    raise NotImplementedError


@step
def half(data: int) -> tuple[Later, Decimal]:
    raise NotImplementedError


@step
def annotated(data: int) -> Annotated[Later, "seen"]:
    raise NotImplementedError


@pipeline
def typed(
    count: int,
    price: Decimal,
    mode: Literal["a", "b"] = "a",
    names: list[str] | None = None,
    table: dict[str, tuple[float, ...]] = {},  # noqa: B006 - the sdk must not change it
) -> int:
    table["body"] = (1.0,)
    return count


from typing import NamedTuple  # noqa: E402 - below its use on purpose


class Later(NamedTuple):
    number: int
    text: str
