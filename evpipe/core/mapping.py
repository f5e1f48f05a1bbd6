"""Mapped steps: one step of the graph that runs once for each element of lists.

A mapped step is a *node* from when its lists are known: it has elements, `train=0`, `train=1`, …, each of which ends by
itself, and it ends when all of them have. With more than one level the elements of a node are nodes, too. Where it maps
over what another mapped step gives, element by element, `train=2` waits for `load=2` and for none of its siblings.

How many elements there are, and what each takes, is a function of the log: of the run's parameters, of outputs, and of
how many elements the steps have that it maps over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from evpipe.core.artifact import LENGTHS_MAX, LEVELS_MAX, Artifact, Key
from evpipe.core.bindings import BindingError, Known, OneOf, OutputRef, ParameterRef, Tree, references, resolve, select
from evpipe.core.conditions import AllOf, AnyOf, Comparison, Condition, IsTrue, Negation, condition_references
from evpipe.core.names import SEPARATOR, for_people, repr_of
from evpipe.core.states import STEP_VALUES, OnFailure, Reason, StepStatus
from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.core.graph import Step
    from evpipe.core.run_state import RunState, StepState

#: The argument under which the positional ones are, in a list.
POSITIONAL: Final = "*"
#: The kind of stored values that are numpy arrays.
_ARRAY: Final = "numpy"

#: What names an argument: its name, or its place among the positional ones.
Place: TypeAlias = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """How a step is mapped."""

    #: The arguments that are mapped over where they turn out to be lists; one that is no list is the same for all.
    places: tuple[Place, ...]
    #: Every element of one list with every one of the others, the last list's running fastest; else they go in step.
    product: bool = False
    #: How deep the lists are that are mapped over: 2 is lists of lists.
    levels: int = 1

    def check(self, step: Step) -> None:
        """Refuse what cannot be mapped; UsageError says why."""
        where = f"step {step.name!r}"
        if not 1 <= self.levels <= LEVELS_MAX:
            raise UsageError(f"{where}: levels must be 1 to {LEVELS_MAX}, not {self.levels!r}")
        if not self.places:
            raise UsageError(f"{where} is mapped over nothing: at least one argument must be a list, or may become one")
        for place in self.places:
            positional = step.arguments.get(POSITIONAL, [])
            if isinstance(place, str):
                gets = place in step.arguments and place != POSITIONAL
            else:
                gets = 0 <= place < len(positional)
            if not gets:
                raise UsageError(f"{where} is mapped over the argument {repr_of(place)}, which it does not get")


def element_of(node: str, index: int) -> str:
    """Give the name of an element."""
    return f"{node}{SEPARATOR}{index}"


def split_element(name: str) -> tuple[str, int]:
    """Give the node that an element is of, and its index in it."""
    node, _, index = name.rpartition(SEPARATOR)
    return node, int(index)


def base_of(name: str) -> str:
    """Give the step of the graph that a name is of: an element's is the mapped one."""
    return name.partition(SEPARATOR)[0]


def argument_at(step: Step, place: Place) -> Tree:
    return step.arguments[place] if isinstance(place, str) else step.arguments[POSITIONAL][place]


def is_each(ref: object) -> bool:
    """Say whether a reference to a mapped step is to what each of its elements gave, not to the list of all."""
    return isinstance(ref, OutputRef) and all(isinstance(key, str) for key in ref.path)


@dataclass(frozen=True, slots=True)
class Listed:
    """A list that is mapped over, and whose elements are there."""

    values: Sequence[Any]
    #: Whether the elements are trees with references in them, not values.
    trees: bool = False

    @property
    def count(self) -> int:
        return len(self.values)

    def at(self, index: int) -> Tree:
        return self.values[index] if self.trees else Known(self.values[index])


@dataclass(frozen=True, slots=True)
class Stored:
    """A list that is mapped over and is stored beside the log, or is in one that is: of it the length is known."""

    artifact: Artifact

    @property
    def count(self) -> int:
        return self.artifact.length or 0

    def at(self, index: int) -> Tree:
        return Known(self.artifact.part((index,)))


@dataclass(frozen=True, slots=True)
class Aligned:
    """What the elements of another mapped step give, each to the element with its index."""

    ref: OutputRef
    count: int

    def at(self, index: int) -> OutputRef:
        return OutputRef(element_of(self.ref.step, index), self.ref.path)


Source: TypeAlias = Listed | Stored | Aligned


@dataclass(slots=True)
class Expansion:
    """A node: a mapped step whose lists are known."""

    #: By argument, what is mapped over here.
    sources: dict[Place, Source]
    count: int
    product: bool
    #: Elements that have not ended.
    open_count: int = 0
    #: The first element that spoils the node, worst kind first: how, and what is said of it.
    failed: tuple[Reason | None, str] | None = None
    cancelled: tuple[Reason | None, str] | None = None
    skipped: tuple[Reason | None, str] | None = None

    def note(self, name: str, state: StepState, on_failure: OnFailure) -> None:
        """Take down how an element ended."""
        self.open_count -= 1
        if state.status in STEP_VALUES:
            return
        said = (state.reason, f"{for_people(name)}: {state.message}")
        if state.status is StepStatus.FAILED and on_failure is not OnFailure.CONTINUE:
            self.failed = self.failed or said
        elif state.status is StepStatus.CANCELLED:
            self.cancelled = self.cancelled or said
        elif state.status is StepStatus.SKIPPED and state.reason is not Reason.CONDITION:
            self.skipped = self.skipped or said

    def at(self, index: int) -> dict[Place, Tree]:
        """Give the trees that an element has in the places of the lists."""
        if not self.product:
            return {place: source.at(index) for place, source in self.sources.items()}
        found: dict[Place, Tree] = {}
        for place, source in reversed(self.sources.items()):
            index, digit = divmod(index, source.count)
            found[place] = source.at(digit)
        return found


def expand(run: RunState, name: str, step: Step) -> Expansion:
    """Find what a mapped step is mapped over, now that all its lists are known.

    Raises:
        BindingError: if there is nothing to map over, or lists that go in step differ in length.
    """
    assert step.mapped is not None
    arguments = run.trees_of(name)
    sources: dict[Place, Source] = {}
    absent = 0
    for place in step.mapped.places:
        tree = arguments[place] if isinstance(place, str) else arguments[POSITIONAL][place]
        source = _source(run, tree)
        if source is not None:
            sources[place] = source
        elif (steps := _steps_in(tree)) and run.outputs.keys().isdisjoint(steps):
            absent += 1
    shown = for_people(name)
    if not sources:
        if absent:
            # What it would map over was skipped, or may fail: there are no elements, and that is all.
            return Expansion({}, 0, product=False)
        what = ", ".join(_shown_kind(run, place, arguments) for place in step.mapped.places)
        way = _way_to_list(run, step.mapped.places, arguments)
        raise BindingError(f"step {shown!r} is mapped over what is no list: {what}; it takes a list or a tuple{way}")
    counts = {place: source.count for place, source in sources.items()}
    if step.mapped.product:
        return Expansion(sources, math.prod(counts.values()), product=True)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{_shown_place(place)} has {count:,}" for place, count in counts.items())
        raise BindingError(
            f"step {shown!r} is mapped over lists of different lengths: {told}; unmapped(...) makes one the same for "
            "all elements, product=True takes every combination"
        )
    return Expansion(sources, next(iter(counts.values())), product=False)


def _source(run: RunState, tree: Tree) -> Source | None:
    """Give what a tree is as something to map over; None if it is no list."""
    if isinstance(tree, OutputRef) and tree.step in run.expansions and is_each(tree):
        return Aligned(tree, run.expansions[tree.step].count)
    if isinstance(tree, (list, tuple)):
        return Listed(tree, trees=True) if not hasattr(tree, "_fields") else None
    value = resolve(tree, run.outputs, run.parameters)
    if isinstance(value, Artifact):
        return Stored(value) if value.is_list and value.length is not None else None
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return Listed(value)
    return None


def arguments_at(step: Step, arguments: Mapping[str, Tree], found: Mapping[Place, Tree]) -> dict[str, Tree]:
    """Give the arguments of an element, from those of its node and what it has in the places of the lists."""
    made = dict(arguments)
    positional: list[Tree] | None = None
    for place, tree in found.items():
        if isinstance(place, str):
            made[place] = tree
        else:
            positional = positional or list(arguments[POSITIONAL])
            positional[place] = tree
    if positional is not None:
        made[POSITIONAL] = positional
    return made


def lists_of(step: Step) -> set[OutputRef | ParameterRef | OneOf]:
    """Give the references that a mapped step maps over."""
    assert step.mapped is not None
    trees = (argument_at(step, place) for place in step.mapped.places)
    return {tree for tree in trees if isinstance(tree, (OutputRef, ParameterRef, OneOf))}


def aligned_with(step: Step, steps: Mapping[str, Step]) -> set[str]:
    """Give the mapped steps of which an element of this one waits for the element with its index, and for no more."""
    assert step.mapped is not None
    if step.mapped.product:
        return set()
    lists = lists_of(step)
    found = {
        ref.step
        for ref in lists
        if isinstance(ref, OutputRef) and is_each(ref) and (of := steps.get(ref.step)) is not None and of.mapped
    }
    whole = set(step.after)
    for name, tree in step.arguments.items():
        for place, child in enumerate(tree) if name == POSITIONAL else ((name, tree),):
            if place in step.mapped.places and is_each(child):
                continue
            for ref in references(child):
                whole.update(_steps_in(ref))
    if step.when is not None:
        for ref in condition_references(step.when):
            if _list_of(ref, lists) is None:
                whole.update(_steps_in(ref))
    return found - whole


def _steps_in(ref: Tree) -> tuple[str, ...]:
    if isinstance(ref, OneOf):
        return tuple(option.step for option in ref.options)
    return (ref.step,) if isinstance(ref, OutputRef) else ()


def asks_each(step: Step) -> bool:
    """Say whether the condition of a mapped step is about its elements: it names a list that is mapped over."""
    if step.when is None:
        return False
    lists = lists_of(step)
    return any(_list_of(ref, lists) is not None for ref in condition_references(step.when))


def condition_at(step: Step, arguments: Mapping[str, Tree]) -> Condition:
    """Give the condition of an element: a list that is mapped over stands for what the element takes of it."""
    assert step.mapped is not None
    assert step.when is not None
    of_lists: dict[Any, Tree] = {}
    for place in step.mapped.places:
        tree = argument_at(step, place)
        if isinstance(tree, (OutputRef, ParameterRef, OneOf)):
            of_lists[tree] = arguments[place] if isinstance(place, str) else arguments[POSITIONAL][place]

    def changed(tree: Tree) -> Tree:
        found = _list_of(tree, of_lists) if isinstance(tree, (OutputRef, ParameterRef, OneOf)) else None
        if found is not None:
            rest = tree.path[len(found.path) :] if isinstance(tree, OutputRef) and isinstance(found, OutputRef) else ()
            return _part(of_lists[found], rest)
        if isinstance(tree, dict):
            return {key: changed(child) for key, child in tree.items()}
        if isinstance(tree, list):
            return [changed(child) for child in tree]
        return tree

    return _with(step.when, changed)


def _list_of(ref: Any, lists: Any) -> Any:
    """Give which of the lists a reference is to, or to a part of its elements; None: to none of them."""
    if ref in lists:
        return ref
    if not isinstance(ref, OutputRef):
        return None
    for length in range(len(ref.path) - 1, -1, -1):
        shorter = OutputRef(ref.step, ref.path[:length])
        if shorter in lists:
            return shorter
    return None


def _part(tree: Tree, path: tuple[Key, ...]) -> Tree:
    if not path:
        return tree
    if isinstance(tree, OutputRef):
        return OutputRef(tree.step, tree.path + path)
    value = tree.value if isinstance(tree, Known) else tree
    return Known(select(value, OutputRef("", path), "the element"))


def _with(condition: Condition, changed: Any) -> Condition:
    match condition:
        case IsTrue(tree):
            return IsTrue(changed(tree))
        case Comparison(operator, left, right):
            return Comparison(operator, changed(left), changed(right))
        case AllOf(parts):
            return AllOf(tuple(_with(part, changed) for part in parts))
        case AnyOf(parts):
            return AnyOf(tuple(_with(part, changed) for part in parts))
        case Negation(part):
            return Negation(_with(part, changed))


def _shown_place(place: Place) -> str:
    return place if isinstance(place, str) else f"positional argument {place + 1}"


def _way_to_list(run: RunState, places: Sequence[Place], arguments: Mapping[str, Tree]) -> str:
    """Say how what was given is made a list, where it can be: what follows "it takes a list or a tuple"."""
    for place in places:
        tree = arguments[place] if isinstance(place, str) else arguments[POSITIONAL][place]
        value = resolve(tree, run.outputs, run.parameters)
        if isinstance(value, Artifact) and value.kind == _ARRAY and not value.path:
            return ": .tolist() makes one of an array"
        if isinstance(value, (set, frozenset, range)):
            return f": list(...) makes one of a {type(value).__name__}"
    return ""


def _shown_kind(run: RunState, place: Place, arguments: Mapping[str, Tree]) -> str:
    tree = arguments[place] if isinstance(place, str) else arguments[POSITIONAL][place]
    value = resolve(tree, run.outputs, run.parameters)
    if isinstance(value, Artifact) and value.is_list and value.path:
        return (
            f"{_shown_place(place)} is a part of a list that is stored as one ({value}), and not known to be a list: "
            f"that is known of parts that are all lists and of one length, or at most {LENGTHS_MAX:,}; where a step of "
            "its own gives each part, that may be a list"
        )
    kind = f"<{value.kind}>" if isinstance(value, Artifact) else type(value).__name__
    return f"{_shown_place(place)} is of type {kind}"
