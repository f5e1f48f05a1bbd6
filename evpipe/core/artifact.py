"""An artifact: a value that is stored by the digest of its bytes, as it stands in events, launches and graphs.

Whoever decodes a value gets artifacts as leaves of it and hands them on as they are; only a reader that was given a
way to load them puts the values in their places. The core never opens one: of a part of an artifact it notes the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

Key: TypeAlias = str | int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Artifact:
    """A stored value, or a part of one."""

    #: Name of the serializer that wrote it, and the version of what it wrote.
    kind: str
    version: int = 1
    #: SHA-256 of its bytes, in hex; the name of the object that holds them.
    digest: str
    size_bytes: int
    #: The bytes themselves, where they are few; None: they are in the object store.
    data: bytes | None = None
    #: What the serializer needs beside the bytes: plain values; part of what the value is.
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    #: Digest of the value, where equal values may have different bytes; "": that of the bytes will do.
    content: str = ""
    #: Length of the value, where it has one that others may need to know; None: it has none.
    length: int | None = None
    #: Whether it is a list or a tuple, which can be mapped over.
    is_list: bool = False
    #: Whether there are artifacts in it that have to be fetched with it.
    nested: bool = False
    #: What is meant of it, outermost first; empty: all of it.
    path: tuple[Key, ...] = ()

    def part(self, path: tuple[Key, ...]) -> Artifact:
        """Give the artifact that stands for a part of this one."""
        return replace(self, path=self.path + path) if path else self

    def __repr__(self) -> str:
        part = "".join(f"[{key!r}]" for key in self.path)
        return f"<{self.kind}, {self.size_bytes:,} bytes, {self.digest[:12]}>{part}"
