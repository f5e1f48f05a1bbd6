"""What an operator sets for an installation: today the limits of queues, at `queue.<name>`."""

from __future__ import annotations

from typing import Final

from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.codec import decode_map, encode_map

BUCKET: Final = "config"
#: As many launches as may be under way in a queue without a limit; a server's default is 1,000, and it stalls there.
QUEUE_LIMIT_MAX: Final = 100_000


def queue_key(queue: str) -> str:
    return f"queue.{queue}"


def check_queue_limit(value: object) -> int:
    """Return the limit of a queue; raise UsageError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < QUEUE_LIMIT_MAX:
        raise UsageError(
            f"the limit of a queue must be a whole number from 1 to {QUEUE_LIMIT_MAX - 1:,}, not {value!r}"
        )
    return value


def encode_queue_config(limit: int) -> bytes:
    return encode_map({"limit": limit})


def decode_queue_config(data: bytes) -> int | None:
    """Give the limit that an entry sets; None if it sets none. RemoteProtocolError if it is no such entry."""
    fields = decode_map(data, "the settings of a queue")
    if fields.map.get("limit") is None:
        return None
    try:
        return check_queue_limit(fields.whole("limit"))
    except UsageError as error:
        raise RemoteProtocolError(str(error)) from error
