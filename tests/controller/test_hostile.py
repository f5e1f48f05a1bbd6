"""What somebody else puts into the log ends no controller, and no run that is not about it."""

from __future__ import annotations

import anyio

from evpipe import Pipeline
from evpipe.client.client import new_run_id
from evpipe.wire.codec import encode_map
from evpipe.wire.subjects import RUN_KINDS, STEP_KINDS
from tests.controller.test_limits import body, hosted, play, seen

__all__ = ["seen"]

#: Too large for a float, and of more digits than Python writes.
HUGE = 10**5_000
WELL = {"reason": "error", "attempt": 1, "graph": "a" * 64, "pipeline": "held"}
FIELDS = ("started_at", "due_at", "attempt", "priority", "depth")


def test_numbers_of_very_many_digits() -> None:
    """In every field that is a number, of every kind of event."""

    async def main() -> None:
        async with hosted(slots=1) as (client, _):
            made = Pipeline("held")
            made.step("s", body, args={"name": "a", "takes_s": 2.0})
            handle = await client.submit(made)
            subjects = client.bus.subjects
            payloads = [encode_map({**WELL, field: HUGE}) for field in FIELDS]
            for payload in payloads:
                for step, kinds in (("s", STEP_KINDS), (None, RUN_KINDS)):
                    for kind in sorted(kinds):
                        await client.bus.append_wait(subjects.event("held", handle.id, step, kind), payload)
                stranger = subjects.event("held", new_run_id(), None, "submitted")
                await client.bus.append_wait(stranger, payload)
            with anyio.fail_after(30):
                # Those of them that are events all the same end it, one way or another.
                await handle.result()
            again = await client.submit(made)
            with anyio.fail_after(30):
                assert (await again.result()).status == "succeeded"

    play(main)
