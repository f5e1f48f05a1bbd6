"""What a step says: checked where it is said, and worth nothing outside of a run."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evpipe import StepContext, UsageError, current, step
from evpipe.sdk.context import entered

NAN, INF = math.nan, math.inf


class Recorder:
    """Notes what it is told."""

    run, step, attempt, cancelled = "aaaaaaaa", "train", 2, False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.told: list[tuple[Any, ...]] = []

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        self.told.append((fraction, message))

    def metric(self, name: str, value: float, iteration: int | None, at_s: float) -> None:
        self.told.append((name, value, iteration))

    def artifact(self, name: str, value: Any) -> None:
        self.told.append((name, value))

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        self.told.append((level, text, dict(fields)))

    def folder(self) -> Path:
        return self._folder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path)
    with entered(made):
        yield made


class Rude:
    def __repr__(self) -> str:
        raise ValueError

    def __float__(self) -> float:
        raise RuntimeError("no")


# ---- outside of a run


@step
def trains(rate: float) -> Path:
    context = current()
    context.progress(7.0, "much too far")
    context.metric("", "no number", step="no step")  # type: ignore[arg-type]  # nothing is looked at
    context.artifact("\n", object())
    context.log.bind(a=1).exception("x %d", "y", b=Rude())
    file = context.folder / "model.txt"
    assert not file.exists()
    file.write_text(str(rate))
    return file


def test_outside_of_a_run_nothing_is_recorded_and_nothing_raises() -> None:
    """A step is the function that it is: each call has a folder of its own, which stays for whoever looks into it."""
    files = [trains(0.1), trains(0.2)]
    assert [file.read_text() for file in files] == ["0.1", "0.2"]
    context = current()
    assert (context.run, context.step, context.attempt, context.cancelled) == ("", "", 1, False)
    assert repr(context) == "<outside of a run>"
    assert context.folder == current().folder
    assert context.folder not in {file.parent for file in files}


# ---- inside of one


def test_what_is_said_reaches_the_recorder(recorder: Recorder, tmp_path: Path) -> None:
    """In the block, and in no other thread; the numbers of libraries are numbers."""
    context = current()
    assert (context.run, context.step, context.attempt) == ("aaaaaaaa", "train", 2)
    assert repr(context) == "<attempt 2 of step 'train' of run aaaaaaaa>"
    assert context.folder == tmp_path
    elsewhere: list[StepContext] = []
    thread = threading.Thread(target=lambda: elsewhere.append(current()))
    thread.start()
    thread.join()
    assert elsewhere[0].run == ""
    context.progress(0)
    context.progress(np.float32(0.5), "half\ud800")
    context.progress(1.0000000001, "x" * 2_000)
    context.metric("loss", 1)
    context.metric("loss", np.float64(2.5), step=np.int64(3))
    context.metric("loss", np.array([4.0]), step=-1)
    context.metric("train/loss é", NAN)
    context.metric("loss", Decimal("-Infinity"))
    context.metric("loss", 10**400)
    context.artifact("plot", b"png")
    nan = recorder.told.pop(6)
    assert nan[0] == "train/loss é"
    assert math.isnan(nan[1])
    assert recorder.told == [
        (0.0, ""),
        (0.5, "half\\ud800"),
        (1.0, "x" * 999 + "…"),
        ("loss", 1.0, None),
        ("loss", 2.5, 3),
        ("loss", 4.0, -1),
        ("loss", -INF, None),
        ("loss", INF, None),
        ("plot", b"png"),
    ]
    assert all(type(told[1]) is float for told in recorder.told[3:8])


def test_threads_of_the_process_are_inside_where_it_runs_one_step(tmp_path: Path) -> None:
    """Of a callback in a thread of a library's."""
    recorder = Recorder(tmp_path)
    with entered(recorder, of_process=True):
        thread = threading.Thread(target=lambda: current().metric("loss", 1.0))
        thread.start()
        thread.join()
    assert recorder.told == [("loss", 1.0, None)]
    assert current().run == ""


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.progress(40), "the fraction of progress is 40, it must be from 0 to 1"),
        (lambda c: c.progress(NAN), "the fraction of progress is nan, it must be from 0 to 1"),
        (lambda c: c.progress("0.4"), "the fraction of progress must be a number, not '0.4'"),
        (lambda c: c.metric("loss", "1"), "the value of metric 'loss' must be a number, not '1'"),
        (lambda c: c.metric("loss", [1, 2]), r"the value of metric 'loss' must be a number, not \[1, 2\] \(.*\)"),
        (lambda c: c.metric("loss", Rude()), r"the value of metric 'loss' must be a number, not <a Rude .*\(no\)"),
        (lambda c: c.metric("loss", 1j), r"the value of metric 'loss' must be a number, not 1j \(.*\)"),
        (lambda c: c.metric("loss", 1, step=1.5), "the step of metric 'loss' must be a whole number or None, not 1.5"),
        (lambda c: c.metric("loss", 1, step=2**80), "the step of metric 'loss' must have at most 63 bits, not 81"),
        (lambda c: c.metric("", 1), "'' is no name of a metric: it has 1 to 200 printable characters"),
        (lambda c: c.metric("a\nb", 1), r"'a\\nb' is no name of a metric: .*"),
        (lambda c: c.metric("\ud800", 1), r"'\\ud800' is no name of a metric: .*"),
        (lambda c: c.metric("x" * 201, 1), "'x{40}' is no name of a metric: .*"),
        (lambda c: c.metric(1, 1), "the name of a metric must be a text, not 1"),
        (lambda c: c.artifact(None, 1), "the name of an artifact must be a text, not None"),
        (lambda c: c.artifact("", 1), "'' is no name of an artifact: .*"),
    ],
)
def test_what_cannot_be_is_refused_and_named(
    call: Callable[[StepContext], None], sentence: str, recorder: Recorder
) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        call(current())
    assert recorder.told == []


def test_lines_have_levels_and_fields(recorder: Recorder) -> None:
    """Called as loggers of structlog and of logging are; what a field is does not matter."""
    log = current().log
    log.info("loaded", rows=3, share=0.5, ok=True, none=None, who="a\ud800", what=[1], rude=Rude(), big=2**70)
    log.bind(epoch=1).bind(k=2).warning("%s of %d", "three", 4, epoch=5)
    log.debug("%(a)s", {"a": "named"}, extra={"more": 1}, stacklevel=2, stack_info=True)
    log.error("not %d", "a number")
    log.log(logging.WARNING, "by number")
    log.log("critical", "by name")
    log.log(35, "between")
    log.critical(ValueError("x"))
    log.info("two\nlines", a=1)
    log.info("")
    log.info("100%")
    log.info("long", text="x" * 5_000, **{f"f{i:03}": i for i in range(80)})
    long = recorder.told.pop()
    assert list(long[2]) == ["text", *(f"f{i:03}" for i in range(49))]
    assert len(long[2]["text"]) == 1_000
    assert recorder.told == [
        (
            "info",
            "loaded",
            {
                "rows": 3,
                "share": 0.5,
                "ok": True,
                "none": None,
                "who": "a\\ud800",
                "what": "[1]",
                "rude": "<a Rude whose repr raised ValueError>",
                "big": str(2**70),
            },
        ),
        ("warning", "three of 4", {"epoch": 5, "k": 2}),
        ("debug", "named", {"more": 1}),
        ("error", "'not %d' 'a number'", {}),
        ("warning", "by number", {}),
        ("critical", "by name", {}),
        ("warning", "between", {}),
        ("critical", "x", {}),
        ("info", "two", {"a": 1}),
        ("info", "lines", {}),
        ("info", "", {}),
        ("info", "100%", {}),
    ]


def test_an_exception_is_written_with_its_traceback(recorder: Recorder) -> None:
    error = ValueError("first")
    try:
        raise error
    except ValueError:
        current().log.exception("broken", part=1)
    current().log.warning("again", exc_info=error)
    current().log.error("none", exc_info=False)
    assert recorder.told[0] == ("error", "broken", {"part": 1})
    texts = [told[1] for told in recorder.told]
    assert texts[1] == "Traceback (most recent call last):"
    assert texts.count("ValueError: first") == 2
    assert {told[0] for told in recorder.told[1 : texts.index("again")]} == {"error"}
    assert texts[-1] == "none"


def test_the_folder_of_plain_calls_goes_with_the_process(tmp_path: Path) -> None:
    """And not with a process that was forked from it."""
    import subprocess
    import sys

    code = (
        "import os, sys\nfrom evpipe import current\nfolder = current().folder\n"
        "if os.fork() == 0:\n    sys.exit()\nos.wait()\nassert folder.is_dir()\nprint(folder)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
