"""What a child writes to descriptors 1 and 2, line by line."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from evpipe.wire.limits import LINE_CHARS_MAX

READ_BYTES: Final = 64 * 1024


class Output:
    """Reads a pipe of a child as fast as the child writes; a step never waits for whoever looks at its lines.

    Args:
        tell: is called with the lines as they come, without their ends.
    """

    def __init__(self, descriptor: int, tell: Callable[[list[str]], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._tell = tell
        self._rest = b""
        #: The line that is being read is longer than is kept.
        self._cut = False

    async def read(self) -> None:
        """Read until the pipe ends."""
        while self._read_once():
            await anyio.wait_readable(self._descriptor)

    def drain(self) -> None:
        """Read what is in the pipe now, and give a last line that has no end."""
        self._read_once(bytes_max=1024 * READ_BYTES)
        if self._rest:
            self._tell([_text(self._rest)])
        self._rest, self._cut = b"", False

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)

    def _read_once(self, bytes_max: int = READ_BYTES) -> bool:
        """Read up to so much; gives whether more may come."""
        while bytes_max > 0:
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            bytes_max -= len(data)
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        if not others:
            self._keep(first)
            return
        *whole, rest = others
        self._keep(first)
        lines = [self._rest, *whole]
        self._rest, self._cut = b"", False
        self._keep(rest)
        self._tell([_text(line) for line in lines])

    def _keep(self, part: bytes) -> None:
        if self._cut:
            return
        self._rest += part
        if len(self._rest) > 4 * LINE_CHARS_MAX:
            # Characters have up to 4 bytes; what is over the limit is cut when it is told.
            self._rest, self._cut = self._rest[: 4 * LINE_CHARS_MAX + 4], True


def _text(line: bytes) -> str:
    text = line[: 4 * LINE_CHARS_MAX + 4].decode(errors="replace").removesuffix("\r")
    # A bar of progress goes back to the start of its line: what is seen is what was written last.
    text = text.rpartition("\r")[2]
    return text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…"
