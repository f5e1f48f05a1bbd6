"""How references in argument trees are found and become values."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from evpipe.core.bindings import TREE_DEPTH_MAX, BindingError, OutputRef, ParameterRef, references, resolve, select
from evpipe.errors import LimitExceeded


class Fit(NamedTuple):
    model: Any
    score: float


A, A_KEY, ROWS = OutputRef("a"), OutputRef("a", ("k", 0)), ParameterRef("rows")


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        (None, []),
        ([1, "a", {"b": b""}], []),
        (A, [A]),
        ([A, (ROWS, {"x": A_KEY}), A], [A, ROWS, A_KEY, A]),
        (Fit(model=A, score=1.0), [A]),
        ({"x": [[[ROWS]]]}, [ROWS]),
    ],
)
def test_references_are_found_in_order(tree: Any, found: list[OutputRef | ParameterRef]) -> None:
    assert list(references(tree)) == found


def test_a_tree_deeper_than_the_limit_is_refused() -> None:
    tree: Any = A
    for _ in range(TREE_DEPTH_MAX):
        tree = [tree]
    assert list(references(tree)) == [A]
    with pytest.raises(LimitExceeded) as caught:
        list(references([tree]))
    assert str(caught.value) == f"arguments are nested deeper than {TREE_DEPTH_MAX} levels (or contain themselves)"
    assert (caught.value.found, caught.value.allowed) == (TREE_DEPTH_MAX + 1, TREE_DEPTH_MAX)


@pytest.mark.parametrize(
    ("tree", "value"),
    [
        (A, {"k": [7]}),
        (A_KEY, 7),
        (ROWS, 10),
        (OutputRef("gone"), None),
        (OutputRef("gone", ("k", 0)), None),
        ([A_KEY, (ROWS,), {"x": A_KEY, "y": 1}], [7, (10,), {"x": 7, "y": 1}]),
        (Fit(model=A_KEY, score=0.5), Fit(model=7, score=0.5)),
        ({}, {}),
        ((), ()),
    ],
)
def test_a_tree_becomes_a_value_of_the_same_shape(tree: Any, value: Any) -> None:
    found = resolve(tree, {"a": {"k": [7]}}, {"rows": 10})
    assert found == value
    assert type(found) is type(value)


def test_resolving_leaves_the_tree_as_it_was() -> None:
    tree = {"x": [A_KEY]}
    assert resolve(tree, {"a": {"k": [7]}}, {}) is not tree
    assert tree == {"x": [A_KEY]}


@pytest.mark.parametrize(
    ("value", "path", "part"),
    [
        ({"k": 1}, ("k",), 1),
        ({0: "zero"}, (0,), "zero"),
        ([1, 2], (-1,), 2),
        ((1, 2), (1,), 2),
        ("text", (0,), "t"),
        (b"ab", (1,), ord("b")),
        (Fit(model="m", score=0.5), ("score",), 0.5),
        (Fit(model="m", score=0.5), (0,), "m"),
        ({"fit": Fit(model=[{"deep": 1}], score=0.5)}, ("fit", "model", 0, "deep"), 1),
    ],
)
def test_a_path_takes_keys_indices_and_fields(value: Any, path: tuple[str | int, ...], part: Any) -> None:
    assert select(value, OutputRef("a", path)) == part


@pytest.mark.parametrize(
    ("value", "path", "sentence"),
    [
        ({"j": 1, "l": 2}, ("k",), "the output a has no 'k': it has keys 'j', 'l'"),
        ({}, ("k",), "the output a has no 'k': it has no keys"),
        ({"k": {"j": 1}}, ("k", "x"), "the output a['k'] has no 'x': it has keys 'j'"),
        ([1], (1,), "the output a has no 1: it has length 1"),
        ([1], (10**30,), f"the output a has no {10**30}: it has length 1"),
        ([[]], (0, -1), "the output a[0] has no -1: it has length 0"),
        ([1], ("k",), "the output a has no 'k': it has length 1"),
        ("text", ("k",), "the output a has no 'k': it has length 4"),
        (Fit(model=1, score=2.0), ("loss",), "the output a has no 'loss': it has fields model, score"),
        (None, ("k",), "the output a has no 'k': it has type NoneType"),
        (3.5, (0,), "the output a has no 0: it has type float"),
        ({i: i for i in range(20)}, ("k",), f"the output a has no 'k': it has keys {', '.join(map(str, range(12)))}"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_what_is(value: Any, path: tuple[str | int, ...], sentence: str) -> None:
    with pytest.raises(BindingError) as caught:
        select(value, OutputRef("a", path))
    assert str(caught.value) == sentence


def test_a_parameter_that_has_no_value_is_named() -> None:
    with pytest.raises(BindingError, match=r"^the run has no value for the parameter 'rows'$"):
        resolve([ROWS], {}, {})


def test_a_reference_is_shown_as_it_is_written() -> None:
    assert str(OutputRef("train", ("fits", 0, "score"))) == "train['fits'][0]['score']"
