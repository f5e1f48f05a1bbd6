"""`Run.step` takes any event in any state: it never raises, and what does not count changes nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.bindings import Known, OutputRef
from evpipe.core.commands import Await, Decide, Launch, Quarantine, WakeAt
from evpipe.core.conditions import Comparison
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Due,
    Event,
    Failure,
    Finished,
    StepApproved,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.states import Reason, RunStatus
from evpipe.core.waits import Wait, WaitKind
from tests.core.budget import examples
from tests.core.making import RUN_ID, snapshot, without_clock
from tests.core.plans import KEY, graphs

STEPS = st.sampled_from([*(f"s{i}" for i in range(6)), "nobody", ""])
ATTEMPTS = st.integers(-1, 4) | st.integers()
TIMES = st.floats(0, 100) | st.floats()
#: More digits than Python writes.
HUGE = 10**5_000
VALUES = st.sampled_from([None, {KEY: 1}, [1], "text", float("nan"), HUGE, {HUGE: 1}])
REASONS = st.sampled_from(Reason)
FAILURES = st.builds(Failure, message=st.text(max_size=3), types=st.sampled_from([(), ("m.Error",)]))

STRANGE_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(StepStarted, at_s=TIMES, step=STEPS, attempt=ATTEMPTS),
    st.builds(StepSucceeded, at_s=TIMES, step=STEPS, attempt=ATTEMPTS, value=VALUES, started_at_s=TIMES),
    st.builds(StepFailed, at_s=TIMES, step=STEPS, attempt=ATTEMPTS, reason=REASONS, failure=FAILURES),
    st.builds(StepApproved, at_s=TIMES, step=STEPS, answer=VALUES, by=st.sampled_from(["", "ann"])),
    st.builds(StepReceived, at_s=TIMES, step=STEPS, value=VALUES),
    st.builds(StepRetried, at_s=TIMES, step=STEPS, attempt=ATTEMPTS, due_at_s=TIMES),
    st.builds(StepSkipped, at_s=TIMES, step=STEPS, attempt=st.just(0) | ATTEMPTS, reason=REASONS),
    st.builds(StepCancelled, at_s=TIMES, step=STEPS, attempt=ATTEMPTS, reason=REASONS),
    st.builds(Due, at_s=TIMES, step=STEPS | st.none(), attempt=ATTEMPTS),
    st.builds(CancelRequested, at_s=TIMES, cause=st.sampled_from(CancelCause)),
    st.builds(Finished, at_s=TIMES, status=st.sampled_from(RunStatus), value=VALUES),
    st.builds(Submitted, at_s=TIMES, graph=st.none() | graphs(4), parameters=st.just({})),
)


@st.composite
def answers(draw: st.DrawFn, run: Run) -> Event | None:
    """An event that some outstanding command of the run leads to, so that deep states are reached."""
    commands = run.outstanding()
    if not commands:
        return None
    match draw(st.sampled_from(commands)):
        case Decide(event=event):
            return replace(event, at_s=run.at_s)
        case WakeAt(at_s=at_s, step=step, attempt=attempt):
            return Due(at_s=at_s, step=step, attempt=attempt)
        case Await(step=step):
            return draw(
                st.one_of(
                    st.builds(StepApproved, step=st.just(step), answer=VALUES),
                    st.builds(StepReceived, step=st.just(step), value=VALUES),
                )
            )
        case Launch(step=step, attempt=attempt):
            return draw(
                st.one_of(
                    st.builds(StepStarted, step=st.just(step), attempt=st.just(attempt)),
                    st.builds(StepSucceeded, step=st.just(step), attempt=st.just(attempt), value=VALUES),
                    st.builds(StepSkipped, step=st.just(step), attempt=st.just(attempt), reason=REASONS),
                    st.builds(
                        StepFailed, step=st.just(step), attempt=st.just(attempt), reason=REASONS, failure=FAILURES
                    ),
                )
            )
        case _:
            return None


@given(graphs(6), st.booleans(), st.data())
@examples(250)
def test_any_event_in_any_state_is_folded_without_raising(
    graph: Graph, strange_first: bool, data: st.DataObject
) -> None:
    run = Run(RUN_ID)
    folded: list[Event] = []
    if not strange_first:
        folded.append(Submitted(graph=graph, parameters={}))
        run.step(folded[0])
    for _ in range(data.draw(st.integers(1, 16), label="events")):
        likely = data.draw(answers(run), label="answer") if data.draw(st.booleans(), label="is an answer") else None
        event = likely or data.draw(STRANGE_EVENTS, label="strange")

        before = snapshot(run)
        commands = run.step(event)
        after = snapshot(run)
        if any(isinstance(command, Quarantine) for command in commands):
            assert len(commands) == 1
            assert after == before, "a quarantined event changed something"
        elif without_clock(after) != without_clock(before):
            folded.append(event)

        again = run.step(event)
        assert all(isinstance(command, Quarantine) for command in again), "a repeated event gave commands"
        assert snapshot(run) == after, "a repeated event changed something"

        if folded:
            old = data.draw(st.sampled_from(folded), label="counted before")
            assert run.step(old) == ()
            assert without_clock(snapshot(run)) == without_clock(after), "an event of the past changed something"

        outstanding = run.outstanding()
        assert run.outstanding() == outstanding
        assert not any(isinstance(command, Quarantine) for command in outstanding)
        assert without_clock(snapshot(run)) == without_clock(after), "outstanding() changed something"
        ended = [name for name, state in run.steps.items() if state.ended]
        assert run.open_count == len(run.steps) - len(ended)
        if run.ended:
            assert outstanding == ()


def test_a_number_of_too_many_digits_is_said_to_be_one() -> None:
    """It is a value like others; where a message would show it, that is not what stops the run."""
    output = OutputRef("s0")
    waits = Step(name="waits", wait=Wait(kind=WaitKind.SLEEP), arguments={"seconds": output})
    asks = Step(name="asks", when=Comparison(">", output, Known(HUGE)))
    part = Step(name="part", arguments={"x": OutputRef("s0", ("key",))})
    run = Run(RUN_ID)
    run.step(Submitted(at_s=1.0, graph=Graph.of([Step(name="s0"), waits, asks, part], pipeline="demo"), parameters={}))
    decided = run.step(StepSucceeded(at_s=2.0, step="s0", attempt=1, value=HUGE))
    said = {getattr(c.event, "step", ""): c.event for c in decided if isinstance(c, Decide)}
    assert "too many digits" in str(said["waits"])
    assert "too many digits" in str(said["asks"])
    assert "has no 'key'" in str(said["part"])
