"""A second start in the modes local and debug takes what the first has done, as on the bus."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from evpipe import Cache, Pipeline, RunResult, current, pipeline, run, step
from evpipe.bus.results import ResultStore
from evpipe.hosting.debug import run_debug
from evpipe.hosting.display import Display
from evpipe.hosting.session import Session
from evpipe.sdk.definition import AnyPipeline
from tests.e2e.helpers import clean_environment

Kind = Literal["local", "debug"]
#: How often a body ran.
CALLS: Counter[str] = Counter()
SIZE = 300_000


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLS.clear()


@step(cache=Cache(ignore=("verbose",)), executor="thread")
def load(rows: int, verbose: bool = False) -> dict[str, Any]:
    CALLS["load"] += 1
    current().metric("rows", rows)
    current().artifact("picture", b"p" * SIZE)
    return {"data": bytes([rows]) * SIZE, "nested": [[b"n" * SIZE], {"rows": rows}]}


@step(cache=True, executor="inline")
async def fit(data: bytes, depth: int) -> int:
    CALLS["fit"] += 1
    return len(data) * depth


@step(executor="thread")
def rows_of(nested: list[Any]) -> list[int]:
    return [len(nested[0][0]), nested[1]["rows"]]


@pipeline
def train(rows: int = 3, depth: int = 2, verbose: bool = False) -> Any:
    loaded = load(rows, verbose)
    return [fit(loaded["data"], depth), rows_of(loaded["nested"])]


def start(
    mode: Kind,
    target: AnyPipeline[..., Any] = train,
    parameters: dict[str, Any] | None = None,
    *,
    no_cache: bool = False,
    refresh: bool | Sequence[str] = False,
) -> tuple[RunResult[Any], str]:
    """Run it; gives also what was said."""
    text = io.StringIO()
    built = target.build(parameters or {})
    if mode == "debug":
        result = run_debug(built, Display(text), no_cache=no_cache, refresh=refresh)
    else:
        session = Session(
            built, mode=mode, key=None, timeout_s=60, no_cache=no_cache, refresh=refresh, display=Display(text)
        )
        result = anyio.run(session.run)
    return result, text.getvalue()


def statuses(result: RunResult[Any]) -> dict[str, str]:
    return {name: str(found.status) for name, found in result.steps.items() if name != "rows_of"}


RAN = {"load": "succeeded", "fit": "succeeded"}
CACHED = {"load": "cached", "fit": "cached"}


@pytest.mark.parametrize("modes", list(itertools.product(("local", "debug"), repeat=2)), ids="-".join)
def test_what_one_has_done_the_next_takes(modes: tuple[Kind, Kind]) -> None:
    first, text = start(modes[0])
    assert statuses(first) == RAN
    assert "cache: 0 cached, 2 ran\n" in text
    second, text = start(modes[1])
    assert statuses(second) == CACHED
    assert CALLS == {"load": 1, "fit": 1}
    assert text.splitlines()[-1] == "cache: 2 cached, 0 ran"
    origin = second.steps["load"].cached_from
    assert origin is not None
    assert (origin.run, origin.pipeline, origin.step) == (first.id, "train", "load")
    assert second.value == first.value == [2 * SIZE, [SIZE, 3]]
    taken = second.steps["load"]
    assert taken.value == {"data": b"\3" * SIZE, "nested": [[b"n" * SIZE], {"rows": 3}]}
    assert taken.artifacts["picture"] == b"p" * SIZE
    assert [point.value for point in taken.metrics] == [3]
    third, text = start(modes[1], parameters={"depth": 5})
    assert statuses(third) == {"load": "cached", "fit": "succeeded"}
    assert text.splitlines()[-1] == "cache: 1 cached, 1 ran: fit: `depth` 2 → 5"


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_options_mean_what_they_mean_on_the_bus(mode: Kind) -> None:
    assert statuses(start(mode, no_cache=True)[0]) == RAN
    result, text = start(mode)
    assert statuses(result) == RAN, "nothing was recorded"
    assert statuses(start(mode, parameters={"verbose": True})[0]) == CACHED, "it is ignored"
    result, text = start(mode, no_cache=True)
    assert (statuses(result), "cache:" in text) == (RAN, False)
    result, text = start(mode, refresh=["fit"])
    assert statuses(result) == {"load": "cached", "fit": "succeeded"}
    assert text.splitlines()[-1] == "cache: 1 cached, 1 ran: fit: refreshed"
    origin = start(mode)[0].steps["fit"].cached_from
    assert origin is not None
    assert origin.run == result.id, "it replaced what was there"
    assert statuses(start(mode, refresh=True)[0]) == RAN
    newer = Pipeline("newer")
    newer.step("load", load, rows=3, cache=Cache(version="2", ignore=("verbose",)))
    result, text = start(mode, newer)
    assert result.steps["load"].status == "succeeded"


@pipeline
def child(depth: int) -> int:
    return fit(b"12", depth)


@pipeline
def family() -> list[int]:
    return [child(1), child(1), child.options(name="third")(2)]


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_runs_that_are_steps_take_results_and_are_refreshed(mode: Kind) -> None:
    first, _ = start(mode, family)
    assert first.value == [2, 2, 4]
    assert CALLS == {"fit": 2}, "of two equal steps one ran"
    second, _ = start(mode, family, refresh=["third/fit"])
    assert (second.value, CALLS["fit"]) == ([2, 2, 4], 3)
    of_third = second.steps["third"].result
    assert of_third is not None
    assert of_third.steps["fit"].status == "succeeded"


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_what_is_damaged_runs_again(mode: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))
    start(mode)
    objects = [file for file in (tmp_path / "results" / "objects").rglob("*") if file.is_file()]
    assert len(objects) >= 3
    for count, file in enumerate(objects, 2):
        file.chmod(0o600)
        file.write_bytes(b"?" * file.stat().st_size)
        result, _ = start(mode)
        assert statuses(result) == {"load": "succeeded", "fit": "cached"}
        assert (result.value, CALLS["load"]) == ([2 * SIZE, [SIZE, 3]], count)
        assert statuses(start(mode)[0]) == CACHED


@step(executor="thread", retries=1)
def count(rows: int) -> int:
    CALLS["count"] += 1
    if CALLS["count"] == 3:
        raise ValueError("the first attempt after it was too old")
    return rows


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_what_was_too_old_is_said_and_what_was_removed_is_not(
    mode: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else there is on record of the step."""
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))

    def closing(version: str) -> str:
        counts = Pipeline("counts")
        # Less than two runs are apart.
        counts.step("n", count, rows=3, cache=Cache(ttl_s=1e-3, version=version))
        result, text = start(mode, counts)
        assert statuses(result) == {"n": "succeeded"}
        return text.splitlines()[-1]

    assert closing("1") == "cache: 0 cached, 1 ran"
    assert closing("2") == "cache: 0 cached, 1 ran: n: version 1 → 2"
    assert closing("2") == "cache: 0 cached, 1 ran: n: the same was too old", "also where it is said of a retry"
    assert CALLS["count"] == 4
    results = ResultStore(tmp_path / "results", pytest.fail)
    newest = results.entries("made.counts.n")[-1]
    results.delete(newest.key.rpartition(".")[2])
    assert closing("2") == "cache: 0 cached, 1 ran: n: version 1 → 2", "it has made room for others"


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_where_nothing_can_be_kept_it_is_said_once(mode: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "file"))
    for _ in range(2):
        result, text = start(mode)
        assert statuses(result) == RAN
        assert text.count("results of cached steps are not kept for other runs") == 1
    CALLS.clear()
    result, _ = start(mode, family)
    assert (result.value, CALLS["fit"]) == ([2, 2, 4], 2), "the run itself has a cache all the same"
    assert run(train, mode=mode, no_cache=True).status == "succeeded"


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_without_cached_steps_nothing_is_written(mode: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "data"))
    plain = Pipeline("plain")
    plain.step("rows", rows_of, nested=[["a"], {"rows": 1}])
    assert start(mode, plain)[0].status == "succeeded"
    assert start(mode, no_cache=True)[0].status == "succeeded"
    assert not (tmp_path / "data").exists()


SCRIPT = """
import sys
from evpipe import pipeline, step

@step(cache=True)
def double(number: int) -> int:
    print("ran", number, flush=True)
    return number * 2

@pipeline
def doubles() -> list[int]:
    return double.map(list(range(6)))

if __name__ == "__main__":
    print(doubles.options(mode=sys.argv[1]).run().value)
"""


@pytest.fixture
def script(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    file = tmp_path / "doubles.py"
    file.write_text(SCRIPT)
    return file, clean_environment(EVPIPE_DATA_DIR=tmp_path / "data")


def test_scripts_take_what_scripts_did_and_people_can_look_and_clear(script: tuple[Path, dict[str, str]]) -> None:
    file, environment = script

    def evpipe(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evpipe", *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def starts() -> dict[str, tuple[str, str]]:
        """Start it in both modes at the same time."""
        started = {
            mode: subprocess.Popen(
                [sys.executable, file, mode], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for mode in ("local", "debug")
        }
        return {mode: process.communicate(timeout=60) for mode, process in started.items()}

    for out, err in starts().values():
        assert out.splitlines()[-1] == "[0, 2, 4, 6, 8, 10]", err
    again = starts()
    assert {out for out, _ in again.values()} == {"[0, 2, 4, 6, 8, 10]\n"}
    assert "cache: 6 cached, 0 ran" in again["local"][1]
    listed = evpipe("cache", "list", "--mode", "local")
    assert len(listed.stdout.splitlines()) == 7
    assert "double[5]" in listed.stdout
    assert f"results: {file.parent / 'data' / 'results'}" in listed.stderr
    assert "1 result removed" in evpipe("cache", "clear", "--mode", "local", "--step", "double[5]").stderr
    assert "5 results removed" in evpipe("cache", "clear", "--mode", "local", "--all").stderr
    left = [path.name for path in (file.parent / "data" / "results").rglob("*") if path.is_file()]
    assert left == ["lock"]
