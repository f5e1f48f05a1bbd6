"""Which launches leave, in which order: bookkeeping alone, without a bus."""

from __future__ import annotations

from evpipe.controller.case import Case
from evpipe.controller.dispatch import AHEAD_MAX, AHEAD_S, SLOTS_UNKNOWN, SLOTS_UNSEEN, Dispatch, Held, Lane
from evpipe.core.commands import Launch
from evpipe.core.graph import Step
from evpipe.core.lineage import Parent


class Hall:
    """A dispatch whose launches leave for a list."""

    def __init__(self, slots: int | None = None, limit: int | None = None) -> None:
        self.now = 100.0
        self.dispatch = Dispatch(self._turn, lambda: self.now)
        self.left: list[str] = []
        self.lane = self.dispatch.lane("default")
        self.lane.slots, self.lane.limit = slots, limit
        self.lane.resize()
        self._cases: dict[str, Case] = {}

    def _turn(self, held: Held) -> None:
        self.dispatch.forget(held)
        self.left.append(f"{held.case.run.id} {held.command.step}")
        held.lane.flying += 1

    def hold(
        self,
        run: str,
        *steps: str,
        priority: int = 5,
        depth: int = 0,
        attempt: int = 1,
        lane: Lane | None = None,
        below: str = "",
    ) -> None:
        case = self._cases.setdefault(run, Case(run, "demo"))
        if below:
            case.run.parent = Parent(run=below, pipeline="demo", step="s", attempt=1, root=below, depth=1)
        for step in steps:
            place = (int(bool(below)), depth)
            self.dispatch.hold(
                case, Launch(step, attempt, {}), Step(name=step), None, lane or self.lane, priority, place
            )  # fmt: skip

    def end(self, count: int = 1, every_s: float = 1.0) -> list[str]:
        """Let attempts end, one by one; gives what leaves for them."""
        before = len(self.left)
        for _ in range(count):
            self.now += every_s
            self.dispatch.ended(self.lane)
            self.dispatch.serve(self.lane)
        return self.left[before:]


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def test_as_much_leaves_as_keeps_the_slots_busy() -> None:
    """The slots, half as many again (at least one) for the way, and never more than the limit of the queue."""
    unknown, unseen = SLOTS_UNKNOWN * 3 // 2, SLOTS_UNSEEN + 1
    for slots, limit, expected in ((8, None, 12), (1, None, 2), (0, None, unknown), (None, None, unseen), (8, 2, 3)):
        hall = Hall(slots, limit)
        hall.hold("big", *_names("s", 100))
        assert len(hall.left) == expected
        assert hall.lane.held == 100 - expected
    hall = Hall(8)
    hall.hold("big", *_names("s", 12))
    assert hall.lane.held == 0
    assert hall.left == [f"big s{i}" for i in range(12)], "in their order"


def test_runs_take_turns() -> None:
    """A run of 3 steps is not behind 10,000: it gets every second place that becomes free."""
    hall = Hall(8)
    hall.hold("big", *_names("s", 10_000))
    hall.hold("small", "a", "b", "c")
    assert hall.end(6) == ["big s12", "small a", "big s13", "small b", "big s14", "small c"]
    hall.hold("third", "x", "y")
    hall.hold("small", "d")
    assert sorted(hall.end(3)) == ["big s15", "small d", "third x"]


def test_what_was_dropped_is_not_kept() -> None:
    """Runs that are cancelled while nobody serves their queue leave nothing behind; who waits keeps its place."""
    hall = Hall(0)
    hall.hold("first", *_names("s", SLOTS_UNKNOWN * 3 // 2))
    hall.hold("waits", *_names("s", 30), depth=1)
    hall.hold("waits", "urgent", priority=1)
    for i in range(40):
        hall.hold(f"run{i}", *_names("s", 20), *_names("t", 20), depth=i % 3)
        hall.hold(f"run{i}", *_names("u", 20), priority=i % 10)
        hall.dispatch.drop(f"run{i}")
    shares = [share for level in hall.lane.levels for share in level.shares.values()]
    assert hall.lane.held == 31
    assert sum(len(tier) for share in shares for tier in share.tiers.values()) <= 2 * 31
    hall.hold("other", "s0", "s1")
    assert hall.end(5) == ["waits urgent", "waits s0", "other s0", "waits s1", "other s1"]


def test_of_a_run_what_is_furthest_down_goes_first() -> None:
    """An element comes to the end of its chain while its siblings have not begun; another run has its turns."""
    hall = Hall(2)
    hall.hold("big", *_names("a", 100))
    hall.hold("small", "x", "y", "z", depth=7)
    hall.hold("big", "c0", depth=2)
    hall.hold("big", "b1", "b2", depth=1)
    assert hall.end(6) == ["big c0", "small x", "big b1", "small y", "big b2", "small z"]
    hall.hold("big", "c1", "c2", depth=2)
    hall.hold("big", "b3", depth=1)
    hall.hold("big", "c1", depth=2, attempt=2)
    assert hall.end(4) == ["big c2", "big c1", "big b3", "big a3"]
    assert hall.lane.held == 96


def test_a_root_has_its_turns_with_all_that_is_below_it() -> None:
    """A map of pipelines is not a crowd, and the runs of it that have begun come to their end first."""
    hall = Hall(2)
    hall.hold("big", *_names("s", 10))
    for i in range(100):
        hall.hold(f"below{i}", "a", below="big")
    hall.hold("small", "x", "y", "z")
    hall.hold("below7", "b", below="big", depth=1)
    assert hall.end(6) == ["below7 b", "small x", "below0 a", "small y", "below1 a", "small z"]
    assert hall.end(98)[-1] == "below99 a"
    assert hall.end() == ["big s3"]


def test_what_is_urgent_goes_first_and_the_rest_in_turn_after_it() -> None:
    hall = Hall(2)
    hall.hold("a", *_names("s", 4))
    hall.hold("late", "x", "y", priority=9)
    hall.hold("b", "p", "q", priority=0)
    hall.hold("c", "r", priority=0)
    hall.hold("a", "now", priority=1)
    assert hall.end(7) == ["b p", "c r", "b q", "a now", "a s3", "late x", "late y"]
    assert hall.lane.held == 0


def test_the_window_follows_what_ends() -> None:
    """As many as end while a launch is on its way: it grows at once, and shrinks when the time is over."""
    hall = Hall(8)
    hall.hold("big", *_names("s", 10_000))
    for _ in range(200):
        hall.end(every_s=0.0001)
    assert hall.lane.window == 8 + 200, "200 ended within AHEAD_S"
    assert hall.lane.flying == hall.lane.window
    for _ in range(12):
        hall.end(every_s=AHEAD_S)
    assert hall.lane.window == 12, "one ends in AHEAD_S"
    assert hall.lane.flying == 208 - 12, "what has left is not taken back"
    assert hall.end() == [], "nothing leaves until there is room again"
    hall.lane.done = 10 * AHEAD_MAX
    hall.lane.sample(hall.now)
    assert hall.lane.window == 8 + AHEAD_MAX


def test_a_repeated_command_waits_once_and_a_later_attempt_takes_the_place() -> None:
    hall = Hall(1)
    hall.hold("a", "x", "y", "z", "z")
    assert hall.lane.held == 1
    hall.hold("a", "z", attempt=2)
    assert hall.lane.held == 1
    assert hall.end(3) == ["a z"]


def test_what_a_run_has_held_back_goes_with_it() -> None:
    hall = Hall(1)
    hall.hold("a", *_names("s", 50))
    hall.hold("b", "x")
    assert hall.dispatch.drop("a") == [], "nothing of it was parked"
    assert hall.lane.held == 1
    assert hall.dispatch.find("a", "s30") is None
    assert hall.end(60) == ["b x"]
    assert hall.lane.held == 0
    hall.hold("a", "finaliser")
    assert hall.left[-1] == "a finaliser", "it may have more later"


def test_launches_that_the_queue_does_not_have_make_room() -> None:
    """Where counts are wrong, others go on: nothing waits for what never ends."""
    hall = Hall(2)
    hall.hold("a", *_names("s", 10))
    assert len(hall.left) == 3
    hall.lane.missing = 3
    hall.lane.resize()
    hall.dispatch.serve(hall.lane)
    assert len(hall.left) == 6


def test_nothing_leaves_after_the_end() -> None:
    hall = Hall(1)
    hall.hold("a", "x", "y", "z")
    hall.dispatch.close()
    assert hall.end(3) == []


def test_who_wants_to_know_is_told_once_that_something_is_held_back() -> None:
    hall = Hall(1)
    told: list[int] = []
    hall.dispatch.crowded = lambda: told.append(hall.lane.held)
    hall.hold("a", "x", "y")
    assert told == []
    hall.hold("a", "z", "zz")
    assert told == [1]
