"""Mutexes, semaphores and rates: what a launch must have, beside its turn, to leave.

    turn of a launch ─▶ room in all its limits? ─▶ their entries in the bucket say so (compare and set) ─▶ it leaves
                              │ no                                    │ another controller was quicker
                              └──────────▶ parked ◀──────────────────┘
                                              ▲ an attempt that holds one is over: who waits first has its place

Who holds a semaphore is a step of a run, from before its launch leaves until its attempt is over: while it waits for
its next attempt it holds nothing. All that is held is in the bucket before the launch leaves, so whoever takes over
finds it.
An entry is a hint as a marker of the cache is: whoever waits for a step that he does not lead looks into its run's log.
A launch gets all its limits at once or none, so nobody waits with something in the hand.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus
from evpipe.controller.dispatch import Dispatch, Held
from evpipe.controller.limit_entries import Key, LimitEntry, RateEntry, SemaphoreEntry, key_of
from evpipe.controller.others import lives
from evpipe.controller.timers import Timers
from evpipe.core.limits import Limit, Rate
from evpipe.core.run_state import StepState
from evpipe.core.states import StepStatus
from evpipe.errors import BusError, RemoteProtocolError
from evpipe.wire.holds import BUCKET, EMPTY_TTL_S, HOLDERS_SHOWN_MAX, Hold, Holder, HoldKind, limit_key

if TYPE_CHECKING:
    from evpipe.controller.case import Case

log = structlog.get_logger(__name__)

#: Who waits looks again after this, whatever it has heard.
LOOK_AGAIN_S: Final = 10.0
#: Nobody has answered for so long: nobody runs the attempt.
GONE_S: Final = 1.0
#: Between two questions whether a body that was told to stop still runs.
ASK_AGAIN_S: Final = 0.2
#: After the bus has refused something.
PAUSE_S: Final = 1.0


class Limits:
    """The shared limits of the runs that one controller leads.

    Args:
        cases: those runs, by id.
        dispatch: where launches come from.
        leave: lets a launch go that has all its limits.
        wanted: says whether a launch is still to leave.
        clock: gives the bus's clock.
    """

    def __init__(
        self,
        bus: Bus,
        task_group: TaskGroup,
        cases: dict[str, Case],
        dispatch: Dispatch,
        leave: Callable[[Held], None],
        wanted: Callable[[Held], bool],
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._bucket = bus.bucket(BUCKET)
        self._task_group = task_group
        self._cases = cases
        self._dispatch = dispatch
        self._leave = leave
        self._wanted = wanted
        self._clock = clock
        self._entries: dict[str, LimitEntry] = {}
        #: Semaphores of the steps that hold some; those whose launch has not left yet are in `_granted`, too.
        self.holding: dict[Key, tuple[SemaphoreEntry, ...]] = {}
        self._granted: dict[Key, Held] = {}
        #: Steps whose bodies may still run although they have ended.
        self._leaving: set[Key] = set()
        #: Launches whose turn came before it was known who runs already.
        self._early: list[Held] | None = []
        self._timers = Timers(self._due)
        self._closed = False

    async def run(self) -> None:
        """Begin to give limits out, now that all runs are here, and look after those who wait."""
        early, self._early = self._early or [], None
        self._task_group.start_soon(self._timers.run)
        for held in early:
            self.take(held)
        while True:
            await anyio.sleep(LOOK_AGAIN_S)
            for key in list(self.holding):
                self._look_at(key)
            for entry in list(self._entries.values()):
                if entry.waiters:
                    # What was heard of it may not be all.
                    entry.revision = None
                    self._write_soon(entry)
                elif entry.is_empty and not entry.dirty and not entry.busy and not entry.unwritten:
                    del self._entries[entry.key]

    def close(self) -> None:
        self._closed = True

    # ---- getting them

    def take(self, held: Held) -> None:
        """Take the limits of a launch whose turn has come, and let it go; or park it."""
        if self._closed or held.dropped:
            return
        if self._early is not None:
            self._early.append(held)
            return
        if not self._wanted(held):
            self._dispatch.forget(held)
            return
        now_s = self._clock()
        entries = self._entries_of(held)
        self._void_partial(held, entries)
        for entry in entries:
            if not entry.may_take(held, now_s):
                self._park(entry, held)
                return
        self._grant(held, entries, now_s)

    def _void_partial(self, held: Held, entries: list[LimitEntry]) -> None:
        """Take a launch out of entries that name it while another of its limits does not.

        A launch leaves when all of them name it. So this one has not left: who began to write it down has died. Kept,
        it would wait for one limit with another in the hand.
        """
        semaphores = [entry for entry in entries if isinstance(entry, SemaphoreEntry)]
        if key_of(held) in self.holding or any(entry.revision is None for entry in semaphores):
            return
        having = [entry for entry in semaphores if entry.has(held)]
        if len(having) < len(semaphores):
            for entry in having:
                entry.remove(held)
                self._write_soon(entry)

    def seize(self, case: Case, step: str, attempt: int) -> None:
        """Take note that a step runs which holds its semaphores, whatever their entries say."""
        key = (case.run.id, step)
        limits = [limit for limit in case.run.spec(step).limits if not isinstance(limit, Rate)]
        entries = tuple(self._entry(limit) for limit in limits)
        for entry, limit in zip(entries, limits, strict=True):
            assert isinstance(entry, SemaphoreEntry)
            entry.put(Holder(*key, attempt, limit.count))
            entry.dirty = True
            self._write_soon(entry)
        if entries:
            self.holding[key] = tuple(entry for entry in entries if isinstance(entry, SemaphoreEntry))

    def _grant(self, held: Held, entries: list[LimitEntry], now_s: float) -> None:
        key = key_of(held)
        self._granted[key] = held
        semaphores = tuple(entry for entry in entries if isinstance(entry, SemaphoreEntry))
        if semaphores:
            self.holding[key] = semaphores
        held.unwritten = set(entries)
        for entry in entries:
            entry.add(held, now_s)
            entry.unwritten.append(held)
            entry.dirty = True
            self._write_soon(entry)

    def _park(self, entry: LimitEntry, held: Held) -> None:
        held.parked = True
        held.waits_for = entry
        entry.wait(held)
        if entry.revision is None:
            self._write_soon(entry)
        elif isinstance(entry, RateEntry) and entry.waiters[0] is held:
            self._wake_for(entry, held)

    def _wake_for(self, entry: RateEntry, held: Held) -> None:
        wait_s = entry.room_at_s(entry.limit_of(held)) - self._clock()
        self._timers.add(max(0.0, wait_s) + 0.001, entry.key, None, 0)

    def _due(self, key: str, _step: str | None, _attempt: int) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            self._serve(entry)

    def _entries_of(self, held: Held) -> list[LimitEntry]:
        # One order for all: of two that need the same two, one finds the other in its way and not the reverse.
        limits = held.step.limits
        return [self._entry(limit) for limit in sorted(limits, key=limit_key)]

    def _entry(self, limit: Limit) -> LimitEntry:
        key = limit_key(limit)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = RateEntry(limit) if isinstance(limit, Rate) else SemaphoreEntry(limit)
        return entry

    def _serve(self, entry: LimitEntry) -> None:
        """Give what is free to those who wait, in their order."""
        while entry.waiters and entry.revision is not None and not self._closed:
            held = entry.waiters[0]
            if not held.dropped and self._wanted(held) and not entry.may_take(held, self._clock()):
                if isinstance(entry, RateEntry):
                    self._wake_for(entry, held)
                return
            heapq.heappop(entry.waiters)
            if not held.dropped:
                self.take(held)

    # ---- the entries

    def _write_soon(self, entry: LimitEntry) -> None:
        if not entry.busy and not self._closed:
            entry.busy = True
            self._task_group.start_soon(self._write, entry)

    async def _write(self, entry: LimitEntry) -> None:
        """Bring an entry and the bucket together; what has its place there goes on."""
        try:
            while not self._closed and (entry.revision is None or entry.dirty):
                try:
                    if entry.revision is None:
                        await self._read(entry)
                    else:
                        await self._put(entry)
                except BusError as error:
                    log.warning("limit_not_written", limit=entry.key, error=str(error))
                    entry.revision = None
                    await anyio.sleep(PAUSE_S)
        finally:
            entry.busy = False

    async def _read(self, entry: LimitEntry) -> None:
        found = await self._bucket.get(entry.key)
        now_s = self._clock()
        try:
            entry.merge(found.value if found is not None else None, now_s)
        except RemoteProtocolError as error:
            # Of a newer writer, or garbage: as if nothing were there, and replaced.
            log.warning("limit_quarantined", limit=entry.key, reason=str(error))
            entry.merge(None, now_s)
        entry.revision = found.revision if found is not None else 0
        for held in entry.give_back(now_s):
            self._give_back(held, entry)
        self._look_at_holders(entry)
        for held in entry.take_out_having():
            self.take(held)
        self._serve(entry)

    async def _put(self, entry: LimitEntry) -> None:
        entry.dirty = False
        written, entry.unwritten = entry.unwritten, []
        gone = set(entry.gone) if isinstance(entry, SemaphoreEntry) else set()
        data = entry.encode(self._clock())
        ttl_s = EMPTY_TTL_S if entry.is_empty or isinstance(entry, RateEntry) else None
        if isinstance(entry, RateEntry):
            ttl_s = max(EMPTY_TTL_S, 2 * entry.per_s)
        stored = False
        try:
            revision = await self._bucket.put(entry.key, data, expected=entry.revision, ttl_s=ttl_s)
            stored = revision is not None
        finally:
            if not stored:
                entry.dirty = True
                entry.unwritten = [*(held for held in written if held.unwritten is not None), *entry.unwritten]
        entry.revision = revision
        if revision is None:
            # Somebody else has written.
            return
        if isinstance(entry, SemaphoreEntry):
            entry.gone -= gone - entry.holders.keys()
        for held in written:
            if held.unwritten is not None:
                held.unwritten.discard(entry)
                if not held.unwritten:
                    self._go(held)
        self._serve(entry)

    def _go(self, held: Held) -> None:
        """Let a launch go that has all its limits."""
        key = key_of(held)
        if self._granted.get(key) is not held or self._closed:
            return
        del self._granted[key]
        dropped = held.dropped
        self._dispatch.forget(held)
        if not dropped and self._wanted(held):
            self._leave(held)
        else:
            self._release(key)

    def _give_back(self, held: Held, refusing: LimitEntry) -> None:
        """Take back the limits of a launch: one of them was given to somebody else. It waits on."""
        self._undo(held)
        if not held.dropped:
            self._park(refusing, held)

    def _undo(self, held: Held) -> None:
        key = key_of(held)
        if self._granted.get(key) is held:
            del self._granted[key]
        held.unwritten = None
        self.holding.pop(key, None)
        for entry in self._entries_of(held):
            if held in entry.unwritten:
                entry.unwritten.remove(held)
            if entry.has(held):
                entry.remove(held)
                self._write_soon(entry)
                self._serve(entry)

    # ---- letting them go

    def forget(self, held: Held) -> None:
        """Give up on a launch that was parked, or has its limits and has not left."""
        if held.unwritten is not None:
            self._undo(held)

    def moved(self, case: Case, step: str, state: StepState) -> None:
        """Take note of what an event means for a step that holds something."""
        if state.ended or state.status is StepStatus.PENDING:
            self._over((case.run.id, step), state.attempt, stopped=state.status is StepStatus.CANCELLED)

    def _look_at(self, key: Key) -> None:
        """Free what is held for nothing: what a bug has left behind is not left for ever."""
        case = self._cases.get(key[0])
        state = case.run.steps.get(key[1]) if case is not None else None
        if case is None or case.broken or state is None:
            self._over(key, state.attempt if state is not None else 0, stopped=True)
        elif case.waiting is None:
            self.moved(case, key[1], state)

    def run_ended(self, case: Case) -> None:
        run = case.run
        for key in [key for key in self.holding if key[0] == run.id]:
            # Its step has not ended: whoever wrote the run's end did not wait for it.
            self._over(key, run.steps[key[1]].attempt, stopped=True)

    def _over(self, key: Key, attempt: int, *, stopped: bool) -> None:
        held = self._granted.get(key)
        if held is not None:
            # Its launch never left.
            self._undo(held)
        elif not stopped:
            self._release(key)
        elif key not in self._leaving:
            # It was told to stop, and may not have done so yet.
            self._leaving.add(key)
            self._task_group.start_soon(self._release_when_gone, key, attempt)

    async def _release_when_gone(self, key: Key, attempt: int) -> None:
        try:
            await self._wait_gone(*key, attempt)
        finally:
            self._leaving.discard(key)
        self._release(key)

    async def _wait_gone(self, run: str, step: str, attempt: int) -> None:
        question = self._bus.subjects.who(run, step, attempt)
        while True:
            if await self._bus.ask(question, b"", timeout_s=GONE_S) is None:
                return
            await anyio.sleep(ASK_AGAIN_S)

    def _release(self, key: Key) -> None:
        for entry in self.holding.pop(key, ()):
            self._free(entry, key)

    def _free(self, entry: SemaphoreEntry, key: Key) -> None:
        entry.free(key)
        # Before it is written: one write says who has left and who has come.
        self._serve(entry)
        self._write_soon(entry)

    # ---- holders that nobody here has launched

    def _look_at_holders(self, entry: LimitEntry) -> None:
        if isinstance(entry, SemaphoreEntry) and not entry.examining:
            strangers = [holder for key, holder in entry.holders.items() if key not in self.holding]
            if strangers:
                entry.examining = True
                self._task_group.start_soon(self._examine, entry, strangers)

    async def _examine(self, entry: SemaphoreEntry, strangers: list[Holder]) -> None:
        """Free what is held by steps that do not run any more."""
        try:
            for holder in strangers:
                key = (holder.run, holder.step)
                stopped = await self._is_over(holder)
                if stopped is None or key in self.holding:
                    continue
                if stopped:
                    await self._wait_gone(holder.run, holder.step, holder.attempt)
                if entry.holders.get(key) == holder and key not in self.holding:
                    log.info("limit_freed", limit=entry.key, run_id=holder.run, step_id=holder.step)
                    self._free(entry, key)
        except BusError as error:
            log.warning("limit_not_examined", limit=entry.key, error=str(error))
        finally:
            entry.examining = False

    async def _is_over(self, holder: Holder) -> bool | None:
        """Say whether a holder's attempt is over: None if not; else whether its body may still be about to stop."""
        case = self._cases.get(holder.run)
        if case is None:
            return None if await lives(self._bus, holder.run, holder.step, holder.attempt) else True
        if case.waiting is not None:
            return None
        state = case.run.steps.get(holder.step)
        if case.broken or state is None:
            return True
        if state.ended:
            return state.status is StepStatus.CANCELLED
        return False if state.status is StepStatus.PENDING else None

    # ---- for whoever asks

    def explain(self, held: Held) -> Hold | None:
        """Say what a parked launch waits for."""
        entry = held.waits_for
        if entry is None:
            return None
        limit = entry.limit_of(held)
        ahead = sum(not other.dropped and other < held for other in entry.waiters)
        if isinstance(entry, RateEntry):
            return Hold(
                kind=HoldKind.RATE,
                queue=held.lane.queue,
                name=entry.name,
                count=limit.count,
                until_s=entry.room_at_s(limit),
                ahead=ahead,
                per_s=limit.per_s if isinstance(limit, Rate) else 0.0,
            )
        assert isinstance(entry, SemaphoreEntry)
        return Hold(
            kind=HoldKind.SEMAPHORE,
            queue=held.lane.queue,
            name=entry.name,
            count=min(limit.count, entry.count or limit.count),
            under_way=len(entry.holders),
            holders=tuple(list(entry.holders)[:HOLDERS_SHOWN_MAX]),
            ahead=ahead,
        )
