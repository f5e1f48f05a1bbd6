"""Classes as users have them, and a strategy for values of every type that travels."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import fractions
import functools
import zoneinfo
from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from hypothesis import strategies as st

from tests.wire.plain import LEAVES, Fit

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    GREEN = (1, ("a", 2.5))
    CRIMSON = 1  # noqa: PIE796 - an alias


class Opaque(enum.Enum):
    THING = object()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Typed(float, enum.Enum):
    PI = 3.14

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise AssertionError("ran the code of a class for a value")


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0

    def __post_init__(self) -> None:
        assert not RESTORING, "ran the code of a class for a value"


#: Set while values are decoded.
RESTORING: list[bool] = []


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    name: Any
    _hidden: Any = None
    later: Any = dataclasses.field(init=False, default=7)


@dataclasses.dataclass
class Child(Point, Generic[T]):
    z: Any = None

    @functools.cached_property
    def size(self) -> int:
        return 3


class Plain(Point):
    """Inherits its fields and adds none."""


class Outer:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        value: Any


Renamed = collections.namedtuple("Renamed", ["class", "ok"], rename=True)


class Base(NamedTuple):
    a: Any
    b: Any = 2


ZONES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone),
    st.just(dt.timezone(dt.timedelta(hours=1), "X")),
    st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(zoneinfo.ZoneInfo),
)
#: A datetime of year 1 in a zone has no moment, so no hash.
EARLY = dt.datetime(1970, 1, 2)  # noqa: DTZ001 - a naive one is meant
FOLDS = st.sampled_from([0, 1])

HASHABLE_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**64, 2**64 - 1, -(2**63), -(2**63) - 1, 2**71, -(2**71), 2**1000]),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(allow_nan=False),
    st.builds(range, st.integers(-9, 2**70), st.integers(-9, 2**70), st.sampled_from([1, -2, 2**65])),
    st.dates(),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.datetimes(EARLY), ZONES, FOLDS),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), ZONES, FOLDS),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.builds(fractions.Fraction, st.integers(-(2**80), 2**80), st.integers(1, 2**70)),
    st.uuids(),
    st.sampled_from([*Colour, Opaque.THING, *Level, *Mode, *Access, Access(0), Access(3), Bits(0), Bits(3), Bits(64)]),
    st.just(Typed.PI),
)
TYPED_LEAVES: st.SearchStrategy[Any] = st.one_of(
    LEAVES,
    HASHABLE_LEAVES,
    st.binary(max_size=5).map(bytearray),
    st.decimals(allow_nan=True),
    st.complex_numbers(allow_nan=True),
)


HASHABLE: st.SearchStrategy[Hashable] = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(frozenset),
        st.builds(Base, inner, inner),
        st.builds(Outer.Inner, inner),
        st.builds(lambda name: Key(name=name), inner),
    ),
    max_leaves=5,
)
TYPED_VALUES: st.SearchStrategy[Any] = st.recursive(
    TYPED_LEAVES | HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(HASHABLE, max_size=4).map(set),
        st.lists(HASHABLE, max_size=4).map(frozenset),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Plain, inner),
        st.builds(lambda x, z: Child(x, z=z), inner, inner),
        st.builds(lambda name, hidden: Key(name=name, _hidden=hidden), inner, inner),
        st.builds(Fit, inner, inner),
        st.builds(Renamed, inner, inner),
    ),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """A value with the type of every node beside it; sets in one order, dicts in their own."""
    if isinstance(value, enum.Enum):
        return type(value), id(value)
    if isinstance(value, dict):
        return type(value), [(shape(key), shape(child)) for key, child in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted((shape(child) for child in value), key=repr)
    if isinstance(value, (list, tuple)):
        return type(value), [shape(child) for child in value]
    if dataclasses.is_dataclass(value):
        return type(value), [shape(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, (dt.datetime, dt.time)):
        return type(value), repr(value), type(value.tzinfo), value.fold
    return type(value), repr(value)
