"""The example on machines that share nothing but the bus: other folders, other environments, and no source."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe import connect
from evpipe.bus.server import ServerProcess
from evpipe.examples import breast_cancer
from tests.e2e.helpers import REPOSITORY, Program, clean_environment

SUBMIT = """\
import json, sys
import anyio
from evpipe import connect
from choose import choose_model

async def main():
    async with connect() as client:
        handle = await client.submit(choose_model, json.loads(sys.argv[1]))
        print(handle.id)

anyio.run(main)
"""


def own_environment(folder: Path) -> Path:
    """Make a virtual environment with the packages that this one has; gives its python."""
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    paths = [*site.getsitepackages(), str(REPOSITORY)]
    (packages / "packages.pth").write_text("\n".join(paths) + "\n")
    return folder / "bin" / "python"


class Machine:
    """A folder of its own, as on another machine: its own environment, home and cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = own_environment(folder / "venv")
        self.env = clean_environment(HOME=folder / "home", XDG_CACHE_HOME=folder / "cache")
        del self.env["PYTHONPATH"]
        (folder / "work").mkdir()

    def worker(self, url: str, *queues: str) -> subprocess.Popen[bytes]:
        command = [str(self.python), "-m", "evpipe", "worker", "--url", url, "--slots", "2"]
        command += [part for queue in queues for part in ("-q", queue)]
        with (self.folder / "worker.log").open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder / "work", env=self.env, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


def test_the_example_on_two_machines(server: ServerProcess, tmp_path: Path, spawn: Callable[..., Program]) -> None:
    """The submitter's folder is gone when the steps run; the second run takes all from the cache, on either."""
    project = tmp_path / "project"
    project.mkdir()
    source = Path(breast_cancer.__file__).read_text()
    # Every other step on the other machine, so that everything travels.
    for i, name in enumerate(("load", "split", "train", "evaluate", "best", "plot")):
        queue = "one" if i % 2 == 0 else "two"
        head, tail = source.split(f"\ndef {name}(", 1)
        before, decorator = head.rsplit("\n", 1)
        options = decorator.removeprefix("@step").removeprefix("(").removesuffix(")")
        source = f'{before}\n@step(queue="{queue}", {options})\ndef {name}({tail}'
    (project / "choose.py").write_text(source)
    (project / "submit.py").write_text(SUBMIT)

    def submit(parameters: str) -> str:
        env = clean_environment(EVPIPE_NATS_URL=server.url, XDG_CACHE_HOME=tmp_path / "submitter")
        done = subprocess.run(
            [sys.executable, "submit.py", parameters],
            cwd=project,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    spawn(clean_environment(EVPIPE_NATS_URL=server.url), "-m", "evpipe", "controller")
    machines = [Machine(tmp_path / name) for name in ("first", "second")]
    parameters = '{"models": ["logistic", "forest"]}'
    first, second = submit(parameters), submit(parameters)
    shutil.rmtree(project)
    workers = [machine.worker(server.url, queue) for machine, queue in zip(machines, ("one", "two"), strict=True)]

    async def ends() -> list[Any]:
        async with connect(server.url) as client:
            return [await (await client.get_run(run)).result(timeout_s=60) for run in (first, second)]

    try:
        results = anyio.run(ends)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            assert worker.wait(30) == 0
    logs = "".join(machine.log() for machine in machines)
    assert [result.error for result in results] == ["", ""], logs
    executed = [sum(step.status == "succeeded" for step in result.steps.values()) for result in results]
    # `best` is not cached; of every other step there is one execution, whichever run it was in.
    assert sum(executed) == 7 + 2, [{n: str(s.status) for n, s in r.steps.items()} for r in results]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
        values = [result.value for result in results]
    assert values[0]["chosen"] == values[1]["chosen"] == "logistic"
    assert values[0]["accuracy"] > 0.95
    assert values[0]["plot"].read_bytes() == values[1]["plot"].read_bytes()
    for machine in machines:
        assert list((machine.folder / "cache" / "evpipe" / "bundles").iterdir()), "the code came with the run"
        assert not list((machine.folder / "work").iterdir())
