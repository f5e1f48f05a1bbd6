"""Where a child finds a step's code: beside the script, in a package, or in the bundle that came with the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpipe import UsageError
from tests.e2e.conftest import ConfiguredBus
from tests.e2e.helpers import Program, clean_environment

Spawn = Callable[..., Program]

SCRIPT = """
import dataclasses, json, os, sys
from evpipe import pipeline, step

@dataclasses.dataclass
class Point:
    x: int

@step
def make(x: int) -> dict:
    return dataclasses.asdict(Point(x)) | {"pid": os.getpid(), "main": sys.modules["__main__"] is sys.modules[__name__]}

@step
def add(found: dict) -> list:
    return [Point(found["x"]).x + 1, os.getpid() == found["pid"], found["main"]]

@pipeline
def points(x: int = 1) -> list:
    return add(make(x))

if __name__ == "__main__":
    result = points.options(mode="local").run(x=4)
    made = result.steps["make"].value
    print(json.dumps({"value": result.value, "other": made["pid"] != os.getpid()}))
"""

TYPED = """
result = points.options(mode="local").run(x=4)
print(json.dumps([result.value[0], result.steps["make"].value["pid"] == os.getpid()]))
"""

#: With a module beside it, that says what it gives.
LONG_LIVED = """
import json, sys
from evpipe import pipeline, step
from beside import given

@step
def give() -> object:
    return given()

@pipeline
def gives() -> object:
    return give()

if __name__ == "__main__":
    result = gives.run()
    (step,) = result.steps.values()
    print(json.dumps({"status": result.status, "error": step.error, "value": step._value}))
"""
#: In place of its end.
DELETES = """
async def main():
    async with connect() as client:
        handle = await client.submit(gives)
        shutil.rmtree(sys.path[0])
        result = await handle.result()
        print(json.dumps({"status": result.status, "value": result.value}))

if __name__ == "__main__":
    import anyio, shutil
    from evpipe import connect
    anyio.run(main)
"""
BESIDE = """
import os
def given():
    return [{word!r}, os.getpid()]
"""


def check(program: Program) -> None:
    found = program.result()
    assert found == {"value": [5, True, True], "other": True}


@pytest.mark.parametrize("name", ["points", "not-an-identifier", "2nd", "evpipe_points", "antigravity", "wave"])
def test_script(tmp_path: Path, spawn: Spawn, name: str) -> None:
    """Steps of a script that is run as a file, with a dataclass of its own; also named as a module of the library."""
    script = tmp_path / f"{name}.py"
    script.write_text(SCRIPT)
    check(spawn(clean_environment(), script))


@pytest.mark.parametrize("module", ["pkg.mod", "pkg"])
def test_module(tmp_path: Path, module: str) -> None:
    """Steps of what `python -m` runs, a module or a package."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / ("mod.py" if module == "pkg.mod" else "__main__.py")).write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"] == [5, True, True]


def test_typed_into_an_interpreter() -> None:
    """What no file holds runs in a thread, and nothing else is possible."""
    from evpipe import step

    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(): return 1", typed)
    made = step(typed["typed"])
    assert made._options.executor == "thread"
    with pytest.raises(UsageError) as caught:
        step(executor="process")(typed["typed"])
    assert str(caught.value) == (
        "step 'typed': executor 'process' needs a function in a file or a notebook's cell: use 'thread'"
    )


def test_typed_code_runs(spawn: Spawn) -> None:
    """And it runs there: `python -c`."""
    code = SCRIPT.partition("if __name__")[0] + TYPED
    program = spawn(clean_environment(), "-c", code)
    assert program.finish() == 0, program.err
    assert json.loads(program.out) == [5, True]


#: In a folder that has nothing to do with the code.
WORKER = "import os; os.chdir('/'); from evpipe.cli.main import main; main()"


class LongLived:
    """`evpipe worker` and a controller on a bus, and a script that is submitted to them."""

    def __init__(self, bus: ConfiguredBus, spawn: Spawn, folder: Path) -> None:
        self._bus, self._spawn, self.folder = bus, spawn, folder
        folder.mkdir()
        (folder / "gives.py").write_text(LONG_LIVED)
        bus.host("controller")
        spawn(bus.env, "-c", WORKER, "worker", "--slots", "2").until_said("worker_serves")

    def write(self, word: str) -> None:
        (self.folder / "beside.py").write_text(BESIDE.format(word=word))

    def run(self) -> Any:
        found = self._spawn(self._bus.env, self.folder / "gives.py").result()
        assert found["status"] == "succeeded", found
        return found["value"]


def test_changed_code(bus: ConfiguredBus, spawn: Spawn, tmp_path: Path) -> None:
    """Each run has the code of its submitter, and one whose code is the same also the process of the one before."""
    lived = LongLived(bus, spawn, tmp_path / "code")
    lived.write("one")
    first = lived.run()
    assert lived.run() == first
    lived.write("two, and longer")
    word, pid = lived.run()
    assert word == "two, and longer"
    assert pid != first[1]
    assert lived.run() == [word, pid]


def test_folder_that_is_gone(bus: ConfiguredBus, spawn: Spawn, tmp_path: Path) -> None:
    """A script that deletes its own folder when it has submitted does not miss it."""
    lived = LongLived(bus, spawn, tmp_path / "code")
    lived.write("one")
    script = lived.folder / "gives.py"
    script.write_text(script.read_text().partition("if __name__")[0] + DELETES)
    assert lived.run()[0] == "one"
    assert not lived.folder.exists()
