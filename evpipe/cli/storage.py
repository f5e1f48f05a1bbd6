"""`evpipe gc`: removes from the object store what nothing refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evpipe.cli.output import Command, Exit, age, json_text, output_option, url_option, write_data
from evpipe.cli.runs import on_bus

if TYPE_CHECKING:
    from evpipe.client.client import Client
    from evpipe.client.garbage import Garbage


@click.command(cls=Command)
@click.option(
    "--older",
    "older_s",
    metavar="AGE",
    default="3600",
    show_default=True,
    callback=age,
    help="Only what was stored longer ago than this: 30m, 2h, 7d, or seconds; at least 600.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@url_option
@output_option
def gc(older_s: float, dry_run: bool, url: str | None, output: str) -> Exit:
    """Remove stored artifacts, graphs and code that no run and no result in the cache refers to.

    What a run in the log refers to stays, as long as the log keeps that run: gc frees what is left when a run has gone
    from the log, or has never got there. Results in the cache keep theirs, too: `evpipe cache clear` takes them out.
    Nothing that is younger than the oldest run that goes on is removed.

    With -o json one object: objects, bytes, removed, removed_bytes, orphans, young.
    """

    async def collect(client: Client) -> Garbage:
        return await client.collect_garbage(older_s=older_s, dry_run=dry_run)

    found: Garbage = on_bus(url, collect)
    if output == "json":
        write_data(
            json_text(
                {
                    "objects": found.objects,
                    "bytes": found.size_bytes,
                    "removed": found.removed,
                    "removed_bytes": found.removed_bytes,
                    "orphans": found.orphans,
                    "young": found.young,
                }
            )
        )
        return Exit.SUCCEEDED
    verb = "would be removed" if dry_run else "removed"
    write_data(
        f"{found.removed:,} of {found.objects:,} objects {verb}: {found.removed_bytes:,} of {found.size_bytes:,} bytes"
    )
    if found.orphans:
        write_data(f"{found.orphans:,} pieces of uploads that never ended removed")
    if found.young:
        write_data(f"{found.young:,} that nothing refers to are too young, or younger than a run that goes on")
    return Exit.SUCCEEDED
