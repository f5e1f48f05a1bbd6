"""How TARGET becomes a pipeline, and what is told where the user's own code raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import MODULE, CommandLine

FLOW = """
from evpipe import pipeline, step
{more}
@step
def double(x: int) -> int:
    return 2 * x

@pipeline
def twice(x: int = 2) -> int:
    return double(double(x))
"""


def write(folder: Path, name: str, more: str = "") -> Path:
    path = folder / name
    path.write_text(FLOW.format(more=more))
    return path


def test_file_with_one_pipeline(evpipe: CommandLine, tmp_path: Path) -> None:
    """The only pipeline of a file needs no name, and modules beside the file can be imported."""
    (tmp_path / "beside.py").write_text("y = 1\n")
    path = write(tmp_path, "flow.py", "import beside")
    done = evpipe("run", str(path), "--mode", "local", "-p", "x=5")
    assert (done.code, done.out) == (0, "20\n"), done


def test_module_in_the_current_directory(evpipe: CommandLine, tmp_path: Path) -> None:
    """A module is found in the current directory."""
    write(tmp_path, "flow.py")
    done = evpipe.at(tmp_path)("run", "flow:twice", "--mode", "local")
    assert (done.code, done.out) == (0, "8\n"), done


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my-flow.py", "'my-flow' cannot be the name of a module"),
        ("json.py", "'json' is a module of Python itself"),
        ("pytest.py", "there is an installed module 'pytest'"),
        ("click.py", "another module 'click' is loaded"),
    ],
)
def test_stem_that_cannot_be_used(evpipe: CommandLine, tmp_path: Path, name: str, why: str) -> None:
    """A file whose stem is no module's name, or another module's, still runs; others are told it is not found there."""
    path = write(tmp_path, name)
    done = evpipe("run", f"{path}:twice")
    assert (done.code, done.out) == (0, "8\n"), done
    assert f"note: {path} is imported as evpipe_target_" in done.err
    assert why in done.err


def test_by_name_of_the_pipeline(evpipe: CommandLine) -> None:
    """A pipeline is found by its own name, too."""
    done = evpipe("run", f"{MODULE}:odd-values", "--mode", "local", "--quiet")
    assert (done.code, done.err) == (0, "")


def test_module_that_raises(evpipe: CommandLine, tmp_path: Path) -> None:
    """An exception of the user's module is shown from the user's file on."""
    path = write(tmp_path, "flow.py", "def f():\n    return 1 / 0\nf()")
    done = evpipe("run", str(path), "-o", "json")
    assert done.code == 2
    assert done.json == {"error": f"importing {path} failed: ZeroDivisionError: division by zero"}
    lines = done.err.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", f'  File "{path}", line 5, in <module>']
    assert lines[-1] == f"evpipe: {done.json['error']}"
    assert "evpipe/cli" not in done.err


def test_module_that_misses_another(evpipe: CommandLine, tmp_path: Path) -> None:
    """A module that lacks what it imports is not said to be missing itself."""
    write(tmp_path, "flow.py", "import nosuch_dependency")
    done = evpipe.at(tmp_path)("run", "flow:twice")
    assert done.code == 2
    assert "evpipe: importing flow failed: ModuleNotFoundError: No module named 'nosuch_dependency'" in done.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("import sys; sys.exit(3)", "ended with SystemExit(3): put what it does as a script under"),
        ("x = = 1", "failed: SyntaxError: invalid syntax"),
        ("step(lambda: 1)", ":3: @step cannot decorate a lambda"),
    ],
)
def test_other_ways_to_fail(evpipe: CommandLine, tmp_path: Path, more: str, sentence: str) -> None:
    """A script without a guard, a syntax error and a wrong decorator are told in one sentence each."""
    path = write(tmp_path, "flow.py", more)
    done = evpipe("run", str(path))
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("evpipe: ")
    assert sentence in last
    assert "cli/target.py" not in done.err


def test_body_that_raises(evpipe: CommandLine) -> None:
    """What a pipeline's body raises is shown from the body on, and nothing was submitted."""
    done = evpipe("run", f"{MODULE}:broken_body")
    assert done.code == 2
    lines = done.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in broken_body" in lines[1]
    expected = "building the graph of pipeline 'broken_body' failed: ZeroDivisionError: division by zero"
    assert lines[-1] == f"evpipe: {expected}"


def test_body_that_uses_a_handle(evpipe: CommandLine) -> None:
    """A handle used as a value is told with the line where it was."""
    done = evpipe("run", f"{MODULE}:impatient")
    assert done.code == 2
    assert done.err.startswith("evpipe: tests/cli/pipelines.py:")
    assert done.err.count("\n") == 1
