"""Which launches leave for a queue now, and which are held back: by priority, runs in turn, each depth-first.

    Launch ─▶ room in the queue's window? ─▶ the bus
                   │ no                ▲
                   ▼                   │ an attempt of the queue has ended
              held back ───────────────┘

A queue at the bus is first in, first out. So what may still be put before something more urgent has to stay here, and
only as much leaves as keeps the workers busy: their slots, and what ends while a launch is on its way to them. A launch
that is held back is `queued` in its run's state all the same: it is a command, and whoever takes the run over has it.

Everything here is bookkeeping: no IO, and no clock but the one that is handed in. `queue_watch` says what workers there
are; `limits` comes after a launch's turn.

Turns are those of a root with all the runs that its steps are: a map of ten thousand pipelines is one. Of what it has
held back, the steps furthest down go first: so the first elements of a large map come to the end of their chains while
the last have not begun, and what lies between two steps is not piled up for all of them.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from evpipe.controller.case import Case, Depth
    from evpipe.controller.limit_entries import LimitEntry
    from evpipe.controller.look_ups import Miss
    from evpipe.core.commands import Launch
    from evpipe.core.graph import Step

#: Slots that a queue is taken to have until its workers are looked at, which is some milliseconds: what leaves before
#: is not taken back, however urgent the next is.
SLOTS_UNSEEN: Final = 1
#: Slots that a queue is taken to have while no worker of it is known: one may serve it all the same.
SLOTS_UNKNOWN: Final = 32
#: As many launches as ended in this time may be on their way, beside one for each slot: a launch and its result take
#: some milliseconds, tens of them where all is busy.
AHEAD_S: Final = 0.1
#: More than this on its way does not make anything faster.
AHEAD_MAX: Final = 4_000


class Held:
    """A launch that has not left."""

    __slots__ = (
        "case",
        "command",
        "depth",
        "dropped",
        "lane",
        "miss",
        "number",
        "parked",
        "priority",
        "step",
        "unwritten",
        "waits_for",
    )

    def __init__(
        self,
        case: Case,
        command: Launch,
        step: Step,
        miss: Miss | None,
        lane: Lane,
        priority: int,
        depth: Depth,
        number: int,
    ) -> None:
        self.case = case
        self.step = step
        self.command = command
        self.miss = miss
        self.lane = lane
        self.priority = priority
        #: How far down its step is.
        self.depth = depth
        #: Of those with one priority the lower goes first.
        self.number = number
        self.dropped = False
        #: Its turn in the queue has come; it waits for its limits.
        self.parked = False
        #: Of one that has its limits, those whose entries do not say so yet; None: it does not have them.
        self.unwritten: set[LimitEntry] | None = None
        #: The limit that it waits for.
        self.waits_for: LimitEntry | None = None

    def __lt__(self, other: Held) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)


class _Share:
    """What a root and the runs below it have held back with one priority: the deepest first, of one depth in order."""

    __slots__ = ("depths", "tiers")

    def __init__(self) -> None:
        #: Those that there are, from below: the deepest is the last.
        self.depths: list[Depth] = []
        self.tiers: dict[Depth, deque[Held]] = {}

    def put(self, held: Held) -> None:
        tier = self.tiers.get(held.depth)
        if tier is None:
            tier = self.tiers[held.depth] = deque()
            insort(self.depths, held.depth)
        tier.append(held)

    def take(self) -> Held | None:
        """Give the next that was not dropped."""
        while self.depths:
            tier = self.tiers[self.depths[-1]]
            while tier:
                held = tier.popleft()
                if not held.dropped:
                    if not tier:
                        self._leave_out()
                    return held
            self._leave_out()
        return None

    def _leave_out(self) -> None:
        del self.tiers[self.depths.pop()]

    def sweep(self) -> None:
        """Leave out those that were dropped."""
        for depth, tier in list(self.tiers.items()):
            self.tiers[depth] = deque(held for held in tier if not held.dropped)
            if not self.tiers[depth]:
                del self.tiers[depth]
        self.depths = sorted(self.tiers)

    def count(self) -> int:
        """Give how many there are, without those that were dropped."""
        return sum(not held.dropped for tier in self.tiers.values() for held in tier)

    def count_before(self, held: Held) -> int:
        """Give how many of them are taken before this one."""
        before = 0
        for depth in reversed(self.depths):
            for other in self.tiers[depth]:
                if other is held:
                    return before
                before += not other.dropped
        return before


class _Level:
    """What is held back with one priority; a root that has something is in `turns` once."""

    __slots__ = ("priority", "shares", "turns")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.shares: dict[str, _Share] = {}
        self.turns: deque[str] = deque()

    def __lt__(self, other: _Level) -> bool:
        return self.priority < other.priority


class Lane:
    """The way to one queue."""

    __slots__ = ("ahead", "done", "done_ever", "dropped", "flying", "held", "levels", "limit", "missing", "queue",
                 "sampled_at", "slots", "window")  # fmt: skip

    def __init__(self, queue: str) -> None:
        self.queue = queue
        #: Launches that have left and whose attempts have not ended, as far as is known here.
        self.flying = 0
        #: Launches that are held back, and those that were and have been dropped since the last sweep.
        self.held = 0
        self.dropped = 0
        #: Those with a launch, the most urgent first.
        self.levels: list[_Level] = []
        #: Slots of the workers that serve it; None: not looked at yet.
        self.slots: int | None = None
        #: Launches that its workers may have at a time, all together; None: no limit.
        self.limit: int | None = None
        #: Launches that count as flying and that the queue does not have.
        self.missing = 0
        #: Launches that may be on their way beside those for the slots.
        self.ahead = 0
        #: Attempts that ended since `sampled_at`, and ever.
        self.done = 0
        self.done_ever = 0
        self.sampled_at = 0.0
        self.window = 0
        self.resize()

    @property
    def busy_slots(self) -> int:
        """Give how many launches its workers can have at a time."""
        slots = SLOTS_UNSEEN if self.slots is None else self.slots or SLOTS_UNKNOWN
        return slots if self.limit is None else min(slots, self.limit)

    def resize(self) -> None:
        """Make the window what follows from the rest."""
        slots = self.busy_slots
        self.window = slots + min(AHEAD_MAX, max(1, slots // 2, self.ahead)) + self.missing

    def sample(self, now: float) -> None:
        """Note how much ends in `AHEAD_S`: grow at once, shrink when the time is over."""
        elapsed_s = now - self.sampled_at
        if elapsed_s >= AHEAD_S:
            self.ahead = int(self.done * AHEAD_S / elapsed_s)
            self.done_ever += self.done
            self.done, self.sampled_at = 0, now
            self.resize()
        elif self.done > self.ahead:
            self.ahead = self.done
            self.resize()

    def put(self, held: Held) -> None:
        """Hold a launch back."""
        for level in self.levels:
            if level.priority == held.priority:
                break
        else:
            level = _Level(held.priority)
            insort(self.levels, level)
        root = held.case.root
        share = level.shares.get(root)
        if share is None:
            share = level.shares[root] = _Share()
            level.turns.append(root)
        share.put(held)
        self.held += 1

    def drop(self, held: Held) -> None:
        """Hold a launch back no longer: it will never leave."""
        held.dropped = True
        self.held -= 1
        self.dropped += 1
        # It holds on to its run. Where nobody serves the queue it would have no turn, in which it is passed over.
        if self.dropped > self.held:
            self._sweep()

    def _sweep(self) -> None:
        self.dropped = 0
        for level in self.levels:
            for root, share in list(level.shares.items()):
                share.sweep()
                if not share.depths:
                    del level.shares[root]
            level.turns = deque(root for root in level.turns if root in level.shares)
        self.levels = [level for level in self.levels if level.turns]

    def take(self) -> Held | None:
        """Give the launch whose turn it is: of the most urgent, that of the root whose last turn was longest ago."""
        while self.levels:
            level = self.levels[0]
            while level.turns:
                root = level.turns.popleft()
                share = level.shares[root]
                held = share.take()
                if share.depths:
                    level.turns.append(root)
                else:
                    del level.shares[root]
                if held is None:
                    continue
                self.held -= 1
                return held
            del self.levels[0]
        return None


class Dispatch:
    """The lanes of one controller.

    Args:
        turn: is called with a launch whose turn has come: it leaves (and counts as flying then), or it is dropped, or
            parked.
        now: gives the loop's clock.
    """

    def __init__(self, turn: Callable[[Held], None], now: Callable[[], float]) -> None:
        self._turn = turn
        self._now = now
        self.lanes: dict[str, Lane] = {}
        #: What is held back, also what is parked: by run and step.
        self._held: dict[str, dict[str, Held]] = {}
        self._number = 0
        self._closed = False
        #: Called when something is held back; and set anew by whoever wants to hear of it again.
        self.crowded: Callable[[], None] | None = None
        #: Called when something goes to a queue that is new here.
        self.opened: Callable[[], None] | None = None

    def lane(self, queue: str) -> Lane:
        lane = self.lanes.get(queue)
        if lane is None:
            lane = self.lanes[queue] = Lane(queue)
            lane.sampled_at = self._now()
            if self.opened is not None:
                self.opened()
        return lane

    def hold(
        self, case: Case, command: Launch, step: Step, miss: Miss | None, lane: Lane, priority: int, depth: Depth
    ) -> None:
        """Hold a launch back until its turn comes, which may be at once."""
        of_run = self._held.get(case.run.id)
        if of_run is None:
            of_run = self._held[case.run.id] = {}
        before = of_run.get(command.step)
        if before is not None:
            if before.command.attempt == command.attempt:
                # A repeated command: it waits already.
                return
            self.forget(before)
            of_run = self._held.setdefault(case.run.id, {})
        self._number += 1
        held = of_run[command.step] = Held(case, command, step, miss, lane, priority, depth, self._number)
        lane.put(held)
        if lane.flying < lane.window:
            self.serve(lane)
        if lane.held and self.crowded is not None:
            tell, self.crowded = self.crowded, None
            tell()

    def park(
        self, case: Case, command: Launch, step: Step, miss: Miss | None, lane: Lane, priority: int, depth: Depth
    ) -> Held:
        """Take in a launch that waits for no turn."""
        before = self.find(case.run.id, command.step)
        if before is not None:
            self.forget(before)
        self._number += 1
        held = Held(case, command, step, miss, lane, priority, depth, self._number)
        held.parked = True
        self._held.setdefault(case.run.id, {})[command.step] = held
        return held

    def find(self, run: str, step: str) -> Held | None:
        """Give the launch of a step that is held back, or parked."""
        return self._held.get(run, {}).get(step)

    def forget(self, held: Held) -> None:
        """Take a launch out: it leaves, or never will."""
        of_run = self._held.get(held.case.run.id)
        if of_run is not None and of_run.get(held.command.step) is held:
            del of_run[held.command.step]
            if not of_run:
                del self._held[held.case.run.id]
            if not held.parked and not held.dropped:
                held.lane.drop(held)
        held.dropped = True

    def drop(self, run: str) -> list[Held]:
        """Forget everything of a run; gives what was parked or had its limits."""
        parked = []
        for held in self._held.pop(run, {}).values():
            if held.parked:
                held.dropped = True
                parked.append(held)
            else:
                held.lane.drop(held)
        return parked

    def ended(self, lane: Lane) -> None:
        """Take note that an attempt which had left has ended: there is room for another."""
        lane.flying -= 1
        lane.done += 1

    def serve(self, lane: Lane) -> None:
        """Let go of what has room."""
        lane.sample(self._now())
        while lane.held and lane.flying < lane.window and not self._closed:
            held = lane.take()
            if held is None:
                return
            # Parked until it is known to leave: nothing of it is in the lane any more.
            held.parked = True
            self._turn(held)

    def close(self) -> None:
        """Let nothing go any more."""
        self._closed = True

    def ahead_of(self, held: Held) -> int:
        """Give how many launches would leave its lane before one, if no more came: those that are more urgent, those of
        its root that are before it, and of each other root as many as have their turns until then.
        """
        level = next((level for level in held.lane.levels if level.priority == held.priority), None)
        root = held.case.root
        if level is None or root not in level.shares:
            return 0
        urgent = sum(
            share.count()
            for other in held.lane.levels
            if other.priority < held.priority
            for share in other.shares.values()
        )
        own = level.shares[root].count_before(held)
        its_turn = False
        others = 0
        for other_root in level.turns:
            its_turn = its_turn or other_root == root
            if other_root != root:
                others += min(level.shares[other_root].count(), own + (not its_turn))
        return urgent + own + others
