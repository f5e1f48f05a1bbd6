"""`evpipe run --dry-run`: what would be run, what the cache would give, and what code would travel for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from evpipe.cli.output import json_text, plain, say, table_lines, write_data
from evpipe.errors import only_one
from evpipe.sdk.hook import RunOptions

if TYPE_CHECKING:
    from typing import TextIO

    from evpipe.client.bundle import Bundle
    from evpipe.client.foresight import Foreseen
    from evpipe.core.graph import Step
    from evpipe.sdk.definition import Built

#: Of a command in the table.
_COMMAND_CHARS = 60


def write_dry_run(
    built: Built, how: RunOptions, url: str | None, *, as_json: bool, stream: TextIO | None = None
) -> None:
    """Write the graph's steps, what would become of each, the files of the bundle, and what has no serializer."""
    from evpipe.client.bundle import bundle_of
    from evpipe.client.command_files import command_files, commands_of, function_modules
    from evpipe.client.foresight import missing_serializers

    bundle = bundle_of(function_modules(built.graph))
    commands = {path: len(content) for path, content in command_files(commands_of(built.graph)).items()}
    foreseen, note = _foreseen(built, how, url)
    missing = missing_serializers(built.graph)
    if note:
        say(f"note: {note}")
    if as_json:
        write_data(json_text(_described(built, bundle, commands, foreseen, missing)), stream)
        return
    graph = built.graph
    version = f" {graph.version}" if graph.version else ""
    write_data(f"pipeline {graph.pipeline}{version}: {_count(len(graph.steps), 'step')}", stream)
    if graph.steps:
        rows = [
            (
                step.name,
                step.executor if step.code else "",
                step.queue if step.code else "",
                _runs(step) or "",
                ", ".join(graph.parents[step.name]),
                f"{found.outcome}: {found.why}",
            )
            for step, found in zip(graph.steps.values(), foreseen, strict=True)
        ]
        for line in table_lines(("step", "executor", "queue", "function", "after", "outcome"), rows, {}):
            write_data(line, stream)
    for sentence in missing:
        write_data(f"no serializer: {sentence}", stream)
    if bundle is None and not commands:
        write_data("no code travels: all of it is installed", stream)
    if bundle is not None:
        _write_bundle(bundle, stream)
    if commands:
        write_data(f"files of commands: {_count(len(commands), 'file')}, {sum(commands.values()):,} bytes", stream)
        for line in table_lines(("file", "bytes"), [(path, f"{n:,}") for path, n in commands.items()], {}):
            write_data(line, stream)


def _write_bundle(bundle: Bundle, stream: TextIO | None) -> None:
    sizes = _sizes(bundle)
    size = sum(sizes.values())
    files = _count(len(sizes), "file")
    write_data(f"bundle {bundle.digest[:12]}: {files}, {size:,} bytes, {len(bundle.data):,} packed", stream)
    for line in table_lines(("file", "bytes"), [(path, f"{n:,}") for path, n in sizes.items()], {}):
        write_data(line, stream)


def _foreseen(built: Built, how: RunOptions, url: str | None) -> tuple[list[Foreseen], str]:
    """Look ahead; gives also what is to be noted. The cache is asked only if there is a cached step."""
    import anyio

    from evpipe.bus.settings import load_settings
    from evpipe.cli.connected import kept
    from evpipe.client.client import check_refresh
    from evpipe.client.foresight import foresee
    from evpipe.errors import BusError
    from evpipe.hosting.logs import configure_logs

    refresh = check_refresh(how.refresh, built.graph, no_cache=how.no_cache)
    looks = partial(foresee, built=built, no_cache=how.no_cache, refresh=refresh)
    cacheable = any(step.cache is not None for step in built.graph.steps.values())
    if not cacheable or how.no_cache:
        return anyio.run(looks, None), ""
    configure_logs()
    if how.mode != "bus":

        async def look() -> list[Foreseen]:
            async with kept() as client:
                return await looks(client.bus)

        return anyio.run(look), ""

    async def ask() -> list[Foreseen]:
        from evpipe.client.client import Client

        async with Client(load_settings(url=url)) as client:
            return await looks(client.bus)

    try:
        return anyio.run(ask), ""
    except* BusError as errors:
        note = f"the cache was not asked: {only_one(errors)}"
    return anyio.run(looks, None), note


def _described(
    built: Built, bundle: Bundle | None, commands: dict[str, int], foreseen: list[Foreseen], missing: list[str]
) -> dict[str, Any]:
    graph = built.graph
    return {
        "pipeline": graph.pipeline,
        "version": graph.version,
        "parameters": plain(dict(built.parameters)),
        "steps": [
            {
                "name": step.name,
                "executor": step.executor if step.code else None,
                "queue": step.queue if step.code else None,
                "function": _runs(step),
                "after": list(graph.parents[step.name]),
                "outcome": found.outcome,
                "why": found.why,
            }
            for step, found in zip(graph.steps.values(), foreseen, strict=True)
        ],
        "missing_serializers": missing,
        "bundle": None
        if bundle is None
        else {"digest": bundle.digest, "bytes": len(bundle.data), "files": _sizes(bundle)},
        "command_files": commands,
    }


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Give the bytes of each file, read as a worker reads it."""
    from evpipe.wire.bundles import unpack_bundle

    return {path: len(content) for path, content in sorted(unpack_bundle(bundle.data).items())}


def _runs(step: Step) -> str | None:
    """Name what a step runs; None if it only waits."""
    if step.child is not None:
        return f"pipeline {step.child.pipeline}"
    return None if step.wait is not None else _function(step.code)


def _function(code: Any) -> str:
    """Say what a step runs."""
    if code.get("kind") == "command":
        text = " ".join(map(str, code.get("words", ())))
        return text if len(text) <= _COMMAND_CHARS else text[: _COMMAND_CHARS - 1] + "…"
    return f"{code.get('module')}:{code.get('name')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
