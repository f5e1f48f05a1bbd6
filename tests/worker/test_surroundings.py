"""What a step changes of its process does not reach the next; what a module sets when it is imported stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker import changing
from tests.worker.helpers import run_of

#: What cannot be put back: the next step has another process.
ENDED = {
    "change_locale",
    "closed_stdout",
    "duplicated_stdout",
    "limits",
    "module",
    "no_module",
}


@pytest.mark.parametrize("what", changing.CHANGES)
def test_change(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step finds everything as the first did, in the same process where that can be."""
    monkeypatch.chdir(tmp_path)
    found = run_of(changing.changed, slots=1, what=what)
    (first_pid, before), between, (last_pid, after) = found.value
    assert after == before
    assert before["environ"]["SET_AT_IMPORT"] == "yes"
    assert before["path"]
    assert before["cwd"] == str(tmp_path)
    assert between == first_pid
    assert (last_pid == first_pid) is (what not in ENDED)
