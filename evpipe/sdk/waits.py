"""`approval`, `wait_for_event` and `sleep`: steps that wait, and hold no worker and no slot while they do.

In a pipeline's body a call adds the step and gives its handle; `Pipeline` has the same as methods with a name first.
What they are given is made a `Wait` and arguments here; the core decides what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar, overload

from evpipe.core.graph import Step as GraphStep
from evpipe.core.graph import check_seconds
from evpipe.core.names import check_name, check_signal_name
from evpipe.core.parameters import ParameterType
from evpipe.core.waits import Wait, WaitKind, check_wait
from evpipe.errors import UsageError
from evpipe.sdk.build import Build, current_build
from evpipe.sdk.handle import Placeholder
from evpipe.sdk.options import UNSET, OnFailureName, RunIfName, check_options
from evpipe.sdk.parameter_types import parameter_type
from evpipe.sdk.shape import Shape

T = TypeVar("T")

Reject: TypeAlias = Literal["value", "fail"]
Since: TypeAlias = Literal["wait", "submit"]
#: Where a wait is added: its name, or None for a free one after the base.
Adding: TypeAlias = Callable[[str, str | None], tuple[Build, str]]

_OUTSIDE: Final = "{call}(…) is a step: call it in the body of a @pipeline (a Pipeline has p.{call}(name, …))"


# The overlap is meant: a type says what the answer is, anything else only what it must be.
@overload
def approval(
    message: str,
    *,
    show: Mapping[str, object] | None = None,
    reject: Reject = "value",
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    timeout_s: float | None = None,
    default: object = UNSET,
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> bool: ...
@overload
def approval(
    message: str,
    *,
    answer: type[T],
    show: Mapping[str, object] | None = None,
    reject: Reject = "value",
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    timeout_s: float | None = None,
    default: object = UNSET,
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> T: ...
@overload
def approval(
    message: str,
    *,
    answer: Any,
    show: Mapping[str, object] | None = None,
    reject: Reject = "value",
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    timeout_s: float | None = None,
    default: object = UNSET,
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> Any: ...
def approval(
    message: str,
    *,
    answer: Any = bool,
    show: Mapping[str, object] | None = None,
    reject: Reject = "value",
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    timeout_s: float | None = None,
    default: object = UNSET,
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> Any:
    """Add a step that waits for a person's answer, which is its value.

    Args:
        message: what is asked.
        answer: the type of the answer, as an annotation: `bool`, `str`, `int`, `Literal["a", "b"]`, ….
        show: what the approver sees beside the message; values may be handles.
        reject: what the answer False means: "value": it is the step's value; "fail": the step fails, for the reason
            `rejected`.
        name: default: approval, approval-2, ….
        timeout_s: seconds to wait; then the step fails, for the reason `timeout`, or has its default. None: no limit.
        default: its value when the time is over.
        after: and the other options are those of `@step`.

    Raises:
        UsageError: outside a pipeline, or if an option is not allowed.
    """
    given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
    return add_approval(_in_body("approval"), message, answer, show, reject, name, timeout_s, default, given)


def wait_for_event(
    signal: str | None = None,
    *,
    match: Mapping[str, object] | None = None,
    run: object = None,
    pipeline: str | None = None,
    step: str | None = None,
    kind: str | None = None,
    since: Since = "wait",
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    timeout_s: float | None = None,
    default: object = UNSET,
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> Any:
    """Add a step that waits for an event: a signal, or an event in the log of another run.

    Its value is the signal's payload; of a run's event a dict with run, pipeline, step, kind, attempt, at (seconds
    since 1970) and data.

    Args:
        signal: its name, up to eight names with dots between them, as in "orders.created".
        match: values that the payload must have, by key; they may be handles.
        run: id of the run, or a handle of one; its events count from the first on.
        pipeline: instead of `run`: of any run of this pipeline, from the moment on at which the step begins to wait.
        step: of which step of that run, of an element of a mapped one as in `train[2]`; None: of the run itself.
        kind: of the event; default: "succeeded" of a step (also if its result came from the cache), "finished" of a
            run.
        since: "submit": what came since the submit of this run counts, too.
        name: default: event, event-2, ….
        timeout_s: seconds to wait; then the step fails, for the reason `timeout`, or has its default. None: no limit.
        default: its value when the time is over.
        after: and the other options are those of `@step`.

    Raises:
        UsageError: outside a pipeline, or if an option is not allowed.
    """
    given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
    what = {"signal": signal, "match": match, "run": run, "pipeline": pipeline, "step": step, "kind": kind}
    return add_event(_in_body("wait_for_event"), what, since, name, timeout_s, default, given)


def sleep(
    seconds: float | timedelta,
    *,
    name: str | None = None,
    after: Sequence[object] = (),
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    on_failure: OnFailureName = "fail",
    description: str = "",
) -> Any:
    """Add a step that ends a while after it became ready; its handle is for `after`, its value None.

    Args:
        seconds: may be a handle.
        name: default: sleep, sleep-2, ….
        after: and the other options are those of `@step`.

    Raises:
        UsageError: outside a pipeline, or if an option is not allowed.
    """
    given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
    return add_sleep(_in_body("sleep"), seconds, name, given)


# ---- both styles


def add_approval(
    adding: Adding,
    message: object,
    answer: Any,
    show: object,
    reject: object,
    name: str | None,
    timeout_s: float | None,
    default: object,
    given: Mapping[str, object],
) -> Any:
    """Add an approval; the arguments are those of `approval`."""
    build, name = adding("approval", name)
    where = f"step {name!r}"
    if reject not in ("value", "fail"):
        raise UsageError(f"{where}: reject must be 'value' or 'fail', not {reject!r}")
    arguments: dict[str, object] = {"message": message}
    if show is not None:
        arguments["show"] = dict(show) if isinstance(show, Mapping) else show
    wait = Wait(kind=WaitKind.APPROVAL, answer=_answer_type(answer, where), reject_fails=reject == "fail")
    return _add(build, name, wait, arguments, timeout_s, default, given)


def add_event(
    adding: Adding,
    what: Mapping[str, Any],
    since: object,
    name: str | None,
    timeout_s: float | None,
    default: object,
    given: Mapping[str, object],
) -> Any:
    """Add a wait for an event; the arguments are those of `wait_for_event`."""
    build, name = adding("event", name)
    where = f"step {name!r}"
    found = {key: value for key, value in what.items() if value is not None}
    signal = found.pop("signal", None)
    if since not in ("wait", "submit"):
        raise UsageError(f"{where}: since must be 'wait' or 'submit', not {since!r}")
    if signal is not None:
        others = sorted(found.keys() - {"match"})
        if others:
            raise UsageError(f"{where}: a signal has a name and match; {others[0]} is of an event of another run")
        if not isinstance(signal, Placeholder):
            check_signal_name(signal)
        if "match" in found and isinstance(found["match"], Mapping):
            found["match"] = dict(found["match"])
        wait = Wait(kind=WaitKind.SIGNAL, since_submit=since == "submit")
        return _add(build, name, wait, {"name": signal, **found}, timeout_s, default, given)
    if "match" in found:
        raise UsageError(f"{where}: match is for the payload of a signal: give its name")
    if "run" not in found and "pipeline" not in found:
        raise UsageError(
            f"{where} waits for a signal, as in wait_for_event('orders.created'), or for an event of another run, as "
            "in wait_for_event(run=…, kind='finished') or wait_for_event(pipeline='churn')"
        )
    run = found.get("run")
    if run is not None and not isinstance(run, (str, Placeholder)):
        # A handle of a client has it.
        found["run"] = getattr(run, "id", run)
    # Here, where they are needed: a file with a step loads no more than the sdk.
    from evpipe.wire.subjects import PROGRESS, RUN_KINDS, STEP_KINDS

    of_step = "step" in found
    kind = found.setdefault("kind", "succeeded" if of_step else "finished")
    # Whether an attempt tells of its progress depends on how long it takes.
    kinds = STEP_KINDS - {PROGRESS} if of_step else RUN_KINDS
    if not isinstance(kind, Placeholder) and kind not in kinds:
        raise UsageError(
            f"{where}: an event of a {'step' if of_step else 'run'} is one of {', '.join(sorted(kinds))}, not {kind!r}"
            + ("" if of_step else " (of a step: give step=…, too)")
        )
    wait = Wait(kind=WaitKind.RUN_EVENT, since_submit=since == "submit")
    return _add(build, name, wait, found, timeout_s, default, given)


def add_sleep(adding: Adding, seconds: object, name: str | None, given: Mapping[str, object]) -> Any:
    """Add a sleep; the arguments are those of `sleep`."""
    build, name = adding("sleep", name)
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    return _add(build, name, Wait(kind=WaitKind.SLEEP), {"seconds": seconds}, None, UNSET, given)


def _in_body(call: str) -> Adding:
    build = current_build()
    if build is None:
        raise UsageError(_OUTSIDE.format(call=call))

    def adding(base: str, name: str | None) -> tuple[Build, str]:
        if name is None:
            return build, build.automatic_name(base)
        return build, build.check_free(check_name("step", name))

    return adding


def _add(
    build: Build,
    name: str,
    wait: Wait,
    arguments: dict[str, object],
    timeout_s: float | None,
    default: object,
    given: Mapping[str, object],
) -> Any:
    where = f"step {name!r}"
    check_seconds(f"{where}: timeout_s", timeout_s)
    if default is not UNSET:
        arguments["default"] = default
    options = check_options(given, where, executors=())
    readers = build.argument_readers(name)
    # What is asked, and names, are texts as they are: only values may hold a text reference of the builder.
    plain = ("message", "name", "step", "kind", "pipeline")
    trees = {
        key: build.tree(value, f"{where}: {key}", {} if key in plain else readers) for key, value in arguments.items()
    }
    check_wait(where, wait, trees, timeout_s)
    step = GraphStep(
        name=name,
        arguments=trees,
        after=build.parents(options["after"], where),
        queue=build.queue,
        timeout_s=None if timeout_s is None else float(timeout_s),
        on_failure=options["on_failure"],
        when=build.condition(options["when"], where),
        run_if=options["run_if"],
        description=options["description"],
        wait=wait,
    )
    return build.add(step, Shape())


def _answer_type(answer: Any, where: str) -> ParameterType:
    if isinstance(answer, (list, tuple, set, str, bytes, int, float, dict)):
        raise UsageError(f"{where}: answer must be a type, such as bool, str, int or Literal['a', 'b'], not {answer!r}")
    found = parameter_type(answer, {}, f"{where}: answer")
    if found.kind == "any" and answer is not Any:
        raise UsageError(f"{where}: answer must be a type of plain values, such as bool, str or int, not {answer!r}")
    return found
