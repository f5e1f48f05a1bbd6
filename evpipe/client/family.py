"""The runs that the steps of a run are, and those of their steps, all the way down."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from evpipe.bus.protocol import Bus, Record
from evpipe.client.fold import RunFold, find_step
from evpipe.client.growing import Events, GrowingFeed, Member
from evpipe.core.graph import Graph
from evpipe.core.lineage import child_run_id
from evpipe.core.machine import Run
from evpipe.core.mapping import element_of
from evpipe.core.names import for_people, from_people
from evpipe.core.run_state import StepState
from evpipe.core.states import StepStatus
from evpipe.errors import NotFound

#: Runs that are named to the server together.
READ_TOGETHER_MAX: Final = 16


class Row(NamedTuple):
    """A step of a run, or of one below it."""

    #: Such as "train" and "inner/fit[2]".
    path: str
    #: The run that has it, and its name there, on the bus.
    run: Run
    name: str
    #: The run that its current attempt is, if it is one and has begun.
    inside: Run | None

    @property
    def state(self) -> StepState:
        return self.run.steps[self.name]


@dataclass(frozen=True, slots=True)
class Family:
    """A run, and the runs that its steps are, all the way down, as far as the log shows them."""

    run: Run
    #: By the path of the step that it is, such as "inner" and "inner/fit[2]".
    below: Mapping[str, Run] = field(default_factory=dict)

    def _inside(self, path: str, run: Run, name: str) -> Run | None:
        found = self.below.get(path)
        parent = None if found is None else found.parent
        is_current = parent is not None and (parent.run, parent.attempt) == (run.id, run.steps[name].attempt)
        return found if is_current else None

    def rows(self) -> Iterator[Row]:
        """Give all steps in the graphs' order, each that is a run before those of that, and a mapped one before its
        elements.
        """
        above = [("", self.run, self.run.in_order())]
        while above:
            prefix, run, names = above[-1]
            for name in names:
                path = prefix + for_people(name)
                found = self._inside(path, run, name) if self.below else None
                yield Row(path, run, name, found)
                if found is not None:
                    above.append((f"{path}/", found, found.in_order()))
                    break
            else:
                above.pop()

    def counts(self) -> Counter[StepStatus]:
        """Count the steps by their states: of one that is a run the steps of that, of a mapped one its elements."""
        if not self.below:
            return self.run.counts()
        found: Counter[StepStatus] = Counter()
        for row in self.rows():
            if row.name not in row.run.expansions and (row.inside is None or not row.inside.steps):
                found[row.state.status] += 1
        return found


def has_children(run: Run) -> bool:
    """Say whether steps of a run are runs; not what they are now, but what its graph says."""
    return run.graph is not None and any(step.child is not None for step in run.graph.steps.values())


async def folded(bus: Bus, run_id: str) -> Run:
    """Give a run as the log shows it now."""
    fold = RunFold(bus, run_id)
    last = await bus.last_sequence()
    async for records in bus.replay([bus.subjects.events_of_run(run_id)], up_to=last):
        for record in records:
            await fold.fold(record)
    return fold.run


async def runs_below(bus: Bus, run: Run) -> dict[str, Run]:
    """Give the runs that the last attempts of a run's steps are, and those below them, as the log shows them now.

    Returns:
        By the path of the step, such as "inner" and "inner/fit[2]"; each after the one that it is a step of.
    """
    if run.graph is None or not has_children(run):
        return {}
    async with FamilyFold(bus, run.id, run.graph.pipeline) as fold:
        await fold.read()
        return {row.path: row.inside for row in fold.family.rows() if row.inside is not None}


async def run_of_path(bus: Bus, run: Run, path: str) -> tuple[Run, str]:
    """Find the run that a step is a step of, by a path such as "inner/train", and the step's name there.

    Raises:
        NotFound: if there is none, or not yet.
    """
    *above, name = path.split("/")
    for outer in above:
        find_step(run, outer)
        run = await folded(bus, child_of(run, from_people(outer)))
    return run, name


def child_of(run: Run, step: str) -> str:
    """Give the id of the run that the last attempt of a step is.

    Args:
        step: its name on the bus.

    Raises:
        NotFound: if it is none, or not yet.
    """
    state = run.steps.get(step)
    if step in run.expansions and run.spec(step).child is not None:
        count = run.expansions[step].count
        ends = dict.fromkeys(repr(for_people(element_of(step, i))) for i in (0, count - 1) if count)
        theirs = f"not a run itself: its elements are, {' to '.join(ends)}" if count else "and has no elements"
        raise NotFound(f"step {for_people(step)!r} of run {run.id} is mapped, {theirs}")
    if state is None or not state.attempt or run.spec(step).child is None:
        raise NotFound(f"run {run.id} has no step {for_people(step)!r} that is a run (yet)")
    return child_run_id(run.id, step, state.attempt)


# ---- as they go on


class FamilyFold:
    """Folds a run and those below it, from their first records on, as they come.

    Args:
        pipeline: whose run it is.
    """

    def __init__(self, bus: Bus, run_id: str, pipeline: str) -> None:
        self._bus = bus
        self._graphs: dict[str, Graph] = {}
        self._folds: dict[str, RunFold] = {}
        self._below: dict[str, Run] = {}
        #: By run, those that attempts of its steps are, of one that was followed by others maybe, too.
        self._inside: dict[str, list[str]] = {}
        #: What the paths of a run's steps begin with, by run; also of attempts that were followed by others.
        self.prefixes: dict[str, str] = {}
        self.feed = GrowingFeed(Events(bus))
        self.root = Member(run_id, pipeline)
        self._begin(self.root, "")
        self.family = Family(self._folds[run_id].run, self._below)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.feed.__aexit__()

    def _begin(self, member: Member, prefix: str) -> None:
        self._folds[member.run] = RunFold(self._bus, member.run, self._graphs)
        self.prefixes[member.run] = prefix
        self.feed.add(member)

    async def fold(self, records: Sequence[Record]) -> list[Member]:
        """Fold what the feed gave.

        Returns:
            The runs that are known by it, and are followed from now on.
        """
        found: list[Member] = []
        for record in records:
            fold = self._folds.get(record.subject.split(".")[4])
            if fold is None:
                # Of an attempt that was followed by another.
                continue
            await fold.fold(record)
            run = fold.run
            if run.submitted_at_s == record.at_s and run is not self.family.run:
                self._below.setdefault(self.prefixes[run.id].removesuffix("/"), run)
            while fold.begun:
                found.append(self._child(run, *fold.begun.pop(), record))
            if run.ended:
                self.feed.drop(run.id)
        return found

    def _child(self, run: Run, name: str, attempt: int, record: Record) -> Member:
        path = self.prefixes[run.id] + for_people(name)
        if attempt > 1:
            self._forget(child_run_id(run.id, name, attempt - 1))
        child = run.spec(name).child
        assert child is not None, "only of steps that are runs"
        member = Member(child_run_id(run.id, name, attempt), child.pipeline, record.sequence, record.at_s)
        self._begin(member, f"{path}/")
        self._inside.setdefault(run.id, []).append(member.run)
        return member

    def _forget(self, run_id: str) -> None:
        """Leave out the run that an attempt was, and those below it."""
        left = [run_id]
        while left:
            one = left.pop()
            left += self._inside.pop(one, ())
            if self._folds.pop(one, None) is not None:
                self.feed.drop(one)
                self._below.pop(self.prefixes[one].removesuffix("/"), None)

    async def read(self) -> None:
        """Fold what is in the log now."""
        async with aclosing(self.feed.rest(await self._bus.last_sequence())) as batches:
            async for records in batches:
                await self.fold(records)
                if self.family.run.ended:
                    # What others said since, in days maybe, is not looked through.
                    break
        await self.rest()
        if self.family.run.ended:
            # The end of a run comes after the end of the step that it is.
            await self._read_ends([member for member in self.feed.members if member != self.root])

    async def _read_ends(self, members: list[Member]) -> None:
        up_to = await self._bus.last_sequence()
        for i in range(0, len(members), READ_TOGETHER_MAX):
            some = members[i : i + READ_TOGETHER_MAX]
            subjects = [self._bus.subjects.events_of_run(member.run, member.pipeline) for member in some]
            async for records in self._bus.replay(subjects, after=self.feed.position, up_to=up_to):
                await self.fold(records)

    async def rest(self) -> list[Member]:
        """Fold what those below had said when the root said what was folded last."""
        found: list[Member] = []
        async for records in self.feed.rest():
            found += await self.fold(records)
        return found


async def watch_family(bus: Bus, run_id: str, pipeline: str) -> AsyncGenerator[Family, None]:
    """Give a run and those below it after each batch of their events, until it has ended.

    It is the same object each time, changed in place.
    """
    async with FamilyFold(bus, run_id, pipeline) as fold:
        async for records in fold.feed:
            await fold.fold(records)
            if fold.family.run.ended:
                break
            yield fold.family
        await fold.rest()
        yield fold.family
