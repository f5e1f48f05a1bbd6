"""The scenario files give the golden traces that are written in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.script import played

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


def test_the_scenarios_are_found() -> None:
    assert len(SCENARIOS) >= 9


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_trace_is_the_golden_one(path: Path, rewrite: bool) -> None:
    text = path.read_text(encoding="utf-8")
    found = played(text)
    if rewrite:
        path.write_text(found, encoding="utf-8")
    assert rewrite or found == text
