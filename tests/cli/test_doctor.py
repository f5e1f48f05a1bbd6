"""`evpipe doctor` finds what is wrong, and changes nothing."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evpipe.bus.server import find_server
from tests.cli.helpers import MODULE, PROGRAM, CommandLine, Done, finish, until, until_said


def checks(done: Done) -> dict[str, list[tuple[str, str]]]:
    """Status and finding of each check, by name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for check in done.json["checks"]:
        found.setdefault(check["name"], []).append((check["status"], check["found"]))
    return found


def worst(found: dict[str, list[tuple[str, str]]]) -> set[str]:
    return {status for entries in found.values() for status, _ in entries}


def test_no_server(evpipe: CommandLine) -> None:
    """With nothing configured and nothing running all is well, and no server is started to look at."""
    done = evpipe("doctor", "-o", "json")
    found = checks(done)
    assert (done.code, done.json["ok"], worst(found)) == (0, True, {"ok"})
    assert "no server runs" in found["embedded"][0][1]
    assert found["bus"] == [("ok", "nothing to look at while no server runs")]
    assert not Path(evpipe.env["EVPIPE_DATA_DIR"]).exists()


def test_everything_right(hosted_bus: CommandLine) -> None:
    """On a bus with a controller every check is ok, down to the time that a publish takes."""
    done = hosted_bus("doctor", "-o", "json")
    found = checks(done)
    assert (done.code, worst(found)) == (0, {"ok"}), done
    assert list(found) == [
        "python", "packages", "settings", "nats-server", "embedded", "bus", "server", "jetstream", "stream",
        "controller", "publish",
    ]  # fmt: skip
    url = hosted_bus.env["EVPIPE_NATS_URL"]
    assert f"url = {url} from EVPIPE_NATS_URL" in found["settings"][0][1]
    assert len(found["stream"]) == 11
    assert found["stream"][0][1].startswith("lab-log: 0 messages, 0 B of ")
    assert found["publish"][0][1].endswith(" ms until a message is stored and acknowledged")


def test_leaves_nothing_behind(hosted_bus: CommandLine) -> None:
    """The key that measures a publish is gone afterwards, so a second look counts as many messages."""
    before, after = (checks(hosted_bus("doctor", "-o", "json"))["stream"] for _ in range(2))
    leases = [text.split(",")[0] for entries in (before, after) for _, text in entries if "-leases" in text]
    # One is the controller's lease.
    assert [text.endswith(": 1 messages") for text in leases] == [True, True], leases


def test_fresh_server(bus: CommandLine) -> None:
    """Where no streams are yet, it makes none, and warns that no controller is there."""
    for _ in range(2):
        done = bus("doctor", "-o", "json")
        found = checks(done)
        assert (done.code, worst(found)) == (0, {"ok", "warn"})
        assert found["stream"][0][1].startswith("not there yet: ")
        assert found["controller"] == [("warn", "none answers")]


def test_embedded_server_that_runs(evpipe: CommandLine, tmp_path: Path) -> None:
    """A running embedded server is looked at like any other."""
    watching = evpipe.start("events", "--since", "1h")
    until_said(watching, "bus: ")
    assert evpipe("run", f"{MODULE}:churn").code == 0
    events = evpipe("events", "--no-follow").out.count("\n")
    done = evpipe("doctor", "-o", "json")
    watching.terminate()
    finish(watching)
    found = checks(done)
    assert (done.code, worst(found)) == (0, {"ok"}), done
    assert events >= 4
    assert "a server runs at nats://127.0.0.1:" in found["embedded"][0][1]
    assert found["stream"][0][1].startswith(f"evpipe-log: {events} messages, ")
    assert "token" not in done.out


@contextmanager
def plain_server() -> Iterator[str]:
    """A nats-server without JetStream."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [find_server().path, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )

    def serves() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(serves, "the server serves")
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_without_jetstream(evpipe: CommandLine) -> None:
    """A server without JetStream is named as such, by the doctor and by a run."""
    with plain_server() as url:
        done = evpipe("doctor", "--url", url, "-o", "json")
        assert done.code == 5
        status, text = checks(done)["jetstream"][0]
        assert status == "fail"
        assert f"the NATS server at {url} runs without JetStream" in text
        ran = evpipe("run", f"{MODULE}:churn", "--url", url)
        assert ran.code == 5
        assert ran.err.splitlines()[-1] == f"evpipe: {text}"


@pytest.mark.parametrize(
    ("env", "code", "name", "text"),
    [
        ({"EVPIPE_NATS_URL": "ftp://a"}, 2, "settings", "EVPIPE_NATS_URL is 'ftp://a' with the unknown scheme 'ftp'"),
        ({"EVPIPE_NATS_SERVER": "/nowhere"}, 2, "nats-server", "but there is no such file"),
        ({"EVPIPE_DATA_DIR": "/dev/null/x"}, 2, "embedded", "/dev/null is not a folder"),
    ],
)
def test_wrong_settings(evpipe: CommandLine, env: dict[str, str], code: int, name: str, text: str) -> None:
    """Wrong settings fail with 2 and are named."""
    done = evpipe.with_env(**env)("doctor", "-o", "json")
    assert done.code == code
    status, found = checks(done)[name][-1]
    assert status == "fail"
    assert text in found


def test_settings_and_their_sources(evpipe: CommandLine, tmp_path: Path) -> None:
    """Each setting is told with its source, secrets without their value, and a variable nobody reads is noticed."""
    (tmp_path / "evpipe.toml").write_text('prefix = "lab"\nnats_token = "s3cret"\n')
    done = evpipe.at(tmp_path).with_env(EVPIPE_NATS_ULR="nats://a")("doctor")
    assert done.code == 0
    assert f"prefix = lab from prefix in {tmp_path / 'evpipe.toml'}" in done.out
    assert "token = (set) from nats_token in " in done.out
    assert "s3cret" not in done.out
    assert "EVPIPE_NATS_ULR is set and nothing reads it; did you mean 'EVPIPE_NATS_URL'?" in done.out


@pytest.mark.parametrize(("more", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours(evpipe: CommandLine, more: dict[str, Any], colours: bool) -> None:
    """A terminal gets colours, unless NO_COLOR is set."""
    ours, theirs = pty.openpty()
    env = {**evpipe.env, "TERM": "xterm", **more}
    subprocess.run([PROGRAM, "doctor"], env=env, cwd=evpipe.cwd, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("\x1b[32mok" in shown) == colours
    assert ("\x1b" in shown) == colours
