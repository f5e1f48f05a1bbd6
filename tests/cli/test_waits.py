"""Steps that wait for a person, on the command line."""

from __future__ import annotations

import json

import pytest

from evpipe import UsageError
from evpipe.cli.signal import _read
from tests.cli.helpers import CommandLine, finish, until_said

TARGET = "tests.e2e.wait_pipelines"


def test_waiting_approve_and_signal(hosted_bus: CommandLine) -> None:
    """What waits is told, listed and answered once; who answered is shown. A signal has a payload in JSON."""
    ordered = hosted_bus.start("run", f"{TARGET}:ordered", "-o", "json")
    running = hosted_bus.start("run", f"{TARGET}:released", "-o", "json")
    said = until_said(running, "note: step 'approve'")
    run_id = said.split("run: ")[1].split()[0]
    assert (
        f"note: step 'approve' waits for an answer (bool): Release to production?; `evpipe runs approve {run_id} "
        "approve` gives one"
    ) in said
    (found,) = hosted_bus("runs", "waiting", "-o", "json").json
    assert list(found) == ["run", "pipeline", "step", "message", "accepts", "show", "since", "until", "description"]
    assert (found["run"], found["step"], found["show"]) == (run_id, "approve", {"score": 0.5})
    head, line = hosted_bus("runs", "waiting", "--pipeline", "released").out.splitlines()
    assert head.split() == ["run", "pipeline", "step", "answer", "since", "until"]
    assert line.split()[:4] == [run_id, "released", "approve", "bool"]
    assert line.endswith(" Release to production? (score=0.5)")
    answered = hosted_bus("runs", "approve", run_id[:8], "approve", "--by", "ann", "-o", "json")
    assert answered.json == {"id": run_id, "pipeline": "released", "step": "approve", "answer": True, "by": "ann"}
    again = hosted_bus("runs", "approve", run_id, "approve", "false", "--by", "bob", "-o", "json")
    assert again.code == 2
    assert "was answered by ann at" in json.loads(again.out)["error"]
    until_said(ordered, "step 'order' waits for the signal orders.created with {'id': 7}")
    sent = hosted_bus("signal", "orders.created", '{"id": 7, "total": 2.5}', "-o", "json")
    assert sent.json == {"name": "orders.created", "payload": {"id": 7, "total": 2.5}, "sequence": 1}
    assert finish(ordered).json["value"] == [2.5, 0]
    done = finish(running)
    assert done.json["steps"]["approve"]["answered_by"] == "ann"
    assert done.json["value"] == "released 0.5"


def test_what_is_no_payload_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the payload '\{id: 7\}' is no JSON text, such as"):
        _read("{id: 7}")
    with pytest.raises(UsageError, match="NaN is not JSON"):
        _read("NaN")


def test_answers_on_the_command_line(evpipe: CommandLine) -> None:
    """--answer is read by the type that its step asks for."""
    local = ("--mode", "local", "-q", "-o", "json")
    given = ("--answer", "which=b", "--answer", "note=yes = no", "--answer", "share=2")
    done = evpipe("run", f"{TARGET}:texts", *local, *given)
    assert done.json["value"] == ["released b", "yes = no", 2.0]
