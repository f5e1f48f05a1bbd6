"""The cache as people see it: what is in it, why a step was taken from it or not, and clearing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from evpipe.bus.protocol import Bus
from evpipe.client.fingerprints import components_of
from evpipe.client.lists import OpenLists
from evpipe.core.bindings import BindingError, OneOf, OutputRef, references
from evpipe.core.commands import Launch
from evpipe.core.events import Origin
from evpipe.core.fingerprint import Components, Difference, differences
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.mapping import base_of, element_of
from evpipe.core.names import SEPARATOR, for_people, from_people, nearest
from evpipe.core.states import STEP_ENDS, StepStatus
from evpipe.errors import EvpipeError, NotFound, RemoteProtocolError
from evpipe.wire.cache import BUCKET, CacheEntry, Made, decode_entry, decode_made, is_entry_key
from evpipe.wire.messages import Submission, decode_submission

#: Steps whose reasons the closing line gives, changes of each, and steps that are looked at for it.
SHOWN_MAX: Final = 3
CHANGES_MAX: Final = 3
LOOKED_AT_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class CachedResult:
    """One result in the cache."""

    fingerprint: str
    pipeline: str
    step: str
    run: str
    #: When it was recorded, by the bus's clock: seconds since 1970.
    at_s: float
    #: How often it was used in the last 30 days.
    hits: int
    components: Components


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a step's result was taken from the cache, or was not."""

    run: str
    step: str
    status: StepStatus
    #: One sentence.
    sentence: str
    #: Of a miss that no difference explains: the same in a few words.
    short: str = ""
    #: "" if it has none: it is not cached, or its inputs are not there yet.
    fingerprint: str = ""
    components: Components | None = None
    #: Of a hit: whose result it is.
    origin: Origin | None = None
    #: Of a miss: the run with the result that differs least, and in what.
    compared_with: str = ""
    differences: tuple[Difference, ...] = ()


class _Other(NamedTuple):
    """What another run recorded, and when by the bus's clock."""

    made: Made
    at_s: float


class CacheView:
    """The cache of an installation: `Client.cache`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lists = OpenLists()
        self._bucket = bus.bucket(BUCKET)

    async def results(self, *, pipeline: str | None = None, step: str | None = None) -> list[CachedResult]:
        """List the results, the newest first.

        Args:
            pipeline: only of steps of this pipeline.
            step: only of steps with this name; of a mapped step those of all its elements.
        """
        named = None if step is None else from_people(step)
        hits = Counter(key.key.split(".")[1] for key in await self._bucket.entries("hit"))
        found: dict[str, CachedResult] = {}
        for entry in await self._bucket.entries("made" if pipeline is None else f"made.{pipeline}"):
            parts = entry.key.split(".")
            if len(parts) != 4 or (named is not None and named not in (parts[2], base_of(parts[2]))):
                continue
            try:
                made = decode_made(entry.value)
            except RemoteProtocolError:
                continue
            found[entry.key] = CachedResult(
                parts[3], parts[1], for_people(parts[2]), made.run, entry.at_s, hits[parts[3]], made.components
            )
        return sorted(found.values(), key=lambda result: result.at_s, reverse=True)

    async def clear(
        self,
        *,
        pipeline: str | None = None,
        step: str | None = None,
        fingerprint: str | None = None,
        before_s: float | None = None,
    ) -> int:
        """Remove results; what runs now and is recorded later stays.

        Args:
            pipeline: only of its steps.
            step: only of steps with this name; of a mapped step those of all its elements.
            fingerprint: only those whose fingerprint begins so.
            before_s: only those that are older than this moment, by the bus's clock.

        Returns:
            How many results were removed.
        """
        everything = (pipeline, step, fingerprint, before_s) == (None, None, None, None)
        gone: set[str] = set()
        for result in await self.results(pipeline=pipeline, step=step):
            if fingerprint is not None and not result.fingerprint.startswith(fingerprint):
                continue
            if before_s is not None and result.at_s >= before_s:
                continue
            gone.add(result.fingerprint)
        for entry in await self._bucket.entries():
            kind, _, _ = entry.key.partition(".")
            token = entry.key if is_entry_key(entry.key) else entry.key.split(".")[-1 if kind == "made" else 1]
            if (token in gone or everything) and not (is_entry_key(entry.key) and _is_marker(entry.value)):
                await self._bucket.delete(entry.key)
        return len(gone)

    async def explain(self, run_id: str, step: str) -> Explanation:
        """Say why a step's result was taken from the cache, or was not.

        Raises:
            NotFound: if there is no such run, or it has no such step.
        """
        from evpipe.client.fold import RunFold

        fold = RunFold(self._bus, run_id)
        async for records in self._bus.replay(
            [self._bus.subjects.events_of_run(run_id)], up_to=await self._bus.last_sequence()
        ):
            for record in records:
                await fold.fold(record)
        if fold.run.graph is None:
            raise NotFound(f"there is no run {run_id} with a graph that can be read")
        return await self.explain_folded(fold.run, step)

    async def explain_folded(self, run: Run, step: str) -> Explanation:
        """As `explain`, of a run that was folded."""
        graph = run.graph
        step = from_people(step)
        if graph is None or step not in run.steps:
            raise NotFound(
                f"run {run.id} has no step {for_people(step)!r}{nearest(for_people(step), map(for_people, run.steps))}"
            )
        status = run.steps[step].status
        submission = await self._submission(run.id)

        def told(sentence: str) -> Explanation:
            return Explanation(run=run.id, step=for_people(step), status=status, sentence=sentence)

        if run.spec(step).cache is None:
            return told("it is not cached: @step(cache=True) makes it so")
        if submission.no_cache:
            return told("the run was submitted with no_cache: nothing is looked up, and nothing recorded")
        if step in run.expansions:
            return told("it is mapped: ask about one of its elements, such as " + for_people(element_of(step, 0)))
        if run.spec(step).mapped is not None and SEPARATOR not in step:
            return told("it is mapped, and has no elements yet")
        waiting = [parent for parent in run.parents_of(step) if run.steps[parent].status not in STEP_ENDS]
        if waiting:
            return told(f"its inputs are not there yet: it waits for {', '.join(map(for_people, waiting[:4]))}")
        try:
            arguments = await self._opened(run, step)
            components = components_of(run.spec(step), arguments, submission.facts)
        except (BindingError, EvpipeError) as error:
            return told(f"its inputs cannot be made: {error}")
        if components is None:
            return replace(
                told("nothing is known of the source of its function, so it has no fingerprint"), short="source unknown"
            )
        return await self._compared(run, step, components, submission)

    async def _opened(self, run: Run, step: str) -> Mapping[str, Any]:
        """Give a step's arguments as they were when it was looked up."""
        launch = Launch(step, run.steps[step].attempt, run.arguments_of(step))
        closed = self._lists.closed(launch.arguments)
        while closed is not None:
            data = closed.data if closed.data is not None else await self._bus.objects.get(closed.digest)
            self._lists.open(closed, data)
            launch = self._lists.filled(launch)
            closed = self._lists.closed(launch.arguments)
        return self._lists.filled(launch).arguments

    async def _compared(self, run: Run, step: str, components: Components, submission: Submission) -> Explanation:
        state = run.steps[step]
        fingerprint = components.fingerprint()
        common = Explanation(
            run=run.id,
            step=for_people(step),
            status=state.status,
            sentence="",
            fingerprint=fingerprint,
            components=components,
        )
        if state.cached_from is not None:
            origin = state.cached_from
            return _with(
                common, f"cached: step {for_people(origin.step)!r} of run {origin.run} had the same", origin=origin
            )
        own, other = await self._recorded(run, step, components)
        if base_of(step) in submission.refresh or "*" in submission.refresh:
            return _with(
                common, "it was refreshed: it ran whatever the cache had, and replaced that", short="refreshed"
            )
        policy = run.spec(step).cache
        ttl_s = None if policy is None else policy.ttl_s
        differs = () if other is None else differences(other.made.components, components)
        too_old = None if own is None or own.expired is None else own.expired.run
        # A step that has not succeeded has recorded nothing, so what was there before is there still.
        if other is not None and not differs and ttl_s is not None and other.at_s + ttl_s < (state.queued_at_s or 0.0):
            too_old = other.made.run
        if too_old is not None:
            counts = "" if ttl_s is None else f": it counts for {ttl_s:,g} s"
            return _with(
                common,
                f"run {too_old} recorded the same result, which was too old{counts}",
                short="the same was too old",
                compared_with=too_old,
            )
        if other is None:
            return _with(common, "nothing was recorded of this step before, or what was recorded was not usable")
        made = other.made
        if not differs:
            return _with(
                common,
                f"run {made.run} recorded the same result; it was not there yet, too old, or damaged",
                short="the same was not there yet, too old, or damaged",
                compared_with=made.run,
            )
        return _with(
            common, f"it differs from the result of run {made.run}", compared_with=made.run, differences=differs
        )

    async def _recorded(self, run: Run, step: str, components: Components) -> tuple[Made | None, _Other | None]:
        """Give what was recorded of this step: by this run, and by another.

        Of what others recorded that with the fewest differences; of several the newest. What has the same fingerprint
        is recorded once: by whoever recorded it last.
        """
        assert run.graph is not None
        own: Made | None = None
        best: tuple[int, _Other] | None = None
        for entry in reversed(await self._bucket.entries(f"made.{run.graph.pipeline}.{step}")):
            try:
                made = decode_made(entry.value)
            except RemoteProtocolError:
                continue
            count = len(differences(made.components, components))
            if made.run == run.id:
                own = made if count == 0 else own
            elif best is None or count < best[0]:
                best = (count, _Other(made, entry.at_s))
        return own, None if best is None else best[1]

    async def _submission(self, run_id: str) -> Submission:
        record = await self._bus.last(self._bus.subjects.events_of_step(run_id, "_", "submitted"))
        if record is None:
            raise NotFound(f"there is no run {run_id}")
        return decode_submission(record.payload)


def _with(found: Explanation, sentence: str, **fields: Any) -> Explanation:
    return replace(found, sentence=sentence, **fields)


def _is_marker(data: bytes) -> bool:
    try:
        return not isinstance(decode_entry(data), CacheEntry)
    except RemoteProtocolError:
        return False


async def cache_line(view: CacheView, run: Run) -> str:
    """Say in one line what of a run was cached, and why the rest of its cached steps ran; "" if there are none.

    Raises:
        EvpipeError: if the cache cannot be read.
    """
    if run.graph is None:
        return ""
    cacheable = [name for name in run.steps if run.spec(name).cache is not None and name not in run.expansions]
    cached = [name for name in cacheable if run.steps[name].status is StepStatus.CACHED]
    ran = [name for name in cacheable if run.steps[name].status is StepStatus.SUCCEEDED]
    if not cached and not ran:
        return ""
    reasons: list[str] = []
    alike: dict[str, list[str]] = {}
    after = _after(run.graph, frozenset(map(base_of, ran)))
    for name in ran[:LOOKED_AT_MAX]:
        if len(reasons) == SHOWN_MAX:
            break
        found = await view.explain_folded(run, name)
        # What a step that ran before it gave is no reason of its own.
        own = [change for change in found.differences if not _comes_from(run.spec(name), change, after)]
        if own:
            more = len(own) - CHANGES_MAX
            changes = ", ".join(map(str, own[:CHANGES_MAX])) + (f" and {more} more" if more > 0 else "")
            reasons.append(f"{for_people(name)}: {changes}")
        elif found.short:
            alike.setdefault(found.short, []).append(for_people(name))
    for short, names in alike.items():
        more = len(names) - SHOWN_MAX
        reasons.append(f"{', '.join(names[:SHOWN_MAX])}{f' and {more} more' if more > 0 else ''}: {short}")
    line = f"{len(cached)} cached, {len(ran)} ran"
    return f"{line}: {'; '.join(reasons)}" if reasons else line


def _after(graph: Graph, ran: frozenset[str]) -> frozenset[str]:
    """Give the steps that ran, and those that come after one of them."""
    found: set[str] = set()
    for name in graph.order:
        if name in ran or any(parent in found for parent in graph.parents[name]):
            found.add(name)
    return frozenset(found)


def _comes_from(step: Step, change: Difference, steps: frozenset[str]) -> bool:
    """Say whether a changed input has something in it that one of these steps gave."""
    tree = step.arguments.get(change.name) if change.factor == "input" else None
    for ref in references(tree):
        options = ref.options if isinstance(ref, OneOf) else (ref,)
        if any(isinstance(option, OutputRef) and option.step in steps for option in options):
            return True
    return False
