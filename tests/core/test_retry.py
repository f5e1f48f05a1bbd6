"""How long a retry waits, what is retried, and what a policy may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.retry import RetryPolicy
from evpipe.errors import UsageError
from tests.core.budget import examples


@pytest.mark.parametrize(
    ("policy", "delays_s"),
    [
        (RetryPolicy(jitter=0.0), [1.0, 2.0, 4.0, 8.0]),
        (RetryPolicy(jitter=0.0, delay_s=10, factor=3), [10.0, 30.0, 90.0, 270.0, 300.0, 300.0]),
        (RetryPolicy(jitter=0.0, delay_s=5.0, factor=1.0), [5.0, 5.0, 5.0]),
        (RetryPolicy(jitter=0.0, delay_s=7.0, delay_max_s=3.0), [3.0, 3.0]),
        (RetryPolicy(jitter=0.0, delay_s=0.0), [0.0, 0.0]),
        (RetryPolicy(jitter=1.0, delay_s=0.0), [0.0, 0.0]),
        (RetryPolicy(jitter=0.0, delay_max_s=0.0), [0.0, 0.0]),
    ],
)
def test_each_delay_is_the_one_before_times_the_factor_up_to_the_largest(
    policy: RetryPolicy, delays_s: list[float]
) -> None:
    assert [policy.delay_before(n, jitter_key="k") for n in range(1, len(delays_s) + 1)] == delays_s


def test_the_thousandth_delay_does_not_overflow() -> None:
    policy = RetryPolicy(count=1_000, factor=100.0, delay_s=86_400.0 * 30, delay_max_s=86_400.0 * 30, jitter=0.0)
    assert policy.delay_before(1_000, jitter_key="k") == 86_400.0 * 30


@given(st.floats(0.0, 1.0), st.text())
@examples(100)
def test_jitter_spreads_a_delay_by_its_fraction_and_is_a_function_of_its_key(jitter: float, key: str) -> None:
    delay_s = RetryPolicy(delay_s=10.0, jitter=jitter).delay_before(1, jitter_key=key)
    assert 10.0 * (1 - jitter) - 1e-9 <= delay_s <= 10.0 * (1 + jitter) + 1e-9
    assert delay_s == RetryPolicy(delay_s=10.0, jitter=jitter).delay_before(1, jitter_key=key)


def test_the_jitter_of_a_known_key_never_changes() -> None:
    """Another hash would move the waits of runs that are under way."""
    delay_s = RetryPolicy(delay_s=10.0, jitter=0.1).delay_before(1, jitter_key="run00001.train.2")
    assert delay_s == 10.0 * (1 + 0.1 * (2 * (0x365FA150 / 0xFFFFFFFF) - 1))  # printf … | b2sum -l 32


@pytest.mark.parametrize(
    ("on", "types", "retried"),
    [
        ((), (), True),
        ((), ("m.Any",), True),
        (("builtins.OSError",), ("builtins.OSError",), True),
        (("builtins.OSError",), ("builtins.FileNotFoundError", "builtins.OSError"), True),
        (("builtins.OSError",), ("m.OSError",), False),
        (("builtins.OSError",), (), False),
    ],
)
def test_a_filter_matches_the_exception_or_a_base_of_it(
    on: tuple[str, ...], types: tuple[str, ...], retried: bool
) -> None:
    assert RetryPolicy(on=on).matches(types) is retried


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"count": -1}, "retries: count must be a whole number from 0 to 1000, not -1"),
        ({"count": 1_001}, "retries: count must be a whole number from 0 to 1000, not 1001"),
        ({"count": True}, "retries: count must be a whole number from 0 to 1000, not True"),
        ({"count": 1.0}, "retries: count must be a whole number from 0 to 1000, not 1.0"),
        ({"delay_s": -0.1}, "retries: delay_s must be a number from 0 to 2.592e+06, not -0.1"),
        ({"delay_s": NAN}, "retries: delay_s must be a number from 0 to 2.592e+06, not nan"),
        ({"delay_s": "1"}, "retries: delay_s must be a number from 0 to 2.592e+06, not '1'"),
        ({"factor": 0.5}, "retries: factor must be a number from 1 to 100, not 0.5"),
        ({"factor": float("inf")}, "retries: factor must be a number from 1 to 100, not inf"),
        ({"within_s": 0}, "retries: within_s must be None or a number above 0 and up to 3.16224e+07, not 0"),
        ({"within_s": True}, "retries: within_s must be None or a number above 0 and up to 3.16224e+07, not True"),
        ({"within_s": NAN}, "retries: within_s must be None or a number above 0 and up to 3.16224e+07, not nan"),
        ({"delay_max_s": None}, "retries: delay_max_s must be a number from 0 to 2.592e+06, not None"),
        ({"jitter": 1.1}, "retries: jitter must be a number from 0 to 1, not 1.1"),
        ({"jitter": True}, "retries: jitter must be a number from 0 to 1, not True"),
    ],
)
def test_a_policy_out_of_range_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        RetryPolicy(**fields)
    assert str(caught.value) == sentence
