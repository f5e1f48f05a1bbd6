"""The contract of every bus, rule by rule of the protocol; each test is one sentence of it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import anyio
import pytest

from evpipe.bus.memory import Fault
from evpipe.bus.outbox import Message
from evpipe.bus.protocol import ACK_WAIT_S, Bus, Delivery, Outcome, Record, Refused, Stored
from evpipe.errors import BusClosed
from tests.support.contract import contract
from tests.support.worlds import World, once, pass_time, pulling, put_off, stays, until, until_answer

RUN, OTHER = "aaaaaaaa", "bbbbbbbb"


def event(world: World, kind: str, step: str | None = "load", run: str = RUN) -> str:
    return world.subjects.event("churn", run, step, kind)


def launch(world: World, step: str, attempt: int = 1, *, run: str = RUN, queue: str = "default") -> str:
    return world.subjects.launch(queue, run, step, attempt)


async def launched(bus: Bus, subject: str, payload: bytes = b"{}") -> Outcome:
    """Launch and wait for the outcome."""
    outcomes: list[Outcome] = []
    bus.launch(subject, payload, done=outcomes.append)
    await until(lambda: outcomes, what=f"an outcome of {subject}")
    return outcomes[0]


async def all_of(batches: AsyncIterator[list[Record]]) -> list[Record]:
    records: list[Record] = []
    async for batch in batches:
        assert batch, "a batch is never empty"
        records += batch
    return records


def sequence(outcome: Outcome) -> int:
    assert isinstance(outcome, Stored), outcome
    return outcome.sequence


# ---- the log


@contract
async def test_rule_01_every_end_event_is_recorded_in_one_order(world: World) -> None:
    """Two ends of one attempt are both stored, with growing sequences: which counts is for the fold to say."""
    bus = await world.bus()
    first = sequence(await bus.append_wait(event(world, "succeeded"), b"1"))
    second = sequence(await bus.append_wait(event(world, "succeeded"), b"2"))
    third = sequence(await bus.append_wait(event(world, "failed"), b"3"))
    assert 0 < first < second < third == await bus.last_sequence()
    records = await all_of(bus.replay([world.subjects.events_of_run(RUN)], up_to=third))
    assert [(r.sequence, r.payload) for r in records] == [(first, b"1"), (second, b"2"), (third, b"3")]
    assert [r.subject for r in records] == [event(world, "succeeded")] * 2 + [event(world, "failed")]


@contract
async def test_rule_02_a_submit_is_stored_once_and_the_second_reads_it(world: World) -> None:
    """`submitted` with the expected sequence 0 is refused when it is there, and what is there can be read."""
    one, two = await world.bus(), await world.bus()
    subject = event(world, "submitted", None)
    stored = sequence(await one.append_wait(subject, b"mine", expected=0))
    assert await two.append_wait(subject, b"yours", expected=0) is Refused.SEQUENCE
    found = await two.last(subject)
    assert found is not None
    assert (found.sequence, found.payload, found.subject) == (stored, b"mine", subject)


@contract
async def test_rule_02_nothing_is_taken_for_a_duplicate_by_its_content(world: World) -> None:
    """Equal messages without an expected sequence are all stored: there is no hidden de-duplication."""
    bus = await world.bus()
    sequences = {sequence(await bus.append_wait(event(world, "progress"), b"same")) for _ in range(3)}
    assert len(sequences) == 3


@contract
async def test_rule_03_a_lease_is_taken_by_one_and_falls_free_by_itself(world: World) -> None:
    """Of two that write a key that must not exist one wins; after its time to live the other can."""
    one, two = (await world.bus()).bucket("leases"), (await world.bus()).bucket("leases")
    revision = await one.put("shards", b"one", expected=0, ttl_s=1)
    assert revision is not None
    assert await two.put("shards", b"two", expected=0, ttl_s=1) is None
    renewed = await one.put("shards", b"one", expected=revision, ttl_s=1)
    assert renewed is not None
    assert renewed > revision
    taken = await until_answer(lambda: two.put("shards", b"two", expected=0, ttl_s=1), timeout_s=5)
    assert await one.put("shards", b"one", expected=renewed, ttl_s=1) is None, "the deposed one knows it"
    entry = await one.get("shards")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"two", taken)


@contract
async def test_rule_04_a_replay_up_to_the_end_and_a_follow_from_it_give_each_event_once(world: World) -> None:
    """Events stored before, while and after somebody takes over are seen once, in order, with no gap."""
    bus, other = await world.bus(), await world.bus()
    for i in range(50):
        bus.append(event(world, "progress"), b"%d" % i)
    await bus.append_wait(event(world, "progress"), b"50")
    end = await other.last_sequence()
    for i in range(51, 80):
        bus.append(event(world, "progress"), b"%d" % i)
    replayed = await all_of(other.replay([world.subjects.all_events], up_to=end))
    assert replayed[-1].sequence == end
    async with world.following(other, [world.subjects.all_events], after=end) as reader:
        for i in range(80, 100):
            bus.append(event(world, "progress"), b"%d" % i)
        await until(lambda: len(replayed) + len(reader.records) >= 100)
        seen = [*replayed, *reader.records]
        assert [int(r.payload) for r in seen] == list(range(100))
        assert [r.sequence for r in seen] == list(range(1, 101))


@contract
async def test_rule_04_a_replay_is_bounded_on_both_sides(world: World) -> None:
    """A replay gives after < sequence <= up_to, of matching subjects only, and ends; also where nothing is."""
    bus = await world.bus()
    assert await bus.last_sequence() == 0
    assert await all_of(bus.replay([world.subjects.all_events], up_to=0)) == []
    for i in range(1, 11):
        await bus.append_wait(event(world, "progress", run=RUN if i % 2 else OTHER), b"%d" % i)

    async def payloads(subject: str, **bounds: int) -> list[int]:
        return [int(r.payload) for r in await all_of(bus.replay([subject], **bounds))]

    assert await payloads(world.subjects.all_events, up_to=4) == [1, 2, 3, 4]
    assert await payloads(world.subjects.all_events, up_to=7, after=4) == [5, 6, 7]
    assert await payloads(world.subjects.events_of_run(OTHER), up_to=7, after=2) == [4, 6]
    assert await payloads(world.subjects.events_of_run("cccccccc"), up_to=10) == []
    assert await payloads(world.subjects.all_events, up_to=4, after=4) == []


@contract
async def test_rule_05_a_decision_names_the_last_sequence_of_its_own_subject(world: World) -> None:
    """The expected sequence is that of the subject, not of the log; any other is refused and changes nothing."""
    bus = await world.bus()
    await bus.append_wait(event(world, "started", "other"), b"")
    first = sequence(await bus.append_wait(event(world, "retry"), b"1", expected=0))
    await bus.append_wait(event(world, "started", "other"), b"")
    assert await bus.append_wait(event(world, "retry"), b"x", expected=0) is Refused.SEQUENCE
    assert await bus.append_wait(event(world, "retry"), b"x", expected=first + 1) is Refused.SEQUENCE
    assert await bus.append_wait(event(world, "retry"), b"x", expected=first - 1) is Refused.SEQUENCE
    second = sequence(await bus.append_wait(event(world, "retry"), b"2", expected=first))
    assert await bus.append_wait(event(world, "retry"), b"x", expected=first) is Refused.SEQUENCE
    records = await all_of(bus.replay([event(world, "retry")], up_to=await bus.last_sequence()))
    assert [(r.sequence, r.payload) for r in records] == [(first, b"1"), (second, b"2")]


@contract
async def test_rule_05_of_two_equal_decisions_at_one_moment_one_is_stored(world: World) -> None:
    """Two controllers that decide the same at the same time write it once."""
    one, two = await world.bus(), await world.bus()
    outcomes: list[Outcome] = []
    for i in range(20):
        for bus in (one, two):
            bus.append(event(world, "skipped", f"s{i}"), b"", expected=0, done=outcomes.append)
    await until(lambda: len(outcomes) == 40)
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 20
    assert outcomes.count(Refused.SEQUENCE) == 20
    assert await one.last_sequence() == 20


# ---- the queue


@contract
async def test_rule_06_a_launch_subject_stays_taken_after_its_ack(world: World) -> None:
    """An attempt that was launched, executed and acked is not launched a second time."""
    bus = await world.bus()
    assert isinstance(await launched(bus, launch(world, "a")), Stored)
    assert await launched(bus, launch(world, "a")) is Refused.LAUNCHED
    async with pulling(bus, ask=1) as hands:
        await until(lambda: len(hands) == 1)
        hands[0].ack()
        await world.until_acked()
        assert await launched(bus, launch(world, "a")) is Refused.LAUNCHED
        hands.ask(5)
        assert isinstance(await launched(bus, launch(world, "a", 2)), Stored)
        await until(lambda: len(hands) == 2)
        assert hands.subjects == [launch(world, "a"), launch(world, "a", 2)]


@contract
async def test_rule_06_a_run_that_ended_takes_its_launches_with_it(world: World) -> None:
    """`drop_launches` removes what is left of one run, in all queues, pulled or not, and of no other run."""
    bus = await world.bus()
    for queue in ("default", "gpu"):
        for run in (RUN, OTHER):
            await launched(bus, launch(world, "a", run=run, queue=queue))
    async with pulling(bus, ask=1) as hands:
        await until(lambda: len(hands) == 1)
        await bus.drop_launches(RUN)
        assert await bus.first_launch_of(RUN) is None
        assert await bus.first_launch_of(OTHER) == 2
        hands.ask(3)
        await until(lambda: launch(world, "a", run=OTHER) in hands.subjects)
        # What was held of it is not given again either.
        await stays(lambda: len(hands) == 2, for_s=ACK_WAIT_S * 0.9, what="only the other run's launch comes")
    async with pulling(bus, "gpu", ask=5) as hands:
        await until(lambda: len(hands))
        assert hands.subjects == [launch(world, "a", run=OTHER, queue="gpu")]
    assert isinstance(await launched(bus, launch(world, "a")), Stored), "its subject is free again"


@contract
async def test_rule_06_the_queue_is_truncated_by_prefix(world: World) -> None:
    """`truncate_launches` removes everything below a sequence and nothing from it on."""
    bus = await world.bus()
    for i in range(1, 7):
        assert sequence(await launched(bus, launch(world, f"s{i}", run=RUN if i < 4 else OTHER))) == i
    assert await bus.last_launch_sequence() == 6
    await bus.truncate_launches(0)
    await bus.truncate_launches(1)
    assert await bus.first_launch_of(RUN) == 1
    await bus.truncate_launches(3)
    assert await bus.first_launch_of(RUN) == 3
    await bus.truncate_launches(5)
    assert await bus.first_launch_of(RUN) is None
    assert await bus.first_launch_of(OTHER) == 5
    assert await bus.last_launch_sequence() == 6
    async with pulling(bus, ask=10) as hands:
        await until(lambda: len(hands) == 2)
        assert hands.subjects == [launch(world, "s5", run=OTHER), launch(world, "s6", run=OTHER)]
    await bus.truncate_launches(7)
    assert await bus.first_launch_of(OTHER) is None
    assert await bus.last_launch_sequence() == 6
    assert sequence(await launched(bus, launch(world, "s7"))) == 7


@contract
async def test_rule_06_a_launch_goes_to_its_own_lane_once(world: World) -> None:
    """Launches reach the pulls of their queue and priority, each of them one pull only, in their order."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus, ask=50) as mine, pulling(other, ask=50) as yours, pulling(bus, "gpu", ask=50) as gpu:
        for i in range(40):
            bus.launch(launch(world, f"s{i}"), b"%d" % i)
        bus.launch(launch(world, "g", queue="gpu"), b"g")
        bus.launch(world.subjects.launch("default", RUN, "p", 1, priority=0), b"p")
        await until(lambda: len(mine) + len(yours) == 40 and len(gpu) == 1)
        assert sorted(mine.subjects + yours.subjects) == sorted(launch(world, f"s{i}") for i in range(40))
        assert gpu[0].payload == b"g"
        for hands in (mine, yours):
            assert [int(d.payload) for d in hands] == sorted(int(d.payload) for d in hands)
            assert not any(d.redelivered for d in hands)
            for delivery in hands:
                delivery.ack()
        async with pulling(bus, priority=0, ask=5) as first:
            await until(lambda: len(first) == 1)
            assert first[0].payload == b"p"


@contract
async def test_rule_07_a_message_that_never_arrived_is_sent_again(world: World) -> None:
    """A lost message is published again until it is answered, and `done` is called once."""
    bus = await world.bus(once(Fault.LOST, 2))
    outcomes: list[Outcome] = []
    bus.append(event(world, "succeeded"), b"value", done=outcomes.append)
    bus.launch(launch(world, "a"), b"", done=outcomes.append)
    await until(lambda: len(outcomes) == 2, timeout_s=10)
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert await bus.last_sequence() == 1
    assert await bus.last_launch_sequence() == 1
    await stays(lambda: len(outcomes) == 2, for_s=0.5)


@contract
async def test_rule_07_a_lost_reply_is_no_outcome(world: World) -> None:
    """What was stored while its reply got lost is published again: its name makes the repetition harmless."""
    bus = await world.bus(once(Fault.STORED_SILENTLY, 3))
    outcomes: dict[str, Outcome] = {}
    bus.append(event(world, "finished", None), b"", expected=0, done=lambda o: outcomes.update(decision=o))
    bus.append(event(world, "succeeded"), b"", done=lambda o: outcomes.update(result=o))
    bus.launch(launch(world, "a"), b"", done=lambda o: outcomes.update(launch=o))
    await until(lambda: len(outcomes) == 3, timeout_s=10)
    assert outcomes["decision"] is Refused.SEQUENCE, "it is there: by the first copy"
    assert outcomes["launch"] is Refused.LAUNCHED
    assert isinstance(outcomes["result"], Stored), "a result has no expected sequence: its second copy is stored, too"
    records = await all_of(bus.replay([world.subjects.all_events], up_to=await bus.last_sequence()))
    assert [r.subject.rpartition(".")[2] for r in records] == ["finished", "succeeded", "succeeded"]
    assert await bus.last_launch_sequence() == 1


@contract
async def test_rule_07_a_lost_connection_loses_nothing(world: World) -> None:
    """Messages on their way when the connection breaks are published again on the next one, in their order."""
    bus, reader = await world.bus(), await world.bus()
    outcomes: list[Outcome] = []
    for i in range(300):
        bus.append(event(world, "progress", f"s{i}"), b"%d" % i, expected=0, done=outcomes.append)
    await world.blink(bus)
    for i in range(300, 400):
        bus.append(event(world, "progress", f"s{i}"), b"%d" % i, expected=0, done=outcomes.append)
    await until(lambda: len(outcomes) == 400)
    records = await all_of(reader.replay([world.subjects.all_events], up_to=await reader.last_sequence()))
    assert [int(r.payload) for r in records] == list(range(400))


@contract
async def test_rule_07_a_killed_server_loses_nothing_that_it_answered(world: World) -> None:
    """After a SIGKILL of the server everything answered before is there, and the rest is published again."""
    bus = await world.bus()
    outcomes: list[Outcome] = []
    for i in range(200):
        bus.append(event(world, "progress", f"s{i}"), b"", expected=0, done=outcomes.append)
        bus.launch(launch(world, f"s{i}"), b"", done=outcomes.append)
    await until(lambda: len(outcomes) > 50)
    for i in range(200, 250):
        bus.append(event(world, "progress", f"s{i}"), b"", expected=0, done=outcomes.append)
    await world.crash()
    await until(lambda: len(outcomes) == 450)
    assert await bus.last_sequence() == 250
    assert await bus.last_launch_sequence() == 200
    records = await all_of(bus.replay([world.subjects.all_events], up_to=250))
    assert [r.sequence for r in records] == list(range(1, 251))


@contract
async def test_rule_07_launched_is_an_answer_and_full_is_none(world: World) -> None:
    """The two meanings of 10077: a taken subject is done; a full stream is waited for, and loses nothing."""
    bus = await world.bus()
    await launched(bus, launch(world, "a"))
    outcomes: dict[str, Outcome] = {}
    async with world.full("queue"):
        for name in ("a", "b", "c"):
            bus.launch(launch(world, name), b"", done=lambda o, name=name: outcomes.update({name: o}))  # type: ignore[misc]
        await stays(lambda: not outcomes.keys() & {"b", "c"}, for_s=0.6)
        sequence(await bus.append_wait(event(world, "progress"), b""))  # the log is another stream
    await until(lambda: len(outcomes) == 3)
    assert outcomes["a"] is Refused.LAUNCHED
    assert {sequence(outcomes["b"]), sequence(outcomes["c"])} == {2, 3}
    async with pulling(bus, ask=5) as hands:
        await until(lambda: len(hands) == 3)


@contract
async def test_rule_07_a_full_log_is_back_pressure(world: World) -> None:
    """While the log is full appends wait; when there is room each of them is stored once."""
    bus = await world.bus()
    outcomes: list[Outcome] = []
    async with world.full("log"):
        for i in range(50):
            bus.append(event(world, "succeeded", f"s{i}"), b"x" * 100, done=outcomes.append)
        await stays(lambda: not outcomes, for_s=0.6)
    await until(lambda: len(outcomes) == 50)
    records = await all_of(bus.replay([world.subjects.all_events], up_to=await bus.last_sequence()))
    assert sorted(r.subject for r in records) == sorted(event(world, "succeeded", f"s{i}") for i in range(50))


# ---- launches and their workers


@contract
async def test_rule_08_a_pull_gives_no_more_than_was_asked_for(world: World) -> None:
    """A worker with three free slots gets three launches; the rest stay for others."""
    bus, other = await world.bus(), await world.bus()
    for i in range(10):
        bus.launch(launch(world, f"s{i}"), b"")
    async with pulling(bus) as hands, pulling(other, ask=4) as others:
        hands.ask(1)
        hands.ask(2)
        await until(lambda: len(hands) == 3 and len(others) == 4)
        await stays(lambda: len(hands) == 3 and len(others) == 4, for_s=0.5)
        assert hands.pull is not None
        assert hands.pull.asked == 0
        for delivery in (*hands, *others):
            delivery.ack()
        hands.ask(1)
        await until(lambda: len(hands) == 4)
        hands.ask(5)
        await until(lambda: len(hands) == 6)
        assert hands.pull.asked == 3
        await launched(bus, launch(world, "late"))
        await until(lambda: len(hands) == 7)


@contract
async def test_rule_08_a_pull_survives_its_connection(world: World) -> None:
    """What was asked for before the connection broke is still asked for after it, and no more."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus, ask=3) as hands:
        await world.blink(bus)
        for i in range(6):
            await launched(other, launch(world, f"s{i}"))
        await until(lambda: len(hands) == 3)
        await stays(lambda: len(hands) == 3, for_s=0.5)


@contract
async def test_rule_08_a_launch_without_a_sign_of_life_is_given_again_to_anyone(world: World) -> None:
    """After the ack wait a launch that was not acked goes to whoever asks, marked as redelivered."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus, ask=1) as hands:
        await launched(bus, launch(world, "a"), b"order")
        await until(lambda: len(hands) == 1)
        assert not hands[0].redelivered
        async with pulling(other, ask=1) as others:
            given_at = hands[0].arrived_at
            await until(lambda: len(others) == 1)
            assert anyio.current_time() - given_at > ACK_WAIT_S * 0.8
            assert others[0].redelivered
            assert (others[0].subject, others[0].payload) == (launch(world, "a"), b"order")
            others[0].ack()
            others.ask(1)
            await stays(lambda: len(others) == 1, for_s=ACK_WAIT_S * 1.3)


@contract
async def test_rule_08_an_extended_launch_is_kept(world: World) -> None:
    """A sign of life at every third of the ack wait keeps a launch, for as long as it comes."""
    bus, other = await world.bus(), await world.bus()
    await launched(bus, launch(world, "a"))
    async with pulling(bus, ask=1) as hands:
        await until(lambda: len(hands) == 1)
        async with pulling(other, ask=1) as others:
            for _ in range(5):
                hands[0].extend()
                await stays(lambda: len(others) == 0, for_s=ACK_WAIT_S / 3)
            await until(lambda: len(others) == 1)


@contract
async def test_rule_08_a_released_launch_is_given_again_at_once(world: World) -> None:
    """Who gives a launch back does not make the next one wait for the ack wait."""
    bus, other = await world.bus(), await world.bus()
    await launched(bus, launch(world, "a"))
    async with pulling(bus, ask=1) as hands:
        await until(lambda: len(hands) == 1)
        async with pulling(other, ask=1) as others:
            hands[0].release()
            await until(lambda: len(others) == 1, timeout_s=ACK_WAIT_S / 2)
            assert others[0].redelivered


@contract
async def test_rule_08_launches_of_before_a_worker_connected_count_as_redelivered(world: World) -> None:
    """What lies in the queue when somebody connects may have been given before; what comes later was not."""
    bus = await world.bus()
    for i in range(3):
        await launched(bus, launch(world, f"old{i}"))
    fresh = await world.bus()
    async with pulling(fresh, ask=10) as hands:
        await until(lambda: len(hands) == 3)
        await launched(bus, launch(world, "new"))
        await until(lambda: len(hands) == 4)
        assert [d.redelivered for d in hands] == [True, True, True, False]


@contract
async def test_rule_08_launches_of_before_a_reconnect_count_as_redelivered(world: World) -> None:
    """While a worker was cut off its launches may have gone to others."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus) as hands:
        await launched(other, launch(world, "before"))
        await world.blink(bus)
        await until(lambda: bus.connected)
        hands.ask(2)
        await until(lambda: len(hands) == 1)
        await launched(other, launch(world, "after"))
        await until(lambda: len(hands) == 2)
        assert [d.redelivered for d in hands] == [True, False]


@contract
async def test_rule_08_a_killed_server_that_forgot_acks_gives_launches_again_as_redelivered(world: World) -> None:
    """After a SIGKILL acked launches may come again; every one of them is marked."""
    bus = await world.bus()
    again: list[Delivery] = []
    async with pulling(bus, ask=10_000) as hands:
        # A server writes its acks down now and then: it forgets only those of the moment before it was killed.
        for round_ in range(8):
            fresh = [launch(world, f"s{round_}-{i}") for i in range(300)]
            before = len(hands)
            for subject in fresh:
                bus.launch(subject, b"")
            await until(lambda fresh=fresh: set(fresh) <= set(hands.subjects))  # type: ignore[misc]
            assert not any(d.redelivered for d in hands.deliveries[before:] if d.subject in set(fresh))
            for delivery in hands:
                delivery.ack()
            # Its answer comes after the acks have.
            await launched(bus, launch(world, f"mark{round_}"))
            seen = len(hands)
            await world.crash()
            after = launch(world, f"after{round_}")
            await launched(bus, after)
            await until(lambda after=after: after in hands.subjects)  # type: ignore[misc]
            again = [d for d in hands.deliveries[seen:] if not d.subject.startswith(after.rsplit(".", 1)[0])]
            assert all(d.redelivered for d in again)
            if again:
                return
    assert again, "this server forgot nothing in any round: the test shows nothing"


@contract
async def test_rule_08_a_consumer_made_again_gives_launches_again_as_redelivered(world: World) -> None:
    """A deleted consumer comes back by itself, and what it gives from the beginning is marked."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus, ask=10) as hands, pulling(other, ask=10) as others:
        for i in range(6):
            await launched(bus, launch(world, f"s{i}"))
        await until(lambda: len(hands) + len(others) == 6)
        for delivery in (*hands, *others):
            delivery.ack()
        await world.until_acked()
        before = (len(hands), len(others))
        await world.delete_consumers()
        await until(lambda: len(hands) + len(others) == 12)
        again = hands.deliveries[before[0] :] + others.deliveries[before[1] :]
        assert all(d.redelivered for d in again)
        for delivery in again:
            delivery.ack()
        await launched(bus, launch(world, "new"))
        await until(lambda: len(hands) + len(others) == 13)


@contract
async def test_rule_10_a_result_is_waited_for_until_the_log_has_it(world: World) -> None:
    """When `append_wait` returns, the record can be read by anyone; until then it does not return."""
    bus, other = await world.bus(once(Fault.LOST)), await world.bus()
    outcome = await bus.append_wait(event(world, "succeeded"), b"value")
    found = await other.last(event(world, "succeeded"))
    assert found is not None
    assert (found.sequence, found.payload) == (sequence(outcome), b"value")


@contract
async def test_rule_11_a_launch_is_given_for_ever(world: World) -> None:
    """There is no number of deliveries after which a launch is forgotten."""
    bus = await world.bus()
    async with pulling(bus) as hands:
        await launched(bus, launch(world, "a"))
        for i in range(30):
            hands.ask(1)
            await until(lambda i=i: len(hands) == i + 1)  # type: ignore[misc]
            hands[i].release()
    assert [d.redelivered for d in hands] == [False] + [True] * 29


@contract
async def test_rule_11_a_sign_of_life_on_an_old_delivery_keeps_the_launch(world: World) -> None:
    """The owner knows only its own delivery; its heartbeat keeps a launch that was given to another meanwhile."""
    owner, other, third = await world.bus(), await world.bus(), await world.bus()
    await launched(owner, launch(world, "a"))
    async with pulling(owner, ask=1) as mine:
        await until(lambda: len(mine) == 1)
        async with pulling(other, ask=1) as yours:
            await until(lambda: len(yours) == 1)
        async with pulling(third, ask=1) as theirs:
            for _ in range(6):
                mine[0].extend()
                await stays(lambda: len(theirs) == 0, for_s=ACK_WAIT_S / 3)
            mine[0].ack()
            await stays(lambda: len(theirs) == 0, for_s=ACK_WAIT_S * 1.2, what="an ack on an old delivery counts")


@contract
async def test_rule_11_the_last_event_of_a_kind_is_read_at_the_leader(world: World) -> None:
    """`last` gives the newest event of a subject, with wildcards, and None where there is none."""
    bus, other = await world.bus(), await world.bus()
    assert await other.last(event(world, "succeeded")) is None
    for i in range(3):
        await bus.append_wait(event(world, "failed"), b"%d" % i)
    await bus.append_wait(event(world, "started"), b"s")
    await bus.append_wait(event(world, "failed", "other"), b"o")

    async def payload(subject: str) -> bytes | None:
        found = await other.last(subject)
        return found.payload if found is not None else None

    assert await payload(event(world, "failed")) == b"2"
    assert await payload(world.subjects.events_of_step(RUN, "load", "failed")) == b"2"
    assert await payload(world.subjects.events_of_step(RUN, "load")) == b"s"
    assert await payload(world.subjects.events_of_run(RUN)) == b"o"
    assert await payload(world.subjects.events_of_step(RUN, "load", "succeeded")) is None
    assert await payload(world.subjects.events_of_run(OTHER)) is None


@contract
async def test_rule_11_who_is_asked_answers_and_silence_takes_its_time(world: World) -> None:
    """A question gets the owner's answer at once; with nobody there, None after the whole patience."""
    owner, asker = await world.bus(), await world.bus()
    asked: list[tuple[str, bytes]] = []

    def answer(subject: str, payload: bytes) -> bytes | None:
        asked.append((subject, payload))
        return b"me" if subject.endswith(".1") else None

    question = world.subjects.who(RUN, "load", 1)
    started_at = anyio.current_time()
    assert await asker.ask(question, b"", timeout_s=0.4) is None
    assert anyio.current_time() - started_at >= 0.38, "the asker's patience is part of the question"
    async with owner.listen(world.subjects.all_who, answer):
        await owner.info()  # answered after the server knows who listens
        assert await asker.ask(question, b"?", timeout_s=5) == b"me"
        assert await asker.ask(world.subjects.who(RUN, "load", 2), b"", timeout_s=0.3) is None
    assert asked == [(question, b"?"), (world.subjects.who(RUN, "load", 2), b"")]
    assert await asker.ask(question, b"", timeout_s=0.2) is None, "who left does not answer"


@contract
async def test_rule_11_an_owner_that_comes_back_is_heard(world: World) -> None:
    """Who listens goes on listening on the next connection."""
    owner, asker = await world.bus(), await world.bus()
    async with owner.listen(world.subjects.all_who, lambda *_: b"me"):
        await world.blink(owner)
        assert await asker.ask(world.subjects.who(RUN, "a", 1), b"", timeout_s=3) == b"me"


@contract
async def test_rule_13_a_launch_that_has_not_left_can_be_held_back(world: World) -> None:
    """A dropped message is not sent, nor sent again, and its `done` is never called."""
    bus = await world.bus()
    done: list[Outcome] = []
    async with world.full("queue"):
        sendings = [bus.launch(launch(world, f"s{i}"), b"", done=done.append) for i in range(3)]
        await until(lambda: put_off(bus) >= len(sendings), what="all of them are refused for now")
        for sending in sendings:
            sending.drop()
        at_once = bus.launch(launch(world, "s3"), b"", done=done.append)
        at_once.drop()
        # Behind them; when it is sent again, they would have been.
        last: list[Outcome] = []
        before = put_off(bus)
        bus.launch(launch(world, "last"), b"", done=last.append)
        await until(lambda: put_off(bus) >= before + 2, what="the last one is refused twice")
    await until(lambda: last, what="there is room for the last one")
    assert isinstance(last[0], Stored)
    await stays(lambda: not done, for_s=0.8)
    assert await bus.first_launch_of(RUN) == await bus.last_launch_sequence()


@contract
async def test_rule_13_a_signal_reaches_everybody_who_listens(world: World) -> None:
    """Orders to stop go to all workers, best effort; a payload comes as it was."""
    one, two, sender = await world.bus(), await world.bus(), await world.bus()
    heard: list[tuple[str, bytes]] = []
    async with (
        one.listen(world.subjects.stop, lambda _, p: heard.append(("one", p))),
        two.listen(world.subjects.stop, lambda _, p: heard.append(("two", p))),
        two.listen(world.subjects.all_who, lambda _, p: heard.append(("who", p))),
    ):
        for bus in (one, two):
            await bus.info()  # answered after the server knows who listens
        sender.signal(world.subjects.stop, b"\x00\xff")
        await until(lambda: len(heard) == 2)
        assert sorted(heard) == [("one", b"\x00\xff"), ("two", b"\x00\xff")]


@contract
async def test_rule_15_records_carry_the_servers_clock(world: World) -> None:
    """Time stamps never run backwards along the log, are one clock for all, and `since_s` reads from a moment."""
    one, two = await world.bus(), await world.bus()
    for i in range(4):
        await (one, two)[i % 2].append_wait(event(world, "progress"), b"%d" % i)
        await pass_time(0.05)
    records = await all_of(one.replay([world.subjects.all_events], up_to=4))
    times = [r.at_s for r in records]
    assert times == sorted(times)
    assert 0.1 < times[-1] - times[0] < 5
    entry_revision = await one.bucket("registry").put("clock", b"x")
    entry = await two.bucket("registry").get("clock")
    assert entry is not None
    assert entry.revision == entry_revision
    assert 0 <= entry.at_s - times[-1] < 5, "entries of buckets have the same clock"
    found = await one.last(event(world, "progress"))
    assert found is not None
    assert found.at_s == pytest.approx(times[-1], abs=1e-3)
    async with world.following(two, [world.subjects.all_events], since_s=times[2] - 0.01) as reader:
        await until(lambda: len(reader.records) == 2)
        assert reader.payloads == [b"2", b"3"]


# ---- following


@contract
async def test_follow_gives_every_record_once_across_a_reconnect(world: World) -> None:
    """A reader that lost its connection in the middle sees each record once, in order."""
    bus, writer = await world.bus(), await world.bus()
    async with world.following(bus, [world.subjects.all_events]) as reader:
        for i in range(200):
            writer.append(event(world, "progress"), b"%d" % i)
        await until(lambda: len(reader.records) > 20)
        for i in range(200, 400):
            writer.append(event(world, "progress"), b"%d" % i)
        await world.blink(bus)
        for i in range(400, 500):
            writer.append(event(world, "progress"), b"%d" % i)
        await until(lambda: len(reader.records) >= 500)
        assert [int(p) for p in reader.payloads] == list(range(500))
        assert [r.sequence for r in reader.records] == list(range(1, 501))


@contract
async def test_follow_gives_every_record_once_across_a_deleted_consumer(world: World) -> None:
    """Somebody deletes what the server knows of the reader: the reader knows itself where it was."""
    bus, writer = await world.bus(), await world.bus()
    async with world.following(bus, [world.subjects.all_events]) as reader:
        for i in range(100):
            await writer.append_wait(event(world, "progress"), b"%d" % i)
        await until(lambda: len(reader.records) == 100)
        await world.delete_consumers()
        for i in range(100, 200):
            await writer.append_wait(event(world, "progress"), b"%d" % i)
        await until(lambda: len(reader.records) >= 200)
        assert [int(p) for p in reader.payloads] == list(range(200))


@contract
async def test_follow_gives_every_record_once_across_a_killed_server(world: World) -> None:
    """The same, when the server is killed under reader and writer."""
    bus, writer = await world.bus(), await world.bus()
    async with world.following(bus, [world.subjects.all_events]) as reader:
        outcomes: list[Outcome] = []
        for i in range(300):
            writer.append(event(world, "progress", f"s{i}"), b"%d" % i, expected=0, done=outcomes.append)
        await until(lambda: len(reader.records) > 20)
        for i in range(300, 350):
            writer.append(event(world, "progress", f"s{i}"), b"%d" % i, expected=0, done=outcomes.append)
        await world.crash()
        await until(lambda: len(outcomes) == 350 and len(reader.records) >= 350)
        assert [int(p) for p in reader.payloads] == list(range(350))


@contract
async def test_follow_gives_only_what_matches_from_where_it_was_told(world: World) -> None:
    """A follow with a filter and a start gives what matches after it, however late it opens."""
    bus = await world.bus()
    for i in range(10):
        await bus.append_wait(event(world, "progress", run=RUN if i % 2 else OTHER), b"%d" % i)
    async with (
        world.following(bus, [world.subjects.events_of_run(RUN)], after=4) as mine,
        world.following(bus, [world.subjects.events_like(kind="finished")]) as ends,
    ):
        await bus.append_wait(event(world, "finished", None), b"end")
        await until(lambda: len(ends.records) == 1 and len(mine.records) == 4)
        assert mine.payloads == [b"5", b"7", b"9", b"end"]
        assert ends.payloads == [b"end"]


@contract
async def test_follow_of_a_long_log_keeps_its_order(world: World) -> None:
    """More records than any window holds come once each, in order."""
    bus = await world.bus()
    done: list[Outcome] = []
    for i in range(5_000):
        bus.append(event(world, "progress", f"s{i % 7}"), b"%d" % i, done=done.append)
    await until(lambda: len(done) == 5_000, timeout_s=30)
    async with world.following(bus, [world.subjects.all_events]) as reader:
        await until(lambda: len(reader.records) >= 5_000)
        assert [r.sequence for r in reader.records] == list(range(1, 5_001))
    assert len(await all_of(bus.replay([world.subjects.all_events], up_to=4_321))) == 4_321


# ---- buckets


@contract
async def test_bucket_writes_compare_and_set(world: World) -> None:
    """An entry is created once, replaced only at the revision that was read, and read back as it is."""
    one, two = (await world.bus()).bucket("registry"), (await world.bus()).bucket("registry")
    assert await one.get("run") is None
    first = await one.put("run", b"\x00first", expected=0)
    assert first is not None
    assert await two.put("run", b"x", expected=0) is None
    assert await two.put("run", b"x", expected=first + 1) is None
    second = await two.put("run", b"second", expected=first)
    assert second is not None
    assert second > first
    assert await one.put("run", b"x", expected=first) is None
    third = await one.put("run", b"third")
    assert third is not None
    entry = await two.get("run")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("run", b"third", third)


@contract
async def test_bucket_entries_are_the_newest_of_each_key_oldest_write_first(world: World) -> None:
    """A list shows each key once, in the order of the last writes, without what was deleted."""
    bucket = (await world.bus()).bucket("registry")
    assert await bucket.entries() == []
    for key in ("a", "b", "c", "d"):
        await bucket.put(key, key.encode())
    await bucket.put("a", b"again")
    await bucket.delete("c")
    assert [(e.key, e.value) for e in await bucket.entries()] == [("b", b"b"), ("d", b"d"), ("a", b"again")]


@contract
async def test_bucket_a_deleted_key_can_be_created_again(world: World) -> None:
    """After a delete the key does not exist: a get gives None, an expected revision of 0 wins, the old one loses."""
    bucket = (await world.bus()).bucket("leases")
    first = await bucket.put("k", b"1", expected=0, ttl_s=60)
    await bucket.delete("k")
    await bucket.delete("never-there")
    assert await bucket.get("k") is None
    assert await bucket.put("k", b"x", expected=first) is None
    assert await bucket.put("k", b"2", expected=0) is not None
    assert await bucket.put("k", b"3", expected=0) is None


@contract
async def test_bucket_that_somebody_deleted_is_made_again(world: World) -> None:
    """Nothing in a bucket is the only copy: without its stream it reads as empty and takes writes again."""
    bus = await world.bus()
    bucket, leases = bus.bucket("registry"), bus.bucket("leases")
    old = await bucket.put("run", b"1")
    await world.delete_bucket("registry")
    assert await bucket.get("run") is None
    assert await bucket.put("run", b"2", expected=0) is not None
    await world.delete_bucket("registry")
    assert await bucket.entries() == []
    await world.delete_bucket("registry")
    assert await bucket.put("run", b"3", expected=old) is None
    await world.delete_bucket("registry")
    assert await bucket.put("run", b"4") is not None
    assert [e.value for e in await bucket.entries()] == [b"4"]
    await world.delete_bucket("leases")
    await leases.delete("shards")
    assert await leases.put("shards", b"me", expected=0, ttl_s=2) is not None


@contract
async def test_bucket_put_is_repeated_until_it_is_answered(world: World) -> None:
    """A write whose message or reply got lost is made all the same, and an unconditional one says so."""
    for fault in (Fault.LOST, Fault.STORED_SILENTLY):
        bucket = (await world.bus(once(fault))).bucket("registry")
        assert await bucket.put("run", fault.value.encode()) is not None
        entry = await bucket.get("run")
        assert entry is not None
        assert entry.value == fault.value.encode()


# ---- objects


@contract
async def test_objects_round_trip(world: World) -> None:
    """Objects of 0 bytes, 1 byte and 5 MB come back as they were, to any connection."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    for data in (b"", b"\x00", bytes(range(256)) * 20_000):
        digest = hashlib.sha256(data).hexdigest()
        assert await one.get(digest) is None
        await one.put(digest, data)
        assert await two.get(digest) == data


@contract
async def test_objects_missing_and_damaged_are_none(world: World) -> None:
    """What is not there, or is not what its digest says, is None: nobody is given wrong bytes."""
    objects = (await world.bus()).objects
    data = b"abc" * 100_000
    digest = hashlib.sha256(data).hexdigest()
    assert await objects.get(digest) is None
    await objects.put(digest, data)
    await world.damage(digest)
    assert await objects.get(digest) is None


@contract
async def test_objects_put_twice_is_one(world: World) -> None:
    """A second put of the same thing changes nothing, also while the first is under way elsewhere."""
    one, two = (await world.bus()).objects, (await world.bus()).objects
    data = b"graph" * 50_000
    digest = hashlib.sha256(data).hexdigest()
    async with anyio.create_task_group() as task_group:
        for objects in (one, two, one):
            task_group.start_soon(objects.put, digest, data)
    await two.put(digest, data)
    assert await one.get(digest) == data
    assert await two.get(digest) == data


@contract
async def test_objects_survive_lost_messages_and_connections(world: World) -> None:
    """A put goes on until all of it is stored."""
    bus = await world.bus(once(Fault.STORED_SILENTLY, 1))
    data = b"xyz" * 300_000
    digest = hashlib.sha256(data).hexdigest()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(bus.objects.put, digest, data)
        await world.blink(bus)
    assert await bus.objects.get(digest) == data


# ---- the end


@contract
async def test_close_says_so_to_whoever_waits_for_an_outcome(world: World) -> None:
    """A bus that is closed raises BusClosed in those whose messages were never answered; no `done` lies."""
    lost: list[Message] = []

    def lose(message: Message) -> Fault:
        lost.append(message)
        return Fault.LOST

    bus = await world.bus(lose)
    done: list[Outcome] = []
    errors: list[BaseException] = []
    bus.append(event(world, "progress"), b"", done=done.append)

    async def wait() -> None:
        try:
            await bus.append_wait(event(world, "succeeded"), b"")
        except BusClosed as error:
            errors.append(error)

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(wait)
        await until(lambda: len({message.subject for message in lost}) == 2, what="both are on their way")
        await world.close(bus)
    assert [str(error) for error in errors] == ["the bus was closed before the message was answered"]
    assert not done
    with pytest.raises(BusClosed):
        await bus.append_wait(event(world, "succeeded"), b"")


@contract
async def test_close_with_open_pulls_and_follows_is_quiet(world: World) -> None:
    """A bus closes while others still read and pull over it; the server and other buses go on."""
    bus, other = await world.bus(), await world.bus()
    async with pulling(bus, ask=5), world.following(bus, [world.subjects.all_events]):
        await bus.append_wait(event(world, "progress"), b"")
        await world.close(bus)
        await launched(other, launch(world, "a"))
    async with pulling(other, ask=1) as hands:
        await until(lambda: len(hands) == 1)


@contract
async def test_statuses_of_the_connection(world: World) -> None:
    """`connected` and `info` say who answers."""
    bus = await world.bus()
    assert bus.connected
    info = await bus.info()
    assert info.url
    assert info.server_version
