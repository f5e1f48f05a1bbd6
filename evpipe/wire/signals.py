"""Signals as payloads: JSON text, so that anybody can send one with what he has, `nats pub` included.

An empty payload is none: null. What a step is given of it is the value that the JSON stands for.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from evpipe.errors import EncodingError, EvpipeError, LimitExceeded, RemoteProtocolError
from evpipe.wire.limits import DEPTH_MAX, SIGNAL_BYTES_MAX
from evpipe.wire.values import pack


def encode_signal(payload: Any, name: str) -> bytes:
    """Write the payload of a signal.

    Raises:
        EncodingError: if it is none that JSON holds as it is (tuples become lists); says where.
        LimitExceeded: if it is larger than `SIGNAL_BYTES_MAX`.
    """
    what = f"the payload of the signal {name!r}"
    _check_json(payload, what)
    data = b"" if payload is None else json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > SIGNAL_BYTES_MAX:
        raise LimitExceeded(
            f"{what} is {len(data):,} bytes: at most {SIGNAL_BYTES_MAX:,} are allowed",
            limit="SIGNAL_BYTES_MAX",
            found=len(data),
            allowed=SIGNAL_BYTES_MAX,
        )
    return data


def decode_signal(data: bytes) -> Any:
    """Read the payload of a signal; whoever sent it.

    Raises:
        RemoteProtocolError: if it is no JSON text, too large, or no value of ours.
    """
    if not data:
        return None
    if len(data) > SIGNAL_BYTES_MAX:
        raise RemoteProtocolError(f"the signal has {len(data):,} bytes, more than {SIGNAL_BYTES_MAX:,}")
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
        # As it will be in the log: what cannot be there is not taken for what somebody waits for.
        pack(value, "the signal")
    except (ValueError, RecursionError, EvpipeError) as error:
        raise RemoteProtocolError(f"the signal is no JSON text: {str(error)[:200]}") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_json(payload: Any, what: str) -> None:
    stack: list[tuple[Any, str, int]] = [(payload, "", 0)]
    while stack:
        value, path, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise EncodingError(f"{what} is nested deeper than {DEPTH_MAX} levels (or contains itself)", path=path)
        if type(value) is dict:
            for key, child in value.items():
                if type(key) is not str:
                    raise EncodingError(f"{what}: the key {key!r:.60} is not text, as JSON has it", path=path)
                stack.append((child, f"{path}[{key!r}]", depth + 1))
        elif type(value) in (list, tuple):
            stack.extend((child, f"{path}[{i}]", depth + 1) for i, child in enumerate(value))
        elif type(value) is str:
            _check_text(value, what, path)
        elif value is not None and type(value) not in (bool, int, float):
            kind = type(value).__name__
            raise EncodingError(f"{what}{f': {path}' if path else ''} is of type {kind}, which JSON has not", path=path)
        elif type(value) is float and not math.isfinite(value):
            raise EncodingError(f"{what}{f': {path}' if path else ''} is {value}, which JSON has not", path=path)


def _check_text(text: str, what: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EncodingError(f"{what}{f': {path}' if path else ''} has half of a character in it", path=path) from None
