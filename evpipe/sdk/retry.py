"""`Retry`: how users say when a failed step is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from evpipe.core.retry import NO_RETRIES, RetryPolicy
from evpipe.errors import UsageError


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries of a step, as in `@step(retries=Retry(3, delay_s=5, on=(ConnectionError,)))`.

    Raises:
        UsageError: at construction, for a value out of range.

    """

    #: Retries after the first attempt, 0 to 1,000.
    count: int
    #: Seconds before the first retry.
    delay_s: float = 1.0
    #: Each further delay is the one before times this, 1 to 100.
    factor: float = 2.0
    #: No delay is longer than this many seconds.
    delay_max_s: float = 300.0
    #: The delay is spread by up to this fraction to either side, 0 to 1.
    jitter: float = 0.1
    #: Exceptions that are retried, subclasses included; empty: all are.
    on: tuple[type[BaseException], ...] = ()
    #: None is to begin more than this many seconds after the first one began; None: whenever. `timeout_s` of the step
    #: is for each attempt, this is for all of them: the last may begin when it is almost over. It is decided when an
    #: attempt has failed: how long the next one waits for a worker does not count. An attempt that was lost with its
    #: worker takes of this time, though not of `count`.
    within_s: float | None = None

    def __post_init__(self) -> None:
        self.policy()

    def policy(self) -> RetryPolicy:
        """Give the same as data that can travel: exception classes become their names."""
        if not isinstance(self.on, tuple) or not all(
            isinstance(c, type) and issubclass(c, BaseException) for c in self.on
        ):
            raise UsageError(f"retries: on must be a tuple of exception classes, as in (OSError,), not {self.on!r}")
        return RetryPolicy(
            count=self.count,
            delay_s=self.delay_s,
            factor=self.factor,
            delay_max_s=self.delay_max_s,
            jitter=self.jitter,
            on=tuple(f"{cls.__module__}.{cls.__qualname__}" for cls in self.on),
            within_s=self.within_s,
        )


def retry_policy(retries: object, where: str) -> RetryPolicy:
    """Give the policy that the option `retries=` of a step stands for.

    Args:
        where: names the step in messages.

    Raises:
        UsageError: if it is neither a count in range nor a `Retry`.

    """
    if isinstance(retries, Retry):
        return retries.policy()
    if not isinstance(retries, int) or isinstance(retries, bool):
        raise UsageError(f"{where}: retries must be a whole number or a Retry(...), not {retries!r}")
    if retries == 0:
        return NO_RETRIES
    try:
        return Retry(retries).policy()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
