"""The lease: what becomes of a leader that renews it too late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio.testing

from evpipe.bus.memory import MemoryBus, MemoryServer
from evpipe.controller.lease import BUCKET, KEY, RENEW_EVERY_S, TTL_S, Lease


def on_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    """Run it where hours pass in no time."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(main, backend="trio", backend_options={"clock": clock})


async def lost_after(lease: Lease, seconds: float) -> bool:
    """Keep a lease for so long; gives whether it was lost."""
    with anyio.move_on_after(seconds) as scope:
        await lease.keep()
    return not scope.cancelled_caught


def test_it_is_kept_for_as_long_as_it_is_renewed() -> None:
    async def main() -> None:
        async with MemoryBus() as bus:
            lease = Lease(bus, "one")
            await lease.acquire()
            assert not await lost_after(lease, 10 * TTL_S)
            entry = await bus.bucket(BUCKET).get(KEY)
            assert entry is not None
            assert entry.value == b"one"

    on_virtual_time(main)


def test_a_leader_that_was_late_goes_on_if_nobody_took_over() -> None:
    """A loop that stood still for longer than the lease lives must not begin to read the log again."""

    async def main() -> None:
        async with MemoryBus() as bus:
            lease = Lease(bus, "one")
            await lease.acquire()
            await bus.bucket(BUCKET).delete(KEY)
            assert not await lost_after(lease, 10 * TTL_S)

    on_virtual_time(main)


def test_a_renewal_whose_answer_was_lost_is_ones_own() -> None:
    async def main() -> None:
        async with MemoryBus() as bus:
            lease = Lease(bus, "one")
            await lease.acquire()
            # Stored under the next revision, and nobody heard of it.
            assert await bus.bucket(BUCKET).put(KEY, b"one", ttl_s=TTL_S) is not None
            assert not await lost_after(lease, 10 * TTL_S)

    on_virtual_time(main)


def test_a_leader_whose_place_was_taken_is_deposed() -> None:
    async def main() -> None:
        server = MemoryServer()
        async with MemoryBus(server) as bus, MemoryBus(server) as other_bus:
            lease, other = Lease(bus, "one"), Lease(other_bus, "two")
            await lease.acquire()
            await bus.bucket(BUCKET).delete(KEY)
            await other.acquire()
            assert await lost_after(lease, 2 * RENEW_EVERY_S)
            assert not await lost_after(other, 10 * TTL_S)

    on_virtual_time(main)


@pytest.mark.parametrize("wait_s", [0.0, TTL_S / 2])
def test_a_standby_waits_until_it_runs_out(wait_s: float) -> None:
    async def main() -> None:
        server = MemoryServer()
        async with MemoryBus(server) as bus, MemoryBus(server) as other_bus:
            await Lease(bus, "one").acquire()
            began = anyio.current_time()
            await anyio.sleep(wait_s)
            await Lease(other_bus, "two").acquire()
            assert TTL_S <= anyio.current_time() - began <= TTL_S + 1

    on_virtual_time(main)
