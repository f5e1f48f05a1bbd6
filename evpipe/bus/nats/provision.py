"""The streams and buckets of one installation, made where they are missing and checked where they exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import structlog

from evpipe.bus.nats.buckets import NO_STREAM
from evpipe.bus.nats.connection import ApiError, Connection, NotAnswered
from evpipe.errors import BusRefused
from evpipe.wire.limits import SIGNAL_BYTES_MAX, SUBJECT_CHARS_MAX
from evpipe.wire.subjects import Subjects

log = structlog.get_logger(__name__)

#: Bytes that each stream reserves, halved until the server has that much: a full stream must answer "full"
#: before its disk is, because a server whose disk ran full takes nothing more until it is started again.
LOG_BYTES_MAX: Final = 4 * 1024**3
QUEUE_BYTES_MAX: Final = 1024**3
OBJECTS_BYTES_MAX: Final = 16 * 1024**3
STREAM_BYTES_MIN: Final = 16 * 1024**2
#: What steps write is kept until it is this old or this much; then the oldest goes.
TELEMETRY_AGE_S: Final = 7 * 86_400
TELEMETRY_BYTES_MAX: Final = 256 * 1024**2
#: Likewise of signals: a step that waits finds those that were sent while no controller was there.
SIGNALS_AGE_S: Final = 7 * 86_400
SIGNALS_BYTES_MAX: Final = 64 * 1024**2
BUCKETS: Final = ("registry", "leases", "cache", "workers", "limits", "config")
#: JetStream's "insufficient storage", "insufficient resources" and "name already in use".
NO_STORAGE: Final = frozenset({10047, 10023, 10028})
NAME_IN_USE: Final = 10058


@dataclass(frozen=True, slots=True)
class StreamNames:
    """Names of the streams, by what they hold."""

    log: str
    queue: str
    objects: str
    telemetry: str
    signals: str
    prefix: str

    @classmethod
    def of(cls, prefix: str) -> StreamNames:
        return cls(
            log=f"{prefix}-log",
            queue=f"{prefix}-queue",
            objects=f"{prefix}-objects",
            telemetry=f"{prefix}-telemetry",
            signals=f"{prefix}-signals",
            prefix=prefix,
        )

    def bucket(self, name: str) -> str:
        return f"{self.prefix}-{name}"


def stream_configs(subjects: Subjects, names: StreamNames, replicas: int) -> list[dict[str, Any]]:
    """The streams that an installation needs."""
    base: dict[str, Any] = {"storage": "file", "num_replicas": replicas, "retention": "limits", "discard": "new"}
    configs = [
        # The log has no age: only what is known to be archived may leave it, so a full log is back-pressure.
        {
            **base,
            "name": names.log,
            "subjects": [subjects.all_events],
            "allow_direct": True,
            "max_bytes": LOG_BYTES_MAX,
        },
        # A launch's subject takes one message and keeps it until its run has ended: acks live in the consumers,
        # so an attempt can be published again and again and is accepted once.
        {
            **base,
            "name": names.queue,
            "subjects": [subjects.all_launches],
            "max_msgs_per_subject": 1,
            "discard_new_per_subject": True,
            "max_bytes": QUEUE_BYTES_MAX,
        },
        # The one that anybody may publish to: what is too large is refused at the door, and the oldest make room.
        {
            **base,
            "name": names.signals,
            "subjects": [subjects.all_signals],
            "discard": "old",
            "allow_direct": True,
            "max_age": SIGNALS_AGE_S * 1_000_000_000,
            "max_bytes": SIGNALS_BYTES_MAX,
            "max_msg_size": SIGNAL_BYTES_MAX + SUBJECT_CHARS_MAX,
        },
        # The one stream that drops by itself: nothing is decided by what is in it.
        {
            **base,
            "name": names.telemetry,
            "subjects": [subjects.all_telemetry],
            "discard": "old",
            "allow_direct": True,
            "max_age": TELEMETRY_AGE_S * 1_000_000_000,
            "max_bytes": TELEMETRY_BYTES_MAX,
        },
    ]
    # No limits of their own, so they reserve nothing. No limit markers: a marker would make an expired lease look like
    # one that exists.
    configs += [
        {
            **base,
            "name": f"KV_{names.bucket(name)}",
            "subjects": [f"$KV.{names.bucket(name)}.>"],
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
        }
        for name in BUCKETS
    ]
    # The largest comes last: it takes what the others have left.
    configs.append(
        {
            **base,
            "name": f"OBJ_{names.objects}",
            "subjects": [f"$O.{names.objects}.C.>", f"$O.{names.objects}.M.>"],
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "max_bytes": OBJECTS_BYTES_MAX,
        }
    )
    return configs


async def check_jetstream(connection: Connection) -> None:
    """Refuse a server without JetStream."""
    try:
        await connection.api("INFO")
    except NotAnswered as error:
        if not error.no_responders:
            raise
        raise BusRefused(
            f"the NATS server at {connection.url} runs without JetStream: start it with -js, "
            "or give its configuration a jetstream block"
        ) from error
    except ApiError as error:
        raise BusRefused(f"JetStream at {connection.url} is not usable: {error}") from error


async def provision(connection: Connection, subjects: Subjects, replicas: int) -> None:
    """Make every stream and bucket that is missing.

    Raises:
        BusRefused: if one exists with settings under which the protocol does not hold, or cannot be made.
    """
    for config in stream_configs(subjects, StreamNames.of(subjects.prefix), replicas):
        try:
            found = await connection.api_patiently(f"STREAM.INFO.{config['name']}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise BusRefused(f"stream {config['name']}: {error}") from error
            await _create(connection, config, subjects.prefix)
        else:
            _check(config, found["config"])


async def _create(connection: Connection, config: dict[str, Any], prefix: str) -> None:
    while True:
        try:
            await connection.api_patiently(f"STREAM.CREATE.{config['name']}", config)
        except ApiError as error:
            if error.code == NAME_IN_USE:
                # Another process was quicker; its description is ours.
                return
            if error.code in NO_STORAGE and config.get("max_bytes", 0) > STREAM_BYTES_MIN:
                config = {**config, "max_bytes": config["max_bytes"] // 2}
                continue
            if error.code in NO_STORAGE and config["name"] == StreamNames.of(prefix).telemetry:
                # What it would keep may be lost: no reason to do without the rest.
                log.warning("stream_left_out", stream=config["name"], error=str(error))
                return
            raise BusRefused(f"stream {config['name']} cannot be made: {error}") from error
        log.debug("stream_created", stream=config["name"], max_bytes=config.get("max_bytes"))
        return


def _check(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse settings that break a promise; sizes, ages and replicas are the operator's to choose."""
    must = ("subjects", "retention", "discard", "discard_new_per_subject", "max_msgs_per_subject", "allow_msg_ttl")
    for key in must:
        if key not in wanted:
            continue
        if found.get(key, False) != wanted[key]:
            raise BusRefused(
                f"stream {wanted['name']} exists with {key} = {found.get(key, False)!r}: evpipe needs {wanted[key]!r}; "
                "change it, or choose another installation with EVPIPE_PREFIX"
            )
    if found.get("max_age") and not wanted.get("allow_msg_ttl") and not wanted.get("max_age"):
        raise BusRefused(
            f"stream {wanted['name']} exists with a max_age, which would remove events of runs that still go on: "
            "set it to 0"
        )
