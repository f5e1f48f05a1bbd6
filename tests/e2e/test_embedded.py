"""The embedded bus: scripts of one user that share it, are killed, are interrupted, or run in a notebook."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import pytest

from evpipe import connect, run
from evpipe.bus.home import Home, read_info
from evpipe.bus.settings import load_settings
from evpipe.client.client import Client
from evpipe.core.states import RunStatus

from .helpers import Program, Witness, clean_environment, is_running, until
from .pipelines import total

SCRIPT = Path(__file__).with_name("script.py")
Spawn = Callable[..., Program]


def test_two_scripts_at_once(tmp_path: Path, spawn: Spawn) -> None:
    """Two scripts started at once share one server, end right, and each runs its own steps only."""
    env = clean_environment(EVPIPE_DATA_DIR=tmp_path / "data")
    witnesses = [Witness(tmp_path / name) for name in ("one", "two")]
    scripts = [spawn(env, SCRIPT, witness.path, "") for witness in witnesses]
    for script, witness in zip(scripts, witnesses, strict=True):
        assert script.result()["value"] == 10
        assert witness.begins == {"load": 1, "hold": 1, "add_up": 1}
        assert {pid for _, _, pid in witness.lines} == {script.pid}
    assert scripts[0].err.splitlines()[0] == scripts[1].err.splitlines()[0]


def test_the_leader_is_killed(tmp_path: Path, spawn: Spawn) -> None:
    """Where the script that leads is killed with -9, the other ends right and soon, then keeper and server go away."""
    env = clean_environment(EVPIPE_DATA_DIR=tmp_path / "data")
    one, two = Witness(tmp_path / "one"), Witness(tmp_path / "two")
    leader = spawn(env, SCRIPT, one.path, tmp_path / "gate")
    until(lambda: one.has_begun("hold"), "the first script leads: its own step was launched")
    other = spawn(env, SCRIPT, two.path, tmp_path / "gate")
    until(lambda: two.has_begun("hold"), "the second script's step runs, led by the first")
    info = read_info(Home(tmp_path / "data" / "embedded").info)
    assert info is not None
    leader.kill()
    (tmp_path / "gate").touch()
    took_s = until(lambda: not other.alive, "the second script ends")
    assert other.result()["value"] == 10
    assert took_s < 6.0
    assert two.begins == {"load": 1, "hold": 1, "add_up": 1}
    until(lambda: not is_running(info.server_pid), "the server ends", patience_s=8.0)
    until(lambda: not is_running(info.keeper_pid), "the keeper ends", patience_s=2.0)


@pytest.mark.parametrize("kind", ["script", "notebook"])
def test_interrupt_cancels(tmp_path: Path, spawn: Spawn, embedded_data: Path, kind: str) -> None:
    """Ctrl-C cancels an embedded run: the log has its end, and the script ends as an interrupted one does."""
    witness = Witness(tmp_path / "witness")
    script = spawn(clean_environment(EVPIPE_DATA_DIR=embedded_data), SCRIPT, witness.path, tmp_path / "gate", kind)
    script.until_said("run: ")
    until(lambda: witness.has_begun("hold"), "the step runs")
    script.signal(signal.SIGINT)
    # Python itself ends by the signal when a KeyboardInterrupt is not caught; a shell shows it as 130.
    assert script.finish() in (130, -signal.SIGINT)
    assert "note: cancelling" in script.err
    assert "KeyboardInterrupt" in script.err
    # Where in the script it was, and nothing of the loop that it ended.
    assert "anyio" not in script.err
    run_id = next(line.split()[1] for line in script.err.splitlines() if line.startswith("run: "))

    async def status() -> RunStatus:
        async with Client(load_settings(data_dir=embedded_data)) as client:
            return await (await client.get_run(run_id)).status()

    assert anyio.run(status) is RunStatus.CANCELLED
    assert witness.begins == {"load": 1, "hold": 1}


@pytest.mark.parametrize("mode", ["bus", "local", "debug"])
def test_under_a_running_loop(embedded: Path, mode: Literal["bus", "local", "debug"]) -> None:
    """`run` works where a loop runs already, as in a cell of a notebook."""

    async def cell() -> int:
        return run(total, {"a": 3}, mode=mode).value

    assert anyio.run(cell) == 5


def test_connect_without_url(embedded: Path) -> None:
    """A service without a configured URL finds the embedded bus, and hands its client on before it is entered."""

    async def service() -> str:
        client = connect()
        async with client:
            return (await client.bus.info()).url

    info = read_info(Home(embedded / "embedded").info)
    assert info is not None
    assert anyio.run(service) == info.url
    assert os.getpid() != info.keeper_pid
