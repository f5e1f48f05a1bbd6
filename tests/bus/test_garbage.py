"""Whoever may publish may publish nonsense: nothing breaks, and a run that goes on meanwhile ends right."""

from __future__ import annotations

import anyio
import msgpack

from evpipe import Client, Controller, Worker
from evpipe.wire.codec import encode_map
from evpipe.wire.subjects import shard_of
from tests.bus.garbage_steps import chain
from tests.support.contract import contract
from tests.support.worlds import NatsWorld, World, until

PAYLOADS = (
    b"",
    b"\xff\xfe not msgpack",
    msgpack.packb(None),
    msgpack.packb([[]]),
    msgpack.packb({"v": 99}),
    encode_map({"attempt": "one", "reason": 7, "status": "none", "graph": 3, "cause": 5, "message": 6}),
    b"\x93" * 5_000,
    b"\xdf\xff\xff\xff\xff",
)


def nonsense(world: World, run: str) -> list[str]:
    """Subjects that are none of the protocol's, or that say what cannot be."""
    prefix, shard = world.subjects.prefix, shard_of(run)
    other = "zzzzzzzzzzzz"
    return [
        f"{prefix}.event.x",
        f"{prefix}.event.{shard}.chain.{run}._.no-such-kind",
        f"{prefix}.event.{shard}.chain.{run}._",
        f"{prefix}.event.{shard}.chain.{run}.slow.succeeded.more",
        f"{prefix}.event.{(shard + 1) % 64}.chain.{run}.slow.succeeded",
        f"{prefix}.event.{shard}.chain.{run}.no-such-step.succeeded",
        f"{prefix}.event.{shard}.ch$in.{run}._.submitted",
        f"{prefix}.event.{shard}.ch$in.{run}._.finished",
        f"{prefix}.event.{shard}.another.{run}._.submitted",
        f"{prefix}.event.{shard}.another.{run}._.finished",
        f"{prefix}.event.{shard}.another.{run}._.cancel-requested",
        f"{prefix}.event.{shard}.another.{run}.slow-2.succeeded",
        *(
            f"{prefix}.event.{shard}.chain.{run}._.{kind}"
            for kind in ("submitted", "cancel-requested", "due", "finished", "paused")
        ),
        *(
            f"{prefix}.event.{shard}.chain.{run}.slow-2.{kind}"
            for kind in ("started", "succeeded", "failed", "retry", "due", "skipped", "cancelled", "approved")
        ),
        f"{prefix}.event.{shard_of(other)}.chain.{other}._.submitted",
        f"{prefix}.event.{shard_of(other)}.chain.{other}._.finished",
        f"{prefix}.queue.x",
        f"{prefix}.queue.default.5.{run}",
        f"{prefix}.queue.default.5.{run}.no-such-step.1",
        f"{prefix}.queue.default.5.{run}.slow.one",
        f"{prefix}.queue.default.5.{other}.slow.1",
        f"{prefix}.queue.default.5.UPPER.slow.1",
        f"{prefix}.queue.default.5.a.b.c.d.e",
        f"{prefix}.queue.default.x.{run}.slow.9",
        f"{prefix}.queue.no$queue.5.{run}.slow.9",
        f"{prefix}.who.x",
        f"{prefix}.who.{run}.slow.one",
        f"{prefix}.who.{run}.slow.²",
        f"{prefix}.who.{run}.slow.1.2.3",
        f"{prefix}.stop",
        f"{prefix}.ping.controller",
        f"{prefix}.ping.worker.default",
        f"{prefix}.ping.worker.x.y",
    ]


@contract
async def test_a_run_ends_right_while_nonsense_arrives_on_every_subject(world: World) -> None:
    """Undecodable payloads and impossible subjects, raw, on the log, the queue and every signal."""
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)), Worker(Client(bus=node), slots=2):
        handle = await client.submit(chain)
        await anyio.sleep(0.3)
        for subject in nonsense(world, handle.id):
            for payload in PAYLOADS:
                await world.publish(subject, payload)
        result = await handle.result(timeout_s=20)
        assert (result.status, result.value) == ("succeeded", 3)
        assert await (await client.get_run(handle.id)).status() == "succeeded"
        await until(lambda: node.connected and user.connected)
    # Who takes over reads all of it again.
    async with Controller(Client(bus=await world.bus())), Worker(Client(bus=await world.bus())):
        again = await client.submit(chain)
        assert (await again.result(timeout_s=20)).value == 3


@contract
async def test_a_decision_gets_past_nonsense_on_its_own_subject(world: World) -> None:
    """Garbage that is quicker than the controller's own event only costs it a second try."""
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)), Worker(Client(bus=node), slots=2):
        handle = await client.submit(chain)
        finished = world.subjects.event("chain", handle.id, None, "finished")
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(_flood, world, finished)
            result = await handle.result(timeout_s=25)
            task_group.cancel_scope.cancel()
        assert (result.status, result.value) == ("succeeded", 3)


async def _flood(world: World, subject: str) -> None:
    if isinstance(world, NatsWorld):
        async with world.raw() as raw:
            while True:
                await raw.publish(subject, b"garbage")
                await anyio.sleep(0.01)
    while True:
        await world.publish(subject, b"garbage")
        await anyio.sleep(0.01)


@contract
async def test_garbage_ends_nothing_for_a_launch_that_comes_again(world: World) -> None:
    """A worker that looks into a launch of before takes what it cannot read for nothing."""
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)):
        handle = await client.submit(chain)
        await anyio.sleep(0.5)
        for step, kind in ((None, "finished"), ("slow", "cached"), ("slow", "cancelled"), ("slow", "succeeded")):
            await world.publish(world.subjects.event("chain", handle.id, step, kind), b"\xff")
        async with Worker(Client(bus=node)):
            assert (await handle.result(timeout_s=20)).value == 3


@contract
async def test_a_run_with_garbage_for_a_cancel_can_still_be_cancelled(world: World) -> None:
    """Nonsense on the cancel's subject is no cancel, and does not keep one away."""
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)), Worker(Client(bus=node), slots=2):
        handle = await client.submit(chain)
        await anyio.sleep(0.3)
        await world.publish(world.subjects.event("chain", handle.id, None, "cancel-requested"), b"\xff")
        await anyio.sleep(0.3)
        await handle.cancel("enough")
        result = await handle.result(timeout_s=20)
        assert result.status == "cancelled"


@contract
async def test_objects_whose_stream_was_deleted_are_missing(world: World) -> None:
    """Without the object store a run is refused with a sentence; the controller lives, and the next run is well."""
    if not isinstance(world, NatsWorld):
        return
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Worker(Client(bus=node), slots=2):
        handle = await client.submit(chain)
        await _delete_objects(world)
        async with Controller(Client(bus=node)):
            result = await handle.result(timeout_s=20)
            assert result.status == "failed"
            assert "is not in the object store" in (result.error or "")
            again = await client.submit(chain)
            assert (await again.result(timeout_s=20)).value == 3


async def _delete_objects(world: NatsWorld) -> None:
    async with world.raw() as raw:
        await raw.request(f"$JS.API.STREAM.DELETE.OBJ_{world.prefix}-objects", b"", timeout=5)


@contract
async def test_a_damaged_description_of_an_object_is_a_missing_object(world: World) -> None:
    """What describes an object in the store may be garbage, too."""
    if not isinstance(world, NatsWorld):
        return
    objects = (await world.bus()).objects
    await world.publish(objects._meta_subject("f" * 64), b"\xff garbage")  # type: ignore[attr-defined]  # NATS only
    assert await objects.get("f" * 64) is None
    await world.publish(objects._meta_subject("e" * 64), b"[]")  # type: ignore[attr-defined]  # NATS only
    assert await objects.get("e" * 64) is None
    await objects.put("e" * 64, b"data")
