"""What must be true of a run whose processes were killed, read offline from its log and from its bodies' own witness.

log ─▶ fold ─▶ accepted ends ─┐
                              ├─▶ problems, begins beyond one per attempt, bodies that the kill cut off
witness ─▶ bodies ────────────┘
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from evpipe import Client
from evpipe.bus.protocol import Record
from evpipe.client.fold import RunFold
from evpipe.core.events import Due, Event, Finished, StepFailed, StepRetried, StepStarted, StepSucceeded, Submitted
from evpipe.core.machine import Run
from evpipe.core.states import Reason, StepStatus
from tests.e2e.kill_graph import Node, Planned, value_of

PLANNED = f"{Planned.__module__}.{Planned.__qualname__}"
#: Whether bodies that a server's outage cut off from the log may begin again elsewhere. `guarantees.md` allows it; the
#: sweep asks for more.
REPEATS_AFTER_OUTAGE = False
#: The wall clock that the worker read before it called the body may be this much ahead of the body's own look.
CLOCK_SLACK_S = 0.001


class Victim(StrEnum):
    """What was killed."""

    CONTROLLER = "controller"
    WORKER = "worker"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, on both clocks."""

    victim: Victim
    pid: int
    #: CLOCK_MONOTONIC, nanoseconds.
    at_ns: int
    #: Seconds since 1970.
    at_s: float
    #: When it was started again, CLOCK_MONOTONIC.
    back_ns: int = 0


@dataclass(slots=True)
class Body:
    """One execution of a step's function, as its witness has it."""

    id: str
    run: str
    step: str
    attempt: int
    pid: int
    began_ns: int
    began_at_s: float
    #: None if it did not come to its end.
    ended_ns: int | None = None
    #: Whether it came to its end by the failure that was planned.
    failed: bool = False
    #: What the log has of it: "succeeded", "failed" or "".
    logged: str = ""
    #: Log time of that.
    logged_at_s: float = 0.0

    def __str__(self) -> str:
        ended = f"ended {(self.ended_ns - self.began_ns) / 1e9:.3f} s later" if self.ended_ns else "did not end"
        return f"[pid {self.pid} began {self.began_at_s:.3f} and {ended}, in the log: {self.logged or 'nothing'}]"


def read_witness(path: Path) -> dict[str, list[Body]]:
    """Give the bodies of each run, in the order of their beginning."""
    bodies: dict[str, Body] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        what, of, *fields = line.split()
        if what == "begin":
            run, step, attempt, began_ns, began_at_ns = fields
            pid = int(of.partition("-")[0])
            bodies[of] = Body(of, run, step, int(attempt), pid, int(began_ns), int(began_at_ns) / 1e9)
        else:
            bodies[of].ended_ns, bodies[of].failed = int(fields[0]), what == "fail"
    by_run: dict[str, list[Body]] = defaultdict(list)
    for body in sorted(bodies.values(), key=lambda body: body.began_ns):
        by_run[body.run].append(body)
    return by_run


@dataclass(slots=True)
class Verdict:
    """What was found of one run."""

    run: str
    #: Sentences; none if all is well.
    problems: list[str] = field(default_factory=list)
    #: Bodies that began.
    begins: int = 0
    #: Begins that one per step and planned failure does not explain.
    beyond: int = 0
    #: Bodies that the kill cut off, or whose result it did: so many begins beyond are no more than was promised.
    allowed: int = 0
    #: Log time at which the last step ended whose body was cut off; None if there was none.
    healed_at_s: float | None = None
    #: CLOCK_MONOTONIC of the first body that was launched after the kill.
    launched_ns: int | None = None


async def read_run(client: Client, run: str) -> list[Record]:
    """Read a run's log."""
    bus = client.bus
    found: list[Record] = []
    async for records in bus.replay([bus.subjects.events_of_run(run)], up_to=await bus.last_sequence()):
        found += records
    return found


class Facts:
    """The fold of a run's log, and what was accepted in it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        #: The events that the fold took as ends of steps, and their place in time.
        self.ends: defaultdict[str, list[Event]] = defaultdict(list)
        #: Ends of attempts that were followed by another.
        self.retried: list[StepFailed] = []
        self.counts: Counter[tuple[str, str, int]] = Counter()
        #: Every end of an attempt that a worker wrote, accepted or not.
        self.results: list[StepSucceeded | StepFailed] = []

    @classmethod
    async def of(cls, client: Client, run: str, records: Sequence[Record]) -> Facts:
        fold = RunFold(client.bus, run)
        facts = cls(fold.run)
        for record in records:
            before = {name: (state.ended, state.attempt) for name, state in fold.run.steps.items()}
            event = await fold.fold(record)
            if isinstance(event, (Submitted, Finished)):
                facts.counts[type(event).__name__, "", 0] += 1
            elif isinstance(event, (StepRetried, Due, StepStarted)):
                facts.counts[type(event).__name__, event.step or "", event.attempt] += 1
            elif isinstance(event, (StepSucceeded, StepFailed)):
                facts.results.append(event)
            for name, state in fold.run.steps.items():
                ended, attempt = before.get(name, (False, 0))
                if state.ended and not ended:
                    assert event is not None
                    facts.ends[name].append(event)
                if attempt and state.attempt > attempt:
                    assert isinstance(event, StepFailed)
                    facts.retried.append(event)
        return facts


async def check_run(
    client: Client, run: str, nodes: Sequence[Node], bodies: Sequence[Body], kill: Kill, records: Sequence[Record]
) -> Verdict:
    """Check one run that has ended."""
    facts = await Facts.of(client, run, records)
    found = Verdict(run, begins=len(bodies))
    _match(bodies, facts.results)
    _check_end(facts, nodes, found.problems)
    accepted = _check_steps(facts, nodes, bodies, found.problems)
    _check_order(nodes, bodies, accepted, found.problems)
    _check_begins(facts, nodes, bodies, kill, found)
    _time(facts, nodes, bodies, kill, found)
    return found


def _match(bodies: Sequence[Body], results: Sequence[StepSucceeded | StepFailed]) -> None:
    """Note at each body what the log has of it: a result says when its own body began."""
    of_attempt: defaultdict[tuple[str, int], list[Body]] = defaultdict(list)
    for body in bodies:
        of_attempt[body.step, body.attempt].append(body)
    for event in results:
        if not event.started_at_s:
            continue
        for body in of_attempt[event.step, event.attempt]:
            if not body.logged and body.began_at_s >= event.started_at_s - CLOCK_SLACK_S:
                body.logged = "succeeded" if isinstance(event, StepSucceeded) else "failed"
                body.logged_at_s = event.at_s
                break


def _check_end(facts: Facts, nodes: Sequence[Node], problems: list[str]) -> None:
    run = facts.run
    if run.status != "succeeded":
        problems.append(f"the run is {run.status}: {run.message}")
    elif run.value != value_of(nodes):
        problems.append(f"the value is {run.value}, not {value_of(nodes)}")
    if set(run.steps) != {node.name for node in nodes}:
        problems.append(f"the log has {len(run.steps)} steps, not {len(nodes)}")
    for (kind, step, attempt), count in facts.counts.items():
        # `started` is published again until it is answered.
        if count != 1 and kind != "StepStarted":
            problems.append(f"{count} times {kind} {step} {attempt or ''}")


def _check_steps(
    facts: Facts, nodes: Sequence[Node], bodies: Sequence[Body], problems: list[str]
) -> Mapping[str, Body]:
    """Check that each step has one accepted end, which is that of one of its bodies; give that body."""
    accepted: dict[str, Body] = {}
    for node in nodes:
        ends = facts.ends[node.name]
        if len(ends) != 1 or not isinstance(ends[0], StepSucceeded):
            problems.append(f"{node.name} has {len(ends)} accepted ends: {ends}")
            continue
        if facts.run.steps[node.name].status is not StepStatus.SUCCEEDED:
            problems.append(f"{node.name} is {facts.run.steps[node.name].status}")
        whose = [
            body
            for body in bodies
            if body.step == node.name and body.attempt == ends[0].attempt and body.logged == "succeeded"
        ]
        if not whose or whose[0].ended_ns is None or whose[0].failed:
            problems.append(f"{node.name} succeeded in the log, and its witness has {[str(body) for body in whose]}")
        else:
            accepted[node.name] = whose[0]
    return accepted


def _check_order(
    nodes: Sequence[Node], bodies: Sequence[Body], accepted: Mapping[str, Body], problems: list[str]
) -> None:
    parents = {node.name: node.parents for node in nodes}
    for body in bodies:
        for parent in parents[body.step]:
            of = accepted.get(parent)
            if of is not None and (of.ended_ns is None or of.ended_ns >= body.began_ns):
                problems.append(f"{body.step} began at {body.began_ns}, its parent {parent} ended at {of.ended_ns}")


def _check_begins(facts: Facts, nodes: Sequence[Node], bodies: Sequence[Body], kill: Kill, found: Verdict) -> None:
    """Check that a body began twice, or an attempt was lost, only where the kill cut one off."""
    cut_off = [body for body in bodies if _is_cut_off(body, kill)]
    found.allowed = len(cut_off)
    of_attempt: defaultdict[tuple[str, int], list[Body]] = defaultdict(list)
    for body in bodies:
        of_attempt[body.step, body.attempt].append(body)
    planned = 0
    fails = {node.name: node.fails for node in nodes}
    for event in facts.retried:
        if event.reason is Reason.LOST:
            if not any(body in cut_off for body in of_attempt[event.step, event.attempt]):
                found.problems.append(f"attempt {event.attempt} of {event.step} was lost, and its worker was not")
        elif fails[event.step] and PLANNED in event.failure.types:
            planned += 1
        else:
            found.problems.append(f"attempt {event.attempt} of {event.step} failed: {event.failure.message}")
    for name, state in facts.run.steps.items():
        for attempt in range(1, state.attempt + 1):
            if not of_attempt[name, attempt]:
                found.problems.append(f"attempt {attempt} of {name} is in the log, and no body of it began")
    for (name, attempt), began in of_attempt.items():
        if attempt > facts.run.steps[name].attempt:
            found.problems.append(f"attempt {attempt} of {name} began, and the log does not have it")
        for before, again in itertools.pairwise(began):
            if before not in cut_off:
                found.problems.append(
                    f"attempt {attempt} of {name} began twice, and the first was not cut off: {before}, {again}"
                )
    found.beyond = len(bodies) - len(nodes) - planned
    if found.beyond > found.allowed:
        found.problems.append(f"{found.beyond} begins beyond one per attempt, and {found.allowed} were cut off")


def _is_cut_off(body: Body, kill: Kill) -> bool:
    """Whether the kill took this body, or its result before the log had it, and it may therefore begin again."""
    match kill.victim:
        case Victim.CONTROLLER:
            return False
        case Victim.WORKER:
            return body.pid == kill.pid and not body.logged
        case Victim.SERVER:
            ran = body.began_ns < kill.back_ns and (not body.logged or body.logged_at_s > kill.at_s)
            return REPEATS_AFTER_OUTAGE and ran


def _time(facts: Facts, nodes: Sequence[Node], bodies: Sequence[Body], kill: Kill, found: Verdict) -> None:
    healed = [facts.run.steps[body.step].ended_at_s for body in bodies if _is_cut_off(body, kill)]
    found.healed_at_s = max((at_s for at_s in healed if at_s is not None), default=None)
    parents = {node.name: node.parents for node in nodes}
    for body in bodies:
        above = [facts.run.steps[parent].ended_at_s or 0.0 for parent in parents[body.step]]
        if body.began_ns > kill.at_ns and max(above, default=0.0) > kill.at_s:
            found.launched_ns = body.began_ns
            break
