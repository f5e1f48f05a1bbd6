"""One seeded moment of the kill sweep for each victim; `python -m tests.e2e.kill_sweep` has many."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import anyio
import pytest

from .kill_check import Victim
from .kill_sweep import sweep, table

#: All moments of a seed are different; the first is as good as any.
SEED = int(os.environ.get("EVPIPE_SEED") or secrets.randbelow(1_000_000))
#: Kept short: three installations share the machine with other tests.
SCALE = 0.4


@pytest.mark.timeout(90)
def test_whoever_is_killed_nothing_is_lost(tmp_path: Path) -> None:
    """A controller, a worker, the server killed with -9 under load: right values, no step too early, none twice."""
    tallies = anyio.run(sweep, list(Victim), [0], SEED, tmp_path, SCALE)
    problems = [problem for tally in tallies for problem in tally.problems]
    again = f"EVPIPE_SEED={SEED} shows it again; logs in {tmp_path}\n{table(tallies)}\n"
    assert not problems, again + "\n".join(problems)
