"""Scripts and modules as users write them, and how the processes of their steps load them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from evpipe import Client, Controller, Worker
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from tests.e2e.helpers import clean_environment

STEPS = """
import time
import numpy as np
from evpipe import pipeline, step

@step
def one() -> int:
    return 1

@pipeline
def p():
    return one()
"""


def ran(folder: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("mode", ["bus", "local"])
def test_a_script_that_runs_its_pipeline_when_it_is_loaded(tmp_path: Path, embedded: Path, mode: str) -> None:
    """Its steps' processes load it up to there: they run no pipeline. What is below that line is told to be so."""
    (tmp_path / "main.py").write_text(
        f"{STEPS}\n"
        f"print(p.options(mode={mode!r}).run().value)\n"
        "@step\ndef two() -> int:\n    return 2\n"
        "@pipeline\ndef q():\n    return two()\n"
        f"print(q.options(mode={mode!r}).run().error)\n"
    )
    done = ran(tmp_path, "main.py", EVPIPE_DATA_DIR=embedded)
    lines = done.stdout.splitlines()
    assert lines[0] == "1"
    assert lines[1].endswith(
        "the module has no 'two' above line 14, where it runs a pipeline: put that at its end, or under "
        '`if __name__ == "__main__":`'
    )
    assert len(lines) == 2
    assert done.stderr.count("\nrun: ") == 2


def test_a_module_that_runs_a_pipeline_when_it_is_loaded(tmp_path: Path, embedded: Path) -> None:
    """A module cannot be loaded by half: the step fails, and says why."""
    (tmp_path / "module.py").write_text(f"{STEPS}\nresult = p.run()\n")
    (tmp_path / "main.py").write_text("import module\nprint(module.result.error)\n")
    done = ran(tmp_path, "main.py", EVPIPE_DATA_DIR=embedded)
    assert "the module module runs a pipeline when it is loaded" in done.stdout
    assert done.stderr.count("\nrun: ") == 1


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_steps_at_once_of_a_module_that_is_slow_to_load(tmp_path: Path, server: ServerProcess, executor: str) -> None:
    """Those that come while another loads it wait for that."""
    (tmp_path / "slow.py").write_text(
        f"{STEPS}\ntime.sleep(0.5)\n"
        "@step\ndef array(n: int) -> np.ndarray:\n    return np.ones(n)\n"
        f"@step(executor={executor!r})\n"
        f"{'async ' if executor == 'inline' else ''}def total(x: np.ndarray) -> float:\n    return float(x.sum())\n"
        "@pipeline\ndef sums():\n    x = array(10)\n    return [total(x), total(x), total(x)]\n"
        "if __name__ == '__main__':\n    print(sums.run().value)\n"
    )

    async def main() -> str:
        async with (
            Client(BusSettings(url=server.url)) as client,
            Controller(client),
            Worker(client, slots=4, local_code=False),
        ):
            done = await anyio.run_process(
                [sys.executable, "slow.py"],
                cwd=tmp_path,
                env=clean_environment(EVPIPE_NATS_URL=server.url),
                check=False,
            )
        return done.stdout.decode() or done.stderr.decode()

    assert anyio.run(main) == "[10.0, 10.0, 10.0]\n"
