"""How a launch leaves: from the command to the queue.

Launch ─▶ its list is opened ─▶ a look into the cache ─▶ its turn ─▶ its limits ─▶ the bus
`lists`               `look_ups`               `dispatch`   `limits`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from evpipe.bus.clock import loop_clock
from evpipe.bus.protocol import Bus, Outcome
from evpipe.client.artifact_store import store_all
from evpipe.controller.case import Case
from evpipe.controller.dispatch import Dispatch, Held, Lane
from evpipe.controller.limits import Limits
from evpipe.controller.lists import ListOpener
from evpipe.controller.look_ups import LookUps, Miss
from evpipe.controller.queue_watch import QueueWatch
from evpipe.core.commands import Launch, SubmitRun
from evpipe.core.events import Failure, StepCached, StepFailed
from evpipe.core.graph import Step
from evpipe.core.names import SEPARATOR, for_people
from evpipe.core.run_state import StepState
from evpipe.core.states import Reason, StepStatus
from evpipe.errors import EvpipeError, LimitExceeded
from evpipe.wire.holds import HOLDERS_SHOWN_MAX, Hold, HoldKind
from evpipe.wire.messages import LaunchOrder, encode_launch, order_of
from evpipe.wire.spool import spooled

#: Arguments over this size are encoded in a thread.
LARGE_ARGUMENTS_BYTES: Final = 256 * 1024


class Launches:
    """The launches of one controller.

    Args:
        cases: the runs that it leads, by id.
        submit: submits the run that a step is; its argument may be an element of a list, too.
        decide: puts a decision into the log.
        now_s: gives the bus's clock, as of the newest record.
        clock_s: gives it between two records, too.
    """

    def __init__(
        self,
        bus: Bus,
        task_group: TaskGroup,
        cases: dict[str, Case],
        *,
        submit: Callable[[Case, SubmitRun], None],
        decide: Callable[[Case, StepCached | StepFailed], None],
        now_s: Callable[[], float],
        clock_s: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._task_group = task_group
        self._cases = cases
        self._submit = submit
        self._decide = decide
        self._dispatch = Dispatch(self._turn, loop_clock())
        self._lists = ListOpener(bus, task_group, self._opened)
        self._watch = QueueWatch(bus, self._dispatch)
        self._limits = Limits(bus, task_group, cases, self._dispatch, self._depart_held, self._wanted, clock_s)
        self._look_ups = LookUps(bus, task_group, cases, self._send, decide, now_s)
        self._closed = False

    async def run(self) -> None:
        """Look after the queues and the limits, once all runs are here; until cancelled."""
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._watch.run)
            task_group.start_soon(self._limits.run)

    def close(self) -> None:
        """Let none leave any more."""
        self._closed = True
        self._dispatch.close()
        self._limits.close()
        for case in self._cases.values():
            case.drop_unanswered()

    # ---- on their way

    def begin(self, case: Case, command: Launch | SubmitRun) -> None:
        """Carry the command out, which may take a while."""
        if SEPARATOR in command.step:
            opened = self._lists.opened(case, command)
            if opened is None:
                return
            command = opened
        if isinstance(command, SubmitRun):
            self._submit(case, command)
        elif case.run.spec(command.step).cache is not None and not case.no_cache:
            self._look_ups.begin(case, command)
        else:
            self._send(case, command)

    def _opened(self, case: Case, command: Launch | SubmitRun) -> None:
        if self._cases.get(case.run.id) is case and not case.broken and not self._closed:
            self.begin(case, command)

    def _send(self, case: Case, command: Launch, miss: Miss | None = None) -> None:
        """Send a launch, or hold it back until there is room for it."""
        step = case.run.spec(command.step)
        if command.step in case.flying:
            # It has left before: a command that is repeated.
            self._publish(case, command, step, miss)
            return
        lane = self._dispatch.lane(case.queue or step.queue)
        if not lane.held and lane.flying < lane.window and not step.limits:
            self._depart(case, command, step, miss, lane)
        elif case.run.steps[command.step].status is StepStatus.RUNNING:
            # Launched by somebody who led before.
            self._depart(case, command, step, miss, lane)
        else:
            priority = case.priority if step.priority is None else step.priority
            depth = case.depth_of(step)
            if (case.run.id, command.step) in self._limits.holding:
                # Its attempt was lost: what it holds does not wait for a turn.
                self._limits.take(self._dispatch.park(case, command, step, miss, lane, priority, depth))
            else:
                self._dispatch.hold(case, command, step, miss, lane, priority, depth)

    def _turn(self, held: Held) -> None:
        """Do what is to be done with a launch whose turn has come."""
        if not self._wanted(held):
            self._dispatch.forget(held)
        elif held.step.limits:
            self._limits.take(held)
        else:
            self._dispatch.forget(held)
            self._depart_held(held)

    def _wanted(self, held: Held) -> bool:
        """Say whether a launch that was held back is still to leave."""
        case = held.case
        return (
            self._cases.get(case.run.id) is case
            and not case.broken
            and case.run.may_launch(held.command.step, held.command.attempt)
        )

    def _depart_held(self, held: Held) -> None:
        self._depart(held.case, held.command, held.step, held.miss, held.lane)

    def _depart(self, case: Case, command: Launch, step: Step, miss: Miss | None, lane: Lane) -> None:
        case.flying[command.step] = lane
        lane.flying += 1
        self._publish(case, command, step, miss)

    def _publish(self, case: Case, command: Launch, step: Step, miss: Miss | None) -> None:
        if miss is None and case.encoder is not None and not case.sizes:
            try:
                payload = case.encoder.encode(step, command.arguments)
            except EvpipeError:
                # What is wrong with it, or how else it travels, is found out below.
                pass
            else:
                self._hand_over(case, command, step, payload)
                return
        order = order_of(
            step,
            command.arguments,
            pipeline=case.pipeline,
            source=case.source,
            fingerprint=miss.fingerprint if miss is not None else "",
            components=miss.components if miss is not None else {},
            expired=miss.expired if miss is not None else None,
        )
        what = f"step {for_people(command.step)!r}"
        if case.size_of_inputs(command.step) > LARGE_ARGUMENTS_BYTES:
            # Encoding them takes a while, and the lease has to be renewed.
            self._task_group.start_soon(self._publish_large, case, command, step, order, what)
            return
        try:
            self._hand_over(case, command, step, encode_launch(order, what))
        except LimitExceeded:
            self._task_group.start_soon(self._publish_large, case, command, step, order, what)
        except EvpipeError as error:
            self._fail(case, command, error)

    async def _publish_large(self, case: Case, command: Launch, step: Step, order: LaunchOrder, what: str) -> None:
        """Launch with the arguments as one artifact."""
        try:
            with spooled() as spool:
                payload = await anyio.to_thread.run_sync(encode_launch, order, what, spool)
                await store_all(self._bus, spool.files)
            if self._cases.get(case.run.id) is case and case.run.may_launch(command.step, command.attempt):
                self._hand_over(case, command, step, payload)
        except (EvpipeError, OSError) as error:
            self._fail(case, command, error)

    def _fail(self, case: Case, command: Launch, error: EvpipeError | OSError) -> None:
        failure = Failure(message=f"the arguments of step {for_people(command.step)!r} cannot be stored: {error}")
        if isinstance(error, EvpipeError):
            failure = Failure(message=str(error))
        self._decide(
            case, StepFailed(step=command.step, attempt=command.attempt, reason=Reason.OUTPUT, failure=failure)
        )

    def _hand_over(self, case: Case, command: Launch, step: Step, payload: bytes) -> None:
        subject = self._bus.subjects.launch(case.queue or step.queue, case.run.id, command.step, command.attempt)
        key = (command.step, command.attempt)

        def sent(_: Outcome) -> None:
            # Stored, or refused because it is there already: the same.
            case.launches.pop(key, None)

        case.launches[key] = self._bus.launch(subject, payload, done=sent)

    # ---- what becomes of them

    def seize(self, case: Case) -> None:
        """Take note of the limits that the steps of a run hold that was taken over."""
        for step, state in case.run.steps.items():
            # A mapped step runs with its elements, and holds nothing itself.
            runs = state.status is StepStatus.RUNNING and step not in case.run.expansions
            if runs and case.run.spec(step).limits:
                self._limits.seize(case, step, state.attempt)

    def moved(self, case: Case, step: str, state: StepState, *, again: bool) -> Lane | None:
        """Take note of what an event has done to a step.

        Args:
            again: its attempt has ended, and another may follow.

        Returns:
            The lane in which there is room by it, to be served when all is done that the event called for.
        """
        lane: Lane | None = None
        if state.ended:
            if state.status is StepStatus.FAILED or state.status is StepStatus.SKIPPED:
                self._look_ups.step_failed(case.run.id, step)
            self._look_ups.step_ended(case.run.id, step)
            lane = case.flying.pop(step, None)
        elif again:
            lane = case.flying.pop(step, None)
        if lane is not None:
            self._dispatch.ended(lane)
        if self._limits.holding and (case.run.id, step) in self._limits.holding:
            self._limits.moved(case, step, state)
        return lane

    def serve(self, lane: Lane) -> None:
        """Let go of what there is room for."""
        if lane.held:
            self._dispatch.serve(lane)

    def hold_back(self, case: Case) -> None:
        """Do not send (again) what has not left of a run's launches, or has no answer yet."""
        case.drop_unanswered()
        for held in self._dispatch.drop(case.run.id):
            self._limits.forget(held)

    def run_ended(self, case: Case) -> None:
        """Forget a run, which is none of `cases` any more."""
        # One whose answer was lost would be sent again after its subject was freed, and run in a run that has ended.
        self.hold_back(case)
        self._look_ups.run_ended(case.run.id)
        self._limits.run_ended(case)
        flying, case.flying = case.flying, {}
        for lane in flying.values():
            lane.flying -= 1
            self.serve(lane)

    # ---- for whoever asks

    def explain(self, case: Case, step: str) -> Hold | None:
        """Say what a step that is queued waits for; None if nothing is known that it would."""
        run = case.run.id
        leader = self._look_ups.waits.get((run, step))
        if leader is not None:
            return Hold(kind=HoldKind.CACHE, queue="", holders=((leader.run, leader.step),))
        held = self._dispatch.find(run, step)
        if held is not None and held.waits_for is not None:
            return self._limits.explain(held)
        lane = held.lane if held is not None else case.flying.get(step)
        if lane is None:
            return None
        ahead = self._dispatch.ahead_of(held) if held is not None else 0
        if case.run.steps[step].status is not StepStatus.QUEUED:
            return None
        if lane.limit is not None and lane.flying > lane.limit:
            kind, count, under_way = HoldKind.QUEUE, lane.limit, lane.limit
        elif held is not None:
            kind, count, under_way = HoldKind.WINDOW, lane.window, lane.flying
        else:
            kind, count, under_way = HoldKind.SLOTS, lane.slots or 0, lane.slots or 0
        running, others = self._under_way(lane)
        if kind is HoldKind.SLOTS and not 0 < min(count, HOLDERS_SHOWN_MAX) <= len(running):
            # It is on its way to one that is free, or no worker is known.
            return None
        holders = running if kind is not HoldKind.WINDOW else (running + others)[:HOLDERS_SHOWN_MAX]
        return Hold(
            kind=kind,
            queue=lane.queue,
            count=count,
            under_way=under_way,
            holders=tuple(holders),
            ahead=ahead,
            priority=held.priority if held is not None else None,
        )

    def _under_way(self, lane: Lane) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Give steps whose launches have left for a queue: some that run, and some that do not yet."""
        running: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for run_id, case in self._cases.items():
            for step, to in case.flying.items():
                if to is lane:
                    runs = case.run.steps[step].status is StepStatus.RUNNING
                    found = running if runs else others
                    if len(found) < HOLDERS_SHOWN_MAX:
                        found.append((run_id, step))
                if len(running) == HOLDERS_SHOWN_MAX:
                    return running, others
        return running, others
