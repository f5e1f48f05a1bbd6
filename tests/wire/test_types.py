"""Values of every type come back as they went in, in one form, and bytes that are none are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import fractions
import os
import subprocess
import sys
import textwrap
import types
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.bindings import OutputRef
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire import extensions
from evpipe.wire.classes import EnumTwin, NumpyTwin, Twin, register_class
from evpipe.wire.digests import value_digest
from evpipe.wire.limits import DEPTH_MAX, ITEMS_MAX
from evpipe.wire.standard import ZoneTwin
from evpipe.wire.values import pack, unpack
from tests.core.budget import examples
from tests.wire import types_of_users as users
from tests.wire.types_of_users import TYPED_VALUES, Access, Child, Colour, Key, Level, Point, Renamed, shape


def restored(data: bytes) -> Any:
    users.RESTORING.append(True)
    try:
        return unpack(data)
    finally:
        users.RESTORING.pop()


@given(TYPED_VALUES)
@examples(500)
def test_a_value_comes_back_with_the_same_type_at_every_node(value: Any) -> None:
    data = pack(value, "v")
    found = restored(data)
    assert shape(found) == shape(value)
    assert pack(found, "v") == data
    assert value_digest(found) == value_digest(value)


# ---- one form for each type

MODULE = users.__name__

GOLDEN: dict[str, tuple[Any, int, Any]] = {
    "set": ({3, 1, 2}, 3, [1, 2, 3]),
    "frozenset": (frozenset(["b", "a"]), 4, ["a", "b"]),
    "dict with other keys": ({2: "b", "a": None, 1: []}, 5, [2, "b", "a", None, 1, []]),
    "int": (2**64, 6, bytes.fromhex("010000000000000000")),
    "negative int": (-(2**63) - 1, 6, bytes.fromhex("ff7fffffffffffffff")),
    "bytearray": (bytearray(b"ab"), 7, b"ab"),
    "complex": (1 - 2j, 8, ["complex", 1.0, -2.0]),
    "range": (range(1, 9, 2), 8, ["range", 1, 9, 2]),
    "datetime": (dt.datetime(2026, 1, 2, 3, 4, 5, 6), 8, ["datetime", "2026-01-02T03:04:05.000006", 0]),  # noqa: DTZ001
    "datetime with an offset": (
        dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=-1))),
        8,
        ["datetime", "2026-01-02T03:00:00", 0, -3_600_000_000],
    ),
    "datetime in a zone": (
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        8,
        ["datetime", "2026-10-25T02:30:00", 1, "Europe/Berlin"],
    ),
    "date": (dt.date(2026, 1, 2), 8, ["date", "2026-01-02"]),
    "time": (dt.time(3, 4, tzinfo=dt.timezone(dt.timedelta(0), "Z")), 8, ["time", "03:04:00", 0, 0, "Z"]),
    "timedelta": (dt.timedelta(-1, 2, 3), 8, ["timedelta", -1, 2, 3]),
    "decimal": (decimal.Decimal("-1.50E+9"), 8, ["decimal", "-1.50E+9"]),
    "decimal that is none": (decimal.Decimal("-sNaN7"), 8, ["decimal", "-sNaN7"]),
    "fraction": (fractions.Fraction(-1, 3), 8, ["fraction", -1, 3]),
    "uuid": (uuid.UUID(int=1), 8, ["uuid", bytes(15) + b"\1"]),
    "enum": (Colour.RED, 9, [f"{MODULE}:Colour", "RED", 1]),
    "enum without an encoded value": (users.Opaque.THING, 9, [f"{MODULE}:Opaque", "THING"]),
    "flag": (Access.READ | Access.WRITE, 9, [f"{MODULE}:Access", None, 3]),
    "dataclass": (Point(1, "b"), 10, [f"{MODULE}:Point", ["x", "y"], [1, "b"]]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_type_has_one_form_for_ever(name: str) -> None:
    value, code, content = GOLDEN[name]
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    assert pack(value, "v") == msgpack.packb(msgpack.ExtType(code, data))
    assert shape(unpack(pack(value, "v"))) == shape(value)


def test_a_decimal_is_written_alike_in_every_context() -> None:
    with decimal.localcontext(decimal.Context(capitals=0, prec=2)):
        assert unpack(pack(decimal.Decimal("1.23456E+90"), "v")) == decimal.Decimal("1.23456E+90")
        assert b"E+90" in pack(decimal.Decimal("1.23456E+90"), "v")


def test_references_stand_inside_of_dicts_with_other_keys() -> None:
    tree = {1: [OutputRef("a", ("k",))], (2,): OutputRef("b")}
    assert unpack(pack(tree, "v")) == tree


# ---- twins


def elsewhere(value: Any, old: bytes, new: bytes) -> bytes:
    """Bytes of a value of a class that this process does not have."""
    assert len(old) == len(new)
    return pack(value, "v").replace(old, new)


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (Point(1, [{2}]), b":Point", b":Piont"),
        (Point(1, 2), b"\xa1y", b"\xa1z"),
        (users.Outer.Inner(1), b"Outer.Inner", b"Outer.Other"),
        (Colour.RED, b":Colour", b":Coulor"),
        (Colour.RED, b"RED\x01", b"RED\x02"),
        (Colour.RED, b"RED", b"REB"),
        (Access(3), b":Access", b":Excess"),
        (Access.WRITE, b"\xc0\x02", b"\xc0\x08"),
        (Renamed(1, {2}), b":Renamed", b":Unnamed"),
        (Key(name=frozenset({1})), b":Key", b":Kez"),
        (Point(1, 2), b"tests.wire", b"tests.wine"),
    ],
)
def test_what_is_not_here_has_a_twin_with_the_same_bytes(value: Any, old: bytes, new: bytes) -> None:
    data = elsewhere([value, value], old, new)
    first, second = unpack(data)
    assert type(first) is not type(value)
    assert type(first) is type(second)
    assert first == second
    assert pack([first, second], "v") == data
    if not isinstance(value, tuple):
        assert unpack(pack({first: 1}, "v")) == {second: 1}, "twins may be keys"


def test_a_twin_shows_what_it_has_and_does_not_change() -> None:
    twin = unpack(elsewhere(Point(1, "b"), b":Point", b":Piont"))
    assert isinstance(twin, Twin)
    assert (repr(twin), twin.x, twin.y) == (f"<{MODULE}:Piont>(x=1, y='b')", 1, "b")  # type: ignore[attr-defined]
    assert dataclasses.asdict(twin) == {"x": 1, "y": "b"}  # type: ignore[call-overload]  # made from data
    with pytest.raises(dataclasses.FrozenInstanceError):
        twin.x = 2
    member = unpack(elsewhere(Colour.RED, b":Colour", b":Coulor"))
    assert isinstance(member, EnumTwin)
    assert (member.type_name, member.name, member.value) == (f"{MODULE}:Coulor", "RED", 1)
    assert twin != unpack(elsewhere(Point(True, "b"), b":Point", b":Piont"))


def test_a_class_inside_of_a_function_is_known_while_it_lives() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    assert type(unpack(pack(Local(1), "v"))) is Local


def test_a_moved_class_is_found_by_its_old_name() -> None:
    register_class(Child, "old.place:Child")
    data = msgpack.packb(msgpack.ExtType(10, msgpack.packb(["old.place:Child", ["x", "y", "z"], [1, 2, 3]])))
    assert unpack(data) == Child(1, 2, 3)
    with pytest.raises(UsageError, match="cannot travel"):
        register_class(dict)


def test_no_module_is_imported_and_no_attribute_of_one_is_computed() -> None:
    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("ran the code of a module for a value")

    sys.modules["lazy_module_of_test"] = Lazy("lazy_module_of_test")
    try:
        for name in ("lazy_module_of_test:Point", "this:Point", "os:path.join", "os:system", ":", "a:b:c", "x:y.z"):
            data = msgpack.packb(msgpack.ExtType(10, msgpack.packb([name, ["x"], [1]])))
            with contextlib.suppress(RemoteProtocolError):
                assert isinstance(unpack(data), Twin)
        assert "this" not in sys.modules
    finally:
        del sys.modules["lazy_module_of_test"]


def test_a_class_of_another_kind_is_not_taken() -> None:
    content = [f"{MODULE}:Colour", ["x"], [1]]
    assert isinstance(unpack(msgpack.packb(msgpack.ExtType(10, msgpack.packb(content)))), Twin)
    assert isinstance(unpack(msgpack.packb(msgpack.ExtType(9, msgpack.packb([f"{MODULE}:Point", "a", 1])))), EnumTwin)


def test_a_zone_that_this_machine_does_not_have_keeps_its_name() -> None:
    data = msgpack.packb(msgpack.ExtType(8, msgpack.packb(["datetime", "2026-01-01T00:00:00", 0, "Mars/Olympus"])))
    found = unpack(data)
    assert found.tzinfo == ZoneTwin("Mars/Olympus")
    assert pack(found, "v") == data
    assert value_digest(found) == value_digest(unpack(data))


# ---- refused


def test_elements_that_are_encoded_alike_are_refused() -> None:
    @dataclasses.dataclass(eq=False)
    class Same:
        x: int

    with pytest.raises(EncodingError, match="two elements that are encoded alike"):
        pack({Same(1), Same(1)}, "v")
    nans = {float("nan"), float("nan")}
    assert len(unpack(pack(nans, "v"))) == 2


@pytest.mark.parametrize("make", [frozenset, lambda x: {1: x[0]}, lambda x: Point(x[0])])
def test_a_value_may_be_as_deep_as_the_limit_and_no_deeper(make: Any) -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX):
        value = make([value])
    assert shape(unpack(pack(value, "v"))) == shape(value)
    with pytest.raises(LimitExceeded, match="nested deeper"):
        pack(make([value]), "v")


def test_what_contains_itself_or_has_too_many_items_is_refused() -> None:
    loop = Point(1)
    loop.y = [loop, loop]
    with pytest.raises(LimitExceeded, match="contains itself"):
        pack(loop, "v")
    with pytest.raises(LimitExceeded, match="items"):
        pack(set(range(ITEMS_MAX + 1)), "v")
    shared: Any = {1}
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(LimitExceeded):
        pack(shared, "v")


def extension(code: int, content: Any) -> bytes:
    data: bytes = content if isinstance(content, bytes) else msgpack.packb(content)
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


def nested(code: int, levels: int) -> bytes:
    data = b"\x01"
    for _ in range(levels):
        data = msgpack.packb(msgpack.ExtType(code, b"\x91" + data))
    return data


BAD: dict[str, bytes] = {
    "an element twice": extension(3, [1, 1]),
    "an element twice, of two types": extension(4, [1, True]),
    "an element that has no hash": extension(3, [[1]]),
    "a set that is no list": extension(3, 1),
    "a key without a value": extension(5, [1]),
    "a key that is a dict": extension(5, [{}, 1]),
    "a key twice": extension(5, [1, 2, 1.0, 3]),
    "a set made to be slow": extension(
        3, [msgpack.ExtType(6, extensions.int_bytes((2**61 - 1) << i)) for i in range(64, 3000)]
    ),
    "too many dataclasses": msgpack.packb(
        [msgpack.ExtType(10, msgpack.packb([f"a:B{i}", [], []])) for i in range(2001)]
    ),
    "too many named tuples": msgpack.packb(
        [msgpack.ExtType(2, msgpack.packb([f"a:B{i}", [], []])) for i in range(2001)]
    ),
    "a large int that is small": extension(6, b"\1"),
    "a large int that is too long": extension(6, bytes(3) + b"\1" + bytes(8)),
    "a large int of nothing": extension(6, b""),
    "sets far too deep": nested(3, 2_000),
    "sets too deep": nested(4, 80),
    "a standard value of nothing": extension(8, b""),
    "an empty one": extension(8, []),
    "one without a name": extension(8, [1]),
    "one of a name that is unknown": extension(8, ["os.system", "ls"]),
    "a date in another form": extension(8, ["date", "20260101"]),
    "a datetime with an offset in it": extension(8, ["datetime", "2026-01-01T00:00:00+01:00", 0]),
    "a datetime of a zone out of the folder": extension(8, ["datetime", "2026-01-01T00:00:00", 0, "../../etc/passwd"]),
    "a datetime with a fold of 2": extension(8, ["datetime", "2026-01-01T00:00:00", 2]),
    "a time of 24 hours": extension(8, ["time", "24:00:00", 0]),
    "a time zone of a year": extension(8, ["time", "01:00:00", 0, 10**18]),
    "a timedelta of too much": extension(8, ["timedelta", 10**18, 0, 0]),
    "a decimal in another form": extension(8, ["decimal", " 1_0 "]),
    "a decimal of a number": extension(8, ["decimal", 1]),
    "a decimal of too much": extension(8, ["decimal", "1E+99999999999999999999"]),
    "a fraction that is not reduced": extension(8, ["fraction", 2, 4]),
    "a fraction by zero": extension(8, ["fraction", 1, 0]),
    "a fraction of too much": extension(8, ["fraction", msgpack.ExtType(6, b"\1" + bytes(9_000)), 3]),
    "a uuid of text": extension(8, ["uuid", "x" * 16]),
    "a range without steps": extension(8, ["range", 1, 2, 0]),
    "a complex of wholes": extension(8, ["complex", 1, 2]),
    "an enum of nothing": extension(9, []),
    "an enum with code for a name": extension(9, ["a:b()", "A", 1]),
    "a flag of text": extension(9, ["a:b", None, "x"]),
    "an enum with two values": extension(9, ["a:b", "A", 1, 2]),
    "a dataclass with __class__": extension(10, ["a:B", ["__class__"], [1]]),
    "a dataclass with a keyword": extension(10, ["a:B", ["def"], [1]]),
    "a dataclass with a field twice": extension(10, ["a:B", ["x", "x"], [1, 2]]),
    "a dataclass with too few values": extension(10, ["a:B", ["x", "y"], [1]]),
    "a dataclass without a name": extension(10, [1, ["x"], [1]]),
    "a dataclass that is named like a keyword": extension(10, ["a:class", ["x"], [1]]),
    "a dataclass whose name is too long": extension(10, ["a:" + "b" * 600, ["x"], [1]]),
    "a numpy scalar of the wrong length": extension(12, ["<i8", b"1"]),
    "a numpy scalar of an object": extension(12, ["|O", b"12345678"]),
    "a code that is not used": extension(15, b""),
    "a key that is bytes beside a set": msgpack.packb([{b"k": 1}, msgpack.ExtType(3, b"\x90")]),
    "a timestamp beside a set": msgpack.packb([msgpack.Timestamp(1, 2), msgpack.ExtType(3, b"\x90")]),
    "a timestamp in a set": extension(3, [msgpack.Timestamp(1, 2)]),
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_that_are_no_value_are_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(BAD[name])
    if "too many" in name:
        assert "more than 2,000 classes" in str(caught.value)
    if "slow" in name:
        assert "the same hash" in str(caught.value)


@given(st.integers(0, 127), st.binary(max_size=60))
@examples(300)
def test_any_content_of_any_extension(code: int, content: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        pack(unpack(extension(code, content)), "v")


@given(TYPED_VALUES, st.data())
@examples(300)
def test_valid_bytes_with_some_changed(value: Any, data: st.DataObject) -> None:
    changed = bytearray(pack([value, {1}], "v"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1)) if changed else 0
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(RemoteProtocolError):
        pack(unpack(bytes(changed)), "v")


# ---- digests

DISTINCT: list[Any] = [
    1, 1.0, True, "1", b"1", bytearray(b"1"), (1,), [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, {True: 1}, {1.0: 1},
    0.0, -0.0, 0, None, "", b"", [], (), {}, set(), frozenset(), float("nan"), float("inf"), -float("inf"), 1j, 1 + 0j,
    decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("NaN"), decimal.Decimal("sNaN"), fractions.Fraction(1),
    Level.LOW, Access.READ, Colour.RED, range(1), range(0), Point(1), users.Plain(1), users.Base(1, 0), users.Mode.FAST,
    "fast", dt.date(2026, 1, 1), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, fold=1), 2**64, -(2**64),  # noqa: DTZ001
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), [[1], 2], [[1, 2]],
]  # fmt: skip


def test_values_that_differ_have_different_digests() -> None:
    assert len({value_digest(value) for value in DISTINCT}) == len(DISTINCT)


def test_equal_values_have_equal_digests() -> None:
    import struct

    other_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    pairs: list[tuple[Any, Any]] = [
        ({"a": 1, "b": {2: 3, 4: 5}}, {"b": {4: 5, 2: 3}, "a": 1}),
        ([float("nan")], [other_nan]),
        ({float("nan"): 1, "x": complex(other_nan, 1)}, {"x": complex(float("nan"), 1), other_nan: 1}),
        (set(map(str, range(100))), set(map(str, reversed(range(100))))),
        (Colour.RED, Colour.CRIMSON),
    ]
    for one, other in pairs:
        assert value_digest(one) == value_digest(other)


def test_a_value_without_encoding_has_no_digest() -> None:
    with pytest.raises(EncodingError, match=r"the value cannot be encoded: .*lone surrogate.* at \[0\]\['a'\]"):
        value_digest([{"a": "\ud800"}])


#: Of the values below, for ever.
DIGEST = "32cde97b00969be9ac6c3208e4620bccfc6adf4fbe70efccc0546698b45fedb0"
DIGESTS = """
    import datetime, decimal, enum, sys, types
    sys.path[:0] = {paths!r}
    from evpipe.wire.digests import value_digest
    class Colour(enum.Flag):
        RED = 1
        BLUE = 2
    print(value_digest([
        {{"b", "a", 1, (2, frozenset({{"x", "y", 3.5}}))}},
        {{"k": 1, 2: "v", None: float("nan")}}, Colour.RED | Colour.BLUE,
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), decimal.Decimal("1.50"), 2**80, -0.0, range(4), 1j,
    ]))
"""


def test_digests_are_the_same_in_every_process_and_version() -> None:
    paths = [str(Path(__file__).parents[2]), str(Path(msgpack.__file__).parents[1])]
    source = textwrap.dedent(DIGESTS.format(paths=paths))
    for seed in ("random", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, DIGEST), done.stderr


# ---- numpy and msgspec, where they are


def test_numpy_scalars() -> None:
    numpy = pytest.importorskip("numpy")
    scalars = [
        numpy.float64(1.5), numpy.float32("nan"), numpy.float16(1), numpy.int8(-1), numpy.uint64(2**64 - 1),
        numpy.bool_(True), numpy.complex64(1j), numpy.str_("a\0"), numpy.bytes_(b""), numpy.datetime64("NaT", "ns"),
        numpy.datetime64("2026-01-01"), numpy.timedelta64(3, "s"),
    ]  # fmt: skip
    for scalar in scalars:
        found = unpack(pack([scalar], "v"))[0]
        assert (type(found), repr(found), found.dtype) == (type(scalar), repr(scalar), scalar.dtype)
    assert pack(numpy.int16(1), "v") == extension(12, ["<i2", b"\1\0"])
    assert unpack(pack({numpy.int64(1): {2}}, "v")) == {1: {2}}
    payload = numpy.frombuffer(b"\1\0\0\0\0\0\xf8\xff", "<f8")[0]
    assert value_digest(payload) == value_digest(numpy.float64("nan")) != value_digest(float("nan"))
    for value in (numpy.zeros(2), [numpy.zeros(2)], numpy.ma.masked):
        with pytest.raises(EncodingError, match=r"value\.tolist\(\)"):
            pack(value, "v")
    with pytest.raises(EncodingError, match="a numpy scalar of the type"):
        pack(numpy.longdouble(1), "v")


def test_a_numpy_scalar_where_numpy_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    data = extension(12, ["<f8", bytes(8)])
    assert unpack(data) == NumpyTwin("<f8", bytes(8))
    assert pack(unpack(data), "v") == data
    assert "numpy" not in sys.modules


def test_structs_of_msgspec() -> None:
    msgspec = pytest.importorskip("msgspec")

    def refuse(self: Any) -> None:
        assert not users.RESTORING, "ran the code of a class for a value"

    plain = msgspec.defstruct("Plain", [("x", Any), ("y", Any, 3)], module=__name__)
    frozen = msgspec.defstruct(
        "Frozen", [("x", Any)], module=__name__, frozen=True, namespace={"__post_init__": refuse}
    )
    for value in (plain(1, {2}), frozen((1, 2)), [plain(frozen(1))]):
        found = restored(pack(value, "v"))
        assert (type(found), found) == (type(value), value)
    data = pack(plain(1), "v").replace(b":Plain", b":Plane")
    assert isinstance(unpack(data), Twin)
    assert pack(unpack(data), "v") == data


def test_where_msgspec_is_not_loaded_a_struct_has_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "msgspec", raising=False)
    data = extension(extensions.STRUCT, ["a:B", ["x"], [1]])
    assert unpack(data).x == 1
    assert pack(unpack(data), "v") == data
