"""`evpipe dev`: a bus, a controller and a worker in one command, for a developer's machine."""

from __future__ import annotations

from functools import partial

import click

from evpipe.cli.output import Command, Exit, exit_of_signal, say, write_data
from evpipe.cli.worker import queues_option, slots_option
from evpipe.errors import UsageError


@click.command(cls=Command)
@queues_option
@slots_option
def dev(queues: tuple[str, ...], slots: int | None) -> Exit:
    """Run all that pipelines need until Ctrl-C: the embedded bus, a controller and a worker.

    The URL of the bus goes to standard output. What is started with EVPIPE_NATS_URL set to it uses these, as it would
    use a bus of a cluster: steps run in processes of the worker, and the run goes on when its submitter has gone. The
    URL has the token of the bus, and is good until the embedded server ends.
    """
    from evpipe.bus.settings import load_settings
    from evpipe.core.names import check_name

    for queue in queues:
        check_name("queue", queue)
    settings = load_settings()
    if settings.url is not None:
        raise UsageError(
            f"evpipe dev brings a bus of its own, and {settings.url} is configured: "
            "unset EVPIPE_NATS_URL, or use `evpipe controller` and `evpipe worker`"
        )
    import anyio

    from evpipe.hosting.logs import configure_logs
    from evpipe.hosting.serve import serve_all

    def ready(url: str) -> None:
        write_data(url)
        say(f"try: EVPIPE_NATS_URL={url} evpipe run evpipe.examples.stdlib_report:report")
        say("Ctrl-C ends it")

    configure_logs("info")
    return exit_of_signal(anyio.run(partial(serve_all, settings, queues, slots, ready)))
