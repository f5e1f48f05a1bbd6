"""Limits with real processes: one moment of the sweep; `python -m tests.e2e.limits_sweep` has many."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import anyio
import pytest

from tests.e2e.limits_sweep import sweep

SEED = int(os.environ.get("EVPIPE_SEED") or secrets.randbelow(1_000_000))


@pytest.mark.timeout(90)
def test_whoever_is_killed_no_limit_is_exceeded(tmp_path: Path) -> None:
    """The controller and both workers are killed with -9 in the midst, with mutex and semaphore in their hands."""
    tally = anyio.run(lambda: sweep(1, SEED, tmp_path, runs=2, steps=6, seconds=0.15))
    again = f"EVPIPE_SEED={SEED} shows it again; logs in {tmp_path}\n{tally}\n"
    assert not tally.problems, again + "\n".join(tally.problems)
    assert tally.bodies >= 12
