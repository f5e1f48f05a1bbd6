"""`evpipe runs logs`: what the steps of a run write, for whoever asks.

The runs here are executed by nobody: the tests tell what their steps would have written.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from evpipe import Client, connect
from evpipe.core.events import Finished
from evpipe.core.states import RunStatus
from evpipe.hosting.terminal import shown
from evpipe.wire.messages import encode_event
from evpipe.wire.telemetry import LogBatch, LogLine, encode_log
from tests.cli.helpers import PROGRAM, CommandLine, finish
from tests.cli.pipelines import churn

Found = TypeVar("Found")
#: step, attempt, stream, text
Line = tuple[str, int, str, str]

LINES: list[Line] = [
    ("load", 1, "stdout", "loading 4"),
    ("total", 1, "stderr", "\x1b[31mbad\x1b[0m"),
    ("total", 2, "stdout", "better"),
]


def on(bus: CommandLine, body: Callable[[Client], Awaitable[Found]]) -> Found:
    """Call with a client of the bus."""

    async def main() -> Found:
        async with connect(bus.env["EVPIPE_NATS_URL"], prefix=bus.env["EVPIPE_PREFIX"]) as client:
            return await body(client)

    return anyio.run(main)


def tell(bus: CommandLine, run: str, *lines: Line, left_out: int = 0) -> None:
    """Tell lines as the worker of these attempts does, and wait until they are kept."""

    async def body(client: Client) -> None:
        telemetry, subjects = client.bus.telemetry, client.bus.subjects
        before = await telemetry.last_sequence()
        for i, (step, attempt, stream, text) in enumerate(lines):
            batch = LogBatch(lines=(LogLine(1_700_000_000.0 + i, stream, text),), left_out=left_out)
            telemetry.tell(subjects.telemetry(run, step, attempt), encode_log(batch))
        with anyio.fail_after(10):
            async with telemetry.follow([subjects.all_telemetry], after=before) as feed:
                async for records in feed:
                    if records[-1].sequence >= before + len(lines):
                        return

    on(bus, body)


def submit(bus: CommandLine, key: str = "monday") -> str:
    async def body(client: Client) -> str:
        return (await client.submit(churn, {"rows": 1}, key=key)).id

    return on(bus, body)


def end(bus: CommandLine, run: str) -> None:
    """End a run as its controller does."""

    async def body(client: Client) -> None:
        _, kind, payload = encode_event(Finished(status=RunStatus.SUCCEEDED))
        await client.bus.append_wait(client.bus.subjects.event("churn", run, None, kind), payload)

    on(bus, body)


def test_lines(bus: CommandLine) -> None:
    """Each line says whose it is, aligned; STEP and --attempt choose; into a pipe it goes as it was written."""
    run = submit(bus)
    tell(bus, run, *LINES)
    done = bus("runs", "logs", run)
    assert done.code == 0
    assert done.out.splitlines() == ["load  | loading 4", "total | \x1b[31mbad\x1b[0m", "total | better"]
    assert done.err == f"bus: {bus.env['EVPIPE_NATS_URL']} (configured)\n"
    assert bus("runs", "logs", run[:6], "total").out == "\x1b[31mbad\x1b[0m\nbetter\n"
    assert bus("runs", "logs", run, "total", "--attempt", "2").out == "better\n"
    assert bus("runs", "logs", run, "--attempt", "1").out.splitlines() == done.out.splitlines()[:2]


def test_json(bus: CommandLine) -> None:
    """With -o json each line is an object, and what was left out is one, too."""
    run = submit(bus)
    tell(bus, run, ("load", 1, "stderr", "x\ty"), left_out=3)
    done = bus("runs", "logs", run, "-o", "json")
    assert done.code == 0
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {
            "at": "2023-11-14T22:13:20+00:00",
            "step": "load",
            "attempt": 1,
            "stream": stream,
            "text": text,
        }
        for stream, text in (("evpipe", "… 3 lines left out"), ("stderr", "x\ty"))
    ]


def test_follow(bus: CommandLine) -> None:
    """-f shows lines as they come, and ends with the run; Ctrl-C ends it with 130, in silence."""
    run = submit(bus)
    tell(bus, run, LINES[0])
    following, left = bus.start("runs", "logs", run, "-f"), bus.start("runs", "logs", run, "--follow")
    for process in (following, left):
        assert process.stdout is not None
        assert process.stdout.readline() == "load  | loading 4\n"
    left.send_signal(signal.SIGINT)
    done = finish(left)
    assert (done.code, done.out, done.err.count("\n")) == (130, "", 1)
    tell(bus, run, LINES[2])
    assert following.stdout is not None
    assert following.stdout.readline() == "total | better\n"
    tell(bus, run, ("load", 1, "stdout", "the last"))
    end(bus, run)
    done = finish(following)
    assert (done.code, done.out) == (0, "load  | the last\n")
    again = bus("runs", "logs", run, "-f")
    assert (again.code, again.out) == (0, "load  | loading 4\ntotal | better\nload  | the last\n")


def test_nothing(bus: CommandLine) -> None:
    """That nothing is kept is said, and is no failure."""
    run = submit(bus)
    done = bus("runs", "logs", run, "-o", "json")
    assert (done.code, done.out) == (0, "")
    assert done.err.endswith(f"\nno output is kept of run {run}\n")
    assert bus("runs", "logs", run, "load").err.endswith(f"\nno output is kept of step 'load' of run {run}\n")
    end(bus, run)
    done = bus("runs", "logs", run, "-f")
    assert (done.code, done.out) == (0, "")


def test_what_there_is_not(bus: CommandLine) -> None:
    """Unknown runs and steps end with 3, what is wrong usage with 2."""
    run = submit(bus)
    for args, code, sentence in (
        (("abcdefgh",), 3, "there is no run abcdefgh"),
        ((run, "laod"), 3, f"run {run} has no step 'laod'; did you mean 'load'?"),
        ((run, "a.b"), 2, "step name 'a.b' is not allowed: allowed are"),
        ((run, "--attempt", "0"), 2, "Invalid value for '--attempt': 0 is not in the range x>=1"),
        (("abc",), 2, "Invalid value for 'RUN': 'abc'"),
    ):
        done = bus("runs", "logs", *args, "-o", "json")
        assert done.code == code, done
        assert done.json["error"].startswith(sentence)


def on_terminal(bus: CommandLine, *args: str) -> str:
    """What a command line writes to a terminal, which its standard output is."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *args],
        env=bus.env,
        cwd=bus.cwd,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=subprocess.PIPE,
        text=True,
    )
    bus.started.append(process)
    os.close(its)
    written = b""
    try:
        while data := os.read(ours, 65_536):
            written += data
    except OSError:  # what Linux says of a terminal that nobody has open any more
        pass
    finally:
        os.close(ours)
    assert finish(process).code == 0
    return written.decode().replace("\r\n", "\n")


def test_on_a_terminal(bus: CommandLine) -> None:
    """There what steps write does nothing to the terminal, names have colours, and stderr has another than stdout."""
    run = submit(bus)
    tell(bus, run, *LINES, ("load", 1, "stdout", "a\x1b]0;title\x07b\x9b2Jc\td"))
    terminal = bus.with_env(TERM="xterm")
    plain = on_terminal(terminal.with_env(NO_COLOR="1"), "runs", "logs", run)
    assert plain == "load  | loading 4\ntotal | bad\ntotal | better\nload  | abc\td\n"
    coloured = on_terminal(terminal, "runs", "logs", run).splitlines()
    assert coloured[0] == "\x1b[36mload  |\x1b[0m loading 4"
    assert coloured[1] == "\x1b[32mtotal |\x1b[0m \x1b[33mbad\x1b[0m"
    assert on_terminal(terminal, "runs", "logs", run, "total").splitlines()[1] == "better"


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("plain é 日本 👩‍🔬\ttab", "plain é 日本 👩‍🔬\ttab"),
        ("\x1b[1;31mred\x1b[0m \x1b[?25l\x1b[2J\x1b[10;10H", "red "),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1bP1;2|dcs\x1b\\a\x1b_apc\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", "abcd"),
        ("\x9b31mred\x9d0;title\x9c!", "red!"),
        ("\x1bc\x1b(Ba\x1b7b", "ab"),
        ("cut off \x1b[31", "cut off "),
        ("cut off \x1b]0;title", "cut off "),
        ("cut off \x1b", "cut off "),
        ("\x1b\x1b[31mtwice\x1b\x1b]0;x\x07", "twice"),
        ("\x1b[\x1b[31m31mnested", "31mnested"),
        ("bell\x07 back\x08 null\x00 del\x7f\x85", "bell back null del"),
        ("10 %\r50 %\r100 %", "100 %"),
        ("windows\r", "windows"),
        ("two\nlines\u2028more\u2029", "twolinesmore"),
        ("abc\u202edef\u2066", "abcdef"),
    ],
)
def test_what_a_terminal_is_shown(text: str, harmless: str) -> None:
    """No escape sequence gets through, whole, cut off or put together of two."""
    assert shown(text) == harmless
    assert not any((c < " " and c != "\t") or "\x7f" <= c < "\xa0" for c in shown(text))
