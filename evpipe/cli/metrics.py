"""`evpipe runs metrics`: what the steps of a run recorded with `current().metric`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evpipe.cli.output import Command, Exit, json_text, output_option, say, table_lines, url_option, write_data
from evpipe.cli.runs import find_run, on_bus, run_argument

if TYPE_CHECKING:
    from evpipe.client.client import Client
    from evpipe.core.machine import Run
    from evpipe.core.notes import MetricPoint


@click.command(cls=Command)
@run_argument
@click.argument("step", required=False)
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only attempts with this number.")
@click.option("--name", metavar="METRIC", help="Only this metric, each point on a line.")
@url_option
@output_option
def metrics(run_id: str, step: str | None, attempt: int | None, name: str | None, url: str | None, output: str) -> Exit:
    """Show the metrics that the steps of a run recorded, or those of STEP alone, also while they run.

    Each metric of an attempt is a line: how many points it has, the last one, the smallest and the largest. NaN is
    neither.

    With -o json each point is a line, an object: at, step, attempt, name, value, iteration. Attempt 0 is a cached step,
    with the points of the attempt whose result it has.
    """
    from evpipe.client.notes import fill_notes
    from evpipe.core.names import for_people

    async def read(client: Client) -> tuple[list[MetricPoint], Run]:
        handle = await find_run(client, run_id)
        run = await handle.state()
        await fill_notes(client.bus, run, handle.pipeline)
        return await handle.metrics(step, attempt=attempt), run

    read_now: tuple[list[MetricPoint], Run] = on_bus(url, read)
    found, run = read_now
    for of, state in run.steps.items():
        shown = for_people(of)
        if state.notes is not None and state.notes.left_out and step in (None, shown):
            say(f"{shown}: {state.notes.left_out:,} points more were counted and not kept")
    if name is not None:
        found = [point for point in found if point.name == name]
    if output == "json":
        for point in found:
            write_data(json_text({"at": point.at, **_described(point)}))
        return Exit.SUCCEEDED
    if not found:
        say("no metrics are kept" + (f" with the name {name!r}" if name is not None else ""))
        return Exit.SUCCEEDED
    for line in _points(found) if name is not None else _summary(found):
        write_data(line)
    return Exit.SUCCEEDED


def _described(point: MetricPoint) -> dict[str, object]:
    return {
        "step": point.step,
        "attempt": point.attempt,
        "name": point.name,
        "value": point.value,
        "iteration": point.iteration,
    }


def _points(points: list[MetricPoint]) -> list[str]:
    rows = [
        (
            point.step,
            str(point.attempt),
            point.at.astimezone().strftime("%H:%M:%S.%f")[:-3],
            _number(point.iteration),
            _number(point.value),
        )
        for point in points
    ]
    return table_lines(("step", "attempt", "at", "iteration", "value"), rows, {})


def _summary(points: list[MetricPoint]) -> list[str]:
    series: dict[tuple[str, int, str], list[MetricPoint]] = {}
    for point in points:
        series.setdefault((point.step, point.attempt, point.name), []).append(point)
    rows = []
    for (step, attempt, name), some in series.items():
        values = [point.value for point in some if point.value == point.value]
        last = some[-1]
        rows.append(
            (
                step,
                str(attempt),
                name,
                f"{len(some):,}",
                _number(last.iteration),
                _number(last.value),
                _number(min(values, default=None)),
                _number(max(values, default=None)),
            )
        )
    return table_lines(("step", "attempt", "metric", "points", "iteration", "last", "smallest", "largest"), rows, {})


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"
