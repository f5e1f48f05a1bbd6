"""The graph of a pipeline: its steps, what each needs, and the check that it can run.

A `Graph` is immutable and complete when it exists: `Graph(...)` either validates or raises the sentence
that the user reads, whoever made it (the sdk, the command line, or a raw submit that the controller
decoded). Everything that grows with the graph is computed here, once; the machine only looks up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evpipe.core.artifact import Key
from evpipe.core.bindings import LEAVES, OneOf, OutputRef, ParameterRef, Tree, references
from evpipe.core.conditions import Condition, condition_trees
from evpipe.core.exits import RUN
from evpipe.core.fingerprint import CachePolicy
from evpipe.core.limits import PRIORITY_DEFAULT, Limit, check_limits, check_priority
from evpipe.core.lineage import NESTING_MAX, Child
from evpipe.core.mapping import POSITIONAL, Mapped, aligned_with
from evpipe.core.names import check_name, nearest
from evpipe.core.parameters import Parameter, check_parameter_names
from evpipe.core.retry import NO_RETRIES, RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.core.waits import SECONDS_MAX, Wait, check_wait
from evpipe.errors import LimitExceeded, UsageError

STEPS_MAX = 300_000
EXECUTORS = ("inline", "thread", "process", "command")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a graph."""

    name: str
    #: How a worker finds the function: a tagged map that the core carries and never looks into.
    code: Mapping[str, Any] = field(default_factory=dict)
    #: Argument name -> tree; the positional ones, if any, are a list under "*".
    arguments: Mapping[str, Tree] = field(default_factory=dict)
    #: Steps that must have ended well before this one, beside those whose outputs it takes.
    after: tuple[str, ...] = ()
    queue: str = "default"
    executor: str = "process"
    #: Names of the outputs, when they were declared.
    outputs: tuple[str, ...] | None = None
    retries: RetryPolicy = NO_RETRIES
    #: Seconds that one attempt may run; None: no limit.
    timeout_s: float | None = None
    on_failure: OnFailure = OnFailure.FAIL
    #: What the ends of the steps before it must be.
    run_if: RunIf = RunIf.ALL_SUCCEEDED
    #: What must be true then, or it is skipped; None: nothing.
    when: Condition | None = None
    #: Whether it begins when all others have ended: a handler, whose `run_if` is "always".
    on_exit: bool = False
    #: How it is mapped over lists; None: it runs once.
    mapped: Mapped | None = None
    #: None: it is not cached.
    cache: CachePolicy | None = None
    #: What it waits for, of a step that runs nowhere; None: it is launched.
    wait: Wait | None = None
    #: Whether its arguments and its output may be pickles.
    pickle: bool = False
    #: 0 (first) to 9; None: its run's.
    priority: int | None = None
    #: What it shares with steps of other runs, and must have before it begins.
    limits: tuple[Limit, ...] = ()
    #: The pipeline that it runs, as a run of its own; None: it is executed by a worker.
    child: Child | None = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A validated pipeline graph.

    Raises:
        UsageError: at construction, if it cannot run: an illegal or repeated name, an unknown parent or
            parameter (with the nearest name), a cycle (printed), a value out of range.
        LimitExceeded: if it has more than `STEPS_MAX` steps or a tree nested too deep.

    """

    pipeline: str
    version: str = ""
    steps: Mapping[str, Step] = field(default_factory=dict)
    #: Tree of the run's value.
    output: Tree = None
    parameters: tuple[Parameter, ...] = ()
    fail_fast: bool = False
    #: Seconds from submit to the end of the run; None: no limit.
    deadline_s: float | None = None
    #: Of its runs, where their submits say nothing else: 0 (first) to 9.
    priority: int = PRIORITY_DEFAULT
    description: str = ""

    #: Step -> the steps that it waits for, without repetition; one key per step.
    parents: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    #: Step -> the steps that wait for it; one key per step, the inverse of `parents`.
    dependents: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    #: Step -> those of its parents of which only one has to have a value (`OneOf`); no key where there are none.
    branches: Mapping[str, frozenset[str]] = field(init=False, repr=False, compare=False)
    #: The steps that begin when all others have ended.
    handlers: tuple[str, ...] = field(init=False, repr=False, compare=False)
    #: Step -> mapped steps of which each element waits for the one of it with the same index; no key where none do.
    aligned: Mapping[str, frozenset[str]] = field(init=False, repr=False, compare=False)
    #: Whether a step is mapped.
    has_maps: bool = field(init=False, repr=False, compare=False)
    #: All steps, parents first.
    order: tuple[str, ...] = field(init=False, repr=False, compare=False)
    #: Step -> how many steps the longest way to it has; one key per step.
    depth: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name("pipeline", self.pipeline)
        if not isinstance(self.version, str) or len(self.version) > 64:
            raise UsageError(f"pipeline {self.pipeline!r}: version must be text of at most 64 characters")
        if len(self.steps) > STEPS_MAX:
            raise LimitExceeded(
                f"pipeline {self.pipeline!r} has {len(self.steps):,} steps: at most {STEPS_MAX:,} are allowed",
                limit="STEPS_MAX",
                found=len(self.steps),
                allowed=STEPS_MAX,
            )
        check_seconds(f"pipeline {self.pipeline!r}: deadline_s", self.deadline_s)
        check_priority(f"pipeline {self.pipeline!r}: priority", self.priority)
        check_parameter_names(self.parameters)
        for name, step in self.steps.items():
            if name != step.name:
                raise UsageError(f"the step named {step.name!r} is in the graph as {name!r}: the names must be equal")
        known = frozenset(p.name for p in self.parameters)
        branches: dict[str, frozenset[str]] = {}
        parents = {name: self._parents_of(step, known, branches) for name, step in self.steps.items()}
        self._check_references("the pipeline's output", self.output, known)
        dependents: dict[str, list[str]] = {name: [] for name in self.steps}
        for name, above in parents.items():
            for parent in above:
                dependents[parent].append(name)
        aligned: dict[str, set[str]] = {}
        for name, step in self.steps.items():
            if step.mapped is not None:
                for parent in aligned_with(step, self.steps):
                    aligned.setdefault(parent, set()).add(name)
        # A frozen dataclass sets its derived fields through object: they are part of the one construction.
        object.__setattr__(self, "parents", parents)
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "dependents", {name: tuple(below) for name, below in dependents.items()})
        object.__setattr__(self, "handlers", tuple(name for name, step in self.steps.items() if step.on_exit))
        object.__setattr__(self, "aligned", {name: frozenset(below) for name, below in aligned.items()})
        object.__setattr__(self, "has_maps", any(step.mapped is not None for step in self.steps.values()))
        depth = depths(parents, self.dependents)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "order", tuple(depth))

    @classmethod
    def of(cls, steps: Iterable[Step], **fields: Any) -> Graph:
        """Make a graph of a list of steps; a name that is there twice is refused."""
        by_name: dict[str, Step] = {}
        for step in steps:
            if step.name in by_name:
                raise UsageError(f"there are two steps named {step.name!r}: names must differ")
            by_name[step.name] = step
        return cls(steps=by_name, **fields)

    def _parents_of(
        self, step: Step, parameters: frozenset[str], branches: dict[str, frozenset[str]]
    ) -> tuple[str, ...]:
        where = f"step {step.name!r}"
        check_name("step", step.name)
        if step.queue != "default":
            check_name(f"{where}: queue", step.queue)
        if step.executor not in EXECUTORS:
            raise UsageError(f"{where}: executor must be one of {', '.join(EXECUTORS)}, not {step.executor!r}")
        if step.timeout_s is not None:
            check_seconds(f"{where}: timeout_s", step.timeout_s)
        if step.cache is not None:
            check_seconds(f"{where}: cache: ttl_s", step.cache.ttl_s)
        if not isinstance(step.arguments.get(POSITIONAL, []), list):
            raise UsageError(
                f"{where}: what is under {POSITIONAL!r} in its arguments must be the list of positional ones"
            )
        if step.on_exit and step.run_if is not RunIf.ALWAYS:
            raise UsageError(f"{where} is an on_exit handler: its run_if must be always, not {step.run_if.value}")
        if step.wait is not None:
            if step.retries.count or step.cache is not None:
                raise UsageError(f"{where} waits: it is neither retried nor cached, for it runs nothing")
            if step.mapped is not None:
                raise UsageError(f"{where} waits: it is not mapped")
            if step.limits:
                raise UsageError(f"{where} waits: it has no limits, for it runs nothing")
            check_wait(where, step.wait, step.arguments, step.timeout_s)
        if step.priority is not None:
            check_priority(f"{where}: priority", step.priority)
        if step.limits:
            check_limits(where, step.limits)
        if step.mapped is not None:
            step.mapped.check(step)
        if step.child is not None:
            _check_child(where, step, step.child)
        above: dict[str, None] = {}
        of_branches: dict[str, None] = {}
        trees = [step.arguments] if step.when is None else [step.arguments, *condition_trees(step.when)]
        for tree in trees:
            for ref in self._check_references(where, tree, parameters, of_handler=step.on_exit):
                if isinstance(ref, OneOf):
                    of_branches.update((option.step, None) for option in ref.options)
                else:
                    above[ref.step] = None
        for name in step.after:
            self._check_step_known(where, name, f"waits for the step {name!r}, which is not in the pipeline")
            above[name] = None
        if step.on_exit and (above or of_branches):
            found = next(iter(above or of_branches))
            raise UsageError(f"{where} is an on_exit handler: it waits for all steps, and cannot name {found!r}")
        only_branches = frozenset(of_branches) - above.keys()
        if only_branches:
            branches[step.name] = only_branches
        return (*above, *(name for name in of_branches if name in only_branches))

    def _check_references(
        self, where: str, tree: Tree, parameters: frozenset[str], *, of_handler: bool = False
    ) -> list[OutputRef | OneOf]:
        found: list[OutputRef | OneOf] = []
        if isinstance(tree, dict) and all(type(child) in LEAVES for child in tree.values()):
            # Constants only, as in most steps of a wide graph: nothing to walk.
            return found
        for ref in references(tree):
            if isinstance(ref, ParameterRef):
                if ref.name not in parameters:
                    raise UsageError(
                        f"{where} takes the parameter {ref.name!r}, which the pipeline does not have"
                        + nearest(ref.name, parameters)
                    )
                continue
            if isinstance(ref, OneOf) and not ref.options:
                raise UsageError(f"{where} takes one of no outputs")
            if isinstance(ref, OutputRef) and ref.step == RUN:
                if not of_handler:
                    raise UsageError(f"{where} takes how its run ends, which only an on_exit handler can know")
                continue
            for option in ref.options if isinstance(ref, OneOf) else (ref,):
                self._check_output(where, option)
            found.append(ref)
        return found

    def _check_output(self, where: str, ref: OutputRef) -> None:
        self._check_step_known(where, ref.step, f"takes the output of {ref.step!r}, which is not in the pipeline")
        declared = self.steps[ref.step].outputs
        if declared is None or not ref.path:
            return
        mapped = self.steps[ref.step].mapped
        path = ref.path if mapped is None else _without_indexes(ref.path, mapped.levels)
        if path and isinstance(path[0], str) and path[0] not in declared:
            raise UsageError(
                f"{where} takes the output {path[0]!r} of {ref.step!r}, which has "
                f"{', '.join(declared)}{nearest(path[0], declared)}"
            )

    def _check_step_known(self, where: str, name: str, problem: str) -> None:
        if name not in self.steps:
            raise UsageError(f"{where} {problem}{nearest(name, self.steps)}")
        if self.steps[name].on_exit:
            raise UsageError(f"{where} needs the step {name!r}, an on_exit handler, which begins after all others")


def _without_indexes(path: tuple[Key, ...], levels: int) -> tuple[Key, ...]:
    """Leave out of a path what says which elements of a mapped step are meant."""
    count = 0
    while count < min(levels, len(path)) and isinstance(path[count], int):
        count += 1
    return path[count:]


def _check_child(where: str, step: Step, child: Child) -> None:
    check_name(f"{where}: pipeline", child.pipeline)
    if child.queue:
        check_name(f"{where}: queue", child.queue)
    if step.wait is not None:
        raise UsageError(f"{where} cannot both wait and be a pipeline")
    if step.limits:
        raise UsageError(f"{where} is a pipeline, which holds nothing: its steps may have limits")
    if step.cache is not None:
        raise UsageError(f"{where} is a pipeline, and what is cached is the steps of it")
    if child.up is not None and not 0 <= child.up <= NESTING_MAX:
        raise UsageError(f"{where}: its pipeline is {child.up} levels up: at most {NESTING_MAX} are allowed")
    if child.graph is not None and child.graph.pipeline != child.pipeline:
        raise UsageError(f"{where} runs pipeline {child.pipeline!r}, but its graph is that of {child.graph.pipeline!r}")


def graphs_in(graph: Graph) -> Iterator[Graph]:
    """Give a graph and those that are built into it, each once, it first."""
    seen = {id(graph)}
    todo = [graph]
    while todo:
        found = todo.pop()
        yield found
        for step in found.steps.values():
            inner = step.child.graph if step.child is not None else None
            if inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)


def found_in(graph: Graph, path: str) -> tuple[Step | None, tuple[Graph, ...]]:
    """Find a step in a graph and those that are built into it.

    Args:
        graph: built here, with all its graphs.
        path: "train", or "inner/train" of a step that is a run.

    Returns:
        The step, None if there is none; and the graph that it would be in, with those around it, the next one first.
    """
    *above, name = path.split("/")
    around: tuple[Graph, ...] = (graph,)
    for outer in above:
        step = around[0].steps.get(outer)
        if step is None or step.child is None:
            return None, around
        around = graphs_below(step.child, around)
    return around[0].steps.get(name), around


def graphs_below(child: Child, around: tuple[Graph, ...]) -> tuple[Graph, ...]:
    """Give the graph of a child, and those around it; `around` are those of its step."""
    if child.graph is not None:
        return (child.graph, *around)
    assert child.up is not None, "a graph that was built here has all its graphs"
    return around[child.up :]


def steps_in(graph: Graph) -> Iterator[Step]:
    """Give the steps of a graph, and of those that are built into it, that workers execute."""
    for found in graphs_in(graph):
        for step in found.steps.values():
            if step.child is None and step.wait is None:
                yield step


def queues_of(graph: Graph) -> set[str]:
    """Give the queues that the steps of a graph, and of those built into it, go to where no run says otherwise."""
    queues = {step.child.queue for found in graphs_in(graph) for step in found.steps.values() if step.child}
    return (queues - {""}) | {step.queue for step in steps_in(graph)}


def check_seconds(what: str, value: float | None) -> None:
    """Refuse a duration that is not a number of seconds above 0 (None is allowed: no limit)."""
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= SECONDS_MAX:
        raise UsageError(f"{what} must be seconds above 0 and at most {SECONDS_MAX:,.0f}, or None, not {value!r}")


def depths(parents: Mapping[str, Sequence[str]], dependents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Order the steps so that each comes after its parents (Kahn 1962), keeping their order where free.

    Returns:
        By step, in that order, how many steps the longest way to it has.

    Raises:
        UsageError: if there is a cycle; the sentence prints one.

    """
    waiting_on = {name: len(above) for name, above in parents.items()}
    found = {name: 0 for name, count in waiting_on.items() if count == 0}
    ready = deque(found)
    while ready:
        name = ready.popleft()
        below_it = found[name] + 1
        for below in dependents[name]:
            waiting_on[below] -= 1
            if waiting_on[below] == 0:
                # First in, first out: its last parent is its deepest.
                found[below] = below_it
                ready.append(below)
    if len(found) < len(parents):
        cycle = find_cycle(parents, {name for name, count in waiting_on.items() if count})
        shown = cycle if len(cycle) <= 12 else [*cycle[:10], "…", cycle[-1]]
        raise UsageError(f"the steps wait for each other in a cycle: {' -> '.join(shown)}")
    return found


def find_cycle(parents: Mapping[str, Sequence[str]], stuck: set[str]) -> list[str]:
    """Give one cycle among the steps that can never be ready, first step repeated at the end.

    Every stuck step has a stuck parent, so going from parent to parent must come back to a step seen.
    """
    name = min(stuck)
    seen: dict[str, int] = {}
    walk: list[str] = []
    while name not in seen:
        seen[name] = len(walk)
        walk.append(name)
        name = next(p for p in parents[name] if p in stuck)
    cycle = walk[seen[name] :][::-1]
    return [*cycle, cycle[0]]
