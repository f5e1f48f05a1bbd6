"""What `map` refuses where it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evpipe import Pipeline, UsageError, pipeline, step
from evpipe.sdk.mapping import unmapped


@step
def scaled(x: int, factor: int = 1, levels: int = 1) -> int:
    return x * factor * levels


def in_a_pipeline(call: Callable[[], Any]) -> None:
    @pipeline(name="maps")
    def built() -> None:
        call()

    built.build({})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: scaled.map(1, "12"),
            "step 'scaled': nothing to map over: give at least one list, or a handle of one; argument 'x' is a int; ",
        ),
        (
            lambda: scaled.map({1, 2}),
            "step 'scaled': nothing to map over: argument 'x' is a set: make it a list with list(...)",
        ),
        (
            lambda: scaled.map(1, {1: 2}.keys()),
            "step 'scaled': nothing to map over: argument 'factor' is a dict_keys: make it a list with list(...)",
        ),
        (
            lambda: scaled.map(np.arange(3), np.float64(2)),
            "step 'scaled': nothing to map over: argument 'x' is a ndarray: make it a list with .tolist()",
        ),
        (
            lambda: scaled.map(np.zeros(())),
            "step 'scaled': nothing to map over: give at least one list, or a handle of one; argument 'x' is a ndarray",
        ),
        (lambda: scaled.map(iter([1])), "step 'scaled': argument 'x' is an iterator: map takes lists"),
        (
            lambda: scaled.map([1, 2], [1]),
            "step 'scaled' is mapped over lists of different lengths: argument 'x' has 2",
        ),
        (
            lambda: scaled.map([1], product=1),  # type: ignore[call-overload]
            "step 'scaled': product must be True or False, not 1",
        ),
        (lambda: scaled.map([1], 1, 2, levels=9), "step 'scaled': levels must be a whole number from 1 to 8, not 9"),
        (lambda: scaled.map([1], levels=2), "step 'scaled': 'levels' is one of its parameters and an option of map"),
        (lambda: scaled(unmapped(1)), "argument 'x' of step 'scaled': unmapped(...) is for arguments of .map(...)"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_a_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        in_a_pipeline(call)
    assert str(caught.value).startswith(sentence)


def test_an_option_of_map_may_be_an_argument_too() -> None:
    """Where it is clear which is meant."""
    in_a_pipeline(lambda: scaled.map([[1]], 2, 3, levels=2))
    built = Pipeline("maps")
    built.map("m", scaled, x=[[1]], args={"levels": 3}, levels=2)
    mapped = built.build({}).graph.steps["m"]
    assert mapped.arguments["levels"] == 3
    assert mapped.mapped is not None
    assert mapped.mapped.levels == 2
    with pytest.raises(UsageError, match="'levels' is one of its parameters and an option of map"):
        built.map("n", scaled, x=[1], levels=2)
