"""Bytes from elsewhere either decode or raise one of this package's errors, never anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.errors import EvpipeError
from evpipe.wire.graphs import decode_graph, encode_graph
from evpipe.wire.limits import VERSION
from evpipe.wire.messages import (
    decode_event,
    decode_launch,
    decode_submission,
    encode_event,
    encode_launch,
    encode_submission,
)
from evpipe.wire.subjects import RUN_KINDS, STEP_KINDS, EventSubject
from tests.core.budget import examples
from tests.wire.plain import LEAVES, trees
from tests.wire.samples import EVENTS, GRAPH, LAUNCH, SUBMISSION

DECODERS: list[Callable[[bytes], Any]] = [decode_submission, decode_launch, decode_graph]
for step, kinds in (("a", STEP_KINDS), (None, RUN_KINDS)):
    for kind in sorted(kinds):
        where = EventSubject("demo", "run00001", step, kind)
        DECODERS.append(lambda data, where=where: decode_event(where, data, 0.0))  # type: ignore[misc]

VALID = [
    *(encode_event(event)[2] for event in EVENTS.values()),
    encode_submission(SUBMISSION),
    encode_launch(LAUNCH, "step 'a'"),
    encode_graph(GRAPH),
]
FIELDS = sorted({key for data in VALID for key in msgpack.unpackb(data)} - {"v"})


def check(data: bytes) -> None:
    """Feed bytes to every decoder; anything but an EvpipeError fails the test."""
    for decode in DECODERS:
        with contextlib.suppress(EvpipeError):
            decode(data)


@given(st.binary(max_size=200))
@examples(200)
def test_arbitrary_bytes(data: bytes) -> None:
    check(data)


@given(st.sampled_from(VALID), st.data())
@examples(300)
def test_valid_payloads_with_bytes_changed_left_out_and_put_in(valid: bytes, data: st.DataObject) -> None:
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1)) if changed else 0
        match data.draw(st.sampled_from(["change", "leave out", "put in", "cut off"])):
            case "change":
                changed[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "leave out":
                del changed[at : at + data.draw(st.integers(1, 8))]
            case "put in":
                changed[at:at] = data.draw(st.binary(max_size=6))
            case _:
                del changed[at:]
    check(bytes(changed))


@given(st.dictionaries(st.sampled_from(FIELDS), trees(LEAVES), max_size=6))
@examples(200)
def test_well_formed_maps_with_any_value_in_any_field(fields: dict[str, Any]) -> None:
    check(msgpack.packb({"v": VERSION, **fields}, default=list))


@given(st.sampled_from(VALID), st.sampled_from(FIELDS), trees(LEAVES))
@examples(200)
def test_valid_payloads_with_one_field_replaced_at_any_level(valid: bytes, name: str, value: Any) -> None:
    def replaced(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: value if key == name else replaced(child) for key, child in node.items()}
        return [replaced(child) for child in node] if isinstance(node, list) else node

    check(msgpack.packb(replaced(msgpack.unpackb(valid)), default=list))


DEEP = b"\x91" * 900 + b"\x01"


@pytest.mark.parametrize("name", ["v", *FIELDS])
def test_a_field_that_is_nested_far_too_deep(name: str) -> None:
    head = {} if name == "v" else {"v": VERSION, "pipeline": "p", "attempt": 1}
    head.pop(name, None)
    body = b"".join(msgpack.packb(key) + msgpack.packb(item) for key, item in head.items())
    check(bytes((0x81 + len(head),)) + body + msgpack.packb(name) + DEEP)
