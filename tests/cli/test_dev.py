"""`evpipe dev`: all that pipelines need, in one command."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.helpers import CommandLine, Host, until

SCRIPT = """
import os
from evpipe import pipeline, step


@step
def parent() -> int:
    print("a line")
    return os.getppid()


@step(executor="thread")
def host() -> int:
    return os.getppid()


@pipeline
def parents() -> list[int]:
    return [parent(), host()]


if __name__ == "__main__":
    print(parents.run().value)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "my script.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def test_a_script_uses_it(evpipe: CommandLine, script: Path, tmp_path: Path) -> None:
    """What has its URL uses its controller and its worker, whose children find the script's code where it is."""
    dev = Host(evpipe, tmp_path / "dev", "dev", "--slots", "1")
    try:
        dev.until_logged("dev_serves")
        out = tmp_path / "dev" / "out"
        until(lambda: out.read_text().endswith("\n"), "it has written the URL")
        url = out.read_text().strip()
        assert url.startswith("nats://")
        line = evpipe.with_env(EVPIPE_NATS_URL=url)
        done = line("run", "--watch", str(script), "-o", "json")
        assert (done.code, done.json["value"]) == (0, [dev.process.pid] * 2)
        assert "parent | a line\n" in done.err
        # The token is nobody's to read but its user's.
        assert url.partition("@")[0].removeprefix("nats://") not in done.err
        assert line("runs", "logs", done.json["id"]).out == "parent | a line\n"
        dev.signal(signal.SIGINT)
        assert dev.finish() == 130
    finally:
        dev.clean()


def test_a_configured_bus_is_refused(evpipe: CommandLine) -> None:
    done = evpipe.with_env(EVPIPE_NATS_URL="nats://somewhere:4222")("dev")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "evpipe: evpipe dev brings a bus of its own, and nats://somewhere:4222 is configured: "
        "unset EVPIPE_NATS_URL, or use `evpipe controller` and `evpipe worker`\n"
    )


@pytest.mark.parametrize("arguments", [("-q", "a b"), ("--slots", "0")])
def test_wrong_options(evpipe: CommandLine, arguments: tuple[str, str]) -> None:
    assert evpipe("dev", *arguments).code == 2


def test_watch_shows_output_only_where_asked(bus: CommandLine, script: Path, tmp_path: Path) -> None:
    """On a configured bus the output of steps is in `runs logs`, and with --watch also on standard error."""
    hosts = [Host(bus, tmp_path / role, role) for role in ("controller", "worker")]
    try:
        for host, event in zip(hosts, ("controller_leads", "worker_serves"), strict=True):
            host.until_logged(event)
        quiet = bus("run", str(script), "-o", "json")
        assert quiet.code == 0
        assert "a line" not in quiet.err
        logs = bus("runs", "logs", quiet.json["id"], "-o", "json")
        assert [json.loads(line)["text"] for line in logs.out.splitlines()] == ["a line"]
        assert "parent | a line\n" in bus("run", "--watch", str(script)).err
    finally:
        for host in hosts:
            host.clean()
