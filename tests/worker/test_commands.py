"""A command ends with its attempt, with all that it started; what it writes fills no memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from evpipe import Pipeline, RunStatus, command
from evpipe.core.states import Reason
from evpipe.sdk.command_line import CommandLine
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.commands import program as programs
from evpipe.worker.commands.program import Folders, Place, Written, environment, run_program
from tests.e2e.helpers import until as until_now
from tests.support.worlds import until
from tests.worker.helpers import in_loop, is_alive, pids_in, texts, working

#: A child, one with a session of its own, a daemon, and the shell itself.
TREE = (
    "sleep 60 & echo $! >> {file}; setsid sleep 60 & echo $! >> {file}; "
    "(setsid sh -c 'echo $$ >> \"$0\"; exec sleep 60' {file} &); echo $$ >> {file}; "
    "echo begun; until test $(wc -l < {file}) = 4; do sleep 0.01; done; touch {file}.ready; "
)
stays = command(TREE + "wait", shell=True, name="stays")
leaves = command(TREE + "exit 0", shell=True, name="leaves", outputs="lines")


def gone(file: Path) -> bool:
    return not any(is_alive(pid) for pid in pids_in(file))


def test_the_tree_is_killed(tmp_path: Path) -> None:
    """After a time-out, and after a cancel; when a command returns, what it left running ends, too."""
    late, left, cancelled = tmp_path / "late", tmp_path / "left", tmp_path / "cancelled"
    p = Pipeline("trees")
    p.step("late", stays, file=str(late), timeout_s=2, on_failure="skip")
    p.step("left", leaves, file=str(left))
    q = Pipeline("cancelled")
    q.step("stays", stays, file=str(cancelled))

    async def body() -> None:
        async with working(2) as (client, _):
            handle = await client.submit(p)
            result = await handle.result()
            assert result.steps["late"].reason is Reason.TIMEOUT
            assert [len(pids_in(file)) for file in (late, left)] == [4, 4]
            await until(lambda: gone(late), timeout_s=5.0, what="the tree of what was late is gone")
            assert result.steps["left"].value == ["begun"]
            await until(lambda: gone(left), timeout_s=5.0, what="what it left has ended")
            assert await texts(handle, "late") == ["begun"]
            other = await client.submit(q)
            await until(cancelled.with_suffix(".ready").exists, what="the tree is there")
            await other.cancel("enough")
            assert (await other.result()).status is RunStatus.CANCELLED
            await until(lambda: gone(cancelled), timeout_s=5.0, what="the tree is gone")

    in_loop(body)


def folders(tmp_path: Path) -> Folders:
    return Folders(Place(str(tmp_path / "attempt"), "", {}), "name", None)


def test_a_flood_is_not_kept(tmp_path: Path) -> None:
    """Of what it writes no more than can be a value is kept, of a line no more than is told, of a result neither."""
    seen = 0

    def tell(_: str, data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    script = (
        "import os, sys\n"
        "for _ in range(30): os.write(1, b'x' * 100_000); os.write(2, b'line\\n' * 20_000)\n"
        "for _ in range(300): os.write(int(os.environ['EVPIPE_RESULT_FD']), b'x' * 65_536)\n"
    )
    ended = run_program([sys.executable, "-S", "-c", script], {}, folders(tmp_path), tell)
    assert seen == 30 * 200_000
    assert (ended.code, ended.result) == (0, None)
    assert [len(line) for line in ended.stdout.lines] == [8_192]
    assert (len(ended.stderr.lines), ended.stderr.cut) == (programs.LINES_MAX, True)


def test_lines_are_bounded_by_their_characters() -> None:
    """Long lines count as what they are."""
    written = Written()
    for _ in range(1_000):
        written.feed(b"y" * 5_000 + b"\n")
    assert sum(map(len, written.lines)) <= programs.LINES_CHARS_MAX
    assert written.cut


def test_a_killed_program_leaves_nothing(tmp_path: Path) -> None:
    """In debug mode nobody else ends it: its time is over, or whoever looks at its lines raises."""
    pid = tmp_path / "pid"
    argv = ["/bin/sh", "-c", f"sleep 60 & echo $! > {pid}; echo begun; wait"]
    with pytest.raises(programs.TimedOut):
        run_program(argv, dict(os.environ), folders(tmp_path / "a"), lambda *_: None, timeout_s=1)
    until_now(lambda: gone(pid), "what it started has ended")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_program(argv, dict(os.environ), folders(tmp_path / "b"), interrupt)
    until_now(lambda: gone(pid), "what it started has ended")


def test_the_environment(tmp_path: Path) -> None:
    """The worker's, what the command sets, and what evpipe says; scripts beside the interpreter are found first."""
    line = CommandLine.from_code({"kind": "command", "words": ["true"]})
    given = {"PATH": "/bin", "HOME": "/home", "PYTHONPATH": "/before"}
    (tmp_path / "files" / "name" / "modules").mkdir(parents=True)
    place = Place(str(tmp_path / "attempt"), str(tmp_path / "files"), given)
    made = Folders(place, "name", None)
    found = environment(line, place, made, LaunchSubject("default", 5, "run1", "train=1", 2), {"HOME": "/other"})
    assert found == {
        "PATH": f"{Path(sys.executable).parent}:/bin",
        "HOME": "/other",
        "PYTHONPATH": f"{tmp_path}/files/name/modules:/before",
        "PYTHONUNBUFFERED": "1",
        "EVPIPE_RUN": "run1",
        "EVPIPE_STEP": "train[1]",
        "EVPIPE_ATTEMPT": "2",
        "EVPIPE_RESULT": str(tmp_path / "attempt" / "command" / "result.json"),
    }


def test_a_folder_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `cwd` a script is found where it was put, however the word names it."""
    monkeypatch.chdir(tmp_path)
    Path("work").mkdir()
    Path("train.py").write_text("import os, sys; print(os.getcwd(), open(sys.argv[1].split('=')[1]).read())\n")
    Path("config.txt").write_text("config")
    p = Pipeline("elsewhere")
    p.output(p.step("train", command("python ./train.py --config=config.txt", cwd="work", outputs="lines")))
    assert p.options(mode="debug").run().value == [f"{tmp_path}/work config"]
