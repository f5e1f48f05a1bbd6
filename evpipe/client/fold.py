"""A run as a client sees it: the controller's own fold, over the records of one run."""

from __future__ import annotations

from evpipe.bus.protocol import Bus, Record
from evpipe.client.graphs import fetch_graph
from evpipe.core.commands import SubmitRun
from evpipe.core.events import Event, Submitted
from evpipe.core.graph import Graph
from evpipe.core.lineage import check_depth, check_parent
from evpipe.core.machine import Run
from evpipe.core.names import SEPARATOR, for_people, from_people, nearest
from evpipe.core.parameters import check_parameters
from evpipe.errors import NotFound, RemoteProtocolError, UsageError
from evpipe.wire.messages import Submission, decode_event, decode_submission


async def folded(bus: Bus, run_id: str) -> RunFold:
    """Fold a run as its log is now."""
    fold = RunFold(bus, run_id)
    last = await bus.last_sequence()
    async for records in bus.replay([bus.subjects.events_of_run(run_id)], up_to=last):
        for record in records:
            await fold.fold(record)
    return fold


def find_step(run: Run, step: str) -> str:
    """Find a step of a folded run by its name as people write it, such as "train" and "train[2]".

    Returns:
        Its name on the bus; of an element of a mapped step that has not begun, so that nobody knows what its elements
        are, the name of that.

    Raises:
        NotFound: if the run has no such step.
    """
    name = node = from_people(step)
    while node not in run.steps and SEPARATOR in node:
        node = node.rpartition(SEPARATOR)[0]
    mapped = run.spec(node).mapped if node in run.steps else None
    if node not in run.steps or (node != name and (mapped is None or node.count(SEPARATOR) >= mapped.levels)):
        raise NotFound(f"run {run.id} has no step {step!r}{nearest(step, map(for_people, run.steps))}")
    if node != name and (node in run.expansions or run.steps[node].ended):
        count = run.expansions[node].count if node in run.expansions else 0
        has = f"{count:,} {'element' if count == 1 else 'elements'}"
        raise NotFound(f"run {run.id} has no step {step!r}: {for_people(node)!r} has {has}")
    return node


class RunFold:
    """Folds the records of one run, in order.

    Args:
        graphs: what was fetched, by digest; runs that are folded together fetch each graph once.
    """

    def __init__(self, bus: Bus, run_id: str, graphs: dict[str, Graph] | None = None) -> None:
        self._bus = bus
        self._graphs = {} if graphs is None else graphs
        self.run = Run(run_id)
        #: Sequence of the newest record folded.
        self.sequence = 0
        #: The pipeline whose run it is: what other subjects say of this run is said by nobody who knows it.
        self._pipeline = ""
        #: What its submit says beside the graph and the parameters; None before it was folded, or if it cannot be read.
        self.submission: Submission | None = None
        #: Attempts that are runs, by step and number, in the order in which they began; whoever reads it may empty it.
        self.begun: list[tuple[str, int]] = []

    async def fold(self, record: Record) -> Event | None:
        """Apply the next record.

        Returns:
            The event that it was; None if it cannot be read.
        """
        self.sequence = record.sequence
        try:
            subject = self._bus.subjects.parse_event(record.subject)
            if self._pipeline not in ("", subject.pipeline):
                return None
            self._pipeline = subject.pipeline
            if subject.kind == "submitted":
                event: Event | None = await self._submitted(record)
            else:
                event = decode_event(subject, record.payload, record.at_s)
        except RemoteProtocolError:
            return None
        if event is not None:
            # The controller acts on the commands; a client only looks at the state.
            for command in self.run.step(event):
                if type(command) is SubmitRun:
                    self.begun.append((command.step, command.attempt))
        return event

    async def _submitted(self, record: Record) -> Submitted:
        parent = None
        try:
            submission = self.submission = decode_submission(record.payload)
            parent = check_parent(submission.parent, self.run.id)
            check_depth(parent, self._pipeline)
            graph = self._graphs.get(submission.graph)
            if graph is None:
                graph = self._graphs[submission.graph] = await fetch_graph(self._bus, submission.graph)
            if graph.pipeline != self._pipeline:
                raise UsageError(
                    f"submitted as a run of {self._pipeline!r}, but its graph is that of {graph.pipeline!r}"
                )
            parameters = check_parameters(graph.parameters, submission.parameters, of=graph.pipeline)
        except (UsageError, RemoteProtocolError) as error:
            return Submitted(at_s=record.at_s, graph=None, parameters={}, rejection=str(error), parent=parent)
        return Submitted(at_s=record.at_s, graph=graph, parameters=parameters, parent=submission.parent)
