"""A world around one run: a log, workers and controllers that lose, repeat, delay and reorder what they can.

`World.play` goes until the run has finished. Each turn takes any one thing that is under way: a launch
reaches a worker, an event of a worker or a decision reaches the log, a wait is over. What the protocol
promises is kept (a launch's subject is taken once, a decision's too, a launch that was not sent is not sent
after the cancel); nothing else is. One seed is one world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from evpipe.core.commands import Await, CancelRun, Command, Decide, Launch, Quarantine, StopAttempt, SubmitRun, WakeAt
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Decision,
    Due,
    Event,
    Failure,
    Finished,
    StepApproved,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepSkipped,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.machine import Run
from evpipe.core.states import Reason, RunIf
from evpipe.core.waits import WaitKind
from tests.core.making import RUN_ID, snapshot
from tests.core.oracle import output_of
from tests.core.plans import ERROR_TYPES, Outcome, Plan

_REASONS: dict[Outcome, Reason] = {
    "error": Reason.ERROR,
    "odd": Reason.ERROR,
    "timeout": Reason.TIMEOUT,
    "lost": Reason.LOST,
    "output": Reason.OUTPUT,
}

#: The subject that a decision is published to, with the attempt where the protocol has one message per attempt.
Subject: TypeAlias = tuple[str, type[Decision], int]


@dataclass(frozen=True)
class Published:
    """An event of a worker or a client, on its way to the log."""

    event: Event


UnderWay: TypeAlias = Launch | SubmitRun | CancelRun | Decide | WakeAt | Await | Published


def subject_of(event: Decision) -> Subject:
    attempt = 0 if isinstance(event, (CancelRequested, Finished)) else getattr(event, "attempt", 0)
    return (getattr(event, "step", None) or "", type(event), attempt)


@dataclass
class World:
    plan: Plan
    seed: int
    #: Whether a client asks for the end of the run at some moment.
    cancels: bool = False
    log: list[Event] = field(default_factory=list)
    #: Every command of the live run, in order, with the length of the log that it came from.
    emitted: list[tuple[int, Command]] = field(default_factory=list)
    run: Run = field(default_factory=lambda: Run(RUN_ID))
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.under_way: list[UnderWay] = []
        self.sent: set[tuple[str, int]] = set()
        self.taken: set[Subject] = set()
        self.takeovers = 0
        #: How much goes wrong, from nothing to a lot.
        self.trouble = self.random.choice([0.0, 0.1, 0.4])

    def play(self) -> None:
        self.append(Submitted(graph=self.plan.graph, parameters={}))
        if self.cancels:
            self.under_way.append(Published(CancelRequested(message="enough")))
        while not self.run.ended:
            if not self.under_way or (self.takeovers < 5 and self.chance(self.trouble / 5)):
                self.take_over()
            turn = self.under_way.pop(self.random.randrange(len(self.under_way)))
            self.carry_out(turn)
            if self.chance(self.trouble):
                self.under_way.append(turn)  # a repeated publish, a late copy
        for late in self.under_way:
            if isinstance(late, Published):
                self.append(late.event)

    def carry_out(self, turn: UnderWay) -> None:
        match turn:
            case CancelRun():
                self.cancel_child(turn)
            case Launch() | SubmitRun():
                # A launch's subject is taken once; after the cancel nothing is sent that was not, but finalisers.
                final = self.run.spec(turn.step).run_if is RunIf.ALWAYS
                if (self.run.cancel is None or final) and (turn.step, turn.attempt) not in self.sent:
                    self.sent.add((turn.step, turn.attempt))
                    self.under_way += [Published(event) for event in self.work(turn)]
            case Decide(event=event):
                if subject_of(event) not in self.taken:
                    self.taken.add(subject_of(event))
                    self.append(event)
            case WakeAt():
                self.now_s = max(self.now_s, turn.at_s)
                self.append(Due(step=turn.step, attempt=turn.attempt))
            case Await(step=step):
                if self.plan.graph.steps[step].timeout_s is None:
                    self.under_way.append(self.answer(step))
            case Published(event=event):
                self.append(event)

    def answer(self, step: str) -> UnderWay:
        """What comes of a wait: a person's answer, or the event that the controller has seen."""
        wait = self.plan.graph.steps[step].wait
        if wait is not None and wait.kind is WaitKind.APPROVAL:
            return Published(StepApproved(step=step, answer=output_of(step), by="ann"))
        return Decide(StepReceived(step=step, value=output_of(step)))

    def cancel_child(self, turn: CancelRun) -> None:
        """The run that a step is ends for the cancel, unless it has ended before it was asked to."""
        key = (turn.step, turn.attempt)

        def is_its_end(event: Event) -> bool:
            ends = (StepSucceeded, StepFailed, StepCancelled)
            return isinstance(event, ends) and (event.step, event.attempt) == key

        said = [found.event for found in self.under_way if isinstance(found, Published)]
        if any(is_its_end(event) for event in (*said, *self.log)):
            return
        assert self.run.cancel is not None
        self.sent.add(key)
        reason = {CancelCause.REQUEST: Reason.REQUEST, CancelCause.DEADLINE: Reason.DEADLINE}.get(
            self.run.cancel.cause, Reason.UPSTREAM
        )
        self.under_way.append(Published(StepCancelled(step=turn.step, attempt=turn.attempt, reason=reason)))

    def work(self, launch: Launch | SubmitRun) -> list[Event]:
        """The events of one attempt: `started`, maybe, its end, and of a lost one maybe a result that comes late."""
        outcome = self.plan.outcome(launch.step, launch.attempt)
        ok = StepSucceeded(step=launch.step, attempt=launch.attempt, value=output_of(launch.step))
        starts = isinstance(launch, Launch) and self.chance(0.5)
        events: list[Event] = [StepStarted(step=launch.step, attempt=launch.attempt)] if starts else []
        if outcome == "ok":
            return [*events, ok]
        if outcome == "skip":
            reason = Reason.CONDITION
            return [*events, StepSkipped(step=launch.step, attempt=launch.attempt, reason=reason, message="not today")]
        failure = Failure(message=f"{outcome} of {launch.step}", types=ERROR_TYPES.get(outcome, ()))
        bad = StepFailed(step=launch.step, attempt=launch.attempt, reason=_REASONS[outcome], failure=failure)
        return [*events, bad]

    def append(self, event: Event) -> None:
        self.now_s += self.random.choice([0.0, 1.0])
        event = replace(event, at_s=self.now_s)
        self.log.append(event)
        if isinstance(event, StepFailed) and event.reason is Reason.LOST:
            # The worker was thought dead: from now on its result may come, and does not count.
            zombie = StepSucceeded(step=event.step, attempt=event.attempt, value="of a lost attempt")
            self.under_way += [Published(zombie)] if self.chance(0.5) else []
        commands = self.run.step(event)
        assert not any(isinstance(c, Quarantine) for c in commands), f"{event} was quarantined: {commands}"
        self.emit(commands)

    def emit(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            self.emitted.append((len(self.log), command))
            lost = self.chance(self.trouble)  # the controller is gone before it has carried it out
            if not lost and not isinstance(command, (StopAttempt, Quarantine)):
                self.under_way.append(command)

    def take_over(self) -> None:
        """Another controller replays the log and does everything that is outstanding."""
        self.takeovers += 1
        successor = Run(RUN_ID)
        for event in self.log:
            successor.step(event)
        assert snapshot(successor) == snapshot(self.run)
        self.run = successor
        outstanding = [c for c in successor.outstanding() if not isinstance(c, (StopAttempt, Quarantine))]
        # A launch that was sent is not in the way: its worker's events are either under way or lost with it.
        self.under_way += outstanding
        assert self.under_way, "the run has not finished, and nobody has anything to do"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability
