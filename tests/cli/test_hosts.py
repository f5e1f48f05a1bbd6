"""`evpipe controller` and `evpipe worker`: processes of their own on a configured bus, and how they leave."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpipe.controller.lease import TTL_S
from tests.cli.helpers import MODULE, CommandLine, Host, finish, until, until_said
from tests.e2e.helpers import Witness
from tests.e2e.pipelines import begins_of_fan, value_of_fan

FAN = "tests.e2e.pipelines:fan"
Start = Callable[..., Host]
MINE = """
import os
from pathlib import Path

from evpipe import pipeline, step

print("mine is here", flush=True)


def where():
    return [os.getpid(), str(Path.cwd())]


@step(executor="thread")
def in_thread():
    return where()


@step
def in_process():
    return where()


@pipeline
def both():
    return [in_thread(), in_process()]
"""


def fan(witness: Witness, gate: Path | None = None, width: int = 3) -> list[str]:
    gates = ["-p", f"gate={gate}"] if gate else []
    return ["run", FAN, "-p", f"witness={witness.path}", *gates, "-p", f"width={width}", "-o", "json"]


def events_of(bus: CommandLine, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bus("runs", "events", run, "--no-follow", "-o", "json").out.splitlines()]


def test_everything_apart(bus: CommandLine, host: Start, witness: Witness) -> None:
    """A controller, two workers and a run, each a process of its own: the right result, each step once."""
    hosts = [host("controller"), host("worker", "--slots", "2"), host("worker", "-q", "gpu", "-q", "default")]
    hosts[0].until_logged("controller_leads")
    for worker in hosts[1:]:
        worker.until_logged("worker_serves")
    assert [worker.logged("worker_serves")[0]["queues"] for worker in hosts[1:]] == [["default"], ["gpu", "default"]]
    assert hosts[1].logged("worker_serves")[0]["slots"] == 2
    done = bus(*fan(witness))
    assert (done.code, done.json["value"]) == (0, value_of_fan(3)), done
    assert witness.begins == begins_of_fan(3)
    assert bus("run", "tests.e2e.pipelines:needs_gpu", "-p", f"witness={witness.path}").out == '"trained"\n'
    for process in hosts:
        assert [line["url"] for line in process.logged("bus_connected")] == [bus.env["EVPIPE_NATS_URL"]]
        process.signal(signal.SIGTERM)
    assert [process.finish() for process in hosts] == [0, 0, 0]
    assert not any("Traceback" in process.err for process in hosts)


def test_worker_drains(bus: CommandLine, host: Start, witness: Witness, gate: Path, tmp_path: Path) -> None:
    """A worker that is told to leave ends the step that it runs and takes no other, though it has a free slot."""
    host("controller").until_logged("controller_leads")
    leaving = host("worker", "--slots", "2").until_logged("worker_serves")
    running = bus.start(*fan(witness, gate, width=1))
    until(lambda: witness.has_begun("held0"), "the step is held")
    leaving.signal(signal.SIGTERM)
    leaving.until_logged("worker_drains")
    other = host("worker").until_logged("worker_serves")
    later = Witness(tmp_path / "later")
    assert bus(*fan(later)).json["value"] == value_of_fan(3)
    assert later.begins == begins_of_fan(3)
    assert {pid for _, _, pid in later.lines} == {other.process.pid}
    assert leaving.process.poll() is None
    gate.touch()
    assert leaving.finish() == 0
    done = finish(running)
    assert (done.code, done.json["value"]) == (0, value_of_fan(1))
    assert witness.begins == begins_of_fan(1)
    assert {pid for _, name, pid in witness.lines if name == "held0"} == {leaving.process.pid}
    assert {step["attempts"] for step in done.json["steps"].values()} == {1}
    assert not leaving.logged("attempts_cancelled")


def test_drain_timeout(bus: CommandLine, host: Start, witness: Witness, gate: Path) -> None:
    """What has not ended after --drain-timeout runs again elsewhere, as another attempt."""
    host("controller").until_logged("controller_leads")
    leaving = host("worker", "--drain-timeout", "0.2").until_logged("worker_serves")
    running = bus.start(*fan(witness, gate, width=1))
    until(lambda: witness.has_begun("held0"), "the step is held")
    leaving.signal(signal.SIGTERM)
    assert leaving.finish() == 0
    assert [line["count"] for line in leaving.logged("attempts_cancelled")] == [1]
    gate.touch()
    host("worker").until_logged("worker_serves")
    done = finish(running)
    assert (done.code, done.json["value"]) == (0, value_of_fan(1))
    assert witness.begins["held0"] == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal(bus: CommandLine, host: Start, witness: Witness, gate: Path, second: signal.Signals) -> None:
    """A second signal ends a worker that drains at once."""
    host("controller").until_logged("controller_leads")
    leaving = host("worker").until_logged("worker_serves")
    running = bus.start(*fan(witness, gate, width=1))
    until(lambda: witness.has_begun("held0"), "the step is held")
    leaving.signal(signal.SIGTERM)
    leaving.until_logged("worker_drains")
    leaving.signal(second)
    assert leaving.finish() == 130
    until_said(running, "run: ")
    running.send_signal(signal.SIGINT)
    assert finish(running).code == 130


def test_controller_hands_over(bus: CommandLine, host: Start, witness: Witness, gate: Path) -> None:
    """A controller that is told to leave gives up its lease: the one that stands by leads before it would run out."""
    leaving = host("controller").until_logged("controller_leads")
    standby = host("controller").until_logged("controller_standing_by")
    host("worker").until_logged("worker_serves")
    running = bus.start(*fan(witness, gate, width=1))
    until(lambda: witness.has_begun("held0"), "the step is held")
    began = time.monotonic()
    leaving.signal(signal.SIGTERM)
    standby.until_logged("controller_leads")
    assert time.monotonic() - began < TTL_S * 0.75
    assert leaving.finish() == 0
    gate.touch()
    done = finish(running)
    assert (done.code, done.json["value"]) == (0, value_of_fan(1))
    assert witness.begins == begins_of_fan(1)
    standby.signal(signal.SIGINT)
    assert standby.finish() == 130


def test_embedded(evpipe: CommandLine, host: Start, tmp_path: Path) -> None:
    """Without a configured bus a controller leads on the embedded one, and cancels runs of scripts that are gone."""
    controller = host("controller", line=evpipe).until_logged("controller_leads")
    assert [line["embedded"] for line in controller.logged("bus_connected")] == [True]
    assert evpipe("run", f"{MODULE}:churn").out == "6.0\n"
    started = tmp_path / "started"
    script = evpipe.start("run", "tests.cli.cleaning:cleaned", "-p", f"started={started}")
    said = until_said(script, "run: ")
    until(started.exists, "the step runs")
    script.kill()
    finish(script)
    run = re.search(r"^run: (\w+)", said, re.MULTILINE)
    assert run is not None
    watched = evpipe("runs", "watch", run[1], "-o", "json")
    assert (watched.code, watched.json["error"]) == (4, "the script that ran it is gone")
    # Nobody can run what was to run all the same, and what it held is free.
    assert {step["status"] for step in watched.json["steps"].values()} <= {"cancelled", "failed"}
    assert evpipe("run", "tests.cli.cleaning:after").out == "7\n"
    controller.signal(signal.SIGTERM)
    assert controller.finish() == 0


def test_code_of_the_folder(bus: CommandLine, host: Start, tmp_path: Path) -> None:
    """A worker with --code finds modules in its folder, imports them at its start, and runs steps itself."""
    (tmp_path / "mine.py").write_text(MINE)
    line = bus.at(tmp_path)
    host("controller").until_logged("controller_leads")
    worker = host("worker", "--code", "local:mine", line=line).until_logged("worker_serves")
    assert (tmp_path / "host1" / "out").read_text() == "mine is here\n"
    done = line("run", "mine:both", "-o", "json")
    assert done.code == 0, done
    in_thread, in_process = done.json["value"]
    assert in_thread == [worker.process.pid, str(tmp_path)]
    assert in_process[0] != worker.process.pid
    # What comes with a run is not looked at, and not put anywhere.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mine.py").write_text(MINE.replace("return [os.getpid(), str(Path.cwd())]", "return ['theirs', '']"))
    done = bus.at(theirs)("run", "mine:both", "-o", "json")
    assert done.json["value"] == [in_thread, in_process]
    assert not (tmp_path / "cache" / "evpipe" / "bundles").exists()
    worker.signal(signal.SIGINT)
    assert worker.finish() == 130


def test_code_of_the_submitter(bus: CommandLine, host: Start, tmp_path: Path) -> None:
    """A worker without --code imports nothing itself: children do, from what was submitted."""
    theirs, elsewhere = tmp_path / "theirs", tmp_path / "elsewhere"
    theirs.mkdir()
    elsewhere.mkdir()
    (theirs / "mine.py").write_text(MINE)
    host("controller").until_logged("controller_leads")
    worker = host("worker", line=bus.at(elsewhere)).until_logged("worker_serves")
    done = bus.at(theirs)("run", "mine.py:both", "-o", "json")
    assert done.code == 0, done
    assert worker.process.pid not in [pid for pid, _ in done.json["value"]]
    assert (tmp_path / "host1" / "out").read_text() == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_leave_before_it_serves(evpipe: CommandLine, host: Start, number: signal.Signals, code: int) -> None:
    """A signal ends a host that still waits for its bus to answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        waiting = host("worker", "--url", url, line=evpipe).until_logged("bus_connecting")
        waiting.signal(number)
        assert waiting.finish() == code
    assert "Traceback" not in waiting.err
    assert "evpipe:" not in waiting.err


def test_no_bus(evpipe: CommandLine, host: Start) -> None:
    """A host that finds no bus ends with 5 and a sentence."""
    nowhere = host("controller", "--url", "nats://127.0.0.1:1", line=evpipe)
    assert nowhere.finish() == 5
    assert nowhere.err.splitlines()[-1].startswith("evpipe: no NATS server answers at nats://127.0.0.1:1")
