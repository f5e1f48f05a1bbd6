"""Scripts that use the embedded server, as processes of their own, and the one place where tests wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evpipe.bus.home import Home, ServerInfo, read_info
from evpipe.bus.locks import FileLock

#: Short, so that a test sees a keeper end soon; the rules do not depend on them.
GRACE_S = 0.3
POLL_S = 0.02
#: Nothing here takes longer than 3 s on two busy cores.
PATIENCE_S = 15.0

#: Reads commands from stdin, answers each with a line. It gets the directory there too, so that a search for
#: processes by directory finds keeper and server only.
SCRIPT = """
import json, os, resource, signal, sys
from pathlib import Path
from evpipe.bus import embedded
from evpipe.errors import EvpipeError

def answer(**values):
    print(json.dumps(values), flush=True)

options = json.loads(sys.stdin.readline())
embedded.GRACE_S, embedded.POLL_S = options["grace_s"], options["poll_s"]
if options["no_writes"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
server = None
for line in sys.stdin:
    try:
        match line.strip():
            case "start":
                server = embedded.EmbeddedServer.start(Path(options["data_dir"]))
                answer(user_id=server.user_id, **server.info._asdict())
            case "ensure":
                changed = server.ensure()
                answer(changed=changed, **server.info._asdict())
            case "close":
                server.close()
                answer()
            case "fork":
                child = os.fork()
                if child == 0:
                    try:
                        server.ensure()
                    except EvpipeError as exc:
                        answer(pid=os.getpid(), error=type(exc).__name__)
                    server.close()
                    signal.pause()
    except EvpipeError as exc:
        answer(error=type(exc).__name__, text=str(exc))
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds; fail after a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for: {what}"
        time.sleep(0.002)


def wait_for(moment: float) -> None:
    """Wait for a moment of `time.monotonic`, more exactly than a sleep does."""
    while time.monotonic() < moment:
        pass


def is_running(pid: int) -> bool:
    """Whether a process that is nobody's child of ours exists (a zombie counts as gone)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z" if state.exists() else True
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(directory: Path) -> set[int]:
    """Give all running processes that have the directory on their command line."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 1) for line in listed.splitlines() if str(directory) in line)
    return {int(pid) for pid, _ in rows}


class User:
    """A script in a process of its own."""

    def __init__(self, data_dir: Path, *, no_writes: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        options = {"data_dir": str(data_dir), "grace_s": GRACE_S, "poll_s": POLL_S, "no_writes": no_writes}
        try:
            self.send(json.dumps(options))
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the script ended without an answer"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        self.send(command)
        return self.receive()

    def kill(self) -> None:
        """End it as a crash would, so that it closes nothing."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What was still to be written has no reader any more.
                with suppress(BrokenPipeError):
                    pipe.close()


class Place:
    """A data directory, the scripts that use it, and what is seen in it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.home = Home(data_dir / "embedded")
        self._users: list[User] = []
        self._infos: set[ServerInfo] = set()

    def user(self, *, no_writes: bool = False) -> User:
        user = User(self.data_dir, no_writes=no_writes)
        self._users.append(user)
        return user

    def info(self) -> ServerInfo | None:
        info = read_info(self.home.info)
        if info is not None:
            self._infos.add(info)
        return info

    def is_over(self) -> bool:
        """Whether keeper and server are gone."""
        return not FileLock.is_held(self.home.keeper_lock) and not FileLock.is_held(self.home.store_lock)

    def clean(self) -> None:
        """Kill the scripts; keeper and server must end by themselves."""
        self.info()
        for user in self._users:
            user.kill()
        try:
            wait_until(self.is_over, "keeper and server end after the last user")
        except AssertionError:
            self.info()
            for info in self._infos:
                for pid in (info.keeper_pid, info.server_pid):
                    if pid in processes_of(self.home.root):
                        os.kill(pid, signal.SIGKILL)
            raise
