"""`evpipe run --dry-run`: what would be run, and what of this machine's code would travel for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpipe.cli.output import json_text, plain, table_lines, write_data

if TYPE_CHECKING:
    from typing import TextIO

    from evpipe.client.bundle import Bundle
    from evpipe.sdk.definition import Built


def write_dry_run(built: Built, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Write the graph's steps and the files of the bundle; no bus is asked."""
    from evpipe.client.bundle import bundle_of

    bundle = bundle_of({str(step.code.get("module", "")) for step in built.graph.steps.values()})
    if as_json:
        write_data(json_text(_described(built, bundle)), stream)
        return
    graph = built.graph
    version = f" {graph.version}" if graph.version else ""
    write_data(f"pipeline {graph.pipeline}{version}: {_count(len(graph.steps), 'step')}", stream)
    if graph.steps:
        rows = [
            (step.name, step.executor, step.queue, _function(step.code), ", ".join(graph.parents[step.name]))
            for step in graph.steps.values()
        ]
        for line in table_lines(("step", "executor", "queue", "function", "after"), rows, {}):
            write_data(line, stream)
    if bundle is None:
        write_data("no code travels: all of it is installed", stream)
        return
    sizes = _sizes(bundle)
    size = sum(sizes.values())
    files = _count(len(sizes), "file")
    write_data(f"bundle {bundle.digest[:12]}: {files}, {size:,} bytes, {len(bundle.data):,} packed", stream)
    for line in table_lines(("file", "bytes"), [(path, f"{n:,}") for path, n in sizes.items()], {}):
        write_data(line, stream)


def _described(built: Built, bundle: Bundle | None) -> dict[str, Any]:
    graph = built.graph
    return {
        "pipeline": graph.pipeline,
        "version": graph.version,
        "parameters": plain(dict(built.parameters)),
        "steps": [
            {
                "name": step.name,
                "executor": step.executor,
                "queue": step.queue,
                "function": _function(step.code),
                "after": list(graph.parents[step.name]),
            }
            for step in graph.steps.values()
        ],
        "bundle": None
        if bundle is None
        else {"digest": bundle.digest, "bytes": len(bundle.data), "files": _sizes(bundle)},
    }


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Give the bytes of each file, read as a worker reads it."""
    from evpipe.wire.bundles import unpack_bundle

    return {path: len(content) for path, content in sorted(unpack_bundle(bundle.data).items())}


def _function(code: Any) -> str:
    return f"{code.get('module')}:{code.get('name')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
