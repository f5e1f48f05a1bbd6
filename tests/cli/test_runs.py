"""`evpipe runs`: whoever submitted a run, any process may look at it and cancel it."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe import connect
from tests.cli.helpers import MODULE, CommandLine, Done, finish, story, until, until_said
from tests.cli.pipelines import churn


def listed(bus: CommandLine, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = bus("runs", "list", "-o", "json", *args).json
    return found


def submit(bus: CommandLine, *keys: str) -> list[str]:
    """Submit runs of `churn`; a key gives an id that is known before."""

    async def main() -> list[str]:
        async with connect(bus.env["EVPIPE_NATS_URL"], prefix=bus.env["EVPIPE_PREFIX"]) as client:
            return [(await client.submit(churn, {"rows": 1}, key=key)).id for key in keys]

    return anyio.run(main)


def start_waiting(bus: CommandLine, started: Path) -> Done:
    """Start a run whose step does not end, and leave it to itself."""
    process = bus.start("run", f"{MODULE}:waiting", "-p", f"started={started}", "-o", "json")
    until_said(process, "run: ")
    until(started.exists, "the step runs")
    process.send_signal(signal.SIGINT)
    return finish(process)


def test_list(hosted_bus: CommandLine) -> None:
    """The newest come first; pipeline, status and limit choose."""
    assert listed(hosted_bus) == []
    first = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json["id"]
    second = hosted_bus("run", f"{MODULE}:failing", "-o", "json").json["id"]
    until(lambda: [run["status"] for run in listed(hosted_bus)] == ["failed", "succeeded"], "both are listed")
    runs = listed(hosted_bus)
    assert [run["id"] for run in runs] == [second, first]
    assert list(runs[0]) == ["id", "pipeline", "status", "submitted_at", "ended_at", "error", "parent", "root"]
    assert runs[0]["error"].startswith("step 'break_down' failed: ValueError: no such")
    assert runs[1]["error"] is None
    assert datetime.fromisoformat(runs[0]["submitted_at"]) <= datetime.fromisoformat(runs[0]["ended_at"])
    assert [run["id"] for run in listed(hosted_bus, "--pipeline", "churn")] == [first]
    assert [run["id"] for run in listed(hosted_bus, "--status", "failed")] == [second]
    assert [run["id"] for run in listed(hosted_bus, "--limit", "1")] == [second]
    text = hosted_bus("runs", "list")
    lines = text.out.splitlines()
    assert lines[0].split() == ["run", "pipeline", "status", "submitted", "took"]
    assert [line.split()[:3] for line in lines[1:]] == [[second, "failing", "failed"], [first, "churn", "succeeded"]]
    assert lines[1].endswith("step 'break_down' failed: ValueError: no such file")
    assert text.err == f"bus: {hosted_bus.env['EVPIPE_NATS_URL']} (configured)\n"
    assert hosted_bus("runs", "list", "--limit", "1").err.endswith("1 older ones are not shown (--limit)\n")


def test_show(hosted_bus: CommandLine) -> None:
    """A run is shown with its status, parameters, steps and value; as JSON it is the object of `evpipe run`."""
    ran = hosted_bus("run", f"{MODULE}:churn", "-p", "rows=3", "-o", "json").json
    shown = hosted_bus("runs", "show", ran["id"], "-o", "json")
    assert shown.code == 0
    assert {key: shown.json[key] for key in ran} == ran
    assert shown.json["parameters"] == {"rows": 3, "scale": 1.0}
    assert datetime.fromisoformat(shown.json["submitted_at"]) <= datetime.fromisoformat(shown.json["ended_at"])
    lines = hosted_bus("runs", "show", ran["id"]).out.splitlines()
    assert lines[:3] == [f"run:        {ran['id']}", "pipeline:   churn", "status:     succeeded"]
    assert lines[5:8] == ["parameters: rows=3 scale=1.0", "value:      3.0", ""]
    assert lines[8].split() == ["step", "status", "attempts", "started", "took"]
    assert [line.split()[:3] for line in lines[9:]] == [["load", "succeeded", "1"], ["total", "succeeded", "1"]]

    failed = hosted_bus("run", f"{MODULE}:failing", "-o", "json").json["id"]
    done = hosted_bus("runs", "show", failed)
    assert done.code == 0
    assert "status:     failed (error: step 'break_down' failed: ValueError: no such file)" in done.out.splitlines()
    assert done.out.splitlines()[-1].split()[:2] == ["after", "skipped"]


def test_save(hosted_bus: CommandLine, tmp_path: Path) -> None:
    """A file is given on the command line by its path, and comes back by --save."""
    file, out = tmp_path / "words.txt", tmp_path / "out"
    file.write_text("a b c")
    ran = hosted_bus("run", f"{MODULE}:reading", "-p", f"file={file}", "-o", "json").json
    assert (ran["status"], ran["value"]["text"]) == ("succeeded", "a b c")
    saved = hosted_bus("runs", "show", ran["id"], "--save", str(out))
    assert saved.code == 0
    assert f"read_text['files'][0]: {out}/read_text/files/0/words.txt" in saved.err.splitlines()
    assert (out / "read_text/files/0/words.txt").read_text() == "a b c"
    assert json.loads((out / "read_text/output.json").read_text())["text"] == "a b c"
    refused = hosted_bus("runs", "show", ran["id"], "--save", str(file / "nope"))
    assert (refused.code, refused.err.splitlines()[-1]) == (
        2,
        f"evpipe: --save {file}/nope: it cannot be made (Not a directory); name another folder",
    )


def test_watch(hosted_bus: CommandLine, tmp_path: Path) -> None:
    """Watching ends with the run, with the result and the exit code of `evpipe run`; Ctrl-C ends only the watching."""
    ran = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json
    watched = hosted_bus("runs", "watch", ran["id"])
    assert (watched.code, watched.out) == (0, "6.0\n")
    assert watched.err.splitlines()[-1].startswith("succeeded: 2 succeeded in ")
    failed = hosted_bus("run", f"{MODULE}:failing", "-o", "json").json
    watched = hosted_bus("runs", "watch", failed["id"], "-o", "json")
    assert (watched.code, watched.json) == (1, failed)
    assert watched.err.splitlines()[-2:] == ["ValueError: no such", "file"]

    left = start_waiting(hosted_bus, tmp_path / "started").json["id"]
    process = hosted_bus.start("runs", "watch", left, "-o", "json")
    other = hosted_bus.start("runs", "watch", left)
    for watching in (process, other):
        until_said(watching, "run: ")
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130
    assert hosted_bus("runs", "cancel", left).code == 0
    assert finish(other).code == 4


def test_events(hosted_bus: CommandLine) -> None:
    """All events of a run, as `evpipe events` writes them; ends after `finished`."""
    ran = hosted_bus("run", f"{MODULE}:churn", "-o", "json").json["id"]
    out = hosted_bus("runs", "events", ran, "-o", "json")
    assert out.code == 0
    assert story(out.out) == [(None, "submitted"), ("load", "succeeded"), ("total", "succeeded"), (None, "finished")]
    assert out.out == hosted_bus("events", "--run", ran, "-o", "json").out
    assert hosted_bus("runs", "events", ran).out == hosted_bus("events", "--run", ran).out


def test_events_without_end(bus: CommandLine) -> None:
    """--no-follow ends where the log ends, whether or not the run has."""
    run = submit(bus, "monday")[0]
    out = bus("runs", "events", run, "--no-follow", "-o", "json")
    assert (out.code, json.loads(out.out)["kind"]) == (0, "submitted")


def test_cancel(hosted_bus: CommandLine, tmp_path: Path) -> None:
    """A run is cancelled once, with the message; asked again, or when it has ended, that is said, and all is well."""
    left = start_waiting(hosted_bus, tmp_path / "started")
    run = left.json["id"]
    assert f"watch it with `evpipe runs watch {run}`, cancel it with `evpipe runs cancel {run}`" in left.err
    done = hosted_bus("runs", "cancel", run, "--message", "not today", "-o", "json")
    assert done.code == 0
    assert list(done.json) == ["id", "pipeline", "status", "asked"]
    assert (done.json["id"], done.json["pipeline"], done.json["asked"]) == (run, "waiting", True)
    assert done.err.endswith(f"run {run} is asked to end\n")
    watched = hosted_bus("runs", "watch", run, "-o", "json")
    assert (watched.code, watched.json["status"], watched.json["error"]) == (4, "cancelled", "not today")
    again = hosted_bus("runs", "cancel", run, "-o", "json")
    assert (again.code, again.json["asked"], again.json["status"]) == (0, False, "cancelled")
    assert again.err.endswith(f"run {run} had ended already: cancelled\n")
    kinds = [json.loads(line)["kind"] for line in hosted_bus("runs", "events", run, "-o", "json").out.splitlines()]
    assert kinds.count("cancel-requested") == 1


def test_cancel_twice_where_nobody_leads(bus: CommandLine) -> None:
    """A run that is asked to end before a controller sees it is asked once."""
    run = submit(bus, "monday")[0]
    assert bus("runs", "cancel", run).err.endswith(f"run {run} is asked to end\n")
    done = bus("runs", "cancel", run, "-o", "json")
    assert (done.code, done.json["asked"]) == (0, False)
    assert done.err.endswith(f"run {run} was asked to end before\n")


VERBS = ["show", "watch", "events", "cancel"]


def test_beginnings_of_ids(bus: CommandLine) -> None:
    """The first characters of an id name the run if they name no other, also where no controller keeps a list."""
    # Keys whose ids begin alike, and differ in the fifth character.
    one, other = submit(bus, "k474", "k865")
    assert one[:4] == other[:4]
    for text in (one[:5], one[:10], one):
        shown = bus("runs", "show", text, "-o", "json")
        assert (shown.code, shown.json["id"]) == (0, one)
    assert bus("runs", "cancel", other[:5], "-o", "json").json["id"] == other
    expected = f"{one[:4]} is the beginning of 2 runs: {one} (churn), {other} (churn)"
    for verb in VERBS:
        done = bus("runs", verb, one[:4], "-o", "json")
        assert (done.code, done.json) == (2, {"error": expected})


@pytest.mark.parametrize("verb", VERBS)
def test_no_such_run(bus: CommandLine, verb: str) -> None:
    """A run that does not exist ends with 3, by its id and by a beginning."""
    for text in ("abcd", "abcdefghijklmnopqrst"):
        done = bus("runs", verb, text, "-o", "json")
        assert (done.code, done.json) == (3, {"error": f"there is no run {text}"})
        assert done.err.endswith(f"evpipe: there is no run {text}\n")
