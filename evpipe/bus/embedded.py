"""The bus of a laptop: one nats-server per data directory, shared by all processes of a user, owned by none.

A user holds a lock file for as long as it needs the server. The first one starts a keeper, which owns the server and
ends it when the last lock is gone; `keeper` describes the files and why no moment is left in which two keepers, or
none, could believe to be right. Everything here blocks: the async layers call it through a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from evpipe import errors
from evpipe.bus.home import Home, ServerInfo, read_info
from evpipe.bus.keeper import GRACE_S, POLL_S, open_log
from evpipe.bus.locks import FileLock, require_posix
from evpipe.bus.server import find_server, os_errors
from evpipe.errors import BusClosed, BusError, BusUnreachable, UsageError

FOLDER: Final = "embedded"
#: From cold 0.15 s on two cores; a store with millions of messages that was killed may need most of it.
START_TIMEOUT_S: Final = 15.0
#: How often a user looks for the server that another one is starting.
WAIT_POLL_S: Final = 0.01
#: The first process of a keeper only forks.
FORK_TIMEOUT_S: Final = 5.0
RANDOM_BYTES: Final = 4
LOG_TAIL_LINES: Final = 5
#: A connect to a loopback port answers at once or never.
PROBE_TIMEOUT_S: Final = 1.0

_USER_ID = re.compile(r"[a-z0-9_-]{1,40}\Z")
#: What a keeper may tell its starter.
_KINDS: Final = {
    kind.__name__: kind
    for kind in (errors.UsageError, errors.BusError, errors.BusRefused, errors.BusUnreachable, errors.ServerNotFound)
}
#: The keeper needs a few modules of this package and the standard library. Stub packages keep out what `evpipe` and
#: `evpipe.bus` import for everybody else, and -I -S the site-packages: a tenth of a second of every first run.
#: One line, because it is what `ps` shows.
_BOOT: Final = (
    "import sys, types; "
    "[sys.modules.setdefault(n, types.ModuleType(n)).__dict__.update(__path__=[p])"
    " for n, p in zip(('evpipe', 'evpipe.bus'), sys.argv[1:])]; "
    "from evpipe.bus.keeper import run_detached; run_detached()"
)


class EmbeddedServer:
    """A share in the embedded server of a data directory; it serves at least until `close`.

    The share is this process's: in a forked child it is closed from the start (the child starts its own). If the
    process dies without `close`, the kernel gives the share back.
    """

    def __init__(self, data_dir: Path) -> None:
        """Prepare; `start` is the way to get one."""
        #: Names this share, for others to ask `is_user_alive`: lower-case letters, digits and '-', 40 at most.
        self.user_id: Final = f"{os.getpid()}-{os.urandom(RANDOM_BYTES).hex()}"
        #: What to tell the user: binaries that were passed over. Empty if the server was running already.
        self.notes: tuple[str, ...] = ()
        self._home = Home(data_dir.expanduser().absolute() / FOLDER)
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._lock: FileLock | None = None
        self._info: ServerInfo | None = None
        #: (device, inode, modified) of the server.json that `_info` was read from.
        self._seen: tuple[int, int, int] | None = None

    @classmethod
    def start(cls, data_dir: Path, *, timeout_s: float = START_TIMEOUT_S) -> EmbeddedServer:
        """Join the server of `data_dir`, starting it if it is not running, and wait until it serves.

        Args:
            data_dir: `BusSettings.data_dir`; created if missing.
            timeout_s: for all of it.

        Raises:
            UsageError: if the platform or the directory cannot be used, or EVPIPE_NATS_SERVER is wrong.
            ServerNotFound: if there is no nats-server binary.
            BusRefused: if the server does not start: with its last words.
            BusUnreachable: if it does not serve in time.

        """
        require_posix()
        share = cls(data_dir)
        deadline = time.monotonic() + timeout_s
        try:
            share._register(deadline)
            share._attach(deadline)
        except BaseException:
            share.close()
            raise
        return share

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> ServerInfo:
        """What the keeper says about its server."""
        assert self._info is not None, "start() returns after it is known"
        return self._info

    @property
    def url(self) -> str:
        """Where the server listens, without the token."""
        return self.info.url

    @property
    def token(self) -> str:
        """What the server wants to see."""
        return self.info.token

    @property
    def store_dir(self) -> Path:
        """Where JetStream keeps its data."""
        return self._home.store

    def ensure(self, *, timeout_s: float = START_TIMEOUT_S) -> bool:
        """Make sure that somebody keeps the server; call it every second or so, it costs a few system calls.

        Returns:
            Whether url or token changed (rare: the port was taken meanwhile), so that clients must connect anew.

        Raises:
            BusClosed: if this share is closed.
            BusError, UsageError: as `start`; the share stays registered and the next call tries again.

        """
        deadline = time.monotonic() + timeout_s
        if self._pid != os.getpid():
            raise BusClosed(f"this share in the embedded server is the parent's (process {self._pid}): start another")
        with self._mutex:
            if self._lock is None:
                raise BusClosed("this share in the embedded server was closed")
            before = self._info
            if not self._lock.in_place():
                # The data directory was removed under us: without a lock in it, the next keeper would end at once.
                self._lock.release()
                self._register(deadline)
            self._attach(deadline)
            assert before is not None, "start() returns after it is known"
            return (before.url, before.token) != (self.url, self.token)

    def close(self) -> None:
        """Give the share back. The server ends some seconds after the last one. May be called again."""
        if self._pid != os.getpid():
            return  # a forked child: the share is the parent's, and so may be the mutex, locked for ever
        with self._mutex:
            if self._lock is not None and self._lock.in_place():
                # The name goes first: nobody finds the file without a holder.
                self._lock.path.unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def is_user_alive(self, user_id: str) -> bool:
        """Whether the share with that `user_id`, of whatever process, is held: not closed, and its process lives."""
        if _USER_ID.match(user_id) is None:
            raise UsageError(f"{user_id[:80]!r} is no user id: 1 to 40 lower-case letters, digits, '_' and '-'")
        return FileLock.is_held(self._home.user_lock(user_id))

    def _register(self, deadline: float) -> None:
        """Create and hold our lock file, in a moment in which no keeper decides to end."""
        with os_errors(f"use {self._home.root} for the embedded server"):
            self._home.prepare()
            gate = FileLock.take(self._home.gate, deadline=deadline)
            if gate is None:
                raise BusUnreachable(
                    f"another process holds {self._home.gate}, which is normally held for microseconds: "
                    f"is one that uses the embedded bus stopped (Ctrl-Z)?"
                )
            try:
                # A keeper that looks at the new file may have it for a moment.
                self._lock = FileLock.take(self._home.user_lock(self.user_id), deadline=deadline)
            finally:
                gate.release()
        if self._lock is None:
            raise BusUnreachable(f"another process holds {self._home.user_lock(self.user_id)}")

    def _attach(self, deadline: float) -> None:
        """Wait until a keeper serves; start one whenever there is none."""
        while not self._find_serving():
            with os_errors(f"use {self._home.root} for the embedded server"):
                lock = FileLock.try_take(self._home.keeper_lock)
                if lock is not None:
                    self._start_keeper(lock, deadline)
                    continue
            if time.monotonic() > deadline:
                raise BusUnreachable(
                    f"the embedded server did not serve in time; it may still be reading its store: "
                    f"see {self._home.log} and {self._home.server}"
                )
            time.sleep(WAIT_POLL_S)

    def _find_serving(self) -> bool:
        """Read where the server is, if a keeper stands for it."""
        seen = _identity(self._home.info)
        if seen is None or not FileLock.is_held(self._home.info):
            return False
        if seen == self._seen:
            return True
        info = read_info(self._home.info)
        # It may be the next keeper's file by now, which is as good; but not remembered under the wrong name.
        if info is None or seen != _identity(self._home.info):
            return False
        self._check_host(info)
        self._info, self._seen = info, seen
        return True

    def _check_host(self, info: ServerInfo) -> None:
        """Refuse the server of another machine, whose folder we see through a shared file system."""
        here = os.uname().nodename
        # Names change with the network on some laptops: only a server that is not there is another machine's.
        if info.host != here and not _answers(info.port):
            raise UsageError(
                f"the embedded server of {self._home.root} runs on the machine {info.host!r} and this is {here!r}: "
                f"set EVPIPE_DATA_DIR to a folder of this machine, or EVPIPE_NATS_URL to a server for both"
            )

    def _start_keeper(self, lock: FileLock, deadline: float) -> None:
        """Start a keeper that inherits keeper.lock, and wait until it serves."""
        lock_fd = lock.fd
        try:
            # What is left is of a keeper that was killed; the next one takes the address over.
            if self._home.info.exists():
                self._home.info.replace(self._home.last)
            process = self._spawn(lock_fd)
        finally:
            # The keeper has it now, or, if it could not be started, nobody.
            lock.release()
        try:
            self._instruct(process, lock_fd)
            answer = _read_line(process, deadline)
        finally:
            _reap(process)
        if answer is None:
            raise BusUnreachable(
                f"the embedded server did not serve in time: see {self._home.log} and {self._home.server}"
            )
        if not answer:
            raise BusError(f"the keeper of the embedded server ended before it served{_tail(self._home.log)}")
        told = json.loads(answer)
        if told["kind"]:
            raise _KINDS.get(told["kind"], BusError)(told["text"])

    def _spawn(self, lock_fd: int) -> subprocess.Popen[bytes]:
        package = Path(errors.__file__).parent
        no_bytecode = ["-B"] if sys.dont_write_bytecode else []
        log = open_log(self._home.log)
        try:
            return subprocess.Popen(
                # The last argument is for those who read `ps`.
                [sys.executable, "-I", "-S", *no_bytecode, "-c", _BOOT, package, package / "bus", self._home.root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                pass_fds=(lock_fd,),
                # Ctrl-C in this terminal, and its end, are not for the keeper.
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _instruct(self, process: subprocess.Popen[bytes], lock_fd: int) -> None:
        """Tell the keeper what to run. Looking for it takes as long as Python takes to start: both run meanwhile."""
        line = b"\n"  # nothing to do
        try:
            binary = find_server()
            self.notes = binary.notes
            options = {
                "directory": str(self._home.root),
                "lock_fd": lock_fd,
                "binary": str(binary.path),
                "server_version": binary.version,
                "evpipe_version": _own_version(),
                "poll_s": POLL_S,
                "grace_s": GRACE_S,
            }
            line = json.dumps(options).encode() + b"\n"
        finally:
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended already: there will be no answer, which is told with its log


def _read_line(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Read what the keeper answers; empty if it ended without a word, None if it says nothing in time."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    # Not select.select: a service may have more than 1,024 files open.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        part = os.read(fd, 65536)
        if not part:
            return b""
        line += part
    return line


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Let go of a keeper. Its first process has ended when it answers; one that hangs before that is killed."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What could not be written is of no interest any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(FORK_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _answers(port: int) -> bool:
    """Whether a NATS server speaks at this port of 127.0.0.1."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_TIMEOUT_S) as connection:
            return connection.recv(5) == b"INFO "
    except OSError:
        return False


def _own_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("evpipe")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tail(log: Path) -> str:
    """Give the last lines of a log, as the end of a sentence."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        lines = []
    return f"; the last lines of {log}:\n" + "\n".join(lines) if lines else f"; there is nothing in {log}"
