"""Conditions, branches and rules: what they decide, the same in every mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import Client, Controller, RunResult, SkipStep, Worker, run
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.sdk.hook import Mode
from tests.e2e import decision_pipelines as these

MODES = get_args(Mode)
OK = ("succeeded", "")
FAILED = ("failed", "error")
NOT_CHOSEN = ("skipped", "condition")
BLOCKED = ("skipped", "upstream")
BOUND = ("failed", "output")


@dataclass(frozen=True, kw_only=True)
class Case:
    pipeline: Any
    steps: dict[str, tuple[str, str]]
    parameters: dict[str, Any] = field(default_factory=dict)
    status: str = "succeeded"
    value: Any = None
    errors: dict[str, str] = field(default_factory=dict)
    #: What the handler `notify` was told.
    told: dict[str, Any] = field(default_factory=dict)
    #: Debug mode runs one step after another and notices a deadline when a call returns.
    modes: tuple[str, ...] = MODES


CASES = [
    Case(
        pipeline=these.coin,
        steps={"flip": OK, "heads": OK, "tails": NOT_CHOSEN, "told": OK},
        value={"joined": "told H:heads"},
        errors={"tails": "its condition is false: not (flip == 'heads') & (flip != 'edge')"},
    ),
    Case(
        pipeline=these.coin,
        parameters={"side": "tails"},
        steps={"flip": OK, "heads": NOT_CHOSEN, "tails": OK, "told": OK},
        value={"joined": "told T:tails"},
        errors={"heads": "its condition is false: flip == 'heads'"},
    ),
    Case(
        pipeline=these.coin,
        parameters={"side": "edge"},
        steps={"flip": OK, "heads": NOT_CHOSEN, "tails": NOT_CHOSEN, "told": NOT_CHOSEN},
        value={"joined": None},
        errors={"told": "no branch has a value: heads skipped, tails skipped"},
    ),
    Case(
        pipeline=these.without_its_value,
        steps={"flip": OK, "heads": NOT_CHOSEN, "told": NOT_CHOSEN, "all": OK},
        value="told tails",
        errors={"told": "step 'heads' was skipped"},
    ),
    Case(pipeline=these.of_a_parameter, steps={"flip": OK, "flip-2": OK, "flip-3": OK, "a": OK, "b": OK}),
    Case(
        pipeline=these.no_such_key,
        steps={"flip": OK, "a": BOUND},
        status="failed",
    ),
    Case(
        pipeline=these.no_such_order,
        steps={"flip": OK, "a": BOUND},
        status="failed",
    ),
    Case(
        pipeline=these.rules,
        status="failed",
        steps={
            "fail": FAILED,
            "clean": OK,
            "told": BLOCKED,
            "all_done": OK,
            "any_succeeded": OK,
            "any_failed": OK,
            "none_failed": BLOCKED,
            "all_failed": NOT_CHOSEN,
            "always": OK,
            "mourned": OK,
            "no_mourning": NOT_CHOSEN,
        },
    ),
    Case(
        pipeline=these.cleaned_after_a_failure,
        status="failed",
        steps={"fail": FAILED, "told": BLOCKED, "clean": OK},
    ),
    Case(
        pipeline=these.cleaned_after_the_first_failure,
        status="failed",
        modes=("bus", "local"),
        steps={
            "wait": ("cancelled", "upstream"),
            "fail": FAILED,
            "done": ("cancelled", "upstream"),
            "clean": OK,
        },
    ),
    Case(
        pipeline=these.cleaned_after_the_deadline,
        status="failed",
        modes=("bus", "local"),
        steps={
            "wait": ("cancelled", "deadline"),
            "told": ("cancelled", "deadline"),
            "beside": OK,
            "clean": OK,
        },
    ),
    Case(
        pipeline=these.with_handlers,
        parameters={"badly": True},
        status="failed",
        steps={
            "kept": OK,
            "fail": FAILED,
            "told": BLOCKED,
            "notify": OK,
            "clean": NOT_CHOSEN,
            "fail-2": FAILED,
        },
        errors={"clean": "its condition is false: run['status'] == 'succeeded'"},
        told={
            "run": True,
            "pipeline": "with_handlers",
            "parameters": {"badly": True},
            "status": "failed",
            "reason": "error",
            "message": "step 'fail' failed: ValueError: no",
            "failed": [{"step": "fail", "reason": "error", "message": "ValueError: no", "attempts": 1}],
            "failed_count": 1,
            "duration_s": True,
        },
    ),
    Case(
        pipeline=these.with_handlers,
        parameters={"badly": False},
        value="told cleaned",
        steps={"kept": OK, "clean": OK, "told": OK, "notify": OK, "clean-2": OK, "fail": NOT_CHOSEN},
        told={"status": "succeeded", "reason": None, "message": "", "failed": [], "failed_count": 0},
    ),
    Case(
        pipeline=these.with_a_handler_that_counts,
        status="failed",
        steps={"told": OK, "fail": FAILED, "notify": OK},
        told={"status": "succeeded", "failed": []},
    ),
    Case(
        pipeline=these.handled_after_the_deadline,
        status="failed",
        modes=("bus", "local"),
        steps={"wait": ("cancelled", "deadline"), "told": ("cancelled", "deadline"), "notify": OK},
        told={"status": "failed", "reason": "deadline", "failed": []},
    ),
    Case(
        pipeline=these.built_with_handlers(),
        parameters={"word": "a"},
        value="told a",
        steps={"notify": OK, "notify-2": OK},
        told={"status": "succeeded", "parameters": {"word": "a"}},
    ),
]


@pytest.mark.parametrize(
    ("case", "mode"),
    [pytest.param(case, mode, id=f"{case.pipeline.name}-{mode}") for case in CASES for mode in case.modes],
)
def test_what_is_decided(case: Case, mode: Mode, embedded: Path) -> None:
    result = run(case.pipeline, dict(case.parameters), mode=mode)
    found = {name: (str(step.status), str(step.reason or "")) for name, step in result.steps.items()}
    assert found == case.steps
    assert str(result.status) == case.status
    if case.told:
        about = result.steps["notify-2" if "notify-2" in result.steps else "notify"].value
        assert {key: about[key] for key in case.told} == case.told
    for name, error in case.errors.items():
        assert result.steps[name].error == error
    if case.status == "succeeded":
        assert result.value == case.value


@pytest.mark.parametrize("mode", MODES)
def test_a_body_skips_its_step(mode: Mode, embedded: Path) -> None:
    """As a false condition does: no retry, no failure, no result in the cache, and its mutex is free."""
    result = run(these.skip_themselves, mode=mode)
    found = {
        name: (str(step.status), str(step.reason or ""), step.attempts, step.error)
        for name, step in result.steps.items()
        if step.status != "succeeded"
    }
    left_out = ("skipped", "condition")
    assert found == {
        "child": (*left_out, 1, "no child today"),
        "thread": (*left_out, 1, "no thread today"),
        "coroutine": (*left_out, 2, "no coroutine today"),
        "below": (*left_out, 0, "step 'child' was skipped"),
        "mourned": (*left_out, 0, "its run_if any_failed does not hold: coroutine skipped"),
        "no_evens[1]": (*left_out, 1, "its body raised SkipStep"),
        "handles_nothing": (*left_out, 1, "nothing to tell: succeeded"),
    }
    assert result.value == {
        "after": "after None",
        "one": 1,
        "none_failed": "told [None, None]",
        "mourned": None,
        "each": [1, None, 3],
        "element": "told None",
    }
    assert [point.value for point in result.steps["child"].metrics] == [1.0]
    assert result.steps["child"].started_at is not None


def test_a_function_that_skips_raises_outside_of_a_run() -> None:
    with pytest.raises(SkipStep, match="no bread today"):
        these.not_today("bread")


def test_finalisers_run_after_a_cancel(server: ServerProcess) -> None:
    """Also one whose launch has not left when the cancel comes, and one that has failed once."""

    async def main() -> RunResult[Any]:
        async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client, slots=3):
            handle = await client.submit(these.cleaned_after_a_cancel)
            async for event in handle.events():
                if (event.step, event.kind) == ("wait", "started"):
                    await handle.cancel("enough")
            return await handle.result(timeout_s=30)

    result = anyio.run(main)
    found = {name: (str(step.status), str(step.reason or ""), step.attempts) for name, step in result.steps.items()}
    assert found == {
        "wait": ("cancelled", "request", 1),
        "told": ("cancelled", "request", 0),
        "clean": ("succeeded", "", 1),
        "fails": ("failed", "error", 2),
        "last": ("succeeded", "", 1),
        "notify": ("succeeded", "", 1),
    }
    about = result.steps["notify"].value
    assert (about["status"], about["message"], about["failed"][0]["step"]) == ("cancelled", "enough", "fails")
    assert (str(result.status), result.error) == ("cancelled", "enough")
