"""One server for all, from the first user to the last, whoever dies in between."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import nats
import pytest

from evpipe.bus.embedded import EmbeddedServer
from evpipe.bus.home import ServerInfo
from evpipe.bus.locks import FileLock

from .helpers import Place, is_running, processes_of, wait_for, wait_until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or needs PR_SET_PDEATHSIG")


def publish(url: str, token: str, data: bytes) -> None:
    async def send() -> None:
        connection = await nats.connect(url, token=token)
        stream = connection.jetstream()
        await stream.add_stream(name="LOG", subjects=["log.*"])
        await stream.publish("log.a", data)
        await connection.close()

    asyncio.run(send())


def read_back(url: str, token: str) -> bytes | None:
    async def get() -> bytes | None:
        connection = await nats.connect(url, token=token)
        message = await connection.jetstream().get_last_msg("LOG", "log.a")
        await connection.close()
        return message.data

    return asyncio.run(get())


def answers(url: str, token: str) -> bool:
    async def ping() -> None:
        connection = await nats.connect(url, token=token, connect_timeout=2, allow_reconnect=False)
        await connection.jetstream().account_info()
        await connection.close()

    asyncio.run(ping())
    return True


def bound(other: socket.socket, port: int) -> bool:
    try:
        other.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_two_processes_share_one_server(place: Place) -> None:
    first, second = place.user().ask("start"), place.user().ask("start")
    assert (first["url"], first["token"], first["server_pid"]) == (second["url"], second["token"], second["server_pid"])
    assert processes_of(place.home.root) == {first["keeper_pid"], first["server_pid"]}
    assert answers(first["url"], first["token"])


def test_the_server_ends_when_the_last_user_closes(place: Place) -> None:
    first, second = place.user(), place.user()
    info = first.ask("start")
    second.ask("start")
    first.ask("close")
    second.ask("close")
    wait_until(place.is_over, "keeper and server end")
    wait_until(lambda: not processes_of(place.home.root), "their processes are gone")
    assert not is_running(info["server_pid"])
    assert list(place.home.users.iterdir()) == []
    assert not place.home.info.exists()


def test_the_server_ends_when_all_users_are_killed(place: Place) -> None:
    users = [place.user() for _ in range(3)]
    for user in users:
        user.send("start")
    for user in users:
        user.receive()
    for user in users:
        user.kill()
    wait_until(lambda: not processes_of(place.home.root), "keeper and server are gone")
    assert place.is_over()
    assert list(place.home.users.iterdir()) == []


def test_a_killed_user_is_noticed_and_the_other_keeps_the_server(place: Place) -> None:
    with EmbeddedServer.start(place.data_dir) as server:
        other = place.user()
        user_id = other.ask("start")["user_id"]
        assert server.is_user_alive(user_id)
        other.kill()
        assert not server.is_user_alive(user_id)
        wait_until(lambda: not place.home.user_lock(user_id).exists(), "the keeper removes the stale lock")
        assert server.is_user_alive(server.user_id)
        assert server.ensure() is False
        assert answers(server.url, server.token)
        assert not server.is_user_alive("1-never-there")


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_ten_users_that_start_at_once_get_one_server(place: Place, attempt: int) -> None:
    users = [place.user() for _ in range(10)]
    for user in users:
        user.send("start")
    found = [user.receive() for user in users]
    assert len({(info["url"], info["token"], info["server_pid"], info["keeper_pid"]) for info in found}) == 1
    assert len({info["user_id"] for info in found}) == 10
    assert processes_of(place.home.root) == {found[0]["keeper_pid"], found[0]["server_pid"]}


def test_a_killed_keeper_comes_back_at_the_same_address_with_the_data(place: Place) -> None:
    user = place.user()
    before = user.ask("start")
    publish(before["url"], before["token"], b"kept")
    os.kill(before["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: not FileLock.is_held(place.home.keeper_lock), "the kernel releases the keeper's lock")
    after = user.ask("ensure")
    assert (after["url"], after["token"], after["changed"]) == (before["url"], before["token"], False)
    assert after["keeper_pid"] != before["keeper_pid"]
    assert not is_running(before["server_pid"])
    assert read_back(after["url"], after["token"]) == b"kept"


def test_many_users_that_miss_a_keeper_at_once_start_one(place: Place) -> None:
    users = [place.user() for _ in range(5)]
    first, *_ = [user.ask("start") for user in users]
    os.kill(first["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: not FileLock.is_held(place.home.keeper_lock), "the kernel releases the keeper's lock")
    for user in users:
        user.send("ensure")
    found = [user.receive() for user in users]
    assert {info["url"] for info in found} == {first["url"]}
    assert len({info["keeper_pid"] for info in found}) == 1
    wait_until(
        lambda: processes_of(place.home.root) == {found[0]["keeper_pid"], found[0]["server_pid"]},
        "one keeper, one server",
    )


@linux_only
def test_a_killed_keeper_takes_its_server_along(place: Place) -> None:
    user = place.user()
    info = user.ask("start")
    user.kill()
    os.kill(info["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(place.home.root), "the server ends with its keeper")


def test_a_keeper_told_to_end_is_replaced_at_the_same_address(place: Place) -> None:
    user = place.user()
    before = user.ask("start")
    os.kill(before["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: not FileLock.is_held(place.home.keeper_lock), "it ends though there is a user")
    after = user.ask("ensure")
    assert (after["url"], after["token"]) == (before["url"], before["token"])


def test_the_keeper_restarts_a_killed_server_on_its_port(place: Place) -> None:
    before = place.user().ask("start")
    publish(before["url"], before["token"], b"kept")

    def restarted() -> ServerInfo | None:
        info = place.info()
        return info if info is not None and info.server_pid != before["server_pid"] else None

    os.kill(before["server_pid"], signal.SIGKILL)
    wait_until(restarted, "another server")
    after = restarted()
    assert after is not None
    assert (after.url, after.token, after.keeper_pid) == (before["url"], before["token"], before["keeper_pid"])
    assert read_back(after.url, after.token) == b"kept"


def test_a_taken_port_gives_another_address_and_another_token(place: Place) -> None:
    user = place.user()
    before = user.ask("start")
    # The only way to be sure of the port is to have it when the server dies: wait for it with the keeper stopped.
    os.kill(before["keeper_pid"], signal.SIGSTOP)
    os.kill(before["server_pid"], signal.SIGKILL)
    with socket.socket() as other:
        try:
            wait_until(lambda: not is_running(before["server_pid"]), "the server is gone")
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_until(lambda: bound(other, int(before["url"].rpartition(":")[2])), "the kernel gives the port back")
            other.listen()
        finally:
            os.kill(before["keeper_pid"], signal.SIGCONT)
        wait_until(lambda: (info := place.info()) is not None and info.url != before["url"], "another address")
        after = user.ask("ensure")
    assert after["changed"] is True
    assert after["url"] != before["url"]
    assert after["token"] != before["token"]
    assert answers(after["url"], after["token"])


def test_a_user_that_starts_in_the_moment_the_keeper_ends_is_served(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace_s = 0.03
    monkeypatch.setattr("evpipe.bus.embedded.GRACE_S", grace_s)
    monkeypatch.setattr("evpipe.bus.embedded.POLL_S", 0.005)
    share = EmbeddedServer.start(place.data_dir)
    kept = 0
    for attempt in range(30):
        keeper = share.info.keeper_pid
        share.close()
        if attempt % 2:
            # The keeper has just decided, and is stopping its server.
            wait_until(lambda: not place.home.info.exists(), "the keeper decides to end")
        else:
            # From long before the grace is over to shortly after.
            moment = time.monotonic() + attempt * grace_s / 20
            wait_for(moment)
        share = EmbeddedServer.start(place.data_dir)
        kept += share.info.keeper_pid == keeper
        assert answers(share.url, share.token)
        assert FileLock.is_held(place.home.keeper_lock)
        assert share.ensure() is False
        wait_until(lambda: len(processes_of(place.home.root)) == 2, "the old keeper is gone, or is the one")
    share.close()
    # Otherwise the moment was never on that side of the decision.
    assert 1 <= kept < 30


def test_a_forked_child_does_not_keep_the_server(place: Place) -> None:
    user = place.user()
    info = user.ask("start")
    child = user.ask("fork")
    try:
        assert child["error"] == "BusClosed"
        # The child's close() is not the parent's.
        assert user.ask("ensure")["url"] == info["url"]
        assert FileLock.is_held(place.home.user_lock(info["user_id"]))
        user.kill()
        wait_until(place.is_over, "the server ends though the child lives")
        assert is_running(child["pid"])
    finally:
        os.kill(child["pid"], signal.SIGKILL)


@linux_only
def test_the_keeper_is_detached(place: Place, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with EmbeddedServer.start(place.data_dir) as server:
            for pid in (server.info.keeper_pid, server.info.server_pid):
                assert os.getsid(pid) != os.getsid(0)
                fds = Path(f"/proc/{pid}/fd")
                assert file.name not in {str(fd.readlink()) for fd in fds.iterdir()}
                assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
                assert server.token not in Path(f"/proc/{pid}/cmdline").read_text()
            # Its parent is not us: it is not ours to reap, and does not end with us.
            assert int(Path(f"/proc/{server.info.keeper_pid}/stat").read_text().split()[3]) != os.getpid()


def test_a_removed_directory_ends_the_keeper_and_the_next_one_starts_empty(place: Place) -> None:
    user = place.user()
    before = user.ask("start")
    shutil.rmtree(place.home.root)
    wait_until(lambda: not is_running(before["keeper_pid"]), "the keeper of a removed directory ends")
    after = user.ask("ensure")
    assert after["server_pid"] != before["server_pid"]
    assert answers(after["url"], after["token"])
    user.ask("close")


def test_a_removed_server_json_is_written_again(place: Place) -> None:
    before = place.user().ask("start")
    place.home.info.unlink()
    assert place.user().ask("start")["server_pid"] == before["server_pid"]


def test_the_token_is_for_this_user_only(place: Place) -> None:
    with EmbeddedServer.start(place.data_dir) as server:
        assert place.home.info.stat().st_mode & 0o777 == 0o600
        assert place.home.root.stat().st_mode & 0o777 == 0o700
        assert server.token not in repr(server.info)
        with socket.create_connection(("127.0.0.1", server.info.port), timeout=5) as stranger:
            stranger.sendall(b'CONNECT {"auth_token": "wrong", "verbose": false}\r\nPING\r\n')
            with stranger.makefile("rb") as lines:
                assert lines.readline().startswith(b"INFO ")
                assert b"Authorization Violation" in lines.readline()
