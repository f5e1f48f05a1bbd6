"""Classes that a script defines come back as what they are, in its steps' processes and in the script itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("values_script.py")
SHOWN = "Shape(name='square', colour=<Colour.BLUE: ('blue', 2)>, sides=frozenset({1, 2}))"


@pytest.mark.parametrize("mode", ["local", "debug"])
@pytest.mark.parametrize("started", ["script", "module"])
def test_classes_of_main_are_the_same_everywhere(mode: str, started: str) -> None:
    how = [str(SCRIPT)] if started == "script" else ["-m", "tests.e2e.values_script"]
    done = subprocess.run(
        [sys.executable, *how, mode],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=SCRIPT.parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"{[True] * 7} True True True True", f"True {SHOWN}"]
