"""The language of the scenario files: a graph, then events, each followed by what came of it.

    # A comment.
    pipeline fail_fast deadline_s=30       what the whole graph is; may be left out
    step train <- load split[0]  after=x   takes the output of load and part of split's, waits for x
    step best <- train  on_failure=skip  count=2 delay_s=10 on=builtins.ValueError
    step ask after=train  wait=approval timeout_s=60   a step that waits: approval, signal or sleep
    step nap after=ask  wait=sleep seconds=20
    output best                            the run's value

    @0 submitted
    @1.5 train started 1                   <moment> <step> <what> <attempt> <JSON or text>
    @2 train succeeded 1 {"score": 0.5}
    @2 train failed 1 error ValueError: bad
    @3 train retry 2 due=13
    @13 train due 2
    @30 run due
    @4 run cancel-requested request please
    @4 ask approved ann true
    @4 order received {"id": 7}
    @4 train skipped step 'load' failed
    @4 train cancelled 1 request please
    @5 run finished succeeded {"score": 0.5}
    take-over                              fold all of it in a new Run; what is outstanding?

Lines that are indented are the golden trace: the commands (`->`), and every attribute that changed.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from evpipe.core.bindings import OutputRef
from evpipe.core.commands import Await, CancelRun, Command, Decide, Launch, Quarantine, StopAttempt, SubmitRun, WakeAt
from evpipe.core.events import CancelCause, Event, Failure, StepFailed, StepSkipped
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, Reason, RunStatus
from evpipe.core.waits import Wait, WaitKind
from tests.core import making
from tests.core.making import RUN_ID, snapshot

_RETRY_OPTIONS = {field.name for field in fields(RetryPolicy)}


@dataclass(frozen=True)
class Line:
    """A line of a scenario that is not part of its trace."""

    text: str
    event: Event | None = None
    take_over: bool = False


def played(text: str) -> str:
    """A scenario with its trace, whatever trace it had before."""
    given = [line for line in text.splitlines() if not line.startswith(" ")]
    graph = parse_graph([line for line in given if line.startswith(("pipeline", "step ", "output "))])
    run = Run(RUN_ID)
    log: list[Event] = []
    shown: list[str] = []
    for line in given:
        shown.append(line)
        if line.startswith("@"):
            event = parse_event(line, graph)
            before = snapshot(run)
            commands = run.step(event)
            log.append(event)
            lines = [*map(command_text, commands), *changes_text(before, snapshot(run))]
            shown += [f"    {text}" for text in lines or ["nothing"]]
        elif line == "take-over":
            successor = Run(RUN_ID)
            for event in log:
                successor.step(event)
            assert snapshot(successor) == snapshot(run), "a replay gave another state"
            run = successor
            shown += [f"    {text}" for text in map(command_text, run.outstanding())] or ["    nothing"]
    return "\n".join(shown) + "\n"


# ---- in


def parse_graph(lines: list[str]) -> Graph:
    steps: list[Step] = []
    whole: dict[str, Any] = {"pipeline": "scenario"}
    for line in lines:
        words = shlex.split(line)
        match words:
            case ["pipeline", *options]:
                for option in options:
                    name, _, value = option.partition("=")
                    whole[name] = float(value) if value else True
            case ["output", name]:
                whole["output"] = parse_ref(name)
            case ["step", name, *rest]:
                parents = [parse_ref(word) for word in rest if "=" not in word and word != "<-"]
                options_given = dict(word.split("=", 1) for word in rest if "=" in word)
                steps.append(parse_step(name, parents, options_given))
            case _:
                raise AssertionError(f"no line of a graph: {line!r}")
    return Graph.of(steps, **whole)


def parse_step(name: str, parents: list[OutputRef], options: dict[str, str]) -> Step:
    policy: dict[str, Any] = {"jitter": 0.0}
    for key in _RETRY_OPTIONS & set(options):
        text = options.pop(key)
        policy[key] = int(text) if key == "count" else (text,) if key == "on" else float(text)
    after = tuple(options.pop("after").split(",")) if "after" in options else ()
    wait: Wait | None = None
    arguments: dict[str, Any] = {}
    if "wait" in options:
        wait = Wait(kind=WaitKind(options.pop("wait")))
        texts = {"message": "Go?"} if wait.kind is WaitKind.APPROVAL else {"name": f"{name}.came"}
        arguments = {"seconds": float(options.pop("seconds"))} if wait.kind is WaitKind.SLEEP else texts
    timeout_s = float(options.pop("timeout_s")) if "timeout_s" in options else None
    on_failure = OnFailure(options.pop("on_failure", "fail"))
    assert not options, f"unknown options of a step: {options}"
    return Step(
        name=name,
        arguments={**{ref.step: ref for ref in parents}, **arguments},
        wait=wait,
        timeout_s=timeout_s,
        after=after,
        on_failure=on_failure,
        retries=RetryPolicy(**policy),
    )


def parse_ref(word: str) -> OutputRef:
    name, *keys = re.split(r"[\[\]]+", word.rstrip("]"))
    return OutputRef(name, tuple(int(key) if key.isdigit() else key for key in keys))


def parse_event(line: str, graph: Graph) -> Event:
    moment, *words = line[1:].split(" ")
    at_s = float(moment)
    match words:
        case ["submitted"]:
            return making.submitted(graph, at_s)
        case ["run", "due"]:
            return making.due(None, at_s=at_s)
        case ["run", "cancel-requested", cause, *text]:
            return making.cancel(CancelCause(cause), " ".join(text), at_s)
        case ["run", "finished", status, *text]:
            return making.finished(RunStatus(status), at_s, value=parse_value(text))
        case [step, "started", attempt]:
            return making.started(step, int(attempt), at_s)
        case [step, "succeeded", attempt, *text]:
            return making.succeeded(step, int(attempt), parse_value(text), at_s)
        case [step, "failed", attempt, reason, *text]:
            message = " ".join(text)
            types = (f"builtins.{message.split(':')[0]}",) if reason == "error" else ()
            failure = Failure(message=message, types=types)
            return StepFailed(at_s=at_s, step=step, attempt=int(attempt), reason=Reason(reason), failure=failure)
        case [step, "retry", attempt, due]:
            return making.retried(step, int(attempt), float(due.removeprefix("due=")), at_s)
        case [step, "approved", by, *text]:
            return making.approved(step, parse_value(text), by, at_s=at_s)
        case [step, "received", *text]:
            return making.received(step, parse_value(text), at_s)
        case [step, "due", attempt]:
            return making.due(step, int(attempt), at_s)
        case [step, "skipped", *text]:
            return making.skipped(step, " ".join(text), at_s)
        case [step, "skipped-itself", attempt, *text]:
            return making.skipped_itself(step, int(attempt), message=" ".join(text), at_s=at_s)
        case [step, "cancelled", attempt, reason, *text]:
            return making.cancelled(step, int(attempt), Reason(reason), " ".join(text), at_s)
    raise AssertionError(f"no event: {line!r}")


def parse_value(words: list[str]) -> Any:
    return json.loads(" ".join(words)) if words else None


# ---- out


def command_text(command: Command) -> str:
    match command:
        case Launch(step=step, attempt=attempt, arguments=arguments):
            return f"-> launch {step} {attempt} {json.dumps(arguments)}"
        case SubmitRun(step=step, attempt=attempt, arguments=arguments):
            return f"-> submit the run of {step} {attempt} {json.dumps(arguments)}"
        case CancelRun(step=step, attempt=attempt):
            return f"-> cancel the run of {step} {attempt}"
        case StopAttempt(step=step, attempt=attempt):
            return f"-> stop {step} {attempt}"
        case WakeAt(at_s=at_s, step=step, attempt=attempt):
            return f"-> wake at {at_s:g} for {step or 'the deadline'}" + (f" {attempt}" if step else "")
        case Await(step=step, attempt=attempt):
            return f"-> await {step} {attempt}"
        case Decide(event=event):
            shown = ", ".join(
                f"{field.name} {value_text(getattr(event, field.name))}"
                for field in fields(event)
                if field.name not in _unsaid(event) and not _is_nothing(getattr(event, field.name))
            )
            return f"-> decide {type(event).__name__}: {shown}"
        case Quarantine(reason=reason):
            return f"-> quarantine: {reason}"


def changes_text(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line per step or attribute of the run that changed; what the commands show already is left out."""
    lines: list[str] = []
    for name, state in after["steps"].items():
        old = before["steps"].get(name, {})
        differ = [
            f"{key} {value_text(old.get(key))} > {value_text(value)}"
            for key, value in state.items()
            if old.get(key) != value and (old or value not in (None, "", 0))
        ]
        if differ:
            lines.append(f"{name}: {', '.join(differ)}")
    own = [key for key in after if key not in ("steps", "graph", "decisions", "at_s", "parameters", "cancel")]
    for key in own:
        was, now = before[key], after[key]
        if isinstance(now, dict):
            lines += [f"{key} {k} {was.get(k)!r} > {v!r}" for k, v in now.items() if k not in was or was[k] != v]
        elif was != now:
            lines.append(f"{key} {value_text(was)} > {value_text(now)}")
    undecided = len(after["decisions"])
    if undecided != len(before["decisions"]):
        lines.append(f"decisions not in the log: {undecided}")
    return lines


def value_text(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Failure):
        return repr(value.message)
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _unsaid(event: Event) -> tuple[str, ...]:
    # What is decided to be skipped has no attempt.
    return ("at_s", "attempt", "started_at_s") if isinstance(event, StepSkipped) else ("at_s",)


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value == ""
