"""`evpipe why`: why a step does not run, or did not, down to what that comes from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from evpipe.cli.output import Command, Exit, json_text, one_line, output_option, url_option, write_data
from evpipe.cli.runs import find_run, on_bus, run_argument
from evpipe.core.states import STEP_ENDS

if TYPE_CHECKING:
    from evpipe.client.client import Client
    from evpipe.core.why import Why


@click.command(cls=Command)
@run_argument
@click.argument("step")
@url_option
@output_option
def why(run_id: str, step: str, url: str | None, output: str) -> Exit:
    """Say why a step of a run does not run, or how it ended, and what that comes from.

    STEP is a step's name; train[2] is an element of a mapped one, inner/train a step of the run that inner is.

    With -o json one object: run, step, status, cause, message, reason, since, due_at, worker, and because, a list of
    such objects.
    """

    async def read(client: Client) -> Why:
        return await (await find_run(client, run_id)).why(step)

    found: Why = on_bus(url, read)
    if output == "json":
        write_data(json_text(_described(found)))
    else:
        _write(found, 0, found.run)
    return Exit.SUCCEEDED


def _described(link: Why) -> dict[str, Any]:
    return {
        "run": link.run,
        "step": link.step or None,
        "status": None if link.status is None else str(link.status),
        "cause": str(link.cause),
        "message": link.message,
        "reason": None if link.reason is None else str(link.reason),
        "since": _moment(link.since_s),
        "due_at": _moment(link.due_at_s),
        "worker": link.worker or None,
        "because": [_described(inner) for inner in link.because],
    }


def _write(link: Why, depth: int, run: str) -> None:
    """Write a link and what it comes from.

    Args:
        run: that it is clear to be about; of another the id is said.
    """
    # Of most that has ended the message says the state.
    said = link.status is None or link.message.startswith(str(link.status))
    of = "" if link.run == run else f" of run {link.run}"
    about = f"{link.step}{of}{'' if said else f' ({link.status})'}: " if link.step else ""
    since = "at" if link.status in STEP_ENDS else "since"
    times = [f"{word} {_clock(at_s)}" for word, at_s in ((since, link.since_s), ("until", link.due_at_s)) if at_s]
    write_data("  " * depth + about + one_line(link.message) + "".join(f", {text}" for text in times))
    for inner in link.because:
        _write(inner, depth + 1, link.child or link.run)


def _moment(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
