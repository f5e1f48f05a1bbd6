from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evpipe.bus import embedded

from .helpers import GRACE_S, POLL_S, Place

VARIABLES = ("NATS_URL", "XDG_DATA_HOME", "EVPIPE_NATS_SERVER", "EVPIPE_NATS_URL", "EVPIPE_DATA_DIR", "EVPIPE_PREFIX")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(embedded, "GRACE_S", GRACE_S)
    monkeypatch.setattr(embedded, "POLL_S", POLL_S)
    place = Place(tmp_path / "data")
    yield place
    place.clean()
