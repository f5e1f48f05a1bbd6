"""The frames between a worker and a child: the same in every chunking, and an error where they are none."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.errors import RemoteProtocolError
from evpipe.worker.children.frames import FRAME_BYTES_MAX, Frames, encode_frame
from tests.core.budget import examples

VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=300)
FIELDS = st.dictionaries(st.text(max_size=8), VALUES | st.lists(VALUES, max_size=3), max_size=4)
FRAMES = st.lists(st.builds(lambda name, more: {**more, "frame": name}, st.text(max_size=8), FIELDS), max_size=6)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@examples(100)
@given(wanted=FRAMES, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_chunking(wanted: list[dict[str, Any]], cuts: list[int]) -> None:
    """However the bytes are cut, the same frames come, each as soon as it is whole."""
    packed = [encode_frame(fields) for fields in wanted]
    frames, found, fed = Frames(), [], 0
    for piece in in_pieces(b"".join(packed), cuts):
        found += list(frames.feed(piece))
        fed += len(piece)
        whole = sum(sum(map(len, packed[: i + 1])) <= fed for i in range(len(packed)))
        assert len(found) == whole
    assert found == wanted


@examples(100)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 500), max_size=5))
def test_garbage(data: bytes, cuts: list[int]) -> None:
    """Whatever comes, there are frames or a protocol's error; never another one."""
    frames = Frames()
    try:
        for piece in in_pieces(data, cuts):
            for frame in frames.feed(piece):
                assert isinstance(frame["frame"], str)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (b"\xc1", "a frame is not msgpack: "),
        (b"", "a frame is not msgpack: "),
        (b"\x81\xa5frame\xa1", "a frame is not msgpack: "),
        (msgpack.packb({"frame": "run"}) + b"\x00", "a frame is not msgpack: "),
        (b"\x91" * 5_000, "a frame is not msgpack: "),
        (b"\xdd\xff\xff\xff\xff", "a frame is not msgpack: "),
        (msgpack.packb({1: 2, "frame": "run"}), "a frame is not msgpack: "),
        (msgpack.packb([1, 2]), "a frame is not a map that says what it is"),
        (msgpack.packb({"frame": 3}), "a frame is not a map that says what it is"),
        (msgpack.packb({}), "a frame is not a map that says what it is"),
    ],
)
def test_no_frame(packed: bytes, sentence: str) -> None:
    """What is no frame is refused by a sentence that says why; those before it count."""
    frames = Frames()
    stream = frames.feed(encode_frame({"frame": "ready"}) + struct.pack(">I", len(packed)) + packed)
    assert next(stream) == {"frame": "ready"}
    with pytest.raises(RemoteProtocolError) as caught:
        next(stream)
    assert str(caught.value).startswith(sentence)


def test_too_large() -> None:
    """A length over the limit is refused when it is read, before anything is kept for it."""
    with pytest.raises(RemoteProtocolError, match=r"^a frame of 987,137 bytes: 987,136 are allowed$"):
        list(Frames().feed(struct.pack(">I", FRAME_BYTES_MAX + 1)))
    assert list(Frames().feed(struct.pack(">I", FRAME_BYTES_MAX))) == []
