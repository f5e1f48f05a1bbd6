"""`run`: one run from its submit to its result, with all that this process has to host for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import anyio

from evpipe.client.loops import outside_of_any_loop
from evpipe.core.limits import check_priority
from evpipe.errors import UsageError
from evpipe.hosting.debug import run_debug
from evpipe.hosting.logs import configure_logs
from evpipe.hosting.session import Session
from evpipe.sdk.definition import AnyPipeline, no_pipeline
from evpipe.sdk.hook import Mode
from evpipe.sdk.loading import end_loading_or_check
from evpipe.sdk.result import RunResult

R = TypeVar("R")

MODES = get_args(Mode)


def run(
    target: AnyPipeline[..., R],
    params: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
    key: str | None = None,
    timeout_s: float | None = None,
    no_cache: bool = False,
    refresh: bool | Sequence[str] = False,
    answers: Mapping[str, Any] | None = None,
    priority: int | None = None,
) -> RunResult[R]:
    """Run a pipeline and wait for its end; works in a script, a notebook and under a running loop.

    Args:
        target: a pipeline.
        params: values of its parameters; those with a default may be left out.
        mode: "bus": on the configured bus, or the embedded one, with a controller and a worker of this process;
            "local": in this process, without a server; "debug": plain calls in this thread. None: "bus".
        key: makes the run idempotent: the same key, graph and parameters are the same run.
        timeout_s: seconds to wait for the end.
        no_cache: take nothing from the cache, and record nothing there.
        refresh: names of steps that run even if the cache has their results, which are replaced; True: all.
        answers: what steps that wait for a person or an event are given when they begin to, by their name: a value, or
            a function that is called with the `WaitingStep` (in a thread) and gives it. In debug mode an approval that
            is not here is asked for at the terminal.
        priority: 0 (first) to 9 (last), of its steps that have none of their own; None: the pipeline's.

    Returns:
        The result, whatever the run's status; its `.value` raises unless the run succeeded.

    Raises:
        UsageError: if anything about the call is wrong; nothing was submitted then.
        BusUnreachable, BusRefused, ServerNotFound: if there is no bus to run on.
        WaitTimeout: if the run has not ended after `timeout_s`.
    """
    end_loading_or_check()
    configure_logs()
    if not isinstance(target, AnyPipeline):
        raise no_pipeline("run", target)
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if priority is not None:
        check_priority("priority", priority)
    if mode == "debug":
        if key is not None or timeout_s is not None:
            raise UsageError("key and timeout_s mean nothing in debug mode, where the run is this very call")
        return run_debug(target.build(dict(params or {})), no_cache=no_cache, refresh=refresh, answers=answers)
    # What is wrong with the call is said before any server is started for it.
    built = target.build(dict(params or {}))
    session = Session(
        built,
        mode=mode or "bus",
        key=key,
        timeout_s=timeout_s,
        no_cache=no_cache,
        refresh=refresh,
        answers=answers,
        priority=priority,
    )
    try:
        return outside_of_any_loop(lambda: anyio.run(session.run), session.interrupt)
    except KeyboardInterrupt:
        # What became of the run was said; how the loop ended says nothing to whoever pressed it.
        raise KeyboardInterrupt from None
