"""`evpipe signal`: send a signal to the steps that wait for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import click

from evpipe.cli.output import Command, Exit, json_text, output_option, say, url_option, write_data
from evpipe.cli.runs import on_bus
from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.client.client import Client


@click.command(cls=Command)
@click.argument("name")
@click.argument("payload", metavar="[JSON]", required=False)
@url_option
@output_option
def signal(name: str, payload: str | None, url: str | None, output: str) -> Exit:
    """Send the signal NAME, such as orders.created, to all steps that wait for it, with JSON as its payload.

    It is kept for a while (7 days, by default) for the steps of runs whose controller is not there now.

    With -o json one object: name, payload, sequence.
    """
    value = _read(payload)

    async def send(client: Client) -> int:
        return await client.send_signal(name, value)

    sequence: int = on_bus(url, send)
    if output == "json":
        write_data(json_text({"name": name, "payload": value, "sequence": sequence}))
    say(f"signal {name} is sent")
    return Exit.SUCCEEDED


def _read(payload: str | None) -> Any:
    if payload is None:
        return None

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(payload, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the payload {payload[:60]!r} is no JSON text, such as '{{\"id\": 7}}': {error}") from None
