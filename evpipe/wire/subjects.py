"""Every subject of the public protocol, built and parsed here and nowhere else.

<prefix>.event.<shard>.<pipeline>.<run>.<step or _>.<kind>     the log
<prefix>.queue.<queue>.<priority>.<run>.<step>.<attempt>       launches
<prefix>.telemetry.<run>.<step>.<attempt>.<kind>   what attempts tell, kept for a while
<prefix>.signal.<name>                what steps wait for, kept for a while; a name is up to 8 tokens
<prefix>.who.<run>.<step>.<attempt>   who runs this attempt? (its worker answers)
<prefix>.stop                         attempts to stop
<prefix>.ping.controller, <prefix>.ping.worker.<queue>   is anybody there?
<prefix>.held.<run>.<step>            why is this step not launched? (the controller that leads answers, if it is)
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from evpipe.core.names import NAME, STEP_NAME
from evpipe.errors import RemoteProtocolError, UsageError

#: Fixed for ever: another number would move live runs and break keys.
SHARDS = 64
#: The step token of events about the run itself.
RUN = "_"
DEFAULT_PRIORITY = 5

RUN_KINDS = frozenset({"submitted", "cancel-requested", "due", "finished"})
#: What an attempt has recorded so far. Nothing follows from it: it is for those who read notes.
PROGRESS = "progress"
STEP_KINDS = frozenset(
    {
        "started",
        PROGRESS,
        "succeeded",
        "cached",
        "approved",
        "received",
        "failed",
        "retry",
        "due",
        "skipped",
        "cancelled",
    }
)
#: The kinds that only a controller writes, with the expected last sequence of their subject.
DECISION_KINDS = frozenset({"cached", "received", "retry", "due", "cancelled", "finished"})

_RUN_ID = re.compile(r"[a-z0-9]{8,32}\Z")
_PRIORITY = re.compile(r"[0-9]\Z")
_ATTEMPT = re.compile(r"(0|[1-9][0-9]{0,8})\Z")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")


@functools.lru_cache(maxsize=4096)
def shard_of(run_id: str) -> int:
    """Shard of a run: FNV-1a 32 of its id modulo 64, the hash that the server's own partitioning uses."""
    value = 0x811C9DC5
    for byte in run_id.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value % SHARDS


@functools.lru_cache(maxsize=4096)
def _run_of(subject: str, prefix: str) -> tuple[str, str]:
    """Give pipeline and run of the first five tokens of an event's subject; RemoteProtocolError says what is wrong."""
    tokens = subject.split(".")
    if len(tokens) != 5 or tokens[0] != prefix or tokens[1] != "event":
        raise RemoteProtocolError(" is not the subject of an event")
    _, _, shard, pipeline, run = tokens
    if _RUN_ID.match(run) is None or shard != str(shard_of(run)):
        raise RemoteProtocolError(f": run {run[:40]!r} is not a run id of shard {shard[:8]!r}")
    if NAME.match(pipeline) is None:
        raise RemoteProtocolError(f": {pipeline[:40]!r} is not a pipeline name")
    return pipeline, run


def check_run_id(run_id: str) -> str:
    """Return a run id that may be a token of a subject; raise UsageError for any other text."""
    if not isinstance(run_id, str) or _RUN_ID.match(run_id) is None:
        raise UsageError(f"{str(run_id)[:40]!r} is not a run id: it has 8 to 32 lower-case letters and digits")
    return run_id


def is_step_token(text: str) -> bool:
    """Say whether a text may be the step's token of a subject."""
    return STEP_NAME.match(text) is not None


class EventSubject(NamedTuple):
    """What the subject of an event says."""

    pipeline: str
    run: str
    #: None for an event of the run itself.
    step: str | None
    kind: str


class LaunchSubject(NamedTuple):
    """What the subject of a launch says."""

    queue: str
    priority: int
    run: str
    step: str
    attempt: int


class TelemetrySubject(NamedTuple):
    """What the subject of telemetry says."""

    run: str
    step: str
    attempt: int
    #: What is told: "log" are lines of output.
    kind: str


class Subjects:
    """The subjects of one installation."""

    def __init__(self, prefix: str = "evpipe") -> None:
        if _PREFIX.match(prefix) is None:
            raise UsageError(f"prefix {prefix!r} is not allowed: 1 to 32 letters, digits, '_' and '-'")
        self.prefix = prefix
        self._event = f"{prefix}.event."
        self._queue = f"{prefix}.queue."
        self._telemetry = f"{prefix}.telemetry."
        self._signal = f"{prefix}.signal."
        self.all_events = f"{prefix}.event.>"
        self.all_launches = f"{prefix}.queue.>"
        self.all_telemetry = f"{prefix}.telemetry.>"
        self.all_signals = f"{prefix}.signal.>"
        self.stop = f"{prefix}.stop"
        self.ping_controller = f"{prefix}.ping.controller"

    # ---- the log

    def event(self, pipeline: str, run: str, step: str | None, kind: str) -> str:
        return f"{self._event}{shard_of(run)}.{pipeline}.{run}.{step or RUN}.{kind}"

    def events_of_run(self, run: str, pipeline: str = "*") -> str:
        return f"{self._event}{shard_of(run)}.{pipeline}.{run}.>"

    def events_of_pipeline(self, pipeline: str) -> str:
        return f"{self._event}*.{pipeline}.>"

    def events_of_step(self, run: str, step: str, kind: str = "*") -> str:
        return f"{self._event}{shard_of(run)}.*.{run}.{step}.{kind}"

    def events_like(self, *, pipeline: str | None = None, step: str | None = None, kind: str | None = None) -> str:
        return f"{self._event}*.{pipeline or '*'}.*.{step or '*'}.{kind or '*'}"

    def parse_event(self, subject: str) -> EventSubject:
        """Take an event's subject apart.

        Raises:
            RemoteProtocolError: if it is not one of this installation, or a token of it is not allowed.

        """
        # The events of a run begin alike: that is looked at once.
        of_step, _, kind = subject.rpartition(".")
        of_run, _, step = of_step.rpartition(".")
        try:
            pipeline, run = _run_of(of_run, self.prefix)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{subject[:200]!r}{error}") from None
        if step == RUN:
            return EventSubject(pipeline, run, None, kind)
        if STEP_NAME.match(step) is None:
            raise RemoteProtocolError(f"{subject[:200]!r}: {step[:40]!r} is not a step name")
        return EventSubject(pipeline, run, step, kind)

    # ---- the queue

    def launch(self, queue: str, run: str, step: str, attempt: int, priority: int = DEFAULT_PRIORITY) -> str:
        return f"{self._queue}{queue}.{priority}.{run}.{step}.{attempt}"

    def launches_of_lane(self, queue: str, priority: int = DEFAULT_PRIORITY) -> str:
        return f"{self._queue}{queue}.{priority}.>"

    def launches_of_run(self, run: str) -> str:
        return f"{self._queue}*.*.{run}.>"

    def parse_launch(self, subject: str) -> LaunchSubject:
        """Take a launch's subject apart; RemoteProtocolError if it is not one."""
        tokens = subject.split(".")
        if len(tokens) != 7 or tokens[0] != self.prefix or tokens[1] != "queue":
            raise RemoteProtocolError(f"{subject[:200]!r} is not the subject of a launch")
        _, _, queue, priority, run, step, attempt = tokens
        legal = NAME.match(queue) and _RUN_ID.match(run) and STEP_NAME.match(step)
        if not legal or _PRIORITY.match(priority) is None or _ATTEMPT.match(attempt) is None:
            raise RemoteProtocolError(f"{subject[:200]!r} is not the subject of a launch: a token is not allowed")
        return LaunchSubject(queue, int(priority), run, step, int(attempt))

    # ---- telemetry

    def telemetry(self, run: str, step: str, attempt: int, kind: str = "log") -> str:
        return f"{self._telemetry}{run}.{step}.{attempt}.{kind}"

    def telemetry_of(self, run: str, step: str | None = None, attempt: int | None = None, kind: str = "log") -> str:
        """Filter for what a run tells: of one step, of one attempt, or of all."""
        return f"{self._telemetry}{run}.{step or '*'}.{'*' if attempt is None else attempt}.{kind}"

    def parse_telemetry(self, subject: str) -> TelemetrySubject:
        """Take the subject of telemetry apart; RemoteProtocolError if it is not one."""
        tokens = subject.split(".")
        if len(tokens) != 6 or tokens[0] != self.prefix or tokens[1] != "telemetry":
            raise RemoteProtocolError(f"{subject[:200]!r} is not the subject of telemetry")
        _, _, run, step, attempt, kind = tokens
        legal = _RUN_ID.match(run) and STEP_NAME.match(step) and NAME.match(kind)
        if not legal or _ATTEMPT.match(attempt) is None:
            raise RemoteProtocolError(f"{subject[:200]!r} is not the subject of telemetry: a token is not allowed")
        return TelemetrySubject(run, step, int(attempt), kind)

    # ---- signals

    def signal(self, name: str) -> str:
        """Give the subject of a signal whose name was checked."""
        return self._signal + name

    def signal_of(self, subject: str) -> str:
        """Give the name of the signal that was sent to a subject; whether it is one, nobody has checked."""
        return subject.removeprefix(self._signal)

    # ---- questions and hints

    def who(self, run: str, step: str, attempt: int) -> str:
        return f"{self.prefix}.who.{run}.{step}.{attempt}"

    @property
    def all_who(self) -> str:
        return f"{self.prefix}.who.>"

    def held(self, run: str, step: str) -> str:
        return f"{self.prefix}.held.{run}.{step}"

    @property
    def all_held(self) -> str:
        return f"{self.prefix}.held.*.*"

    def ping_worker(self, queue: str) -> str:
        return f"{self.prefix}.ping.worker.{queue}"
