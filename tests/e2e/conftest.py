from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from evpipe.bus.embedded import EmbeddedServer
from evpipe.bus.server import ServerProcess

from .helpers import Program, Witness, clean_environment


@pytest.fixture(autouse=True, scope="session")
def quiet_logs() -> Iterator[None]:
    """Logs of this process go nowhere: `run` would bind them to the standard error of the first test."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for variable in ("NATS_URL", "EVPIPE_NATS_URL", "EVPIPE_NATS_SERVER", "EVPIPE_NATS_TOKEN", "EVPIPE_PREFIX"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a Python program: `spawn(env, *arguments)`. What has not ended at the end of the test is killed."""
    programs: list[Program] = []

    def start(env: dict[str, str], *args: object) -> Program:
        programs.append(Program(tmp_path / f"program{len(programs)}", env, *args))
        return programs[-1]

    yield start
    for program in programs:
        program.clean()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, with the setting that loses nothing."""
    with ServerProcess(tmp_path / "nats") as server:
        yield server


class ConfiguredBus:
    """A configured bus, and the programs that use it."""

    def __init__(self, server: ServerProcess, spawn: Callable[..., Program], cache: Path) -> None:
        self.url = server.url
        self.env = clean_environment(EVPIPE_NATS_URL=server.url, XDG_CACHE_HOME=cache)
        self._spawn = spawn

    def host(self, roles: str, *queues: str) -> Program:
        """Start a process with a controller, a worker or both, and wait until they are there."""
        return self._spawn(self.env, "-m", "tests.e2e.host", roles, *queues).until_said("ready\n")

    def run(self, name: str, parameters: Mapping[str, Any], **options: Any) -> Program:
        """Start `run` of a pipeline in a process of its own."""
        return self._spawn(self.env, "-m", "tests.e2e.runner", name, json.dumps(parameters), json.dumps(options))

    def observer(self) -> Program:
        where = Path(__file__).with_name("observer.py")
        return self._spawn(clean_environment(), where, self.url, "evpipe").until_said("ready\n")


@pytest.fixture
def bus(server: ServerProcess, spawn: Callable[..., Program], tmp_path: Path) -> ConfiguredBus:
    return ConfiguredBus(server, spawn, tmp_path / "cache")


@pytest.fixture(scope="session")
def embedded_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory whose embedded server is kept running between the tests that use it."""
    data = tmp_path_factory.mktemp("embedded")
    with EmbeddedServer.start(data):
        yield data


@pytest.fixture
def embedded(embedded_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's `run` uses the embedded bus of that directory."""
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(embedded_data))
    return embedded_data
