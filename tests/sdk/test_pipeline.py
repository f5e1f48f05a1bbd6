"""Pipelines: building with real values, binding typed calls, handing over to what runs them."""

# ruff: noqa: PLW0108 - all cases alike

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from evpipe import PipelineFunction, RunResult, RunStatus, UsageError, pipeline
from evpipe.core.parameters import REQUIRED, Parameter, ParameterType
from evpipe.sdk import hook
from evpipe.sdk.hook import RunOptions
from tests.sdk import sample, sample_future


@pipeline(version="1.0.0")
def churn(rows: int = 1000, depths: tuple[int, ...] = (3, 5)) -> list[float]:
    data = sample.load(rows)
    fits = [sample.train(data, depth=d) for d in depths]
    return [f["score"] for f in fits]


@pipeline
def strict(first: int, /, second: str, *, third: bool = False) -> str:
    return f"{first} {second} {third}"


def test_the_body_runs_with_the_real_values() -> None:
    """Loops and branches over parameters decide which steps there are; the values are constants of the graph."""
    built = churn.build({"rows": 2, "depths": [1, 2, 3]})
    assert list(built.graph.steps) == ["load", "train", "train-2", "train-3"]
    assert built.graph.steps["load"].arguments == {"rows": 2}
    assert built.parameters == {"rows": 2, "depths": (1, 2, 3)}
    assert built.graph.parameters == churn.parameters
    assert churn.build({}).graph == churn.build({"rows": 1000}).graph


def test_outside_a_pipeline_it_is_its_body_with_plain_functions() -> None:
    """A pipeline can be tried without any machinery."""
    assert churn(2, depths=(1, 2)) == [4.0, 2.0]
    assert (churn.name, churn.version, churn.fn(1, (1,))) == ("churn", "1.0.0", [1.0])


def test_a_body_that_changes_its_argument_changes_neither_default_nor_record() -> None:
    """What was asked for is what is recorded, and the next build starts from the same default."""
    for _ in range(2):
        built = sample_future.typed.build({"count": 1, "price": 2})
        assert built.parameters["table"] == {}


BOUND: list[tuple[Callable[[], Mapping[str, Any]], dict[str, Any]]] = [
    (lambda: churn.bind(), {"rows": 1000, "depths": (3, 5)}),
    (lambda: churn.bind(5, depths=(1,)), {"rows": 5, "depths": (1,)}),
    (lambda: strict.bind(1, "a", third=True), {"first": 1, "second": "a", "third": True}),
]


@pytest.mark.parametrize(("bind", "values"), BOUND)
def test_a_typed_call_becomes_named_values(bind: Callable[[], Any], values: dict[str, Any]) -> None:
    """Every parameter has its value, in the order of the signature."""
    assert list(bind().items()) == list(values.items())


NOT_BOUND: list[tuple[dict[str, Any] | None, tuple[Any, ...], PipelineFunction[..., Any], str]] = [
    ({"row": 5}, (), churn, "pipeline 'churn' has no parameter 'row'; did you mean 'rows'? (it has rows, depths)"),
    ({"rows": "5"}, (), churn, "parameter 'rows' of pipeline 'churn' must be int, not '5' (str)"),
    ({"rows": 1}, (2,), churn, "pipeline 'churn' got two values for the parameter 'rows'"),
    ({}, (1, (2,), 3), churn, "pipeline 'churn' takes 2 by position, and 3 were given"),
    ({}, (1, "a", True), strict, "pipeline 'strict' takes 2 by position, and 3 were given"),
    ({}, (1,), strict, "pipeline 'strict' needs the parameter 'second' (str)"),
]


@pytest.mark.parametrize(("kwargs", "args", "target", "sentence"), NOT_BOUND)
def test_a_wrong_call_is_refused_before_anything_runs(
    kwargs: dict[str, Any], args: tuple[Any, ...], target: PipelineFunction[..., Any], sentence: str
) -> None:
    """The same sentences as for a submit by name."""
    for call in (target.bind, target.run):
        with pytest.raises(UsageError) as caught:
            call(*args, **kwargs)
        assert str(caught.value) == sentence


def test_positional_only_parameters_reach_the_body() -> None:
    """Values go by name everywhere but into such a function."""
    assert strict.build({"first": 1, "second": "x"}).graph.output == "1 x False"


def test_annotations_are_resolved_one_by_one() -> None:
    """One that names nothing at run time makes its own parameter untyped, and no other."""
    table = ParameterType("dict", (ParameterType("tuple", (ParameterType("float"),)),))
    names = ParameterType("union", (ParameterType("list", (ParameterType("str"),)), ParameterType("none")))
    assert sample_future.typed.parameters == (
        Parameter(name="count", type=ParameterType("int"), default=REQUIRED),
        Parameter(name="price", type=ParameterType("any"), default=REQUIRED),
        Parameter(name="mode", type=ParameterType("literal", values=("a", "b")), default="a"),
        Parameter(name="names", type=names, default=None),
        Parameter(name="table", type=table, default={}),
    )


def test_run_goes_through_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sdk knows nothing of what runs a pipeline: it hands over the target, values and options."""
    seen: list[Any] = []

    def run(target: Any, values: Any, options: Any) -> RunResult[Any]:
        seen.append((target, dict(values), options))
        return RunResult(id="r", pipeline="churn", status=RunStatus.SUCCEEDED, _value=[1.0])

    monkeypatch.setattr(hook, "run_hook", run)
    assert churn.run(5).value == [1.0]
    assert churn.options(mode="local", key="k", timeout_s=3).run(depths=(1,)).value == [1.0]
    assert seen == [
        (churn, {"rows": 5, "depths": (3, 5)}, RunOptions()),
        (churn, {"rows": 1000, "depths": (1,)}, RunOptions(mode="local", key="k", timeout_s=3)),
    ]
