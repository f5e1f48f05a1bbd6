"""One run that a controller leads: its fold, and what it takes to act on what that says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from evpipe.bus.protocol import Record, Sending
from evpipe.core.fingerprint import NO_FACTS, RunFacts
from evpipe.core.graph import Step
from evpipe.core.limits import PRIORITY_DEFAULT
from evpipe.core.machine import Run
from evpipe.core.mapping import base_of
from evpipe.wire.messages import LaunchEncoder, Submission
from evpipe.wire.subjects import EventSubject

if TYPE_CHECKING:
    from evpipe.controller.dispatch import Lane


#: How many runs are around a step's, and how many steps are before it in the graph of its own.
Depth: TypeAlias = tuple[int, int]


class Case:
    """One run on the desk."""

    __slots__ = (
        "broken",
        "encoder",
        "facts",
        "flying",
        "last",
        "launches",
        "no_cache",
        "pipeline",
        "priority",
        "queue",
        "refresh",
        "run",
        "sequence",
        "shown",
        "sizes",
        "source",
        "submission",
        "waiting",
    )

    def __init__(self, run_id: str, pipeline: str) -> None:
        self.run = Run(run_id)
        self.pipeline = pipeline
        #: The queue of all its launches; "" for those of its steps.
        self.queue = ""
        #: Its submit, if it could be read.
        self.submission: Submission | None = None
        #: Where the code of its steps is, as its submit says.
        self.source: Mapping[str, Any] = {}
        #: What its submit says of the cache.
        self.facts: RunFacts = NO_FACTS
        self.no_cache = False
        self.refresh: frozenset[str] = frozenset()
        #: Records that wait for the run's graph, or for what came before them to be done; None when there is nothing
        #: to wait for.
        self.waiting: list[tuple[Record, EventSubject]] | None = []
        #: Sequence of the newest event folded.
        self.sequence = 0
        #: Last sequence of the subjects that the controller writes, by (step or "", kind).
        self.last: dict[tuple[str, str], int] = {}
        #: Of its launches; None: there are none yet.
        self.encoder: LaunchEncoder | None = None
        #: Of its steps that name none.
        self.priority = PRIORITY_DEFAULT
        #: By step, the lane of its launch that has left and whose attempt has not ended.
        self.flying: dict[str, Lane] = {}
        #: Launches that are on their way to the queue.
        self.launches: dict[tuple[str, int], Sending] = {}
        #: Bytes of the outputs that are large, by step.
        self.sizes: dict[str, int] = {}
        #: The status that the registry was last told.
        self.shown = ""
        #: A bug stopped this run; nothing more is done for it here.
        self.broken = False

    @property
    def root(self) -> str:
        """The run at the top of those around it; its own id if it is nobody's step."""
        return self.run.id if self.run.parent is None else self.run.parent.root

    def depth_of(self, step: Step) -> Depth:
        """Say how far down a step is. What a run below has begun is further on than all of the run around it."""
        assert self.run.graph is not None
        return 0 if self.run.parent is None else self.run.parent.depth, self.run.graph.depth[step.name]

    def size_of_inputs(self, step: str) -> int:
        """Give the bytes of the outputs that a step takes, as far as they are large."""
        if self.run.graph is None or not self.sizes:
            return 0
        return sum(self.sizes.get(parent, 0) for parent in self.run.parents_of(step))

    def refreshes(self, step: str) -> bool:
        """Say whether a step is to run even if the cache has its result."""
        return base_of(step) in self.refresh or "*" in self.refresh

    def drop_unanswered(self) -> None:
        """Do not send launches again that have no answer yet."""
        for sending in self.launches.values():
            sending.drop()
        self.launches.clear()
