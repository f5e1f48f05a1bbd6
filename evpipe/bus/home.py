"""The folder of an embedded server: the names of the files in it, and the one that says where the server is.

`keeper` writes them and has the rules; `embedded` and the command line read them.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

from evpipe.bus.locks import FileLock
from evpipe.errors import BusError


class Home:
    """The folder of an embedded server: names of what is in it."""

    def __init__(self, root: Path) -> None:
        """Name the files below `root`; nothing is created."""
        self.root = root
        self.gate = root / "gate.lock"
        self.keeper_lock = root / "keeper.lock"
        self.store_lock = root / "store.lock"
        self.users = root / "users"
        self.info = root / "server.json"
        self.last = root / "last.json"
        self.log = root / "keeper.log"
        self.server = root / "server"
        self.store = root / "store"

    def prepare(self) -> None:
        """Create the folders, for this user only: the token is in here."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.users.mkdir(mode=0o700, exist_ok=True)

    def user_lock(self, user_id: str) -> Path:
        """Name the lock file of a user."""
        return self.users / f"{user_id}.lock"

    def split_users(self) -> tuple[list[Path], list[Path]]:
        """Give the user locks that are held, and the stale ones, which may be removed only under the gate."""
        held: list[Path] = []
        stale: list[Path] = []
        for path in self.users.glob("*.lock"):
            (held if FileLock.is_held(path) else stale).append(path)
        return held, stale


class ServerInfo(NamedTuple):
    """What `server.json` says."""

    url: str
    token: str
    server_pid: int
    keeper_pid: int
    #: Name of the machine: on a shared file system the address is of use only there.
    host: str
    evpipe_version: str
    server_version: str

    def __repr__(self) -> str:
        """Leave the token out."""
        return f"ServerInfo(url={self.url!r}, server_pid={self.server_pid}, keeper_pid={self.keeper_pid})"

    @property
    def url_with_token(self) -> str:
        """What a program of this user may be given to reach it."""
        scheme, _, address = self.url.partition("://")
        return f"{scheme}://{self.token}@{address}"

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])


def read_info(path: Path) -> ServerInfo | None:
    """Read `server.json` or `last.json`; None if it is missing or is not what a keeper writes."""
    try:
        found = json.loads(path.read_bytes())
        info = ServerInfo(**{name: found[name] for name in ServerInfo._fields})
        texts = (info.url, info.token, info.host, info.evpipe_version, info.server_version)
        numbers = (info.server_pid, info.keeper_pid)
        usable = all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)
        return info if usable and info.token and info.url == f"nats://127.0.0.1:{info.port}" else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def write_info(path: Path, info: ServerInfo) -> FileLock:
    """Write it so that a reader sees the old one or the new one, and nobody else sees the token.

    Returns:
        The lock on the new file. It says that the file is true; it was held before the file was there to be read.

    """
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    lock = FileLock.try_take(draft)
    if lock is None:
        raise BusError(f"another process holds {draft}")
    try:
        data = json.dumps(info._asdict()).encode()
        if os.write(lock.fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
        draft.replace(path)
    except BaseException:
        lock.release()
        raise
    return lock
