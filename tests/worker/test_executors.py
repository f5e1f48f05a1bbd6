"""An attempt as its worker runs it, where something happens at a certain moment."""

from __future__ import annotations

from pathlib import Path

import anyio

from evpipe.bus.memory import MemoryBus
from evpipe.client.notes import recorded_notes
from evpipe.sdk.context import current
from evpipe.wire.messages import LaunchOrder, encode_launch
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.executors.executors import Executors

LAUNCH = LaunchSubject("default", 5, "aaaaaaaa", "train", 1)
FOLDERS: list[Path] = []


async def train() -> None:
    FOLDERS.append(Path(current().folder))
    current().metric("loss", 0.5)
    current().artifact("large", "x" * 100_000)


def test_what_was_recorded_is_kept_when_the_attempt_is_stopped_at_its_end() -> None:
    """Its result is not told then: also where it is stopped while its folder is being removed."""
    order = LaunchOrder(
        pipeline="churn", code={"kind": "path", "module": __name__, "name": "train"}, executor="inline", arguments={}
    )

    def is_gone() -> bool:
        return bool(FOLDERS) and not FOLDERS[-1].exists()

    async def main() -> None:
        for stopped, is_told in ((is_gone, True), (lambda: False, False)):
            async with (
                MemoryBus() as bus,
                Executors(bus, 1, worker="w", local_code=True, allow_pickle=False) as executors,
            ):
                found = await executors.execute(LAUNCH, order, encode_launch(order, "a step"), stopped)
                assert found.kind == "succeeded"
                await anyio.wait_all_tasks_blocked()
                notes = await recorded_notes(bus, LAUNCH.run, "churn", LAUNCH.step, LAUNCH.attempt)
                assert (notes is not None) is is_told
                if notes is not None:
                    assert [row[:2] for row in notes.metrics] == [["loss", 0.5]]
                    assert list(notes.artifacts) == ["large"]

    anyio.run(main)
