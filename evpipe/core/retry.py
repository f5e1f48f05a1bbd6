"""When a failed attempt is followed by another, and how long it waits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from evpipe.errors import UsageError

COUNT_MAX = 1_000
#: An attempt lost with its worker is not the step's fault: it has a budget of its own, not charged to `count`.
LOST_MAX = 3
WITHIN_S_MAX = 86_400.0 * 366


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed step is tried again."""

    #: Retries after the first attempt, 0 to 1,000.
    count: int = 0
    #: Seconds before the first retry.
    delay_s: float = 1.0
    #: Each further delay is the one before times this.
    factor: float = 2.0
    #: No delay is longer than this many seconds.
    delay_max_s: float = 300.0
    #: The delay is spread by up to this fraction to either side, 0 to 1.
    jitter: float = 0.1
    #: Names ("module.Class") of the exceptions that are retried; empty: all are.
    on: tuple[str, ...] = ()
    #: No attempt begins more than this many seconds after the first one, above 0; None: whenever. Attempts that were
    #: lost take of this time, too.
    within_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or not 0 <= self.count <= COUNT_MAX:
            raise UsageError(f"retries: count must be a whole number from 0 to {COUNT_MAX}, not {self.count!r}")
        for name, low, high in (
            ("delay_s", 0.0, 86_400.0 * 30),
            ("factor", 1.0, 100.0),
            ("delay_max_s", 0.0, 86_400.0 * 30),
            ("jitter", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
                raise UsageError(f"retries: {name} must be a number from {low:g} to {high:g}, not {value!r}")
        within_s = self.within_s
        if within_s is not None and (
            not isinstance(within_s, (int, float)) or isinstance(within_s, bool) or not 0 < within_s <= WITHIN_S_MAX
        ):
            raise UsageError(
                f"retries: within_s must be None or a number above 0 and up to {WITHIN_S_MAX:g}, not {within_s!r}"
            )

    def matches(self, exception_types: Sequence[str]) -> bool:
        """Say whether a failure with these exception types (the class and its bases) is retried."""
        return not self.on or any(name in self.on for name in exception_types)

    def delay_before(self, retry: int, *, jitter_key: str) -> float:
        """Seconds before retry number `retry` (1 is the first).

        The jitter is a hash of `jitter_key` (run, step, attempt), not a random number: whoever folds the
        same log computes the same moment.
        """
        # The exponent is capped because the delay is: 2.0 ** 2000 overflows long after the cap has won.
        delay_s = min(self.delay_s * self.factor ** min(retry - 1, 128), self.delay_max_s)
        if not delay_s or not self.jitter:
            return delay_s
        fraction = int.from_bytes(hashlib.blake2b(jitter_key.encode(), digest_size=4).digest(), "big") / 0xFFFFFFFF
        return min(delay_s * (1 + self.jitter * (2 * fraction - 1)), self.delay_max_s)


NO_RETRIES = RetryPolicy()
