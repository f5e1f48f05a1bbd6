"""What an attempt records, on the wire: as ever, whatever is in it, and refused by name if it is none."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.artifact import Artifact
from evpipe.core.events import Failure, Origin, StepCached, StepFailed, StepSucceeded
from evpipe.core.notes import MetricPoint, Notes, points_of
from evpipe.errors import LimitExceeded, RemoteProtocolError
from evpipe.wire.codec import Fields, decode_map
from evpipe.wire.limits import NOTES_BYTES_MAX, VERSION
from evpipe.wire.messages import decode_event, encode_event, encode_succeeded
from evpipe.wire.notes import (
    LivePoints,
    Piece,
    Progress,
    check_room,
    decode_piece,
    decode_points,
    decode_progress,
    encode_notes,
    encode_piece,
    encode_points,
    encode_progress,
    encode_rows,
    notes_of,
    with_notes,
)
from evpipe.wire.subjects import EventSubject
from evpipe.wire.values import pack, pack_unchecked
from tests.core.budget import examples
from tests.wire.plain import LEAVES, trees

ROWS: list[Any] = [["loss", 0.5, 3, 1.5], ["acc", -math.inf, None, 2.0]]
ARTIFACT = Artifact(kind="value", digest="ab" * 32, size_bytes=9)
#: Change only with `VERSION`, and then these stay and must still decode.
GOLDEN_POINTS = (
    "83a17601a86c6566745f6f757402a6706f696e74739294a46c6f7373cb3fe000000000000003cb3ff800000000000094a3616363"
    "cbfff0000000000000c0cb4000000000000000"
)
GOLDEN_PROGRESS = "84a17601a86672616374696f6ecb3fd999999999999aa76d657373616765a468616c66a26174cb3ff8000000000000"


def rows_packed(rows: list[Any]) -> bytes:
    return encode_rows(len(rows), b"".join(msgpack.packb(row) for row in rows))


def event_with(notes: bytes, kind: str = "succeeded") -> Any:
    subject = EventSubject("churn", "aaaaaaaa", "train", kind)
    payload = (
        encode_succeeded(1, 0.0, pack([1, 2], "a value"))
        if kind == "succeeded"
        else encode_event(StepFailed(step="train", attempt=1, failure=Failure(message="no")))[2]
    )
    return decode_event(subject, with_notes(payload, notes), 1.0)


def test_live_notes_are_written_and_read_as_ever() -> None:
    assert encode_points(rows_packed(ROWS), 2).hex() == GOLDEN_POINTS
    assert decode_points(bytes.fromhex(GOLDEN_POINTS)) == LivePoints(ROWS, 2)
    assert decode_points(encode_points(rows_packed([]), 0)) == LivePoints([])
    assert decode_points(encode_points(rows_packed(ROWS), 0, "worker-1", 70)) == LivePoints(ROWS, 0, "worker-1", 70)
    assert encode_progress(0.4, "half", 1.5).hex() == GOLDEN_PROGRESS
    assert decode_progress(bytes.fromhex(GOLDEN_PROGRESS), "train", 2) == Progress("train", 2, 0.4, "half", 1.5)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_rows_one_after_the_other_are_a_list(count: int) -> None:
    rows = [["loss", float(i), i, 1.5] for i in range(count)]
    assert msgpack.unpackb(rows_packed(rows)) == rows


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POINTS = st.lists(
    st.tuples(NAMES, st.floats(allow_nan=False), st.none() | st.integers(-(2**63), 2**63 - 1), st.floats(0, 2**33)).map(
        list
    ),
    max_size=20,
)


@examples(100)
@given(POINTS, st.integers(0, 2**40), st.dictionaries(NAMES, trees(LEAVES), max_size=20), st.booleans())
def test_notes_come_back_as_they_were(
    rows: list[Any], left_out: int, artifacts: dict[str, Any], succeeded: bool
) -> None:
    """With a result, with a failure, and with what the cache gives of them."""
    packed = {name: pack(value, "an artifact") for name, value in artifacts.items()}
    notes = encode_notes(rows_packed(rows) if rows else b"", left_out, packed)
    event = event_with(notes, "succeeded" if succeeded else "failed")
    assert isinstance(event, (StepSucceeded, StepFailed))
    found = event.notes
    assert found is not None
    assert points_of(found.metrics, "train", 1) == [MetricPoint("train", 1, *row) for row in rows]
    assert (found.left_out, repr(dict(found.artifacts))) == (left_out, repr(artifacts))
    origin = Origin(pipeline="churn", run="aaaaaaaa", step="train", at_s=1.0)
    cached = StepCached(step="train", attempt=1, value=1, origin=origin, notes=found)
    _, kind, payload = encode_event(cached)
    again = decode_event(EventSubject("churn", "aaaaaaaa", "train", kind), payload, 0.0)
    assert isinstance(again, StepCached)
    assert again.notes is not None
    assert repr(again.notes) == repr(Notes(metrics=found.metrics, left_out=left_out, artifacts=artifacts))


def test_the_result_beside_them_is_what_it_was() -> None:
    """And what stands for stored points and artifacts stands there."""
    notes = encode_notes(pack(ARTIFACT, "points"), 0, {"model": pack(ARTIFACT, "model")})
    event = event_with(notes)
    assert (event.value, event.attempt) == ([1, 2], 1)
    assert event.notes == Notes(metrics=ARTIFACT, artifacts={"model": ARTIFACT})
    assert event_with(encode_notes(b"", 0, {})).notes == Notes()
    without = decode_event(EventSubject("churn", "aaaaaaaa", "train", "succeeded"), encode_succeeded(1, 0.0, b"\1"), 1)
    assert isinstance(without, StepSucceeded)
    assert without.notes is None


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        (3, "the event 'succeeded': field 'notes' is of type int, it must be a map"),
        ({"metrics": "x"}, "the event 'succeeded': its notes: field 'metrics' is of type str, not a list"),
        ({"metrics": {}}, "the event 'succeeded': its notes: field 'metrics' is of type dict, not a list"),
        ({"left_out": -1}, r".*: its notes: field 'left_out' is of type int, it must be a whole number from 0"),
        ({"artifacts": [1]}, r".*: its notes: field 'artifacts' is of type list, it must be a map"),
    ],
)
def test_wrong_notes_are_named(notes: Any, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{sentence}$"):
        event_with(pack_unchecked(notes))


@pytest.mark.parametrize(
    "row",
    [
        None,
        "loss",
        [],
        ["loss", 1.0, 1],
        [1, 1.0, 1, 1.0],
        ["loss", "1", 1, 1.0],
        ["loss", True, 1, 1.0],
        ["loss", 1.0, 1.5, 1.0],
        ["loss", 1.0, True, 1.0],
        ["loss", 1.0, 1, None],
        ["loss", 1.0, 1, -1.0],
        ["loss", 1.0, 1, 1e12],
        ["loss", 1.0, 1, math.nan],
    ],
)
def test_a_wrong_point_is_refused(row: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^the metrics of step 'a': a point is a list of name, value, itera"):
        points_of([["loss", 1, None, 1, "a newer writer's"], row], "a", 1)


def test_wrong_live_notes_are_named() -> None:
    def progress(**fields: Any) -> bytes:
        found: bytes = msgpack.packb({"v": VERSION, "fraction": 0.5, "message": "", "at": 1.0, **fields})
        return found

    for data, sentence in [
        (progress(fraction=1.5), "the progress: field 'fraction' is 1.5, it must be from 0 to 1"),
        (progress(fraction=math.nan), "the progress: field 'fraction' is nan, it must be from 0 to 1"),
        (progress(fraction="x"), "the progress: field 'fraction' is of type str, it must be a number"),
        (progress(message=1), "the progress: field 'message' is of type int, it must be text"),
        (progress(at=-1), "the progress: field 'at' is no seconds since 1970"),
        (progress(v=2), "the progress has version 2: this evpipe reads version 1"),
    ]:
        with pytest.raises(RemoteProtocolError) as caught:
            decode_progress(data, "train", 1)
        assert str(caught.value) == sentence
    with pytest.raises(RemoteProtocolError, match=r"^the points: field 'points' is of type str, it must be a list$"):
        decode_points(msgpack.packb({"v": VERSION, "points": "x"}))


GOLDEN_PIECE = (
    "86a17601a7617474656d707402a6776f726b6572a8776f726b65722d31a66e756d62657203a66f666673657407a56e6f7465738"
    "2a76d6574726963739294a46c6f7373cb3fe000000000000003cb3ff800000000000094a3616363cbfff0000000000000c0cb40"
    "00000000000000a961727469666163747381a46e6f746501"
)


def test_a_piece_is_written_and_read_as_ever() -> None:
    notes = encode_notes(rows_packed(ROWS), 0, {"note": pack(1, "a note")})
    assert encode_piece(2, "worker-1", 3, 7, notes).hex() == GOLDEN_PIECE
    found = decode_piece(bytes.fromhex(GOLDEN_PIECE))
    assert found == Piece(2, "worker-1", 3, 7, Notes(metrics=ROWS, artifacts={"note": 1}))
    assert found.points == 2
    stored = Artifact(kind="value", digest="ab" * 32, size_bytes=9, length=70_000)
    assert decode_piece(encode_piece(1, "w", 0, 0, encode_notes(pack(stored, "points"), 5, {}))).points == 70_000
    # Nothing of a run hangs on it.
    subject = EventSubject("churn", "aaaaaaaa", "train", "progress")
    assert decode_event(subject, bytes.fromhex(GOLDEN_PIECE), 0.0) is None


def test_a_wrong_piece_is_named() -> None:
    good: dict[str, Any] = {"v": VERSION, "attempt": 1, "worker": "w", "number": 0, "offset": 0, "notes": {}}
    assert decode_piece(msgpack.packb(good)).points == 0
    cases: list[tuple[dict[str, Any], str]] = [
        ({"attempt": None}, "the event 'progress': field 'attempt' is missing, it must be a whole number from 0"),
        ({"worker": 1}, "the event 'progress': field 'worker' is of type int, it must be text"),
        ({"number": -1}, "the event 'progress': field 'number' is of type int, it must be a whole number from 0"),
        ({"offset": 0.5}, "the event 'progress': field 'offset' is of type float, it must be a whole number from 0"),
        ({"notes": 1}, "the event 'progress': field 'notes' is of type int, it must be a map"),
    ]
    for wrong, sentence in cases:
        with pytest.raises(RemoteProtocolError) as caught:
            decode_piece(msgpack.packb({**good, **wrong}))
        assert str(caught.value) == sentence
    with pytest.raises(RemoteProtocolError, match=r"^the event 'progress': field 'notes' is missing$"):
        decode_piece(msgpack.packb({key: value for key, value in good.items() if key != "notes"}))
    with pytest.raises(RemoteProtocolError, match=r"its points are stored, and it does not say how many they are$"):
        decode_piece(encode_piece(1, "w", 0, 0, encode_notes(pack(ARTIFACT, "points"), 0, {})))


@given(st.binary(max_size=200))
@examples(200)
def test_arbitrary_bytes(data: bytes) -> None:
    """They decode into what can be shown, or are refused as those of a remote."""
    with contextlib.suppress(RemoteProtocolError):
        decode_piece(data)
    with contextlib.suppress(RemoteProtocolError):
        points_of(decode_points(data).rows, "train", 1)
    with contextlib.suppress(RemoteProtocolError):
        decode_progress(data, "train", 1)


@given(st.dictionaries(st.sampled_from(["metrics", "left_out", "artifacts"]), trees(LEAVES)))
@examples(300)
def test_well_formed_maps_with_any_value_in_any_field(fields: dict[str, Any]) -> None:
    data = msgpack.packb({"v": VERSION, "notes": fields}, default=list)
    with contextlib.suppress(RemoteProtocolError):
        decoded: Fields = decode_map(data, "the event")
        found = notes_of(decoded)
        assert found is not None
        assert found.left_out >= 0
        assert all(type(name) is str for name in found.artifacts)
        points_of(found.metrics, "train", 1)
    piece = {"v": VERSION, "attempt": 1, "number": 0, "offset": 0, "notes": fields, **fields}
    with contextlib.suppress(RemoteProtocolError):
        assert decode_piece(msgpack.packb(piece, default=list)).points >= 0


def test_too_many_artifacts_are_refused_and_named() -> None:
    check_room(NOTES_BYTES_MAX, "plot", "train")
    with pytest.raises(LimitExceeded, match=r"^the artifact 'plot' of step 'train' is one too many: .* 262,144 are"):
        check_room(NOTES_BYTES_MAX + 1, "plot", "train")
