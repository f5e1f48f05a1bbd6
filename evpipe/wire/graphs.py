"""A graph specification as bytes: stored once by its digest, named by every submit of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from evpipe.core.conditions import DEPTH_MAX, AllOf, AnyOf, Comparison, Condition, IsTrue, Negation
from evpipe.core.graph import Graph, Step
from evpipe.core.limits import PRIORITY_DEFAULT, Limit, Rate, Semaphore
from evpipe.core.lineage import Child
from evpipe.core.mapping import Mapped
from evpipe.core.parameters import REQUIRED, Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, RunIf
from evpipe.core.waits import Wait, WaitKind
from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.artifacts import ArtifactWriter, is_digest
from evpipe.wire.cache import policy_map, policy_of
from evpipe.wire.codec import Fields, decode_map, encode_map
from evpipe.wire.limits import GRAPH_BYTES_MAX
from evpipe.wire.values import packable

_RETRIES_DEFAULT = RetryPolicy()
#: As it is in an encoded graph; other texts may be the same.
_CHILD_FIELD = b"\xa5child"


def encode_graph(graph: Graph, writer: ArtifactWriter | None = None, graphs: dict[str, bytes] | None = None) -> bytes:
    """Encode a graph. Equal graphs give equal bytes.

    Args:
        writer: stores constants that are large or have a serializer; None: those are refused.
        graphs: takes the bytes of the graphs that are built into it, by digest, inner ones first: they have to be in
            the store before it. None: they are not wanted.

    Raises:
        EncodingError: if a constant among its arguments has no encoding; names the step and the argument.
        LimitExceeded: if it is larger than `GRAPH_BYTES_MAX`.

    """
    return _encoded(graph, writer, {} if graphs is None else graphs, {})


def _encoded(graph: Graph, writer: ArtifactWriter | None, graphs: dict[str, bytes], digests: dict[int, str]) -> bytes:
    """Encode a graph; `digests` has those of the graphs inside that are done, by identity."""

    def digest_of(inner: Graph) -> str:
        if id(inner) not in digests:
            data = _encoded(inner, writer, graphs, digests)
            digests[id(inner)] = graph_digest(data)
            graphs[digests[id(inner)]] = data
        return digests[id(inner)]

    steps = [_step_map(step, writer, digest_of) for step in graph.steps.values()]
    output = packable(graph.output, "the pipeline's output", writer)
    # What a graph says since later versions is left out at its default: its digest stays what it was.
    later = {} if graph.priority == PRIORITY_DEFAULT else {"priority": graph.priority}
    data = encode_map(
        {
            **later,
            "pipeline": graph.pipeline,
            "version": graph.version,
            "parameters": [_parameter_map(p, writer) for p in graph.parameters],
            "steps": steps,
            "output": output,
            "fail_fast": graph.fail_fast,
            "deadline_s": None if graph.deadline_s is None else float(graph.deadline_s),
            "description": graph.description,
        }
    )
    if len(data) > GRAPH_BYTES_MAX:
        raise LimitExceeded(
            f"the graph of {graph.pipeline!r} is {len(data):,} bytes: at most {GRAPH_BYTES_MAX:,} are allowed",
            limit="GRAPH_BYTES_MAX",
            found=len(data),
            allowed=GRAPH_BYTES_MAX,
        )
    return data


def graph_digest(data: bytes) -> str:
    """Name of an encoded graph: the SHA-256 of its bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def decode_graph(data: bytes) -> Graph:
    """Decode and validate a graph.

    Raises:
        RemoteProtocolError: if the bytes are not a graph.
        UsageError: if it is one that cannot run, with the sentence that its author's process would have given.

    """
    fields = decode_map(data, "the graph")
    return Graph.of(
        [_step(Fields(_map(found, "a step"), "a step of the graph")) for found in fields.items("steps")],
        pipeline=fields.text("pipeline"),
        version=fields.text("version", ""),
        parameters=tuple(_parameter(Fields(_map(p, "a parameter"), "a parameter")) for p in fields.items("parameters")),
        output=fields.map.get("output"),
        fail_fast=fields.flag("fail_fast"),
        deadline_s=fields.maybe_number("deadline_s"),
        priority=fields.whole("priority", PRIORITY_DEFAULT),
        description=fields.text("description", ""),
    )


def _step_map(step: Step, writer: ArtifactWriter | None, digest_of: Callable[[Graph], str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": step.name,
        "code": packable(dict(step.code), f"the code of step {step.name!r}"),
        "arguments": {
            name: packable(tree, f"argument {name!r} of step {step.name!r}", writer)
            for name, tree in step.arguments.items()
        },
        "queue": step.queue,
        "executor": step.executor,
    }
    # What is at its default is left out: most steps of a large graph set nothing.
    if step.after:
        found["after"] = list(step.after)
    if step.outputs is not None:
        found["outputs"] = list(step.outputs)
    if step.retries != _RETRIES_DEFAULT:
        policy = step.retries
        found["retries"] = {
            "count": policy.count,
            "delay_s": float(policy.delay_s),
            "factor": float(policy.factor),
            "delay_max_s": float(policy.delay_max_s),
            "jitter": float(policy.jitter),
            "on": list(policy.on),
        }
        if policy.within_s is not None:
            found["retries"]["within_s"] = float(policy.within_s)
    if step.timeout_s is not None:
        found["timeout_s"] = float(step.timeout_s)
    if step.on_failure is not OnFailure.FAIL:
        found["on_failure"] = step.on_failure.value
    if step.run_if is not RunIf.ALL_SUCCEEDED:
        found["run_if"] = step.run_if.value
    if step.when is not None:
        found["when"] = _condition_list(step.when, f"the condition of step {step.name!r}", writer)
    if step.on_exit:
        found["on_exit"] = True
    if step.mapped is not None:
        found["mapped"] = {
            "places": list(step.mapped.places),
            **({"product": True} if step.mapped.product else {}),
            **({"levels": step.mapped.levels} if step.mapped.levels != 1 else {}),
        }
    if step.cache is not None:
        found["cache"] = policy_map(step.cache)
    if step.wait is not None:
        found["wait"] = _wait_map(step.wait)
    if step.pickle:
        found["pickle"] = True
    if step.priority is not None:
        found["priority"] = step.priority
    if step.limits:
        found["limits"] = [_limit_map(limit) for limit in step.limits]
    if step.child is not None:
        found["child"] = _child_map(step.child, digest_of)
    if step.description:
        found["description"] = step.description
    return found


def _child_map(child: Child, digest_of: Callable[[Graph], str]) -> dict[str, Any]:
    found: dict[str, Any] = {"pipeline": child.pipeline}
    if child.up is not None:
        found["up"] = child.up
    else:
        found["graph"] = child.digest if child.graph is None else digest_of(child.graph)
    if child.queue:
        found["queue"] = child.queue
    return found


def _child(found: Fields, key: str) -> Child:
    fields = Fields(found.submap(key), f"{found.what}: field {key!r}")
    up = fields.whole("up") if "up" in fields.map else None
    digest = fields.text("graph", "")
    if up is None and not is_digest(digest):
        raise RemoteProtocolError(f"{fields.what}: {digest[:80]!r} is not the digest of a graph (64 hex digits)")
    return Child(
        pipeline=fields.text("pipeline"), digest="" if up is not None else digest, up=up, queue=fields.text("queue", "")
    )


def children_in(data: bytes) -> set[str]:
    """Give the digests of the graphs that are built into an encoded one; none if it is no graph that can be read."""
    if _CHILD_FIELD not in data:
        return set()
    try:
        graph = decode_graph(data)
    except (RemoteProtocolError, UsageError):
        return set()
    return {step.child.digest for step in graph.steps.values() if step.child is not None and step.child.digest}


def _step(fields: Fields) -> Step:
    name = fields.text("name")
    fields.what = f"step {name[:64]!r} of the graph"
    # Only what is there is read: most steps of a large graph have no more than a name, code and arguments.
    return Step(name=name, **{key: read(fields, key) for key, read in _STEP_FIELDS if key in fields.map})


def _on_failure(found: Fields, key: str) -> OnFailure:
    text = found.text(key)
    if text not in tuple(OnFailure):
        raise UsageError(f"step {found.text('name')!r}: on_failure must be one of {', '.join(OnFailure)}, not {text!r}")
    return OnFailure(text)


def _run_if(found: Fields, key: str) -> RunIf:
    text = found.text(key)
    if text not in tuple(RunIf):
        raise UsageError(f"step {found.text('name')!r}: run_if must be one of {', '.join(RunIf)}, not {text!r}")
    return RunIf(text)


def _condition_list(condition: Condition, what: str, writer: ArtifactWriter | None) -> list[Any]:
    """Give a condition as it travels: [what it is, …]."""
    match condition:
        case IsTrue(tree):
            return ["is", packable(tree, what, writer)]
        case Comparison(operator, left, right):
            return [operator, packable(left, what, writer), packable(right, what, writer)]
        case AllOf(parts):
            return ["and", *(_condition_list(part, what, writer) for part in parts)]
        case AnyOf(parts):
            return ["or", *(_condition_list(part, what, writer) for part in parts)]
        case Negation(part):
            return ["not", _condition_list(part, what, writer)]


def _condition(found: Any, depth: int = 0) -> Condition:
    """Read a condition; RemoteProtocolError if it is none."""
    match found:
        case ["is", tree]:
            return IsTrue(tree)
        case [("==" | "!=" | "<" | "<=" | ">" | ">=") as operator, left, right]:
            return Comparison(operator, left, right)
        case [("and" | "or") as kind, *parts] if depth < DEPTH_MAX:
            inner = tuple(_condition(part, depth + 1) for part in parts)
            return AllOf(inner) if kind == "and" else AnyOf(inner)
        case ["not", part] if depth < DEPTH_MAX:
            return Negation(_condition(part, depth + 1))
    raise RemoteProtocolError("a step of the graph has a condition that is none, or nested too deep")


def _wait_map(wait: Wait) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": wait.kind.value}
    if wait.kind is WaitKind.APPROVAL:
        found["answer"] = _type_map(wait.answer)
    if wait.reject_fails:
        found["reject_fails"] = True
    if wait.since_submit:
        found["since_submit"] = True
    return found


def _wait(found: Fields, key: str) -> Wait:
    fields = Fields(found.submap(key), f"{found.what}: wait")
    kind = fields.text("kind")
    if kind not in tuple(WaitKind):
        raise UsageError(f"step {found.text('name')!r}: a wait is one of {', '.join(WaitKind)}, not {kind[:40]!r}")
    answer = _type(fields.submap("answer")) if "answer" in fields.map else ParameterType("bool")
    return Wait(
        kind=WaitKind(kind),
        answer=answer,
        reject_fails=fields.flag("reject_fails"),
        since_submit=fields.flag("since_submit"),
    )


def _mapped(found: Fields, key: str) -> Mapped:
    fields = Fields(found.submap(key), f"{found.what}: mapped")
    places = tuple(fields.items("places"))
    if not all(isinstance(place, str) or type(place) is int for place in places):
        raise RemoteProtocolError(f"{fields.what}: a place is neither the name nor the number of an argument")
    return Mapped(places=places, product=fields.flag("product"), levels=fields.whole("levels", 1))


def _retries(found: Fields, key: str) -> RetryPolicy:
    fields = Fields(found.submap(key), f"{found.what}: retries")
    return RetryPolicy(
        count=fields.whole("count", 0),
        delay_s=fields.number("delay_s", _RETRIES_DEFAULT.delay_s),
        factor=fields.number("factor", _RETRIES_DEFAULT.factor),
        delay_max_s=fields.number("delay_max_s", _RETRIES_DEFAULT.delay_max_s),
        jitter=fields.number("jitter", _RETRIES_DEFAULT.jitter),
        on=fields.texts("on"),
        within_s=fields.maybe_number("within_s"),
    )


def _limit_map(limit: Limit) -> dict[str, Any]:
    if isinstance(limit, Rate):
        return {"kind": "rate", "name": limit.name, "count": limit.count, "per_s": float(limit.per_s)}
    return {"kind": "semaphore", "name": limit.name, "count": limit.count}


def _limits(found: Fields, key: str) -> tuple[Limit, ...]:
    made: list[Limit] = []
    for item in found.items(key):
        fields = Fields(_map(item, f"{found.what}: a limit"), f"{found.what}: a limit")
        kind = fields.text("kind")
        if kind == "semaphore":
            made.append(Semaphore(fields.text("name"), fields.whole("count")))
        elif kind == "rate":
            made.append(Rate(fields.text("name"), fields.whole("count"), fields.number("per_s")))
        else:
            # Not to be ignored: whoever asked for it counts on it.
            raise UsageError(f"{found.what}: a limit is a 'semaphore' or a 'rate', and this one is a {kind[:40]!r}")
    return tuple(made)


_STEP_FIELDS: tuple[tuple[str, Callable[[Fields, str], Any]], ...] = (
    ("code", Fields.submap),
    ("arguments", Fields.submap),
    ("queue", Fields.text),
    ("executor", Fields.text),
    ("after", Fields.texts),
    ("outputs", Fields.texts),
    ("retries", _retries),
    ("timeout_s", Fields.maybe_number),
    ("on_failure", _on_failure),
    ("run_if", _run_if),
    ("when", lambda found, key: _condition(found.map.get(key))),
    ("on_exit", Fields.flag),
    ("mapped", _mapped),
    ("cache", lambda found, key: policy_of(Fields(found.submap(key), f"{found.what}: cache"))),
    ("wait", _wait),
    ("pickle", Fields.flag),
    ("priority", Fields.whole),
    ("limits", _limits),
    ("child", _child),
    ("description", Fields.text),
)


def _parameter_map(parameter: Parameter, writer: ArtifactWriter | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": parameter.name, "type": _type_map(parameter.type)}
    if parameter.default is not REQUIRED:
        found["default"] = packable(parameter.default, f"the default of parameter {parameter.name!r}", writer)
    return found


def _parameter(fields: Fields) -> Parameter:
    return Parameter(
        name=fields.text("name"),
        type=_type(fields.submap("type")),
        default=fields.map.get("default", REQUIRED),
    )


def _type_map(found: ParameterType) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": found.kind}
    if found.inner:
        made["inner"] = [_type_map(inner) for inner in found.inner]
    if found.values:
        made["values"] = packable(list(found.values), "a parameter's choices")
    return made


def _type(found: dict[str, Any], depth: int = 0) -> ParameterType:
    if depth > 16:
        raise RemoteProtocolError("a parameter's type is nested deeper than 16 levels")
    fields = Fields(found, "a parameter's type")
    inner = [_type(_map(item, "a type"), depth + 1) for item in fields.items("inner")]
    return ParameterType(fields.text("kind", "any"), tuple(inner), tuple(fields.items("values")))


def _map(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"{what} is of type {type(found).__name__}, not a map")
    return found
