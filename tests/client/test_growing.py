"""One feed for more and more runs: each record of each of them once and in order, whoever stops waiting when."""

from __future__ import annotations

import random

import anyio
import pytest

from evpipe.bus.memory import MemoryBus
from evpipe.bus.protocol import Record
from evpipe.client import growing
from evpipe.client.client import new_run_id
from evpipe.client.growing import Events, GrowingFeed, Member, Told


@pytest.mark.parametrize("told", [False, True], ids=["events", "telemetry"])
def test_nothing_is_missed_and_nothing_comes_twice(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are added late, others speak, too, and waits are cancelled at any moment."""
    monkeypatch.setattr(growing, "ANEW_S", 0.0)
    monkeypatch.setattr(growing, "NAMED_MAX", 3)
    for seed in range(40):
        monkeypatch.setattr(growing, "SUBJECTS_MAX", seed % 5 + 1)
        anyio.run(_follow, random.Random(seed), told)


async def _follow(chance: random.Random, told: bool) -> None:
    async with MemoryBus() as bus:
        runs = [(new_run_id(), chance.choice("abc")) for _ in range(24)]
        members: dict[str, Member] = {}
        written: dict[str, list[bytes]] = {run: [] for run, _ in runs}
        given: dict[str, list[Record]] = {run: [] for run, _ in runs}
        source = Told(bus) if told else Events(bus)
        stopped: set[str] = set()

        async def write() -> None:
            run, of = chance.choice(runs)
            number = b"%d" % len(written[run])
            if told:
                bus.telemetry.tell(bus.subjects.telemetry(run, "s", 1), number)
            else:
                await bus.append_wait(f"{bus.subjects.prefix}.event.nobody", b"")
                await bus.append_wait(bus.subjects.event(of, run, f"s{len(written[run])}", "started"), number)
            written[run].append(number)

        def take(records: list[Record]) -> None:
            for record in records:
                run = source.run_of(record)
                assert run in members
                assert run not in stopped
                given[run].append(record)

        async with GrowingFeed(source) as feed:
            first = Member(*runs[0])
            members[first.run] = first
            feed.add(first)
            for _ in range(150):
                what = chance.random()
                if what < 0.5:
                    await write()
                elif what < 0.6:
                    run, of = chance.choice(runs)
                    if run not in members:
                        members[run] = Member(run, of)
                        feed.add(members[run])
                elif what < 0.65 and len(members) > 1:
                    run = chance.choice([run for run in members if run != first.run])
                    stopped.add(run)
                    feed.drop(run)
                else:
                    with anyio.move_on_after(chance.choice([0.0, 0.001])):
                        take(await anext(feed))
            up_to = await bus.telemetry.last_sequence() if told else await bus.last_sequence()
            async for records in feed.rest(up_to):
                take(records)
        for run in members:
            found = [record.payload for record in given[run]]
            assert found == written[run][: len(found)]
            assert run in stopped or len(found) == len(written[run])


def test_few_subjects_stand_for_many_runs() -> None:
    async def main() -> None:
        async with MemoryBus() as bus:
            events = Events(bus)
            many = [Member(new_run_id(), "fit") for _ in range(growing.NAMED_MAX + 1)]
            few = [Member(new_run_id(), "outer") for _ in range(2)]
            assert events.subjects([*few, *many]) == [
                "evpipe.event.*.fit.>",
                *(bus.subjects.events_of_run(member.run, "outer") for member in few),
            ]
            apart = [Member(new_run_id(), f"p{i}") for i in range(growing.SUBJECTS_MAX + 1)]
            assert events.subjects(apart) == ["evpipe.event.>"]
            assert Told(bus, attempt=2).subjects(apart) == ["evpipe.telemetry.*.*.2.log"]

    anyio.run(main)
