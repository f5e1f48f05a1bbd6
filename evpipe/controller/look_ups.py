"""Looking cached steps up before they are launched, and letting equal ones wait for the first of them.

    Launch of a cached step ─▶ fingerprint ─▶ entry there? ─▶ `cached` into the log
                                              marker of another, who lives? ─▶ wait for its end, look again
                                              else ─▶ own marker (compare and set) ─▶ launch

A marker is a hint: who waits trusts the leader's log. Finding one's own marker means that it was a miss: launch, which
is refused if it was sent before. So nothing here has to be in the log but a hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus, Entry
from evpipe.bus.raised import log_raised
from evpipe.client.artifact_store import is_intact
from evpipe.client.fingerprints import components_of
from evpipe.controller.others import lives
from evpipe.core.commands import Launch
from evpipe.core.events import StepCached, StepSucceeded
from evpipe.core.fingerprint import CachePolicy, Components
from evpipe.core.graph import Step
from evpipe.errors import BusError, EvpipeError, RemoteProtocolError
from evpipe.wire.cache import (
    BUCKET,
    HIT_TTL_S,
    CacheEntry,
    Expired,
    Hit,
    Marker,
    components_map,
    decode_entry,
    encode_hit,
    encode_marker,
    hit_key,
)
from evpipe.wire.messages import result_in

if TYPE_CHECKING:
    from evpipe.controller.case import Case

log = structlog.get_logger(__name__)

#: Who waits for another looks again after this, whatever it has heard.
LOOK_AGAIN_S: Final = 10.0
#: Artifacts of an entry are read to see whether they are damaged, up to this many bytes of all of them.
READ_BYTES_MAX: Final = 32 * 1024 * 1024
#: Failures of leaders that are remembered.
FAILED_KEPT: Final = 1_000
#: Arguments up to this size are digested at once, larger ones in a thread.
LIGHT_BYTES: Final = 64 * 1024
#: Look-ups under way at the same time.
LOOK_UPS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Miss:
    """What a launch says of the cache."""

    fingerprint: str
    components: dict[str, Any]
    #: What was found, if that was too old.
    expired: Expired | None = None


@dataclass(slots=True)
class _Found:
    """What was read under a fingerprint."""

    content: CacheEntry | Marker | None
    revision: int
    at_s: float


class LookUps:
    """The look-ups of one controller.

    Args:
        cases: the runs that it leads, by id.
        launch: sends a launch after a miss.
        decide: puts a decision into the log.
        now_s: gives the bus's clock.
    """

    def __init__(
        self,
        bus: Bus,
        task_group: TaskGroup,
        cases: dict[str, Case],
        launch: Callable[[Case, Launch, Miss | None], None],
        decide: Callable[[Case, StepCached], None],
        now_s: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._bucket = bus.bucket(BUCKET)
        self._task_group = task_group
        self._cases = cases
        self._launch = launch
        self._decide = decide
        self._now_s = now_s
        self._limiter = anyio.CapacityLimiter(LOOK_UPS_MAX)
        #: Set when a step that others wait for has ended; by run and step.
        self._leaders: dict[tuple[str, str], anyio.Event] = {}
        #: Who looks at a fingerprint now.
        self._turns: dict[str, anyio.Lock] = {}
        #: Look-ups so far, and how many there were when a step failed that others waited for.
        self._count = 0
        self._failed: dict[tuple[str, str], int] = {}
        #: Attempts that are being looked up: a takeover, or a repeated command, does not begin again.
        self._open: set[tuple[str, str, int]] = set()
        #: Whose result a step waits for; by run and step.
        self.waits: dict[tuple[str, str], Marker] = {}

    def begin(self, case: Case, command: Launch) -> None:
        """Look a step up, then launch it or say that it is cached."""
        key = (case.run.id, command.step, command.attempt)
        if key not in self._open:
            self._open.add(key)
            self._task_group.start_soon(self._run, case, command, key)

    def step_failed(self, run: str, step: str) -> None:
        """Take note that a step has failed for good, or has skipped itself: that there is no result of it."""
        if (run, step) in self._leaders:
            self._failed[run, step] = self._count
            if len(self._failed) > FAILED_KEPT:
                del self._failed[next(iter(self._failed))]

    def step_ended(self, run: str, step: str) -> None:
        """Take note that a step has ended, or its run has."""
        ended = self._leaders.pop((run, step), None)
        if ended is not None:
            ended.set()

    def run_ended(self, run: str) -> None:
        for leader in [leader for leader in self._leaders if leader[0] == run]:
            self.step_ended(*leader)

    # ---- one look-up

    async def _run(self, case: Case, command: Launch, key: tuple[str, str, int]) -> None:
        try:
            await self._look_up(case, command)
        except Exception as error:  # noqa: BLE001 - logged with its traceback, if it is not one of ours
            # The cache only saves work; and a bug here must not take all runs with it.
            if isinstance(error, EvpipeError):
                log.warning("look_up_failed", run_id=case.run.id, step_id=command.step, error=str(error))
            else:
                log_raised(log, "look_up_failed", error, run_id=case.run.id, step_id=command.step)
            if self._wanted(case, command):
                self._launch(case, command, None)
        finally:
            self._open.discard(key)

    async def _look_up(self, case: Case, command: Launch) -> None:
        graph = case.run.graph
        assert graph is not None
        step = case.run.spec(command.step)
        policy = step.cache
        assert policy is not None, "only of cached steps"
        components = await self._components(case, step, command)
        if components is None:
            self._launch(case, command, None)
            return
        fingerprint = components.fingerprint()
        miss = Miss(fingerprint, components_map(components))
        if case.refreshes(command.step):
            self._launch(case, command, miss)
            return
        me = Marker(case.pipeline, case.run.id, command.step)
        self._count += 1
        number = self._count
        while self._wanted(case, command):
            # Of all that look at one fingerprint here, one does so at a time; nobody waits for a leader meanwhile.
            turn = self._turns.setdefault(fingerprint, anyio.Lock())
            try:
                async with turn:
                    leader = await self._look(case, command, miss, me, policy, number)
            finally:
                if not turn.statistics().tasks_waiting:
                    self._turns.pop(fingerprint, None)
            if leader is None:
                return
            self.waits[case.run.id, command.step] = leader
            try:
                await self._wait_for(leader)
            finally:
                self.waits.pop((case.run.id, command.step), None)

    async def _components(self, case: Case, step: Step, command: Launch) -> Components | None:
        if case.size_of_inputs(command.step) > LIGHT_BYTES:
            return await anyio.to_thread.run_sync(components_of, step, command.arguments, case.facts)
        return components_of(step, command.arguments, case.facts)

    async def _look(
        self, case: Case, command: Launch, miss: Miss, me: Marker, policy: CachePolicy, number: int
    ) -> Marker | None:
        """Look until it is known what becomes of the step, and do that.

        Args:
            number: of this look-up: those before it have lower ones.

        Returns:
            Another that is to be waited for; None: all is done.
        """
        fingerprint = miss.fingerprint
        while self._wanted(case, command):
            found = await self._read(fingerprint)
            content = found.content
            expired = self._expired(found, policy)
            if isinstance(content, CacheEntry):
                if (content.run, content.step, content.attempt) == (me.run, me.step, command.attempt):
                    # Its own result, on its way into the log.
                    self._launch(case, command, replace(miss, expired=content.expired))
                    return None
                event = await self._usable(content) if expired is None else None
                if event is not None:
                    if self._wanted(case, command):
                        self._hit(case, command, content, found, event)
                    return None
            elif content is not None and content != me:
                if await self._lives(content):
                    return content
                if self._failed.get((content.run, content.step), -1) >= number:
                    # It waited for one that has failed, or skipped itself. All that did go now, and not one after
                    # the other: what made that one fail is likely to make them fail, too, and nothing is gained by
                    # waiting in turn.
                    self._launch(case, command, replace(miss, expired=expired))
                    return None
            if content == me or await self._lead(fingerprint, replace(me, expired=expired), found):
                if self._wanted(case, command):
                    self._launch(case, command, replace(miss, expired=expired))
                return None
        return None

    def _wanted(self, case: Case, command: Launch) -> bool:
        """Say whether this attempt is still to be launched."""
        return (
            self._cases.get(case.run.id) is case
            and not case.broken
            and case.run.may_launch(command.step, command.attempt)
        )

    async def _read(self, fingerprint: str) -> _Found:
        async with self._limiter:
            entry: Entry | None = await self._bucket.get(fingerprint)
        if entry is None:
            return _Found(None, 0, 0.0)
        try:
            content = decode_entry(entry.value)
        except RemoteProtocolError as error:
            # Of a newer writer, or garbage: as if nothing were there, and replaced.
            log.warning("cache_entry_quarantined", fingerprint=fingerprint, reason=str(error))
            content = None
        return _Found(content, entry.revision, entry.at_s)

    async def _lead(self, fingerprint: str, me: Marker, found: _Found) -> bool:
        async with self._limiter:
            revision = await self._bucket.put(fingerprint, encode_marker(me), expected=found.revision)
        return revision is not None

    def _expired(self, found: _Found, policy: CachePolicy) -> Expired | None:
        """Give the result that was found if it is too old, or the one that a marker has replaced."""
        if isinstance(found.content, CacheEntry):
            older: Expired | None = Expired(found.content.run, found.at_s)
        else:
            older = None if found.content is None else found.content.expired
        if older is None or policy.ttl_s is None or self._now_s() - older.at_s <= policy.ttl_s:
            return None
        return older

    async def _usable(self, entry: CacheEntry) -> StepSucceeded | None:
        """Give the result if all of it is there."""
        event = result_in(entry)
        if event is None:
            return None
        async with self._limiter:
            if not await is_intact(self._bus, event.value, read_bytes_max=READ_BYTES_MAX):
                log.warning("cache_entry_damaged", fingerprint=entry.fingerprint, run_id=entry.run, step_id=entry.step)
                return None
        return event

    def _hit(self, case: Case, command: Launch, entry: CacheEntry, found: _Found, event: StepSucceeded) -> None:
        self._decide(
            case,
            StepCached(
                step=command.step,
                attempt=command.attempt,
                value=event.value,
                fingerprint=entry.fingerprint,
                origin=entry.origin(found.at_s),
                notes=event.notes,
            ),
        )
        self._task_group.start_soon(self._record_hit, Hit(entry.fingerprint, case.pipeline, case.run.id, command.step))

    async def _record_hit(self, hit: Hit) -> None:
        try:
            await self._bucket.put(hit_key(hit), encode_hit(hit), ttl_s=HIT_TTL_S)
        except BusError as error:
            log.warning("chore_failed", error=str(error))

    # ---- others with the same fingerprint

    async def _wait_for(self, leader: Marker) -> None:
        ended = self._leaders.setdefault((leader.run, leader.step), anyio.Event())
        with anyio.move_on_after(LOOK_AGAIN_S):
            await ended.wait()

    async def _lives(self, leader: Marker) -> bool:
        """Say whether the step that a marker names is still to end, by its run's log."""
        case = self._cases.get(leader.run)
        if case is not None:
            if case.waiting is not None:
                return True
            state = case.run.steps.get(leader.step)
            return not case.broken and state is not None and not state.ended
        return await lives(self._bus, leader.run, leader.step)
