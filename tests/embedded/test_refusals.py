"""What can be wrong with the directory, the binary or the platform is a sentence, not a traceback."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from evpipe.bus import embedded
from evpipe.bus.embedded import EmbeddedServer
from evpipe.bus.home import ServerInfo, write_info
from evpipe.bus.locks import FileLock
from evpipe.bus.server import ServerProcess, os_errors
from evpipe.errors import BusClosed, BusError, BusRefused, BusUnreachable, EvpipeError, ServerNotFound, UsageError

from .helpers import Place, wait_until
from .test_server import fake_server


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"url": 1}', b"\xff\xfe", b'{"url": "nats://127.0.0.1:x"}'])
def test_garbage_left_in_the_files_is_ignored(place: Place, garbage: bytes) -> None:
    place.home.prepare()
    place.home.info.write_bytes(garbage)
    place.home.last.write_bytes(garbage)
    with EmbeddedServer.start(place.data_dir) as server:
        assert server.url.startswith("nats://127.0.0.1:")


def test_a_data_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot use .*file/embedded .*Not a directory.*EVPIPE_DATA_DIR"):
        EmbeddedServer.start(tmp_path / "file")


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"File name too long.*EVPIPE_DATA_DIR"):
        EmbeddedServer.start(tmp_path / ("x" * 300))


def test_a_path_that_the_server_cannot_read(place: Place) -> None:
    with pytest.raises(UsageError, match="control characters"):
        EmbeddedServer.start(place.data_dir / "a\nb")


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.EROFS, UsageError, "set EVPIPE_DATA_DIR to a folder that you can write to"),
        (errno.EACCES, UsageError, "set EVPIPE_DATA_DIR to a folder that you can write to"),
        (errno.ENOSPC, BusRefused, "free some space"),
        (errno.EDQUOT, BusRefused, "free some space"),
        (errno.EMFILE, BusError, "Too many open files"),
    ],
)
def test_what_the_operating_system_refuses(number: int, kind: type[EvpipeError], sentence: str) -> None:
    with pytest.raises(kind, match=rf"cannot do it: .*\(/a\).*|{sentence}") as caught, os_errors("do it"):
        raise OSError(number, errno.errorcode[number], "/a")
    assert type(caught.value) is kind


def test_a_keeper_that_cannot_write_says_so_through_its_starter(place: Place) -> None:
    answer = place.user(no_writes=True).ask("start")
    assert answer["error"] == "BusRefused"
    assert "File too large" in answer["text"]


def test_a_server_that_does_not_start_says_why(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fake_server(tmp_path / "bin", "2.15.1", otherwise="echo the roof is on fire >&2; exit 3")
    monkeypatch.setenv("EVPIPE_NATS_SERVER", str(broken))
    with pytest.raises(BusRefused, match=r"ended with code 3(.|\n)*the roof is on fire"):
        EmbeddedServer.start(place.data_dir)
    assert list(place.home.users.iterdir()) == []


def test_a_server_that_never_serves_is_given_up(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = fake_server(tmp_path / "bin", "2.15.1", otherwise="exec sleep 60")
    monkeypatch.setenv("EVPIPE_NATS_SERVER", str(idle))
    with pytest.raises(BusUnreachable, match=r"did not serve within 0.3 s; it wrote nothing"):
        ServerProcess(tmp_path / "alone").start(timeout_s=0.3)


def test_no_binary(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise ServerNotFound("no nats-server")

    monkeypatch.setattr(embedded, "find_server", none)
    with pytest.raises(ServerNotFound):
        EmbeddedServer.start(place.data_dir)
    assert list(place.home.users.iterdir()) == []
    wait_until(place.is_over, "the keeper that was started meanwhile ends")


def test_a_platform_without_flock(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UsageError, match=r"needs POSIX file locks.*set EVPIPE_NATS_URL"):
        EmbeddedServer.start(place.data_dir)


def test_a_server_of_another_machine(place: Place) -> None:
    place.home.prepare()
    lock = FileLock.try_take(place.home.keeper_lock)
    assert lock is not None
    announced = write_info(place.home.info, ServerInfo("nats://127.0.0.1:1", "t", 1, 1, "elsewhere", "", ""))
    with pytest.raises(UsageError, match=r"runs on the machine 'elsewhere' and this is .*EVPIPE_DATA_DIR"):
        EmbeddedServer.start(place.data_dir)
    announced.release()
    lock.release()


def test_a_stopped_process_in_the_gate(place: Place) -> None:
    place.home.prepare()
    gate = FileLock.try_take(place.home.gate)
    assert gate is not None
    with pytest.raises(BusUnreachable, match=r"another process holds .*gate\.lock"):
        EmbeddedServer.start(place.data_dir, timeout_s=0.1)
    gate.release()


def test_a_keeper_that_never_serves(place: Place) -> None:
    place.home.prepare()
    lock = FileLock.try_take(place.home.keeper_lock)
    assert lock is not None
    with pytest.raises(BusUnreachable, match=r"did not serve in time.*keeper\.log"):
        EmbeddedServer.start(place.data_dir, timeout_s=0.1)
    lock.release()


def test_a_closed_share(place: Place) -> None:
    server = EmbeddedServer.start(place.data_dir)
    server.close()
    server.close()
    with pytest.raises(BusClosed, match="was closed"):
        server.ensure()
    assert not server.is_user_alive(server.user_id)


@pytest.mark.parametrize("user_id", ["", "../keeper", "A", "a.b", "x" * 41])
def test_what_is_no_user_id(place: Place, user_id: str) -> None:
    with EmbeddedServer.start(place.data_dir) as server, pytest.raises(UsageError, match="is no user id"):
        server.is_user_alive(user_id)


def test_a_server_that_an_earlier_keeper_left_behind_is_ended(place: Place) -> None:
    place.home.prepare()
    lock = FileLock.try_take(place.home.store_lock)
    assert lock is not None
    orphan = ServerProcess(place.home.server, store_dir=place.home.store, hold_fds=(lock.fd,))
    orphan.start()
    lock.release()
    try:
        with EmbeddedServer.start(place.data_dir) as server:
            assert not orphan.alive
            assert server.info.server_pid != orphan.pid
    finally:
        orphan.stop()
