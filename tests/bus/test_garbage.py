"""Whoever may publish may publish nonsense: nothing breaks, and a run that goes on meanwhile ends right."""

from __future__ import annotations

import hashlib

import msgpack

from evpipe import Client, Controller, Worker
from evpipe.bus.outbox import Message
from evpipe.wire.codec import encode_map
from evpipe.wire.subjects import shard_of
from tests.bus.garbage_steps import chain, holding
from tests.support.contract import contract
from tests.support.worlds import NatsWorld, World, until, until_answer

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
        with holding() as held:
            handle = await client.submit(chain)
            # Some of it while each of the three steps runs.
            for number, payloads in enumerate((PAYLOADS[:3], PAYLOADS[3:6], PAYLOADS[6:]), 1):
                await until(lambda number=number: held.begun == number, what=f"step {number} runs")  # type: ignore[misc]
                for subject in nonsense(world, handle.id):
                    for payload in payloads:
                        await world.publish(subject, payload)
                held.let_one_end()
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
    """Garbage that is quicker than the controller's own event, again and again, only costs it more tries."""
    tries: list[str] = []

    def be_quicker(message: Message) -> None:
        if message.subject.endswith("._.finished"):
            tries.append(message.subject)
            if len(tries) <= 3:
                world.slip_in(node, message.subject, b"garbage")

    node, user = await world.bus(be_quicker), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)), Worker(Client(bus=node), slots=2):
        handle = await client.submit(chain)
        finished = world.subjects.event("chain", handle.id, None, "finished")
        result = await handle.result(timeout_s=25)
        assert (result.status, result.value) == ("succeeded", 3)
        assert tries == [finished] * 4
        # What comes behind the decision changes nothing either.
        await world.publish(finished, b"garbage")
        assert await (await client.get_run(handle.id)).status() == "succeeded"


@contract
async def test_garbage_ends_nothing_for_a_launch_that_comes_again(world: World) -> None:
    """A worker that looks into a launch of before takes what it cannot read for nothing."""
    node, user = await world.bus(), await world.bus()
    client = Client(bus=user)
    async with Controller(Client(bus=node)):
        handle = await client.submit(chain)
        await until_answer(lambda: user.first_launch_of(handle.id), what="its first step is launched")
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
        with holding() as held:
            handle = await client.submit(chain)
            await until(lambda: held.begun == 1, what="its first step runs")
            await world.publish(world.subjects.event("chain", handle.id, None, "cancel-requested"), b"\xff")
            # The controller reads in order: when it launches the second step it has read the nonsense before.
            held.let_one_end()
            await until(lambda: held.begun == 2, what="its second step runs")
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
    digest = hashlib.sha256(b"data").hexdigest()
    await world.publish(objects._meta_subject(digest), b"[]")  # type: ignore[attr-defined]  # NATS only
    assert await objects.get(digest) is None
    await objects.put(digest, b"data")
    assert await objects.get(digest) == b"data"
