"""Conditions, branches and rules: what they decide, the same in every mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import Client, Controller, RunResult, Worker, run
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
    for name, error in case.errors.items():
        assert result.steps[name].error == error
    if case.status == "succeeded":
        assert result.value == case.value


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
    }
    assert (str(result.status), result.error) == ("cancelled", "enough")
