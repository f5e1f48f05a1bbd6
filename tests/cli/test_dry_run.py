"""`evpipe run --dry-run`: what would be run, and the files that would travel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import CommandLine

SCRIPT = """
import beside
from evpipe import pipeline, step

@step(queue="gpu")
def load(rows: int) -> int:
    raise AssertionError("nothing runs")

@step
async def total(rows: int, by: int) -> int:
    return rows * by

@pipeline(version="2.0")
def report(rows: int = 3) -> int:
    return total(load(rows), by=2)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "report.py").write_text(SCRIPT)
    (folder / "beside.py").write_text("x = 1\n")
    (folder / "unrelated.py").write_text("x = 1\n")
    return folder / "report.py"


def test_text(evpipe: CommandLine, script: Path) -> None:
    done = evpipe("run", str(script), "--dry-run")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "pipeline report 2.0: 2 steps"
    assert [line.split() for line in lines[1:4]] == [
        ["step", "executor", "queue", "function", "after"],
        ["load", "process", "gpu", "report:load"],
        ["total", "inline", "default", "report:total", "load"],
    ]
    assert lines[4].startswith("bundle ")
    assert [line.split() for line in lines[5:]] == [
        ["file", "bytes"],
        ["beside.py", "6"],
        ["report.py", str(len(SCRIPT))],
    ]


def test_json(evpipe: CommandLine, script: Path) -> None:
    """The same for programs; and what is wrong with the call is said as ever."""
    found = evpipe("run", str(script), "--dry-run", "-p", "rows=5", "-o", "json").json
    assert found["parameters"] == {"rows": 5}
    assert [step["after"] for step in found["steps"]] == [[], ["load"]]
    assert found["bundle"]["files"] == {"beside.py": 6, "report.py": len(SCRIPT)}
    assert len(found["bundle"]["digest"]) == 64
    assert evpipe("run", str(script), "--dry-run", "-p", "rows=x").code == 2


def test_nothing_travels(evpipe: CommandLine) -> None:
    """Of what is installed everywhere nothing is packed; no bus is asked for that."""
    line = evpipe.with_env(EVPIPE_NATS_URL="nats://127.0.0.1:1")
    done = line("run", "evpipe.examples.stdlib_report:report", "--dry-run")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "no code travels: all of it is installed"
