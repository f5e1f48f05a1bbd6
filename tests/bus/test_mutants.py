"""The contract's tests fail on a bus that breaks their rule: they test what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from evpipe.bus import memory
from evpipe.bus.memory import MemoryBus, MemoryObjects, MemoryServer
from evpipe.bus.nats import bus as nats_bus
from evpipe.bus.nats import lane, provision
from evpipe.bus.outbox import Message, Outbox
from evpipe.bus.protocol import Refused
from evpipe.bus.server import ServerProcess
from tests.bus import mutants as m
from tests.bus import test_rules as rules
from tests.support.contract import ContractTest, run_check
from tests.support.worlds import MemoryWorld, NatsWorld

Mutant = type[MemoryServer] | type[MemoryBus] | Callable[[pytest.MonkeyPatch], None]


def bucket(replacement: Any) -> m.Patch:
    return m.patch(memory, "MemoryBucket", replacement)


def objects(replacement: type[MemoryObjects]) -> m.Patch:
    return m.patch(memory, "MemoryObjects", replacement)


def of_outbox(name: str, value: Any) -> m.Patch:
    return m.patch(Outbox, name, value)


PAIRS: list[tuple[ContractTest, Mutant]] = [
    (rules.test_rule_01_every_end_event_is_recorded_in_one_order, m.KeepsTheNewestOfASubject),
    (rules.test_rule_02_a_submit_is_stored_once_and_the_second_reads_it, m.NoSequenceCheck),
    (rules.test_rule_02_nothing_is_taken_for_a_duplicate_by_its_content, m.DeduplicatesByContent),
    (rules.test_rule_03_a_lease_is_taken_by_one_and_falls_free_by_itself, bucket(m.AnyRevision)),
    (rules.test_rule_03_a_lease_is_taken_by_one_and_falls_free_by_itself, bucket(m.ForEver)),
    (rules.test_rule_04_a_replay_up_to_the_end_and_a_follow_from_it_give_each_event_once, m.ReplayEndsEarly),
    (rules.test_rule_04_a_replay_up_to_the_end_and_a_follow_from_it_give_each_event_once, m.FollowsFromTheEnd),
    (rules.test_rule_04_a_replay_is_bounded_on_both_sides, m.Inclusive),
    (rules.test_rule_04_a_replay_is_bounded_on_both_sides, m.ReplayEndsEarly),
    (rules.test_rule_05_a_decision_names_the_last_sequence_of_its_own_subject, m.NoSequenceCheck),
    (rules.test_rule_05_a_decision_names_the_last_sequence_of_its_own_subject, m.SequenceOfTheLog),
    (rules.test_rule_05_of_two_equal_decisions_at_one_moment_one_is_stored, m.NoSequenceCheck),
    (rules.test_rule_06_a_launch_subject_stays_taken_after_its_ack, m.SubjectsFreeAfterAck),
    (rules.test_rule_06_a_launch_subject_stays_taken_after_its_ack, m.LaunchesTwice),
    (rules.test_rule_06_a_run_that_ended_takes_its_launches_with_it, m.DropsNothing),
    (rules.test_rule_06_a_run_that_ended_takes_its_launches_with_it, m.DropsEverything),
    (rules.test_rule_06_a_run_that_ended_takes_its_launches_with_it, m.DropsFromTheStreamOnly),
    (rules.test_rule_06_the_queue_is_truncated_by_prefix, m.DropsNothing),
    (rules.test_rule_06_the_queue_is_truncated_by_prefix, m.DropsEverything),
    (rules.test_rule_06_a_launch_goes_to_its_own_lane_once, m.OneLane),
    (rules.test_rule_07_a_message_that_never_arrived_is_sent_again, of_outbox("_repeat_unanswered", m._never_again)),
    (rules.test_rule_07_a_message_that_never_arrived_is_sent_again, of_outbox("answered", m._done_each_time)),
    (rules.test_rule_07_a_lost_reply_is_no_outcome, of_outbox("_repeat_unanswered", m._never_again)),
    (rules.test_rule_07_a_lost_reply_is_no_outcome, m.NoSequenceCheck),
    (rules.test_rule_07_a_lost_reply_is_no_outcome, m.LaunchesTwice),
    (rules.test_rule_07_a_lost_connection_loses_nothing, of_outbox("_requeue", m._never)),
    (rules.test_rule_07_a_lost_connection_loses_nothing, of_outbox("_requeue", m._reversed)),
    (rules.test_rule_07_a_killed_server_loses_nothing_that_it_answered, of_outbox("_requeue", m._never)),
    (rules.test_rule_07_a_killed_server_loses_nothing_that_it_answered, m.LosesItsTailInACrash),
    (rules.test_rule_07_launched_is_an_answer_and_full_is_none, of_outbox("answered", m._full_is_launched)),
    (rules.test_rule_07_launched_is_an_answer_and_full_is_none, of_outbox("answered", m._full_is_refused)),
    (rules.test_rule_07_a_full_log_is_back_pressure, of_outbox("answered", m._full_is_refused)),
    (rules.test_rule_07_a_full_log_is_back_pressure, of_outbox("_requeue", m._never)),
    (
        rules.test_rule_08_a_pull_gives_no_more_than_was_asked_for,
        m.patch(memory, "MemoryPull", m.AsksForMore),
    ),
    (
        rules.test_rule_08_a_pull_gives_no_more_than_was_asked_for,
        m.patch(memory, "MemoryPull", m.AsksForOne),
    ),
    (rules.test_rule_08_a_pull_survives_its_connection, m.patch(memory, "MemoryPull", m.AsksForMore)),
    (rules.test_rule_08_a_launch_without_a_sign_of_life_is_given_again_to_anyone, m.never_again),
    (rules.test_rule_08_a_launch_without_a_sign_of_life_is_given_again_to_anyone, m.at_once),
    (rules.test_rule_08_a_launch_without_a_sign_of_life_is_given_again_to_anyone, m.delivery(m.NeverAcked)),
    (rules.test_rule_08_an_extended_launch_is_kept, m.delivery(m.NotKept)),
    (rules.test_rule_08_an_extended_launch_is_kept, m.never_again),
    (rules.test_rule_08_a_released_launch_is_given_again_at_once, m.delivery(m.NeverGivenBack)),
    (rules.test_rule_08_launches_of_before_a_worker_connected_count_as_redelivered, m.NotesNothing),
    (rules.test_rule_08_launches_of_before_a_worker_connected_count_as_redelivered, m.EverythingIsRedelivered),
    (rules.test_rule_08_launches_of_before_a_reconnect_count_as_redelivered, m.NotesOnceOnly),
    (rules.test_rule_08_a_killed_server_that_forgot_acks_gives_launches_again_as_redelivered, m.NotesOnceOnly),
    (rules.test_rule_08_a_consumer_made_again_gives_launches_again_as_redelivered, m.NotesOnceOnly),
    (rules.test_rule_10_a_result_is_waited_for_until_the_log_has_it, of_outbox("put", m._answered_at_once)),
    (rules.test_rule_11_a_launch_is_given_for_ever, m.gives_up),
    (rules.test_rule_11_a_sign_of_life_on_an_old_delivery_keeps_the_launch, m.delivery(m.KeptByTheNewestOnly)),
    (rules.test_rule_11_the_last_event_of_a_kind_is_read_at_the_leader, m.FirstOfASubject),
    (rules.test_rule_11_the_last_event_of_a_kind_is_read_at_the_leader, m.LastWithoutWildcards),
    (rules.test_rule_11_who_is_asked_answers_and_silence_takes_its_time, m.AnswersAtOnce),
    (rules.test_rule_11_an_owner_that_comes_back_is_heard, m.DeafAfterReconnect),
    (
        rules.test_rule_13_a_launch_that_has_not_left_can_be_held_back,
        m.patch(Message, "drop", m._never),
    ),
    (rules.test_rule_13_a_signal_reaches_everybody_who_listens, m.TellsOne),
    (rules.test_rule_13_a_signal_reaches_everybody_who_listens, m.TellsAllSubjects),
    (rules.test_rule_15_records_carry_the_servers_clock, m.LocalClock),
    (rules.test_rule_15_records_carry_the_servers_clock, m.FollowsSinceEver),
    (rules.test_follow_gives_every_record_once_across_a_reconnect, m.FollowsTwice),
    (rules.test_follow_gives_every_record_once_across_a_reconnect, m.FollowsWithGaps),
    (rules.test_follow_gives_every_record_once_across_a_deleted_consumer, m.FollowsTwice),
    (rules.test_follow_gives_every_record_once_across_a_killed_server, m.FollowsWithGaps),
    (rules.test_follow_gives_only_what_matches_from_where_it_was_told, m.FollowsWithoutFilter),
    (rules.test_follow_gives_only_what_matches_from_where_it_was_told, m.FollowsFromTheEnd),
    (rules.test_follow_of_a_long_log_keeps_its_order, m.FollowsFromTheEnd),
    (rules.test_bucket_writes_compare_and_set, bucket(m.AnyRevision)),
    (rules.test_bucket_entries_are_the_newest_of_each_key_oldest_write_first, bucket(m.OldestFirstWrite)),
    (rules.test_bucket_entries_are_the_newest_of_each_key_oldest_write_first, bucket(m.NeverDeleted)),
    (rules.test_bucket_a_deleted_key_can_be_created_again, bucket(m.NeverDeleted)),
    (rules.test_bucket_a_deleted_key_can_be_created_again, bucket(m.AnyRevision)),
    (rules.test_objects_round_trip, objects(m.EmptyIsMissing)),
    (rules.test_objects_missing_and_damaged_are_none, objects(m.DamagedObjects)),
    (rules.test_objects_put_twice_is_one, objects(m.AppendsObjects)),
    (rules.test_close_says_so_to_whoever_waits_for_an_outcome, of_outbox("close", m._closed_quietly)),
]


def named(pair: object) -> str:
    check = getattr(pair, "check", None)
    if check is not None:
        return str(check.__name__).removeprefix("test_")
    return str(getattr(pair, "__name__", "patch"))


@pytest.mark.parametrize(("test", "mutant"), PAIRS, ids=named)
def test_a_bus_without_the_rule_fails_its_test(
    test: ContractTest, mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same test passes on the real bus (in `test_rules`) and fails on the one that lacks the rule."""
    world = MemoryWorld()
    if not isinstance(mutant, type):
        mutant(monkeypatch)
    elif issubclass(mutant, MemoryServer):
        world = MemoryWorld(server=mutant)
    else:
        world = MemoryWorld(bus=cast("type[MemoryBus]", mutant))
    with pytest.raises((AssertionError, TimeoutError, ExceptionGroup)) as caught:
        run_check(test.check, world, "asyncio")
    assert _fails_by_itself(caught.value), caught.value


def _fails_by_itself(error: BaseException) -> bool:
    """Whether it was an assertion or a wait that failed, not a mutant that does not even run."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_fails_by_itself, error.exceptions))
    return isinstance(error, (AssertionError, TimeoutError))


def test_every_rule_has_a_mutant() -> None:
    """No test of the contract is without a bus that it fails on, but those that are about NATS alone."""
    only_on_nats = {
        "test_bucket_that_somebody_deleted_is_made_again",
        "test_bucket_put_is_repeated_until_it_is_answered",
        "test_objects_survive_lost_messages_and_connections",
        "test_close_with_open_pulls_and_follows_is_quiet",
        "test_statuses_of_the_connection",
    }
    tested = {test.check.__name__ for test, _ in PAIRS}
    wanted = {name for name in dir(rules) if name.startswith("test_")}
    assert wanted - tested == only_on_nats


# ---- the same on a real server, for the rules that its configuration and our reading of its answers keep


def configured(stream: str, **changes: Any) -> m.Patch:
    """Provision a stream with other settings."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(*args: Any) -> list[dict[str, Any]]:
            return [c | changes if c["name"].endswith(stream) else c for c in stream_configs(*args)]

        monkeypatch.setattr(provision, "stream_configs", changed)

    apply.__name__ = f"{stream} with {', '.join(changes)}"
    return apply


def lane_with(**changes: Any) -> m.Patch:
    def changed(*args: Any, **options: Any) -> dict[str, Any]:
        return lane_config(*args, **options) | changes

    return m.patch(lane, "lane_config", changed)


def full_is_launched(error: dict[str, Any]) -> Any:
    return Refused.LAUNCHED if error.get("err_code") == nats_bus.STORE_FAILED else verdict(error)


async def notes_nothing(self: lane.Lane) -> None:
    await create_lane(self)
    self._noted_sequence = 0


def names_no_sequence(_: int | None) -> None:
    return None


lane_config, stream_configs = lane.lane_config, provision.stream_configs
create_lane, verdict = lane.Lane._create, nats_bus._verdict

NATS_PAIRS: list[tuple[ContractTest, m.Patch]] = [
    (
        rules.test_rule_05_a_decision_names_the_last_sequence_of_its_own_subject,
        m.patch(nats_bus, "_headers", names_no_sequence),
    ),
    (rules.test_rule_06_a_launch_subject_stays_taken_after_its_ack, configured("-queue", retention="workqueue")),
    (
        rules.test_rule_06_a_launch_subject_stays_taken_after_its_ack,
        configured("-queue", discard_new_per_subject=False, max_msgs_per_subject=-1),
    ),
    (rules.test_rule_07_launched_is_an_answer_and_full_is_none, m.patch(nats_bus, "_verdict", full_is_launched)),
    (
        rules.test_rule_08_launches_of_before_a_worker_connected_count_as_redelivered,
        m.patch(lane.Lane, "_create", notes_nothing),
    ),
    (
        rules.test_rule_08_launches_of_before_a_reconnect_count_as_redelivered,
        m.patch(lane.Lane, "_create", notes_nothing),
    ),
    (rules.test_rule_11_a_launch_is_given_for_ever, lane_with(max_deliver=5)),
]


@pytest.mark.parametrize(("test", "mutant"), NATS_PAIRS, ids=named)
def test_a_nats_bus_without_the_rule_fails_its_test(
    test: ContractTest, mutant: m.Patch, monkeypatch: pytest.MonkeyPatch, nats_server: ServerProcess
) -> None:
    """The same on a real server: what keeps the rule there is the setting, or the line, that is missing."""
    monkeypatch.setattr("tests.support.worlds.UNTIL_S", 3.0)
    monkeypatch.setattr("tests.support.contract.LIMIT_S", 8.0)
    mutant(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, ExceptionGroup)) as caught:
        run_check(test.check, NatsWorld(nats_server), "real")
    assert _fails_by_itself(caught.value), caught.value
