"""`evpipe workers` and `evpipe queues`: who is there, how much there is to do, and how much of it at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from evpipe.cli.output import Command, Exit, Group, json_text, output_option, say, table_lines, url_option, write_data
from evpipe.cli.runs import on_bus
from evpipe.core.names import check_name
from evpipe.errors import UsageError
from evpipe.wire.config import check_queue_limit

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


class _Queues(Command, Group):
    """A group that is a command, too: without a subcommand it lists."""


@click.group(cls=_Queues, invoke_without_command=True)
@url_option
@output_option
@click.pass_context
def queues(ctx: click.Context, url: str | None, output: str) -> Exit:
    """List queues, or limit one.

    Without a command, as `evpipe queues list`.
    """
    return Exit.SUCCEEDED if ctx.invoked_subcommand is not None else _list_queues(url, output)


@queues.command("list", cls=Command)
@url_option
@output_option
def list_queues(url: str | None, output: str) -> Exit:
    """List queues: launches that wait, launches that were taken, the limit, and the workers that serve them.

    What a controller holds back, because as much as keeps the workers busy has left, is in no queue yet.

    With -o json one array; each queue has name, waiting, taken, limit (null: none), workers.
    """
    return _list_queues(url, output)


@queues.command("limit", cls=Command)
@click.argument("queue")
@click.argument("limit", metavar="LIMIT|none")
@url_option
@output_option
def limit_queue(queue: str, limit: str, url: str | None, output: str) -> Exit:
    """Let at most LIMIT launches of QUEUE be under way at a time, whatever slots its workers have.

    `none` removes the limit. It holds at once; what runs already runs on.

    With -o json one object: name, limit (null: none).
    """
    if limit == "none":
        wanted = None
    elif limit.isdecimal() and len(limit) < 10:
        wanted = check_queue_limit(int(limit))
    else:
        raise UsageError(f"LIMIT must be a whole number from 1, or none, not {limit!r}")
    check_name("queue", queue)

    async def set_limit(client: Client) -> None:
        await client.limit_queue(queue, wanted)

    on_bus(url, set_limit)
    if output == "json":
        write_data(json_text({"name": queue, "limit": wanted}))
    elif wanted is None:
        say(f"the queue {queue!r} has no limit")
    else:
        say(f"the queue {queue!r} is limited to {wanted:,} at a time")
    return Exit.SUCCEEDED


def _list_queues(url: str | None, output: str) -> Exit:
    async def read(client: Client) -> list[QueueState]:
        return await client.queues()

    found: list[QueueState] = on_bus(url, read)
    if output == "json":
        write_data(
            json_text(
                [
                    {
                        "name": queue.name,
                        "waiting": queue.waiting,
                        "taken": queue.taken,
                        "limit": queue.limit,
                        "workers": list(queue.workers),
                    }
                    for queue in found
                ]
            )
        )
        return Exit.SUCCEEDED
    if not found:
        say("there are no queues yet: a worker makes those that it serves")
        return Exit.SUCCEEDED
    rows = [
        (
            queue.name,
            f"{queue.waiting:,}",
            f"{queue.taken:,}",
            "none" if queue.limit is None else f"{queue.limit:,}",
            ", ".join(queue.workers) or "none: its steps wait until one serves it",
        )
        for queue in found
    ]
    for line in table_lines(("queue", "waiting", "taken", "limit", "workers"), rows, {}):
        write_data(line)
    return Exit.SUCCEEDED


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
