"""`Cache`: how the results of a step are kept and used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import check_seconds
from evpipe.errors import UsageError

VERSION_CHARS_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Cache:
    """Keep the results of a step: `@step(cache=Cache(ttl_s=3600))`; `cache=True` is `Cache()`.

    A result is used again for a step with the same fingerprint: the code of its function and of what that uses, the
    versions of Python and of the packages, and its arguments by the digest of their content.
    """

    #: Seconds that a result counts after it was made; None: for as long as it is kept.
    ttl_s: float | None = None
    #: Part of the fingerprint: another text makes the results so far count no more.
    version: str = ""
    #: Names of arguments that do not count.
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_seconds("Cache: ttl_s", self.ttl_s)
        if not isinstance(self.version, str) or len(self.version) > VERSION_CHARS_MAX:
            raise UsageError(f"Cache: version must be text of at most {VERSION_CHARS_MAX} characters")
        if isinstance(self.ignore, str) or not all(isinstance(name, str) for name in self.ignore):
            raise UsageError(f"Cache: ignore must be names of arguments in a tuple, not {self.ignore!r}")


def cache_policy(value: Any, where: str) -> CachePolicy | None:
    """Read the option `cache`: True, False, None or a `Cache`.

    Raises:
        UsageError: for anything else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return CachePolicy()
    if not isinstance(value, Cache):
        raise UsageError(f"{where}: cache must be True, False or a Cache(...), not {value!r}")
    ttl_s = None if value.ttl_s is None else float(value.ttl_s)
    return CachePolicy(ttl_s=ttl_s, version=value.version, ignore=tuple(value.ignore))
