"""What can be decorated: every refusal is one sentence with the way out."""

# ruff: noqa: ISC004 - a sentence in a table

import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from evpipe import PipelineFunction, Step, UsageError, pipeline, step
from tests.sdk import sample

HERE = __name__
BY_NAME = "a worker finds a step by its module and name"


class Model:
    def fit(self) -> int:
        return 1

    @classmethod
    def make(cls) -> int:
        return 1

    def __call__(self) -> int:
        return 1


def plain(rows: int) -> int:
    return rows


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


def _private() -> int:
    return 1


def local() -> Callable[[], int]:
    def inner() -> int:
        return 1

    return inner


anonymous = lambda: 1  # noqa: E731 - to be refused

STEPS: list[tuple[Any, str]] = [
    (anonymous, f"@step cannot decorate a lambda ({HERE}.<lambda>): {BY_NAME}; write a `def` at module level"),
    (
        local(),
        f"@step cannot decorate {HERE}.local.<locals>.inner, which is defined inside a function: {BY_NAME}; "
        "move it to module level (where it comes from a decorator below @step, that one needs functools.wraps)",
    ),
    (
        Model.fit,
        f"@step cannot decorate {HERE}.Model.fit, which is defined in a class: {BY_NAME}; "
        "write a function at module level that takes the object's data as arguments",
    ),
    (
        Model().fit,
        "@step cannot decorate the method Model.fit: "
        "write a function at module level that takes the object's data as arguments",
    ),
    (
        Model.__dict__["make"],
        "@step cannot decorate the method Model.make: "
        "write a function at module level that takes the object's data as arguments",
    ),
    (
        functools.partial(plain, 1),
        "@step cannot decorate a functools.partial of plain: write a `def` that calls plain with these arguments",
    ),
    (
        generator,
        f"@step cannot decorate the generator function {HERE}.generator: a step gives one value; return a list",
    ),
    (
        async_generator,
        f"@step cannot decorate the generator function {HERE}.async_generator: a step gives one value; return a list",
    ),
    (math.sqrt, "@step cannot decorate the builtin sqrt: write a `def` that calls it"),
    (Model, "@step cannot decorate the class Model: write a `def` that makes and returns what is needed"),
    (Model(), "@step cannot decorate an object of type Model: write a `def` that calls it"),
    ("load", "@step cannot decorate 'load': options are given by keyword, as in @step(name='daily')"),
    (
        sample.load,
        "<step 'load': tests.sdk.sample.load> is a step already: load.options(...) gives it other options",
    ),
    (
        _private,
        "step name '_private' is not allowed: allowed are 1 to 64 letters, digits, '_' and '-', the first a letter "
        "or digit; give it one: @step(name='private')",
    ),
]

PIPELINES: list[tuple[Any, str]] = [
    (
        coroutine,
        "@pipeline cannot decorate `async def coroutine`: write it as `def`; its steps may be `async def`",
    ),
    (generator, "@pipeline cannot decorate the generator function generator: return the value instead"),
    (Model, "@pipeline cannot decorate the class Model: write a `def` that makes and returns what is needed"),
    (5, "@pipeline cannot decorate 5: options are given by keyword, as in @pipeline(name='daily')"),
    (
        anonymous,
        "pipeline name '<lambda>' is not allowed: allowed are 1 to 64 letters, digits, '_' and '-', the first a "
        "letter or digit; give it one: @pipeline(name='lambda')",
    ),
]


@pytest.mark.parametrize(("found", "sentence"), STEPS)
def test_what_cannot_be_a_step_is_refused_when_decorated(found: Any, sentence: str) -> None:
    """A step that no worker could find, or that gives no one value, never gets into a graph."""
    with pytest.raises(UsageError) as caught:
        step(found)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("found", "sentence"), PIPELINES)
def test_what_cannot_be_a_pipeline_is_refused_when_decorated(found: Any, sentence: str) -> None:
    """A body that cannot be called once for its value is no pipeline."""
    with pytest.raises(UsageError) as caught:
        pipeline(found)
    assert str(caught.value) == sentence


def test_a_pipeline_may_be_local_and_must_name_its_parameters() -> None:
    """Only the graph of a pipeline travels, and its parameters are looked up by name."""

    @pipeline
    def inner() -> int:
        return 1

    assert isinstance(inner, PipelineFunction)
    with pytest.raises(UsageError) as caught:

        @pipeline
        def starred(*rows: int) -> int:
            return 1

    assert str(caught.value) == (
        "pipeline 'starred': *rows: int is not allowed, each parameter needs a name of its own: take a list or a dict"
    )


def test_a_step_looks_like_its_function() -> None:
    """Tools that show names, docs and signatures see the user's function."""
    import inspect

    assert isinstance(sample.load, Step)
    assert (sample.load.__name__, sample.load.__module__) == ("load", "tests.sdk.sample")
    assert list(inspect.signature(sample.load).parameters) == ["rows"]
    assert repr(sample.load) == "<step 'load': tests.sdk.sample.load>"
    assert repr(pipeline(plain)) == f"<pipeline 'plain': {HERE}.plain>"


def test_unknown_options_are_python_s_own_errors() -> None:
    """An option of a later release must not be taken silently by this one."""
    options: Any = {"warp": True}
    with pytest.raises(TypeError, match="unexpected keyword argument 'warp'"):
        step(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'warp'"):
        sample.load.options(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'warp'"):
        pipeline(**options)
