"""The fingerprint of a step: what the cache goes by. Two steps with equal ones would compute the same.

    code + environment (packages, image, Python) + inputs by the digest of their content ──▶ fingerprint

The components are kept beside each result in the cache, so that a miss can be explained: by what this step differs
from the one that was run before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

#: Fingerprints of another way to make them must not be taken for these.
_FORM: Final = "evpipe fingerprint 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """How a step is cached."""

    #: Seconds that a result counts after it was made; None: for as long as it is kept.
    ttl_s: float | None = None
    #: Part of the fingerprint: another text is another step.
    version: str = ""
    #: Arguments that are not part of the fingerprint.
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionFacts:
    """What is known of a step's function where the run was submitted."""

    #: Digest of its normalised source and of what it uses; "": not known, so its steps are not cached.
    code: str = ""
    #: Version of each installed package that it uses, by name.
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the fingerprints of a run's steps go by beside their inputs."""

    #: Version of Python: "3.12".
    python: str = ""
    #: Name of the container image, where it has one.
    image: str = ""
    #: By "module:name" of the function.
    functions: Mapping[str, FunctionFacts] = field(default_factory=dict)


NO_FACTS: Final = RunFacts()


@dataclass(frozen=True, slots=True)
class Input:
    """One argument of a step."""

    digest: str
    #: The value for a person: short, one line.
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """What a fingerprint is made of."""

    code: str
    version: str = ""
    python: str = ""
    image: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Give the fingerprint: a SHA-256 in hex."""
        lines = [_FORM, self.code, self.version, self.python, self.image]
        lines += [f"p {name} {version}" for name, version in sorted(self.packages.items())]
        lines += [f"i {name} {found.digest}" for name, found in sorted(self.inputs.items())]
        # Each with its length: no text of a user can be taken for the end of another.
        return hashlib.sha256("".join(f"{len(line)} {line}\n" for line in lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Difference:
    """One component in which two steps differ."""

    #: "code", "version", "python", "image", "package" or "input".
    factor: str
    #: Of the package or the argument; "" for the others.
    name: str = ""
    #: As a person would say it; "" where there was, or is, none.
    before: str = ""
    now: str = ""

    def __str__(self) -> str:
        if self.factor in {"code", "version"} and not (self.before and self.now):
            return f"{self.factor} changed"
        what = {"package": f"package {self.name}", "input": f"`{self.name}`", "python": "Python"}.get(self.factor)
        if self.before == self.now:
            return f"{what} changed (shown alike: {self.now})"
        return f"{what or self.factor} {self.before or 'none'} → {self.now or 'none'}"


def differences(before: Components, now: Components) -> tuple[Difference, ...]:
    """Name every component in which two steps differ: code first, inputs in the order of their names last."""
    found: list[Difference] = []
    if before.code != now.code:
        found.append(Difference("code"))
    for factor in ("version", "python", "image"):
        a, b = getattr(before, factor), getattr(now, factor)
        if a != b:
            found.append(Difference(factor, before=a, now=b))
    for name in _names(before.packages, now.packages):
        a, b = before.packages.get(name, ""), now.packages.get(name, "")
        if a != b:
            found.append(Difference("package", name, a, b))
    nothing = Input("")
    for name in _names(before.inputs, now.inputs):
        was, is_now = before.inputs.get(name, nothing), now.inputs.get(name, nothing)
        if was.digest != is_now.digest:
            found.append(Difference("input", name, was.shown, is_now.shown))
    return tuple(found)


def _names(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return sorted({*a, *b})
