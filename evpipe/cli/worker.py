"""`evpipe worker`: a worker as a process of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from evpipe.cli.output import Command, Exit, exit_of_signal, seconds, url_option
from evpipe.errors import UsageError

queues_option = click.option(
    "-q",
    "--queue",
    "queues",
    metavar="QUEUE",
    multiple=True,
    default=("default",),
    show_default=True,
    help="May be repeated: a queue is served when those before it are empty.",
)
slots_option = click.option(
    "--slots",
    # The worker's own limit; what it is made of takes long to import.
    type=click.IntRange(1, 10_000),
    help="Attempts that may run at once; else as many as there are CPUs.",
)

_CODE_FORMS = "write --code local:my_package or --code local:my_package.steps"


@click.command(cls=Command)
@queues_option
@slots_option
@click.option(
    "--code",
    "codes",
    metavar="local:MODULE",
    multiple=True,
    help="Run the code that this process has: import the module at start, and run steps that are no processes here. "
    "May be repeated.",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Let steps with pickle=True read and write pickles. Reading one runs what is in it.",
)
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    metavar="S",
    default="30",
    show_default=True,
    callback=seconds,
    help="Seconds that running steps are given after SIGTERM.",
)
@url_option
def worker(
    queues: tuple[str, ...],
    slots: int | None,
    codes: tuple[str, ...],
    allow_pickle: bool,
    drain_timeout_s: float,
    url: str | None,
) -> Exit:
    """Run a worker until SIGTERM or Ctrl-C.

    Steps run in processes of their own, with the source files that came with their run; packages that those import must
    be installed here. With --code steps are found by module and name where this process looks, the current directory
    first, and what came with the run is ignored.

    The first signal drains: no more launches are taken, and steps that run come to their end, for up to
    --drain-timeout; what has not ended then is cancelled and runs again elsewhere. A second signal ends it at once.

    Exit code 0 after SIGTERM, 130 after Ctrl-C or a second signal.
    """
    from evpipe.bus.settings import load_settings
    from evpipe.cli.target import import_module, put_on_path
    from evpipe.core.names import check_name

    for i, queue in enumerate(queues):
        check_name("queue", queue)
        if queue in queues[:i]:
            raise UsageError(f"the queue {queue!r} is given twice")
    settings = load_settings(url=url)
    for code in codes:
        kind, colon, module = code.partition(":")
        if kind != "local" or not colon:
            raise UsageError(f"--code {code!r}: {_CODE_FORMS}")
        put_on_path(Path.cwd())
        import_module(module, _CODE_FORMS)
    import anyio

    from evpipe.hosting.logs import configure_logs
    from evpipe.hosting.serve import serve_worker

    configure_logs("info")
    serve = partial(
        serve_worker,
        settings,
        queues,
        slots,
        drain_timeout_s=drain_timeout_s,
        local_code=bool(codes),
        allow_pickle=allow_pickle,
    )
    return exit_of_signal(anyio.run(serve))
