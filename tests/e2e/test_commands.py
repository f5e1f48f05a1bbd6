"""Commands as steps: scripts that know nothing of evpipe, the same in every mode and on a worker elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import Client, Pipeline, RunResult, command, run
from evpipe.bus.settings import BusSettings
from evpipe.sdk.hook import Mode
from tests.e2e import command_pipelines as these

from .conftest import ConfiguredBus

MODES = get_args(Mode)


@pytest.mark.parametrize("mode", MODES)
def test_scripts(mode: Mode, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, files, lines, codes and results go in and out; nothing in a value is a command."""
    monkeypatch.chdir(tmp_path)
    result = run(these.scripts, {"lr": 0.25}, mode=mode)
    value: Any = result.value
    assert value.pop("shouted") == ["3"]
    assert value.pop("here")[0].endswith("/parts")
    assert value == {
        "score": 2.5,
        "lines": ["fitting with 0.25"],
        "code": 0,
        "greeted": {
            "exit_code": 3,
            "lines": [
                "<a b>",
                "<2>",
                "<True>",
                f"<and {these.HARMFUL}>",
                "<>",
                f"hello {these.HARMFUL} greet 1",
            ],
            "json": None,
        },
        "read": ["data fitted with 0.25more"],
        "parts": ["01"],
        "told": [1, {}],
        "name": "parts",
        "names": [1, None],
        "one": 1,
    }
    elements = run(these.mapped, {}, mode=mode)
    assert elements.value == {
        "scores": [1.0, 2.0],
        "all": ["data fitted with 0.1data fitted with 0.2"],
        "words": [["1 echo[0]"], ["2 echo[1]"], ["3 echo[2]"]],
    }
    assert list(tmp_path.iterdir()) == []
    assert not list(Path(these.__file__).parent.rglob("harmed"))


@pytest.mark.parametrize("mode", MODES)
def test_what_goes_wrong(mode: Mode, embedded: Path) -> None:
    """Each has a reason, a sentence and, where the program ran, its last lines."""
    result = run(these.failures, {}, mode=mode)
    found = {name: (str(step.reason), step.error) for name, step in result.steps.items() if step.status == "failed"}
    python = "str, int, float, bool, None (an empty text) and paths, and lists of them where the placeholder is a word"
    lines = (
        "the command wrote more lines than can be its output: 10,000 lines and 1,048,576 characters are allowed; let"
    )
    fails = "the command `sh -c 'echo out; echo 1st >&2; echo why >&2; exit"
    assert found == {
        "fails": ("error", f"{fails} 7'` exited with code 7: why"),
        "fails-2": ("error", f"{fails} 200'` exited with code 200: why"),
        "killed": ("error", "the command `kill -TERM $$` was killed by signal 15 (SIGTERM)"),
        "missing": ("error", "the program 'no-such-program-as-this' is not on this worker: No such file or directory"),
        "no-program": (
            "error",
            "the program './programs/fitting.py' cannot be run: Permission denied; is it executable?",
        ),
        "dict": ("error", f"the placeholder {{x}} got a dict: accepted are {python} of its own"),
        "format": found["format"],
        "no-file": ("output", "the command left no 'a.bin' in its folder, which has nothing"),
        "no-result": (
            "output",
            "the command wrote no result: it writes JSON into the file that the variable EVPIPE_RESULT names",
        ),
        "no-json": (
            "output",
            "what the command wrote as its result is no JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        "no-key": ("output", "the command's result has no 'a': it has no keys"),
        "many": ("output", f"{lines} it write a file, and take that by its Path"),
        "no-folder": ("error", "the folder in which the command is to run is not there: /no/such/folder"),
        "outside": (
            "error",
            "the command: the output '../a' must be a path below the program's folder, such as 'out/model.bin'",
        ),
    }
    assert result.steps["fails"].traceback == "1st\nwhy"
    assert "does not fit" in found["format"][1]
    assert "Unknown format code 'f' for object of type 'str'" in found["format"][1]


@pytest.mark.parametrize("mode", MODES)
def test_attempts_and_lines(mode: Mode, embedded: Path) -> None:
    """A failed one is tried again, a late one is killed, and of many lines the last are its value."""
    result = run(these.attempts, {}, mode=mode)
    assert result.value == [0, None, [str(i) for i in range(4901, 5001)]]
    assert result.steps["tried"].attempts == 2
    slow = result.steps["slow"]
    assert (str(slow.reason), slow.error) == ("timeout", "the attempt ran longer than 0.3 s")


def test_files_travel(bus: ConfiguredBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker elsewhere runs a script, with what it imports, that was removed after the submit."""
    monkeypatch.chdir(tmp_path)
    Path("lib").mkdir()
    Path("lib/train.py").write_text("import helper, sys\nprint(helper.NAME, open(sys.argv[1]).read(), sys.argv[2])\n")
    Path("lib/helper.py").write_text("NAME = 'helper'\n")
    Path("tool.py").write_text("import sys; from lib import helper; print('tool', helper.NAME, sys.argv[1])\n")
    Path("config.txt").write_text("config")
    files = [file for file in tmp_path.rglob("*") if file.suffix in {".py", ".txt"}]
    p = Pipeline("travelling")
    train = command("python lib/train.py config.txt {x}", outputs="lines")
    first = p.step("first", train, x=1)
    second = p.step("second", command("python -u -m tool {x}", outputs="lines"), x="${first[0]}")
    p.output([first, second])

    async def main() -> RunResult[Any]:
        async with Client(BusSettings(url=bus.url)) as client:
            handle = await client.submit(p)
            for file in files:
                file.unlink()
            with anyio.fail_after(60):
                await anyio.to_thread.run_sync(bus.host, "controller,worker")
                return await handle.result()

    assert anyio.run(main).value == [["helper config 1"], ["tool helper helper config 1"]]


def test_cache(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts are the words, the content of files, the modules that scripts import, and the arguments."""
    monkeypatch.chdir(tmp_path)
    script, helper, config = Path("train.py"), Path("helper.py"), Path("config.txt")
    script.write_text("import helper\nprint(helper.NAME)\n")
    helper.write_text("NAME = 1\n")
    config.write_text("a")

    def ran(words: str = "python train.py config.txt {x}", x: int = 1) -> str:
        p = Pipeline("cached")
        p.step("train", command(words, outputs="lines", cache=True), x=x)
        return str(run(p, {}).steps["train"].status)

    assert ran() == "succeeded"
    script.write_text("# a comment\nimport helper\nprint( helper.NAME )\n")
    assert ran() == "cached"
    helper.write_text("NAME = 2\n")
    assert ran() == "succeeded"
    config.write_text("b")
    assert ran() == "succeeded"
    assert ran("python -u train.py config.txt {x}", x=2) == "succeeded"
    assert ran() == "cached"
