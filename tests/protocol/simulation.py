"""One seed, one trace: the real controller, worker and client over the memory bus, with virtual time and faults.

A `Simulation` draws runs and faults from its seed, lets them happen, stops the faults, waits for the ends of
the runs, and hands what was seen to `checker`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import trio
import trio._core._run as trio_run
from anyio.abc import TaskGroup
from trio.testing import MockClock

from evpipe import Client, Controller, Mutex, PipelineFunction, Rate, Retry, Semaphore, Worker, pipeline
from evpipe.bus.memory import Fault, MemoryBus, MemoryServer
from evpipe.bus.outbox import Message
from evpipe.bus.protocol import Outcome, Stored
from evpipe.client.handle import RunHandle
from evpipe.sdk.limits import Limit
from tests.protocol.steps import Stage, stage, work

#: The faults happen in this time; then everything that is left must come to its end.
FAULTS_S: Final = 25.0
#: Seconds since 1970 at the beginning of virtual time.
EPOCH_S: Final = 1_800_000_000.0
#: Virtual seconds that runs may take when nothing disturbs them any more.
PATIENCE_S: Final = 400.0
#: Steps of trio's scheduler in one simulation: most take some thousands, one that is waited for in vain tens of
#: thousands. Past this something goes round while the clock stands still.
SCHEDULED_MAX: Final = 300_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One drawn pipeline: steps in order, each with the steps before it."""

    parents: dict[str, list[str]]
    retries: dict[str, int]
    delays_s: dict[str, float]
    failures: dict[str, int]
    retry_delay_s: float
    #: Whether all its steps are cached.
    cached: bool = False
    #: By step, what it shares with others.
    limits: dict[str, tuple[Limit, ...]] = field(default_factory=dict)
    #: Steps that skip themselves, when they do not fail any more.
    skips: frozenset[str] = frozenset()
    #: Those of its steps that are pipelines.
    children: dict[str, Plan] = field(default_factory=dict)

    def pipeline(self, name: str = "plan") -> PipelineFunction[[list[int]], int]:
        plan = self

        @pipeline(name=name)
        def built(inputs: list[int] = []) -> int:  # noqa: B006 - a pipeline's default is copied
            handles: dict[str, int] = {}
            for name, above in plan.parents.items():
                retry = Retry(plan.retries[name], delay_s=plan.retry_delay_s, factor=1.0)
                taken = [handles[p] for p in above] if above else inputs
                if name in plan.children:
                    child = plan.children[name].pipeline("inner")
                    handles[name] = child.options(name=name, retries=retry)(taken)
                    continue
                step = work.options(name=name, retries=retry, cache=plan.cached, limits=plan.limits.get(name, ()))
                handles[name] = step(name, taken)
            return handles[next(reversed(handles))]

        return built

    def all(self) -> list[Plan]:
        """This plan, and those inside of it."""
        return [self, *(inner for child in self.children.values() for inner in child.all())]


def draw_family(rng: random.Random, generations: int = 2) -> Plan:
    """Draw a plan of which one or two steps are pipelines."""
    plan = draw_plan(rng, 4 if generations == 2 else 3)
    if not generations:
        return plan
    count = rng.choice((1, 1, 2)) if generations == 2 else rng.choice((0, 0, 1))
    names = rng.sample(list(plan.parents), min(count, len(plan.parents)))
    # A run fails as its steps do: once is enough.
    failures = {name: n for name, n in plan.failures.items() if name not in names}
    return replace(plan, failures=failures, children={name: draw_family(rng, generations - 1) for name in names})


def draw_plan(rng: random.Random, steps_max: int = 6) -> Plan:
    names = [f"s{i}" for i in range(rng.randint(1, steps_max))]
    parents = {name: [p for p in names[:i] if rng.random() < 0.45] for i, name in enumerate(names)}
    failures = {name: rng.choice((0, 0, 0, 0, 1, 2)) for name in names}
    return Plan(
        parents=parents,
        retries={name: rng.choice((0, 1, 2, 2)) for name in names},
        delays_s={name: rng.choice((0.0, 0.01, 0.2, 1.0, 4.0)) for name in names},
        failures={name: n for name, n in failures.items() if n},
        retry_delay_s=rng.choice((0.0, 0.3, 2.0)),
    )


#: What a limited step may have. One name has several counts: what is smallest counts.
LIMITS: Final[tuple[tuple[Limit, ...], ...]] = (
    (Mutex("m"),),
    (Mutex("m"),),
    (Semaphore("m", 2),),
    (Semaphore("s", 2),),
    (Mutex("m"), Semaphore("s", 2)),
    (Semaphore("s", 2), Mutex("m"), Rate("r", 2, 1.5)),
    (Rate("r", 2, 1.5),),
)


def draw_limits(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, limits={name: rng.choice(LIMITS) for name in plan.parents if rng.random() < 0.8})


class WitnessServer(MemoryServer):
    """Writes down which launches were stored, and when."""

    def __init__(self) -> None:
        super().__init__("sim")
        # A clock that starts at a moment of its own, or no trace would be the same twice.
        self._epoch = (EPOCH_S, 0.0)
        #: When each was stored, in virtual time.
        self.launched_at: list[float] = []
        #: Launch subjects with the length of the log at that moment.
        self.stored_launches: list[tuple[str, int]] = []

    def launch(self, subject: str, payload: bytes) -> Outcome:
        outcome = super().launch(subject, payload)
        if isinstance(outcome, Stored):
            self.stored_launches.append((subject, len(self.records)))
            self.launched_at.append(anyio.current_time())
        return outcome


class GhostBus(MemoryBus):
    """A connection whose messages may also arrive late: the sender takes them for lost and repeats them."""

    ghost: Callable[[Message], float | None] = staticmethod(lambda _: None)

    async def _send(self, token: int, message: Message) -> None:
        delay_s = self.ghost(message) if self.connected else None
        if delay_s is None:
            await super()._send(token, message)
            return
        assert self._task_group is not None
        self._task_group.start_soon(self._arrive_late, message, delay_s)

    async def _arrive_late(self, message: Message, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        expected = (message.headers or {}).get("expected")
        self.server.store(message.subject, message.payload, int(expected) if expected else None)


class Node:
    """A process: a connection of its own and what it hosts; it can be killed at any instant."""

    def __init__(self, bus: GhostBus, host: Callable[[Client], AbstractAsyncContextManager[Any]]) -> None:
        self.bus = bus
        self.host = host
        self.scope = anyio.CancelScope()
        self.hosted: Any = None

    async def run(self) -> None:
        with self.scope:
            async with self.bus, self.host(Client(bus=self.bus)) as self.hosted:
                await anyio.sleep_forever()

    def kill(self) -> None:
        # Cut off first: whatever its cleanup says, nobody hears it.
        self.bus.disconnect()
        self.bus.connected = False
        self.scope.cancel()


@dataclass(slots=True)
class Outcomes:
    """What a simulation left behind, for the checker."""

    seed: int
    plans: dict[str, Plan] = field(default_factory=dict)
    #: Runs that are steps of others and were cancelled by somebody.
    cancelled_children: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    server: WitnessServer = field(default_factory=WitnessServer)
    stage: Stage | None = None
    statuses: dict[str, str] = field(default_factory=dict)
    ended_at: dict[str, float] = field(default_factory=dict)
    submitted_at: dict[str, float] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def shown(self) -> str:
        lines = [f"seed {self.seed}: faults {dict(self.faults)}, cancelled {sorted(self.cancelled)}"]
        lines += [f"{run}: {plan}" for run, plan in self.plans.items()]
        lines += self.trace
        base = self.server.records[0].at_s if self.server.records else 0.0
        lines += [
            f"  log {r.sequence:3} {r.at_s - base:8.3f} {r.subject.split('.', 3)[3]}" for r in self.server.records
        ]
        lines += [f"  launch {subject} at log length {length}" for subject, length in self.server.stored_launches]
        if self.stage is not None:
            lines += [f"  begin {begin}" for begin in self.stage.begins]
        return "\n".join(lines)


class NotEnded(AssertionError):
    """A simulation that came to no end by itself."""


class Bound(trio.abc.Instrument):
    """Ends a simulation that took too many steps of the scheduler: a virtual clock stands still while there are any."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._scheduled = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._scheduled += 1
        # Not raised here: trio logs what an instrument raises, and goes on without it.
        if self._scheduled > SCHEDULED_MAX:
            self._simulation.scope.cancel()


class Simulation:
    """One simulated installation.

    Args:
        seed: everything is drawn from it.
        faults: which kinds may happen; None: all.
        cached: all runs are of one pipeline whose steps are cached, so that they meet in the cache.
        limited: several runs, most of whose steps have mutexes, semaphores and rates in common.
        families: runs have steps that are runs.
        skips: some steps skip themselves.
    """

    #: Of families, too: a controller dies between two of its messages; a run that is a step is cancelled by somebody.
    FAMILY_KINDS = ("between", "between", "child")
    KINDS = ("lost", "silent", "ghost", "full", "blink", "worker", "controller", "forget", "pause", "cancel", "buckets")

    def __init__(
        self,
        seed: int,
        faults: tuple[str, ...] | None = None,
        *,
        cached: bool = False,
        limited: bool = False,
        families: bool = False,
        skips: bool = False,
    ) -> None:
        self.skips = skips
        self.cached = cached
        self.limited = limited
        self.families = families
        self.rng = random.Random(seed)
        self.seen = Outcomes(seed)
        self.server = self.seen.server
        self.kinds = self.KINDS if faults is None else faults
        # A seed uses some of the kinds: with all of them at once each hides what the others do.
        if faults is None:
            all_kinds = (*self.KINDS, *self.FAMILY_KINDS) if families else self.KINDS
            self.kinds = tuple(kind for kind in all_kinds if self.rng.random() < 0.4)
        self.intensity = self.rng.choice((0.02, 0.08, 0.2))
        self.calm = False
        self.full_until = 0.0
        self.workers: list[Node] = []
        self.controllers: list[Node] = []
        #: Everything that happens is in here.
        self.scope = trio.CancelScope()
        #: Keys of the runs that have not ended, with their ids once they are submitted.
        self._open: dict[str, str] = {}
        self._task_group: TaskGroup | None = None

    # ---- the faults of single messages

    def _fault(self, message: Message) -> Fault | None:
        # Telemetry is for whoever looks: nothing follows from it.
        if self.calm or message.subject.startswith(f"{self.server.subjects.prefix}.telemetry."):
            return None
        if anyio.current_time() < self.full_until:
            self._note("full", message.subject)
            return Fault.FULL
        draw = self.rng.random()
        if "lost" in self.kinds and draw < self.intensity:
            self._note("lost", message.subject)
            return Fault.LOST
        if "silent" in self.kinds and 0.3 < draw < 0.3 + self.intensity:
            self._note("silent", message.subject)
            return Fault.STORED_SILENTLY
        return None

    def _fault_of_controller(self, node: Node, message: Message) -> Fault | None:
        """Let a controller die when what it has sent is stored, and before anything else leaves it."""
        found = self._fault(message)
        if found is not None or self.calm or node not in self.controllers or self.rng.random() > self.intensity:
            return found
        self._note("crash", f"{getattr(node.hosted, 'id', '?')} after {message.subject}")
        self.controllers.remove(node)
        node.bus.disconnect()
        assert self._task_group is not None
        self._task_group.start_soon(self._replace, node, self._start_controller)
        return Fault.STORED_SILENTLY

    async def _replace(self, node: Node, start: Callable[[], None]) -> None:
        node.kill()
        await anyio.sleep(self.rng.choice((0.0, 0.5, 3.0)))
        start()

    def _ghost(self, message: Message) -> float | None:
        if self.calm or "ghost" not in self.kinds or self.rng.random() > self.intensity / 2:
            return None
        self._note("ghost", message.subject)
        return self.rng.choice((0.1, 2.0, 6.0))

    def _note(self, kind: str, what: str = "") -> None:
        self.seen.faults[kind] += 1
        self.seen.trace.append(f"  {anyio.current_time():8.3f} log {len(self.server.records):3} {kind} {what}")

    # ---- nodes

    def _bus(self) -> GhostBus:
        bus = GhostBus(self.server, fault=self._fault)
        bus.ghost = self._ghost
        return bus

    def _start(self, nodes: list[Node], host: Callable[[Client], AbstractAsyncContextManager[Any]]) -> None:
        node = Node(self._bus(), host)
        nodes.append(node)
        if "between" in self.kinds and host is Controller:
            node.bus.fault = partial(self._fault_of_controller, node)
        assert self._task_group is not None
        self._task_group.start_soon(node.run)

    def _start_worker(self) -> None:
        slots = self.rng.choice((1, 2, 4))
        self._start(self.workers, lambda client: Worker(client, slots=slots))

    def _start_controller(self) -> None:
        self._start(self.controllers, Controller)

    # ---- the faults of nodes and of the server

    async def _disturb(self) -> None:
        rng = self.rng
        deeds: dict[str, Callable[[], Any]] = {
            "blink": self._blink,
            "worker": lambda: self._crash(self.workers, self._start_worker),
            "controller": lambda: self._crash(self.controllers, self._start_controller),
            "forget": self._forget,
            "pause": self._pause,
            "full": self._fill,
            "buckets": self._delete_buckets,
        }
        possible = [deed for kind, deed in deeds.items() if kind in self.kinds]
        if not possible:
            return
        for _ in range(rng.randint(1, 5)):
            await anyio.sleep(rng.random() * FAULTS_S / 5)
            await rng.choice(possible)()

    def _nodes(self) -> list[Node]:
        return [*self.workers, *self.controllers]

    async def _blink(self) -> None:
        await self._cut(self.rng.choice(self._nodes()), self.rng.choice((0.1, 1.0)), "blink")

    async def _pause(self) -> None:
        await self._cut(self.rng.choice(self.workers), self.rng.choice((1.5, 3.0, 8.0)), "pause")

    async def _cut(self, node: Node, for_s: float, kind: str) -> None:
        self._note(kind, f"{getattr(node.hosted, 'id', '?')} for {for_s} s")
        node.bus.disconnect()
        await anyio.sleep(for_s)
        node.bus.reconnect()
        self._note(f"{kind} ends")

    async def _crash(self, nodes: list[Node], start: Callable[[], None]) -> None:
        if not nodes:
            return  # dead, all of them, and their successors are on their way
        node = self.rng.choice(nodes)
        self._note("crash", getattr(node.hosted, "id", "?"))
        nodes.remove(node)
        node.kill()
        await anyio.sleep(self.rng.choice((0.0, 0.5, 3.0)))
        start()

    async def _forget(self) -> None:
        self._note("forget")
        for node in self._nodes():
            node.bus.disconnect()
        self.server.forget_acks()
        await anyio.sleep(self.rng.choice((0.1, 3.0)))
        for node in self._nodes():
            node.bus.reconnect()

    async def _fill(self) -> None:
        self.full_until = anyio.current_time() + self.rng.choice((0.5, 3.0))
        await anyio.lowlevel.checkpoint()

    async def _delete_buckets(self) -> None:
        self._note("buckets")
        self.server.buckets.clear()
        await anyio.lowlevel.checkpoint()

    # ---- the whole

    async def main(self) -> None:
        rng = self.rng
        plans = {f"key{i}": draw_plan(rng) for i in range(rng.choice((1, 1, 2, 3)))}
        if self.cached:
            common = replace(draw_plan(rng), cached=True)
            plans = {f"key{i}": common for i in range(rng.choice((2, 3, 5)))}
        if self.limited:
            plans = {f"key{i}": draw_limits(rng, draw_plan(rng)) for i in range(rng.choice((2, 3, 4)))}
        if self.families:
            plans = {f"key{i}": draw_family(rng) for i in range(rng.choice((1, 1, 2)))}
        # From numbers of their own: a seed keeps what else it draws.
        of_skips = random.Random(f"skips of {self.seen.seed}")
        failures: dict[str, int] = {}
        delays: dict[str, float] = {}
        skips: set[str] = set()
        for i, (key, plan) in enumerate(plans.items()):
            # Steps of different runs have different names on the stage.
            renamed = _renamed(plan, "r" if self.cached else f"r{i}")
            if self.skips:
                skips.update(name for name in renamed.parents if of_skips.random() < 0.2)
                renamed = replace(renamed, skips=frozenset(skips & renamed.parents.keys()))
            plans[key] = renamed
            for inner in renamed.all():
                failures |= inner.failures
                delays |= inner.delays_s
        if self.cached and self.skips:
            # They are one pipeline, whose steps have the same names.
            plans = {key: replace(plan, skips=frozenset(skips)) for key, plan in plans.items()}
        await self._on_stage(plans, delays, failures, frozenset(skips))

    async def _on_stage(
        self,
        plans: dict[str, Any],
        delays: dict[str, float],
        failures: dict[str, int],
        skips: frozenset[str] = frozenset(),
    ) -> None:
        """Play these plans, with steps that take so long and fail so often."""
        self.seen.stage = Stage(
            delay_s=lambda name, _: delays[name],
            failures=failures,
            log_length=lambda: len(self.server.records),
            skips=skips,
        )
        stage.append(self.seen.stage)
        try:
            self.scope.deadline = anyio.current_time() + FAULTS_S + PATIENCE_S
            with self.scope:
                async with anyio.create_task_group() as task_group:
                    self._task_group = task_group
                    await self._play(plans)
                    task_group.cancel_scope.cancel()
        finally:
            stage.pop()
        if self.scope.cancelled_caught:
            raise NotEnded(self._not_ended())

    def _not_ended(self) -> str:
        """What is to be said of a simulation that was ended from outside."""
        after = f"{anyio.current_time():.0f} s of simulated time"
        if anyio.current_time() < self.scope.deadline:
            after = f"{SCHEDULED_MAX:,} steps of the scheduler and {after}"
        if not self._open:
            return f"the runs have ended, and what hosts them has not after {after}"
        runs = ", ".join(run or f"{key} (its submit was not answered)" for key, run in self._open.items())
        return f"the run has not ended after {after}: {runs}"

    async def _play(self, plans: dict[str, Any]) -> None:
        rng = self.rng
        for _ in range(rng.randint(1, 2)):
            self._start_controller()
        for _ in range(rng.randint(1, 3)):
            self._start_worker()
        async with self._bus() as bus, anyio.create_task_group() as task_group:
            client = Client(bus=bus)
            for key, plan in plans.items():
                task_group.start_soon(self._one_run, client, key, plan)
            task_group.start_soon(self._disturb)
            await anyio.sleep(FAULTS_S)
            self.calm = True
            self.full_until = 0.0
            self._note("calm")
        # What is done behind the fold (registry, purges) gets its time.
        await anyio.sleep(5.0)

    async def _one_run(self, client: Client, key: str, plan: Any) -> None:
        self._open[key] = ""
        await anyio.sleep(self.rng.choice((0.0, 0.0, 1.0, 5.0)))
        handle: RunHandle[int] = await client.submit(plan.pipeline(), key=f"{self.seen.seed}-{key}")
        self._open[key] = handle.id
        self.seen.plans[handle.id] = plan
        self.seen.submitted_at[handle.id] = anyio.current_time()
        async with anyio.create_task_group() as task_group:
            if "cancel" in self.kinds:
                task_group.start_soon(self._cancel_later, handle)
            if "child" in self.kinds and self.families:
                task_group.start_soon(self._cancel_child_later, client)
            result = await handle.result()
            task_group.cancel_scope.cancel()
        del self._open[key]
        self.seen.statuses[handle.id] = result.status
        self.seen.ended_at[handle.id] = anyio.current_time()

    async def _cancel_later(self, handle: RunHandle[int]) -> None:
        await anyio.sleep(self.rng.random() * 6)
        self._note("cancel", handle.id)
        self.seen.cancelled.add(handle.id)
        await handle.cancel()

    async def _cancel_child_later(self, client: Client) -> None:
        await anyio.sleep(self.rng.random() * 8)
        subjects = [client.bus.subjects.parse_event(record.subject) for record in self.server.records]
        runs = {subject.run: subject.pipeline for subject in subjects if subject.pipeline == "inner"}
        if runs:
            run = self.rng.choice(list(runs))
            self._note("child", run)
            self.seen.cancelled_children.add(run)
            await RunHandle[int](client.bus, run, runs[run]).cancel("by somebody")


def _renamed(plan: Plan, run: str) -> Plan:
    def new(name: str) -> str:
        return f"{run}-{name}"

    return Plan(
        parents={new(name): [new(p) for p in above] for name, above in plan.parents.items()},
        retries={new(name): count for name, count in plan.retries.items()},
        delays_s={new(name): delay for name, delay in plan.delays_s.items()},
        failures={new(name): count for name, count in plan.failures.items()},
        retry_delay_s=plan.retry_delay_s,
        cached=plan.cached,
        limits={new(name): limits for name, limits in plan.limits.items()},
        children={new(name): _renamed(child, new(name)) for name, child in plan.children.items()},
    )


def simulate(
    seed: int,
    faults: tuple[str, ...] | None = None,
    *,
    cached: bool = False,
    limited: bool = False,
    families: bool = False,
    skips: bool = False,
) -> Outcomes:
    """Play one seed of the plain simulation."""
    return play(seed, Simulation(seed, faults, cached=cached, limited=limited, families=families, skips=skips))


def play(seed: int, simulation: Simulation) -> Outcomes:
    """Play one seed. The order of trio's tasks is drawn from it, too, so that one seed is one trace."""
    settings = vars(trio_run)
    allowed, settings["_ALLOW_DETERMINISTIC_SCHEDULING"] = settings["_ALLOW_DETERMINISTIC_SCHEDULING"], True
    trio_run._r.seed(seed)
    try:
        options = {"clock": MockClock(autojump_threshold=0), "instruments": [Bound(simulation)]}
        anyio.run(simulation.main, backend="trio", backend_options=options)
    except BaseException as error:
        error.add_note(simulation.seen.shown())
        raise
    finally:
        settings["_ALLOW_DETERMINISTIC_SCHEDULING"] = allowed
    return simulation.seen
