from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from evpipe.worker.children.killing import descendants
from tests.e2e.conftest import bus, server, spawn
from tests.e2e.helpers import until
from tests.worker.helpers import is_alive

#: Fixtures that tests here use, too.
__all__ = ["bus", "server", "spawn"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Processes that die are logged, and here nothing else happens."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Whatever a test does to a worker: when that has left, no process of its is left."""
    before = descendants(os.getpid())
    yield
    until(
        lambda: not [pid for pid in descendants(os.getpid()) - before if is_alive(pid)],
        "all processes that the test started have ended",
        patience_s=5.0,
    )


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent
