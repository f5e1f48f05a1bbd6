"""What a child writes to descriptors 1 and 2, line by line."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from evpipe.wire.limits import LINE_CHARS_MAX

READ_BYTES: Final = 64 * 1024
#: Characters have up to 4 bytes; one more than is told shows that the line goes on.
_LINE_BYTES_MAX: Final = 4 * (LINE_CHARS_MAX + 1)


class Output:
    """Reads a pipe of a child as fast as the child writes; a step never waits for whoever looks at its lines.

    Args:
        tell: is called with the lines as they come, without their ends.
    """

    def __init__(self, descriptor: int, tell: Callable[[list[str]], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._tell = tell
        self._lines = Lines()

    async def read(self) -> None:
        """Read until the pipe ends."""
        while self._read_once():
            await anyio.wait_readable(self._descriptor)

    def drain(self) -> None:
        """Read what is in the pipe now, and give a last line that has no end."""
        self._read_once(bytes_max=1024 * READ_BYTES)
        lines = self._lines.end()
        if lines:
            self._tell(lines)

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
            lines = self._lines.feed(data)
            if lines:
                self._tell(lines)
        return True


class Lines:
    """Makes lines of what is written piece by piece; keeps no more of one than is told of it."""

    def __init__(self) -> None:
        self._rest = b""
        #: The line that is being read is longer than is kept.
        self._cut = False

    def feed(self, data: bytes) -> list[str]:
        """Take what was written and give the lines that are whole now."""
        first, *others = data.split(b"\n")
        self._keep(first)
        if not others:
            return []
        *whole, rest = others
        lines = [_text(self._rest), *(_text(line) for line in whole)]
        self._rest, self._cut = b"", False
        self._keep(rest)
        return lines

    def end(self) -> list[str]:
        """Give a last line that has no end."""
        rest, self._rest, self._cut = self._rest, b"", False
        return [_text(rest)] if rest else []

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        # What goes back to the start of its line takes the place of what was there; at a line's end it is nothing.
        back = part.rfind(b"\r", 0, len(part) - 1) + 1
        if back or self._rest.endswith(b"\r"):
            self._rest, self._cut, part = b"", False, part[back:]
        if not self._cut:
            self._rest += part
            self._cut = len(self._rest) > _LINE_BYTES_MAX
            self._rest = self._rest[:_LINE_BYTES_MAX]
        if self._cut and part.endswith(b"\r"):
            self._rest += b"\r"


def _text(line: bytes) -> str:
    # A bar of progress goes back to the start of its line: what is seen is what was written last.
    line = line.removesuffix(b"\r").rpartition(b"\r")[2]
    text = line[:_LINE_BYTES_MAX].decode(errors="replace")
    return text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…"
