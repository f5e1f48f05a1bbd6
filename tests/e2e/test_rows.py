"""The rows of what a replacement for ClearML pipelines must have, as far as they are about values, code and cache.

Each test is named for its row; what ClearML calls `completed` and `aborted` is `succeeded` and `cancelled` here.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import anyio
import nats
import numpy as np
import pandas as pd
import pytest

from evpipe import Client, Controller, RunFailed, RunResult, UsageError, Worker, connect, run
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.cache import Explanation
from evpipe.core.artifact import Artifact
from evpipe.sdk.hook import Mode
from evpipe.wire.storing import artifacts_of
from tests.e2e import row_pipelines as rows
from tests.e2e.helpers import clean_environment

MODES = get_args(Mode)


class Noted:
    """What the steps' bodies have written down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self) -> Counter[str]:
        """Give how often each body began since the last look."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.unlink(missing_ok=True)
        return Counter(lines)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Noted:
    path = tmp_path / "witness"
    monkeypatch.setenv("EVPIPE_TEST_WITNESS", str(path))
    return Noted(path)


@pytest.fixture
def own_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An embedded bus whose cache is empty."""
    from evpipe.bus.embedded import EmbeddedServer

    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "data"))
    with EmbeddedServer.start(tmp_path / "data"):
        yield tmp_path / "data"


def statuses(result: RunResult[Any]) -> dict[str, str]:
    return {name: str(step.status) for name, step in result.steps.items()}


def explained(result: RunResult[Any], step: str) -> Explanation:
    async def main() -> Explanation:
        async with connect() as client:
            return await client.cache.explain(result.id, step)

    return anyio.run(main)


# ---- row 4


def test_row_04_three_modes_give_the_same(embedded: Path, noted: Noted) -> None:
    """The same values, of the same types, with the same digests of what is stored."""
    seen: dict[str, Any] = {}
    for mode in MODES:
        result = rows.parts.options(mode=mode).run(rows=2_000)
        assert noted.take() == {"make_parts": 1, "describe": 1}
        digests = [found.digest for found in artifacts_of(result.steps["make_parts"].stored)]
        frame, array, label = result.value[0]
        assert (type(result.value[0]), label) == (rows.Parts, "all")
        seen[mode] = (statuses(result), result.value[1], digests, frame.to_csv(), array.tolist())
    assert seen["local"] == seen["debug"] == seen["bus"]
    assert len(seen["bus"][2]) == 2


# ---- row 10: what cannot run is refused before anything runs


def test_row_10_nothing_runs_of_what_cannot_run(noted: Noted) -> None:
    """A constant, a parameter or an option that is wrong is told before any server is started."""
    with pytest.raises(UsageError, match=r"the parameters cannot be encoded: a builtin.* at \['value'\]"):
        run(rows.there_and_back, {"value": print}, mode="local")
    with pytest.raises(UsageError, match=r"refresh names the step 'laod'.*did you mean 'load'"):
        run(rows.cached, mode="local", refresh=["laod"])
    with pytest.raises(UsageError, match="refresh names the step 'again', which is not cached"):
        run(rows.cached, mode="debug", refresh=["again"])
    with pytest.raises(UsageError, match="refresh means nothing with no_cache"):
        run(rows.cached, mode="local", refresh=True, no_cache=True)
    assert not noted.take()


@pytest.mark.parametrize("mode", MODES)
def test_row_10_what_a_serializer_raises_is_shown(mode: Mode, embedded: Path) -> None:
    """With the lines of the user's that raised it."""
    step = run(rows.burning, mode=mode).steps["burn"]
    assert step.error.endswith(
        "a value of Burning, whose serializer 'burning' raised RuntimeError: the disk is on fire"
    )
    lines = step.traceback.splitlines()
    assert lines[-1] == "RuntimeError: the disk is on fire"
    assert "raise RuntimeError(message)" in [line.strip() for line in lines]


# ---- rows 11 and 12: values come back as what they were

VALUES: dict[str, Any] = {
    "none": None,
    "text": "héllo",
    "whole number": 2**80,
    "number": float("inf"),
    "moment": dt.datetime(2026, 3, 29, 2, 30, tzinfo=dt.UTC),
    "decimal": Decimal("1.50"),
    "uuid": UUID(int=7),
    "dict with other keys": {(1, "a"): {2, 3}, 4: frozenset({"x"})},
    "nested": [{"a": (1, [None, b"\0"])}, range(3)],
    "large list": list(range(50_000)),
    "large text": "x" * 100_000,
    "array": np.arange(12, dtype=">i2").reshape(3, 4),
    "large array": np.linspace(0, 1, 100_000),
    "moments": np.array(["2026-01-01", "NaT"], dtype="datetime64[ms]"),
    "frame": pd.DataFrame({"c": pd.Categorical(["u", "v"]), "t": pd.to_datetime(["2026-01-01", None], utc=True)}),
    "series": pd.Series([1, None], dtype="Int64", name="n", index=pd.Index(["a", "b"], name="key")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VALUES)
def test_row_12_a_value_comes_back_as_what_it_was(name: str, mode: Mode, embedded: Path) -> None:
    """Through two steps and as the value of the run, with its type and dtypes."""
    value = VALUES[name]
    result = run(rows.there_and_back, {"value": value}, mode=mode)
    assert result.error == ""
    back = result.value
    assert type(back) is type(value)
    match value:
        case np.ndarray():
            np.testing.assert_array_equal(back, value)
            assert back.dtype == value.dtype
        case pd.DataFrame():
            pd.testing.assert_frame_equal(back, value, check_freq=True)
        case pd.Series():
            pd.testing.assert_series_equal(back, value)
        case _:
            assert back == value


@pytest.mark.parametrize("mode", MODES)
def test_row_12_a_file_travels_with_its_content_and_name(mode: Mode, embedded: Path, tmp_path: Path) -> None:
    """What the path names is another file by then: the reader has a copy of its own."""
    given = "line\n" * 50_000
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = run(rows.through_a_file, {"text": given}, mode=mode)
    assert result.value == ("made.txt", given)
    assert run(rows.there_and_back, {"value": folder}, mode=mode).value.is_dir() or mode == "debug"


# ---- row 13: no pickle, and tampering is an error


def test_row_13_a_flipped_byte_fails_the_step_by_name(
    server: ServerProcess, noted: Noted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The object is damaged between two steps; what reads it says so, and no body runs on it."""

    async def main() -> RunResult[Any]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        async with Client(BusSettings(url=server.url)) as client, Controller(client):
            handle = await client.submit(rows.parts_elsewhere, {"rows": 60_000})
            async with Worker(client, slots=1):
                async for event in handle.events():
                    if (event.step, event.kind) == ("make_parts", "succeeded"):
                        break
            outputs = (await handle.state()).outputs
            await flip(server, max(artifacts_of(outputs["make_parts"]), key=lambda found: found.size_bytes))
            # A worker on another machine: it has nothing of it.
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
            async with Worker(client, ["later"], slots=1):
                return await handle.result(timeout_s=30)

    result = anyio.run(main)
    assert noted.take() == {"make_parts": 1}
    step = result.steps["describe"]
    assert (step.status, step.reason, step.attempts) == ("failed", "output", 1)
    assert "is missing in the object store, or damaged" in step.error


async def flip(server: ServerProcess, artifact: Artifact) -> None:
    """Put other bytes in the place of an object's."""
    raw = await nats.connect(server.url)
    try:
        jetstream = raw.jetstream()
        store = await jetstream.object_store("evpipe-objects")
        info = await store.get_info(artifact.digest)
        subject = f"$O.evpipe-objects.C.{info.nuid}"
        message = await jetstream.get_last_msg("OBJ_evpipe-objects", subject)
        assert message.data is not None
        last = bytes([message.data[-1] ^ 1])
        await jetstream.delete_msg("OBJ_evpipe-objects", message.seq)  # type: ignore[arg-type]  # it has one
        await jetstream.publish(subject, message.data[:-1] + last)
    finally:
        await raw.close()


class Harm:
    """A pickle that runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return subprocess.call, (["touch", str(self._path)],)


def test_row_13_a_pickle_that_says_it_is_something_else_is_not_run(tmp_path: Path) -> None:
    """Whatever kind an artifact of such bytes claims to be, its reader executes nothing."""
    from evpipe.errors import EvpipeError
    from evpipe.wire.serializers.registry import KINDS
    from evpipe.wire.spool import Shelf
    from evpipe.wire.storing import loaded

    mark = tmp_path / "harmed"
    data = pickle.dumps(Harm(mark))
    npy = np.lib.format.magic(1, 0)
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    for content in (data, npy + len(header).to_bytes(2, "little") + header + data):
        digest = hashlib.sha256(content).hexdigest()
        for kind in (*KINDS, "value"):
            artifact = Artifact(kind=kind, digest=digest, size_bytes=len(content), data=content, meta={"name": "x"})

            def folder(kind: str = kind) -> Path:
                made = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
                made.mkdir()
                return made

            try:
                loaded(artifact, Shelf(lambda _: None, folder))
            except EvpipeError:
                continue
            assert kind == "file", f"{kind} read it"
    assert not mark.exists()


# ---- rows 14 to 16: the cache


def test_row_14_nothing_changed_is_a_hit(own_bus: Path, noted: Noted) -> None:
    """The second run executes what is not cached, and nothing else; its value is the same."""
    first = rows.cached.run()
    assert noted.take() == {"again": 1, "load": 1, "scale": 1, "show": 1}
    second = rows.cached.run()
    assert noted.take() == {"again": 1}
    assert statuses(second) == {"again": "succeeded", "load": "cached", "scale": "cached", "show": "cached"}
    assert second.value == first.value
    origin = second.steps["scale"].cached_from
    assert origin is not None
    assert (origin.pipeline, origin.run, origin.step) == ("cached", first.id, "scale")
    assert second.steps["scale"].value == first.steps["scale"].value
    assert second.steps["scale"].attempts == 0
    found = explained(second, "scale")
    assert found.origin == origin


def test_row_14_an_argument(own_bus: Path, noted: Noted) -> None:
    first = rows.cached.run()
    second = rows.cached.run(factor=3)
    assert statuses(second) == {"again": "succeeded", "load": "cached", "scale": "succeeded", "show": "succeeded"}
    found = explained(second, "scale")
    assert [str(change) for change in found.differences] == ["`factor` 2 → 3"]
    assert found.compared_with == first.id


def test_row_14_an_input_by_its_content(own_bus: Path, noted: Noted) -> None:
    """Another array upstream: what takes it misses, by the array's digest."""
    rows.cached.run(rows=100)
    second = rows.cached.run(rows=101)
    assert statuses(second)["scale"] == "succeeded"
    changed = {change.name for change in explained(second, "scale").differences}
    assert changed == {"values", "array"}


@pytest.mark.parametrize(
    ("factor", "change"),
    [
        ("python", lambda facts: {"python": "3.99"}),
        ("image", lambda facts: {"image": "repo/train:2"}),
        ("package", lambda facts: {"packages": {"numpy": "99.0"}}),
        ("code", lambda facts: {"code": "0" * 64}),
    ],
)
def test_row_14_code_packages_image_and_python(
    factor: str, change: Any, own_bus: Path, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the submitter's facts turned, and nothing else: a miss, and `explain` names it alone."""
    from dataclasses import replace

    from evpipe.client import client, fingerprints
    from evpipe.core.fingerprint import RunFacts
    from evpipe.core.graph import Graph

    rows.cached.run()
    noted.take()

    def turned(graph: Graph) -> RunFacts | None:
        found = fingerprints.facts_of_run(graph)
        assert found is not None
        new = change(found)
        if factor in ("python", "image"):
            return replace(found, **new)
        functions = dict(found.functions)
        name = next(name for name in functions if name.endswith(":scale"))
        functions[name] = replace(functions[name], **new)
        return replace(found, functions=functions)

    monkeypatch.setattr(client, "facts_of_run", turned)
    second = rows.cached.run()
    assert noted.take()["scale"] == 1
    differences = explained(second, "scale").differences
    assert {change.factor for change in differences} == {factor}


def test_row_15_equal_content_of_an_upstream_that_ran_again_is_a_hit(own_bus: Path, noted: Noted) -> None:
    """`again` runs in each run, and gives an equal scalar; what is below it is cached, by content."""
    rows.cached.run(nonce=1.0)
    noted.take()
    second = rows.cached.run(nonce=2.0)
    assert noted.take() == {"again": 1}
    assert statuses(second)["load"] == "cached"


def test_row_15_ignored_arguments_do_not_count(own_bus: Path, noted: Noted) -> None:
    rows.cached.run(verbose=False)
    noted.take()
    assert statuses(rows.cached.run(verbose=True))["show"] == "cached"


def test_row_16_no_cache_neither_reads_nor_writes(own_bus: Path, noted: Noted) -> None:
    rows.cached.options(no_cache=True).run()
    assert noted.take() == {"again": 1, "load": 1, "scale": 1, "show": 1}
    first = rows.cached.run()
    assert noted.take() == {"again": 1, "load": 1, "scale": 1, "show": 1}
    off = rows.cached.options(no_cache=True).run()
    assert noted.take() == {"again": 1, "load": 1, "scale": 1, "show": 1}
    assert "no_cache" in explained(off, "scale").sentence
    assert "recorded" in explained(first, "scale").sentence


def test_row_16_refresh_runs_what_it_names_and_replaces_it(own_bus: Path, noted: Noted) -> None:
    rows.cached.run()
    noted.take()
    second = rows.cached.options(refresh=["scale"]).run()
    assert noted.take() == {"again": 1, "scale": 1}
    assert statuses(second)["show"] == "cached"
    assert "refreshed" in explained(second, "scale").sentence
    third = rows.cached.run()
    assert third.steps["scale"].cached_from is not None
    assert third.steps["scale"].cached_from.run == second.id
    noted.take()
    rows.cached.options(refresh=True).run()
    assert noted.take() == {"again": 1, "load": 1, "scale": 1, "show": 1}


def test_row_16_the_command_line_says_why(own_bus: Path, noted: Noted) -> None:
    """`evpipe run` has the options, and its closing line and `cache explain` name what changed."""

    def evpipe(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "evpipe", *args],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean_environment(EVPIPE_DATA_DIR=own_bus, EVPIPE_TEST_WITNESS=noted.path),
        )

    target = "tests.e2e.row_pipelines:cached"
    assert "cache: 0 cached, 3 ran" in evpipe("run", target).stderr
    assert "cache: 3 cached, 0 ran" in evpipe("run", target).stderr
    changed = evpipe("run", target, "-p", "factor=5")
    assert "cache: 1 cached, 2 ran: scale: `factor` 2 → 5" in changed.stderr
    run_id = changed.stderr.split("run: ")[1].split()[0]
    told = evpipe("cache", "explain", run_id[:10], "scale").stdout
    assert "`factor` 2 → 5" in told
    assert "cache: " not in evpipe("run", target, "--no-cache").stderr.replace("cache folder", "")
    assert "cache: 2 cached, 1 ran" in evpipe("run", target, "--refresh", "load").stderr
    listed = evpipe("cache", "list", "--step", "scale").stdout.splitlines()
    assert len(listed) == 3
    assert evpipe("cache", "clear").returncode == 2
    assert evpipe("cache", "clear", "--step", "scale").stderr.endswith("2 results removed\n")
    assert "2 cached, 1 ran" in evpipe("run", target).stderr


def test_a_failed_step_is_not_recorded(own_bus: Path, noted: Noted) -> None:
    assert rows.not_recorded.run().status == "failed"
    Path(f"{noted.path}.works").touch()
    result = rows.not_recorded.run()
    assert (result.status, statuses(result)) == ("succeeded", {"fails_at_first": "succeeded"})


def test_a_result_counts_for_its_time(own_bus: Path, noted: Noted) -> None:
    """By the bus's clock, from when it was recorded; whoever finds it too old says so, also after one that failed."""
    from tests.e2e.helpers import pass_by

    assert statuses(rows.lives_a_second.run(x=2)) == {"short_lived": "succeeded"}
    first = rows.lives_a_second.run()
    assert statuses(first) == {"short_lived": "succeeded"}
    assert [str(change) for change in explained(first, "short_lived").differences] == ["`x` 2 → 1"]
    noted.take()
    pass_by(1.1)
    breaks = Path(f"{noted.path}.breaks")
    breaks.touch()
    for status in ("failed", "succeeded"):
        missed = rows.lives_a_second.run()
        assert statuses(missed) == {"short_lived": status}
        assert noted.take() == {"short_lived": 1}
        breaks.unlink(missing_ok=True)
        found = explained(missed, "short_lived")
        assert found.sentence == f"run {first.id} recorded the same result, which was too old: it counts for 1 s"
        assert (found.short, found.compared_with, found.differences) == ("the same was too old", first.id, ())

    async def clear() -> int:
        async with connect() as client:
            return await client.cache.clear(fingerprint=found.fingerprint)

    assert anyio.run(clear) == 1
    cleared = rows.lives_a_second.run()
    assert noted.take() == {"short_lived": 1}
    assert "too old" not in explained(cleared, "short_lived").sentence


def test_equal_steps_in_one_run_are_executed_once_in_every_mode(embedded: Path, noted: Noted) -> None:
    """Row 4 for the cache: the second of two equal steps is cached, in all three."""
    from tests.e2e import twin_pipeline

    for mode in MODES:
        result = run(twin_pipeline.twins, {"x": MODES.index(mode) + 1_000}, mode=mode)
        assert sorted(statuses(result).values()) == ["cached", "succeeded"], mode
        assert noted.take() == {"twin": 1}


# ---- row 29: local modules


@pytest.mark.parametrize("mode", MODES)
def test_row_29_local_modules_are_importable_in_all_modes(mode: Mode, tmp_path: Path) -> None:
    """main.py beside tool/tools.py, as in ClearML's issue 1167, run as a script."""
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text("")
    (tmp_path / "tool" / "tools.py").write_text("def helper(x):\n    return x * 2\n")
    (tmp_path / "main.py").write_text(
        "import sys\n"
        "from evpipe import pipeline, step\n"
        "from tool.tools import helper\n\n"
        "@step\n"
        "def double(x: int) -> int:\n"
        "    from tool import tools\n"
        "    return tools.helper(helper(x))\n\n"
        "@pipeline\n"
        "def main(x: int = 3) -> int:\n"
        "    return double(double(x))\n\n"
        "if __name__ == '__main__':\n"
        "    print(main.options(mode=sys.argv[1]).run().value)\n"
    )
    done = subprocess.run(
        [sys.executable, "main.py", mode],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(EVPIPE_DATA_DIR=tmp_path / "data"),
    )
    assert (done.stdout, done.returncode) == ("48\n", 0), done.stderr


def test_no_value_of_a_failed_run_is_loaded(embedded: Path) -> None:
    """`.value` of what has none raises, and fetches nothing."""
    result = run(rows.not_recorded, {"x": 3}, mode="debug")
    with pytest.raises(RunFailed):
        _ = result.value
