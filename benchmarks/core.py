"""What the controller's judgement costs: ready-made events through `Run.step`, and through decoding and `Run.step`.

No bus, no loop, nothing else in the process. Beside it in the same run a floor: a bare loop that looks each event's
step up in a dict, notes its value and counts its dependents down, as any program must that finds out what is ready.
Seconds are those of the processor, so that what else the machine does counts less. What grows with the graph in both
alike is memory: a state that was not touched for long is not in the processor's cache.

    python -m benchmarks.core --picture benchmarks/core.svg
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain as chain_of
from typing import Any, Final

from evpipe.core.bindings import OutputRef
from evpipe.core.events import Event, Finished, StepSucceeded, Submitted
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.mapping import Mapped, element_of
from evpipe.core.states import RunStatus, StepStatus
from evpipe.wire.messages import decode_event, encode_event
from evpipe.wire.subjects import Subjects

RUN_ID: Final = "benchmark0"
SUBJECTS: Final = Subjects()
SIZES: Final = (100, 1_000, 10_000, 100_000)
#: Steps of a layer, and how many of the layer before each of them needs.
LAYER, NEEDED = 10, 3
#: Events of one measurement: small graphs are folded again and again.
EVENTS_MIN: Final = 20_000
STEP_GOAL, DECODE_GOAL = 150_000, 80_000


def step_of(name: str, *parents: str) -> Step:
    """A step that takes the whole output of each parent."""
    return Step(name=name, arguments={"constant": 1, **{parent: OutputRef(parent) for parent in parents}})


def chain(size: int) -> Iterable[Step]:
    """Each step needs the one before."""
    yield step_of("s0")
    for i in range(1, size):
        yield step_of(f"s{i}", f"s{i - 1}")


def fan(size: int) -> Iterable[Step]:
    """Many need one, and one waits for all of them."""
    yield step_of("root")
    for i in range(size - 2):
        yield step_of(f"s{i}", "root")
    yield Step(name="join", after=tuple(f"s{i}" for i in range(size - 2)))


def gathered(size: int) -> Iterable[Step]:
    """One takes the outputs of all others, in a list."""
    for i in range(size - 1):
        yield step_of(f"s{i}")
    yield Step(name="join", arguments={"all": [OutputRef(f"s{i}") for i in range(size - 1)]})


def layered(size: int) -> Iterable[Step]:
    """Layers of ten, of which each step needs three of the one before."""
    for i in range(size):
        above = i - i % LAYER - LAYER
        parents = [f"s{above + (i + k * 7) % LAYER}" for k in range(NEEDED)] if above >= 0 else []
        yield step_of(f"s{i}", *parents)


def mapped(size: int) -> Iterable[Step]:
    """A step for each element of a list, another for what each of those gives, and one that takes all of that."""
    mapping = Mapped(places=("element",))
    yield Step(name="first", arguments={"element": list(range(size // 2))}, mapped=mapping)
    yield Step(name="second", arguments={"element": OutputRef("first")}, mapped=mapping)
    yield Step(name="join", arguments={"all": OutputRef("second")})


SHAPES: Final[dict[str, Callable[[int], Iterable[Step]]]] = {
    "chain": chain,
    "fan": fan,
    "gathered": gathered,
    "layered": layered,
    "mapped": mapped,
}


@dataclass
class Case:
    """A graph, and the log of a run of it in which everything goes well."""

    shape: str
    size: int

    def __post_init__(self) -> None:
        self.graph = Graph.of(SHAPES[self.shape](self.size), pipeline="benchmark")
        self.submitted = Submitted(at_s=1.0, graph=self.graph, parameters={})
        made = [StepSucceeded(step=name, attempt=1, value=i, started_at_s=1.0) for i, name in enumerate(self.order())]
        self.records = [self.record(event) for event in made]
        finished = Finished(status=RunStatus.SUCCEEDED)
        self.records.append(self.record(finished))
        self.events: list[Event] = [self.decoded(*record) for record in self.records]
        self.repeats = max(1, EVENTS_MIN // self.size)

    def order(self) -> list[str]:
        """Name the steps in an order in which they may end: of mapped ones the elements, the second below the first."""
        if self.shape != "mapped":
            return list(self.graph.order)
        pairs = ((element_of("first", i), element_of("second", i)) for i in range(self.size // 2))
        return [*chain_of.from_iterable(pairs), "join"]

    def record(self, event: StepSucceeded | Finished) -> tuple[str, bytes]:
        step, kind, payload = encode_event(event)
        return SUBJECTS.event("benchmark", RUN_ID, step, kind), payload

    def decoded(self, subject: str, payload: bytes) -> Event:
        event = decode_event(SUBJECTS.parse_event(subject), payload, 2.0)
        assert event is not None
        return event

    # ---- what is measured: seconds for all events of one run

    def step(self) -> float:
        """`Run.step` of ready-made events."""
        run = Run(RUN_ID)
        run.step(self.submitted)
        began = time.thread_time()
        step = run.step
        for event in self.events:
            step(event)
        seconds = time.thread_time() - began
        assert run.ended
        assert len(run.outputs) >= self.size
        return seconds

    def decode_and_step(self) -> float:
        """The same from the subject and the bytes of each message."""
        run = Run(RUN_ID)
        run.step(self.submitted)
        began = time.thread_time()
        step, parse = run.step, SUBJECTS.parse_event
        for subject, payload in self.records:
            event = decode_event(parse(subject), payload, 2.0)
            assert event is not None
            step(event)
        seconds = time.thread_time() - began
        assert run.ended
        return seconds

    def floor(self) -> float:
        """The least that tells what is ready."""
        waiting_on = {name: len(above) for name, above in self.graph.parents.items()}
        dependents = dict(self.graph.dependents)
        if self.shape == "mapped":
            for i in range(self.size // 2):
                first, second = element_of("first", i), element_of("second", i)
                dependents[first], dependents[second] = (second,), ("join",)
                waiting_on[first], waiting_on[second] = 0, 1
            waiting_on["join"] = self.size // 2
        states = dict.fromkeys(waiting_on, StepStatus.PENDING)
        outputs: dict[str, Any] = {}
        ready: list[str] = []
        events = self.events[:-1]
        began = time.thread_time()
        for event in events:
            assert isinstance(event, StepSucceeded)
            name = event.step
            if states[name] is StepStatus.PENDING:
                states[name] = StepStatus.SUCCEEDED
                outputs[name] = event.value
                for below in dependents[name]:
                    waiting_on[below] -= 1
                    if not waiting_on[below]:
                        ready.append(below)
        return time.thread_time() - began


@dataclass(frozen=True)
class Found:
    """Events per second of one case."""

    shape: str
    size: int
    step: float
    decode_and_step: float
    floor: float


def measure(shape: str, size: int, tries: int) -> Found:
    """Give the best of some tries: what else runs on the machine only ever slows one down."""
    case = Case(shape, size)
    gc.collect()
    # The events are here only to be measured with: no collection is to go through them.
    gc.freeze()
    best = {"step": 0.0, "decode_and_step": 0.0, "floor": 0.0}
    for _ in range(tries):
        for what, fastest in best.items():
            seconds = sum(getattr(case, what)() for _ in range(case.repeats))
            best[what] = max(fastest, case.repeats * len(case.events) / seconds)
    gc.unfreeze()
    return Found(shape, size, **best)


def draw(found: list[Found], file: str) -> None:
    """Draw events per second against the size of the graph."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "evpipe"
    shapes = list(dict.fromkeys(one.shape for one in found))
    titles = {"step": "Run.step of ready-made events", "decode_and_step": "decode and Run.step"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for panel, (what, title), goal in zip(panels, titles.items(), (STEP_GOAL, DECODE_GOAL), strict=True):
        for number, shape in enumerate(shapes):
            of = [one for one in found if one.shape == shape]
            sizes = [one.size for one in of]
            panel.plot(sizes, [getattr(one, what) / 1e3 for one in of], "o-", color=f"C{number}", label=shape)
            if what == "step":
                panel.plot(sizes, [one.floor / 1e3 for one in of], ":", color=f"C{number}", alpha=0.5)
        panel.axhline(goal / 1e3, color="0.4", linewidth=0.8, linestyle="--")
        panel.annotate(
            f"goal {goal / 1e3:,.0f}", (0, goal / 1e3), xycoords=("axes fraction", "data"),
            xytext=(4, -10), textcoords="offset points", fontsize=8, color="0.4",
        )  # fmt: skip
        panel.set(xscale="log", yscale="log", title=title, xlabel="steps of the graph")
        panel.grid(alpha=0.3)
        panel.set_yticks([50, 100, 200, 500, 1_000, 2_000], ["50", "100", "200", "500", "1,000", "2,000"])
        panel.minorticks_off()
    panels[0].set(ylabel="events per second, thousands")
    panels[1].plot([], [], ":", color="0.5", label="floor (left): bare look-up and counters")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5, help="of which the best counts")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--picture", metavar="FILE.svg|png", help="where to draw it; needs matplotlib")
    options = parser.parse_args()
    found: list[Found] = []
    for shape in options.shapes:
        for size in options.sizes:
            one = measure(shape, size, options.tries)
            found.append(one)
            print(
                f"{shape:>9} {size:>8,} steps: step {one.step:>9,.0f}/s ({one.step / one.floor:.3f} of the floor), "
                f"decode and step {one.decode_and_step:>8,.0f}/s ({one.decode_and_step / one.floor:.3f})",
                flush=True,
            )
        of = [one for one in found if one.shape == shape]
        if len(of) > 1:
            growth = of[0].step / of[-1].step
            print(f"{shape:>9}: an event of the largest graph costs {growth:.2f} of one of the smallest")
    for what, goal in (("step", STEP_GOAL), ("decode_and_step", DECODE_GOAL)):
        least = min(found, key=lambda one: getattr(one, what))
        reached = "reached" if getattr(least, what) >= goal else "MISSED"
        print(
            f"{what}: at least {getattr(least, what):,.0f}/s ({least.shape}, {least.size:,}); goal {goal:,}: {reached}"
        )
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
