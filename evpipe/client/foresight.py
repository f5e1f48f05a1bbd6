"""What would happen if a graph were submitted now: which steps the cache would give, which would run, and why.

Nothing is submitted and nothing is written. A step whose inputs are known (they are constants, parameters, or come from
steps that would be cached) is looked up; of the others nobody can say before their inputs are there.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from evpipe.bus.protocol import Bus
from evpipe.client.fingerprints import components_of, facts_of_run
from evpipe.core.bindings import BindingError, resolve
from evpipe.core.events import StepSucceeded
from evpipe.core.fingerprint import NO_FACTS
from evpipe.core.graph import Graph, Step, steps_in
from evpipe.core.names import for_people
from evpipe.core.waits import WaitKind
from evpipe.errors import EvpipeError, RemoteProtocolError
from evpipe.sdk.annotations import evaluate, return_annotation
from evpipe.sdk.definition import Built
from evpipe.wire.cache import BUCKET, CacheEntry, decode_entry
from evpipe.wire.classes import layout_of
from evpipe.wire.extensions import LEAVES
from evpipe.wire.graphs import decode_graph, encode_graph
from evpipe.wire.messages import Submission, decode_event, decode_submission, encode_submission
from evpipe.wire.serializers.registry import LIBRARIES, is_registered
from evpipe.wire.spool import spooled
from evpipe.wire.standard import STANDARD_TYPES
from evpipe.wire.subjects import EventSubject

#: What serializers of a library need beside it.
_NEEDS: Final = {"pandas": ("pyarrow",), "polars": ("pyarrow",), "sklearn": ("skops",), "torch": ("safetensors",)}
_DEPTH_MAX: Final = 8
WAITS_FOR: Final = {
    WaitKind.SLEEP: "a while",
    WaitKind.APPROVAL: "an answer",
    WaitKind.SIGNAL: "a signal",
    WaitKind.RUN_EVENT: "an event of another run",
}
#: What classes have whose fields are what travels.
_RECORDS: Final = ("_fields", "__dataclass_fields__")


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What would become of a step."""

    step: str
    #: "cached", "runs", "waits" or, if that depends on what runs before it, "open".
    outcome: str
    why: str


async def foresee(bus: Bus | None, built: Built, *, no_cache: bool, refresh: tuple[str, ...]) -> list[Foreseen]:
    """Say what would become of each step, in the graph's order.

    Args:
        bus: where the cache is; None: it is not asked, so steps that may be cached are "open".
        refresh: names of steps that are not looked up; "*" is all.
    """
    # As whoever launches it would have it.
    with spooled() as spool:
        graph = decode_graph(encode_graph(built.graph, spool))
        submission = Submission(graph="0" * 64, parameters=built.parameters)
        parameters = decode_submission(encode_submission(submission, spool)).parameters
    facts = facts_of_run(built.graph) or NO_FACTS
    known: dict[str, Any] = {}
    found: dict[str, Foreseen] = {}
    for name in graph.order:
        step = graph.steps[name]
        if step.wait is not None:
            found[name] = Foreseen(name, "waits", f"for {WAITS_FOR[step.wait.kind]}")
        elif step.child is not None:
            found[name] = Foreseen(name, "runs", "a run of its own")
        elif step.cache is None or no_cache:
            found[name] = Foreseen(name, "runs", "not cached" if step.cache is None else "no_cache")
        elif name in refresh or "*" in refresh:
            found[name] = Foreseen(name, "runs", "refreshed")
        elif step.mapped is not None:
            found[name] = Foreseen(name, "open", "each element of its lists is looked up by itself")
        elif (missing := [parent for parent in graph.parents[name] if parent not in known]) != []:
            found[name] = Foreseen(name, "open", f"depends on what {', '.join(missing[:3])} gives")
        elif bus is None:
            found[name] = Foreseen(name, "open", "the cache was not asked")
        else:
            try:
                arguments = resolve(step.arguments, known, parameters)
                components = components_of(step, arguments, facts)
            except (BindingError, EvpipeError) as error:
                found[name] = Foreseen(name, "runs", f"its arguments cannot be made: {error}")
                continue
            if components is None:
                found[name] = Foreseen(name, "runs", "the source of its function is not known")
                continue
            fingerprint = components.fingerprint()
            event, why = await _looked_up(bus, step, fingerprint)
            found[name] = Foreseen(name, "runs" if event is None else "cached", why)
            if event is not None:
                known[name] = event.value
    return [found[name] for name in graph.steps]


async def _looked_up(bus: Bus, step: Step, fingerprint: str) -> tuple[StepSucceeded | None, str]:
    entry = await bus.bucket(BUCKET).get(fingerprint)
    if entry is None:
        return None, f"no result with the fingerprint {fingerprint[:12]}"
    try:
        content = decode_entry(entry.value)
        if not isinstance(content, CacheEntry):
            return None, f"step {for_people(content.step)} of run {content.run} may be computing it now"
        subject = EventSubject(content.pipeline, content.run, content.step, "succeeded")
        event = decode_event(subject, content.event, entry.at_s)
    except RemoteProtocolError as error:
        return None, f"the result cannot be read: {error}"
    assert step.cache is not None, "only of cached steps"
    if step.cache.ttl_s is not None and (now_s := await _now_s(bus)) - entry.at_s > step.cache.ttl_s:
        return None, f"the result is {now_s - entry.at_s:,.0f} s old, and counts for {step.cache.ttl_s:,g} s"
    if not isinstance(event, StepSucceeded):
        return None, "the result is none"
    return event, f"as step {for_people(content.step)} of run {content.run}"


async def _now_s(bus: Bus) -> float:
    """Give the newest moment that the bus's clock has shown in the log; where there is no log, it is this machine's."""
    newest = await bus.last(bus.subjects.all_events)
    return newest.at_s if newest is not None else time.time()


# ---- serializers


def missing_serializers(graph: Graph) -> list[str]:
    """Say of which steps the return annotation names a class that nothing here can write; a sentence for each."""
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    for step in steps_in(graph):
        module, name = str(step.code.get("module")), str(step.code.get("name"))
        if (module, name) in seen or step.pickle or step.wait is not None:
            continue
        seen.add((module, name))
        function = getattr(sys.modules.get(module), name, None)
        function = getattr(function, "_fn", function)
        if not inspect.isfunction(function):
            continue
        for cls in _classes(return_annotation(function), vars(sys.modules[module]), 0):
            problem = _problem(cls)
            if problem:
                found.append(f"step {step.name!r} returns {cls.__module__}.{cls.__qualname__}: {problem}")
    return found


def _classes(annotation: Any, namespace: dict[str, Any], depth: int) -> Iterator[type]:
    annotation = evaluate(annotation, namespace)
    if depth > _DEPTH_MAX:
        return
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is not typing.Literal:
        for argument in arguments:
            yield from _classes(argument, namespace, depth + 1)
    if isinstance(annotation, type) and not arguments:
        fields = getattr(annotation, "__annotations__", {})
        if (
            typing.is_typeddict(annotation)
            or hasattr(annotation, "_fields")
            or hasattr(annotation, "__dataclass_fields__")
        ):
            inner = vars(sys.modules.get(annotation.__module__, typing))
            for field in fields.values():
                yield from _classes(field, inner, depth + 1)
        else:
            yield annotation


def _problem(cls: type) -> str:
    if cls in LEAVES or cls in STANDARD_TYPES or is_registered(cls):
        return ""
    for base in cls.__mro__:
        library = str(getattr(base, "__module__", "")).partition(".")[0]
        if is_registered(base):
            return ""
        if library in LIBRARIES:
            missing = [need for need in _NEEDS.get(library, ()) if importlib.util.find_spec(need) is None]
            return f"its serializer needs {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else ""
    if cls.__module__ in {"builtins", "typing", "abc", "collections", "collections.abc", "types"}:
        return ""
    layout = layout_of(cls)
    if layout is None:
        return "it has no serializer: give it one with @serializer"
    return f"it is {layout.problem}: give it a serializer" if layout.problem else ""
