"""What a user writes: classes of the script's own travel between its steps, which run in processes, and back to it.

Started as `python values_script.py MODE`; prints what the script itself sees.
"""

from __future__ import annotations

import datetime
import enum
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from evpipe import pipeline, step


class Colour(enum.Enum):
    RED = "red"
    BLUE = ("blue", 2)


@dataclass(frozen=True)
class Shape:
    name: str
    colour: Colour
    sides: frozenset[int] = field(default_factory=frozenset)


class Size(NamedTuple):
    width: int
    height: int


@step
def draw(name: str) -> dict[Any, Any]:
    return {
        "shape": Shape(name, Colour.BLUE, frozenset({1, 2})),
        Colour.RED: {Size(1, 2), Size(3, 4)},
        1: Decimal("1.50"),
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    }


@step
def look(found: dict[Any, Any], given: Shape) -> list[Any]:
    shape = found["shape"]
    seen = [
        isinstance(shape, Shape),
        shape.colour is Colour.BLUE,
        Colour.RED in found,
        all(isinstance(size, Size) for size in found[Colour.RED]),
        isinstance(given, Shape) and given.colour is Colour.RED,
        type(found[1]) is Decimal,
        found["at"].tzinfo is datetime.UTC,
    ]
    return [seen, shape, found]


@step(executor="thread")
def look_again(found: dict[Any, Any]) -> bool:
    return isinstance(found["shape"], Shape)


@pipeline
def drawing(name: str) -> list[Any]:
    found = draw(name)
    return [look(found, Shape("given", Colour.RED)), look_again(found)]


if __name__ == "__main__":
    run = drawing.options(mode=sys.argv[1])  # type: ignore[arg-type]  # a mode
    (seen, shape, found), again = run.run(name="square").value
    print(seen, again, isinstance(shape, Shape), shape == found["shape"], shape.colour is Colour.BLUE)
    print(all(isinstance(size, Size) for size in found[Colour.RED]), shape)
