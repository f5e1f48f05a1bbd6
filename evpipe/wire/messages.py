"""Events and launches as payloads.

The subject of an event says pipeline, run, step and kind; the payload says the rest. `encode_event` and
`decode_event` line up with the classes in `core.events`, except that a submit carries its graph by digest:
`Submission` is what is on the wire, and whoever has fetched the graph makes a `Submitted` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from evpipe.core.artifact import Artifact
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Decision,
    Due,
    Event,
    Failure,
    Finished,
    Origin,
    StepApproved,
    StepCached,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
)
from evpipe.core.fingerprint import NO_FACTS, RunFacts
from evpipe.core.graph import Step
from evpipe.core.limits import check_priority
from evpipe.core.lineage import NESTING_MAX, Parent
from evpipe.core.names import check_name, for_people
from evpipe.core.notes import AT_S_MAX
from evpipe.core.states import Reason, RunIf, RunStatus
from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.artifacts import ArtifactReader, ArtifactWriter, is_digest
from evpipe.wire.cache import CacheEntry, Expired, expired_map, expired_of, facts_map, facts_of
from evpipe.wire.codec import Fields, decode_map, encode_map, encode_map_with
from evpipe.wire.limits import (
    ARGUMENTS_BYTES_MAX,
    LARGE_ITEMS_MAX,
    MESSAGE_CHARS_MAX,
    NAME_CHARS_MAX,
    PARAMETERS_BYTES_MAX,
    SOURCE_BYTES_MAX,
    TRACEBACK_CHARS_MAX,
    VALUE_BYTES_MAX,
)
from evpipe.wire.notes import FIELD as NOTES
from evpipe.wire.notes import notes_map, notes_of
from evpipe.wire.storing import store_encoded
from evpipe.wire.subjects import EventSubject, check_run_id, is_step_token
from evpipe.wire.values import check_size, encode_value, pack, pack_unchecked, packable

#: Kinds of launches of one run that are remembered.
HEADS_MAX: Final = 256
#: As it is in an encoded submit; other texts may be the same.
_PARENT_FIELD = b"\xa6parent"

# ---- submit


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run's first event as it is on the wire."""

    #: Digest of the graph, in the object store.
    graph: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: The queue that all launches of the run go to, whatever their steps name; "" for the steps' own.
    queue: str = ""
    #: Where the code of its steps is: a tagged map, handed to the workers in every launch; no part of what the run is.
    source: Mapping[str, Any] = field(default_factory=dict)
    #: What the fingerprints of its cached steps go by beside their inputs; no part of what the run is.
    facts: RunFacts = NO_FACTS
    #: Nothing is looked up in the cache and nothing is recorded.
    no_cache: bool = False
    #: Steps that are not looked up, but recorded; "*" is all of them, "inner/train" one of a step that is a run.
    refresh: tuple[str, ...] = ()
    #: Of its steps that have none of their own; None: its pipeline's.
    priority: int | None = None
    #: The step of another run that this one is; None: it is nobody's.
    parent: Parent | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """Digests of its graph, and of those around it."""
        return (self.graph, *(self.parent.enclosing if self.parent is not None else ()))


def encode_submission(
    submission: Submission, writer: ArtifactWriter | None = None, *, parameters: bytes | None = None
) -> bytes:
    """Encode a submit.

    Args:
        writer: stores parameters that have a serializer; None: those are refused.
        parameters: as `packed_parameters` gave them; None: they are encoded here.

    Raises:
        EncodingError: if a parameter has no encoding.
        LimitExceeded: if the parameters are larger than `PARAMETERS_BYTES_MAX`.

    """
    if parameters is None:
        parameters = packed_parameters(submission.parameters, writer)
    fields: dict[str, Any] = {"graph": submission.graph, "queue": submission.queue}
    if submission.source:
        fields["source"] = submission.source
    if submission.facts is not NO_FACTS:
        fields["facts"] = facts_map(submission.facts)
    if submission.no_cache:
        fields["no_cache"] = True
    if submission.refresh:
        fields["refresh"] = list(submission.refresh)
    if submission.parent is not None:
        fields["parent"] = _parent_map(submission.parent)
    if submission.priority is not None:
        fields["priority"] = submission.priority
    return encode_map_with(fields, "parameters", parameters)


def decode_submission(data: bytes) -> Submission:
    """Decode a submit; RemoteProtocolError or UsageError if it is not one."""
    fields = decode_map(data, "the submit")
    graph = fields.text("graph")
    if not is_digest(graph):
        raise RemoteProtocolError(f"the submit: {graph[:80]!r} is not the digest of a graph (64 hex digits)")
    queue = fields.text("queue", "")
    if queue:
        check_name("queue", queue)
    parameters = fields.submap("parameters")
    if len(data) > PARAMETERS_BYTES_MAX:
        # Only then can they be over it.
        packed_parameters(parameters)
    source = fields.submap("source")
    size = len(pack_unchecked(source)) if source else 0
    if size > SOURCE_BYTES_MAX:
        raise RemoteProtocolError(f"the submit: its source is {size:,} bytes, more than {SOURCE_BYTES_MAX:,}")
    return Submission(
        graph=graph,
        parameters=parameters,
        queue=queue,
        source=source,
        facts=facts_of(Fields(fields.submap("facts"), "the submit: its facts")) if "facts" in fields.map else NO_FACTS,
        no_cache=fields.flag("no_cache"),
        refresh=fields.texts("refresh"),
        priority=check_priority("the submit: priority", fields.whole("priority")) if "priority" in fields.map else None,
        parent=_parent(Fields(fields.submap("parent"), "the submit: its parent")) if "parent" in fields.map else None,
    )


def parent_in(data: bytes) -> Parent | None:
    """Give the parent that a submit names; None if it has none, or cannot be read."""
    # Of many submits few have one: those are not decoded.
    if _PARENT_FIELD not in data:
        return None
    try:
        return decode_submission(data).parent
    except (RemoteProtocolError, UsageError):
        return None


def _parent_map(parent: Parent) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": parent.run,
        "pipeline": parent.pipeline,
        "step": parent.step,
        "attempt": parent.attempt,
        "root": parent.root,
        "depth": parent.depth,
    }
    if parent.enclosing:
        found["enclosing"] = list(parent.enclosing)
    if parent.deadline_s is not None:
        found["deadline_s"] = float(parent.deadline_s)
    return found


def _parent(fields: Fields) -> Parent:
    enclosing = fields.texts("enclosing")
    deadline_s = fields.maybe_number("deadline_s")
    step, depth = fields.text("step"), fields.whole("depth")
    if len(enclosing) > NESTING_MAX or not all(is_digest(digest) for digest in enclosing):
        raise RemoteProtocolError(f"{fields.what}: field 'enclosing' must be at most {NESTING_MAX} digests of graphs")
    if not is_step_token(step):
        raise RemoteProtocolError(f"{fields.what}: {step[:40]!r} is not the name of a step")
    if deadline_s is not None and not deadline_s > 0:
        raise RemoteProtocolError(f"{fields.what}: field 'deadline_s' is {deadline_s}, it must be above 0")
    if depth < 1:
        raise RemoteProtocolError(f"{fields.what}: field 'depth' is {depth}, it must be 1 or more")
    return Parent(
        run=check_run_id(fields.text("run")),
        pipeline=check_name("pipeline", fields.text("pipeline")),
        step=step,
        attempt=fields.whole("attempt"),
        root=check_run_id(fields.text("root")),
        depth=depth,
        enclosing=enclosing,
        deadline_s=deadline_s,
    )


def packed_parameters(parameters: Mapping[str, Any], writer: ArtifactWriter | None = None) -> bytes:
    """Encode the parameters of a submit.

    Raises:
        EncodingError, LimitExceeded: as `encode_submission`.
    """
    packed = pack(dict(parameters), "the parameters", writer)
    check_size(packed, "the map of parameters", "PARAMETERS_BYTES_MAX", PARAMETERS_BYTES_MAX)
    return packed


# ---- the other events


def encode_succeeded(attempt: int, started_at_s: float, value: bytes) -> bytes:
    """Encode the payload of a `StepSucceeded` whose value is encoded already."""
    return encode_map_with({"attempt": attempt, "started_at": started_at_s}, "value", value)


def encode_event(event: Decision | StepSucceeded | StepApproved) -> tuple[str | None, str, bytes]:
    """Encode any event but a submit.

    Returns:
        Step (None for the run itself), kind, payload.

    Raises:
        EncodingError, LimitExceeded: if a value in it has no encoding or is too large.

    """
    fields: dict[str, Any]
    match event:
        case StepSucceeded():
            what = f"the output of step {for_people(event.step)!r}"
            packed = encode_value(event.value, what)
            return event.step, "succeeded", encode_succeeded(event.attempt, event.started_at_s, packed)
        case StepCached():
            origin = event.origin
            fields = {
                "attempt": event.attempt,
                "fingerprint": event.fingerprint,
                "from": {"pipeline": origin.pipeline, "run": origin.run, "step": origin.step, "at": origin.at_s},
            }
            if event.notes is not None:
                fields[NOTES] = packable(notes_map(event.notes), "the notes")
            packed = encode_value(event.value, f"the output of step {for_people(event.step)!r}")
            return event.step, "cached", encode_map_with(fields, "value", packed)
        case StepApproved():
            packed = encode_value(event.answer, f"the answer to step {event.step!r}")
            fields = {"by": _clean(event.by[:NAME_CHARS_MAX]), "message": _cut(event.message)}
            return event.step, "approved", encode_map_with(fields, "answer", packed)
        case StepReceived():
            packed = encode_value(event.value, f"the event that step {event.step!r} waits for")
            return event.step, "received", encode_map_with({}, "value", packed)
        case StepStarted():
            return event.step, "started", encode_map({"attempt": event.attempt, "worker": event.worker})
        case StepFailed():
            return event.step, "failed", encode_map(_failed_fields(event))
        case StepRetried():
            return event.step, "retry", encode_map({"attempt": event.attempt, "due_at": event.due_at_s})
        case StepSkipped():
            fields = {"reason": event.reason.value, "message": _cut(event.message)}
            if event.attempt:
                fields |= {"attempt": event.attempt, "started_at": event.started_at_s}
            return event.step, "skipped", encode_map(fields)
        case StepCancelled():
            reason, message = event.reason.value, _cut(event.message)
            fields = {"attempt": event.attempt, "reason": reason, "message": message}
            return event.step, "cancelled", encode_map(fields)
        case Due():
            return event.step, "due", encode_map({"attempt": event.attempt})
        case CancelRequested():
            fields = {"cause": event.cause.value, "message": _cut(event.message)}
            if event.by_parent:
                fields["by_parent"] = True
            return None, "cancel-requested", encode_map(fields)
        case Finished():
            return None, "finished", _encode_finished(event)


def decode_event(subject: EventSubject, data: bytes, at_s: float) -> Event | None:
    """Decode any event but a submit.

    Args:
        at_s: the log's timestamp of the message.

    Returns:
        The event; None for a kind that this version does not know (a newer writer's), and for `progress`, which
        changes nothing of a run (see `wire.notes`).

    Raises:
        RemoteProtocolError: if the payload is not one of that kind.

    """
    step = subject.step or ""
    decoder = (_STEP_DECODERS if step else _RUN_DECODERS).get(subject.kind)
    if decoder is None:
        return None
    return decoder(decode_map(data, _NAMED[subject.kind]), step, at_s)


def result_in(entry: CacheEntry) -> StepSucceeded | None:
    """Give the result that an entry of the cache has; None if it cannot be read."""
    try:
        event = decode_event(EventSubject(entry.pipeline, entry.run, entry.step, "succeeded"), entry.event, 0.0)
    except RemoteProtocolError:
        return None
    return event if isinstance(event, StepSucceeded) else None


def _moment(fields: Fields, key: str) -> float:
    """Read a moment by a worker's clock; 0.0 if it is none: what it says of the time must not cost the result."""
    at_s = fields.number(key, 0.0)
    return at_s if 0 <= at_s <= AT_S_MAX else 0.0


def _succeeded(fields: Fields, step: str, at_s: float) -> Event:
    return StepSucceeded(
        at_s=at_s,
        step=step,
        attempt=fields.whole("attempt"),
        value=fields.map.get("value"),
        started_at_s=_moment(fields, "started_at"),
        notes=notes_of(fields) if NOTES in fields.map else None,
    )


def _cached(fields: Fields, step: str, at_s: float) -> Event:
    origin = Fields(fields.submap("from"), f"{fields.what}: field 'from'")
    return StepCached(
        at_s=at_s,
        step=step,
        attempt=fields.whole("attempt"),
        value=fields.map.get("value"),
        fingerprint=fields.text("fingerprint", ""),
        origin=Origin(
            pipeline=origin.text("pipeline"),
            run=origin.text("run"),
            step=origin.text("step"),
            at_s=_moment(origin, "at"),
        ),
        notes=notes_of(fields),
    )


def _approved(fields: Fields, step: str, at_s: float) -> Event:
    if "answer" not in fields.map:
        raise RemoteProtocolError(f"{fields.what}: field 'answer' is missing")
    by, message = fields.text("by", "")[:NAME_CHARS_MAX], fields.text("message", "")[:MESSAGE_CHARS_MAX]
    return StepApproved(at_s=at_s, step=step, answer=fields.map["answer"], by=by, message=message)


def _received(fields: Fields, step: str, at_s: float) -> Event:
    return StepReceived(at_s=at_s, step=step, value=fields.map.get("value"))


def _started(fields: Fields, step: str, at_s: float) -> Event:
    return StepStarted(at_s=at_s, step=step, attempt=fields.whole("attempt"), worker=fields.text("worker", ""))


def _failed(fields: Fields, step: str, at_s: float) -> Event:
    return StepFailed(
        at_s=at_s,
        step=step,
        attempt=fields.whole("attempt"),
        reason=_reason(fields, Reason.ERROR),
        failure=Failure(
            message=fields.text("message", ""), types=fields.texts("types"), traceback=fields.text("traceback", "")
        ),
        started_at_s=_moment(fields, "started_at"),
        notes=notes_of(fields),
    )


def _retried(fields: Fields, step: str, at_s: float) -> Event:
    return StepRetried(at_s=at_s, step=step, attempt=fields.whole("attempt"), due_at_s=fields.number("due_at"))


def _skipped(fields: Fields, step: str, at_s: float) -> Event:
    return StepSkipped(
        at_s=at_s,
        step=step,
        attempt=fields.whole("attempt", 0),
        reason=_reason(fields, Reason.UPSTREAM),
        message=fields.text("message", ""),
        started_at_s=_moment(fields, "started_at"),
        notes=notes_of(fields),
    )


def _cancelled(fields: Fields, step: str, at_s: float) -> Event:
    return StepCancelled(
        at_s=at_s,
        step=step,
        attempt=fields.whole("attempt", 0),
        reason=_reason(fields, Reason.REQUEST),
        message=fields.text("message", ""),
    )


def _due(fields: Fields, step: str, at_s: float) -> Event:
    return Due(at_s=at_s, step=step or None, attempt=fields.whole("attempt", 0))


def _cancel_requested(fields: Fields, step: str, at_s: float) -> Event:
    cause = fields.text("cause", CancelCause.REQUEST.value)
    if cause not in tuple(CancelCause):
        raise RemoteProtocolError(f"{fields.what}: cause {cause[:40]!r} is none of {', '.join(CancelCause)}")
    return CancelRequested(
        at_s=at_s,
        cause=CancelCause(cause),
        message=fields.text("message", ""),
        by_parent=fields.flag("by_parent"),
    )


def _finished(fields: Fields, step: str, at_s: float) -> Event:
    status = fields.text("status")
    if status not in tuple(RunStatus):
        raise RemoteProtocolError(f"{fields.what}: status {status[:40]!r} is none of {', '.join(RunStatus)}")
    reason = _reason(fields, None) if "reason" in fields.map else None
    return Finished(
        at_s=at_s,
        status=RunStatus(status),
        reason=reason,
        message=fields.text("message", ""),
        value=fields.map.get("value"),
    )


_STEP_DECODERS: dict[str, Callable[[Fields, str, float], Event]] = {
    "succeeded": _succeeded,
    "cached": _cached,
    "approved": _approved,
    "received": _received,
    "started": _started,
    "failed": _failed,
    "retry": _retried,
    "due": _due,
    "skipped": _skipped,
    "cancelled": _cancelled,
}
_RUN_DECODERS: dict[str, Callable[[Fields, str, float], Event]] = {
    "cancel-requested": _cancel_requested,
    "due": _due,
    "finished": _finished,
}
#: The kinds as messages name them: a text made per event would be felt.
_NAMED = {kind: f"the event {kind!r}" for kind in (*_STEP_DECODERS, *_RUN_DECODERS)}


def _failed_fields(event: StepFailed) -> dict[str, Any]:
    failure = event.failure
    traceback = failure.traceback
    if len(traceback) > TRACEBACK_CHARS_MAX:
        # The end of a traceback says where it happened, its beginning how it got there.
        half = TRACEBACK_CHARS_MAX // 2
        traceback = f"{traceback[:half]}\n… {len(traceback) - 2 * half:,} characters cut …\n{traceback[-half:]}"
    return {
        "attempt": event.attempt,
        "reason": event.reason.value,
        "message": _cut(failure.message),
        "types": [_clean(name) for name in failure.types[:32]],
        "traceback": _clean(traceback),
        "started_at": event.started_at_s,
    }


def _encode_finished(event: Finished) -> bytes:
    fields: dict[str, Any] = {"status": event.status.value, "message": _cut(event.message)}
    if event.reason is not None:
        fields["reason"] = event.reason.value
    if event.value is None:
        return encode_map(fields)
    try:
        packed = pack(event.value, "the run's value")
        check_size(packed, "the run's value", "VALUE_BYTES_MAX", VALUE_BYTES_MAX)
    except LimitExceeded:
        # Whoever folds the run computes the value from the steps' outputs; the event only saves the work.
        return encode_map({**fields, "value_left_out": True})
    return encode_map_with(fields, "value", packed)


def _reason(fields: Fields, default: Any) -> Any:
    text = fields.text("reason", default.value if default is not None else None)
    if text not in tuple(Reason):
        raise RemoteProtocolError(f"{fields.what}: reason {text[:40]!r} is none of {', '.join(Reason)}")
    return Reason(text)


def _cut(text: str) -> str:
    return _clean(text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…")


def _clean(text: str) -> str:
    """Make text that came out of a user's exception fit for the wire: it may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


# ---- launches


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """What a worker is told to do, beside what the launch's subject says."""

    pipeline: str
    #: Tagged map that says how the function is found.
    code: Mapping[str, Any]
    executor: str
    #: By name; where they are too large for a launch, the artifact that stands for all of them.
    arguments: Mapping[str, Any] | Artifact
    #: Tagged map that says where the code is, from the submit.
    source: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    timeout_s: float | None = None
    #: Whether pickles may be read and written for it, if its worker allows them, too.
    pickle: bool = False
    #: Whether it is a finaliser: it runs also when its run is cancelled.
    final: bool = False
    #: What its result is recorded under in the cache, and the components of that; "": it is not recorded.
    fingerprint: str = ""
    components: Mapping[str, Any] = field(default_factory=dict)
    #: What was there under its fingerprint, if that was too old.
    expired: Expired | None = None
    #: The artifacts among its arguments; of a launch that was decoded.
    artifacts: tuple[Artifact, ...] = ()

    def call(self) -> tuple[Sequence[Any], dict[str, Any]]:
        """Give the positional and the named arguments of the call; their values are here."""
        assert not isinstance(self.arguments, Artifact), "decoded with a reader"
        named = dict(self.arguments)
        return named.pop("*", ()), named


def order_of(
    step: Step,
    arguments: Mapping[str, Any],
    *,
    pipeline: str,
    source: Mapping[str, Any] = MappingProxyType({}),
    fingerprint: str = "",
    components: Mapping[str, Any] = MappingProxyType({}),
    expired: Expired | None = None,
) -> LaunchOrder:
    """Make the order for an attempt of a step of a graph."""
    return LaunchOrder(
        pipeline=pipeline,
        code=step.code,
        source=source,
        executor=step.executor,
        arguments=arguments,
        outputs=step.outputs,
        timeout_s=step.timeout_s,
        pickle=step.pickle,
        final=step.run_if is RunIf.ALWAYS,
        fingerprint=fingerprint,
        components=components,
        expired=expired,
    )


def encode_launch(order: LaunchOrder, what: str, writer: ArtifactWriter | None = None) -> bytes:
    """Encode a launch.

    Args:
        writer: stores arguments that are larger than `ARGUMENTS_BYTES_MAX`; None: that is refused.

    Raises:
        EncodingError: if an argument has no encoding.
        LimitExceeded: if the arguments are too large.

    """
    given = _for_worker(order.arguments)
    arguments = pack(given, f"the arguments of {what}", items_max=LARGE_ITEMS_MAX)
    if writer is not None and len(arguments) > ARGUMENTS_BYTES_MAX:
        arguments = pack(store_encoded(arguments, given, what, writer), what)
    check_size(arguments, f"the map of arguments of {what}", "ARGUMENTS_BYTES_MAX", ARGUMENTS_BYTES_MAX)
    return encode_map_with(_launch_fields(order), "arguments", arguments)


def _for_worker(arguments: Any) -> Any:
    """Leave out of arguments what only who maps over a list has to know of it: there may be a launch per element."""
    if type(arguments) is dict and any(map(_has_artifacts, arguments.values())):
        return {name: _brief(value) if _has_artifacts(value) else value for name, value in arguments.items()}
    return arguments


def _has_artifacts(value: Any) -> bool:
    # Positional arguments are a list, and so is what the elements of a map gave.
    return type(value) is Artifact or (type(value) is list and Artifact in map(type, value[:8]))


def _brief(value: Any) -> Any:
    if type(value) is Artifact:
        return value.brief()
    return [one.brief() if type(one) is Artifact else one for one in value]


def _launch_fields(order: LaunchOrder) -> dict[str, Any]:
    """Give all of a launch but its arguments."""
    fields: dict[str, Any] = {"pipeline": order.pipeline, "code": order.code, "executor": order.executor}
    if order.source:
        fields["source"] = order.source
    if order.outputs is not None:
        fields["outputs"] = list(order.outputs)
    if order.timeout_s is not None:
        fields["timeout_s"] = order.timeout_s
    if order.pickle:
        fields["pickle"] = True
    if order.final:
        fields["final"] = True
    if order.fingerprint:
        found = {"fingerprint": order.fingerprint, "components": dict(order.components)}
        fields["cache"] = {**found, **expired_map(order.expired)}
    return fields


class LaunchEncoder:
    """Encodes the launches of one run; what many of its steps have in common is encoded once.

    Args:
        pipeline, source: as of `order_of`.
    """

    def __init__(self, pipeline: str, source: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._source = source
        #: All of a launch up to its arguments.
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def encode(self, step: Step, arguments: Mapping[str, Any]) -> bytes:
        """Give what `encode_launch` gives of the order for a step that is not looked up in the cache.

        Raises:
            EncodingError, LimitExceeded: as `encode_launch` without a writer.
        """
        name = f"the arguments of step {step.name!r}"
        packed = pack(_for_worker(arguments), name, items_max=LARGE_ITEMS_MAX)
        check_size(packed, name, "ARGUMENTS_BYTES_MAX", ARGUMENTS_BYTES_MAX)
        kind = _kind_of(step)
        try:
            head = self._heads.get(kind)
        except TypeError:
            # Something in it is no key: no common part then.
            return encode_map_with(self._fields(step), "arguments", packed)
        if head is None:
            head = encode_map_with(self._fields(step), "arguments", b"")
            if len(self._heads) < HEADS_MAX:
                self._heads[kind] = head
        return head + packed

    def _fields(self, step: Step) -> dict[str, Any]:
        return _launch_fields(order_of(step, {}, pipeline=self._pipeline, source=self._source))


#: What may differ between steps whose launches have all but their arguments in common.
_OWN_FIELDS = frozenset(
    {"name", "code", "arguments", "after", "queue", "priority", "limits", "when", "retries", "on_failure", "cache"}
)
_common_fields = attrgetter(*(own.name for own in fields_of(Step) if own.name not in _OWN_FIELDS))


def _kind_of(step: Step) -> tuple[Any, ...]:
    return (*step.code.items(), _common_fields(step))


def decode_launch(data: bytes, reader: ArtifactReader | None = None) -> LaunchOrder:
    """Decode a launch.

    Args:
        reader: gives the values of artifacts among the arguments; None: they stay artifacts.

    Raises:
        RemoteProtocolError: if it is not one.
        ArtifactUnreadable, BindingError: if an artifact cannot be read.

    """
    met: list[Artifact] = []
    fields = decode_map(data, "the launch", reader=reader, artifacts=met)
    try:
        pipeline = check_name("pipeline", fields.text("pipeline"))
    except UsageError as error:
        raise RemoteProtocolError(f"the launch: {error}") from error
    timeout_s = fields.maybe_number("timeout_s")
    if timeout_s is not None and not timeout_s > 0:
        raise RemoteProtocolError(f"the launch: field 'timeout_s' is {timeout_s}, it must be above 0")
    arguments = fields.map.get("arguments")
    fingerprint, components, expired = "", {}, None
    if "cache" in fields.map:
        cache = Fields(fields.submap("cache"), "the launch: its cache")
        fingerprint, components, expired = _fingerprint(cache), cache.submap("components"), expired_of(cache)
    return LaunchOrder(
        pipeline=pipeline,
        code=fields.submap("code"),
        source=fields.submap("source"),
        executor=fields.text("executor"),
        arguments=arguments if isinstance(arguments, Artifact) else fields.submap("arguments"),
        outputs=fields.texts("outputs") if "outputs" in fields.map else None,
        timeout_s=timeout_s,
        pickle=fields.flag("pickle"),
        final=fields.flag("final"),
        fingerprint=fingerprint,
        components=components,
        expired=expired,
        artifacts=tuple(met),
    )


def _fingerprint(cache: Fields) -> str:
    fingerprint = cache.text("fingerprint", "")
    if fingerprint and not is_digest(fingerprint):
        raise RemoteProtocolError(f"{cache.what}: {fingerprint[:80]!r} is not a fingerprint (64 hex digits)")
    return fingerprint
