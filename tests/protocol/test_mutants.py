"""The simulation finds what it is there to find: without a rule some seed goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import structlog

from evpipe.bus.memory import MemoryBus, MemoryPull, MemoryServer
from evpipe.bus.outbox import Outbox
from evpipe.bus.protocol import Outcome
from evpipe.controller import desk
from evpipe.core.machine import Run
from evpipe.worker import worker
from evpipe.worker.redelivery import Verdict
from tests.protocol.checker import check
from tests.protocol.simulation import WitnessServer, simulate

#: Seeds that are tried until one goes wrong.
SEEDS_MAX = 120


@pytest.fixture(autouse=True)
def quiet() -> Any:
    def drop(*_: object) -> structlog.typing.EventDict:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    yield
    structlog.configure(**before)


async def _never(*_: Any) -> None:
    await anyio.sleep_forever()


async def _always_run(*_: Any) -> Verdict:
    return Verdict.RUN


async def _always_over(*_: Any) -> Verdict:
    return Verdict.OVER


def _unchecked(self: MemoryServer, subject: str, payload: bytes, expected: int | None) -> Outcome:
    return append(self, subject, payload, None)


def _launched_again(self: WitnessServer, subject: str, payload: bytes) -> Outcome:
    self.launches.pop(subject, None)
    return launch(self, subject, payload)


def _notes_nothing(self: MemoryBus) -> None:
    reconnect(self)
    self.noted_sequence = 0


def _opened(self: MemoryPull, *args: Any) -> None:
    open_pull(self, *args)
    self._noted_sequence = 0


append, launch, reconnect, open_pull = (
    MemoryServer.append,
    WitnessServer.launch,
    MemoryBus.reconnect,
    MemoryPull.__init__,
)

MUTANTS: dict[str, list[tuple[Any, str, Any]]] = {
    "rule 4: a take-over issues nothing that is outstanding": [(Run, "outstanding", lambda _: ())],
    "rule 5: decisions are appended without an expected sequence": [(MemoryServer, "append", _unchecked)],
    "rule 6: a launch is accepted twice": [(WitnessServer, "launch", _launched_again)],
    "rule 6: launches on their way outlive their run": [(desk, "_hold_back", lambda _: None)],
    "rule 7: nothing is sent again": [(Outbox, "_repeat_unanswered", _never)],
    "rule 8: nothing is noted at a reconnect": [
        (MemoryBus, "reconnect", _notes_nothing),
        (MemoryPull, "__init__", _opened),
    ],
    "rule 11: a launch that comes again is run": [(worker, "examine", _always_run)],
    "rule 11: a launch that comes again is dropped": [(worker, "examine", _always_over)],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_without_the_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rule is taken away; among the first seeds there is one that shows it."""
    for target, attribute, value in MUTANTS[name]:
        monkeypatch.setattr(target, attribute, value)
    assert _some_seed_fails(), f"{SEEDS_MAX} seeds did not show that this is missing: {name}"


def _some_seed_fails() -> bool:
    attempt: Callable[[int], None] = lambda seed: check(simulate(seed))  # noqa: E731 - one line, one use
    for seed in range(1, SEEDS_MAX):
        try:
            attempt(seed)
        except (AssertionError, ExceptionGroup, TimeoutError):
            return True
    return False
