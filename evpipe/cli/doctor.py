"""`evpipe doctor`: looks at everything that a run needs, changes nothing, and says what to do."""

from __future__ import annotations

import sys
from typing import Any

import click

from evpipe.cli.output import Command, Exit, coloured, json_text, one_line, output_option, url_option, write_data

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(cls=Command)
@url_option
@output_option
def doctor(url: str | None, output: str) -> Exit:
    """Check what runs need: packages, settings, server, streams, controller.

    It starts no server and leaves nothing behind. With -o json one object: ok, checks (each with name, status, found,
    advice). Exit code 0 if nothing failed, 2 for wrong settings, 5 if there is no usable bus.
    """
    import anyio

    from evpipe.cli.checks import Check, run_checks
    from evpipe.hosting.logs import configure_logs

    configure_logs("error")
    colours = coloured(sys.stdout)
    checks: list[Check] = []

    def found(check: Check) -> None:
        checks.append(check)
        if output != "json":
            write_data(_line(check, colours=colours))

    anyio.run(run_checks, url, found)
    failed = [check for check in checks if check.status == "fail"]
    if output == "json":
        objects: list[dict[str, Any]] = [
            {"name": check.name, "status": check.status, "found": check.found, "advice": check.advice or None}
            for check in checks
        ]
        write_data(json_text({"ok": not failed, "checks": objects}))
    codes = {check.code for check in failed}
    if Exit.USAGE in codes:
        return Exit.USAGE
    return max(codes, default=Exit.SUCCEEDED)


def _line(check: Any, *, colours: bool) -> str:
    status = f"{check.status:<4}"
    if colours:
        status = click.style(status, fg=COLOURS[check.status])
    advice = f" → {check.advice}" if check.advice else ""
    return f"{status}  {check.name:<12} {one_line(check.found + advice, 1000)}"
