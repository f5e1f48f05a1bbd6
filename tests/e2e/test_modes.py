"""The modes bus, local and debug give the same result and the same step states, whatever the pipeline says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from evpipe import PipelineFunction, RunFailed, run
from evpipe.wire.extensions import ACCEPTED_STORED
from evpipe.wire.limits import MESSAGE_CHARS_MAX

from . import mode_pipelines as these

Mode = Literal["bus", "local", "debug"]
#: Status, attempts, reason.
Ended = tuple[str, int, str | None]
OK: Ended = ("succeeded", 1, None)
SKIPPED: Ended = ("skipped", 0, "upstream")
CUT = "word " * 200_000


@dataclass(frozen=True, kw_only=True)
class Case:
    pipeline: PipelineFunction[..., Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    status: str = "succeeded"
    reason: str | None = None
    value: Any = None
    error: str = ""
    steps: Mapping[str, Ended] = field(default_factory=dict)
    #: Errors of steps, where they have one that is not the run's.
    errors: Mapping[str, str] = field(default_factory=dict)


def failed(pipeline: PipelineFunction[..., Any], step: str, error: str, **more: Any) -> Case:
    """A run that fails because a step does."""
    reason = more.pop("reason", "error")
    steps = {step: ("failed", more.pop("attempts", 1), reason), **more.pop("steps", {})}
    run_error = f"step {step!r} failed: {error}"
    return Case(
        pipeline=pipeline,
        status="failed",
        reason=reason,
        error=run_error[: MESSAGE_CHARS_MAX - 1] + "…" if len(run_error) > MESSAGE_CHARS_MAX else run_error,
        steps=steps,
        errors={step: error, **more.pop("errors", {})},
        **more,
    )


TALK = f"ValueError: {CUT}"[: MESSAGE_CHARS_MAX - 1] + "…"
ACCEPTED = f"accepted are {ACCEPTED_STORED}"

CASES = [
    Case(
        pipeline=these.chain,
        value=6,
        steps=dict.fromkeys(("number", "double", "increase", "double-2"), OK),
    ),
    Case(
        pipeline=these.fan,
        value=20,
        steps={
            **{f"{step}{'' if i == 1 else f'-{i}'}": OK for i in range(1, 6) for step in ("number", "double")},
            "add_up": OK,
        },
    ),
    Case(
        pipeline=these.diamond,
        value={"sum": 16, "parts": (10, 6), "constant": None},
        steps=dict.fromkeys(("number", "double", "increase", "add_up"), OK),
    ),
    Case(
        pipeline=these.nested,
        value={
            "score": 1.0,
            "second": 2,
            "high": 2,
            "low": 1,
            "test": 3,
            "split": these.Split([7], [8]),
            "whole": [{"model": {"weights": [1, 2]}, "score": 1.0}, {"low": 1, "high": 2}],
        },
        steps=dict.fromkeys(("split", "fit", "bounds", "split-2"), OK),
    ),
    Case(
        pipeline=these.no_shared_arguments,
        value=[[1, 2], [1, 3], [1]],
        steps=dict.fromkeys(("append", "append-2", "append-3"), OK),
    ),
    Case(pipeline=these.after_without_data, value=1, steps={"late": OK, "early": OK}),
    Case(
        pipeline=these.limited,
        value=6,
        steps=dict.fromkeys(("number", "number-2", "number-3", "number-4", "add_up"), OK),
    ),
    Case(pipeline=these.empty, value={"constant": 3}),
    failed(
        these.failure_fails,
        "fail",
        "KeyError: 'x'",
        steps={"double": SKIPPED, "number": OK, "add_up": SKIPPED},
        errors={"double": "step 'fail' failed", "add_up": "step 'double' was skipped"},
    ),
    Case(
        pipeline=these.failure_skips,
        value=[None, None, 2],
        steps={"fail": ("failed", 1, "error"), "double": SKIPPED, "number": OK},
        errors={"fail": "KeyError: 'x'", "double": "step 'fail' failed"},
    ),
    Case(
        pipeline=these.failure_continues,
        value=2,
        steps={"fail": ("failed", 1, "error"), "number": OK, "add_up": OK},
        errors={"fail": "KeyError: 'x'"},
    ),
    Case(
        pipeline=these.retried,
        parameters={"fails": 2},
        value=6,
        steps={"flaky": ("succeeded", 3, None), "double": OK},
    ),
    failed(
        these.retried,
        "flaky",
        "ConnectionResetError: attempt 4",
        parameters={"fails": 9},
        attempts=4,
        steps={"double": SKIPPED},
        errors={"double": "step 'flaky' failed"},
    ),
    failed(
        these.retried,
        "flaky",
        "KeyError: 'attempt 1'",
        parameters={"fails": 1, "kind": "key"},
        steps={"double": SKIPPED},
        errors={"double": "step 'flaky' failed"},
    ),
    failed(
        these.times_out,
        "too_slow",
        "the attempt ran longer than 0.1 s",
        reason="timeout",
        attempts=2,
        steps={"double": SKIPPED},
        errors={"double": "step 'too_slow' failed"},
    ),
    Case(
        pipeline=these.fails_fast,
        status="failed",
        reason="upstream",
        error="step 'fail' failed and fail_fast is set",
        steps={
            "fail": ("failed", 1, "error"),
            "slow": ("cancelled", 1, "upstream"),
            "double": ("cancelled", 0, "upstream"),
            "add_up": SKIPPED,
        },
        errors={
            "fail": "KeyError: 'x'",
            "slow": "step 'fail' failed and fail_fast is set",
            "double": "step 'fail' failed and fail_fast is set",
            "add_up": "step 'fail' failed",
        },
    ),
    Case(
        pipeline=these.misses_deadline,
        status="failed",
        reason="deadline",
        error="the run was not done 0.2 s after its submit",
        steps={"slow": ("cancelled", 1, "deadline"), "double": ("cancelled", 0, "deadline")},
        errors=dict.fromkeys(("slow", "double"), "the run was not done 0.2 s after its submit"),
    ),
    Case(
        pipeline=these.output_missing,
        status="failed",
        reason="output",
        error="the pipeline's output: the output anything has no 'b': it has keys 'a'",
        steps={"anything": OK},
    ),
    failed(
        these.argument_missing,
        "anything-2",
        "the output anything has no 5: it has length 2",
        reason="output",
        steps={"anything": OK},
    ),
    failed(
        these.returns_object,
        "unencodable",
        f"the output of step 'unencodable' cannot be encoded: an object at ['bad'][0]; {ACCEPTED}",
        reason="output",
        steps={"anything": SKIPPED},
        errors={"anything": "step 'unencodable' failed"},
    ),
    failed(
        these.returns_too_little,
        "wrong_outputs",
        "step 'wrong_outputs' has the outputs model, score, but returned model",
        reason="output",
    ),
    failed(these.exits, "leave", "SystemExit: 3"),
    failed(these.rude, "be_rude", "Rude: <its __str__ raised ValueError>"),
    failed(these.talkative, "talk_a_lot", TALK),
    failed(these.surrogates, "surrogate", "ValueError: bad name \\udcff"),
]


@pytest.mark.parametrize("mode", ["bus", "local", "debug"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.pipeline.name)
def test_case(case: Case, mode: Mode, embedded: Path, request: pytest.FixtureRequest) -> None:
    """The run and each of its steps end as the table says, in every mode."""
    parameters = dict(case.parameters)
    if case.pipeline is these.retried:
        parameters["word"] = request.node.nodeid
    result = run(case.pipeline, parameters, mode=mode)
    expected = dict(case.steps)
    found = {name: (step.status, step.attempts, step.reason) for name, step in result.steps.items()}
    assert (result.status, result.reason, result.error) == (case.status, case.reason, case.error)
    assert found == expected
    errors = {name: step.error for name, step in result.steps.items() if step.error}
    assert errors == {name: error for name, error in case.errors.items() if expected[name] != OK}
    if case.status == "succeeded":
        assert result.value == case.value
        assert repr(result.value) == repr(case.value)
    else:
        with pytest.raises(RunFailed):
            _ = result.value
    ran = [step for step in result.steps.values() if step.status == "succeeded"]
    assert all(step.queued_at and step.started_at and step.ended_at for step in ran)


@pytest.mark.parametrize("mode", ["bus", "local", "debug"])
def test_traceback(mode: Mode, embedded: Path) -> None:
    """The traceback of a failed step shows the user's lines only, the same in every mode."""
    lines = run(these.failure_fails, mode=mode).steps["fail"].traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{these.__file__}", line ')
    assert lines[2:] == ["    raise KeyError(message)", "KeyError: 'x'"]


@pytest.mark.parametrize("mode", ["bus", "local", "debug"])
def test_long_traceback(mode: Mode, embedded: Path) -> None:
    """A huge message is cut in the traceback too, in every mode at the same place."""
    found = run(these.talkative, mode=mode).steps["talk_a_lot"].traceback
    assert len(found) < 17_000
    assert "characters cut" in found
