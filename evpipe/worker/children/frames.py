"""The child protocol: frames between a worker and the process in which steps run.

    worker ──▶ child   begin   role, source: what it will run
                       run     id, launch, order: run an attempt
                               folder, has_artifacts, allow_pickle: where its artifacts are, and go (see attempt_files)
                               commands: where the files of the run's commands are, or ""
                       stop    id: end an attempt, its result is not wanted (role host)
    child ──▶ worker   ready   it has begun
                       output  id, stream, text, left_out: what an attempt wrote, and what of it was dropped (role host)
                       line    id, level, text, fields, at: a line that it logged
                       points  id, rows, count, left_out: points of its metrics, packed one after the other
                       progress id, fraction, message, at: how far it is
                       artifact id, name, value: a named artifact, packed
                       ended   id, kind, payload, has_artifacts, spoilt: how an attempt ended, as an event of the log;
                               whether there are files in its folder that belong to it;
                               `spoilt` says why this child must run no other, or is empty
                       stopped id: it has ended, as it was told to (role host)
                       stale   id: it did not run it, for it has code that has changed since it was loaded

One socket, both ways; a frame is its length (4 bytes, big-endian) and a msgpack map. Steps print to descriptors 1
and 2, which are pipes of their own; so results and output never mix. Every launcher of children speaks this,
whatever the child runs in.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgpack

from evpipe.errors import RemoteProtocolError
from evpipe.wire.limits import PAYLOAD_BYTES_MAX

#: A launch, or a result, and what is said of it.
FRAME_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 64 * 1024
CHUNK_BYTES: Final = 256 * 1024
#: What an attempt writes and says while it runs.
SAID: Final = frozenset({"output", "line", "points", "progress", "artifact"})

_LENGTH = struct.Struct(">I")


def encode_frame(fields: Mapping[str, Any]) -> bytes:
    """Make the bytes of a frame."""
    packed: bytes = msgpack.packb(fields)
    return _LENGTH.pack(len(packed)) + packed


class Frames:
    """Makes frames of the bytes that come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take bytes and give the frames that are whole now.

        Raises:
            RemoteProtocolError: if they are no frames; nothing more can be read from there.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise RemoteProtocolError(f"a frame of {length:,} bytes: {FRAME_BYTES_MAX:,} are allowed")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            packed = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                found = msgpack.unpackb(packed)
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                raise RemoteProtocolError(f"a frame is not msgpack: {error}") from error
            if not isinstance(found, dict) or not isinstance(found.get("frame"), str):
                raise RemoteProtocolError("a frame is not a map that says what it is")
            yield found


class Channel:
    """The child's end: calls block. One thread may read; any may write."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._writing = threading.Lock()
        self._frames = Frames()
        self._ready: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any] | None:
        """Give the next frame; None when the worker has closed its end, or is gone."""
        while not self._ready:
            try:
                data = self.sock.recv(CHUNK_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            self._ready.extend(self._frames.feed(data))
        return self._ready.pop(0)

    def write(self, fields: Mapping[str, Any]) -> None:
        data = encode_frame(fields)
        with self._writing:
            self.sock.sendall(data)


async def receive(sock: socket.socket) -> bytes:
    """Give what has come on a socket that does not block; b"" when the other end is closed, or gone."""
    # Not at the top: a child that runs one step at a time has no loop.
    import anyio

    while True:
        try:
            return sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(sock)
        except OSError:
            return b""


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all of `data` on a socket that does not block.

    Raises:
        OSError: if the other end is closed, or gone.
    """
    import anyio

    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(sock)
