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
        ["step", "executor", "queue", "function", "after", "outcome"],
        ["load", "process", "gpu", "report:load", "-", "runs:", "not", "cached"],
        ["total", "inline", "default", "report:total", "load", "runs:", "not", "cached"],
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


CACHING = """
from evpipe import pipeline, step

class Model:
    pass

@step(cache=True)
def load(rows: int) -> list[int]:
    return list(range(rows))

@step
def check(data: list[int]) -> int:
    return len(data)

@step(cache=True)
def train(data: list[int], count: int, depth: int) -> int:
    return len(data) * depth

@step
def odd() -> dict[str, Model]:
    return {}

@pipeline
def fit(depth: int = 3) -> int:
    data = load(10)
    train.options(name="first")(data, 10, depth)
    return train(data, check(data), depth)

@pipeline
def strange() -> int:
    return odd()
"""


def test_what_the_cache_would_give(evpipe: CommandLine, tmp_path: Path) -> None:
    """As far as inputs are known: through steps that would be cached, and up to what must run."""
    script = tmp_path / "fit.py"
    script.write_text(CACHING)

    def outcomes(*args: str) -> dict[str, str]:
        found = evpipe("run", f"{script}:fit", "--dry-run", "-o", "json", *args).json
        return {step["name"]: step["outcome"] for step in found["steps"]}

    assert outcomes() == {"load": "runs", "first": "open", "check": "runs", "train": "open"}
    assert evpipe("run", f"{script}:fit").code == 0
    assert outcomes() == {"load": "cached", "first": "cached", "check": "runs", "train": "open"}
    assert outcomes("-p", "depth=4") == {"load": "cached", "first": "runs", "check": "runs", "train": "open"}
    assert outcomes("--no-cache") == dict.fromkeys(("load", "first", "check", "train"), "runs")
    assert outcomes("--refresh", "first")["first"] == "runs"
    assert outcomes("--mode", "debug") == {"load": "runs", "first": "open", "check": "runs", "train": "open"}
    assert evpipe("run", f"{script}:fit", "--mode", "debug").code == 0
    assert outcomes("--mode", "local") == {"load": "cached", "first": "cached", "check": "runs", "train": "open"}
    unreachable = evpipe.with_env(EVPIPE_NATS_URL="nats://127.0.0.1:1")
    done = unreachable("run", f"{script}:fit", "--dry-run")
    assert (done.code, "the cache was not asked" in done.err) == (0, True)


def test_a_class_that_nothing_can_write(evpipe: CommandLine, tmp_path: Path) -> None:
    """It is told before a step has taken an hour to make one."""
    script = tmp_path / "fit.py"
    script.write_text(CACHING)
    told = evpipe("run", f"{script}:strange", "--dry-run").out
    assert "no serializer: step 'odd' returns fit.Model: it has no serializer: give it one with @serializer" in told
