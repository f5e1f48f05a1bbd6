"""Values of any size: what stays in the event, what is stored beside it, and how it comes back."""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evpipe.core.artifact import Artifact, count_of
from evpipe.core.bindings import OutputRef, resolve
from evpipe.core.graph import Step
from evpipe.errors import EncodingError, RemoteProtocolError
from evpipe.wire.artifacts import artifact_form, artifact_of
from evpipe.wire.digests import value_digest
from evpipe.wire.limits import INLINE_BYTES_MAX
from evpipe.wire.messages import LaunchEncoder, decode_launch, encode_launch, order_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import Shelf, Spool
from evpipe.wire.storing import artifacts_in, artifacts_of, encode_stored, loaded
from evpipe.wire.values import pack, unpack
from tests.wire.types_of_users import TYPED_VALUES, shape

LARGE = [float(i) for i in range(20_000)]


class Fit(NamedTuple):
    """Outputs by name."""

    weights: Any
    score: float


@dataclass
class Data:
    """A record with an array in it."""

    x: Any
    name: str


class Store:
    """A folder of artifacts, to write to and to read from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(lambda: folder)

    def encode(self, value: Any) -> bytes:
        return encode_stored(value, "the value", self.spool)

    def shelf(self) -> Shelf:
        def find(digest: str) -> Path | None:
            file = self.folder / digest
            return file if file.is_file() else None

        return Shelf(find, lambda: Path(self.folder))

    def load(self, data: bytes) -> Any:
        return unpack(data, reader=self.shelf())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path)
    yield found
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")], "a draft was left"


@given(value=TYPED_VALUES)
@settings(max_examples=150)
def test_a_small_value_is_encoded_as_it_is(value: Any) -> None:
    """What goes into an event needs no store."""

    def no_folder() -> Path:
        raise AssertionError("nothing is stored")

    data = encode_stored(value, "the value", Spool(no_folder))
    assert data == pack(value, "the value")
    assert shape(unpack(data)) == shape(value)


@pytest.mark.parametrize(
    "value",
    [
        LARGE,
        {"rows": LARGE, "score": 0.5},
        (LARGE, "a", LARGE[:3]),
        Fit(LARGE, 0.5),
        {"text": "x" * 200_000, "bytes": b"y" * 200_000},
        {1: LARGE, "b": {2, 3}},
        [{"i": i, "x": [i] * 40} for i in range(2_000)],
        set(range(60_000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_value_comes_back_as_what_it_was(store: Store, value: Any) -> None:
    """The event has at most its 64 KiB, and the value is whole again when it is read."""
    data = store.encode(value)
    assert len(data) <= INLINE_BYTES_MAX
    assert store.spool.files
    back = store.load(data)
    assert back == value
    assert type(back) is type(value)


def test_small_parts_of_a_large_value_stay_in_the_event(store: Store) -> None:
    """Whoever needs the score alone opens nothing, and fetches nothing."""
    value = unpack(store.encode(Fit(LARGE, 0.5)))
    assert value.score == 0.5
    assert type(value.weights) is Artifact
    assert value.weights.length == len(LARGE)
    found = unpack(store.encode({"weights": LARGE, "score": 0.5}))
    assert (found["score"], type(found["weights"])) == (0.5, Artifact)


def test_a_part_of_what_is_stored_is_read_where_it_is_needed(store: Store) -> None:
    """The core notes the path; the reader takes the part, and says what is missing."""
    whole = unpack(store.encode([{"x": LARGE[:50], "y": i} for i in range(3_000)]))
    assert type(whole) is Artifact
    assert whole.length == 3_000
    part = resolve([OutputRef("a", (7, "y"))], {"a": whole}, {})
    assert part[0].path == (7, "y")
    assert loaded(part, store.shelf()) == [7]
    gone = resolve(OutputRef("a", (7, "z")), {"a": whole}, {})
    with pytest.raises(Exception, match=r"has no 'z'.*keys 'x', 'y'"):
        loaded(gone, store.shelf())


def test_arrays_are_artifacts_wherever_they_are(store: Store) -> None:
    """In lists, dicts, records: a small one travels, a large one is stored, and both come back."""
    value: dict[str, Any] = {
        "small": np.arange(3),
        "large": np.arange(100_000.0),
        "in": [Data(np.eye(3), "a"), (np.int8(1), None)],
    }
    data = store.encode(value)
    assert len(data) <= INLINE_BYTES_MAX
    assert len(store.spool.files) == 1
    back = store.load(data)
    assert np.array_equal(back["large"], value["large"])
    assert np.array_equal(back["small"], value["small"])
    assert type(back["in"][0]) is Data
    assert np.array_equal(back["in"][0].x, np.eye(3))
    assert type(back["in"][1][0]) is np.int8


def test_arrays_that_are_small_each_and_many_together(store: Store) -> None:
    """The list is stored with their bytes in it: one object, not a thousand."""
    value = [np.full(1_000, i) for i in range(1_500)]
    data = store.encode(value)
    assert len(data) <= INLINE_BYTES_MAX
    assert len(store.spool.files) == 1
    whole = unpack(data)
    assert not whole.nested
    assert [int(array[0]) for array in store.load(data)] == list(range(1_500))
    assert int(loaded(whole.part((9,)), store.shelf())[0]) == 9


def test_arrays_of_a_dict_that_are_small_each_and_large_together(store: Store) -> None:
    """Each is stored by itself, so that a step which takes one fetches one."""
    found = unpack(store.encode({"x": np.zeros(7_000), "y": np.ones(7_000), "n": 3}))
    assert found["n"] == 3
    assert found["x"].data is None
    assert found["y"].data is None
    assert len(store.spool.files) == 2


def test_many_large_arrays_are_named_by_one_stored_list(store: Store) -> None:
    """Who needs one element fetches the list of names and that one."""
    value = [np.full(20_000, i) for i in range(1_200)]
    data = store.encode(value)
    whole = unpack(data)
    assert whole.nested
    assert len(store.spool.files) == 1_201
    stored = (store.folder / whole.digest).read_bytes()
    assert len(artifacts_in(stored)) == 1_200
    assert [found.digest for found in artifacts_in(stored, (5,))] == [artifacts_in(stored)[5].digest]
    assert int(loaded(whole.part((5,)), store.shelf())[0]) == 5


def test_equal_values_have_one_digest_however_they_travel(store: Store) -> None:
    """Inline or stored, in another order of keys: the digest is that of the content."""
    array = np.arange(4_000)
    inline = unpack(store.encode(array))
    stored = unpack(store.encode({"a": array, "b": array, "c": array}))["a"]
    assert (inline.data is None, stored.data is None) == (False, True)
    assert value_digest(inline) == value_digest(stored)
    one, other = ({"a": LARGE, "b": 1}, {"b": 1, "a": LARGE})
    digests = {value_digest(unpack(store.encode(value))) for value in (one, other)}
    assert len(digests) == 1
    nested = [value_digest(unpack(store.encode([value, LARGE * 2]))) for value in (one, other)]
    assert nested[0] == nested[1]
    assert value_digest(unpack(store.encode({"a": [*LARGE[:-1], -1.0], "b": 1}))) not in digests


def test_a_part_has_another_digest_than_the_whole(store: Store) -> None:
    whole = unpack(store.encode({"a": LARGE, "b": LARGE}))["a"]
    assert len({value_digest(whole), value_digest(whole.part((0,))), value_digest(whole.part((1,)))}) == 3


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"ok": 1, "model": object()}, r"at \['model'\]"),
        ([1, [2, object()]], r"at \[1\]\[1\]"),
        (Fit(object(), 1.0), r"at \.weights"),
        (Data({"x": object()}, "a"), r"at \.x\['x'\]"),
        (object(), "accepted are"),
    ],
)
def test_what_has_no_encoding_is_named_with_its_place(store: Store, value: Any, place: str) -> None:
    with pytest.raises(EncodingError, match=place) as caught:
        store.encode(value)
    assert "the value cannot be encoded" in str(caught.value)
    assert "scikit-learn" in str(caught.value)


def test_a_flipped_byte_is_found_before_anything_is_read(store: Store) -> None:
    """Of what travels in the event, the bytes must have the digest that the artifact says."""
    inline = unpack(store.encode(np.arange(10)))
    damaged = artifact_of([*artifact_form(inline)[:4], inline.data[:-1] + b"\xff", *artifact_form(inline)[5:]])
    with pytest.raises(ArtifactUnreadable, match="damaged"):
        loaded(damaged, store.shelf())


def test_what_is_not_there_is_named(store: Store) -> None:
    stored = unpack(store.encode({"a": LARGE, "b": LARGE[::-1]}))
    (store.folder / stored["a"].digest).unlink()
    with pytest.raises(ArtifactUnreadable, match=stored["a"].digest[:12]):
        loaded(stored, store.shelf())
    assert loaded(stored["b"], store.shelf()) == LARGE[::-1]


def test_a_kind_that_nobody_knows_here(store: Store) -> None:
    data = b"x"
    unknown = Artifact(kind="my-grid", digest=hashlib.sha256(data).hexdigest(), size_bytes=1, data=data)
    with pytest.raises(ArtifactUnreadable, match=r"'my-grid'.*@serializer"):
        loaded([unknown], store.shelf())
    newer = Artifact(kind="numpy", version=99, digest=unknown.digest, size_bytes=1, data=data)
    with pytest.raises(ArtifactUnreadable, match="version 99"):
        loaded(newer, store.shelf())


def test_artifacts_pass_through_who_does_not_open_them(store: Store) -> None:
    """Decoded and encoded again, as a controller does, they are the same bytes."""
    data = store.encode({"a": np.arange(50_000), "b": [Data(np.eye(2), "x")], "c": LARGE})
    value = unpack(data)
    assert pack(value, "again") == data
    assert len(artifacts_of(value)) == 3


FORM = artifact_form(Artifact(kind="numpy", digest="a" * 64, size_bytes=3, data=b"abc", meta={"k": 1}, length=2))


LISTS = Artifact(kind="value", digest="a" * 64, size_bytes=100_000, length=2, is_list=True, lengths=((2, 1), (3, 4, 5)))
OF_LISTS = artifact_form(LISTS)


@pytest.mark.parametrize("place", range(len(FORM)))
@given(junk=TYPED_VALUES)
@settings(max_examples=25)
def test_a_form_with_anything_else_in_it_is_refused_or_read(place: int, junk: Any) -> None:
    """Never another exception than the protocol's, whatever stands in the place of a field."""
    form = [*FORM]
    form[place] = junk
    try:
        found = artifact_of(form)
    except RemoteProtocolError:
        return
    assert shape(artifact_form(found)) == shape(form)


@given(junk=st.recursive(st.integers(-1, 6) | TYPED_VALUES, lambda inner: st.lists(inner, max_size=4), max_leaves=8))
@settings(max_examples=100)
def test_lengths_that_are_none_are_refused(junk: Any) -> None:
    form = [*OF_LISTS[:-1], junk]
    try:
        found = artifact_of(form)
    except RemoteProtocolError:
        return
    assert found.is_list == (isinstance(junk, list) or junk is True)
    assert not found.is_list or shape(artifact_form(found)[-1]) == shape(junk or True)


@pytest.mark.parametrize(
    "lengths",
    [
        [3, [1, 2]],
        [[2]],
        [[1, 2, 3]],
        [[2, 1], [3, 4]],
        [[2, True]],
        [[2, -1]],
        [-1],
        [2.0],
        [None],
        [[[2], [1]]],
        [1] * 8,
        [20_000_000],
        [4_000, 4_000],
        [2**70],
        [10_000, *([[0, 1] * 10_000])],
    ],
)
def test_wrong_lengths_are_refused(lengths: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"whose lengths are none\Z"):
        artifact_of([*OF_LISTS[:-1], lengths])


def test_the_form_of_a_list_says_what_is_known_of_it() -> None:
    """Who does not know lengths takes it for what is no list, and reads the rest."""
    assert OF_LISTS[10:] == [[[2, 1], [3, 4, 5]]]
    for artifact in (LISTS, LISTS.part((0,)), LISTS.part((0, 1)), LISTS.brief(), LISTS.part((0, 1, 2))):
        assert artifact_of(artifact_form(artifact)) == artifact
    assert artifact_form(LISTS.brief())[10:] == [True]
    # As it was written before there were lengths: of a part it is the length of the whole.
    old = [*artifact_form(LISTS.brief())[:9], [0], True]
    assert artifact_of(old) == replace(LISTS, path=(0,), length=None, lengths=())
    with pytest.raises(RemoteProtocolError, match="says of itself what is none"):
        artifact_of([*OF_LISTS[:7], -1, *OF_LISTS[8:]])


def test_of_lists_in_lists_it_is_known_how_long_they_are(store: Store) -> None:
    ragged = [["x" * 1_900] * (i % 3) for i in range(40)]
    stored = unpack(store.encode(ragged))
    assert (stored.length, stored.lengths) == (40, (tuple(i % 3 for i in range(40)),))
    assert stored.part((2,)).length == 2
    again = unpack(store.encode([["x" * 1_900] * 2 for _ in range(40)]))
    assert again.lengths == (2,)
    assert value_digest(stored) == value_digest(stored.brief()), "it is no part of what the value is"
    # Parts that are stored by themselves know theirs.
    parts = unpack(store.encode({"a": [LARGE, LARGE[:2]], "b": LARGE}))
    assert (parts["a"].lengths, parts["b"].lengths) == (((20_000, 2),), ())


def test_lengths_do_not_keep_parts_together(store: Store) -> None:
    """A dict of many ragged lists: each is stored by itself all the same, and what is known of all is bounded."""
    ragged = [[i] * (i % 5) for i in range(9_000)]
    few = unpack(store.encode({"a": ragged, "b": ragged[:4_000], "c": 1}))
    assert [count_of(few[key].lengths) for key in ("a", "b")] == [0, 4_000]
    many = unpack(store.encode({f"k{i}": ragged[: 2_000 + i] for i in range(300)}))
    assert {type(artifact) for artifact in many.values()} == {Artifact}
    assert {artifact.lengths for artifact in many.values()} == {()}


def test_a_launch_says_nothing_of_lengths() -> None:
    """There may be one for each element of something else."""
    step = Step(name="a", code={"kind": "path", "name": "m:f"})
    arguments = {"whole": LISTS, "gathered": [None, LISTS, LISTS], "*": [1, LISTS.part((0,))], "x": [1]}
    expected = {"whole": LISTS.brief(), "gathered": [None, *[LISTS.brief()] * 2], "*": [1, LISTS.part((0,)).brief()]}
    order = order_of(step, arguments, pipeline="demo")
    for data in (LaunchEncoder("demo", {}).encode(step, arguments), encode_launch(order, "a")):
        assert decode_launch(data).arguments == {**expected, "x": [1]}


def test_nan_is_a_value_in_what_is_stored(store: Store) -> None:
    value = store.load(store.encode([math.nan] * 10_000))
    assert len(value) == 10_000
    assert all(math.isnan(number) for number in value)


def test_nothing_is_written_for_what_is_refused(store: Store) -> None:
    """A serializer that raises in the middle leaves no draft behind (the fixture looks)."""

    class Broken:
        name, version = "broken", 1

        def write(self, value: Any, file: Any) -> dict[str, Any]:
            file.write(b"x" * 200_000)
            raise RuntimeError("half way")

        def read(self, stored: Any) -> Any: ...

    class Grid:
        pass

    from evpipe.wire.serializers import registry

    registry.register_serializer(Grid, Broken())
    try:
        with pytest.raises(EncodingError, match=r"'broken' raised RuntimeError: half way at \[0\]\Z") as caught:
            store.encode([Grid()])
        # So that whoever tells of it can show the user's lines.
        cause = caught.value.__cause__
        assert cause is not None
        assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)][-1] == "write"
    finally:
        registry._by_class.pop(Grid)
        registry._by_name.pop("broken")
    assert not store.spool.files


@pytest.mark.parametrize(
    ("value", "place"),
    [(Path("no such"), ""), ([Path("no such")], " at [0]"), ({"a": [Path("no such")]}, " at ['a'][0]")],
)
def test_a_missing_file_is_told_shortly(store: Store, value: Any, place: str) -> None:
    with pytest.raises(EncodingError) as caught:
        store.encode(value)
    assert str(caught.value) == (
        f"the value cannot be encoded: the path 'no such', where nothing is{place} "
        "(make the file first; accepted are paths of files and folders)"
    )
