"""The program of a child: it runs steps of one source for one worker, and ends with it.

Started as `main(descriptor)` with the child's end of the channel; descriptors 1 and 2 are pipes to the worker.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evpipe.client.source import Source
from evpipe.worker.children.frames import Channel
from evpipe.worker.children.modules import Modules

#: Of <sys/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36
#: Of <stdio.h>, where glibc, musl and macOS agree.
_IOLBF = 1


def main(descriptor: int) -> None:
    """Serve a worker until it closes the channel."""
    # For this process alone: what a step starts with exec must not hold it open.
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    flush = _lines_at_once()
    _adopt_orphans()
    # A crash in C says where it was, on the pipe that the worker reads.
    faulthandler.enable(file=sys.__stderr__ or 2)
    begin = channel.read()
    if begin is None:
        return
    source = Source.from_map(begin["source"])
    modules = Modules(source)
    modules.install()
    # A step that looks at its program's name sees the submitter's, not `-c`.
    sys.argv = [source.files.get("__main__") or source.main or ""]
    channel.write({"frame": "ready", "pid": os.getpid()})
    if begin["role"] == "host":
        from evpipe.worker.children.host import serve_host

        serve_host(channel, modules)
    else:
        from evpipe.worker.children.single import serve_single

        serve_single(channel, modules, flush)


def _lines_at_once() -> Callable[[], None]:
    """Let a line leave when it is whole, in Python and in C; gives what makes the rest leave, too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    libc: Any = None
    try:
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, 0)
    except (OSError, ValueError, AttributeError):
        pass  # another C library: what C code prints comes when its buffer is full, or at the end of the step

    def flush() -> None:
        # Also what a step has put in their place, which may be anything.
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with suppress(Exception):
                stream.flush()  # type: ignore[union-attr]  # or None
        if libc is not None:
            libc.fflush(None)

    return flush


def _adopt_orphans() -> None:
    """Become the parent of what a step starts and leaves behind, so that it can be found and ended."""
    if Path("/proc/self").exists():
        try:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        except (OSError, AttributeError):
            return
