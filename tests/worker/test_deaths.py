"""A step that ends its process, or tries to, fails with a sentence that says how, and harms no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from evpipe import RunFailed
from evpipe.core.states import Reason, StepStatus
from tests.worker import dying
from tests.worker.helpers import pids_in, run_of

KILLED = "its process was killed by signal"
NO_CHANNEL = "closed the descriptor on which its result travels"
NO_RESULT = "its process was ended: what it wrote where its result travels is none"

#: What is said, and what the traceback shows beside it.
DEATHS = {
    "segfault": (f"{KILLED} 11 (SIGSEGV)", "Fatal Python error: Segmentation fault"),
    "abort": (f"{KILLED} 6 (SIGABRT)", "Fatal Python error: Aborted"),
    "kill itself": (
        f"{KILLED} 9 (SIGKILL), which evpipe did not send: the machine may have run out of memory",
        "a last word",
    ),
    "_exit(0)": ("its process exited with code 0 without a result", ""),
    "_exit(17)": ("its process exited with code 17 without a result", ""),
    "close everything": (f"its process {NO_CHANNEL}", ""),
    "close and stay": (f"its process was ended: it {NO_CHANNEL}", ""),
    "recursion in C": (f"{KILLED} 11 (SIGSEGV)", "Fatal Python error: Segmentation fault"),
    "garbage": (
        f"{NO_RESULT}: a frame of 4,294,967,295 bytes: 987,136 are allowed",
        "",
    ),
}
FAILURES = {
    "SystemExit": ("SystemExit: 3", "in system_exit"),
    "KeyboardInterrupt": ("KeyboardInterrupt", "in keyboard_interrupt"),
    "out of memory": ("MemoryError", "in out_of_memory"),
    "rude": ("Rude: <its __str__ raised ValueError>", "in rude"),
    "recursion": ("RecursionError: maximum recursion depth exceeded", "in recursion"),
}
SUCCESSES = {
    "close output": "closed",
    "forked": "from False",
    "forked and raised": "from the original",
}


@pytest.mark.parametrize("way", DEATHS)
def test_death(way: str) -> None:
    """The process is gone: the failure says how, with the tail of what it wrote to standard error."""
    sentence, shown = DEATHS[way]
    found = run_of(dying.dies, slots=1, way=way)
    died = found.result.steps["die"]
    assert (died.status, died.reason, died.error) == (StepStatus.FAILED, Reason.ERROR, sentence)
    assert shown in died.traceback
    before, nothing, after = found.value
    assert nothing is None
    assert len({before, after, os.getpid()}) == 3


@pytest.mark.parametrize("way", FAILURES)
def test_failure(way: str) -> None:
    """What Python raises is the step's failure, whatever it is; its process goes on, unless it may be damaged."""
    sentence, shown = FAILURES[way]
    found = run_of(dying.dies, slots=1, way=way)
    died = found.result.steps["die"]
    assert (died.status, died.reason, died.error) == (StepStatus.FAILED, Reason.ERROR, sentence)
    assert shown in died.traceback
    assert len(died.traceback) < 17_000
    before, _, after = found.value
    assert (before == after) is (way != "out of memory")


def test_value_that_cannot_travel() -> None:
    """It is named, and where in the value it is."""
    found = run_of(dying.dies, slots=1, way="unencodable")
    died = found.result.steps["die"]
    assert (died.status, died.reason) == (StepStatus.FAILED, Reason.OUTPUT)
    assert "object" in died.error
    before, _, after = found.value
    assert before == after


@pytest.mark.parametrize("way", SUCCESSES)
def test_success(way: str) -> None:
    """What the step returned counts, once, and only that of the process in which it began."""
    before, value, after = run_of(dying.dies, slots=1, way=way).value
    assert value == SUCCESSES[way]
    assert before != os.getpid() != after


def test_retry_of_a_death(tmp_path: Path) -> None:
    """`Retry(on=(ProcessDied,))` takes it for what it is, each time in a new process; another `on` does not."""
    file = tmp_path / "pids"
    found = run_of(dying.retried, file=str(file))
    assert (found.value, found.result.steps["die_twice"].attempts) == (3, 3)
    assert len(pids_in(file)) == 3
    other = tmp_path / "other"
    result: Any = run_of(dying.not_retried, file=str(other)).result
    assert result.steps["die_unexpectedly"].attempts == 1
    with pytest.raises(RunFailed, match="its process exited with code 9 without a result"):
        _ = result.value
