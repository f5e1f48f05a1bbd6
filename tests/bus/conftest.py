"""The server that all of these tests share, and the three ways in which a contract test runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from evpipe.bus.server import ServerProcess


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("nats")
    with ServerProcess(folder, sync="default") as process:
        yield process


@pytest.fixture(params=["asyncio", "trio", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not answered is repeated sooner than in earnest: the tests that lose replies wait for it."""
    monkeypatch.setattr("evpipe.bus.outbox.ANSWER_WAIT_S", 0.8)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Faults are logged, and here there is nothing but faults."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent
