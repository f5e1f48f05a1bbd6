"""Signals are kept for a while, for whoever looks back for them; and what one may be."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.bus.protocol import Bus, Record
from evpipe.core.waits import matches
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError
from evpipe.wire.limits import SIGNAL_BYTES_MAX
from evpipe.wire.signals import decode_signal, encode_signal
from tests.core.budget import examples
from tests.support.contract import contract
from tests.support.worlds import World


async def kept(bus: Bus, subject: str, **bounds: Any) -> list[Record]:
    records: list[Record] = []
    async for batch in bus.signals.replay([subject], up_to=await bus.signals.last_sequence(), **bounds):
        records += batch
    return records


@contract
async def test_what_is_sent_is_there_for_who_looks_back_and_for_who_follows(world: World) -> None:
    """In order, by name, from a sequence or a moment on; whoever sends it, and however."""
    sender, reader = await world.bus(), await world.bus()
    assert await reader.signals.last_sequence() == 0
    assert await kept(reader, world.subjects.all_signals) == []
    orders, other = world.subjects.signal("orders.created"), world.subjects.signal("orders")
    assert [await sender.signals.send(orders, b"%d" % i) for i in range(3)] == [1, 2, 3]
    await sender.signals.send(other, b"4")
    await world.publish(orders, b'{"n":5}')
    async with reader.signals.follow([world.subjects.all_signals], after=3) as feed:
        followed: list[Record] = []
        while len(followed) < 2:
            followed += await anext(feed)
    assert [(r.sequence, r.subject, r.payload) for r in followed] == [(4, other, b"4"), (5, orders, b'{"n":5}')]
    records = await kept(reader, orders)
    assert [r.payload for r in records] == [b"0", b"1", b"2", b'{"n":5}']
    assert [r.sequence for r in await kept(reader, orders, after=2)] == [3, 5]
    assert [r.payload for r in await kept(reader, orders, since_s=records[-1].at_s - 0.000_5)][-1] == b'{"n":5}'
    assert await kept(reader, orders, since_s=records[-1].at_s + 60) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
@examples(100)
def test_a_payload_comes_back_and_matches_itself(payload: Any) -> None:
    found = decode_signal(encode_signal(payload, "a"))
    assert found == payload
    assert type(found) is type(payload)
    assert matches({}, found)
    if isinstance(payload, dict):
        assert matches(payload, found)


@given(st.binary(max_size=40))
@examples(100)
def test_anything_that_is_sent_is_read_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        decode_signal(data)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff",
        b"NaN",
        b'"\\ud800"',
        b"1" * 5_000,
        b"[" * 20_000 + b"]" * 20_000,
        b"[" * 70 + b"]" * 70,
        b'"' + b"x" * SIGNAL_BYTES_MAX + b'"',
    ],
    ids=lambda data: data[:8].decode(errors="replace"),
)
def test_a_hostile_signal_is_none(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_signal(data)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({1: 2}, "the payload of the signal 'a': the key 1 is not text"),
        ({"a": [1, {2}]}, r"\['a'\]\[1\] is of type set, which JSON has not"),
        (float("nan"), "is nan, which JSON has not"),
        ({"a": "\ud800"}, r"\['a'\] has half of a character in it"),
    ],
)
def test_what_json_does_not_have_is_refused(payload: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        encode_signal(payload, "a")


def test_what_is_too_large_or_deep_is_refused() -> None:
    with pytest.raises(LimitExceeded, match=r"is 65,538 bytes: at most 65,536 are allowed"):
        encode_signal("x" * SIGNAL_BYTES_MAX, "a")
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(EncodingError, match="nested deeper than 64 levels"):
        encode_signal(deep, "a")


@pytest.mark.parametrize(
    ("match", "payload", "expected"),
    [
        ({"id": 7}, {"id": 7, "x": 1}, True),
        ({"id": 7}, {"id": 7.0}, True),
        ({"id": 1}, {"id": True}, False),
        ({"id": [1, {"a": 1}]}, {"id": [1, {"a": True}]}, False),
        ({"id": (1, 2)}, {"id": [1, 2]}, True),
        ({"id": {"a": 1}}, {"id": {"a": 1, "b": 2}}, False),
        ({"id": None}, {}, False),
        ({"id": 7}, [7], False),
        ({"id": 7}, None, False),
        ({}, None, True),
    ],
)
def test_what_matches(match: dict[str, Any], payload: Any, expected: bool) -> None:
    assert matches(match, payload) is expected
    assert json.dumps(payload)
