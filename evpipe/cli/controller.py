"""`evpipe controller`: a controller as a process of its own."""

from __future__ import annotations

import click

from evpipe.cli.output import Command, Exit, exit_of_signal, url_option


@click.command(cls=Command)
@url_option
def controller(url: str | None) -> Exit:
    """Run a controller until SIGTERM or Ctrl-C.

    Any number may run against one bus: one leads, the others stand by, and one of them takes over at once when it
    leaves. What it does is logged to standard error; EVPIPE_LOG chooses the level.

    Exit code 0 after SIGTERM, 130 after Ctrl-C. A second signal ends it at once.
    """
    from evpipe.bus.settings import load_settings

    settings = load_settings(url=url)
    import anyio

    from evpipe.hosting.logs import configure_logs
    from evpipe.hosting.serve import serve_controller

    configure_logs("info")
    return exit_of_signal(anyio.run(serve_controller, settings))
