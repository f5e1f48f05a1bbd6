"""Options of steps and pipelines: each wrong one is refused where it is written, by its name."""

# ruff: noqa: ISC004 - a sentence in a table

from typing import Any

import pytest

from evpipe import Retry, UsageError, pipeline, step
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure
from tests.sdk import sample


def plain(rows: int) -> int:
    return rows


async def coroutine(rows: int) -> int:
    return rows


NAMES = "1 to 64 letters, digits, '_' and '-', the first a letter or digit"
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (plain, {"name": "a.b"}, f"step name 'a.b' is not allowed: allowed are {NAMES}"),
    (plain, {"queue": "a b"}, f"step 'plain': queue name 'a b' is not allowed: allowed are {NAMES}"),
    (
        plain,
        {"executor": "inline"},
        "step 'plain': executor 'inline' is for `async def`, and this is a `def`: use 'process' or 'thread'",
    ),
    (
        coroutine,
        {"executor": "thread"},
        "step 'coroutine': executor 'thread' is for `def`, and this is an `async def`: use 'inline'",
    ),
    (plain, {"executor": "gpu"}, "step 'plain': executor must be one of inline, thread, process, not 'gpu'"),
    (
        plain,
        {"outputs": "ab"},
        "step 'plain': outputs must be different names in a tuple, as in ('model', 'score'), not 'ab'",
    ),
    (
        plain,
        {"outputs": ("a", "a")},
        "step 'plain': outputs must be different names in a tuple, as in ('model', 'score'), not ('a', 'a')",
    ),
    (plain, {"retries": "3"}, "step 'plain': retries must be a whole number or a Retry(...), not '3'"),
    (plain, {"retries": True}, "step 'plain': retries must be a whole number or a Retry(...), not True"),
    (plain, {"retries": -1}, "step 'plain': retries: count must be a whole number from 0 to 1000, not -1"),
    (
        plain,
        {"timeout_s": 0},
        "step 'plain': timeout_s must be seconds above 0 and at most 31,622,400, or None, not 0",
    ),
    (plain, {"on_failure": "stop"}, "step 'plain': on_failure must be one of fail, skip, continue, not 'stop'"),
    (plain, {"after": "load"}, "step 'plain': after takes a list: after=['load']"),
    (plain, {"after": 5}, "step 'plain': after takes a list of handles and names of steps, not 5"),
    (
        plain,
        {"after": [sample.load]},
        "step 'plain': after takes handles (what a call of a step gives) and names of steps, "
        "not <step 'load': tests.sdk.sample.load>",
    ),
    (plain, {"description": 5}, "step 'plain': description must be text, not 5"),
]

WRONG_RETRIES: list[tuple[dict[str, Any], str]] = [
    ({"count": 1.5}, "retries: count must be a whole number from 0 to 1000, not 1.5"),
    ({"count": 1, "factor": 0.5}, "retries: factor must be a number from 1 to 100, not 0.5"),
    (
        {"count": 1, "on": ValueError},
        "retries: on must be a tuple of exception classes, as in (OSError,), not <class 'ValueError'>",
    ),
    (
        {"count": 1, "on": (int,)},
        "retries: on must be a tuple of exception classes, as in (OSError,), not (<class 'int'>,)",
    ),
]

WRONG_PIPELINES: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, f"pipeline name '' is not allowed: allowed are {NAMES}"),
    ({"version": 1}, "pipeline 'plain': version must be text of at most 64 characters"),
    ({"queue": "a.b"}, f"pipeline 'plain': queue name 'a.b' is not allowed: allowed are {NAMES}"),
    (
        {"deadline_s": -1},
        "pipeline 'plain': deadline_s must be seconds above 0 and at most 31,622,400, or None, not -1",
    ),
]


@pytest.mark.parametrize(("fn", "options", "sentence"), WRONG)
def test_a_wrong_option_of_a_step_is_refused_when_decorated(fn: Any, options: dict[str, Any], sentence: str) -> None:
    """The sentence names the step, the option, what was found and what is accepted."""
    with pytest.raises(UsageError) as caught:
        step(**options)(fn)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("fn", "options", "sentence"), WRONG)
def test_options_of_a_call_are_checked_alike(fn: Any, options: dict[str, Any], sentence: str) -> None:
    """`load.options(...)` accepts what `@step(...)` does, with the same sentences."""
    with pytest.raises(UsageError) as caught:
        step(fn).options(**options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("options", "sentence"), WRONG_RETRIES)
def test_a_retry_is_checked_when_it_is_made(options: dict[str, Any], sentence: str) -> None:
    """A wrong Retry fails at its line, not at the step that uses it."""
    with pytest.raises(UsageError) as caught:
        Retry(**options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("options", "sentence"), WRONG_PIPELINES)
def test_a_wrong_option_of_a_pipeline_is_refused_when_decorated(options: dict[str, Any], sentence: str) -> None:
    """Options of a pipeline are checked before its body ever runs."""
    with pytest.raises(UsageError) as caught:
        pipeline(**options)(plain)
    assert str(caught.value) == sentence


def test_options_reach_the_graph() -> None:
    """What a call sets wins over the decorator, which wins over the pipeline; None goes back to the default."""

    @pipeline(queue="cpu", version="2", fail_fast=True, deadline_s=9, description="daily")
    def work() -> None:
        sample.load(1)
        sample.train([1.0])
        sample.train.options(queue=None, timeout_s=5, on_failure="skip", description="d")([1.0])
        sample.fetch.options(retries=Retry(2, on=(OSError, UsageError)))("x")

    graph = work.build({}).graph
    steps = graph.steps
    assert (graph.version, graph.fail_fast, graph.deadline_s, graph.description) == ("2", True, 9, "daily")
    assert [s.queue for s in steps.values()] == ["cpu", "gpu", "cpu", "cpu"]
    assert [s.executor for s in steps.values()] == ["process", "process", "process", "inline"]
    second = steps["train-2"]
    assert (second.timeout_s, second.on_failure, second.description) == (5.0, OnFailure.SKIP, "d")
    assert steps["fetch"].retries == RetryPolicy(count=2, on=("builtins.OSError", "evpipe.errors.UsageError"))
    assert steps["load"].code["module"] == "tests.sdk.sample"
