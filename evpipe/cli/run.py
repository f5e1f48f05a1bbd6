"""`evpipe run`: one run from TARGET to its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from evpipe.cli.conclusion import conclude, write_result
from evpipe.cli.dry_run import write_dry_run
from evpipe.cli.output import Command, Exit, data_apart, output_option, report, seconds, url_option
from evpipe.core.limits import PRIORITY_MAX
from evpipe.errors import UsageError
from evpipe.sdk.hook import RunOptions

if TYPE_CHECKING:
    from evpipe.cli.talk import Talk
    from evpipe.sdk.definition import AnyPipeline, Built
    from evpipe.sdk.hook import Mode
    from evpipe.sdk.result import RunResult


def priority_option(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    """Check an option that is a priority."""
    if value is not None and not 0 <= value <= PRIORITY_MAX:
        raise click.BadParameter(f"{value} is not a priority: 0 (first) to {PRIORITY_MAX} (last).")
    return value


@click.command(cls=Command)
@click.argument("target")
@click.option(
    "-p", "--param", "params", metavar="NAME=VALUE", multiple=True, help="Value of a parameter; may be repeated."
)
@click.option(
    "--mode",
    type=click.Choice(["bus", "local", "debug"]),
    default="bus",
    show_default=True,
    help="bus: the configured bus, or the embedded one; local: in this process, no server; debug: plain calls.",
)
@click.option("--key", help="Makes it idempotent: the same key, graph and parameters are the same run.")
@click.option("--timeout", "timeout_s", metavar="S", callback=seconds, help="Seconds to wait for the end.")
@click.option("--no-cache", is_flag=True, help="Take nothing from the cache, and record nothing there.")
@click.option(
    "--refresh", metavar="STEP", multiple=True, help="Run this step even if the cache has its result; '*': all steps."
)
@click.option(
    "--answer",
    "answers",
    metavar="STEP=ANSWER",
    multiple=True,
    help="Given to a step that waits for a person or an event, when it begins to; may be repeated.",
)
@click.option(
    "--priority",
    type=int,
    metavar="N",
    callback=priority_option,
    help="0 (first) to 9 (last): which launches leave for a queue first; default: the pipeline's.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would become of each step and the files that would travel; run nothing."
)
@click.option("--watch", is_flag=True, help="Show what the steps write also on a configured bus.")
@url_option
@output_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
def run(
    target: str,
    params: tuple[str, ...],
    mode: Mode,
    key: str | None,
    timeout_s: float | None,
    no_cache: bool,
    refresh: tuple[str, ...],
    answers: tuple[str, ...],
    priority: int | None,
    dry_run: bool,
    watch: bool,
    url: str | None,
    output: str,
    quiet: bool,
) -> Exit:
    """Run a pipeline and show its result.

    TARGET is module:pipeline or file.py:pipeline; the pipeline may be left out where there is only one.

    VALUE is read by the parameter's type: text as it is, a Path as the path of a file or a folder that is here and
    whose content travels, everything else as JSON, as in -p rows=500 -p depths='[3, 5]'.

    The value goes to standard output, as JSON where that shows it as it is. What the steps print goes to standard
    error, each line with the step's name; on a configured bus only with --watch. `evpipe runs logs` shows it later.

    On the embedded bus, and with --mode local, Ctrl-C and --timeout cancel the run, because this process runs its
    steps; so does Ctrl-C with --mode debug. On a configured bus it goes on.
    """
    as_json = output == "json"
    with data_apart() as data:
        try:
            how = RunOptions(
                mode=mode,
                key=key,
                timeout_s=timeout_s,
                no_cache=no_cache,
                refresh=True if "*" in refresh else refresh or False,
                priority=priority,
            )
            if dry_run:
                _check_options(how, url)
                write_dry_run(_built(target, params)[0], how, url, as_json=as_json, stream=data)
                return Exit.SUCCEEDED
            talk, result, code = _run(target, params, answers, how, url, watch=watch, quiet=quiet)
        except Exception as error:
            if not as_json:
                raise
            # Here, where standard output is still apart.
            return report(error, as_json=True, stream=data)
        write_result(talk, result, as_json=as_json, stream=data)
    return code


def _run(
    target: str,
    params: Sequence[str],
    answers: Sequence[str],
    how: RunOptions,
    url: str | None,
    *,
    watch: bool,
    quiet: bool,
) -> tuple[Talk, RunResult[Any], Exit]:
    """Run it; errors before the submit are raised, what comes after it is told and has a result and a code."""
    _check_options(how, url)
    built, note = _built(target, params)
    how = replace(how, answers=read_answers(built, answers))
    # What is wrong with the call is said before what takes long to import.
    from evpipe.cli.talk import Talk
    from evpipe.hosting.logs import configure_logs

    configure_logs()
    talk = Talk(sys.stderr, quiet=quiet)
    if note and how.mode == "bus":
        talk.note(note)
    result, code = conclude(talk, lambda: _to_end(built, how, url, talk, watch=watch), quiet=quiet)
    return talk, result, code


def _built(target: str, params: Sequence[str]) -> tuple[Built, str]:
    """Give the graph, and what is to be noted of the target."""
    from evpipe.cli.target import find_target, pipeline_body

    pipeline, note = find_target(target)
    values = read_parameters(pipeline, params)
    with pipeline_body(pipeline):
        return pipeline.build(values), note


def _check_options(how: RunOptions, url: str | None) -> None:
    mode = how.mode or "bus"
    given = {"--url": url, "--key": how.key, "--timeout": how.timeout_s}
    meaningless = {"local": ("--url",), "debug": tuple(given)}.get(mode, ())
    for name in meaningless:
        if given[name] is not None:
            why = "there is no bus" if name == "--url" else "the run is plain calls in this process"
            raise UsageError(f"{name} means nothing with --mode {mode}: {why}")


def read_parameters(pipeline: AnyPipeline[..., Any], params: Sequence[str]) -> dict[str, Any]:
    """Read the -p of a command line, each by the type of its parameter.

    Raises:
        UsageError: names the parameter.
    """
    from evpipe.core.parameters import check_parameters
    from evpipe.sdk.parameters import parse_parameter

    known = {parameter.name: parameter for parameter in pipeline.parameters}
    values: dict[str, Any] = {}
    for param in params:
        name, equals, text = param.partition("=")
        if not equals or not name:
            raise UsageError(f"-p {param!r} is not of the form name=value")
        if name in values:
            raise UsageError(f"parameter {name!r} is given twice")
        if name not in known:
            check_parameters(pipeline.parameters, {name: text}, of=pipeline.name)
        values[name] = parse_parameter(known[name], text)
    return values


def read_answers(built: Built, answers: Sequence[str]) -> dict[str, Any]:
    """Read the --answer of a command line, each by the type that its step asks for; of an event it is JSON.

    Raises:
        UsageError: names the step.
    """
    from evpipe.core.parameters import ParameterType
    from evpipe.core.waits import WaitKind
    from evpipe.hosting.answers import Answers
    from evpipe.sdk.parameters import parse_value

    found: dict[str, Any] = {}
    for answer in answers:
        name, equals, text = answer.partition("=")
        if not equals or not name:
            raise UsageError(f"--answer {answer!r} is not of the form step=answer")
        step = built.graph.steps.get(name)
        wait = step.wait if step is not None else None
        kind = wait.answer if wait is not None and wait.kind is WaitKind.APPROVAL else ParameterType()
        found[name] = parse_value(kind, text, f"--answer {name}")
    Answers(found, built.graph)
    return found


def _to_end(built: Built, how: RunOptions, url: str | None, talk: Talk, *, watch: bool) -> RunResult[Any]:
    if how.mode == "debug":
        from evpipe.hosting.debug import run_debug

        return run_debug(built, talk, no_cache=how.no_cache, refresh=how.refresh, answers=how.answers)
    import anyio

    from evpipe.bus.settings import load_settings
    from evpipe.hosting.session import Session

    settings = load_settings(url=url) if how.mode == "bus" else None
    session = Session(
        built,
        mode=how.mode or "bus",
        key=how.key,
        timeout_s=how.timeout_s,
        no_cache=how.no_cache,
        refresh=how.refresh,
        priority=how.priority,
        display=talk,
        watch=watch,
        settings=settings,
        answers=how.answers,
    )
    return anyio.run(session.run)
