"""Subjects are built and taken apart by the same rules, and what is no subject is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.errors import EvpipeError, RemoteProtocolError, UsageError
from evpipe.wire.subjects import (
    DECISION_KINDS,
    RUN_KINDS,
    SHARDS,
    STEP_KINDS,
    EventSubject,
    LaunchSubject,
    Subjects,
    TelemetrySubject,
    check_run_id,
    shard_of,
)
from tests.core.budget import examples

S = Subjects()
RUN = "abcdefgh"
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
RUN_IDS = st.from_regex(r"\A[a-z0-9]{8,32}\Z")


@pytest.mark.parametrize(
    ("text", "fnv1a_32"),
    # The vectors of the reference implementation (Noll, draft-eastlake-fnv, test vectors).
    [
        ("", 0x811C9DC5),
        ("a", 0xE40C292C),
        ("b", 0xE70C2DE5),
        ("c", 0xE60C2C52),
        ("fo", 0x6222E842),
        ("foo", 0xA9F37ED7),
        ("foob", 0x3F5076EF),
        ("fooba", 0x39AAA18A),
        ("foobar", 0xBF9CF968),
    ],
)
def test_the_shard_is_fnv_1a_of_the_run_id(text: str, fnv1a_32: int) -> None:
    assert shard_of(text) == fnv1a_32 % 64


def test_the_number_of_shards_never_changes() -> None:
    assert SHARDS == 64


@given(NAMES, RUN_IDS, st.none() | NAMES, st.sampled_from(sorted(RUN_KINDS | STEP_KINDS)))
@examples(100)
def test_an_event_subject_comes_apart_as_it_was_built(pipeline: str, run: str, step: str | None, kind: str) -> None:
    subject = S.event(pipeline, run, step, kind)
    assert S.parse_event(subject) == EventSubject(pipeline, run, step, kind)
    assert len(subject) <= 512


@given(NAMES, RUN_IDS, NAMES, st.integers(0, 10**9 - 1), st.integers(0, 9))
@examples(100)
def test_a_launch_subject_comes_apart_as_it_was_built(
    queue: str, run: str, step: str, attempt: int, priority: int
) -> None:
    subject = S.launch(queue, run, step, attempt, priority)
    assert S.parse_launch(subject) == LaunchSubject(queue, priority, run, step, attempt)


@given(RUN_IDS, NAMES, st.integers(0, 10**9 - 1), st.just("log") | NAMES)
@examples(100)
def test_a_telemetry_subject_comes_apart_as_it_was_built(run: str, step: str, attempt: int, kind: str) -> None:
    subject = S.telemetry(run, step, attempt, kind)
    assert S.parse_telemetry(subject) == TelemetrySubject(run, step, attempt, kind)
    assert len(subject) <= 512


@given(st.text(st.sampled_from("evpiqu.*>_05aZ٣ \n"), max_size=60) | st.text(max_size=30))
@examples(200)
def test_other_text_is_refused_and_what_is_taken_is_built_again_the_same(text: str) -> None:
    for subject in (text, f"evpipe.event.{text}", f"evpipe.queue.{text}", f"evpipe.queue.q.5.{RUN}.s.{text}"):
        try:
            event = S.parse_event(subject)
            assert S.event(event.pipeline, event.run, event.step, event.kind) == subject
        except RemoteProtocolError:
            pass
        try:
            launch = S.parse_launch(subject)
            assert S.launch(launch.queue, launch.run, launch.step, launch.attempt, launch.priority) == subject
        except RemoteProtocolError:
            pass
    for subject in (text, f"evpipe.telemetry.{text}", f"evpipe.telemetry.{RUN}.s.{text}"):
        try:
            told = S.parse_telemetry(subject)
            assert S.telemetry(told.run, told.step, told.attempt, told.kind) == subject
        except RemoteProtocolError:
            pass


SHARD = shard_of(RUN)


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        ("", "'' is not the subject of an event"),
        ("evpipe.event.>", "'evpipe.event.>' is not the subject of an event"),
        (f"other.event.{SHARD}.p.{RUN}.s.due", f"'other.event.{SHARD}.p.{RUN}.s.due' is not the subject of an event"),
        (f"evpipe.event.{SHARD}.p.{RUN}.s.x.y", f"'evpipe.event.{SHARD}.p.{RUN}.s.x.y' is not the subject of an event"),
        (
            f"evpipe.event.99.p.{RUN}.s.due",
            f"'evpipe.event.99.p.{RUN}.s.due': run '{RUN}' is not a run id of shard '99'",
        ),
        ("evpipe.event.0.p.Run.s.due", "'evpipe.event.0.p.Run.s.due': run 'Run' is not a run id of shard '0'"),
        (f"evpipe.event.{SHARD}.*.{RUN}.s.due", f"'evpipe.event.{SHARD}.*.{RUN}.s.due': '*' is not a pipeline name"),
        (f"evpipe.event.{SHARD}.p.{RUN}.-.due", f"'evpipe.event.{SHARD}.p.{RUN}.-.due': '-' is not a step name"),
        (f"evpipe.event.{SHARD}.p.{RUN}..due", f"'evpipe.event.{SHARD}.p.{RUN}..due': '' is not a step name"),
    ],
)
def test_what_is_no_subject_of_an_event_is_refused(subject: str, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        S.parse_event(subject)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "tail",
    [
        f"q.5.{RUN}.s",
        f"q.5.{RUN}.s.1.2",
        f"*.5.{RUN}.s.1",
        f"q.5.{RUN}.>.1",
        "q.5.UPPER123.s.1",
        f"q.10.{RUN}.s.1",
        f"q.-1.{RUN}.s.1",
        f"q..{RUN}.s.1",
        f"q.{'1' * 5_000}.{RUN}.s.1",
        f"q.٣.{RUN}.s.1",
        f"q.5.{RUN}.s.٣",
        f"q.5.{RUN}.s.01",
        f"q.5.{RUN}.s.1\n",
        f"q.5.{RUN}.s.{10**9}",
    ],
)
def test_what_is_no_subject_of_a_launch_is_refused(tail: str) -> None:
    with pytest.raises(RemoteProtocolError):
        S.parse_launch(f"evpipe.queue.{tail}")


@pytest.mark.parametrize(
    "tail",
    [
        f"telemetry.{RUN}.s.1",
        f"telemetry.{RUN}.s.1.log.more",
        f"telemetry.{RUN}.s.1.",
        f"telemetry.{RUN}.*.1.log",
        f"telemetry.{RUN}.s.*.log",
        f"telemetry.{RUN}.s.01.log",
        f"telemetry.{RUN}.s.1.log\n",
        f"telemetry.{RUN}.._.log",
        "telemetry.UPPERCASE.s.1.log",
        f"event.{RUN}.s.1.log",
    ],
)
def test_what_is_no_subject_of_telemetry_is_refused(tail: str) -> None:
    with pytest.raises(RemoteProtocolError, match="is not the subject of telemetry"):
        S.parse_telemetry(f"evpipe.{tail}")


@pytest.mark.parametrize(
    "run_id", ["", "short", "x" * 33, "UPPERCASE", "with.dot1", "with*star", "ümlaute1", "a" * 8 + "\n"]
)
def test_another_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_run_id(run_id)
    assert str(caught.value) == f"{run_id[:40]!r} is not a run id: it has 8 to 32 lower-case letters and digits"


@pytest.mark.parametrize("run_id", ["abcdefgh", "0" * 32])
def test_a_run_id_is_given_back(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("prefix", ["", "a.b", "*", "-a", "x" * 33, "a\n", "ä"])
def test_a_prefix_that_may_not_be_in_a_subject_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError) as caught:
        Subjects(prefix)
    assert str(caught.value) == f"prefix {prefix!r} is not allowed: 1 to 32 letters, digits, '_' and '-'"


def test_two_installations_do_not_read_each_other() -> None:
    theirs = Subjects("other").event("p", RUN, "s", "due")
    with pytest.raises(EvpipeError):
        S.parse_event(theirs)


def test_the_subjects_of_the_public_protocol() -> None:
    """Other languages speak it: these texts are a promise."""
    assert S.event("churn", RUN, "train", "succeeded") == f"evpipe.event.{SHARD}.churn.{RUN}.train.succeeded"
    assert S.event("churn", RUN, None, "finished") == f"evpipe.event.{SHARD}.churn.{RUN}._.finished"
    assert S.events_of_run(RUN) == f"evpipe.event.{SHARD}.*.{RUN}.>"
    assert S.events_of_step(RUN, "train") == f"evpipe.event.{SHARD}.*.{RUN}.train.*"
    assert S.events_of_step(RUN, "train", "failed") == f"evpipe.event.{SHARD}.*.{RUN}.train.failed"
    assert S.events_like() == "evpipe.event.*.*.*.*.*"
    assert S.events_like(pipeline="churn", kind="failed") == "evpipe.event.*.churn.*.*.failed"
    assert S.launch("gpu", RUN, "train", 2) == f"evpipe.queue.gpu.5.{RUN}.train.2"
    assert S.launches_of_lane("gpu") == "evpipe.queue.gpu.5.>"
    assert S.launches_of_run(RUN) == f"evpipe.queue.*.*.{RUN}.>"
    assert S.telemetry(RUN, "train", 2) == f"evpipe.telemetry.{RUN}.train.2.log"
    assert S.telemetry_of(RUN) == f"evpipe.telemetry.{RUN}.*.*.log"
    assert S.telemetry_of(RUN, "train") == f"evpipe.telemetry.{RUN}.train.*.log"
    assert S.telemetry_of(RUN, attempt=2) == f"evpipe.telemetry.{RUN}.*.2.log"
    assert S.telemetry_of(RUN, "train", 2) == S.telemetry(RUN, "train", 2)
    assert S.all_telemetry == "evpipe.telemetry.>"
    assert S.who(RUN, "train", 2) == f"evpipe.who.{RUN}.train.2"
    assert (S.all_events, S.all_launches, S.all_who) == ("evpipe.event.>", "evpipe.queue.>", "evpipe.who.>")
    assert (S.stop, S.ping_controller, S.ping_worker("gpu")) == (
        "evpipe.stop",
        "evpipe.ping.controller",
        "evpipe.ping.worker.gpu",
    )


def test_decisions_are_kinds_of_events() -> None:
    assert DECISION_KINDS <= RUN_KINDS | STEP_KINDS
