"""Random graphs in a random world end as a plain interpreter says, whatever is lost, repeated or reordered."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.commands import Await, CancelRun, Decide, Launch, SubmitRun, WakeAt
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Due,
    Event,
    Finished,
    StepApproved,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
)
from evpipe.core.exits import RUN
from evpipe.core.machine import Run
from evpipe.core.states import Reason, RunIf, RunStatus, StepStatus
from tests.core.budget import examples
from tests.core.making import RUN_ID, snapshot
from tests.core.oracle import (
    End,
    Ends,
    filled,
    has,
    interpret,
    needed_by,
    output_of,
    reason_to_skip,
    refs_in,
    run_ends_as,
)
from tests.core.plans import Plan, plans
from tests.core.world import World

SEEDS = st.integers(0, 2**32)


def ends_of(run: Run) -> Ends:
    ended = {name: state for name, state in run.steps.items() if state.ended}
    ends = Ends({name: End(state.status, state.reason, state.attempt) for name, state in ended.items()})
    ends.run = RunStatus(run.outputs[RUN]["status"]) if RUN in run.outputs else None
    return ends


@given(plans(order_free=True), SEEDS)
@examples(250)
def test_every_step_ends_as_the_plain_interpreter_says(plan: Plan, seed: int) -> None:
    world = World(plan, seed)
    world.play()
    expected = interpret(plan)
    assert ends_of(world.run) == expected
    assert world.run.status is run_ends_as(plan.graph, expected)
    if world.run.status is RunStatus.SUCCEEDED:
        assert world.run.value == filled(plan.graph.output, expected)
    ok = {name for name, end in expected.items() if end.status is StepStatus.SUCCEEDED}
    assert {name: value for name, value in world.run.outputs.items() if name != RUN} == {
        name: output_of(name) for name in ok
    }
    assert ends_of(world.run).run is expected.run


@given(plans(order_free=True), SEEDS)
@examples(60)
def test_each_attempt_gets_the_arguments_that_its_parents_made(plan: Plan, seed: int) -> None:
    world = World(plan, seed)
    world.play()
    ends = interpret(plan)
    for _, command in world.emitted:
        if isinstance(command, (Launch, SubmitRun)):
            assert command.arguments == filled(dict(plan.graph.steps[command.step].arguments), ends)


@given(plans(), SEEDS, st.booleans())
@examples(250)
def test_whatever_ends_a_run_early_its_end_follows_from_its_log(plan: Plan, seed: int, cancels: bool) -> None:
    world = World(plan, seed, cancels=cancels)
    world.play()
    run, graph = world.run, plan.graph
    ends = ends_of(run)
    assert set(ends) == set(graph.steps), "the run finished before its steps"
    assert sum(isinstance(event, Finished) for event in world.log) == 1

    handlers = {name for name, step in graph.steps.items() if step.on_exit}
    told = {run.outputs[RUN]["status"]} if handlers else set()
    counted = any(ends[name].status is StepStatus.FAILED and name in run.failed for name in handlers)
    assert told <= {run.status.value} or (told == {"succeeded"} and counted), "handlers were told something else"
    if run.cancel is None:
        assert run.status is run_ends_as(graph, ends)
        assert all(end.status is not StepStatus.CANCELLED for end in ends.values())
    else:
        by_request = run.cancel.cause is CancelCause.REQUEST
        assert run.status is (RunStatus.CANCELLED if by_request else RunStatus.FAILED)
        reason = {
            CancelCause.REQUEST: Reason.REQUEST,
            CancelCause.DEADLINE: Reason.DEADLINE,
            CancelCause.FAIL_FAST: Reason.UPSTREAM,
        }
        assert run.reason is reason[run.cancel.cause]

    for name, end in ends.items():
        above = {parent: ends[parent] for parent in needed_by(graph.steps[name])}
        blocked = reason_to_skip(graph, graph.steps[name], ends) if set(above) <= set(ends) else None
        match end.status:
            case StepStatus.SUCCEEDED:
                assert plan.outcome(name, end.attempts) == "ok"
                assert blocked is None
            case StepStatus.FAILED:
                bindable = all(has(ref, ends) for ref in refs_in(dict(graph.steps[name].arguments)))
                assert not bindable or plan.outcome(name, end.attempts) != "ok"
                assert blocked is None
            case StepStatus.SKIPPED:
                # Its own body said so, or nobody began it.
                assert blocked is (None if end.attempts else end.reason)
                assert not end.attempts or plan.outcome(name, end.attempts) == "skip"
            case _:
                assert end.status is StepStatus.CANCELLED
                assert run.cancel is not None


@given(plans(), SEEDS, st.booleans())
@examples(120)
def test_at_every_prefix_of_the_log_the_rules_hold(plan: Plan, seed: int, cancels: bool) -> None:
    """Nothing is launched before its parents or after a cancel, an end is final, the counters are right."""
    world = World(plan, seed, cancels=cancels)
    world.play()
    graph, run = plan.graph, Run(RUN_ID)
    needed = {name: needed_by(step) for name, step in graph.steps.items()}
    final: dict[str, tuple[End, float | None]] = {}
    for event in world.log:
        commands = run.step(event)
        released = {name for name, state in run.steps.items() if state.ended}
        for command in commands:
            if isinstance(command, (Launch, SubmitRun)):
                assert isinstance(command, SubmitRun) is (graph.steps[command.step].child is not None)
                if graph.steps[command.step].on_exit:
                    assert released >= {name for name, step in graph.steps.items() if not step.on_exit}
                assert needed[command.step] <= released
                if graph.steps[command.step].run_if is not RunIf.ALWAYS:
                    assert run.cancel is None
                    assert not (graph.fail_fast and run.failed and command.attempt == 1)
            elif isinstance(command, Decide) and run.cancel is not None:
                of_finaliser = graph.steps.get(getattr(command.event, "step", ""))
                goes_on = of_finaliser is not None and of_finaliser.run_if is RunIf.ALWAYS
                assert goes_on or isinstance(command.event, (StepCancelled, Finished))
        for command in commands:
            if isinstance(command, (Launch, SubmitRun, WakeAt)) and command.step is not None and command.attempt > 1:
                within_s = graph.steps[command.step].retries.within_s
                began_s = first_began(world.log, command.step, run.steps[command.step].queued_at_s or 0.0)
                due_s = command.at_s if isinstance(command, WakeAt) else run.at_s
                # One that waited was decided on before.
                assert within_s is None or due_s <= began_s + within_s or isinstance(event, Due), command
        waiting_on = snapshot(run)["waiting_on"]
        assert waiting_on == {name: len(above - released) for name, above in needed.items()}
        assert run.open_count == sum(not state.ended for state in run.steps.values())
        for name, state in run.steps.items():
            now = (End(state.status, state.reason, state.attempt), state.ended_at_s)
            assert final.get(name, now) == now, "an end was not final"
            if state.ended:
                final[name] = now


@given(plans(), SEEDS, st.booleans())
@examples(120)
def test_a_replay_gives_the_same_state_and_everything_that_is_undone(plan: Plan, seed: int, cancels: bool) -> None:
    """A controller that folds a prefix of the log, all commands dropped, has all that is left to do."""
    world = World(plan, seed, cancels=cancels)
    world.play()
    replayed = Run(RUN_ID)
    for length, event in enumerate(world.log, 1):
        replayed.step(event)
        if replayed.ended:
            break
        outstanding = replayed.outstanding()
        for at, command in world.emitted:
            if at <= length and isinstance(command, (Launch, SubmitRun, CancelRun, Decide, WakeAt, Await)):
                done = settled(command, world.log[:length], replayed.open_count <= len(plan.graph.handlers))
                assert done or command in outstanding, f"{command} was forgotten after {event}"
    assert replayed.outstanding() == ()
    for event in world.log:
        replayed.step(event)
    assert snapshot(replayed) == snapshot(world.run)


def settled(
    command: Launch | SubmitRun | CancelRun | Decide | WakeAt | Await, log: list[Event], everything_ended: bool
) -> bool:
    """Say from the log whether a command has been carried out, or has nothing left to do."""
    cancelled = any(isinstance(e, CancelRequested) for e in log)
    match command:
        case CancelRun(step=step, attempt=attempt):
            return ended_in(log, step, attempt)
        case Launch(step=step, attempt=attempt) | SubmitRun(step=step, attempt=attempt):
            return cancelled or ended_in(log, step, attempt)
        case WakeAt(step=None):
            return cancelled or everything_ended
        case WakeAt(step=step, attempt=attempt):
            return cancelled or any(isinstance(e, Due) and (e.step, e.attempt) == (step, attempt) for e in log)
        case Await(step=step):
            return cancelled or waited_in(log, step)
        case Decide(event=decided):
            if any(type(e) is type(decided) and replace(e, at_s=decided.at_s) == decided for e in log):
                return True
            match decided:
                case CancelRequested():
                    return cancelled or everything_ended
                case StepCancelled(step=step, attempt=attempt):
                    return ended_in(log, step, attempt)
                case StepFailed():
                    return cancelled
                case StepStarted(step=step):
                    # It only tells of a wait that has begun: of one that has ended there is nothing to tell.
                    return cancelled or waited_in(log, step)
                case StepRetried(step=step, attempt=attempt):
                    # It only tells of the next attempt: once that has ended there is nothing to tell.
                    return cancelled or ended_in(log, step, attempt)
                case _:
                    return False


def first_began(log: list[Event], step: str, ready_s: float) -> float:
    """When the first attempt of a step began, by its log: when that was said, if that was before it ended."""
    for event in log:
        if getattr(event, "step", None) == step and getattr(event, "attempt", 0) == 1:
            if isinstance(event, StepStarted):
                return event.at_s
            if isinstance(event, StepFailed):
                break
    return ready_s


def waited_in(log: list[Event], step: str) -> bool:
    return any(isinstance(e, (StepApproved, StepReceived, Due)) and e.step == step for e in log)


def ended_in(log: list[Event], step: str, attempt: int) -> bool:
    ends = (StepSucceeded, StepFailed, StepSkipped, StepCancelled)
    return any(isinstance(e, ends) and e.step == step and e.attempt == attempt for e in log)
