"""Which pipeline a step runs as a run of its own, and which step a run is.

A graph that is built inside another may refer to the ones around it: a pipeline that calls itself has a step whose
graph is its own. A graph cannot hold its own digest, so such a step says how far up the other is (`Child.up`), and a
run knows the graphs around its own (`Parent.enclosing`), as a function in a function knows the variables around it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.core.graph import Graph

#: How deep pipelines may be built in one another. Each level costs a few frames of Python's stack.
NESTING_MAX: Final = 32
#: How deep runs may be nested: one that calls itself and never stops is ended here.
RUN_DEPTH_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """The pipeline that a step runs."""

    pipeline: str
    #: Its graph, in the process that built it; else `digest` or `up` says which it is.
    graph: Graph | None = field(default=None, repr=False)
    #: Name of its graph in the object store.
    digest: str = ""
    #: It is the graph of the run itself (0), or the one so many levels around that; None: neither.
    up: int | None = None
    #: The queue of all its launches; "" for those of its steps.
    queue: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The attempt that a run is."""

    run: str
    pipeline: str
    step: str
    attempt: int
    #: The run at the top, which nobody's step is.
    root: str
    #: How many runs are around it, from 1.
    depth: int
    #: Digests of the graphs around its own, the next one first.
    enclosing: tuple[str, ...] = ()
    #: Seconds from its submit to its end: the `timeout_s` of the step; None: what its own graph says.
    deadline_s: float | None = None


def child_run_id(run: str, step: str, attempt: int) -> str:
    """Give the id of the run that an attempt is."""
    digest = hashlib.sha256(f"{run}\0{step}\0{attempt}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:20]


def graph_of_child(child: Child, graphs: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Give the digest of a child's graph, and those of the graphs around it.

    Args:
        graphs: the digest of the run's own graph, and those around it.

    Raises:
        UsageError: if it refers to a graph further up than there is one.
    """
    if child.up is None:
        return child.digest, graphs
    if child.up >= len(graphs):
        raise UsageError(
            f"its graph is the one {child.up} levels up, and there are {len(graphs) - 1}: "
            f"it was made to be run inside of pipeline {child.pipeline!r}"
        )
    return graphs[child.up], graphs[child.up + 1 :]


def check_parent(parent: Parent | None, run: str) -> Parent | None:
    """Give the parent that a submit names; UsageError if the run is not the attempt that it says it is."""
    if parent is not None and run != child_run_id(parent.run, parent.step, parent.attempt):
        raise UsageError(f"run {run} is not attempt {parent.attempt} of step {parent.step!r} of run {parent.run}")
    return parent


def check_depth(parent: Parent | None, pipeline: str) -> None:
    """Refuse a run that is nested too deep."""
    if parent is not None and parent.depth > RUN_DEPTH_MAX:
        raise UsageError(
            f"pipeline {pipeline!r} is called {RUN_DEPTH_MAX} runs deep: where it calls itself, a `when` has to "
            "become false at some time"
        )
