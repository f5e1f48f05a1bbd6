"""Reading the user's own modules."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evpipe.client import own_modules
from evpipe.client.own_modules import parsed


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can, also in the middle of what is one call otherwise."""

    def turn(*_: object) -> None:
        sum(i for i in range(50))

    interval = sys.getswitchinterval()
    gc.callbacks.append(turn)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.callbacks.remove(turn)


def test_files_are_parsed_in_several_threads(switching: None) -> None:
    """Python 3.11 raises a SystemError where a collection lets another thread into the parser."""
    texts = [file.read_bytes() for file in Path(own_modules.__file__).parent.glob("*.py")]

    def parse(depth: int) -> bool:
        return parse(depth - 1) if depth else all(parsed(text) is not None for text in texts)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(parse, range(8)))
