"""Pipelines in pipelines: the same results and states in every mode, all the way down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import Client, Controller, LimitExceeded, RunResult, StepResult, Worker, run
from evpipe.bus.memory import MemoryBus
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.core.lineage import RUN_DEPTH_MAX
from evpipe.sdk.hook import Mode
from tests.e2e import child_pipelines as these

MODES = get_args(Mode)
OK = "succeeded"
CACHED = "cached"
NOT_CHOSEN = "skipped condition"
BLOCKED = "skipped upstream"
ERROR = "failed error"


def tree(steps: Mapping[str, StepResult]) -> dict[str, Any]:
    """The state of every step, and below it those of the run that it is."""
    found: dict[str, Any] = {}
    for name, step in steps.items():
        state = " ".join(filter(None, (str(step.status), str(step.reason or ""))))
        found[name] = (state, tree(step.steps)) if step.run is not None else state
    return found


INNER = (OK, {"number": OK, "add": OK})
MIDDLE = (OK, {"inner": INNER, "less": OK, "inner-2": INNER, "add": OK})
DIAMOND = (OK, dict.fromkeys("ABCD", OK))
FAILED = (ERROR, {"fail": ERROR, "add": BLOCKED})


def down(levels: int) -> dict[str, Any]:
    """The states of a countdown."""
    below = (OK, down(levels - 1)) if levels else NOT_CHOSEN
    return {"less": OK, "countdown": below, "number": NOT_CHOSEN if levels else OK}


@dataclass(frozen=True, kw_only=True)
class Case:
    pipeline: Any
    steps: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    #: Parameters that name a folder of the test's own.
    folder: bool = False
    status: str = "succeeded"
    value: Any = None
    #: What the run's error has in it.
    error: str = ""
    modes: tuple[str, ...] = MODES
    options: dict[str, Any] = field(default_factory=dict)
    #: Whether it needs `run`, also on the bus.
    alone: bool = False


CASES = [
    Case(pipeline=these.three_deep, steps={"number": OK, "middle": MIDDLE, "middle-2": MIDDLE, "add": OK}, value=34),
    Case(
        pipeline=these.unpacked,
        steps={"number": OK, "ends": (OK, {"less": OK, "number": OK}), "add": OK}
        | {"ends-2": (OK, {"less": OK, "number": OK}), "add-2": OK},
        value=13,
    ),
    Case(
        pipeline=these.large_values,
        steps={"large": OK, "large-2": OK, "large-3": OK, "large_inside": (OK, {"total": OK}), "total": OK},
        value={"sum": 799_980_000, "again": 799_980_000, "small": [0, 1, 2]},
    ),
    Case(
        pipeline=these.diamond_of_diamonds,
        steps={"A": DIAMOND, "B": DIAMOND, "C": DIAMOND, "joined": OK, "D": DIAMOND},
        value="dD",
    ),
    Case(
        pipeline=these.mapped,
        steps={
            "up_to": OK,
            "inner": OK,
            "again": OK,
            "failing": "succeeded",
            "failing[0]": FAILED,
            "failing[1]": FAILED,
        }
        | {f"{name}[{i}]": INNER for name in ("inner", "again") for i in range(3)},
        value={"found": [11, 12, 13], "again": [12, 13, 14], "bad": [None, None]},
    ),
    Case(
        pipeline=these.fib,
        parameters={"n": 3},
        steps={"fib": (OK, {"fib": (OK, {"number": OK}), "fib-2": (OK, {"number": OK}), "add": OK})}
        | {"fib-2": (OK, {"number": OK}), "add": OK},
        value=2,
    ),
    Case(pipeline=these.countdown, parameters={"n": 4}, steps=down(3), value=0),
    Case(
        pipeline=these.ping,
        parameters={"n": 3},
        steps={"less": OK, "number": NOT_CHOSEN}
        | {"pong": (OK, {"less": OK, "number": NOT_CHOSEN})}
        | {
            "pong": (
                OK,
                {"less": OK, "ping": (OK, {"less": OK, "pong": NOT_CHOSEN, "number": OK}), "number": NOT_CHOSEN},
            )
        },
        value=100,
    ),
    Case(
        pipeline=these.failed_deep,
        status="failed",
        steps={
            "number": OK,
            "failing_inside": (ERROR, {"failing": FAILED, "add": BLOCKED}),
            "number-2": OK,
            "told": OK,
        },
        error="step 'failing_inside' failed: ValueError: no 3 (step 'fail' of run ",
    ),
    Case(pipeline=these.retried, folder=True, steps={"trying": (OK, {"flaky": OK, "add": OK}), "add": OK}, value=3),
    Case(pipeline=these.retried_in_vain, status="failed", steps={"failing": FAILED, "add": BLOCKED}, error="no 2"),
    Case(pipeline=these.not_of_this_kind, status="failed", steps={"failing": FAILED}, error="no 2"),
    Case(pipeline=these.allowed, steps={"failing": FAILED, "number": OK}, value={"bad": None, "good": 5}),
    Case(
        pipeline=these.wrong_value,
        status="failed",
        steps={"text": OK, "inner": ("failed rejected", {})},
        error="parameter 'n' of pipeline 'inner' must be int, not 'x' (str)",
    ),
    Case(
        pipeline=these.no_such_part,
        status="failed",
        steps={"large": OK, "strict": ("failed output", {})},
        error="the output large has no 7: it has length 3",
    ),
    Case(pipeline=these.chosen, steps={"number": OK, "inner": NOT_CHOSEN, "number-2": OK}, value=0),
    Case(
        pipeline=these.cached_twice,
        steps={"cached_inside": (OK, {"squared": OK}), "cached_inside-2": (OK, {"squared": CACHED})},
        value=9,
        options={"refresh": ["cached_inside/squared"]},
        modes=("bus", "local"),
    ),
    Case(
        pipeline=these.cached_twice,
        steps={"cached_inside": (OK, {"squared": OK}), "cached_inside-2": (OK, {"squared": CACHED})},
        value=9,
        modes=("debug",),
    ),
    Case(
        pipeline=these.asks_inside,
        steps={"asking": (OK, {"number": OK, "ok": OK})},
        value={"n": 3, "ok": True},
        options={"answers": {"asking/ok": True}},
        alone=True,
    ),
    Case(
        pipeline=these.asks_in_each,
        steps={"asking": OK, **{f"asking[{i}]": (OK, {"number": OK, "ok": OK}) for i in range(3)}},
        value=[{"n": n, "ok": n != 2} for n in (1, 2, 3)],
        options={"answers": {"asking[1]/ok": False, "asking/ok": True}},
        modes=("debug", "local"),
        alone=True,
    ),
    Case(pipeline=these.handed_on, steps={"number": OK, "empty": (OK, {}), "empty-2": (OK, {})}, value=[5, 3]),
    Case(
        pipeline=these.timed_out,
        status="failed",
        steps={"waiting": ("failed timeout", {"wait": "cancelled deadline"})},
        error="the run was not done 0.5 s after its submit",
        modes=("bus", "local"),
    ),
    Case(
        pipeline=these.too_long_inside,
        status="failed",
        steps={"too_long": ("failed deadline", {"wait": "cancelled deadline"})},
        modes=("bus", "local"),
    ),
    Case(
        pipeline=these.fail_fast,
        folder=True,
        status="failed",
        steps={"cleaning": ("cancelled upstream", {"wait": "cancelled upstream", "clean": OK}), "failing": FAILED},
        modes=("bus", "local"),
    ),
]


def check(case: Case, result: RunResult[Any]) -> None:
    assert tree(result.steps) == case.steps
    assert str(result.status) == case.status
    assert case.error in result.error
    if case.status == "succeeded":
        assert result.value == case.value


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(case, mode, id=f"{case.pipeline.name}-{mode}")
        for case in CASES
        for mode in case.modes
        if mode == "debug" or case.alone
    ],
)
def test_runs_in_runs(case: Case, mode: Mode, embedded: Path, tmp_path: Path) -> None:
    parameters = {**case.parameters, **({"folder": str(tmp_path)} if case.folder else {})}
    check(case, run(case.pipeline, parameters, mode=mode, **case.options))


@pytest.mark.parametrize("mode", ["bus", "local"])
def test_runs_in_runs_beside_each_other(mode: Mode, server: ServerProcess, tmp_path: Path) -> None:
    """All of them at the same time, on one controller and one worker."""
    cases = [case for case in CASES if mode in case.modes and not case.alone]
    found: dict[int, RunResult[Any]] = {}

    async def one(client: Client, i: int, case: Case) -> None:
        folder = tmp_path / str(i)
        folder.mkdir()
        parameters = {**case.parameters, **({"folder": str(folder)} if case.folder else {})}
        handle = await client.submit(case.pipeline, parameters, **case.options)
        found[i] = await handle.result(timeout_s=60)

    async def main() -> None:
        bus = NatsBus(BusSettings(url=server.url)) if mode == "bus" else MemoryBus()
        async with bus:
            client = Client(bus=bus)
            async with Controller(client), Worker(client, slots=4), anyio.create_task_group() as task_group:
                for i, case in enumerate(cases):
                    task_group.start_soon(one, client, i, case)
            for i, case in enumerate(cases):
                await anyio.to_thread.run_sync(check, case, found[i])

    anyio.run(main)
    steps = next(found[i] for i, case in enumerate(cases) if case.pipeline is these.diamond_of_diamonds).steps
    a, b = steps["A"].steps["D"], steps["B"].steps["A"]
    assert a.ended_at is not None
    assert b.queued_at is not None
    assert a.ended_at <= b.queued_at, "nothing of the outer B is ready before all of the outer A has ended"


def test_a_builder_that_is_a_step_of_itself() -> None:
    for mode in ("local", "debug"):
        result = run(these.built(), {"n": 2}, mode=mode)
        last = (OK, {"left": OK, "again": NOT_CHOSEN, "style": INNER})
        assert tree(result.steps) == {"left": OK, "again": last, "style": INNER}


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_a_recursion_that_does_not_stop_is_ended(mode: Mode) -> None:
    """So many runs deep; the failure comes up to the root, and says where it was made as it is."""
    result: RunResult[Any] = run(these.bottomless, {"n": 0}, mode=mode)
    assert str(result.status) == "failed"
    assert f"pipeline 'bottomless' is called {RUN_DEPTH_MAX} runs deep" in result.error
    assert len(result.error) < 300
    depth, steps = 0, result.steps
    while "bottomless" in steps and steps["bottomless"].steps:
        depth, steps = depth + 1, steps["bottomless"].steps
    assert depth == RUN_DEPTH_MAX
    with pytest.raises(LimitExceeded, match="levels deep"):
        these.fib.build({"n": 40})


def test_cancelled_from_outside_and_from_inside(server: ServerProcess, tmp_path: Path) -> None:
    """A cancel of the root reaches all below, finalisers run from the inside out; that of a child fails its step."""

    async def main() -> None:
        settings = BusSettings(url=server.url)
        async with Client(settings) as client, Controller(client), Worker(client, slots=4):
            root = await client.submit(these.outer_cleaning, {"folder": str(tmp_path)})
            child = await client.submit(these.outer_cleaning, {"folder": str(tmp_path / "no")})
            (tmp_path / "no").mkdir()
            below: dict[str, str] = {}
            waited = 0
            async for event in client.events(since=0):
                if event.kind == "submitted" and "parent" in event.data:
                    parent = event.data["parent"]
                    below[event.run] = parent["run"]
                    assert parent["root"] in (root.id, child.id)
                if (event.kind, event.step) == ("started", "wait"):
                    waited += 1
                    if below[below[event.run]] == root.id:
                        await root.cancel("enough")
                    else:
                        await (await client.get_run(event.run)).cancel("by hand")
                if waited == 2:
                    break
            ended, failed = await root.result(timeout_s=30), await child.result(timeout_s=30)
            ended_tree, failed_tree = await anyio.to_thread.run_sync(lambda: (tree(ended.steps), tree(failed.steps)))
            inside = ("cancelled request", {"wait": "cancelled request", "clean": OK})
            assert ended_tree == {"cleaning_inside": ("cancelled request", {"cleaning": inside}), "last": OK}
            assert (str(ended.status), ended.error) == ("cancelled", "enough")
            inside = ("failed request", {"wait": "cancelled request", "clean": OK})
            assert failed_tree == {"cleaning_inside": ("failed request", {"cleaning": inside}), "last": OK}
            assert str(failed.status) == "failed"
            assert "was cancelled: by hand" in failed.error

            # Roots are listed; what is below one is asked for.
            roots = await client.runs()
            assert {entry.run for entry in roots} == {root.id, child.id}
            assert len(await client.runs(children=True)) == 6
            assert [entry.pipeline for entry in await client.runs(parent=root.id)] == ["cleaning_inside"]
            found = await client.runs(parent=ended.steps["cleaning_inside"].run)
            assert [(entry.pipeline, entry.root, str(entry.status)) for entry in found] == [
                ("cleaning", root.id, "cancelled")
            ]

    anyio.run(main)


def test_nothing_of_a_run_below_is_garbage(server: ServerProcess) -> None:
    """Graphs that are built into others are referred to by nothing else."""

    async def main() -> None:
        async with Client(BusSettings(url=server.url)) as client:
            before = await client.bus.objects.entries()
            await client.submit(these.three_deep, {"n": 1})
            stored = {entry.digest for entry in await client.bus.objects.entries()} - {e.digest for e in before}
            found = await client.collect_garbage(older_s=600, dry_run=True)
            assert found.objects == len(before) + len(stored)
            assert (found.removed, found.young) == (0, 0)

    anyio.run(main)
