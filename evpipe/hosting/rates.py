"""Rates of steps that are called one after the other in this process: kept by sleeping."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from evpipe.core.limits import COUNT_MAX, Limit, Rate

#: By name, when the steps that named it were called, by the monotonic clock; also those of runs before.
_called_at: dict[str, deque[float]] = {}


def keep_rates(limits: Iterable[Limit]) -> None:
    """Wait until a step with these limits may be called now, and take note that it is."""
    rates = [limit for limit in limits if isinstance(limit, Rate)]
    if not rates:
        return
    at = time.monotonic()
    for rate in rates:
        called_at = _called_at.setdefault(rate.name, deque(maxlen=COUNT_MAX))
        if len(called_at) >= rate.count:
            at = max(at, called_at[-rate.count] + rate.per_s)
    time.sleep(max(0.0, at - time.monotonic()))
    for rate in rates:
        _called_at[rate.name].append(time.monotonic())
