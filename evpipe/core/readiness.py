"""Which steps are ready: one counter per step, so an ended step costs its out-degree, never the graph."""

from __future__ import annotations

from collections.abc import Iterable

from evpipe.core.graph import Graph


class Readiness:
    """Counts, for every step, the parents that still hold it back."""

    __slots__ = ("_handlers", "waiting_on")

    def __init__(self, graph: Graph) -> None:
        self._handlers = frozenset(graph.handlers)
        #: One key per step, and per element of a mapped one once there are any; 0: ready. Its sum only ever goes down.
        self.waiting_on: dict[str, int] = {name: len(above) for name, above in graph.parents.items()}

    def roots(self) -> list[str]:
        """Give the steps that wait for nothing, in the graph's order; handlers wait for the end of all others."""
        return [name for name, count in self.waiting_on.items() if count == 0 and name not in self._handlers]

    def count_down(self, names: Iterable[str]) -> list[str]:
        """Note that each of these is held back by one step less; give those that became ready by it."""
        waiting_on = self.waiting_on
        ready: list[str] = []
        for below in names:
            waiting_on[below] -= 1
            if waiting_on[below] == 0:
                ready.append(below)
        return ready
