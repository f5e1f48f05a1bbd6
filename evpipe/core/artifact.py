"""An artifact: a value that is stored by the digest of its bytes, as it stands in events, launches and graphs.

Whoever decodes a value gets artifacts as leaves of it and hands them on as they are; only a reader that was given a
way to load them puts the values in their places. The core never opens one: of a part of an artifact it notes the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final, TypeAlias

Key: TypeAlias = str | int
#: How long the lists in a list are, level by level: one number where all of a level are equally long, else one for each
#: of them, in order.
Lengths: TypeAlias = tuple[int | tuple[int, ...], ...]

#: How deep lists are that can be mapped over: 2 is lists of lists.
LEVELS_MAX: Final = 8
#: Numbers in the lengths of one value. They are in the event that has it: a guess at what is worth that.
LENGTHS_MAX: Final = 10_000


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
    #: Length of what is meant, where it has one that others may need to know; None: it has none, or nobody knows.
    length: int | None = None
    #: Whether the value is a list or a tuple: with a length, what is meant of it can be mapped over.
    is_list: bool = False
    #: How long the lists in what is meant are, as far as it is known.
    lengths: Lengths = ()
    #: Whether there are artifacts in it that have to be fetched with it.
    nested: bool = False
    #: What is meant of it, outermost first; empty: all of it.
    path: tuple[Key, ...] = ()

    def part(self, path: tuple[Key, ...]) -> Artifact:
        """Give the artifact that stands for a part of this one."""
        if not path:
            return self
        length, lengths = self.length, self.lengths
        for key in path:
            length, lengths = _of_part(length, lengths, key)
        return replace(self, path=self.path + path, length=length, lengths=lengths)

    def brief(self, numbers_max: int = 0) -> Artifact:
        """Give it without the lengths of the lists in it, if those are more than so many numbers."""
        return replace(self, lengths=()) if self.lengths and count_of(self.lengths) > numbers_max else self

    def __repr__(self) -> str:
        part = "".join(f"[{key!r}]" for key in self.path)
        return f"<{self.kind}, {self.size_bytes:,} bytes, {self.digest[:12]}>{part}"


def lengths_in(values: Any) -> Lengths:
    """Find how long the lists in a list or a tuple are, down to what is no list.

    A level of which only some are lists is not known, and neither is what would be more than `LENGTHS_MAX` numbers.
    """
    found: list[int | tuple[int, ...]] = []
    level: Any = values
    numbers = 0
    while len(found) < LEVELS_MAX - 1:
        # Of a level of a million numbers the first is looked at.
        if not level or not all(type(child) is list or type(child) is tuple for child in level):
            break
        lengths = tuple(map(len, level))
        numbers += 1 if len(set(lengths)) == 1 else len(lengths)
        if numbers > LENGTHS_MAX:
            break
        found.append(_shortest(lengths))
        below = next(iter(chain.from_iterable(level)), None)
        level = list(chain.from_iterable(level)) if type(below) is list or type(below) is tuple else ()
    return tuple(found)


def count_of(lengths: Lengths) -> int:
    """Give how many numbers lengths are."""
    return sum(1 if isinstance(level, int) else len(level) for level in lengths)


def _of_part(length: int | None, lengths: Lengths, key: Key) -> tuple[int | None, Lengths]:
    """Give the length of a part of a list, and the lengths of the lists in that."""
    if length is None or not lengths or isinstance(key, str) or not -length <= key < length:
        return None, ()
    # Which of the lists of the level are in the part, from the first to before the last.
    first, last = key % length, key % length + 1
    found: list[int | tuple[int, ...]] = []
    for number, level in enumerate(lengths, 1):
        if first == last:
            break
        found.append(level if isinstance(level, int) else _shortest(level[first:last]))
        if number < len(lengths):
            if isinstance(level, int):
                first, last = first * level, last * level
            else:
                before = sum(level[:first])
                first, last = before, before + sum(level[first:last])
    own = found[0]
    assert isinstance(own, int), "of one list"
    return own, tuple(found[1:])


def _shortest(lengths: tuple[int, ...]) -> int | tuple[int, ...]:
    return lengths[0] if len(set(lengths)) == 1 else lengths
