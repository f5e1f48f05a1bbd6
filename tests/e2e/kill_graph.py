"""The pipeline of the kill sweep: wide, then narrow, then a chain; what it must come to can be computed without it.

Each step tells a witness file when it begins and ends, so that the check knows of every body that ran, whatever the
log says of it. Some fail the first time on purpose.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import structlog

from evpipe import Retry, pipeline, step

FAN = 200
#: Widths of the layers that reduce it, and how many parents each of their steps has at least.
REDUCES = ((56, 4), (16, 4), (1, 16))
CHAIN = 32
STEPS = 1 + FAN + sum(width for width, _ in REDUCES) + CHAIN
SECONDS_MIN, SECONDS_MAX = 0.005, 0.060
#: Every so many steps one fails its first attempt.
FAILS_EVERY = 12
#: Waits before its next attempt.
DELAYS_S = (0.0, 0.05, 0.3)
MODULUS = 1_000_003


class Planned(Exception):
    """The failure that a step has on purpose."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the graph."""

    name: str
    parents: tuple[str, ...]
    seconds: float
    #: Whether its first attempt that comes to its end fails.
    fails: bool
    #: Wait before the attempt that follows.
    delay_s: float
    salt: int


def plan(seed: str) -> list[Node]:
    """Give the graph of a seed, parents first; the last one is the end of everything."""
    rng = random.Random(seed)
    layers: list[list[str]] = []
    nodes: list[Node] = []

    def add(name: str, parents: Sequence[str]) -> str:
        nodes.append(
            Node(
                name,
                tuple(parents),
                rng.uniform(SECONDS_MIN, SECONDS_MAX),
                rng.randrange(FAILS_EVERY) == 0,
                rng.choice(DELAYS_S),
                rng.randrange(MODULUS),
            )
        )
        return name

    root = add("root", [])
    layers.append([add(f"fan{i}", [root]) for i in range(FAN)])
    for depth, (width, fewest) in enumerate(REDUCES):
        above = rng.sample(layers[-1], len(layers[-1]))
        # Dealt out, so that nothing is left without a child, and some more at random.
        parents = [set(above[i::width]) | set(rng.sample(above, fewest)) for i in range(width)]
        layers.append([add(f"reduce{depth}-{i}", sorted(of)) for i, of in enumerate(parents)])
    last = layers[-1][0]
    for i in range(CHAIN):
        last = add(f"chain{i}", [last])
    assert len(nodes) == STEPS
    return nodes


def combined(salt: int, values: Sequence[int]) -> int:
    """What a step makes of its parents' values: depends on each of them and on their order."""
    found = salt
    for value in values:
        found = (found * 31 + value) % MODULUS
    return found


def value_of(nodes: Sequence[Node]) -> int:
    """What a run of this graph must come to."""
    values: dict[str, int] = {}
    for node in nodes:
        values[node.name] = combined(node.salt, [values[parent] for parent in node.parents])
    return values[nodes[-1].name]


_bodies = itertools.count()


def _note(witness: str, line: str) -> None:
    """Write a line in one piece, whoever else is writing."""
    file = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def _is_first(witness: str, run: str, name: str) -> bool:
    """Whether no body of this step has come this far before."""
    try:
        Path(f"{witness}.{run}.{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@step
async def work(witness: str, name: str, seconds: float, fails: bool, salt: int, values: list[int]) -> int:
    # The worker binds these for the body's logs; nothing else tells a step of its attempt.
    bound = structlog.contextvars.get_contextvars()
    body = f"{os.getpid()}-{next(_bodies)}"
    run, attempt = bound["run_id"], bound["attempt"]
    # CLOCK_MONOTONIC is one clock for all processes of a machine; the wall clock is the one that the log has.
    _note(witness, f"begin {body} {run} {name} {attempt} {time.monotonic_ns()} {time.time_ns()}")
    await anyio.sleep(seconds)
    if fails and _is_first(witness, run, name):
        _note(witness, f"fail {body} {time.monotonic_ns()}")
        raise Planned(name)
    value = combined(salt, values)
    _note(witness, f"end {body} {time.monotonic_ns()}")
    return value


@pipeline(version="1")
def kills(witness: str, seed: str) -> int:
    """root -> fan -> three layers of reduces -> chain."""
    made: dict[str, int] = {}
    for node in plan(seed):
        retries = Retry(2, delay_s=node.delay_s, jitter=0)
        call = work.options(name=node.name, retries=retries)
        made[node.name] = call(
            witness, node.name, node.seconds, node.fails, node.salt, [made[parent] for parent in node.parents]
        )
    return made[node.name]
