"""Launches of one run, encoded with what they have in common: the same bytes as one by one."""

from __future__ import annotations

from typing import Any

import pytest

from evpipe.core.graph import Step
from evpipe.core.states import RunIf
from evpipe.errors import EncodingError, LimitExceeded
from evpipe.wire.limits import ARGUMENTS_BYTES_MAX
from evpipe.wire.messages import LaunchEncoder, encode_launch, order_of

CODE = {"kind": "path", "module": "mine", "name": "load"}
SOURCE = {"kind": "bundle", "digest": "0" * 64}

STEPS = [
    Step(name="a", code=CODE),
    Step(name="b", code=dict(CODE), priority=3, queue="gpu"),
    Step(name="c", code={**CODE, "name": "train"}),
    Step(name="d", code=CODE, executor="thread"),
    Step(name="e", code=CODE, outputs=("x", "y")),
    Step(name="f", code=CODE, timeout_s=3.0),
    Step(name="g", code=CODE, pickle=True),
    Step(name="h", code=CODE, run_if=RunIf.ALWAYS),
    Step(name="i", code={"kind": "other", "parts": ["a", {"b": 1}]}),
    Step(name="j", code=CODE, outputs=("x",), timeout_s=3.0, pickle=True, run_if=RunIf.ALWAYS),
]


def test_a_launch_is_the_same_bytes_whatever_was_encoded_before() -> None:
    """Also of steps that differ in one thing, and where their code cannot be told apart quickly."""
    encoder = LaunchEncoder("demo", SOURCE)
    for arguments in ({}, {"x": 1, "rows": [1, 2.5, "three"]}, {"*": [b"four"]}):
        for step in (*STEPS, *reversed(STEPS)):
            order = order_of(step, arguments, pipeline="demo", source=SOURCE)
            assert encoder.encode(step, arguments) == encode_launch(order, "x"), step.name


@pytest.mark.parametrize(
    ("arguments", "error"), [({"x": object()}, EncodingError), ({"x": "y" * (ARGUMENTS_BYTES_MAX + 1)}, LimitExceeded)]
)
def test_what_cannot_be_encoded_is_refused_by_name(arguments: dict[str, Any], error: type[Exception]) -> None:
    encoder = LaunchEncoder("demo", {})
    with pytest.raises(error, match="arguments of step 'a'"):
        encoder.encode(STEPS[0], arguments)
