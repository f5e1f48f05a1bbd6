"""`evpipe.examples.replay` on small generated workflows: order, bounds, a cycle."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpipe.examples import replay
from evpipe.examples.replay import Bounds, Task, bounds, load, main, topological

WORKFLOWS = Path(__file__).parent / "workflows"
LAYERS = str(WORKFLOWS / "layers.json")
DIAMOND = [Task("a", (), 1.0), Task("b", (0,), 2.0), Task("c", (0,), 3.0), Task("d", (1, 2), 1.0)]


@pytest.mark.parametrize("inline_from", [1, 1_000], ids=["inline", "process"])
def test_a_workflow_runs_in_order(
    inline_from: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the embedded bus no step begins before its parents have ended (`main` checks it), and the depth is right."""
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(replay, "INLINE_FROM", inline_from)
    assert main([LAYERS, "--seconds", "0.5"]) == 0
    assert "30 steps, 6 deep: succeeded" in capsys.readouterr().out


def test_a_workflow_runs_in_debug_mode(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain calls give the same value."""
    assert main([LAYERS, "--seconds", "0.05", "--debug"]) == 0
    assert "30 steps, 6 deep: succeeded" in capsys.readouterr().out


def test_a_cyclic_workflow_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The cycle is printed and nothing is submitted."""
    assert main([str(WORKFLOWS / "cyclic.json"), "--debug"]) == 2
    assert capsys.readouterr().err == "replay: the steps wait for each other in a cycle: t5 -> t11 -> t0 -> t5\n"


@pytest.mark.parametrize(
    ("slots", "expected"), [(1, Bounds(5.0, 7.0, 7.0)), (2, Bounds(5.0, 5.0, 6.0)), (4, Bounds(5.0, 5.0, 5.5))]
)
def test_bounds_of_a_diamond(slots: int, expected: Bounds) -> None:
    """Lower bound: the longest path or the work per slot; upper: Graham's."""
    assert bounds(DIAMOND, slots) == expected


def test_tasks_of_a_cycle_are_told_apart() -> None:
    """What is in a cycle, or below one, is never ready."""
    tasks = [Task("a", (), 1.0), Task("b", (2,), 1.0), Task("c", (1,), 1.0), Task("d", (2,), 1.0)]
    assert topological(tasks) == ([0], [1, 2, 3])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the workflow file {} cannot be read: No such file or directory"),
        ("{", "{} is not a workflow: JSONDecodeError: Expecting property name"),
        ('{"tasks": [{"id": "a", "parents": ["b"], "runtime_s": 1}]}', "{} is not a workflow: KeyError: 'b'"),
    ],
)
def test_what_is_no_workflow_is_refused(
    content: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is missing or is something else is named."""
    file = tmp_path / "workflow.json"
    if content is not None:
        file.write_text(content)
    assert main([str(file)]) == 2
    assert capsys.readouterr().err.startswith("replay: " + sentence.format(file))


def test_load_reads_positions() -> None:
    """Parents are given as positions in the file."""
    tasks = load(LAYERS)
    assert len(tasks) == 30
    assert all(parent < i for i, task in enumerate(tasks) for parent in task.parents)
