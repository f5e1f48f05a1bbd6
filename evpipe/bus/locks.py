"""Locks that the kernel releases when their holder dies, however it dies: the rules of the embedded bus stand on them.

`home` says which files are locked and `keeper` what each lock means. Beside `errors` it imports nothing of this
package: the keeper loads it before it can serve anyone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from evpipe.errors import UsageError

LOCK_POLL_S: Final = 0.01


class FileLock:
    """An flock on a file, held until `release` or until the process ends, however it ends.

    flock belongs to the open file, not to the process: a child that inherited the descriptor would keep the lock
    for us after our death. So descriptors are closed on exec, and a forked child closes them first thing; the one
    way left is a fork without exec by C code, whose child then holds the lock until it ends.
    """

    _held: Final[set[FileLock]] = set()

    def __init__(self, fd: int, path: Path) -> None:
        """Take over a descriptor whose lock is held."""
        self.fd = fd
        self.path = path
        FileLock._held.add(self)

    @classmethod
    def try_take(cls, path: Path) -> FileLock | None:
        """Take the lock if nobody holds it; the file is created if missing."""
        while True:
            fd = _not_standard(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            try:
                taken = _flock(fd, shared=False)
            except OSError:
                # A file system without locks: whoever asks again and again must not run out of descriptors.
                os.close(fd)
                raise
            if not taken:
                os.close(fd)
                return None
            lock = cls(fd, path)
            if lock.in_place():
                return lock
            # Somebody removed the file between our open and our flock: nobody else would ever meet us there.
            lock.release()

    @classmethod
    def take(cls, path: Path, *, deadline: float) -> FileLock | None:
        """Take the lock as soon as nobody holds it; None if that is not before `deadline` (`time.monotonic`)."""
        while True:
            lock = cls.try_take(path)
            if lock is not None or time.monotonic() > deadline:
                return lock
            time.sleep(LOCK_POLL_S)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether anybody holds it. Two who ask at the same time do not take each other for a holder.

        Where that cannot be found out (too many open files, say) the answer is yes: nothing is ended or removed.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            return not _flock(fd, shared=True)
        except OSError:
            return True
        finally:
            os.close(fd)

    def in_place(self) -> bool:
        """Whether the path still leads to the file that we hold: not if the folder was removed meanwhile."""
        try:
            return self.fd >= 0 and os.path.samestat(self.path.stat(), os.fstat(self.fd))
        except OSError:
            return False

    def release(self) -> None:
        """Give it back."""
        if self in FileLock._held:
            FileLock._held.discard(self)
            os.close(self.fd)
            self.fd = -1

    @classmethod
    def _forget_in_child(cls) -> None:
        # Closing does not release: the parent still has the same open file.
        for lock in list(cls._held):
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FileLock._forget_in_child)


def _flock(fd: int, *, shared: bool) -> bool:
    import fcntl  # POSIX only; `require_posix` has the sentence for the others

    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _not_standard(fd: int) -> int:
    """Move a descriptor above 2: handed to a child, it would be overwritten by its stdin, stdout or stderr."""
    if fd > 2:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def require_posix() -> None:
    """Refuse platforms without flock.

    Raises:
        UsageError: there.

    """
    try:
        import fcntl  # noqa: F401
    except ImportError as exc:
        raise UsageError(
            "the embedded bus needs POSIX file locks, which this platform does not have: "
            "set EVPIPE_NATS_URL to a NATS server"
        ) from exc
