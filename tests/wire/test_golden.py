"""The bytes of one message of every kind: a log that was written by an older version stays readable.

Bytes here change only with `VERSION`, and then the old ones stay and must still decode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from evpipe.core.events import CancelRequested, Failure, Finished, StepFailed, StepSucceeded
from evpipe.core.states import RunStatus
from evpipe.errors import EncodingError, LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.cache import (
    CacheEntry,
    Expired,
    Marker,
    decode_entry,
    decode_made,
    encode_entry,
    encode_made,
    encode_marker,
)
from evpipe.wire.graphs import decode_graph, encode_graph, graph_digest
from evpipe.wire.limits import (
    ARGUMENTS_BYTES_MAX,
    MESSAGE_CHARS_MAX,
    PARAMETERS_BYTES_MAX,
    TRACEBACK_CHARS_MAX,
    VALUE_BYTES_MAX,
)
from evpipe.wire.messages import (
    LaunchOrder,
    Submission,
    decode_event,
    decode_launch,
    decode_submission,
    encode_event,
    encode_launch,
    encode_submission,
)
from evpipe.wire.subjects import EventSubject
from tests.wire.samples import (
    CACHING_GRAPH,
    CACHING_LAUNCH,
    CACHING_SUBMISSION,
    EVENTS,
    GRAPH,
    LAUNCH,
    SUBMISSION,
    WAITING_GRAPH,
)

GOLDEN_EVENTS = {
    "started": ("83a17601a7617474656d707401a6776f726b6572a27731"),
    "succeeded": (
        "84a17601a7617474656d707402aa737461727465645f6174cb3ff8000000000000a576616c756581a178c70b019201cb"
        "4004000000000000"
    ),
    "cached": (
        "85a17601a7617474656d707401ab66696e6765727072696e74d940666566656665666566656665666566656665666566"
        "65666566656665666566656665666566656665666566656665666566656665666566656665666566656665a466726f6d"
        "84a8706970656c696e65a5636875726ea372756ea872756e3030303030a473746570a162a26174cb401e000000000000"
        "a576616c756582a56d6f64656cc79e0d9aa56e756d707901d94064316431643164316431643164316431643164316431"
        "643164316431643164316431643164316431643164316431643164316431643164316431643164316431ce000186a0c0"
        "81a16b9201c0d94063306330633063306330633063306330633063306330633063306330633063306330633063306330"
        "63306330633063306330633063306330633063306330633003c392a16100a573636f7265cb3fe0000000000000"
    ),
    "approved": ("84a17601a26279a3616e6ea76d657373616765a466696e65a6616e73776572a162"),
    "received": ("82a17601a576616c756582a2696407a26174cb3fe0000000000000"),
    "failed": (
        "87a17601a7617474656d707401a6726561736f6ea56572726f72a76d657373616765ae56616c75654572726f723a20c3"
        "a9a5747970657391b36275696c74696e732e56616c75654572726f72a974726163656261636ba27462aa737461727465"
        "645f6174cb3fe0000000000000"
    ),
    "retry": ("83a17601a7617474656d707402a66475655f6174cb4029000000000000"),
    "skipped": ("83a17601a6726561736f6ea8757073747265616da76d657373616765af7374657020276227206661696c6564"),
    "skipped itself": (
        "85a17601a6726561736f6ea9636f6e646974696f6ea76d657373616765ab6e6f206e65772064617461a7617474656d70"
        "7402aa737461727465645f6174cb3fe0000000000000"
    ),
    "cancelled": ("84a17601a7617474656d707401a6726561736f6ea8646561646c696e65a76d657373616765a46c617465"),
    "due": ("82a17601a7617474656d707402"),
    "due of the run": ("82a17601a7617474656d707400"),
    "cancel-requested": ("83a17601a56361757365a96661696c5f66617374a76d657373616765a16d"),
    "finished": ("84a17601a6737461747573a9737563636565646564a76d657373616765a0a576616c756592c0c40100"),
    "finished badly": ("84a17601a6737461747573a66661696c6564a76d657373616765a16da6726561736f6ea46c6f7374"),
}

GOLDEN_SUBMISSION = (
    "84a17601a56772617068d940303132333435363738396162636465663031323334353637383961626364656630313233"
    "34353637383961626364656630313233343536373839616263646566a57175657565a46d696e65aa706172616d657465"
    "727382a4726f77730aa6646570746873c70301920305"
)

GOLDEN_LAUNCH = (
    "87a17601a8706970656c696e65a464656d6fa4636f646582a46b696e64a470617468a46e616d65a36d3a66a865786563"
    "75746f72a6746872656164a76f75747075747392a56d6f64656ca573636f7265a974696d656f75745f73cb404e000000"
    "000000a9617267756d656e747382a46461746191cb3ff8000000000000a12a91c3"
)

GOLDEN_GRAPH = (
    "89a17601a8706970656c696e65a5636875726ea776657273696f6ea5312e302e30aa706172616d65746572739283a46e"
    "616d65a4726f7773a47479706581a46b696e64a3696e74a764656661756c74cd03e882a46e616d65a6646570746873a4"
    "7479706582a46b696e64a57475706c65a5696e6e65729182a46b696e64a76c69746572616ca676616c756573920305a5"
    "73746570739285a46e616d65a46c6f6164a4636f646582a46b696e64a470617468a46e616d65a66d3a6c6f6164a96172"
    "67756d656e747381a4726f7773c70511a4726f7773a57175657565a764656661756c74a86578656375746f72a6746872"
    "6561648ba46e616d65a5747261696ea4636f646582a46b696e64a470617468a46e616d65a76d3a747261696ea9617267"
    "756d656e747383a464617461c7071092a46c6f616490a5666972737491c70a1092a46c6f61649200a16ba56465707468"
    "03a57175657565a3677075a86578656375746f72a6696e6c696e65a5616674657291a46c6f6164a76f75747075747392"
    "a56d6f64656ca573636f7265a77265747269657386a5636f756e7402a764656c61795f73cb3ff0000000000000a66661"
    "63746f72cb4000000000000000ab64656c61795f6d61785f73cb4072c00000000000a66a6974746572cb3fb999999999"
    "999aa26f6e91b06275696c74696e732e4f534572726f72a974696d656f75745f73cb404e000000000000aa6f6e5f6661"
    "696c757265a8636f6e74696e7565ab6465736372697074696f6ea466697473a66f7574707574c70e1092a5747261696e"
    "91a573636f7265a96661696c5f66617374c3aa646561646c696e655f73cb40ac200000000000ab646573637269707469"
    "6f6eaa77686f206c6561766573"
)

GOLDEN_CACHING_SUBMISSION = (
    "86a17601a56772617068d940303132333435363738396162636465663031323334353637383961626364656630313233"
    "34353637383961626364656630313233343536373839616263646566a57175657565a0a5666163747383a6707974686f"
    "6ea4332e3132a5696d616765ac7265706f2f747261696e3a31a966756e6374696f6e7381a36d3a6692a46330646581a5"
    "6e756d7079a5322e312e30a77265667265736892a161a162aa706172616d657465727380"
)

GOLDEN_CACHING_LAUNCH = (
    "87a17601a8706970656c696e65a464656d6fa4636f646582a46b696e64a470617468a46e616d65a36d3a66a865786563"
    "75746f72a770726f63657373a67069636b6c65c3a5636163686582ab66696e6765727072696e74d94066656665666566"
    "656665666566656665666566656665666566656665666566656665666566656665666566656665666566656665666566"
    "656665666566656665aa636f6d706f6e656e747386a4636f6465a463306465a776657273696f6ea0a6707974686f6ea4"
    "332e3132a5696d616765a0a87061636b6167657381a56e756d7079a5322e312e30a6696e7075747381a17892d9406431"
    "643164316431643164316431643164316431643164316431643164316431643164316431643164316431643164316431"
    "6431643164316431643164316431a133a9617267756d656e747382a56d6f64656cc79e0d9aa56e756d707901d9406431"
    "643164316431643164316431643164316431643164316431643164316431643164316431643164316431643164316431"
    "6431643164316431643164316431ce000186a0c081a16b9201c0d9406330633063306330633063306330633063306330"
    "633063306330633063306330633063306330633063306330633063306330633063306330633063306330633003c392a1"
    "6100a5736d616c6cc7540d9aa576616c756501d940616261626162616261626162616261626162616261626162616261"
    "6261626162616261626162616261626162616261626162616261626162616261626162616202c4026f6b80a0c0c290"
)

GOLDEN_WAITING_GRAPH = (
    "89a17601a8706970656c696e65a57761697473a776657273696f6ea0aa706172616d657465727390a573746570739586"
    "a46e616d65a36e6170a4636f646580a9617267756d656e747381a77365636f6e6473cb3ff8000000000000a571756575"
    "65a764656661756c74a86578656375746f72a770726f63657373a47761697481a46b696e64a5736c65657087a46e616d"
    "65a7617070726f7665a4636f646580a9617267756d656e747383a76d657373616765a657686963683fa473686f7781a5"
    "736c657074c7061092a36e617090a764656661756c74a162a57175657565a764656661756c74a86578656375746f72a7"
    "70726f63657373a974696d656f75745f73cb404e000000000000a47761697482a46b696e64a8617070726f76616ca661"
    "6e7377657282a46b696e64a76c69746572616ca676616c75657392a161a16286a46e616d65a3796573a4636f646580a9"
    "617267756d656e747381a76d657373616765a45965733fa57175657565a764656661756c74a86578656375746f72a770"
    "726f63657373a47761697483a46b696e64a8617070726f76616ca6616e7377657281a46b696e64a4626f6f6cac72656a"
    "6563745f6661696c73c386a46e616d65a56f72646572a4636f646580a9617267756d656e747382a46e616d65ae6f7264"
    "6572732e63726561746564a56d6174636881a2696407a57175657565a764656661756c74a86578656375746f72a77072"
    "6f63657373a47761697482a46b696e64a67369676e616cac73696e63655f7375626d6974c386a46e616d65a56f746865"
    "72a4636f646580a9617267756d656e747382a8706970656c696e65a5636875726ea46b696e64a866696e6973686564a5"
    "7175657565a764656661756c74a86578656375746f72a770726f63657373a47761697481a46b696e64a972756e5f6576"
    "656e74a66f7574707574c0a96661696c5f66617374c2aa646561646c696e655f73c0ab6465736372697074696f6ea0"
)

GOLDEN_CACHING_GRAPH = (
    "89a17601a8706970656c696e65a5636875726ea776657273696f6ea0aa706172616d657465727390a573746570739286"
    "a46e616d65a46c6f6164a4636f646580a9617267756d656e747380a57175657565a764656661756c74a8657865637574"
    "6f72a770726f63657373a563616368658087a46e616d65a5747261696ea4636f646580a9617267756d656e747380a571"
    "75657565a764656661756c74a86578656375746f72a770726f63657373a5636163686583a574746c5f73cb40ac200000"
    "000000a776657273696f6ea132a669676e6f726591a7766572626f7365a67069636b6c65c3a66f7574707574c0a96661"
    "696c5f66617374c2aa646561646c696e655f73c0ab6465736372697074696f6ea0"
)

GOLDEN_DIGEST = "552578323ee4fceb487b076dc997ba03c41a6d22f393da2230f8595cff28ffcb"


def subject(step: str | None, kind: str) -> EventSubject:
    return EventSubject("demo", "run00001", step, kind)


def changed(golden: str, **fields: Any) -> bytes:
    """A golden payload with other or further fields."""
    found: dict[str, Any] = msgpack.unpackb(bytes.fromhex(golden))
    packed: bytes = msgpack.packb({**found, **fields})
    return packed


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_written_and_read_as_ever(name: str) -> None:
    step, kind, data = encode_event(EVENTS[name])
    assert (step, kind) == (getattr(EVENTS[name], "step", None), name.split(" ", maxsplit=1)[0])
    assert data.hex() == GOLDEN_EVENTS[name]
    assert decode_event(subject(step, kind), bytes.fromhex(GOLDEN_EVENTS[name]), 0.0) == EVENTS[name]


def test_a_submit_is_written_and_read_as_ever() -> None:
    assert encode_submission(SUBMISSION).hex() == GOLDEN_SUBMISSION
    assert decode_submission(bytes.fromhex(GOLDEN_SUBMISSION)) == SUBMISSION


def test_a_launch_is_written_and_read_as_ever() -> None:
    assert encode_launch(LAUNCH, "step 'a'").hex() == GOLDEN_LAUNCH
    assert decode_launch(bytes.fromhex(GOLDEN_LAUNCH)) == LAUNCH


def test_what_a_cached_run_sends_is_written_and_read_as_ever() -> None:
    """Its submit, its launches with the artifacts among their arguments, its graph."""
    assert encode_submission(CACHING_SUBMISSION).hex() == GOLDEN_CACHING_SUBMISSION
    assert decode_submission(bytes.fromhex(GOLDEN_CACHING_SUBMISSION)) == CACHING_SUBMISSION
    assert encode_launch(CACHING_LAUNCH, "step 'a'").hex() == GOLDEN_CACHING_LAUNCH
    assert decode_launch(bytes.fromhex(GOLDEN_CACHING_LAUNCH)) == CACHING_LAUNCH
    assert encode_graph(CACHING_GRAPH).hex() == GOLDEN_CACHING_GRAPH
    assert decode_graph(bytes.fromhex(GOLDEN_CACHING_GRAPH)) == CACHING_GRAPH
    assert encode_graph(WAITING_GRAPH).hex() == GOLDEN_WAITING_GRAPH
    assert decode_graph(bytes.fromhex(GOLDEN_WAITING_GRAPH)) == WAITING_GRAPH


def test_a_graph_is_written_and_read_as_ever() -> None:
    assert encode_graph(GRAPH).hex() == GOLDEN_GRAPH
    assert decode_graph(bytes.fromhex(GOLDEN_GRAPH)) == GRAPH


def test_the_digest_of_a_graph_is_as_ever() -> None:
    assert graph_digest(bytes.fromhex(GOLDEN_GRAPH)) == GOLDEN_DIGEST


def test_the_moment_of_an_event_is_the_log_s_and_not_the_writer_s() -> None:
    event = decode_event(subject("a", "started"), bytes.fromhex(GOLDEN_EVENTS["started"]), 1234.5)
    assert event is not None
    assert event.at_s == 1234.5


# ---- newer and older writers


@pytest.mark.parametrize("name", EVENTS)
def test_a_field_that_is_not_known_is_ignored_in_an_event(name: str) -> None:
    event = EVENTS[name]
    step, kind, _ = encode_event(event)
    assert decode_event(subject(step, kind), changed(GOLDEN_EVENTS[name], added_later=[{}]), 0.0) == event


def test_what_expired_is_written_and_read_wherever_it_is_said() -> None:
    expired = Expired("run00001", 12.5)
    launch = replace(CACHING_LAUNCH, expired=expired)
    assert decode_launch(encode_launch(launch, "step 'a'")) == launch
    entry = CacheEntry(
        fingerprint="fe" * 32,
        pipeline="demo",
        run="run00002",
        step="a",
        attempt=1,
        event=b"",
        components=CACHING_LAUNCH.components,
        expired=expired,
    )
    assert decode_entry(encode_entry(entry)) == entry
    assert decode_made(encode_made(entry)).expired == expired
    marker = decode_entry(encode_marker(Marker("demo", "run00002", "a", expired)))
    assert marker == Marker("demo", "run00002", "a"), "who it is does not depend on it"
    assert marker.expired == expired
    assert decode_made(encode_made(replace(entry, expired=None))).expired is None
    for hostile in ("run00001", {"run": "run00001"}, {"run": 1, "at": 1.0}, {"run": "run00001", "at": "now"}):
        with pytest.raises(RemoteProtocolError, match="expired"):
            decode_made(changed(encode_made(entry).hex(), expired=hostile))


def test_a_field_that_is_not_known_is_ignored_elsewhere() -> None:
    assert decode_submission(changed(GOLDEN_SUBMISSION, added_later=[{}])) == SUBMISSION
    assert decode_launch(changed(GOLDEN_LAUNCH, added_later=[{}])) == LAUNCH
    assert decode_graph(changed(GOLDEN_GRAPH, added_later=[{}])) == GRAPH


@pytest.mark.parametrize(("step", "kind"), [("a", "progress"), (None, "paused"), ("a", "finished"), (None, "started")])
def test_a_kind_that_is_not_known_is_no_event_and_no_error(step: str | None, kind: str) -> None:
    assert decode_event(subject(step, kind), b"whatever a newer writer puts there", 0.0) is None


@pytest.mark.parametrize(("version", "shown"), [(2, "2"), (0, "0"), ("1", "'1'"), (None, "None")])
def test_another_version_is_refused_with_both_numbers(version: Any, shown: str) -> None:
    reads = f"has version {shown}: this evpipe reads version 1"
    decoders: list[tuple[str, Any, str]] = [
        ("the event 'due'", lambda data: decode_event(subject("a", "due"), data, 0.0), GOLDEN_EVENTS["due"]),
        ("the submit", decode_submission, GOLDEN_SUBMISSION),
        ("the launch", decode_launch, GOLDEN_LAUNCH),
        ("the graph", decode_graph, GOLDEN_GRAPH),
    ]
    for what, decode, golden in decoders:
        with pytest.raises(RemoteProtocolError) as caught:
            decode(changed(golden, v=version))
        assert str(caught.value) == f"{what} {reads}"


def test_an_event_may_leave_out_what_has_a_default() -> None:
    bare = msgpack.packb({"v": 1, "attempt": 1})
    assert decode_event(subject("a", "succeeded"), bare, 0.0) == StepSucceeded(step="a", attempt=1)
    assert decode_event(subject("a", "failed"), bare, 0.0) == StepFailed(
        step="a", attempt=1, failure=Failure(message="")
    )
    assert decode_event(subject(None, "cancel-requested"), bare, 0.0) == CancelRequested()


@pytest.mark.parametrize(
    ("step", "kind", "fields", "sentence"),
    [
        ("a", "started", {}, "the event 'started': field 'attempt' is missing, it must be a whole number from 0"),
        (
            "a",
            "started",
            {"attempt": True},
            "the event 'started': field 'attempt' is of type bool, it must be a whole number from 0",
        ),
        (
            "a",
            "succeeded",
            {"attempt": -1},
            "the event 'succeeded': field 'attempt' is of type int, it must be a whole number from 0",
        ),
        (
            "a",
            "failed",
            {"attempt": 1, "types": [1]},
            "the event 'failed': field 'types' is of type list, it must be a list of texts",
        ),
        (
            "a",
            "failed",
            {"attempt": 1, "reason": "mood"},
            (
                "the event 'failed': reason 'mood' is none of "
                "error, timeout, deadline, lost, upstream, rejected, output, request, condition"
            ),
        ),
        ("a", "retry", {"attempt": 1}, "the event 'retry': field 'due_at' is missing, it must be a number"),
        (
            None,
            "cancel-requested",
            {"cause": "mood"},
            "the event 'cancel-requested': cause 'mood' is none of request, deadline, fail_fast",
        ),
        (
            None,
            "finished",
            {"status": "done"},
            "the event 'finished': status 'done' is none of submitted, running, succeeded, failed, cancelled",
        ),
    ],
)
def test_a_wrong_field_is_named(step: str | None, kind: str, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_event(subject(step, kind), msgpack.packb({"v": 1, **fields}), 0.0)
    assert str(caught.value) == sentence


# ---- what a writer cuts, leaves out or refuses


def test_a_long_message_and_traceback_are_cut_and_text_that_is_no_unicode_is_escaped() -> None:
    failure = Failure(message="m" * 10_000 + "\udcff", types=("t",) * 99, traceback="\ud800" + "x" * 100_000 + "end")
    _, _, data = encode_event(StepFailed(step="a", attempt=1, failure=failure))
    found = decode_event(subject("a", "failed"), data, 0.0)
    assert isinstance(found, StepFailed)
    assert found.failure.message == "m" * (MESSAGE_CHARS_MAX - 1) + "…"
    assert found.failure.types == ("t",) * 32
    assert found.failure.traceback.startswith("\\ud800xxx")
    assert "\n… 83,620 characters cut …\n" in found.failure.traceback
    assert found.failure.traceback.endswith("xend")
    assert len(found.failure.traceback) < TRACEBACK_CHARS_MAX + 100


def test_a_run_s_value_that_is_too_large_is_left_out_of_its_event() -> None:
    """Whoever folds the run has it from the outputs."""
    large = Finished(status=RunStatus.SUCCEEDED, value="x" * VALUE_BYTES_MAX)
    _, _, data = encode_event(large)
    assert decode_event(subject(None, "finished"), data, 0.0) == Finished(status=RunStatus.SUCCEEDED)


def test_what_cannot_be_written_is_refused_and_named() -> None:
    refused: list[tuple[Any, type[Exception], str]] = [
        (
            lambda: encode_event(StepSucceeded(step="a", attempt=1, value=[slice(1)])),
            EncodingError,
            r"^the output of step 'a' cannot be encoded: a slice at \[0\] ",
        ),
        (
            lambda: encode_event(StepSucceeded(step="a", attempt=1, value=b"x" * VALUE_BYTES_MAX)),
            LimitExceeded,
            r"^the output of step 'a' is 524,293 bytes when encoded: at most 524,288 are allowed$",
        ),
        (
            lambda: encode_submission(Submission(graph="0" * 64, parameters={"p": b"x" * PARAMETERS_BYTES_MAX})),
            LimitExceeded,
            r"^the map of parameters is 262,152 bytes when encoded: at most 262,144 are allowed$",
        ),
        (
            lambda: encode_launch(
                LaunchOrder(pipeline="p", code={}, executor="thread", arguments={"p": b"x" * ARGUMENTS_BYTES_MAX}),
                "step 'a'",
            ),
            LimitExceeded,
            r"^the map of arguments of step 'a' is 524,296 bytes when encoded: at most 524,288 are allowed$",
        ),
    ]
    for encode, error, sentence in refused:
        with pytest.raises(error, match=sentence):
            encode()


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"graph": "abc"}, RemoteProtocolError, "the submit: 'abc' is not the digest of a graph (64 hex digits)"),
        (
            {"graph": "A" * 64},
            RemoteProtocolError,
            f"the submit: {'A' * 64!r} is not the digest of a graph (64 hex digits)",
        ),
        ({"queue": "a.b"}, UsageError, "queue name 'a.b' is not allowed: "),
        ({"parameters": []}, RemoteProtocolError, "the submit: field 'parameters' is of type list, it must be a map"),
    ],
)
def test_a_wrong_submit_is_refused(fields: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        decode_submission(changed(GOLDEN_SUBMISSION, **fields))
    assert str(caught.value).startswith(sentence)


def test_a_launch_of_a_pipeline_with_an_illegal_name_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^the launch: pipeline name 'a\.b' is not allowed: "):
        decode_launch(changed(GOLDEN_LAUNCH, pipeline="a.b"))
