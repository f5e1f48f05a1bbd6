"""`evpipe cache`: what the cache has, why a step was taken from it or not, and clearing it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from evpipe.cli.output import (
    Command,
    Exit,
    Group,
    age,
    json_text,
    output_option,
    say,
    table_lines,
    url_option,
    write_data,
)
from evpipe.cli.runs import find_run, on_bus, run_argument
from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.client.cache import CachedResult, Explanation
    from evpipe.client.client import Client
    from evpipe.core.fingerprint import Components

#: Characters of a fingerprint that are shown.
SHORT = 12


mode_option = click.option(
    "--mode",
    type=click.Choice(["bus", "local"]),
    default="bus",
    show_default=True,
    help="bus: the cache of the bus; local: what runs in the modes local and debug share on this machine.",
)


@click.group(cls=Group)
def cache() -> None:
    """Look into the cache of step results, and clear it."""


@cache.command("list", cls=Command)
@click.option("--pipeline", metavar="P", help="Only results of this pipeline's steps.")
@click.option("--step", metavar="S", help="Only results of steps with this name.")
@click.option("--limit", type=click.IntRange(min=1), default=40, show_default=True, help="Show the newest N.")
@mode_option
@url_option
@output_option
def list_results(pipeline: str | None, step: str | None, limit: int, mode: str, url: str | None, output: str) -> Exit:
    """List results, the newest first.

    With -o json one array; each result has fingerprint, pipeline, step, run, at, hits (of the last 30 days) and
    components.
    """
    _check_names(pipeline, step)

    async def read(client: Client) -> list[CachedResult]:
        return await client.cache.results(pipeline=pipeline, step=step)

    found: list[CachedResult] = _on(mode, url, read)
    shown = found[:limit]
    if output == "json":
        write_data(json_text([_described(result) for result in shown]))
        return Exit.SUCCEEDED
    if not found:
        say("the cache has no results")
        return Exit.SUCCEEDED
    rows = [
        (
            result.fingerprint[:SHORT],
            result.pipeline,
            result.step,
            result.run,
            _clock(result.at_s),
            str(result.hits),
            ", ".join(f"{name}={given.shown}" for name, given in result.components.inputs.items()),
        )
        for result in shown
    ]
    for line in table_lines(("fingerprint", "pipeline", "step", "run", "recorded", "hits", "inputs"), rows, {}):
        write_data(line)
    if len(found) > limit:
        say(f"{len(found) - limit:,} more: --limit shows them")
    return Exit.SUCCEEDED


@cache.command(cls=Command)
@run_argument
@click.argument("step")
@url_option
@output_option
def explain(run_id: str, step: str, url: str | None, output: str) -> Exit:
    """Say why a step of a run was taken from the cache, or which factor made it run.

    With -o json one object: run, step, status, sentence, fingerprint, components, cached_from, compared_with and
    differences (each with factor, name, before, now).
    """

    async def read(client: Client) -> Explanation:
        return await client.cache.explain((await find_run(client, run_id)).id, step)

    found: Explanation = on_bus(url, read)
    if output == "json":
        write_data(json_text(_explained(found)))
        return Exit.SUCCEEDED
    write_data(f"step {found.step} of run {found.run} ({found.status}): {found.sentence}")
    for difference in found.differences:
        write_data(f"  {difference}")
    if found.components is not None:
        write_data(f"fingerprint {found.fingerprint}")
        for name, text in _factors(found.components):
            write_data(f"  {name:<12} {text}")
    return Exit.SUCCEEDED


@cache.command(cls=Command)
@click.option("--pipeline", metavar="P", help="Only results of this pipeline's steps.")
@click.option("--step", metavar="S", help="Only results of steps with this name.")
@click.option("--fingerprint", metavar="F", help="Only results whose fingerprint begins like this.")
@click.option(
    "--older",
    "older_s",
    metavar="AGE",
    callback=age,
    help="Only results older than this: 10m, 2h, 7d, or seconds.",
)
@click.option("--all", "everything", is_flag=True, help="All results.")
@mode_option
@url_option
@output_option
def clear(
    pipeline: str | None,
    step: str | None,
    fingerprint: str | None,
    older_s: float | None,
    everything: bool,
    mode: str,
    url: str | None,
    output: str,
) -> Exit:
    """Remove results from the cache. Runs keep theirs; `evpipe gc` removes what nothing refers to any more.

    With --mode local that goes, too, at once.

    With -o json one object: removed.
    """
    _check_names(pipeline, step)
    if fingerprint is not None and not (fingerprint and set(fingerprint) <= set("0123456789abcdef")):
        raise UsageError(f"--fingerprint {fingerprint[:40]!r} is not the beginning of a fingerprint: 0-9 and a-f")
    chosen = (pipeline, step, fingerprint, older_s) != (None, None, None, None)
    if chosen == everything:
        raise UsageError("say which results: --pipeline, --step, --fingerprint or --older; or --all")

    async def remove(client: Client) -> int:
        before_s = None
        if older_s is not None:
            newest = [result.at_s for result in await client.cache.results()]
            before_s = max([datetime.now(UTC).timestamp(), *newest]) - older_s
        return await client.cache.clear(pipeline=pipeline, step=step, fingerprint=fingerprint, before_s=before_s)

    removed: int = _on(mode, url, remove, sweeps=True)
    if output == "json":
        write_data(json_text({"removed": removed}))
    say(f"{removed:,} result{'s' * (removed != 1)} removed")
    return Exit.SUCCEEDED


def _on(mode: str, url: str | None, body: Callable[[Client], Awaitable[Any]], *, sweeps: bool = False) -> Any:
    """Call with a client of the bus, or of what runs without one have kept."""
    if mode == "bus":
        return on_bus(url, body)
    if url is not None:
        raise UsageError("--url means nothing with --mode local: there is no bus")
    import anyio

    from evpipe.cli.connected import kept
    from evpipe.hosting.logs import configure_logs

    configure_logs()

    async def call() -> Any:
        async with kept(sweeps=sweeps) as client:
            return await body(client)

    return anyio.run(call)


def _check_names(pipeline: str | None, step: str | None) -> None:
    from evpipe.core.mapping import base_of
    from evpipe.core.names import check_name, from_people

    if pipeline is not None:
        check_name("pipeline", pipeline)
    if step is not None:
        check_name("step", base_of(from_people(step)))


def _described(result: CachedResult) -> dict[str, Any]:
    return {
        "fingerprint": result.fingerprint,
        "pipeline": result.pipeline,
        "step": result.step,
        "run": result.run,
        "at": datetime.fromtimestamp(result.at_s, UTC),
        "hits": result.hits,
        "components": _components(result.components),
    }


def _explained(found: Explanation) -> dict[str, Any]:
    from evpipe.core.names import for_people

    origin = found.origin
    return {
        "run": found.run,
        "step": found.step,
        "status": str(found.status),
        "sentence": found.sentence,
        "fingerprint": found.fingerprint or None,
        "components": None if found.components is None else _components(found.components),
        "cached_from": None
        if origin is None
        else {
            "pipeline": origin.pipeline,
            "run": origin.run,
            "step": for_people(origin.step),
            "at": datetime.fromtimestamp(origin.at_s, UTC),
        },
        "compared_with": found.compared_with or None,
        "differences": [
            {"factor": change.factor, "name": change.name or None, "before": change.before, "now": change.now}
            for change in found.differences
        ],
    }


def _components(found: Components) -> dict[str, Any]:
    return {
        "code": found.code,
        "version": found.version,
        "python": found.python,
        "image": found.image,
        "packages": dict(found.packages),
        "inputs": {name: {"digest": given.digest, "shown": given.shown} for name, given in found.inputs.items()},
    }


def _factors(found: Components) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {version}" for name, version in sorted(found.packages.items()))
    factors = [
        ("code", found.code[:SHORT]),
        ("version", found.version),
        ("Python", found.python),
        ("image", found.image),
        ("packages", packages),
    ]
    factors += [(name, f"{given.shown}  ({given.digest[:SHORT]})") for name, given in sorted(found.inputs.items())]
    return [(name, text) for name, text in factors if text]


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
