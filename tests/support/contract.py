"""`@contract`: a test of what every bus keeps, run on memory (asyncio and trio, virtual time) and on a real server."""

from __future__ import annotations

import functools
from typing import Any, Protocol, cast

import anyio

from evpipe.bus.server import ServerProcess
from tests.support.loops import Kind, run_in
from tests.support.worlds import Check, MemoryWorld, NatsWorld, World

#: No test of the contract takes longer; in virtual time an unanswered wait is found at once.
LIMIT_S = 30.0


class ContractTest(Protocol):
    """A test function; `check` is its body, for whoever wants to run it on a bus of their own."""

    check: Check

    def __call__(self, kind: str, nats_server: ServerProcess) -> None: ...


def contract(check: Check) -> ContractTest:
    def test(kind: str, nats_server: ServerProcess) -> None:
        if kind == "nats":
            run_check(check, NatsWorld(nats_server), "real")
        else:
            run_check(check, MemoryWorld(), cast("Kind", kind))

    # Its own signature, or pytest would look for a fixture named `world`.
    functools.update_wrapper(test, check)
    del test.__wrapped__  # type: ignore[attr-defined]  # set by update_wrapper
    found: Any = test
    found.check = check
    return cast("ContractTest", found)


def run_check(check: Check, world: World, kind: Kind) -> None:
    async def main() -> None:
        with anyio.fail_after(LIMIT_S):
            async with world:
                await check(world)

    run_in(kind, main)
