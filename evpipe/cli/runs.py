"""`evpipe runs`: look at runs of the bus, whoever submitted them, answer their steps, and cancel them."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from evpipe.cli.conclusion import conclude, described, opened, write_result
from evpipe.cli.events import COLOURS, Wanted, parameters_text, write_events
from evpipe.cli.output import (
    Command,
    Exit,
    Group,
    coloured,
    json_text,
    one_line,
    output_option,
    say,
    table_lines,
    url_option,
    value_text,
    write_data,
)
from evpipe.core.names import for_people
from evpipe.core.states import STEP_VALUES, RunStatus
from evpipe.errors import NotFound, UsageError

if TYPE_CHECKING:
    from evpipe.cli.talk import Talk
    from evpipe.client.client import Client
    from evpipe.client.handle import RunHandle
    from evpipe.client.waiting import WaitingStep
    from evpipe.core.machine import Run
    from evpipe.sdk.result import RunResult, StepResult
    from evpipe.wire.notes import Progress
    from evpipe.wire.registry import RunEntry

#: An id, or as much of its beginning as tells it from others.
_PREFIX: Final = re.compile(r"[a-z0-9]{4,32}\Z")
CANDIDATES_MAX: Final = 8


@click.group(cls=Group)
def runs() -> None:
    """Look at runs, answer steps that wait for it, and cancel them.

    RUN is a run's id, or its first characters, at least 4, if no other run's id begins with them.
    """


# ---- finding


def _check_prefix(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    return _check_prefix_text(text)


def _check_prefix_text(text: str) -> str:
    if _PREFIX.match(text) is None:
        raise click.BadParameter(f"{text[:40]!r} is not the beginning of a run id: 4 or more of a-z and 0-9.")
    return text


run_argument = click.argument("run_id", metavar="RUN", callback=_check_prefix)


async def find_run(client: Client, text: str) -> RunHandle[Any]:
    """Give the run with this id, or the only one whose id begins like this.

    Raises:
        NotFound: if there is none.
        UsageError: if there are several.
    """
    from evpipe.wire.subjects import check_run_id

    try:
        # The whole id is the usual case, and one look-up.
        return await client.get_run(check_run_id(text))
    except (UsageError, NotFound):
        found = await client.find_runs(text)
    if not found:
        raise NotFound(f"there is no run {text}")
    if len(found) > 1:
        shown = [f"{handle.id} ({handle.pipeline})" for handle in found[:CANDIDATES_MAX]]
        more = f" and {len(found) - CANDIDATES_MAX} more" if len(found) > CANDIDATES_MAX else ""
        raise UsageError(f"{text} is the beginning of {len(found)} runs: {', '.join(shown)}{more}")
    return found[0]


def on_bus(url: str | None, body: Callable[[Client], Awaitable[Any]]) -> Any:
    """Call with a client of the bus."""
    from evpipe.bus.settings import load_settings

    settings = load_settings(url=url)
    # What is wrong with the call is said before what takes long to import.
    import anyio

    from evpipe.cli.connected import connected
    from evpipe.hosting.logs import configure_logs

    configure_logs()

    async def call() -> Any:
        async with connected(settings) as client:
            return await body(client)

    return anyio.run(call)


# ---- list


@runs.command("list", cls=Command)
@click.option("--pipeline", metavar="P", help="Only runs of this pipeline.")
@click.option("--status", type=click.Choice([str(status) for status in RunStatus]), help="Only runs with this status.")
@click.option("--parent", metavar="RUN", help="Only runs that are steps of this one.")
@click.option("--all", "everything", is_flag=True, help="Also runs that are steps of others.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show the newest N.")
@url_option
@output_option
def list_runs(
    pipeline: str | None,
    status: str | None,
    parent: str | None,
    everything: bool,
    limit: int,
    url: str | None,
    output: str,
) -> Exit:
    """List runs, the newest first; those that are steps of others with --all, or below one with --parent.

    The list is kept by the controller and may be a moment behind the log.

    With -o json one array; each run has id, pipeline, status, submitted_at, ended_at (null while it goes on), error,
    parent and root (null of those that are no steps).
    """
    from evpipe.core.names import check_name

    if parent is not None:
        _check_prefix_text(parent)

    if pipeline is not None:
        check_name("pipeline", pipeline)

    async def read(client: Client) -> list[RunEntry]:
        above = None if parent is None else (await find_run(client, parent)).id
        return await client.runs(pipeline=pipeline, status=status, parent=above, children=everything)

    found: list[RunEntry] = on_bus(url, read)
    if output == "json":
        write_data(json_text([_entry(entry) for entry in found[:limit]]))
        return Exit.SUCCEEDED
    rows = [
        (
            entry.run,
            entry.pipeline,
            str(entry.status),
            _clock(_moment(entry.submitted_at_s)),
            _took(_moment(entry.submitted_at_s), _moment(entry.ended_at_s)),
            entry.message if entry.status is not RunStatus.SUCCEEDED else "",
        )
        for entry in found[:limit]
    ]
    _write_table(("run", "pipeline", "status", "submitted", "took", ""), rows)
    if len(found) > limit:
        say(f"{len(found) - limit:,} older ones are not shown (--limit)")
    return Exit.SUCCEEDED


def _entry(entry: RunEntry) -> dict[str, Any]:
    return {
        "id": entry.run,
        "pipeline": entry.pipeline,
        "status": str(entry.status),
        "submitted_at": _moment(entry.submitted_at_s),
        "ended_at": _moment(entry.ended_at_s),
        "error": entry.message or None,
        "parent": entry.parent or None,
        "root": entry.root or None,
    }


# ---- show


@runs.command(cls=Command)
@run_argument
@click.option(
    "--outputs", is_flag=True, help="Show what each step gave, and its artifacts by name: type, size and digest."
)
@click.option(
    "--save",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write all outputs and artifacts to files below a new folder, one folder a step: what is stored as it is, "
    "the rest as JSON.",
)
@url_option
@output_option
def show(run_id: str, outputs: bool, folder: Path | None, url: str | None, output: str) -> Exit:
    """Show a run as the log has it now: status, parameters, steps, value, and how far steps that run say they are.

    Steps of runs that are its steps are shown below those, as inner/train.

    With -o json the object of `evpipe run`, and parameters, submitted_at, ended_at; a step that runs may have progress,
    an object with fraction (0 to 1) and message; with --outputs each step has an array outputs, of objects with path,
    kind, bytes, digest, stored and, of what is small, value, and an array artifacts, of such objects with a name.
    Steps of runs below are in below, by their paths.
    """
    from evpipe.cli.outputs import save_outputs
    from evpipe.client.notes import fill_notes, read_progress

    async def read(client: Client) -> tuple[RunHandle[Any], Run, dict[str, Run], dict[str, Progress]]:
        handle = await find_run(client, run_id)
        run = await handle.state()
        below = await handle.below(run)
        progress = await read_progress(client.bus, run)
        if outputs or folder is not None:
            await fill_notes(client.bus, run, handle.pipeline)
        if folder is not None:
            async for line in save_outputs(client.bus.objects, run, folder):
                say(line)
        return handle, run, below, progress

    found: tuple[RunHandle[Any], Run, dict[str, Run], dict[str, Progress]] = on_bus(url, read)
    _show(*found, as_json=output == "json", outputs=outputs)
    return Exit.SUCCEEDED


def _show(
    handle: RunHandle[Any],
    run: Run,
    below: dict[str, Run],
    progress: dict[str, Progress],
    *,
    as_json: bool,
    outputs: bool,
) -> None:
    from dataclasses import replace

    from evpipe.cli.outputs import outputs_of

    result: RunResult[Any] = replace(handle.result_of(run), pipeline=handle.pipeline)
    inside = {path: handle.result_of(one) for path, one in below.items()}
    submitted, ended = _moment(run.submitted_at_s), _moment(run.at_s if run.ended else None)
    if as_json:
        more: dict[str, Any] = {"parameters": dict(run.parameters), "submitted_at": submitted, "ended_at": ended}
        more["parent"] = None if run.parent is None else run.parent.run
        more["below"] = {
            f"{path}/{name}": step for path, one in inside.items() for name, step in described(one)["steps"].items()
        }
        found = {**described(result), **more}
        for name, told in progress.items():
            found["steps"][name]["progress"] = {"fraction": told.fraction, "message": told.message}
        if outputs:
            for name, step in result.steps.items():
                found["steps"][name]["outputs"] = [part.described() for part in outputs_of(step.stored)]
                found["steps"][name]["artifacts"] = [
                    {"name": kept, **part.described()}
                    for kept, value in step.stored_artifacts.items()
                    for part in outputs_of(value)
                ]
        write_data(json_text(found))
        return
    for name, text in (
        ("run", result.id),
        ("pipeline", result.pipeline),
        ("step", "" if run.parent is None else f"{for_people(run.parent.step)} of run {run.parent.run}"),
        ("status", _because(result)),
        ("submitted", _clock(submitted)),
        ("took", _took(submitted, ended)),
        ("parameters", parameters_text(run.parameters)),
        ("value", value_text(opened(result)) if result.status == "succeeded" else ""),
    ):
        if text:
            write_data(f"{name + ':':<12}{text}")
    if result.steps:
        write_data("")
        _write_table(
            ("step", "status", "attempts", "started", "took", ""),
            list(_rows(result, inside, progress)),
        )
    if outputs:
        rows = [
            (f"{name}{part.path}", part.kind, f"{part.size_bytes:,}", part.digest[:12], part.shown)
            for name, step in result.steps.items()
            if step.status in STEP_VALUES and not step.elements  # those have all of it
            for part in outputs_of(step.stored)
        ]
        rows += [
            (f"{name}.artifacts[{kept!r}]{part.path}", part.kind, f"{part.size_bytes:,}", part.digest[:12], part.shown)
            for name, step in result.steps.items()
            for kept, value in step.stored_artifacts.items()
            for part in outputs_of(value)
        ]
        if rows:
            write_data("")
            _write_table(("output", "type", "bytes", "digest", ""), rows)


def _rows(
    result: RunResult[Any], inside: Mapping[str, RunResult[Any]], progress: Mapping[str, Progress], above: str = ""
) -> Iterator[Sequence[str]]:
    """Give the rows of a run's steps, each that is a run with those of that below it."""
    for name, step in result.steps.items():
        path = above + name
        yield (path, *_step(step, progress.get(path))[1:])
        if path in inside:
            yield from _rows(inside[path], inside, progress, f"{path}/")


def _step(step: StepResult, progress: Progress | None) -> Sequence[str]:
    took = _took(step.started_at, step.ended_at)
    attempts = str(step.attempts) if step.attempts else ""
    why = _because_of(step.reason, step.error)
    if step.cached_from is not None:
        why = f"from step {step.cached_from.step} of run {step.cached_from.run}"
    elif step.waits_for:
        why = step.waits_for
    elif step.run is not None and not why:
        why = f"run {step.run}"
    elif step.answered_by is not None and not why:
        why = f"answered{f' by {step.answered_by}' if step.answered_by else ''}"
    elif progress is not None:
        from evpipe.hosting.display import progress_text

        why = progress_text(progress)
    return (step.name, str(step.status), attempts, _clock(step.started_at), took, why)


def _because(result: RunResult[Any]) -> str:
    why = _because_of(result.reason, result.error)
    return one_line(f"{result.status} ({why})" if why else str(result.status), 1000)


def _because_of(reason: str | None, error: str) -> str:
    return ": ".join(part for part in (str(reason or ""), error) if part)


# ---- watch


@runs.command(cls=Command)
@run_argument
@url_option
@output_option
def watch(run_id: str, url: str | None, output: str) -> Exit:
    """Watch a run until it has ended, then show its result as `evpipe run` does, with the same exit code.

    Steps of runs that are its steps are shown below those, as inner/train, and counted in their place.

    Ctrl-C only ends the watching.
    """
    from evpipe.cli.talk import Talk

    talk = Talk(sys.stderr)

    async def wait(client: Client) -> RunResult[Any]:
        handle = await find_run(client, run_id)
        return handle.result_of(await _watched(handle, talk))

    result, code = conclude(talk, lambda: on_bus(url, wait))
    write_result(talk, result, as_json=output == "json")
    return code


async def _watched(handle: RunHandle[Any], talk: Talk) -> Run:
    talk.submitted(handle)
    async with talk.live_progress(handle):
        async for family in handle.watch_tree():
            talk.show(family)
    talk.finished(family)
    return family.run


# ---- events


@runs.command(cls=Command)
@run_argument
@click.option("--no-follow", is_flag=True, help="End at the end of the log, whether the run has ended or not.")
@url_option
@output_option
def events(run_id: str, no_follow: bool, url: str | None, output: str) -> Exit:
    """Show all events of a run, one per line, from its first on; ends after `finished`.

    The lines are those of `evpipe events`.
    """

    async def write(client: Client) -> None:
        handle = await find_run(client, run_id)
        wanted = Wanted(pipeline=None, kind=None, run=handle.id, since=None, follow=not no_follow)
        await write_events(client, wanted, as_json=output == "json")

    on_bus(url, write)
    return Exit.SUCCEEDED


# ---- waiting, approve


@runs.command(cls=Command)
@click.option("--pipeline", metavar="P", help="Only steps of runs of this pipeline.")
@url_option
@output_option
def waiting(pipeline: str | None, url: str | None, output: str) -> Exit:
    """List the steps that wait for an answer, over all runs, what has waited longest first.

    With -o json one array, of objects with run, pipeline, step, message, accepts, show, since, until (null: no limit),
    description.
    """
    from evpipe.core.names import check_name

    if pipeline is not None:
        check_name("pipeline", pipeline)

    async def read(client: Client) -> list[WaitingStep]:
        return await client.waiting(pipeline=pipeline)

    found: list[WaitingStep] = on_bus(url, read)
    if output == "json":
        write_data(json_text([_waiting(step) for step in found]))
        return Exit.SUCCEEDED
    rows = [
        (step.run, step.pipeline, step.step, step.accepts, _clock(step.since), _clock(step.until), _asked(step))
        for step in found
    ]
    _write_table(("run", "pipeline", "step", "answer", "since", "until", ""), rows)
    return Exit.SUCCEEDED


def _asked(step: WaitingStep) -> str:
    shown = ", ".join(f"{name}={value_text(value)}" for name, value in step.show.items())
    return f"{step.message} ({shown})" if shown else step.message


def _waiting(step: WaitingStep) -> dict[str, Any]:
    names = ("run", "pipeline", "step", "message", "accepts", "show", "since", "until", "description")
    return {name: getattr(step, name) for name in names}


@runs.command(cls=Command)
@run_argument
@click.argument("step")
@click.argument("answer", default="true")
@click.option("--by", metavar="NAME", help="Who answers; else this user.")
@click.option("--message", metavar="M", default="", help="Kept beside the answer.")
@url_option
@output_option
def approve(run_id: str, step: str, answer: str, by: str | None, message: str, url: str | None, output: str) -> Exit:
    """Answer STEP of a run, which waits for it. The first answer counts.

    ANSWER is true where it is left out; false rejects. It is read by the type that the step asks for: text as it is,
    everything else as JSON.

    With -o json one object: id, pipeline, step, answer, by.
    """

    async def give(client: Client) -> tuple[RunHandle[Any], Any, str]:
        from evpipe.client.waiting import this_user
        from evpipe.sdk.parameters import parse_value

        handle = await find_run(client, run_id)
        asked = next((found for found in await handle.waiting() if found.step == step and found.accepts), None)
        # Where it does not wait, what is wrong is said by who is told to answer it.
        value = answer if asked is None else parse_value(asked.answer, answer, "the answer")
        name = this_user() if by is None else by
        await handle.approve(step, value, by=name, message=message)
        return handle, value, name

    found: tuple[RunHandle[Any], Any, str] = on_bus(url, give)
    handle, value, name = found
    if output == "json":
        told = {"id": handle.id, "pipeline": handle.pipeline, "step": step, "answer": value, "by": name}
        write_data(json_text(told))
    say(f"step {step} of run {handle.id} is answered: {value_text(value)}")
    return Exit.SUCCEEDED


# ---- cancel


@runs.command(cls=Command)
@run_argument
@click.option("--message", metavar="M", default="", help="Shown as the reason of what is cancelled.")
@url_option
@output_option
def cancel(run_id: str, message: str, url: str | None, output: str) -> Exit:
    """Ask for the end of a run; nothing happens if it has ended, or was asked before.

    It does not wait for the end: `evpipe runs watch` does.

    With -o json one object: id, pipeline, status, asked (whether it was this command that asked).
    """

    async def ask(client: Client) -> tuple[RunHandle[Any], Run, Run]:
        handle = await find_run(client, run_id)
        before = await handle.state()
        await handle.cancel(message)
        return handle, before, await handle.state()

    found: tuple[RunHandle[Any], Run, Run] = on_bus(url, ask)
    handle, before, after = found
    # It may have ended between the look and the request.
    asked = not before.ended and before.cancel is None and after.cancel is not None
    if output == "json":
        status = {"id": handle.id, "pipeline": handle.pipeline, "status": str(after.status), "asked": asked}
        write_data(json_text(status))
    if asked:
        say(f"run {handle.id} is asked to end")
    elif after.ended:
        say(f"run {handle.id} had ended already: {after.status}")
    else:
        say(f"run {handle.id} was asked to end before")
    return Exit.SUCCEEDED


# ---- showing


def _write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in table_lines(head, rows, COLOURS if coloured(sys.stdout) else {}):
        write_data(line)


def _moment(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)


def _clock(moment: datetime | None) -> str:
    """Write a time by the clock of this machine's zone."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(began: datetime | None, ended: datetime | None) -> str:
    return "" if began is None or ended is None else f"{max(0.0, (ended - began).total_seconds()):.2f} s"
