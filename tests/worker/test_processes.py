"""Which process a step runs in: a child of the worker, its own for that time, and warm for the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evpipe.worker.children import pool
from tests.support.worlds import until
from tests.worker import steps
from tests.worker.helpers import children_here, ended, in_loop, is_alive, pool_of, run_of, working


def test_one_warm_child() -> None:
    """A `def` runs in another process than the worker, the next one in the same; it is gone with the run."""
    result = steps.one_after_another.options(mode="local").run()
    first, second = result.value
    assert first == second != os.getpid()
    assert not is_alive(first)


def test_children_side_by_side(tmp_path: Path) -> None:
    """Steps that run at once run in different processes."""
    found = run_of(steps.side_by_side, slots=3, folder=str(tmp_path), count=3).value
    assert len({*found, os.getpid()}) == 4


def test_no_more_than_slots() -> None:
    """However many steps there are, no more children than slots are ever started, and they end with the worker."""

    async def body() -> None:
        async with working(3) as (client, worker):
            result = await ended(client, steps.many, count=40)
            found = set(result.value)
            assert len(found) <= 3
            assert children_here() == found
            # A second run on the same worker finds them warm.
            assert set((await ended(client, steps.many, count=6)).value) <= found
            assert {child._process.pid for child in pool_of(worker)._singles if child._process} == found
        assert not children_here()

    in_loop(body)


def test_idle_children_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that nobody needs for a while is ended, of either kind; the next step has a new one."""
    monkeypatch.setattr(pool, "LOOK_S", 0.02)
    monkeypatch.setattr(pool, "IDLE_S", 0.1)

    async def body() -> None:
        async with working(1) as (client, _):
            first = (await ended(client, steps.many, count=1)).value
            await until(lambda: not children_here(), what="the child has gone")
            assert (await ended(client, steps.many, count=1)).value != first
        async with working(1, local_code=False) as (client, worker):
            await ended(client, steps.many_threads, count=1)
            await until(lambda: not children_here(), what="the host has gone")
            assert not pool_of(worker)._hosts

    in_loop(body)
