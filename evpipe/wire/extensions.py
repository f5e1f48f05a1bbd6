"""The extension types of values on the wire, by code, and what the modules that read and write them share.

0 to 15 are values, 16 and above are references of argument trees. A code is never given another meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

TUPLE: Final = 1
#: [class, fields, values]
NAMED_TUPLE: Final = 2
#: A list, in the order of its elements' bytes.
SET: Final = 3
FROZENSET: Final = 4
#: A dict with a key that is not text: [key, value, key, value, …].
DICT: Final = 5
#: An int over 64 bits: two's complement, the most significant byte first, as short as it can be.
INT: Final = 6
BYTEARRAY: Final = 7
#: A type of the standard library: [name, …], see `standard.py`.
STANDARD: Final = 8
#: [class, member, value] or, where the value has no encoding, [class, member]; [class, nil, bits] of a flag.
ENUM: Final = 9
#: [class, fields, values]
DATACLASS: Final = 10
#: [class, fields, values] of a msgspec Struct
STRUCT: Final = 11
#: [dtype, bytes]
NUMPY: Final = 12
#: A stored value: [kind, version, digest, size, bytes or nil, meta, content digest, length or nil, nested, path].
ARTIFACT: Final = 13
OUTPUT_REF: Final = 16
PARAMETER_REF: Final = 17
#: A list of outputs of which the first that is there is meant: [[step, path], …].
ONE_OF: Final = 18

#: Types in which nothing is nested.
LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
#: Elements of a set, or keys of a dict, that may have the same hash: a set of n such takes n * n comparisons.
EQUAL_HASHES_MAX: Final = 1_000

ACCEPTED: Final = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, dates and "
    "times, Decimal, Fraction, UUID, enum members, NamedTuples, dataclasses, msgspec Structs and numpy scalars"
)
ACCEPTED_STORED: Final = (
    f"{ACCEPTED}, numpy arrays, pandas, Arrow, paths of files and folders, images, scikit-learn estimators, torch "
    "tensors, boosters, and what has an @serializer"
)


class Refused(Exception):
    """A node has no encoding. `path` grows from the inside out while the exception travels up.

    Args:
        hint: what to do instead.
        raised: by code of the user, where that is why.
    """

    def __init__(self, problem: str, hint: str = "", *, raised: BaseException | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.raised = raised
        self.path: list[str] = []


def int_bytes(number: int) -> bytes:
    """Give an int over 64 bits as it travels."""
    return number.to_bytes((number if number >= 0 else ~number).bit_length() // 8 + 1, "big", signed=True)


def too_many_equal_hashes(elements: Sequence[Any]) -> bool:
    """Say whether a set of these would take more than linear time; may raise what their hashes raise."""
    if len(elements) <= EQUAL_HASHES_MAX:
        return False
    return max(Counter(map(hash, elements)).values()) > EQUAL_HASHES_MAX


def named(cls: type) -> str:
    """Name a type as messages do."""
    if cls.__module__ != "builtins":
        return f"a value of type {cls.__module__}.{cls.__qualname__}"
    return f"{'an' if cls.__name__[0] in 'aeiou' else 'a'} {cls.__name__}"
