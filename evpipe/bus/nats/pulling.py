"""What a long pull is on the wire: requests, status messages, and what an ack subject says.

Source: ADR-13 and nats-server's consumer.go; measured on 2.15.1. The client library's `fetch` is not used:
it costs ten times as much per message and does not notice a server that died under it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, NamedTuple

from nats.aio.msg import Msg

#: A pull request lives this long at the server; it is renewed when the server says that it is over.
EXPIRES_S: Final = 30
#: An open pull on a quiet consumer says so this often; two missed, and the pull is taken as lost.
HEARTBEAT_S: Final = 1.0
SILENCE_MAX_S: Final = 2.5


def pull_body(batch: int) -> bytes:
    body = {"batch": batch, "expires": EXPIRES_S * 1_000_000_000, "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
    return json.dumps(body).encode()


class Origin(NamedTuple):
    """What the reply subject of a delivered message says about it."""

    sequence: int
    #: Counts the consumer's deliveries: a gap means that one was lost on the way.
    consumer_sequence: int
    deliveries: int
    at_s: float
    #: Messages that the consumer still has to deliver.
    pending: int


def origin_of(reply: str) -> Origin:
    """Parse `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<seq>.<consumer seq>.<ns>.<pending>`."""
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 else 6
    deliveries, sequence, consumer_sequence, at_ns, pending = map(int, tokens[at : at + 5])
    return Origin(sequence, consumer_sequence, deliveries, at_ns / 1e9, pending)


@dataclass(frozen=True, slots=True)
class Status:
    """A message without content in which the server says how a pull fares."""

    code: int
    text: str
    #: Messages that the ended request would still have taken.
    left: int

    @property
    def heartbeat(self) -> bool:
        return self.code == 100

    @property
    def ended(self) -> bool:
        """The request is over and may be renewed: it ran out (408) or there was nothing (404)."""
        return self.code in (404, 408) or (self.code == 409 and "exceeded" in self.text.lower())


def status_of(message: Msg) -> Status | None:
    """Give the status that a message is, or None if it is a delivery."""
    headers = message.headers
    if message.reply or not headers or "Status" not in headers:
        return None
    left = headers.get("Nats-Pending-Messages", "0")
    return Status(int(headers["Status"]), headers.get("Description", ""), int(left) if left.isdecimal() else 0)
