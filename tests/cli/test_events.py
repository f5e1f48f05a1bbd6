"""`evpipe events` as another process sees the log."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evpipe.cli.events import Since, text_line
from evpipe.client.events import RunEvent
from tests.cli.helpers import MODULE, CommandLine, finish, story


def test_another_process_sees_them(hosted_bus: CommandLine) -> None:
    """Events come while another process runs the pipeline; Ctrl-C ends with 130 and says nothing."""
    watching = hosted_bus.start("events", "--kind", "finished", "-o", "json", "--since", "1h")
    ran = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json
    assert watching.stdout is not None
    event = json.loads(watching.stdout.readline())
    assert list(event) == ["sequence", "at", "run", "pipeline", "step", "kind", "attempt", "data"]
    assert (event["run"], event["data"]["value"]) == (ran["id"], 6.0)
    watching.send_signal(signal.SIGINT)
    done = finish(watching)
    assert done.code == 130
    assert done.err == f"bus: {hosted_bus.env['EVPIPE_NATS_URL']} (configured)\n"


def test_selection(hosted_bus: CommandLine) -> None:
    """Pipeline, kind, run and since choose; --no-follow and --run end."""
    churn = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json
    hosted_bus("run", f"{MODULE}:failing", "-o", "json")
    whole = [(None, "submitted"), ("load", "succeeded"), ("total", "succeeded"), (None, "finished")]
    of_run = hosted_bus("events", "--run", churn["id"], "-o", "json")
    assert (of_run.code, story(of_run.out)) == (0, whole)
    there = ("events", "--no-follow", "-o", "json")
    assert story(hosted_bus(*there, "--pipeline", "churn").out) == whole
    assert story(hosted_bus(*there, "--kind", "failed").out) == [("break_down", "failed")]
    loaded = next(event for event in map(json.loads, of_run.out.splitlines()) if event["kind"] == "succeeded")
    assert story(hosted_bus(*there, "--since", str(loaded["sequence"]), "--pipeline", "churn").out) == whole[2:]
    assert len(story(hosted_bus(*there, "--since", "10m").out)) == 8
    assert hosted_bus(*there, "--since", "2999-01-01").out == ""
    ended = hosted_bus("events", "--run", churn["id"], "--since", "2999-01-01")
    assert (ended.code, ended.out) == (0, "")


def test_lines(hosted_bus: CommandLine) -> None:
    """In text each event is one line, whatever its message holds, and without colours where no terminal is."""
    ran = hosted_bus("run", f"{MODULE}:failing", "-o", "json").json
    out = hosted_bus("events", "--run", ran["id"]).out
    found = [line for line in (line.split(maxsplit=5)[2:] for line in out.splitlines()) if line[2] != "started"]
    assert [line[:3] for line in found] == [
        [ran["id"], "-", "submitted"],
        [ran["id"], "break_down", "failed"],
        [ran["id"], "after", "skipped"],
        [ran["id"], "-", "finished"],
    ]
    assert found[1][3] == "#1  error: ValueError: no such file"
    assert "\x1b" not in out


def test_started(hosted_bus: CommandLine, tmp_path: Path) -> None:
    """That a step has started is told while it runs, with the worker that runs it."""
    watching = hosted_bus.start("events", "--kind", "started", "-o", "json", "--since", "1h")
    running = hosted_bus.start("run", f"{MODULE}:waiting", "-p", f"started={tmp_path / 'started'}", "-o", "json")
    assert watching.stdout is not None
    event = json.loads(watching.stdout.readline())
    assert (event["step"], event["kind"], event["attempt"]) == ("wait_long", "started", 1)
    assert event["data"]["worker"].startswith("worker-")
    assert hosted_bus("runs", "cancel", event["run"]).code == 0
    assert finish(running).code == 4


def test_no_such_run(bus: CommandLine) -> None:
    """A run that does not exist ends with 3."""
    done = bus("events", "--run", "abcdefgh", "-o", "json")
    assert (done.code, done.json) == (3, {"error": "there is no run abcdefgh"})


def test_reader_that_leaves(hosted_bus: CommandLine) -> None:
    """Nothing is said where the reader of a pipe has gone, as with `| head`."""
    ran = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json
    process = hosted_bus.start("events", "--run", ran["id"])
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert done.code == 141
    assert done.err.count("\n") == 1


NOW = datetime(2025, 11, 23, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("1500", Since(sequence=1500)),
        ("2025-11-23T14:30:00Z", Since(at_s=NOW.timestamp())),
        ("2025-11-23T15:30+01:00", Since(at_s=NOW.timestamp())),
    ],
)
def test_since(text: str, since: Since) -> None:
    """--since is a sequence or a time."""
    assert Since.of(text) == since


def test_since_duration() -> None:
    """--since is a duration before now, too."""
    found = Since.of("10m").at_s
    assert found is not None
    assert 599 < datetime.now(UTC).timestamp() - found < 620


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        ("submitted", {"graph": "ab", "queue": "", "parameters": {"rows": 5}}, "churn rows=5"),
        ("started", {"worker": "worker-1"}, "worker-1"),
        ("succeeded", {"started_at": 1.0, "value": "x" * 1000}, None),
        ("progress", {"notes": {"metrics": [["a", 1.0, 1, 1.0]] * 1_500}}, "1,500 points of metrics"),
        ("progress", {"notes": {"metrics": [[]], "artifacts": {"plot": 1}}}, "1 point of metrics, artifact 'plot'"),
        ("progress", {"notes": 5}, None),
        ("retry", {"due_at": NOW.timestamp() + 2}, "in 2.0 s"),
        ("failed", {"reason": "error", "message": "a\x1b[31m\r\nb"}, "error: a\\x1b[31m b"),
        ("cancel-requested", {"cause": "deadline", "message": "late"}, "deadline: late"),
        ("finished", {"status": "succeeded", "message": "", "value": [1]}, "succeeded [1]"),
        ("finished", {"status": "failed", "message": "step 'a' failed"}, "failed: step 'a' failed"),
        ("of-tomorrow", {"what": 1}, "what=1"),
    ],
)
def test_telling(kind: str, data: dict[str, Any], shown: str | None) -> None:
    """Each kind shows what a person wants to know, on one line of bounded length."""
    event = RunEvent(kind=kind, run="r" * 20, pipeline="churn", step=None, attempt=0, at=NOW, sequence=1, data=data)
    line = text_line(event)
    assert "\n" not in line
    assert len(line) < 300
    if shown is not None:
        assert line.endswith(f" {shown}")
