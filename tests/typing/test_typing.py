"""What type checkers see: right.py has no error, each marked line of wrong.py has one, in mypy and in pyright."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ("right.py", "wrong.py")


def mypy_errors(cache: Path) -> set[tuple[str, int]]:
    """Give (file, line) of each error of mypy --strict in the two files."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}"]
    done = subprocess.run(
        [*command, *(str(HERE / name) for name in FILES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = re.findall(r"^\S*?(right|wrong)\.py:(\d+): error: ", done.stdout, re.MULTILINE)
    return {(f"{name}.py", int(line)) for name, line in found}


def pyright_errors(_: Path) -> set[tuple[str, int]]:
    """Give (file, line) of each error of basedpyright in the two files."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, "--project", str(HERE)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1) for item in found if item["severity"] == "error"
    }


@pytest.mark.parametrize("errors", [mypy_errors, pyright_errors])
def test_each_planted_error_is_found_and_nothing_else(
    errors: Callable[[Path], set[tuple[str, int]]], tmp_path: Path
) -> None:
    """A user's mistake is shown in the editor, and right code never is."""
    marked = {
        ("wrong.py", number)
        for number, line in enumerate((HERE / "wrong.py").read_text().splitlines(), start=1)
        if "# wrong: " in line
    }
    assert len(marked) > 20
    assert errors(tmp_path) == marked
