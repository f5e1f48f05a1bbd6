from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evpipe.bus.server import ServerProcess
from tests.cli.helpers import REPOSITORY, CommandLine, Host, clean_environment, leave
from tests.e2e.helpers import Witness


@pytest.fixture
def evpipe(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line, in the repository's folder, without a configured bus and with folders of its own.

    What it started, and what was made of it, ends with the test.
    """
    folders = {"EVPIPE_DATA_DIR": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    line = CommandLine({**clean_environment(), **folders}, REPOSITORY)
    yield line
    line.clean()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    # One per test: an installation reserves so much of a server's disk that a third one does not fit beside it.
    with ServerProcess(tmp_path / "nats", sync="default") as server:
        yield server


@pytest.fixture
def bus(server: ServerProcess, evpipe: CommandLine) -> CommandLine:
    """The command line with a configured bus, where nobody hosts anything."""
    return evpipe.with_env(EVPIPE_NATS_URL=server.url, EVPIPE_PREFIX="lab")


@pytest.fixture
def hosted_bus(bus: CommandLine) -> Iterator[CommandLine]:
    """The same with a controller and a worker in a process of their own."""
    host = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.host"],
        cwd=REPOSITORY,
        env=bus.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        yield bus
    finally:
        leave(host)


@pytest.fixture
def host(bus: CommandLine, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start `evpipe controller` or `evpipe worker` on the configured bus; what still serves at the end is killed."""
    hosts: list[Host] = []

    def start(*args: str, line: CommandLine = bus) -> Host:
        hosts.append(Host(line, tmp_path / f"host{len(hosts)}", *args))
        return hosts[-1]

    yield start
    for host in hosts:
        host.clean()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"
