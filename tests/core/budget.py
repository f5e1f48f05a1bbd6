"""How many examples the property tests try: with `EVPIPE_EXAMPLES=20` in the environment, 20 times as many."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MULTIPLIER = float(os.environ.get("EVPIPE_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """Settings for a property that needs about `count` examples to be worth its name."""
    return settings(
        max_examples=max(1, int(count * MULTIPLIER)),
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
