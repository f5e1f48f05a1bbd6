"""One row of the table of scenarios, and how the two engines' words for states compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evpipe import RunResult
from evpipe.sdk.definition import AnyPipeline

#: Word of the scenarios -> the states that it is in evpipe.
WORDS = {
    "ok": {"succeeded"},
    "fail": {"failed"},
    "timeout": {"failed"},
    "skip": {"skipped"},
    "omit": {"skipped"},
    "cached": {"cached"},
    # No attempt was made.
    "never": {"skipped", "cancelled"},
    "cancelled": {"cancelled"},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A scenario, and how it ends there and here."""

    id: str
    pipeline: AnyPipeline[..., Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: The original's final states: "A B: ok, C: skip".
    theirs: str
    their_run: str = "ok"
    #: evpipe's: "A B: succeeded, C: skipped condition"; with the reason, where there is one.
    ours: str
    our_run: str = "succeeded"
    #: Why they differ, where they do, and how evpipe says what the original has another word for.
    differs: str = ""
    value: Any = None
    #: Looks at what states do not show.
    check: Callable[[RunResult[Any]], None] | None = None
    #: Parameters that it has in debug mode instead, where one call follows the other and none is ended from outside.
    in_debug: Mapping[str, Any] = field(default_factory=dict)
    #: Modes in which it cannot be played, and why.
    not_in: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    #: The run is cancelled when these events, of step and kind, have come.
    cancel_at: Sequence[tuple[str, str]] = ()
    #: A queue that a process of its own serves, which is killed when a step on it has begun; another takes over.
    dies: str = ""
    #: It is alone with a controller that ends when the first answer is asked for; another one begins.
    restarts: bool = False
    #: What is broken while it runs.
    broken: Sequence[str] = ()
    refresh: Sequence[str] = ()
    #: Rows with the same word here run one after the other, in their order; others at the same time.
    after: str = ""
    #: Seconds to let pass before it.
    pause_s: float = 0.0


def states(text: str) -> dict[str, str]:
    """Read "A B: ok, C: skip"."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        names, _, state = part.partition(":")
        found.update(dict.fromkeys(names.split(), state.strip()))
    return found


def agree(row: Row) -> bool:
    """Say whether both engines end alike."""
    theirs, ours = states(row.theirs), states(row.ours)
    same = all(name in ours and ours[name].split()[0] in WORDS[word] for name, word in theirs.items())
    return same and row.our_run.split()[0] in WORDS[row.their_run]
