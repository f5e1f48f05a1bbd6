"""The shipped examples, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from evpipe.examples import stdlib_report
from evpipe.sdk.hook import Mode


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_standard_library_report(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's main command: every part is analysed, `publish` is tried again, the sum is that of the parts."""
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(stdlib_report, "_attempts", iter(range(1, 9)))
    result = stdlib_report.report.options(mode=mode).run(parts=3)
    assert result.steps["publish"].attempts == 2
    files = [result.steps[name].value["files"] for name in ("analyse", "analyse-2", "analyse-3")]
    assert result.value.startswith(f"{sum(files)} modules")
    assert sum(files) > 100
