"""A value comes back from the wire as what it was, or is refused by a sentence that says where it stands."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import io
import pathlib
import socket
import threading
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given

from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError
from evpipe.wire import extensions
from evpipe.wire.classes import register_class
from evpipe.wire.limits import DEPTH_MAX, ITEMS_MAX, VALUE_BYTES_MAX
from evpipe.wire.values import encode_value, pack, unpack
from tests.core.budget import examples
from tests.wire.plain import LEAVES, REFERENCES, VALUES, Fit, trees, typed


@given(VALUES)
@examples(300)
def test_a_value_comes_back_with_the_same_type_at_every_node(value: Any) -> None:
    assert typed(unpack(pack(value, "v"))) == typed(value)


@given(trees(LEAVES | REFERENCES))
@examples(150)
def test_an_argument_tree_comes_back_with_its_references(tree: Any) -> None:
    assert typed(unpack(pack(tree, "v"))) == typed(tree)


@given(VALUES)
@examples(100)
def test_equal_values_have_equal_bytes_and_what_comes_back_has_them_too(value: Any) -> None:
    assert pack(unpack(pack(value, "v")), "v") == pack(value, "v")


# ---- what is refused

ACCEPTED = (
    "accepted are None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, "
    "dates and times, Decimal, Fraction, UUID, enum members, NamedTuples, dataclasses, msgspec Structs and "
    "numpy scalars"
)


class Text(str):
    __slots__ = ()


class Names(dict[str, int]):
    pass


class Row(list[int]):
    pass


class Pair(tuple[int, int]):
    __slots__ = ()


HERE = __name__

PATH = "a path names a file of one machine: pass what is in the file, or the path as text: str(value)"
FUNCTION = "functions do not travel: pass what they need to a step that calls them"
TUPLE = "make it a plain one: tuple(value)"
OPEN = "it is open in this process only: open it in the step"


@dataclasses.dataclass
class Loose:
    x: int = 1

    def __post_init__(self) -> None:
        if self.x == 1:
            self.extra = 2


@dataclasses.dataclass
class Unset:
    x: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Listed(list[int]):
    x: int = 1


class Odd:
    pass


def iter_() -> Any:
    yield 1


def loose_reader() -> Any:
    with socket.socket() as made:
        return made


#: Value, problem, hint.
REFUSED: list[tuple[Any, str, str]] = [
    ("a\ud800", "text with a lone surrogate ('a\\ud800')", ""),
    (object(), "an object", ""),
    (Ellipsis, "an ellipsis", ""),
    (len, "a builtin_function_or_method", FUNCTION),
    (lambda: 1, "a function", FUNCTION),
    (iter_(), "a generator", "make it a list: list(value)"),
    ({}.keys(), "a dict_keys", "make it a list: list(value)"),
    (memoryview(b"a"), "a memoryview", "make it bytes: bytes(value)"),
    (slice(1), "a slice", "pass its start, stop and step"),
    (int, "a type", "pass its name"),
    (KeyError("a"), "a KeyError", "pass what it says: str(value)"),
    (loose_reader(), "a value of type socket.socket", OPEN),
    (io.BytesIO(), "a value of type _io.BytesIO", OPEN),
    (
        threading.Lock(),
        f"a value of type {type(threading.Lock()).__module__}.lock",
        "it is of this process only: make it in the step",
    ),
    (pathlib.PurePosixPath("a"), f"a value of type {pathlib.PurePosixPath.__module__}.PurePosixPath", PATH),
    (msgpack.ExtType(extensions.PARAMETER_REF, b"\xa1p"), "a value of type msgpack.ext.ExtType", TUPLE),
    (msgpack.Timestamp(1, 2), "a value of type msgpack.ext.Timestamp", ""),
    (collections.OrderedDict(a=1), "a value of type collections.OrderedDict", "make it a plain one: dict(value)"),
    (collections.defaultdict(int), "a value of type collections.defaultdict", "make it a plain one: dict(value)"),
    (Text("a"), f"a value of type {HERE}.Text", "make it a plain one: str(value)"),
    (Names(a=1), f"a value of type {HERE}.Names", "make it a plain one: dict(value)"),
    (Row([1]), f"a value of type {HERE}.Row", "make it a plain one: list(value)"),
    (Pair((1, 2)), f"a value of type {HERE}.Pair", "make it a plain one: tuple(value)"),
    (Odd(), f"a value of type {HERE}.Odd", ""),
    (Loose(), f"a value of type {HERE}.Loose with the attribute 'extra', which is no field of it", "make it a field"),
    (Unset(), f"a value of type {HERE}.Unset whose field 'x' is not set", ""),
    (Listed(), f"a value of type {HERE}.Listed, which is a dataclass that is a list, too", ""),
    (
        datetime.datetime(2026, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {"__module__": "zones"})()),
        "a time in the zone",
        "use zoneinfo.ZoneInfo or datetime.timezone",
    ),
]


@pytest.mark.parametrize(("value", "problem", "hint"), REFUSED, ids=[problem for _, problem, _ in REFUSED])
def test_what_has_no_encoding_is_refused_by_name(value: Any, problem: str, hint: str) -> None:
    with pytest.raises(EncodingError) as caught:
        pack(value, "the output of step 'a'")
    sentence = str(caught.value)
    assert sentence.startswith(f"the output of step 'a' cannot be encoded: {problem}")
    # The list of what is accepted is there for who is told nothing better.
    assert sentence.endswith(f" ({hint})" if hint else f"; {ACCEPTED}")
    assert caught.value.path == ""


@pytest.mark.parametrize(
    ("around", "path"),
    [
        (lambda bad: [0, bad], "[1]"),
        (lambda bad: (bad,), "[0]"),
        (lambda bad: {"a": {"b": [bad]}}, "['a']['b'][0]"),
        (lambda bad: Fit(model=1, score=[bad]), "[1][0]"),
        (lambda bad: [1, bad, bad], "[1]"),
        (lambda bad: {1: 2, (3,): [bad]}, "[(3,)][0]"),
        (lambda bad: [Loose(bad)], "[0].x"),
    ],
)
@pytest.mark.parametrize(
    "bad",
    [object(), memoryview(b""), {1: len}, {len: 1}, "\udfff", msgpack.Timestamp(1, 2)],
    # Of its own, for an address in a name would be another in each process.
    ids=["object", "memoryview", "value", "key", "surrogate", "timestamp"],
)
def test_the_place_of_the_first_bad_value_is_told(around: Any, path: str, bad: Any) -> None:
    with pytest.raises(EncodingError, match=r"cannot be encoded: .* at \[") as caught:
        pack(around(bad), "v")
    assert caught.value.path.startswith(path)


# ---- limits


def nested(levels: int, kind: str) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value] if kind == "list" else (value,) if kind == "tuple" else {"k": value} if kind == "dict" else None
    return value


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_a_value_may_be_as_deep_as_the_limit_and_no_deeper(kind: str) -> None:
    deepest = nested(DEPTH_MAX, kind)
    assert unpack(pack(deepest, "v")) == deepest
    with pytest.raises(LimitExceeded) as caught:
        pack(nested(DEPTH_MAX + 1, kind), "v")
    assert str(caught.value) == f"v is nested deeper than {DEPTH_MAX} levels (or contains itself)"
    assert (caught.value.limit, caught.value.allowed) == ("DEPTH_MAX", DEPTH_MAX)


def test_references_may_stand_at_the_deepest_place() -> None:
    tree: Any = OutputRef("a", ("k",))
    for _ in range(DEPTH_MAX):
        tree = (tree,)
    assert unpack(pack(tree, "v")) == tree


def test_a_container_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    ring: dict[str, Any] = {}
    ring["ring"] = {"ring": (ring,)}
    for value in (loop, ring, [1, (loop,)]):
        with pytest.raises(LimitExceeded, match="or contains itself"):
            pack(value, "v")


@pytest.mark.parametrize(
    "make", [lambda n: [0] * n, lambda n: (None,) * n, lambda n: dict.fromkeys(map(str, range(n)))]
)
def test_what_is_too_long_to_be_read_is_not_written(make: Any) -> None:
    assert len(unpack(pack(make(ITEMS_MAX), "v"))) == ITEMS_MAX
    with pytest.raises(LimitExceeded) as caught:
        pack(make(ITEMS_MAX + 1), "v")
    assert str(caught.value) == f"v has more than {ITEMS_MAX:,} items"
    assert (caught.value.limit, caught.value.allowed) == ("ITEMS_MAX", ITEMS_MAX)


def test_lists_that_share_their_parts_are_counted_and_not_walked_for_ever() -> None:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    with pytest.raises(LimitExceeded):
        pack(value, "v")


def test_a_value_over_the_limit_of_bytes_is_refused() -> None:
    fits = b"x" * (VALUE_BYTES_MAX - 5)
    assert len(encode_value(fits, "v")) == VALUE_BYTES_MAX
    with pytest.raises(LimitExceeded) as caught:
        encode_value(fits + b"x", "v")
    assert str(caught.value) == "v is 524,289 bytes when encoded: at most 524,288 are allowed"
    assert (caught.value.limit, caught.value.found) == ("VALUE_BYTES_MAX", VALUE_BYTES_MAX + 1)


# ---- bytes of others


def extension(levels: int) -> bytes:
    """Tuples in tuples, deeper than `pack` makes them."""
    data: bytes = msgpack.packb([])
    for _ in range(levels):
        data = msgpack.packb([msgpack.ExtType(extensions.TUPLE, data)])
    return data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x92\x01", id="cut off"),
        pytest.param(b"\x01\x02", id="something behind it"),
        pytest.param(b"\xc1", id="a byte that means nothing"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a list that would not fit into memory"),
        pytest.param(b"\xa1\xff", id="text that is no UTF-8"),
        pytest.param(b"\x91" * 200 + b"\x01", id="lists that are nested too deep"),
        pytest.param(b"\x91" * 100_000 + b"\x01", id="lists that are nested far too deep"),
        pytest.param(extension(100), id="tuples that are nested too deep"),
        pytest.param(extension(2_000), id="tuples that would take all of the C stack"),
        pytest.param(msgpack.packb({1: 2}), id="a key that is a number"),
        pytest.param(msgpack.packb({b"k": 2}), id="a key that is bytes"),
        pytest.param(msgpack.packb([{b"k": 2}]), id="such a key further in"),
        pytest.param(msgpack.packb(msgpack.Timestamp(1, 2)), id="a timestamp"),
        pytest.param(msgpack.packb([msgpack.ExtType(99, b"")]), id="a type of another protocol"),
        pytest.param(msgpack.packb(msgpack.ExtType(extensions.TUPLE, b"\x01")), id="a tuple of no list"),
        pytest.param(msgpack.packb(msgpack.ExtType(extensions.OUTPUT_REF, b"\x91\x01")), id="half a reference"),
        pytest.param(msgpack.packb(msgpack.ExtType(extensions.PARAMETER_REF, b"\x01")), id="a parameter named 1"),
        *(
            pytest.param(msgpack.packb(msgpack.ExtType(extensions.NAMED_TUPLE, msgpack.packb(content))), id=what)
            for what, content in {
                "a named tuple without a name": ["", [], []],
                "one named like a keyword": ["class", [], []],
                "one with code for a name": ["x(object): import os #", [], []],
                "one with a field named like a keyword": ["P", ["def"], [1]],
                "one with a field of code": ["P", ["x=print()"], [1]],
                "one with a field twice": ["P", ["x", "x"], [1, 2]],
                "one with a value too few": ["P", ["x"], []],
                "one with a list for a name": ["P", [[]], [1]],
            }.items()
        ),
    ],
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(data)


def test_a_named_tuple_of_a_class_that_is_not_here_has_a_twin() -> None:
    class Point(NamedTuple):
        x: int
        y: int

    data = pack([Point(1, 2), Point(3, 4)], "v").replace(b"Point", b"Piont")
    twin, other = unpack(data)
    assert (twin.x, twin.y, type(twin).__name__) == (1, 2, "Piont")
    assert type(twin) is type(other), "a class for every value would take 0.1 ms each"
    assert pack([twin, other], "v") == data


def test_a_named_tuple_of_a_log_of_the_first_version_is_read() -> None:
    data = msgpack.packb(msgpack.ExtType(extensions.NAMED_TUPLE, msgpack.packb(["Fit", ["model", "score"], [1, 2]])))
    pack(Fit(1, 2), "v")
    assert typed(unpack(data)) == typed(Fit(1, 2))
    other = msgpack.packb(msgpack.ExtType(extensions.NAMED_TUPLE, msgpack.packb(["Fat", ["model", "score"], [1, 2]])))
    assert unpack(other) == Fit(1, 2)
    assert pack(unpack(other), "v") == other


def test_a_registered_named_tuple_comes_back_as_its_class_without_running_its_code() -> None:
    class Base(NamedTuple):
        x: int

    class Strict(Base):
        __slots__ = ()

        def __new__(cls, x: int) -> Strict:
            raise AssertionError("ran the code of a class for bytes from elsewhere")

    register_class(Strict, "old.place:Strict")
    content = ["old.place:Strict", ["x"], [1]]
    found = unpack(msgpack.packb(msgpack.ExtType(extensions.NAMED_TUPLE, msgpack.packb(content))))
    assert (type(found), found.x) == (Strict, 1)


def test_references_come_back_equal() -> None:
    tree = [OutputRef("a", ("k", 0)), ParameterRef("rows")]
    assert unpack(pack(tree, "v")) == tree
