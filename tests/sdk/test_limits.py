"""Priorities and limits of steps: what is accepted, what is refused in which sentence, and what reaches the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from evpipe import Mutex, Pipeline, Rate, Semaphore, UsageError, pipeline, step
from evpipe.core import limits as core
from evpipe.wire.graphs import decode_graph, encode_graph
from tests.sdk import sample

NAMES = "1 to 64 letters, digits, '_' and '-', the first a letter or digit"
TAKES = (
    "step 'plain': limits takes Mutex(name), Semaphore(name, count) and Rate(name, count, per_s), one or several in a "
    "tuple, not "
)


def plain(rows: int) -> int:
    return rows


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"priority": 10},
            "step 'plain': priority must be a whole number from 0 (first) to 9 (last; the default is 5), not 10",
        ),
        (
            {"priority": True},
            "step 'plain': priority must be a whole number from 0 (first) to 9 (last; the default is 5), not True",
        ),
        ({"limits": "db"}, f"{TAKES}'db'"),
        ({"limits": (Mutex("a"), "b")}, f"{TAKES}'b'"),
        ({"limits": (Mutex("a"), Semaphore("a", 2))}, "step 'plain': the limit 'a' is there twice"),
        (
            {"limits": [Mutex(f"m{i}") for i in range(17)]},
            "step 'plain' has 17 limits: at most 16 are allowed",
        ),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_written(options: dict[str, Any], sentence: str) -> None:
    writes: tuple[Callable[[], object], ...] = (
        lambda: step(**options)(plain),
        lambda: step(plain).options(**options),
    )
    for write in writes:
        with pytest.raises(UsageError) as caught:
            write()
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Mutex("a.b"), f"limits: Semaphore name 'a.b' is not allowed: allowed are {NAMES}"),
        (lambda: Semaphore("a", 0), "limits: Semaphore 'a': count must be a whole number from 1 to 1,000, not 0"),
        (
            lambda: Semaphore("a", cast("int", 1.5)),
            "limits: Semaphore 'a': count must be a whole number from 1 to 1,000, not 1.5",
        ),
        (lambda: Rate("a", 5, 0), "limits: Rate 'a': per_s must be seconds above 0 and at most 86,400, not 0"),
        (lambda: Rate("a", 1001), "limits: Rate 'a': count must be a whole number from 1 to 1,000, not 1001"),
    ],
)
def test_a_wrong_limit_is_refused_when_it_is_made(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == sentence


def test_a_pipeline_s_priority_is_checked() -> None:
    makes: tuple[Callable[[], object], ...] = (
        lambda: pipeline(priority=-1)(plain),
        lambda: Pipeline("plain", priority=-1),
    )
    for make in makes:
        with pytest.raises(UsageError, match="pipeline 'plain': priority must be a whole number from 0"):
            make()


def test_they_reach_the_graph_in_both_styles_and_travel() -> None:
    """What is not set is not there, so graphs without them are the bytes that they were."""

    @pipeline(priority=2)
    def work() -> None:
        sample.load.options(limits=Mutex("db"))(1)
        sample.load.options(priority=0, limits=[Semaphore("gpu", 3), Rate("api", 10, per_s=60)])(1)
        sample.load.options(limits=Mutex("db")).options(limits=None, priority=None)(1)

    built = Pipeline("work", priority=2)
    built.step("load", sample.load, rows=1, limits=Mutex("db"))
    built.step("load-2", sample.load, rows=1, priority=0, limits=[Semaphore("gpu", 3), Rate("api", 10, per_s=60)])
    built.step("load-3", sample.load, rows=1)
    for graph in (work.build({}).graph, built.build({}).graph):
        found = decode_graph(encode_graph(graph))
        assert found.priority == 2
        assert [s.priority for s in found.steps.values()] == [None, 0, None]
        assert [s.limits for s in found.steps.values()] == [
            (core.Semaphore("db", 1),),
            (core.Semaphore("gpu", 3), core.Rate("api", 10, 60.0)),
            (),
        ]
    data = encode_graph(Pipeline("bare").build({}).graph)
    assert b"priority" not in data
    assert b"limits" not in data
