"""Names that may appear in a subject: pipelines, steps, queues, parameters.

Names become tokens of bus subjects, so what is allowed is decided here once and checked before
anything reaches the bus: a dot would split a subject, a wildcard would be stored literally, and a
subject over 4 KB closes the connection.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

from evpipe.errors import UsageError

NAME_LENGTH_MAX = 64
#: Names that are compared for a suggestion: each costs 7 µs, and a controller that refuses a graph serves others too.
NEAREST_MAX = 5_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
#: Tokens of a signal's name: `orders.created` has two.
SIGNAL_TOKENS_MAX = 8
#: Stands before the index of an element of a mapped step, on the bus: "train=2". No name of a user has it.
SEPARATOR = "="
#: A step as the bus names it: a name, or an element of a mapped step at any level.
STEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(=(0|[1-9][0-9]{0,6})){0,8}\Z")
_FOR_PEOPLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})((?:\[(?:0|[1-9][0-9]{0,6})\]){1,8})\Z")
ALLOWED = "1 to 64 letters, digits, '_' and '-', the first a letter or digit"


def check_name(what: str, name: object) -> str:
    """Return `name` if it may be a token of a subject.

    Args:
        what: what the name is of, for the message ("step", "queue", "pipeline").

    Raises:
        UsageError: if it is not a string of the allowed form.

    """
    if not isinstance(name, str):
        raise UsageError(f"{what} name must be a string, not {type(name).__name__}: allowed are {ALLOWED}")
    if NAME.match(name) is None:
        shown = name if len(name) <= NAME_LENGTH_MAX else f"{name[:24]}… ({len(name)} characters)"
        raise UsageError(f"{what} name {shown!a} is not allowed: allowed are {ALLOWED}")
    return name


def check_signal_name(name: object) -> str:
    """Return `name` if it may be a signal's: up to 8 names with dots between them, as in `orders.created`.

    Raises:
        UsageError: if it is not.

    """
    tokens = name.split(".") if isinstance(name, str) and len(name) <= 256 else []
    if not 0 < len(tokens) <= SIGNAL_TOKENS_MAX or not all(NAME.match(token) for token in tokens):
        shown = f"{name[:40]!a}" if isinstance(name, str) else f"a {type(name).__name__}"
        raise UsageError(
            f"{shown} is not the name of a signal: that is up to {SIGNAL_TOKENS_MAX} names with dots between them, "
            f"as in 'orders.created', each {ALLOWED}; at most 256 characters in all"
        )
    assert isinstance(name, str)
    return name


def for_people(step: str) -> str:
    """Give the name of a step as a person writes it: "train[2]" for "train=2"."""
    if SEPARATOR not in step:
        return step
    base, *indexes = step.split(SEPARATOR)
    return base + "".join(f"[{index}]" for index in indexes)


def from_people(step: str) -> str:
    """Give the name that the bus has for what a person wrote: "train=2" for "train[2]"; any other text as it is."""
    found = _FOR_PEOPLE.match(step)
    if found is None:
        return step
    return found[1] + found[2].replace("[", SEPARATOR).replace("]", "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Give "; did you mean 'x'?" for the known name that is most alike, or "" if none is."""
    if len(name) > NAME_LENGTH_MAX:
        return ""
    found = difflib.get_close_matches(name, itertools.islice(known, NEAREST_MAX), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def repr_of(value: object) -> str:
    """As `repr`, also of an integer with more digits than Python writes, or something that holds one."""
    try:
        return repr(value)
    except ValueError:
        return "a number of too many digits"
