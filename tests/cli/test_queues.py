"""`evpipe queues`: what waits and who serves it, and how much of a queue may run at a time."""

from __future__ import annotations

import json

import pytest

from tests.cli.helpers import CommandLine


def test_a_queue_is_listed_and_limited(hosted_bus: CommandLine) -> None:
    """The limit is shown, holds for a queue that nobody has served yet, and goes again."""
    assert [(queue["name"], queue["limit"]) for queue in json.loads(hosted_bus("queues", "-o", "json").out)] == [
        ("default", None)
    ]
    limited = hosted_bus("queues", "limit", "default", "4", "-o", "json")
    assert json.loads(limited.out) == {"name": "default", "limit": 4}
    assert "limited to 2 at a time" in hosted_bus("queues", "limit", "gpu", "2").err
    table = hosted_bus("queues", "list").out
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [["default", "0", "0", "4"], ["gpu", "0", "0", "2"]]
    assert "no limit" in hosted_bus("queues", "limit", "gpu", "none").err
    found = json.loads(hosted_bus("queues", "list", "-o", "json").out)
    assert [(queue["name"], queue["limit"]) for queue in found] == [("default", 4)]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("gpu", "0"), "must be a whole number from 1 to 99,999, not 0"),
        (("gpu", "many"), "must be a whole number from 1, or none, not 'many'"),
        (("g.u", "1"), "queue name 'g.u' is not allowed"),
        (("gpu",), "Missing argument"),
    ],
)
def test_bad_limits_are_refused_by_name(evpipe: CommandLine, args: tuple[str, ...], sentence: str) -> None:
    """Before anything is connected to."""
    refused = evpipe("queues", "limit", *args)
    assert refused.code == 2
    assert sentence in refused.err
