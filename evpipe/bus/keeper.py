"""The process that owns the embedded server, and the files it shares with those who use it.

The server belongs to no script: whoever needs it first starts a keeper (`embedded`), which starts nats-server
(`server`), looks four times a second whether anyone still holds a user lock, and ends when nobody does. Everything
is in one folder (`home`), and the rules are locks (`locks`), which the kernel releases however their holder dies:

- `keeper.lock` is held by the keeper for its life. Whoever gets it must start a keeper and hand the lock on, open;
  so there is no moment in which two keepers start. Only its holder writes `server.json` and `last.json`.
- `store.lock` is held by keeper *and server* (the descriptor is inherited): it guards the data, because two servers
  start happily on one store and destroy it. A new keeper waits for it until the old server is really gone. Only
  Linux ends the server of a keeper that was killed; elsewhere (macOS) it stays, unused, until the next keeper of
  this folder ends it, which may be never.
- `users/<id>.lock` is held by one user. It is created, and stale ones are removed, only under `gate.lock`; the
  keeper decides to end, and gives `keeper.lock` back, under it too. So a user either is seen by the keeper, or
  finds `keeper.lock` free and starts the next one. The gate is held for microseconds, never while waiting.
- `server.json` says where the server is, and is itself locked by the keeper that wrote it: a user that finds that
  lock held needs to look no further, and what a killed keeper left is never taken for its successor's.
  `last.json` is what it becomes: the next keeper takes port and token over, so that clients that reconnect find the
  server where it was.

`python -m evpipe.bus.keeper DIR` runs one in the foreground, to look at it. The keeper imports little (`locks`, `home`,
`server`): what it needs to start is on the way of the first run of every script.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from evpipe.bus.home import Home, ServerInfo, read_info, write_info
from evpipe.bus.locks import FileLock, require_posix
from evpipe.bus.server import CONFIG_NAME as SERVER_CONFIG_NAME
from evpipe.bus.server import PID_NAME, Binary, ServerProcess, find_server, os_errors
from evpipe.errors import BusError, BusRefused, EvpipeError

#: What a look costs (a few system calls per user) against how long a server without users stays.
POLL_S: Final = 0.25
#: Scripts that follow each other within it share one server; from the design.
GRACE_S: Final = 2.0
#: A server that was told to end needs 10 ms without clients. After this the one in our way is an orphan.
ORPHAN_WAIT_S: Final = 2.0
#: An orphan that does not end by SIGTERM is killed after this.
ORPHAN_STOP_S: Final = 5.0
#: Pauses between restarts of a server that does not start: full disk, broken store.
RESTART_PAUSE_MIN_S: Final = 0.25
RESTART_PAUSE_MAX_S: Final = 5.0
#: A guess: some thousands of lines, and one old file is kept.
LOG_SIZE_MAX_BYTES: Final = 256 * 1024
TOKEN_BYTES: Final = 24


class Keeper:
    """One life of an embedded server, from the first user to the last."""

    def __init__(
        self,
        home: Home,
        lock: FileLock,
        binary: Binary,
        *,
        evpipe_version: str = "",
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
    ) -> None:
        """Prepare; `lock` is keeper.lock, held."""
        self._home = home
        self._lock = lock
        self._binary = binary
        self._evpipe_version = evpipe_version
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._store_lock: FileLock | None = None
        self._server: ServerProcess | None = None
        self._info: ServerInfo | None = None
        self._info_lock: FileLock | None = None
        self._told_to_end = False

    def end(self) -> None:
        """Make `run` return soon, users or not."""
        self._told_to_end = True

    def run(self, serving: Callable[[], None]) -> None:
        """Start the server, call `serving`, keep it until nobody uses it, stop it.

        Raises:
            BusError, UsageError: if the server cannot be started at first. Later it is tried again for ever.

        """
        try:
            with os_errors(f"use {self._home.root} for the embedded server"):
                self._home.prepare()
                self._store_lock = self._take_store()
                self._start_at_last_address()
                self._announce()
            serving()
            _say(f"serving at {self._info.url if self._info else ''} with nats-server {self._binary.version}")
            self._keep()
        finally:
            self._stop()

    def _keep(self) -> None:
        """Return when the server is not needed any more."""
        unused_since = time.monotonic()
        while not self._told_to_end:
            time.sleep(self._poll_s)
            if not self._lock.in_place():
                _say("the folder was removed: ending at once")
                return
            if self._server is not None and not self._server.alive:
                self._restart()
            elif not self._announced():
                self._try_announce()
            held, stale = self._home.split_users()
            if held:
                unused_since = time.monotonic()
            if stale or not held:
                unused = not held and time.monotonic() - unused_since >= self._grace_s
                if self._sweep(may_end=unused):
                    _say("no users: ending")
                    return

    def _sweep(self, *, may_end: bool) -> bool:
        """Remove stale user locks; give keeper.lock back if there is no other and we may.

        Nothing while somebody else is in the gate: the next look will do.

        Returns:
            Whether it was given back; from then on somebody else may be the keeper.

        """
        try:
            gate = FileLock.try_take(self._home.gate)
        except OSError as exc:
            _say(f"cannot use {self._home.gate}: {exc}")
            return False
        if gate is None:
            return False
        try:
            held, stale = self._home.split_users()
            for path in stale:
                path.unlink(missing_ok=True)
            if held or not may_end:
                return False
            self._retire_info()
            self._lock.release()
            return True
        finally:
            gate.release()

    # The server.

    def _take_store(self) -> FileLock:
        """Wait until no server of an earlier keeper has the store; end one that stays.

        It stays where the kernel does not tell it that its keeper was killed (not Linux), or if it hangs.
        """
        for stop_it, wait_s in (
            (None, ORPHAN_WAIT_S),
            (signal.SIGTERM, ORPHAN_STOP_S),
            (signal.SIGKILL, ORPHAN_STOP_S),
        ):
            if stop_it is not None:
                self._signal_orphan(stop_it)
            lock = FileLock.take(self._home.store_lock, deadline=time.monotonic() + wait_s)
            if lock is not None:
                return lock
        raise BusRefused(
            f"another process holds {self._home.store_lock} and does not end: find it with lsof and end it"
        )

    def _signal_orphan(self, number: int) -> None:
        """Send a signal to the process of the pid file, if it is a server with our configuration file."""
        config = os.fsencode(self._home.server / SERVER_CONFIG_NAME)
        try:
            pid = int((self._home.server / PID_NAME).read_bytes())
            if config in _command_line(pid):
                _say(f"ending nats-server {pid}, which an earlier keeper left behind")
                os.kill(pid, number)
        except (OSError, ValueError):
            return

    def _start_at_last_address(self) -> None:
        last = read_info(self._home.last) or read_info(self._home.info)
        if last is None:
            self._start(None, _new_token())
            return
        try:
            self._start(last.port, last.token)
        except BusRefused as exc:
            _say(f"it did not start at port {last.port}: {exc}")
            # Somebody may have the port by now: it was nobody's while there was no server. Or the kernel was still
            # closing the last server's, which releases its files one by one.
            if _taken(last.port):
                self._start(None, _new_token())
            else:
                self._start(last.port, last.token)

    def _start(self, port: int | None, token: str) -> None:
        """Start a server. A new port goes with a new token: whoever has the old port may be shown the old one."""
        assert self._store_lock is not None
        self._server = ServerProcess(
            self._home.server,
            token=token,
            port=port,
            store_dir=self._home.store,
            binary=self._binary,
            hold_fds=(self._store_lock.fd,),
        )
        self._server.start()
        self._info = ServerInfo(
            url=self._server.url,
            token=token,
            server_pid=self._server.pid,
            keeper_pid=os.getpid(),
            host=os.uname().nodename,
            evpipe_version=self._evpipe_version,
            server_version=self._binary.version,
        )

    def _restart(self) -> None:
        """Bring a server that died back, at its address; on failure the next look tries again."""
        assert self._server is not None
        _say(f"nats-server {self._server.pid} ended: starting it again")
        pause_s = RESTART_PAUSE_MIN_S
        while not self._told_to_end and self._lock.in_place():
            self._retire_info()
            try:
                self._start_at_last_address()
            except EvpipeError as exc:
                _say(f"it did not start: {exc}")
            else:
                self._try_announce()
                return
            bound_log(self._home.log)
            held, _ = self._home.split_users()
            if not held:
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_PAUSE_MAX_S)

    def _stop(self) -> None:
        if self._server is not None:
            if self._lock.fd >= 0 and not self._lock.in_place():
                # Its paths may be another server's by now: it must write nothing more.
                self._server.kill()
            else:
                if self._lock.fd >= 0:
                    self._retire_info()
                self._server.stop()
        for lock in (self._info_lock, self._store_lock, self._lock):
            if lock is not None:
                lock.release()

    # server.json.

    def _announce(self) -> None:
        assert self._info is not None
        lock = write_info(self._home.info, self._info)
        if self._info_lock is not None:
            self._info_lock.release()
        self._info_lock = lock

    def _announced(self) -> bool:
        return read_info(self._home.info) == self._info

    def _try_announce(self) -> None:
        try:
            self._announce()
        except (OSError, BusError) as exc:
            _say(f"cannot write {self._home.info}: {exc}")

    def _retire_info(self) -> None:
        try:
            self._home.info.replace(self._home.last)
        except FileNotFoundError:
            pass
        except OSError as exc:
            _say(f"cannot rename {self._home.info}: {exc}")
        # Where the name could not be taken away, this is what tells that it is not true any more.
        if self._info_lock is not None:
            self._info_lock.release()
            self._info_lock = None


def _new_token() -> str:
    return os.urandom(TOKEN_BYTES).hex()


def _taken(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        # As the server does: a port whose last connections are still being forgotten is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def _command_line(pid: int) -> bytes:
    """Give the command line of a process, empty if it is gone."""
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    import subprocess

    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False).stdout


def _say(text: str) -> None:
    """Write a line to the log, which is our stderr."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {text}\n"
    # A full disk must not end the keeper: then nobody could read what is on it either.
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))


# The process.


def open_log(path: Path) -> int:
    """Open the keeper's log to append; one that has grown too large is put aside first."""
    try:
        if path.stat().st_size > LOG_SIZE_MAX_BYTES:
            path.replace(path.with_suffix(".log.1"))
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def bound_log(path: Path) -> None:
    """Put our own log aside if it has grown too large. Only restarts that fail write without end."""
    try:
        if path.stat().st_size > LOG_SIZE_MAX_BYTES and os.path.samestat(path.stat(), os.fstat(2)):
            fd = open_log(path)
            os.dup2(fd, 2)
            os.dup2(fd, 1)
            os.close(fd)
    except OSError:
        return  # a log that cannot be renamed is no reason to end the server


def run_detached() -> None:
    """Be the keeper that `embedded` started: options on stdin, the answer on stdout, the log on stderr.

    The starter waits for the first process, so there is no zombie; the second belongs to init and to a session
    without a terminal, and is nobody's child to be ended with.
    """
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    # Dispositions and masks are inherited, and a starter under nohup or in a shell's background ignores some.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # One line, not "until the end": a process that its starter forked just then may hold the pipe open.
    given = sys.stdin.buffer.readline()
    if not given.strip():
        return  # the starter found no binary, or died: there is nothing to keep
    options = json.loads(given)
    home = Home(Path(options["directory"]))
    keeper = Keeper(
        home,
        FileLock(options["lock_fd"], home.keeper_lock),
        Binary(Path(options["binary"]), options["server_version"]),
        evpipe_version=options["evpipe_version"],
        poll_s=options["poll_s"],
        grace_s=options["grace_s"],
    )
    signal.signal(signal.SIGTERM, lambda *_: keeper.end())
    os.set_inheritable(options["lock_fd"], False)

    def answer(kind: str, text: str) -> None:
        try:
            os.write(1, json.dumps({"kind": kind, "text": text}).encode() + b"\n")
        except OSError:
            _say("the starter is gone")
        os.dup2(2, 1)

    try:
        keeper.run(lambda: answer("", ""))
    except EvpipeError as exc:
        _say(str(exc))
        answer(type(exc).__name__, str(exc))
    except BaseException:
        import traceback

        _say(traceback.format_exc())
        raise


def main(arguments: list[str]) -> int:
    """Run a keeper in the foreground."""
    if len(arguments) != 1:
        os.write(2, b"usage: python -m evpipe.bus.keeper DIR\n")
        return 2
    home = Home(Path(arguments[0]).absolute())
    try:
        require_posix()
        with os_errors(f"use {home.root}"):
            home.prepare()
            lock = FileLock.try_take(home.keeper_lock)
        if lock is None:
            raise BusError(f"another keeper holds {home.keeper_lock}")
        keeper = Keeper(home, lock, find_server())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: keeper.end())
        keeper.run(lambda: None)
    except EvpipeError as exc:
        _say(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
