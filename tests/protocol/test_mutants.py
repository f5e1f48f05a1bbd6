"""The simulation finds what it is there to find: without a rule some seed goes wrong."""

from __future__ import annotations

import re
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

from evpipe.bus.memory import MemoryBus, MemoryPull, MemoryServer
from evpipe.bus.outbox import Outbox
from evpipe.bus.protocol import Outcome
from evpipe.controller.case import Case
from evpipe.core.machine import Run
from evpipe.worker import redelivery, worker
from evpipe.worker.redelivery import Verdict
from tests.protocol import simulation
from tests.protocol.checker import check
from tests.protocol.simulation import NotEnded, WitnessServer, simulate

#: Seeds that are tried until one shows it.
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

STALLED = r"the run has not ended after \d+ s of simulated time"
BEGUN_AFTER_ITS_END = r"^Begin\(.*\) after its end at "

SKIP_IS_NO_END = "rule 11: what skipped itself has not ended"
#: What takes the rule away, and the verdict that must be found then.
MUTANTS: dict[str, tuple[list[tuple[Any, str, Any]], str]] = {
    "rule 4: a take-over issues nothing that is outstanding": ([(Run, "outstanding", lambda _: ())], STALLED),
    "rule 5: decisions are appended without an expected sequence": (
        [(MemoryServer, "append", _unchecked)],
        r"^\d times \S+ (finished|skipped|cancelled)|^\S+ (retry|due): ",
    ),
    "rule 6: a launch is accepted twice": ([(WitnessServer, "launch", _launched_again)], r"^stored twice: "),
    "rule 6: launches on their way outlive their run": (
        [(Case, "drop_unanswered", lambda _: None)],
        r"^Begin\(.*\) after the run's end at ",
    ),
    "rule 7: nothing is sent again": ([(Outbox, "_repeat_unanswered", _never)], STALLED),
    "rule 8: nothing is noted at a reconnect": (
        [(MemoryBus, "reconnect", _notes_nothing), (MemoryPull, "__init__", _opened)],
        BEGUN_AFTER_ITS_END,
    ),
    "rule 11: a launch that comes again is run": ([(worker, "examine", _always_run)], BEGUN_AFTER_ITS_END),
    SKIP_IS_NO_END: (
        [
            (redelivery, "KINDS", tuple(kind for kind in redelivery.KINDS if kind != "skipped")),
            (redelivery, "_TOLD", ("succeeded", "failed")),
        ],
        BEGUN_AFTER_ITS_END,
    ),
    "rule 11: a launch that comes again is dropped": ([(worker, "examine", _always_over)], STALLED),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_without_the_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rule is taken away; among the first seeds there is one that shows it, by what the rule is there for."""
    patches, verdict = MUTANTS[name]
    for target, attribute, value in patches:
        monkeypatch.setattr(target, attribute, value)
    found: list[str] = []
    for seed in range(1, SEEDS_MAX + 1):
        try:
            check(simulate(seed, skips=name == SKIP_IS_NO_END))
        except AssertionError as error:
            found.append(str(error))
            if re.search(verdict, found[-1]):
                return
    raise AssertionError(f"{SEEDS_MAX} seeds did not show that this is missing: {name}; they showed {found}")


def test_what_goes_round_at_one_moment_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual clock does not move while a task is ready: the steps of the scheduler are bounded, too."""

    async def goes_round(_: Outbox) -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(Outbox, "_repeat_unanswered", goes_round)
    monkeypatch.setattr(simulation, "SCHEDULED_MAX", 20_000)
    with pytest.raises(NotEnded, match="20,000 steps of the scheduler and 0 s of simulated time"):
        simulate(1)
