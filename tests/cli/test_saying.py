"""What steps say from inside, as the command line shows it: metrics, lines, artifacts, progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from click.testing import CliRunner, Result

from evpipe import Controller, Worker, connect
from evpipe.bus.server import ServerProcess
from evpipe.cli.main import cli
from tests.cli import saying
from tests.e2e.helpers import until_async


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_what_steps_say(server: ServerProcess, tmp_path: Path, logs_as_before: None) -> None:
    """While the run goes on, and after it."""
    gate, folder = tmp_path / "gate", tmp_path / "saved"
    run, run_id = CliRunner(), ""
    shown: dict[str, Any] = {}

    def runs(*args: str) -> Result:
        command, *more = args
        return run.invoke(cli, ["runs", command, run_id, *more, "--url", server.url], prog_name="evpipe")

    async def say() -> None:
        nonlocal run_id
        async with connect(server.url) as client, Controller(client), Worker(client, slots=3):
            handle = await client.submit(saying.says, {"gate": str(gate)})
            run_id = handle.id

            async def told() -> bool:
                failed = (await handle.state()).steps["train"].ended
                return failed and "waits" in await handle.progress()

            await until_async(told, "its progress is told")
            for name, args in {"json": ("show", "-o", "json"), "text": ("show",)}.items():
                shown[name] = (await anyio.to_thread.run_sync(lambda args=args: runs(*args))).stdout  # type: ignore[misc]
            gate.touch()
            assert (await handle.result()).status == "succeeded"

    anyio.run(say)
    assert json.loads(shown["json"])["steps"]["waits"]["progress"] == {"fraction": 0.42, "message": "half \x1b[31mway"}
    assert "42% half" in shown["text"]
    assert "\x1b" not in shown["text"]

    metrics = runs("metrics")
    assert [line.split() for line in metrics.stdout.splitlines()] == [
        ["step", "attempt", "metric", "points", "iteration", "last", "smallest", "largest"],
        ["train", "1", "loss", "3", "2", "0.333333", "0.333333", "1"],
        ["train", "1", "acc", "1", "-", "nan", "-", "-"],
    ]
    points = [json.loads(line) for line in runs("metrics", "train", "-o", "json").stdout.splitlines()]
    assert [(p["step"], p["attempt"], p["name"], p["value"], p["iteration"]) for p in points] == [
        ("train", 1, "loss", 1.0, 0),
        ("train", 1, "loss", 0.5, 1),
        ("train", 1, "loss", 1 / 3, 2),
        ("train", 1, "acc", "NaN", None),
    ]
    one = runs("metrics", "--name", "loss", "--attempt", "1").stdout
    assert [line.split()[3:] for line in one.splitlines()[1:]] == [["0", "1"], ["1", "0.5"], ["2", "0.333333"]]
    none = runs("metrics", "--name", "lose")
    assert (none.exit_code, none.stdout) == (0, "")
    assert none.stderr.splitlines()[-1] == "no metrics are kept with the name 'lose'"
    wrong = runs("metrics", "trian")
    assert wrong.exit_code == 3
    assert f"run {run_id} has no step 'trian'" in wrong.stderr

    element = runs("metrics", "train[0]")
    assert element.exit_code == 3
    assert f"run {run_id} has no step 'train[0]'" in element.stderr

    lines = {line["step"]: line for line in map(json.loads, runs("logs", "-o", "json").stdout.splitlines())}
    logged = lines["train"]
    assert (logged["stream"], logged["level"], logged["text"], logged["fields"]) == (
        "log",
        "error",
        "broken",
        {"part": 2},
    )
    assert "count | debug    counted" in runs("logs").stdout

    outputs = runs("show", "--outputs", "--save", str(folder))
    assert outputs.exit_code == 0
    assert "train.artifacts['small']['a']  int" in outputs.stdout
    saved = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert saved.pop("train.artifacts/plot/plot.txt") == "a plot"
    assert saved == {
        "count/output.json": "3\n",
        "waits/output.txt": "done",
        "train.artifacts/small.json": '{"a": 1}\n',
        "train.artifacts/a_b.txt": "text",
    }
    described = json.loads(runs("show", "--outputs", "-o", "json").stdout)["steps"]["train"]["artifacts"]
    assert [(part["name"], part["path"], part["kind"]) for part in described] == [
        ("small", "['a']", "int"),
        ("plot", "", "file"),
        ("a/b", "", "str"),
    ]
