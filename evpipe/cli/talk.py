"""What `evpipe run` says while it runs, and what it remembers of the run for the case that it does not end."""

from __future__ import annotations

from typing import Any

from evpipe.client.family import Family
from evpipe.client.handle import RunHandle
from evpipe.core.machine import Run
from evpipe.hosting.display import Display
from evpipe.sdk.result import RunResult


class Talk(Display):
    #: The run as it was last seen; None before its submit.
    run: Run | None = None
    #: Why this command did not wait for its end, or "".
    error: str = ""
    _pipeline: str = ""

    def submitted(self, handle: RunHandle[Any]) -> None:
        super().submitted(handle)
        self.run = Run(handle.id)
        self._pipeline = handle.pipeline

    def show(self, family: Family) -> None:
        super().show(family)
        self.run = family.run

    def result(self) -> RunResult[Any]:
        """Give the run as it was last seen."""
        import dataclasses

        assert self.run is not None
        result = RunResult.of(self.run)
        return dataclasses.replace(result, pipeline=result.pipeline or self._pipeline)
