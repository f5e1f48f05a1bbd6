"""Notebooks: steps in cells run in processes, here and at workers elsewhere, with the cells as they were last run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ConfiguredBus
from .helpers import Program, clean_environment

if importlib.util.find_spec("IPython") is None:
    pytest.skip("IPython is not installed", allow_module_level=True)

NOTEBOOK = Path(__file__).with_name("notebook.py")
Spawn = Callable[..., Program]

STEPS = """
@step
def make(x: int) -> Point:
    return Point(x)

@step
def move(point: Point) -> Moved:
    return Moved(moved(point), os.getpid(), moved.__code__.co_filename)

@step(executor="thread")
def here(point: Point) -> bool:
    return os.getpid() == PID

@pipeline
def points(x: int = 1) -> Moved:
    made = make(x)
    here(made)
    return move(made)
"""
CELLS = [
    "import dataclasses, os\nfrom typing import NamedTuple\n!echo hello",
    "from evpipe import pipeline, step\nimport near",
    "%%time\nBY = {}\nBY['x'] = 2",
    """
@dataclasses.dataclass(frozen=True)
class Point:
    x: int

class Moved(NamedTuple):
    point: Point
    pid: int
    file: str
""",
    "def moved(point):\n    return Point(point.x + BY['x'] + near.MORE)",
    # Not in the module, where it would fail.
    "assert near.HERE\nPID = os.getpid()",
    STEPS,
]
#: The value, whether it is of the notebook's own classes, in what process it was made, and from what file.
SHOW = """
result = points.options(mode=MODE).run(x=4)
value = result.value
shown.append([value.point.x, type(value) is Moved, type(value.point) is Point, value.point == Point(value.point.x)])
shown.append([value.pid != os.getpid(), os.path.basename(value.file)])
"""
EDITED = "def moved(point):\n    return Point(point.x * 100)"


def environment(tmp_path: Path, **more: object) -> dict[str, str]:
    return clean_environment(XDG_CACHE_HOME=tmp_path / "cache", IPYTHONDIR=tmp_path / "ip", **more)


def files(folder: Path) -> Path:
    """Write the module beside the notebook."""
    folder.mkdir()
    (folder / "near.py").write_text("MORE = 10\nHERE = True\n")
    return folder


def check(shown: list[Any]) -> None:
    """Check what two runs have shown: before a cell was edited, and afterwards."""
    (first, where), (second, where_second) = shown[:2], shown[2:4]
    assert first == [16, True, True, True]
    assert second == [400, True, True, True]
    assert where[0]
    assert where_second[0]
    assert where[1].startswith("evpipe_cells_")
    assert where_second[1].startswith("evpipe_cells_")
    assert where != where_second


@pytest.mark.parametrize("mode", ["bus", "local"])
def test_edited_and_run_again(tmp_path: Path, spawn: Spawn, embedded_data: Path, mode: str) -> None:
    """Process steps run in other processes, with the cells as they are; their values are of the notebook's classes."""
    env = clean_environment(
        EVPIPE_DATA_DIR=embedded_data, XDG_CACHE_HOME=tmp_path / "cache", IPYTHONDIR=tmp_path / "ip"
    )
    cells = [f"MODE = {mode!r}", *CELLS, SHOW, EDITED, SHOW, "shown.append(points.options(mode='debug').run().status)"]
    notebook = spawn(env, NOTEBOOK, files(tmp_path / "notebook"), *cells)
    shown = notebook.result()["shown"]
    check(shown)
    assert shown[4] == "succeeded"


WORKER = """
import os, sys
os.chdir(sys.argv.pop(1))
sys.path[0] = ""
from evpipe.cli.main import main
main()
"""


def test_configured_bus(tmp_path: Path, bus: ConfiguredBus, spawn: Spawn) -> None:
    """The cells travel: a worker in another folder, with a cache of its own, runs them, each run those that it had."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bus.host("controller")
    env = {**bus.env, "XDG_CACHE_HOME": str(tmp_path / "cache of the worker")}
    spawn(env, "-c", WORKER, elsewhere, "worker", "-q", "default").until_said("worker_serves")
    env = {**bus.env, "IPYTHONDIR": str(tmp_path / "ip")}
    # Where no thread of the notebook is meant.
    cells = [cell.replace("    here(made)\n", "") for cell in CELLS]
    notebook = spawn(env, NOTEBOOK, files(tmp_path / "notebook"), "MODE = 'bus'", *cells, SHOW, EDITED, SHOW)
    check(notebook.result()["shown"])


def test_thread_where_no_source_is_known(tmp_path: Path, spawn: Spawn) -> None:
    """A function that no cell has runs in the notebook's process, as it always did."""
    env = environment(tmp_path)
    cells = [
        "import os\nfrom evpipe import pipeline, step",
        "exec('''def pid() -> int:\\n    return os.getpid()''')\npid = step(pid)",
        "@pipeline\ndef pids():\n    return pid()",
        "shown.append(pids.options(mode='local').run().value == os.getpid())",
    ]
    assert spawn(env, NOTEBOOK, files(tmp_path / "notebook"), *cells).result()["shown"] == [True]


def test_result_of_a_run_is_used(tmp_path: Path, spawn: Spawn) -> None:
    """A step that names what another run has given has the value; the run is not run again by each process."""
    cells = [
        "from evpipe import pipeline, step\nimport os",
        "@step\ndef count(x: int) -> list:\n    return [x, os.getpid()]",
        "@pipeline\ndef first():\n    return count(3)",
        "run = first.options(mode='local').run()\nfound = run.value",
        "BOUND = found[0] + 1",
        "@step\ndef use(x: int) -> bool:\n    return [x + BOUND, found[0], found[1] != os.getpid()]",
        "@pipeline\ndef second():\n    return use(10)",
        "shown.append(second.options(mode='local').run().value)",
        # Of a value that cannot be written the step is told, and only that step.
        "@step\ndef more(x: int):\n    return run.status",
        "@pipeline\ndef third():\n    return more(use(10))",
        "steps = third.options(mode='local').run().steps",
        "shown.append([steps['use'].status, steps['more'].error])",
    ]
    shown = spawn(environment(tmp_path), NOTEBOOK, files(tmp_path / "notebook"), *cells).result()["shown"]
    assert shown[0] == [14, 3, True]
    assert shown[1][0] == "succeeded"
    assert "name 'run' is not defined" in shown[1][1]


def test_step_that_fails(tmp_path: Path, spawn: Spawn) -> None:
    """The traceback of a step in a cell shows its lines."""
    env = environment(tmp_path)
    cells = [
        "from evpipe import pipeline, step",
        "@step\ndef fail(x: int) -> float:\n    return 1 / x  # here",
        "@pipeline\ndef fails():\n    return fail(0)",
        "try:\n    fails.options(mode='local').run().value\nexcept Exception as error:\n    shown.append(str(error))",
    ]
    (shown,) = spawn(env, NOTEBOOK, files(tmp_path / "notebook"), *cells).result()["shown"]
    assert "return 1 / x  # here" in shown
    assert "ZeroDivisionError" in shown
