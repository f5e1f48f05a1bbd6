"""`evpipe workers` and `evpipe queues`: who is there, and how much there is to do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from evpipe.cli.output import Command, Exit, json_text, output_option, say, table_lines, url_option, write_data
from evpipe.cli.runs import on_bus

if TYPE_CHECKING:
    from evpipe.client.client import Client, QueueState
    from evpipe.wire.presence import WorkerEntry


@click.command(cls=Command)
@url_option
@output_option
def workers(url: str | None, output: str) -> Exit:
    """List the workers that are there.

    One that was killed stays in the list for up to 10 s.

    With -o json one array; each worker has id, host, pid, queues, slots, busy, draining, started_at, python, version.
    """

    async def read(client: Client) -> list[WorkerEntry]:
        return await client.workers()

    found: list[WorkerEntry] = on_bus(url, read)
    if output == "json":
        write_data(
            json_text(
                [
                    {
                        "id": worker.id,
                        "host": worker.host,
                        "pid": worker.pid,
                        "queues": list(worker.queues),
                        "slots": worker.slots,
                        "busy": worker.busy,
                        "draining": worker.draining,
                        "started_at": datetime.fromtimestamp(worker.started_at_s, UTC),
                        "python": worker.python,
                        "version": worker.version,
                    }
                    for worker in found
                ]
            )
        )
        return Exit.SUCCEEDED
    if not found:
        say("no worker is there: start one with `evpipe worker`")
        return Exit.SUCCEEDED
    rows = [
        (
            worker.id,
            f"{worker.host}:{worker.pid}",
            f"{worker.busy}/{worker.slots}" + (" draining" if worker.draining else ""),
            worker.python,
            _clock(worker.started_at_s),
            ", ".join(worker.queues),
        )
        for worker in found
    ]
    for line in table_lines(("worker", "host", "busy", "python", "since", "queues"), rows, {}):
        write_data(line)
    return Exit.SUCCEEDED


@click.command(cls=Command)
@url_option
@output_option
def queues(url: str | None, output: str) -> Exit:
    """List queues: launches that wait, launches that were taken, and the workers that serve them.

    With -o json one array; each queue has name, waiting, taken, workers.
    """

    async def read(client: Client) -> list[QueueState]:
        return await client.queues()

    found: list[QueueState] = on_bus(url, read)
    if output == "json":
        write_data(
            json_text(
                [{"name": q.name, "waiting": q.waiting, "taken": q.taken, "workers": list(q.workers)} for q in found]
            )
        )
        return Exit.SUCCEEDED
    if not found:
        say("there are no queues yet: a worker makes those that it serves")
        return Exit.SUCCEEDED
    rows = [
        (q.name, f"{q.waiting:,}", f"{q.taken:,}", ", ".join(q.workers) or "none: its steps wait until one serves it")
        for q in found
    ]
    for line in table_lines(("queue", "waiting", "taken", "workers"), rows, {}):
        write_data(line)
    return Exit.SUCCEEDED


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
