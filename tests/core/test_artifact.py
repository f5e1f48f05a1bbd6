"""What is known of the lists in a list that is stored, and of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.artifact import LENGTHS_MAX, LEVELS_MAX, Artifact, Lengths, count_of, lengths_in
from tests.core.budget import examples

STORED = Artifact(kind="value", digest="a" * 64, size_bytes=100_000, is_list=True)
VALUES = st.recursive(
    st.sampled_from([1, "text", None, {"k": [1]}]),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, min_size=2, max_size=3).map(tuple),
    max_leaves=30,
)
#: Of one depth everywhere, so that much is known.


def _lists(depth: int) -> st.SearchStrategy[Any]:
    inner: st.SearchStrategy[Any] = st.just(1)
    for _ in range(depth):
        inner = st.lists(inner, max_size=3)
    return inner


EVEN = st.integers(1, 5).flatmap(_lists)


@pytest.mark.parametrize(
    ("value", "lengths"),
    [
        ([], ()),
        ([1, 2], ()),
        ([[], []], (0,)),
        ([[1, 2], (3, 4)], (2,)),
        ([[1], [2, 3], []], ((1, 2, 0),)),
        ([[[1], [2]], [[3], [4]]], (2, 1)),
        ([[[1], []], [[3, 4]]], ((2, 1), (1, 0, 2))),
        ([[], [[1, 2]]], ((0, 1), 2)),
        ([[1], 2], ()),
        ([[[1], 2], [[3], [4]]], (2,)),
        ([["ab"], ["c"]], (1,)),
        ([{"k": [1]}], ()),
    ],
)
def test_lengths_are_one_number_where_all_are_equal(value: Any, lengths: Lengths) -> None:
    assert lengths_in(value) == lengths


@given(VALUES.filter(lambda value: isinstance(value, (list, tuple))) | EVEN, st.data())
@examples(300)
def test_of_a_part_is_known_what_is_so(value: Any, data: st.DataObject) -> None:
    """Wherever lists are known to be, they have that length, and the lists in them have theirs."""
    artifact = replace(STORED, length=len(value), lengths=lengths_in(value))
    part: Any = value
    while isinstance(part, (list, tuple)) and part:
        known = len(artifact.lengths) > 0
        index = data.draw(st.integers(-len(part), len(part) - 1), label="index")
        part, artifact = part[index], artifact.part((index,))
        assert (artifact.length is not None) is known
        if artifact.length is None:
            assert artifact.lengths == ()
            break
        assert isinstance(part, (list, tuple))
        assert artifact.length == len(part)
        deeper = lengths_in(part)
        assert artifact.lengths[: len(deeper)] == deeper[: len(artifact.lengths)]
        assert len(artifact.lengths) <= len(deeper) or not part


def test_parts_of_parts_and_paths_are_the_same() -> None:
    stored = replace(STORED, length=2, lengths=((2, 1), (3, 4, 5)))
    assert stored.part((1, 0)) == stored.part((1,)).part((0,)) == replace(STORED, path=(1, 0), length=5)
    assert stored.part((0,)) == replace(STORED, path=(0,), length=2, lengths=((3, 4),))
    for path in ((2,), (-3,), ("k",), (0, 2), (0, 0, 0)):
        assert stored.part(path) == replace(STORED, path=path), "nothing is known of it"


def test_lengths_are_bounded() -> None:
    ragged = [[0] * (i % 2) for i in range(LENGTHS_MAX)]
    assert count_of(lengths_in(ragged)) == LENGTHS_MAX
    assert lengths_in([*ragged, []]) == ()
    assert lengths_in([[0]] * (LENGTHS_MAX + 1)) == (1,), "one number says it of any number of lists"
    deep: Any = 1
    for _ in range(12):
        deep = [deep]
    assert lengths_in(deep) == (1,) * (LEVELS_MAX - 1)
    stored = replace(STORED, length=LENGTHS_MAX, lengths=lengths_in(ragged))
    assert stored.brief(LENGTHS_MAX) is stored
    assert stored.brief(LENGTHS_MAX - 1) == stored.brief() == replace(stored, lengths=())
