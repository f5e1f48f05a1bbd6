"""Names of outputs: from the return annotation, resolved alone and late, or from `outputs=`."""

# ruff: noqa: ISC004 - a sentence in a table

from typing import Any

import pytest

from evpipe import Step, UsageError, pipeline, step
from evpipe.core.bindings import OutputRef
from tests.sdk import sample, sample_future

OUTPUTS: list[tuple[Step[..., Any], tuple[str, ...] | None]] = [
    (sample.load, None),
    (sample.train, ("model", "score")),
    (sample.partial, None),
    (sample.split, ("train", "test")),
    (sample.pair, None),
    (sample.bounds, ("low", "high")),
    (sample.fetch, ("model", "score")),
    (sample_future.later, ("number", "text")),
    (sample_future.annotated, ("number", "text")),
    (sample_future.unresolvable, None),
    (sample_future.half, None),
]


@pytest.mark.parametrize(("found", "outputs"), OUTPUTS, ids=lambda value: getattr(value, "name", ""))
def test_the_return_annotation_names_the_outputs(found: Step[..., Any], outputs: tuple[str, ...] | None) -> None:
    """Other annotations that cannot be resolved do not matter; where this one cannot be, there is one output."""
    (added,) = pipeline(name="p")(lambda: found(1)).build({}).graph.steps.values()
    assert added.outputs == outputs


def test_a_tuple_unpacks_although_an_element_is_unknown() -> None:
    """The length is known, so is the shape of the elements that can be resolved."""

    def body() -> Any:
        first, second = sample_future.half(1)
        return first.text, second

    output = pipeline(name="p")(body).build({}).graph.output
    assert output == (OutputRef("half", (0, "text")), OutputRef("half", (1,)))


def named(data: int) -> sample.Fit:
    return {"model": "m", "score": 1.0}


def two(data: int) -> tuple[int, int]:
    return 1, 2


def test_outputs_that_contradict_the_annotation_are_refused() -> None:
    """Two places that name the outputs must agree."""
    wrong: list[tuple[Any, str]] = [
        (
            named,
            "step 'named': outputs=('a', 'b', 'c') differs from the outputs model, score that the return type Fit "
            "names: leave outputs= out",
        ),
        (two, "step 'two': outputs=('a', 'b', 'c') names 3 outputs, but the return type has 2"),
    ]
    for fn, sentence in wrong:
        with pytest.raises(UsageError) as caught:
            pipeline(name="p")(lambda fn=fn: step(outputs=("a", "b", "c"))(fn)(1)).build({})
        assert str(caught.value) == sentence
