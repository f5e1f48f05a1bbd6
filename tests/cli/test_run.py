"""`evpipe run` through every mode and to every exit code."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.helpers import MODULE, PIPELINES, CommandLine, finish, until, until_said

MODES = ["local", "debug", "bus"]


@pytest.mark.parametrize("mode", MODES)
def test_value(evpipe: CommandLine, mode: str) -> None:
    """The value is all there is on standard output; what steps print goes with the talk."""
    done = evpipe("run", f"{PIPELINES}:churn", "-p", "rows=5", "-p", "scale=0.5", "--mode", mode)
    assert (done.code, done.out) == (0, "5.0\n"), done
    lines = done.err.splitlines()
    assert lines[0].startswith("bus: ")
    assert ("loading 5" if mode == "debug" else "load | loading 5") in lines
    assert lines[-1].startswith("succeeded: 2 succeeded in ")


@pytest.mark.parametrize("mode", MODES)
def test_failed(evpipe: CommandLine, mode: str) -> None:
    """A failed run ends with 1 and shows the step's own traceback, in every mode the same."""
    done = evpipe("run", f"{MODULE}:failing", "--mode", mode)
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    at = lines.index("Traceback (most recent call last):")
    assert lines[at - 1].startswith("failed: 1 failed, 1 skipped in ")
    assert lines[at - 1].endswith(": step 'break_down' failed: ValueError: no such file")
    assert lines[at + 1].endswith("in break_down")
    assert lines[-2:] == ["ValueError: no such", "file"]


def test_json(evpipe: CommandLine) -> None:
    """-o json gives one object with everything that is known of the run."""
    done = evpipe("run", f"{MODULE}:failing", "--mode", "local", "-o", "json", "--quiet")
    found = done.json
    assert done.code == 1
    assert list(found) == ["id", "pipeline", "status", "value", "error", "reason", "steps"]
    assert (found["pipeline"], found["status"], found["value"], found["reason"]) == ("failing", "failed", None, "error")
    assert list(found["steps"]) == ["break_down", "after"]
    broken, skipped = found["steps"]["break_down"], found["steps"]["after"]
    assert list(broken) == [
        "status",
        "attempts",
        "queued_at",
        "started_at",
        "ended_at",
        "error",
        "reason",
        "cached_from",
        "run",
        "answered_by",
        "waits_for",
    ]
    assert (broken["status"], broken["attempts"], broken["reason"]) == ("failed", 1, "error")
    times = [datetime.fromisoformat(broken[key]) for key in ("queued_at", "started_at", "ended_at")]
    assert all(time.tzinfo is not None for time in times)
    assert (skipped["status"], skipped["reason"], skipped["started_at"]) == ("skipped", "upstream", None)
    assert done.err.splitlines()[-1].startswith(f"evpipe: run {found['id']} failed: ")


def test_values_that_json_does_not_have(evpipe: CommandLine) -> None:
    """Bytes, tuples, named tuples and non-finite numbers are written as documented."""
    done = evpipe("run", f"{MODULE}:odd", "--mode", "local", "-o", "json")
    assert done.json["value"] == {
        "bytes": {"base64": "AP8="},
        "tuple": [1, 2],
        "nan": "NaN",
        "fit": {"model": "tree", "score": "-Infinity"},
        "text": "é\n",
    }
    text = evpipe("run", f"{MODULE}:odd", "--mode", "debug").out
    assert text.startswith("{'bytes': b'\\x00\\xff', 'tuple': (1, 2), 'nan': nan, 'fit': Fit(")


def test_nothing_to_show(evpipe: CommandLine) -> None:
    """A pipeline that returns nothing writes nothing; as JSON its value is null."""
    assert evpipe("run", f"{MODULE}:nothing", "--mode", "local").out == ""
    assert evpipe("run", f"{MODULE}:nothing", "--mode", "local", "-o", "json").json["value"] is None


def test_deadline(evpipe: CommandLine, tmp_path: Path) -> None:
    """A run that misses its deadline has failed."""
    done = evpipe("run", f"{MODULE}:late", "-p", f"started={tmp_path / 'started'}", "--mode", "local", "-o", "json")
    assert done.code == 1
    assert (done.json["status"], done.json["reason"]) == ("failed", "deadline")


def test_timeout(evpipe: CommandLine, tmp_path: Path) -> None:
    """--timeout ends with 124 and one sentence; a run that this process runs is cancelled."""
    where = f"started={tmp_path / 'started'}"
    done = evpipe("run", f"{MODULE}:waiting", "-p", where, "--timeout", "0.5", "-o", "json")
    assert done.code == 124
    assert done.json["status"] == "cancelled"
    last = done.err.splitlines()[-1]
    assert last == f"evpipe: {done.json['error']}"
    assert "had not ended after 0.5 s and was cancelled" in last


def test_interrupt(evpipe: CommandLine, tmp_path: Path) -> None:
    """Ctrl-C cancels a run on the embedded bus, ends with 130, and the log has its end."""
    started = tmp_path / "started"
    process = evpipe.start("run", f"{MODULE}:waiting", "-p", f"started={started}", "-o", "json")
    until_said(process, "run: ")
    until(started.exists, "the step runs")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert (done.json["status"], done.json["error"]) == ("cancelled", "interrupted with Ctrl-C")
    assert done.err.splitlines()[-1].endswith(": interrupted with Ctrl-C")
    shown = evpipe("events", "--run", done.json["id"], "-o", "json")
    assert shown.code == 0
    last = json.loads(shown.out.splitlines()[-1])
    assert (last["kind"], last["data"]["status"]) == ("finished", "cancelled")


def test_interrupt_in_debug_mode(evpipe: CommandLine, tmp_path: Path) -> None:
    """Ctrl-C ends the call, and with it the run, whose end is written."""
    started = tmp_path / "started"
    process = evpipe.start("run", f"{MODULE}:waiting", "-p", f"started={started}", "--mode", "debug", "-o", "json")
    until(started.exists, "the step runs")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert "note: cancelling (Ctrl-C again to leave at once)" in done.err
    assert (done.json["status"], done.json["error"]) == ("cancelled", "interrupted with Ctrl-C")
    assert done.err.splitlines()[-1].endswith(": interrupted with Ctrl-C")


def test_configured_bus(hosted_bus: CommandLine) -> None:
    """On a configured bus the steps run where a worker is; the same key is the same run."""
    args = ("run", f"{MODULE}:churn", "-o", "json", "--key", "monday")
    first, second = hosted_bus(*args), hosted_bus(*args)
    assert (first.code, first.json["value"]) == (0, 6.0)
    assert "loading" not in first.err
    assert first.json == second.json
    other = hosted_bus(*args, "-p", "rows=5")
    assert other.code == 2
    expected = f"the key 'monday' belongs to run {first.json['id']}, which was submitted with rows = 4, not 5"
    assert other.json == {"error": expected}


def test_nobody_there(bus: CommandLine, tmp_path: Path) -> None:
    """Where nobody runs it, that is said within 5 s, and --timeout leaves the run in the log."""
    done = bus("run", f"{MODULE}:waiting", "-p", f"started={tmp_path}", "--timeout", "5", "-o", "json")
    assert done.code == 124
    assert "note: no controller answers on this bus" in done.err
    assert "note: no worker serves the queue 'default'" in done.err
    assert done.json["status"] in ("submitted", "running")
    assert done.json["error"].endswith("has not ended after 5 s; it goes on")


def test_interrupt_on_a_configured_bus(hosted_bus: CommandLine, tmp_path: Path) -> None:
    """On a configured bus Ctrl-C only stops watching."""
    started = tmp_path / "started"
    process = hosted_bus.start("run", f"{MODULE}:waiting", "-p", f"started={started}", "-o", "json")
    until_said(process, "run: ")
    until(started.exists, "the step runs")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert f"note: run {done.json['id']} goes on" in done.err
    kinds = [json.loads(line)["kind"] for line in _events_of(hosted_bus, done.json["id"])]
    assert "finished" not in kinds


def _events_of(bus: CommandLine, run: str) -> list[str]:
    return bus("events", "--run", run, "-o", "json", "--no-follow").out.splitlines()


def test_unreachable(evpipe: CommandLine) -> None:
    """A bus that does not answer ends with 5, in a run and in the doctor, whose last line says so."""
    url = ("--url", "nats://127.0.0.1:1")
    running, looking = evpipe.start("run", f"{MODULE}:churn", *url, "-o", "json"), evpipe.start("doctor", *url)
    done, looked = finish(running), finish(looking)
    assert (done.code, looked.code) == (5, 5)
    assert done.json["error"].startswith("no NATS server answers at nats://127.0.0.1:1")
    assert done.err.startswith("bus: nats://127.0.0.1:1 (configured)\nevpipe: no NATS server answers")
    assert "url = nats://127.0.0.1:1 from --url" in looked.out
    assert looked.out.splitlines()[-1] == f"fail  bus          {done.json['error']}"


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_steps_that_go_on_writing(evpipe: CommandLine, kind: str) -> None:
    """Steps that write to the end do not spoil the exit code: threads, which cannot be stopped, and processes."""
    buffered = evpipe.without("PYTHONUNBUFFERED")
    for _ in range(3):
        assert buffered("run", f"tests.cli.noisy:noisy_{kind}", "--mode", "local", "--timeout", "0.3").code == 124
