"""Ending a child with all that it started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

#: A step that starts processes faster than they can be listed is not chased for ever; its group is gone at the end.
ROUNDS_MAX: Final = 8


def kill_tree(pid: int) -> None:
    """Kill a child, its process group, and what it started that left the group.

    The child is the parent of all orphans of its own, and is stopped first: nothing that is listed then is reaped
    before it is killed, so no number stands for another process meanwhile.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    killed: set[int] = set()
    for _ in range(ROUNDS_MAX):
        found = descendants(pid) - killed
        if not found:
            break
        for other in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(other, signal.SIGKILL)
        killed |= found
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    """Give the processes below one; nothing where the system does not tell."""
    found: set[int] = set()
    below = [pid]
    while below:
        for task in _children(below.pop()):
            if task not in found:
                found.add(task)
                below.append(task)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                children.extend(int(word) for word in (task / "children").read_text().split())
    return children
