"""Mapped steps: what their elements become, the same in every mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import Client, Controller, RunResult, Worker, run
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.sdk.hook import Mode
from tests.e2e import map_pipelines as these

LOCAL_MODES = [mode for mode in get_args(Mode) if mode != "bus"]


@dataclass(frozen=True, kw_only=True)
class Case:
    pipeline: Any
    value: Any = None
    status: str = "succeeded"
    #: Steps that did not succeed: state, and what its error begins with.
    others: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Some of those that did.
    succeeded: tuple[str, ...] = ()

    def check(self, result: RunResult[Any]) -> None:
        found = {name: str(step.status) for name, step in result.steps.items() if step.status != "succeeded"}
        assert found == {name: status for name, (status, _) in self.others.items()}
        for name, (_, error) in self.others.items():
            assert result.steps[name].error.startswith(error), result.steps[name].error
        assert [name for name in self.succeeded if name not in result.steps] == []
        assert str(result.status) == self.status
        if self.status == "succeeded":
            assert result.value == self.value


_ODD = {"odd_fails": ("failed", "odd_fails[1]: ValueError: 1 is odd"), "odd_fails[1]": ("failed", "ValueError: 1 is")}

#: What `stored_lists_of_lists` gives.
RAGGED = [[f"{i}{j}" for j in range(i % 3)] for i in range(40)]

CASES = [
    Case(
        pipeline=these.known_now,
        value={"all": [11, 22, 33], "first": 11, "last": 33, "sum": 66},
        succeeded=("add", "add[0]", "add[2]", "total"),
    ),
    Case(pipeline=these.known_later, value=6, succeeded=("numbers", "add[2]")),
    Case(pipeline=these.second_order, value=[11, 12, 13], succeeded=("add[0]", "add-2[2]")),
    Case(pipeline=these.none_at_all, value={"sum": 0, "list": [], "now": []}, succeeded=("add", "add-2", "total")),
    Case(pipeline=these.named_parts, value={"scores": [1, 2], "sum": 3, "more": [2, 3], "b": "b"}),
    Case(
        pipeline=these.constants,
        value=[f"{i}-xy-{{'k': 1}}-[7, 8]-Point(x=3, y=4)-key={i - 1}-also=[5]" for i in (1, 2)],
    ),
    Case(
        pipeline=these.every_combination,
        value=["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"],
        succeeded=("joined[5]",),
    ),
    Case(
        pipeline=these.lists_of_lists,
        value={"all": [[1, 11], [2, 12]], "one": 2, "again": [[2, 12], [3, 13]], "sums": [12, 14]},
        succeeded=("add", "add[1]", "add[1][0]", "add-2[0][1]", "total[1]"),
    ),
    Case(
        pipeline=these.chosen,
        value={"kept": [None, None, 2, 3], "below": [None, None, 3, 4], "sum": 5},
        others={
            "add[0]": ("skipped", "its condition is false: 0 > 1"),
            "add[1]": ("skipped", "its condition is false: 1 > 1"),
            "below[0]": ("skipped", "step 'add[0]' was skipped"),
            "below[1]": ("skipped", "step 'add[1]' was skipped"),
        },
    ),
    Case(
        pipeline=these.one_fails,
        status="failed",
        others={
            **_ODD,
            "below": ("skipped", "below[1]: step 'odd_fails[1]' failed"),
            "below[1]": ("skipped", "step 'odd_fails[1]' failed"),
            "total": ("skipped", "step 'below' was skipped"),
        },
        succeeded=("below[0]", "below[2]"),
    ),
    Case(
        pipeline=these.may_fail,
        value={"bad": [0, None, 2], "sum": 2, "below": [0, None, 2]},
        others={"odd_fails[1]": ("failed", "ValueError: 1 is odd")},
        succeeded=("odd_fails",),
    ),
    Case(
        pipeline=these.may_fail_and_skip,
        value=4,
        others={
            **_ODD,
            "below": ("skipped", "below[1]: step"),
            "below[1]": ("skipped", "step 'odd_fails[1]' failed"),
            "total": ("skipped", "step 'odd_fails' failed"),
        },
    ),
    Case(
        pipeline=these.cleaned,
        value=[None, None, None],
        others={
            **_ODD,
            "clean[0]": ("skipped", "its run_if any_failed does not hold: odd_fails[0] succeeded"),
            "clean[2]": ("skipped", "its run_if any_failed does not hold: odd_fails[2] succeeded"),
        },
        succeeded=("clean[1]",),
    ),
    Case(
        pipeline=these.different_lengths,
        status="failed",
        others={"add": ("failed", "step 'add' is mapped over lists of different lengths: a has 2, b has 3")},
    ),
    Case(
        pipeline=these.no_list,
        status="failed",
        others={"add-2": ("failed", "step 'add-2' is mapped over what is no list: a is of type int")},
    ),
    Case(
        pipeline=these.nothing_to_map,
        value=[],
        others={"numbers": ("skipped", "its condition is false: add > 5")},
        succeeded=("add-2",),
    ),
    Case(pipeline=these.stored_list, value=120_000, succeeded=("length[199]",)),
    Case(
        pipeline=these.stored_lists_of_lists,
        value={
            "heads": RAGGED,
            "one": RAGGED[5],
            "deep": RAGGED,
            "child": RAGGED,
            "length": 0,
        },
        succeeded=("head[38][1]", "deep[0][38][1]", "heads_of"),
    ),
    Case(
        pipeline=these.built,
        value={"more": [1, 3], "each": [None, 7]},
        others={"each[0]": ("skipped", "its condition is false: 1 != 1")},
    ),
]
NAMES = [case.pipeline.name for case in CASES]


@pytest.mark.parametrize("mode", LOCAL_MODES)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_what_the_elements_become(case: Case, mode: Mode) -> None:
    case.check(run(case.pipeline, {}, mode=mode))


def test_what_the_elements_become_on_the_bus(server: ServerProcess) -> None:
    """All at once, on one bus."""

    async def main() -> list[RunResult[Any]]:
        async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client, slots=4):
            handles = [await client.submit(case.pipeline, {}) for case in CASES]
            return [await handle.result(timeout_s=60) for handle in handles]

    for case, result in zip(CASES, anyio.run(main), strict=True):
        case.check(result)


def test_an_element_has_its_own_result(embedded: Path) -> None:
    result = run(these.named_parts, {}, mode="bus")
    fits = result.steps["fit"]
    assert [element.name for element in fits.elements] == ["fit[0]", "fit[1]"]
    assert fits.value == [{"name": "a", "score": 1}, {"name": "b", "score": 2}]
    assert fits.elements[1].value == {"name": "b", "score": 2}
    assert list(result.steps)[:4] == ["fit", "fit[0]", "fit[1]", "total"]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_an_element_is_tried_again_by_itself(mode: Mode, embedded: Path, tmp_path: Path) -> None:
    result = run(these.retried, {"folder": str(tmp_path)}, mode=mode)
    assert [(element.attempts, element.value) for element in result.steps["flaky"].elements] == [(1, 0), (2, 1), (2, 2)]
    assert result.value == [0, 1, 2]


@pytest.mark.parametrize("mode", ["local", "bus"])
def test_the_chain_of_an_element_does_not_wait_for_its_siblings(mode: Mode, embedded: Path, tmp_path: Path) -> None:
    assert str(run(these.chain, {"folder": str(tmp_path)}, mode=mode).status) == "succeeded"


def test_each_element_is_cached_by_itself(embedded: Path) -> None:
    first = run(these.cached, {"numbers": [1, 2]}, mode="bus")
    again = run(these.cached, {"numbers": [2, 3, 1]}, mode="bus")
    assert [str(element.status) for element in first.steps["squared"].elements] == ["succeeded"] * 2
    assert [str(element.status) for element in again.steps["squared"].elements] == ["cached", "succeeded", "cached"]
    assert again.value == [4, 9, 1]


def test_an_element_of_a_stored_list_is_cached_by_itself(embedded: Path) -> None:
    """Whatever becomes of the rest of the list, which is one object of the store."""
    first = run(these.cached_of_stored, {"changed": -1}, mode="bus")
    again = run(these.cached_of_stored, {"changed": 7}, mode="bus")
    assert Counter(str(element.status) for element in first.steps["length_of"].elements) == {"succeeded": 100}
    statuses = [str(element.status) for element in again.steps["length_of"].elements]
    assert statuses == ["cached"] * 7 + ["succeeded"] + ["cached"] * 92
    assert again.value == sum(map(len, map(str, range(100)))) * 1_000 + 1


def test_a_cancel_ends_what_has_no_elements_yet_and_every_element(server: ServerProcess) -> None:
    """And events have the names of elements as people write them, also what is waited for."""
    watched: list[Any] = []

    async def main() -> RunResult[Any]:
        async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client, slots=2):
            handle = await client.submit(these.waits, {})
            watching = [await client.submit(these.watching(handle.id, step), {}) for step in ("wait[1]", "wait=1")]
            async for event in handle.events():
                if event.kind == "started" and event.step == "wait[0]":
                    await handle.cancel("enough")
            watched.extend([(await one.result(timeout_s=30)).value for one in watching])
            return await handle.result(timeout_s=30)

    result = anyio.run(main)
    assert str(result.status) == "cancelled"
    assert [(told["step"], told["kind"]) for told in watched] == [("wait[1]", "cancelled")] * 2
    found = {name: (str(step.status), str(step.reason or "")) for name, step in result.steps.items()}
    cancelled = ("cancelled", "request")
    assert found == {
        "wait": cancelled,
        **{f"wait[{i}]": cancelled for i in range(3)},
        "after": cancelled,
        "after[0]": cancelled,
        "after[1]": cancelled,
        "after[2]": cancelled,
        "more": cancelled,
        "whole": cancelled,
        "clean": ("succeeded", ""),
        "clean[0]": ("succeeded", ""),
        "clean[1]": ("succeeded", ""),
    }
