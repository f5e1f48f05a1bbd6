"""`evpipe events`: the log as lines, as it grows or as it is."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from evpipe.cli.output import (
    Command,
    Exit,
    coloured,
    duration_s,
    json_text,
    one_line,
    output_option,
    url_option,
    write_data,
)
from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.bus.protocol import Bus, Record
    from evpipe.bus.settings import BusSettings
    from evpipe.client.client import Client
    from evpipe.client.events import RunEvent

_SEQUENCE: Final = re.compile(r"\d{1,19}\Z")
_SEQUENCE_MAX: Final = 2**63 - 1
COLOURS: Final = {
    "succeeded": "green",
    "cached": "blue",
    "failed": "red",
    "cancelled": "magenta",
    "retry": "yellow",
    "started": "cyan",
}
VALUE_CHARS_MAX: Final = 100

_short = reprlib.Repr()
_short.maxstring = _short.maxother = VALUE_CHARS_MAX
_short.maxlevel = 4


@dataclass(frozen=True, slots=True)
class Since:
    """Where to begin: after a sequence of the log, or at a time (seconds since 1970)."""

    sequence: int = 0
    at_s: float | None = None

    @classmethod
    def of(cls, text: str) -> Since:
        """Read --since.

        Raises:
            UsageError: if it is none of the three forms.
        """
        if _SEQUENCE.match(text) and int(text) <= _SEQUENCE_MAX:
            return cls(sequence=int(text))
        duration = duration_s(text)
        at_s = -1.0
        try:
            if duration is not None:
                at_s = datetime.now(UTC).timestamp() - duration
            else:
                # Without an offset it is the time on this machine's clock.
                at_s = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            pass  # told below, like a time before 1970, which no log has
        if at_s < 0:
            raise UsageError(
                f"--since {text!r} is not a sequence (1500), a duration (90s, 10m, 2h, 1d) "
                "or a time (2025-11-23T14:30, 2025-11-23T14:30:00Z)"
            )
        return cls(at_s=at_s)

    def __contains__(self, record: Record) -> bool:
        return record.sequence > self.sequence and (self.at_s is None or record.at_s >= self.at_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events."""

    pipeline: str | None
    kind: str | None
    run: str | None
    #: None: from now on; all that are there where nothing is to be followed, or one run is meant.
    since: Since | None
    follow: bool


@click.command(cls=Command)
@click.option("--pipeline", metavar="P", help="Only events of runs of this pipeline.")
@click.option("--kind", metavar="K", help='Only events of this kind, as in "failed".')
@click.option("--run", metavar="ID", help="Only events of this run, from its first on; ends after `finished`.")
@click.option("--since", metavar="WHEN", help="A sequence (1500), a duration (10m) or a time (2025-11-23T14:30).")
@click.option("--no-follow", is_flag=True, help="Show what is there, and end.")
@url_option
@output_option
def events(
    pipeline: str | None,
    kind: str | None,
    run: str | None,
    since: str | None,
    no_follow: bool,
    url: str | None,
    output: str,
) -> Exit:
    """Show events as they happen, one per line.

    Without --run and --since it begins now; with --no-follow, at the first event there is.

    With -o json each line is an object: sequence, at, run, pipeline, step (null for the run itself), kind, attempt,
    data.
    """
    from evpipe.bus.settings import load_settings
    from evpipe.core.names import check_name, nearest
    from evpipe.wire.subjects import RUN_KINDS, STEP_KINDS, check_run_id

    kinds = sorted(RUN_KINDS | STEP_KINDS)
    if kind is not None and kind not in kinds:
        raise UsageError(f"there is no event kind {kind!r}{nearest(kind, kinds)} (there are {', '.join(kinds)})")
    if pipeline is not None:
        check_name("pipeline", pipeline)
    if run is not None:
        check_run_id(run)
    begin = None if since is None else Since.of(since)
    wanted = Wanted(pipeline=pipeline, kind=kind, run=run, since=begin, follow=not no_follow)
    settings = load_settings(url=url)
    # What is wrong with the call is said before what takes long to import.
    import anyio

    from evpipe.hosting.logs import configure_logs

    configure_logs()
    anyio.run(_show, settings, wanted, output == "json")
    return Exit.SUCCEEDED


async def _show(settings: BusSettings, wanted: Wanted, as_json: bool) -> None:
    from evpipe.cli.connected import connected

    async with connected(settings) as client:
        await write_events(client, wanted, as_json=as_json)


async def write_events(client: Client, wanted: Wanted, *, as_json: bool) -> None:
    """Write the wanted events, one per line, until there are no more to come."""
    colours = coloured(sys.stdout)
    async for event in read(client, wanted):
        write_data(_object_line(event) if as_json else text_line(event, colours=colours))


# ---- reading


async def read(client: Client, wanted: Wanted) -> AsyncIterator[RunEvent]:
    """Give the wanted events in the log's order."""
    from evpipe.client.events import run_event

    bus = client.bus
    since = wanted.since or Since()
    if wanted.run is not None:
        handle = await client.get_run(wanted.run)
        # From its first event on in any case: else the end of a run that ended before is waited for in vain.
        records = _records_of_run(bus, handle.id, follow=wanted.follow)
    else:
        subject = bus.subjects.events_like(pipeline=wanted.pipeline, kind=wanted.kind)
        if not wanted.follow:
            records = _records_there(bus, subject, since)
        else:
            records = _records_to_come(bus, subject, wanted.since or Since(sequence=await bus.last_sequence()))
    async for record in records:
        event = run_event(record, bus.subjects)
        if (
            event is not None
            and record in since
            and wanted.kind in (None, event.kind)
            and wanted.pipeline in (None, event.pipeline)
        ):
            yield event


async def _records_of_run(bus: Bus, run: str, *, follow: bool) -> AsyncIterator[Record]:
    subject = bus.subjects.events_of_run(run)
    if not follow:
        async for batch in bus.replay([subject], up_to=await bus.last_sequence()):
            for record in batch:
                yield record
        return
    async with bus.follow([subject]) as feed:
        async for batch in feed:
            for record in batch:
                yield record
                if record.subject.endswith("._.finished"):
                    return


async def _records_to_come(bus: Bus, subject: str, since: Since) -> AsyncIterator[Record]:
    async with bus.follow([subject], after=since.sequence, since_s=since.at_s) as feed:
        async for batch in feed:
            for record in batch:
                yield record


async def _records_there(bus: Bus, subject: str, since: Since) -> AsyncIterator[Record]:
    after = since.sequence
    newest = await bus.last(subject)
    if newest is None or newest not in since:
        return
    if since.at_s is not None:
        # A replay begins at a sequence: the first record of that time says which. There is one, the newest.
        async with bus.follow([subject], since_s=since.at_s) as feed:
            async for batch in feed:
                after = batch[0].sequence - 1
                break
    async for batch in bus.replay([subject], up_to=newest.sequence, after=after):
        for record in batch:
            yield record


# ---- showing


def _object_line(event: RunEvent) -> str:
    return json_text(
        {
            "sequence": event.sequence,
            "at": event.at,
            "run": event.run,
            "pipeline": event.pipeline,
            "step": event.step,
            "kind": event.kind,
            "attempt": event.attempt,
            "data": dict(event.data),
        }
    )


def text_line(event: RunEvent, *, colours: bool = False) -> str:
    """Write an event for a person: time (of this machine's zone), run, step, kind, attempt, the telling data."""
    at = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    kind = f"{event.kind:<10}"
    told_by = event.kind if event.kind != "finished" else str(event.data.get("status", ""))
    if colours and told_by in COLOURS:
        kind = click.style(kind, fg=COLOURS[told_by])
    attempt = f"#{event.attempt}" if event.attempt else ""
    return f"{at} {event.run} {event.step or '-':<16} {kind} {attempt:<3} {telling(event)}".rstrip()


def telling(event: RunEvent) -> str:
    """Choose what of an event's data a person wants to read."""
    data = event.data
    match event.kind:
        case "submitted":
            parameters = data.get("parameters")
            shown = parameters_text(parameters) if isinstance(parameters, Mapping) else ""
            return one_line(f"{event.pipeline} {shown}")
        case "started":
            return one_line(str(data.get("worker", "")))
        case "succeeded":
            return one_line(_short.repr(data.get("value")))
        case "progress":
            return _recorded(data.get("notes"))
        case "retry":
            due_at = data.get("due_at")
            return f"in {max(0.0, due_at - event.at.timestamp()):.1f} s" if isinstance(due_at, float) else ""
        case "failed" | "skipped" | "cancelled":
            return _because(str(data.get("reason", "")), data)
        case "cancel-requested":
            return _because(str(data.get("cause", "")), data)
        case "finished":
            status = str(data.get("status", ""))
            return f"{status} {one_line(_short.repr(data['value']))}" if "value" in data else _because(status, data)
        case _:
            return one_line(" ".join(f"{key}={_short.repr(value)}" for key, value in data.items()))


def _recorded(notes: object) -> str:
    if not isinstance(notes, Mapping):
        return ""
    metrics, artifacts = notes.get("metrics", ()), notes.get("artifacts", ())
    count = len(metrics) if isinstance(metrics, (list, tuple)) else getattr(metrics, "length", None) or 0
    told = [f"{count:,} point{'' if count == 1 else 's'} of metrics"] if count else []
    return one_line(", ".join([*told, *(f"artifact {name!r}" for name in artifacts)]))


def parameters_text(parameters: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_short.repr(value)}" for name, value in parameters.items())


def _because(why: str, data: Mapping[str, Any]) -> str:
    message = str(data.get("message", ""))
    return one_line(f"{why}: {message}" if message else why)
