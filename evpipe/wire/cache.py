"""What the cache's bucket holds, and what goes there and back.

Three kinds of keys, by fingerprint (64 hex digits):

<fingerprint>                              a marker (who computes it now), then the entry (what was computed)
made.<pipeline>.<step>.<fingerprint>       the components of an entry, for whoever explains a miss
hit.<fingerprint>.<run>.<step>             who used it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from evpipe.core.events import Origin
from evpipe.core.fingerprint import CachePolicy, Components, FunctionFacts, Input, RunFacts
from evpipe.errors import RemoteProtocolError
from evpipe.wire.codec import Fields, decode_map, encode_map

BUCKET: Final = "cache"
#: A hit is remembered for so long.
HIT_TTL_S: Final = 30 * 86_400.0
#: Characters of an argument that are kept to be shown.
SHOWN_CHARS_MAX: Final = 80


@dataclass(frozen=True, slots=True)
class Expired:
    """A result that was there when a step was looked up, and was older than the step's `ttl_s`."""

    run: str
    #: When it was recorded, by the bus's clock.
    at_s: float


@dataclass(frozen=True, slots=True)
class Marker:
    """A step that is about to be launched, or runs: others with its fingerprint wait for it."""

    pipeline: str
    run: str
    step: str
    #: What it has replaced. No part of who it is.
    expired: Expired | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A result."""

    fingerprint: str
    pipeline: str
    run: str
    step: str
    attempt: int
    #: The payload of the attempt's `succeeded`.
    event: bytes
    components: Mapping[str, Any]
    #: Why it was made, if that is it: what was there under its fingerprint was too old.
    expired: Expired | None = None

    def origin(self, at_s: float) -> Origin:
        """Give where it comes from; `at_s` is when the bucket got it."""
        return Origin(pipeline=self.pipeline, run=self.run, step=self.step, at_s=at_s)


@dataclass(frozen=True, slots=True)
class Made:
    """An entry as the explanation of a miss needs it."""

    run: str
    attempt: int
    components: Components
    expired: Expired | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A step that took its result from the cache."""

    fingerprint: str
    pipeline: str
    run: str
    step: str


# ---- keys


def made_key(pipeline: str, step: str, fingerprint: str) -> str:
    return f"made.{pipeline}.{step}.{fingerprint}"


def hit_key(hit: Hit) -> str:
    return f"hit.{hit.fingerprint}.{hit.run}.{hit.step}"


def is_entry_key(key: str) -> bool:
    """Say whether a key is that of an entry, or a marker."""
    return "." not in key


# ---- entries


def encode_marker(marker: Marker) -> bytes:
    fields = {"marker": True, "pipeline": marker.pipeline, "run": marker.run, "step": marker.step}
    return encode_map({**fields, **expired_map(marker.expired)})


def encode_entry(entry: CacheEntry) -> bytes:
    fields = {
        "fingerprint": entry.fingerprint,
        "pipeline": entry.pipeline,
        "run": entry.run,
        "step": entry.step,
        "attempt": entry.attempt,
        "components": entry.components,
    }
    return encode_map({**fields, **expired_map(entry.expired), "event": entry.event})


def decode_entry(data: bytes) -> CacheEntry | Marker:
    """Decode what stands under a fingerprint.

    Raises:
        RemoteProtocolError: if it is neither.
    """
    fields = decode_map(data, "the cache entry")
    if fields.flag("marker"):
        return Marker(fields.text("pipeline"), fields.text("run"), fields.text("step"), expired_of(fields))
    event = fields.map.get("event")
    if not isinstance(event, bytes):
        raise RemoteProtocolError("the cache entry has no result")
    return CacheEntry(
        fingerprint=fields.text("fingerprint"),
        pipeline=fields.text("pipeline"),
        run=fields.text("run"),
        step=fields.text("step"),
        attempt=fields.whole("attempt"),
        event=event,
        components=fields.submap("components"),
        expired=expired_of(fields),
    )


def encode_made(entry: CacheEntry) -> bytes:
    fields = {"run": entry.run, "attempt": entry.attempt, "components": entry.components}
    return encode_map({**fields, **expired_map(entry.expired)})


def decode_made(data: bytes) -> Made:
    """Decode the components of an entry; RemoteProtocolError if they are none."""
    fields = decode_map(data, "the cache entry's components")
    return Made(
        fields.text("run"),
        fields.whole("attempt", 1),
        components_of(Fields(fields.submap("components"), "the components")),
        expired_of(fields),
    )


def expired_map(expired: Expired | None) -> dict[str, Any]:
    """Give the field, for what has one, that says which result was too old."""
    return {} if expired is None else {"expired": {"run": expired.run, "at": expired.at_s}}


def expired_of(fields: Fields) -> Expired | None:
    """Read that field; RemoteProtocolError if it says something else."""
    found = Fields(fields.submap("expired"), f"{fields.what}: the one that expired")
    return Expired(found.text("run"), found.number("at")) if found.map else None


def encode_hit(hit: Hit) -> bytes:
    return encode_map({"pipeline": hit.pipeline, "run": hit.run, "step": hit.step})


# ---- what fingerprints are made of


def components_map(found: Components) -> dict[str, Any]:
    """Give the components as they travel in launches and entries."""
    return {
        "code": found.code,
        "version": found.version,
        "python": found.python,
        "image": found.image,
        "packages": dict(found.packages),
        "inputs": {name: [given.digest, given.shown] for name, given in found.inputs.items()},
    }


def components_of(fields: Fields) -> Components:
    """Read components.

    Raises:
        RemoteProtocolError: if they are none.
    """
    inputs: dict[str, Input] = {}
    for name, given in fields.submap("inputs").items():
        if not isinstance(given, list) or len(given) != 2 or not all(isinstance(part, str) for part in given):
            raise RemoteProtocolError(f"{fields.what}: the input {name[:64]!r} is none")
        inputs[name] = Input(*given)
    return Components(
        code=fields.text("code"),
        version=fields.text("version", ""),
        python=fields.text("python", ""),
        image=fields.text("image", ""),
        packages=_texts(fields, "packages"),
        inputs=inputs,
    )


def facts_map(facts: RunFacts) -> dict[str, Any]:
    """Give the facts of a run as they travel in its submit."""
    functions = {name: [found.code, dict(found.packages)] for name, found in facts.functions.items()}
    return {"python": facts.python, "image": facts.image, "functions": functions}


def facts_of(fields: Fields) -> RunFacts:
    """Read the facts of a run; RemoteProtocolError if they are none."""
    functions: dict[str, FunctionFacts] = {}
    for name, found in fields.submap("functions").items():
        if not isinstance(found, list) or len(found) != 2 or not isinstance(found[0], str):
            raise RemoteProtocolError(f"{fields.what}: the function {name[:64]!r} is none")
        functions[name] = FunctionFacts(
            code=found[0], packages=_texts(Fields({"packages": found[1]}, fields.what), "packages")
        )
    return RunFacts(python=fields.text("python", ""), image=fields.text("image", ""), functions=functions)


def policy_map(policy: CachePolicy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if policy.ttl_s is not None:
        found["ttl_s"] = float(policy.ttl_s)
    if policy.version:
        found["version"] = policy.version
    if policy.ignore:
        found["ignore"] = list(policy.ignore)
    return found


def policy_of(fields: Fields) -> CachePolicy:
    return CachePolicy(
        ttl_s=fields.maybe_number("ttl_s"), version=fields.text("version", ""), ignore=fields.texts("ignore")
    )


def _texts(fields: Fields, key: str) -> dict[str, str]:
    found = fields.submap(key)
    if not all(isinstance(text, str) for text in found.values()):
        raise RemoteProtocolError(f"{fields.what}: field {key!r} is no map of texts")
    return found
