"""Bytes from elsewhere either decode or raise one of this package's errors, never anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.bindings import Known, OutputRef
from evpipe.core.conditions import Comparison
from evpipe.core.events import StepCached
from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import Graph, Step
from evpipe.core.limits import Rate, Semaphore
from evpipe.core.mapping import Mapped
from evpipe.core.parameters import Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import RunIf
from evpipe.core.waits import Wait, WaitKind
from evpipe.errors import EvpipeError
from evpipe.wire.config import decode_queue_config, encode_queue_config
from evpipe.wire.graphs import decode_graph, encode_graph
from evpipe.wire.holds import (
    Hold,
    Holder,
    HoldKind,
    Launched,
    decode_hold,
    decode_holders,
    decode_launched,
    encode_hold,
    encode_holders,
    encode_launched,
)
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
from evpipe.wire.values import unpack
from tests.core.budget import examples
from tests.wire.plain import LEAVES, trees
from tests.wire.samples import EVENTS, GRAPH, LAUNCH, SUBMISSION

DECODERS: list[Callable[[bytes], Any]] = [
    decode_submission,
    decode_launch,
    decode_graph,
    decode_hold,
    decode_holders,
    decode_launched,
    decode_queue_config,
]
for step, kinds in (("a", STEP_KINDS), (None, RUN_KINDS)):
    for kind in sorted(kinds):
        where = EventSubject("demo", "run00001", step, kind)
        DECODERS.append(lambda data, where=where: decode_event(where, data, 0.0))  # type: ignore[misc]

HOLD = Hold(
    kind=HoldKind.SEMAPHORE,
    queue="gpu",
    name="db",
    count=1,
    under_way=1,
    holders=(("run00001", "a"),),
    until_s=2.5,
    ahead=3,
)
LIMITED_GRAPH = Graph.of(
    [Step(name="a", priority=3, limits=(Semaphore("db", 1), Rate("api", 2, 1.5)))], pipeline="demo", priority=1
)
RICH_GRAPH = Graph.of(
    [
        Step(name="a", retries=RetryPolicy(count=2, within_s=5.0), timeout_s=1.5, cache=CachePolicy(ttl_s=3.0)),
        Step(name="m", arguments={"*": [OutputRef("a")]}, mapped=Mapped(places=(0,))),
        Step(name="n", arguments={"x": OutputRef("m", ("k", 1))}, when=Comparison("<", OutputRef("a"), Known(3))),
        Step(name="w", wait=Wait(kind=WaitKind.APPROVAL), arguments={"message": "ok?"}, timeout_s=4.0),
        Step(name="e", on_exit=True, run_if=RunIf.ALWAYS),
    ],
    pipeline="demo",
    parameters=(Parameter(name="x", type=ParameterType(kind="literal", values=(1, 2)), default=1),),
    deadline_s=7.5,
)
VALID = [
    *(encode_event(event)[2] for event in EVENTS.values()),
    encode_submission(SUBMISSION),
    encode_launch(LAUNCH, "step 'a'"),
    encode_graph(GRAPH),
    encode_graph(LIMITED_GRAPH),
    encode_hold(HOLD),
    encode_hold(replace(HOLD, kind=HoldKind.RATE, per_s=1.5)),
    encode_hold(replace(HOLD, kind=HoldKind.WINDOW, priority=3)),
    encode_holders([Holder("run00001", "a", 1, 3)]),
    encode_launched([Launched(1.5, "run00001", "a", 1)]),
    encode_queue_config(4),
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


#: Too many digits for a float, and for a text.
HUGE = msgpack.ExtType(6, (10**5_000).to_bytes(2_077, "big", signed=True))


def test_a_number_that_is_far_too_large() -> None:
    """In the place of each number, text and list of each valid payload, and in the places of all fields at once."""

    def replaced(node: Any) -> Iterator[Any]:
        yield HUGE
        for key, child in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
            for other in replaced(child):
                whole: Any = dict(node) if isinstance(node, dict) else list(node)
                whole[key] = other
                yield whole

    for valid in [*VALID, encode_graph(RICH_GRAPH)]:
        for found in replaced(msgpack.unpackb(valid)):
            check(msgpack.packb(found))
    for name in FIELDS:
        check(msgpack.packb({"v": VERSION, name: HUGE}))


@pytest.mark.parametrize("place", range(11))
def test_an_artifact_with_a_number_that_is_far_too_large(place: int) -> None:
    for number in (HUGE, [HUGE], [[HUGE]])[place == 10 :]:
        form = ["value", 1, "ab" * 32, 5, None, {}, "", 3, False, [1], [2]]
        form[place] = number
        artifact = msgpack.ExtType(13, msgpack.packb(form))
        with pytest.raises(EvpipeError):
            unpack(msgpack.packb(artifact))
    reference = msgpack.ExtType(16, msgpack.packb(["a", [HUGE]]))
    with pytest.raises(EvpipeError):
        unpack(msgpack.packb(reference))


_ENDS = ("succeeded", "failed", "skipped")


@pytest.mark.parametrize("at_s", [1e300, float("inf"), float("nan"), -1.0])
def test_a_moment_that_is_none_costs_no_result(at_s: float) -> None:
    """What a worker's clock says is shown, and nothing hangs on it: nobody could read the run's result."""
    origin = {"pipeline": "p", "run": "run00001", "step": "a", "at": at_s}
    given = {"attempt": 1, "value": 1, "reason": "condition", "started_at": at_s, "fingerprint": "f", "from": origin}
    data = msgpack.packb({"v": VERSION, **given})
    found = {kind: decode_event(EventSubject("demo", "run00001", "a", kind), data, 2.0) for kind in (*_ENDS, "cached")}
    for kind in _ENDS:
        assert getattr(found[kind], "started_at_s", None) == 0.0
    cached = found["cached"]
    assert isinstance(cached, StepCached)
    assert cached.origin.at_s == 0.0


DEEP = b"\x91" * 900 + b"\x01"


@pytest.mark.parametrize("name", ["v", *FIELDS])
def test_a_field_that_is_nested_far_too_deep(name: str) -> None:
    head = {} if name == "v" else {"v": VERSION, "pipeline": "p", "attempt": 1}
    head.pop(name, None)
    body = b"".join(msgpack.packb(key) + msgpack.packb(item) for key, item in head.items())
    check(bytes((0x81 + len(head),)) + body + msgpack.packb(name) + DEEP)


def test_what_is_said_of_limits_comes_back() -> None:
    assert decode_hold(encode_hold(HOLD)) == HOLD
    assert decode_hold(encode_hold(None)) is None, "it is not held back"
    assert decode_holders(encode_holders([Holder("run00001", "a", 1, 3)])) == [Holder("run00001", "a", 1, 3)]
    assert decode_launched(encode_launched([Launched(1.5, "run00001", "a", 1)])) == [Launched(1.5, "run00001", "a", 1)]
    assert decode_queue_config(encode_queue_config(4)) == 4
    assert decode_graph(encode_graph(LIMITED_GRAPH)) == LIMITED_GRAPH
