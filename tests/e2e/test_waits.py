"""Steps that wait for people and time: what they give and how they end, the same in every mode."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from evpipe import AlreadyAnswered, Client, Controller, NotFound, NotWaiting, UsageError, Worker, run
from evpipe.bus.memory import MemoryBus, MemoryServer
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.handle import RunHandle
from evpipe.client.waiting import WaitingStep, this_user
from evpipe.sdk.hook import Mode
from tests.e2e import wait_pipelines as these

MODES = get_args(Mode)
OK = ("succeeded", "")
NOT_CHOSEN = ("skipped", "condition")
BLOCKED = ("skipped", "upstream")


@dataclass(frozen=True, kw_only=True)
class Case:
    pipeline: Any
    steps: dict[str, tuple[str, str]]
    answers: dict[str, Any] = field(default_factory=dict)
    status: str = "succeeded"
    value: Any = None
    errors: dict[str, str] = field(default_factory=dict)


CASES = [
    Case(
        pipeline=these.released,
        answers={"approve": lambda waiting: waiting.show == {"score": 0.5}},
        steps={"build": OK, "approve": OK, "delay": OK, "release": OK},
        value="released 0.5",
    ),
    Case(
        pipeline=these.texts,
        answers={"which": "b", "note": "looks\n✓ good", "share": 1},
        steps={"which": OK, "note": OK, "share": OK, "release": OK},
        value=["released b", "looks\n✓ good", 1.0],
    ),
    Case(
        pipeline=these.rejected,
        answers={"approve": False},
        steps={"approve": ("failed", "rejected"), "release": BLOCKED, "clean_up": OK},
        status="failed",
        errors={"approve": "rejected by answers"},
    ),
    Case(
        pipeline=these.said_no,
        answers={"approve": False},
        steps={"approve": OK, "release": NOT_CHOSEN},
        value=[False, None],
    ),
    Case(
        pipeline=these.nobody_answers,
        answers={"sure": True},
        steps={"late": ("failed", "timeout"), "spare": OK, "sure": OK, "never": BLOCKED, "release": OK},
        value=[None, "released b", True],
        errors={"late": "no answer within 0.2 s"},
    ),
    Case(
        pipeline=these.bad_nap,
        steps={"build": OK, "nap": ("failed", "output")},
        status="failed",
        errors={"nap": "seconds must be a number from 0 to 31,622,400, not a dict"},
    ),
    Case(
        pipeline=these.ordered,
        answers={"order": {"id": 7, "total": 12.5}},
        steps={"identity": OK, "order": OK, "gone": OK},
        value=[12.5, 0],
    ),
    Case(
        pipeline=these.built(),
        answers={"approve": 3},
        steps={"build": OK, "approve": OK, "nap": OK, "release": OK},
        value="released 3",
    ),
]


@pytest.mark.parametrize(
    ("case", "mode"),
    [pytest.param(case, mode, id=f"{case.pipeline.name}-{mode}") for case in CASES for mode in MODES],
)
def test_what_comes_of_waits(case: Case, mode: Mode, embedded: Path) -> None:
    result = run(case.pipeline, mode=mode, answers=case.answers)
    found = {name: (str(step.status), str(step.reason or "")) for name, step in result.steps.items()}
    assert found == case.steps
    assert str(result.status) == case.status
    for name, error in case.errors.items():
        assert result.steps[name].error == error
    if case.status == "succeeded":
        assert result.value == case.value
        assert type(result.value) is type(case.value)
    for name in case.answers:
        assert result.steps[name].answered_by == (None if name == "order" else "answers")
    nap = result.steps.get("delay")
    if nap is not None and nap.started_at and nap.ended_at:
        assert 0.299 <= (nap.ended_at - nap.started_at).total_seconds() < 10


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_where_nobody_can_answer_a_run_does_not_hang(mode: Mode) -> None:
    with pytest.raises(UsageError, match=r"step 'approve' waits for an answer \(bool\): Go\?, and in mode .* answers="):
        run(these.said_no, mode=mode)
    with pytest.raises(UsageError, match="the answer must be bool, not 'perhaps'"):
        run(these.said_no, mode=mode, answers={"approve": lambda _: "perhaps"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_debug_mode_the_terminal_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the answer is one that the step takes; a person is asked when all else is done."""
    monkeypatch.setattr("sys.stdin", Terminal("perhaps\ntrue\n"))
    result = run(these.released, {"nap_s": 0}, mode="debug")
    assert result.value == "released 0.5"
    assert result.steps["approve"].answered_by == this_user()
    assert capsys.readouterr().err == (
        "step 'approve' waits for an answer (bool): Release to production?\n"
        "  score: 0.5\n"
        "answer (bool): the answer must be bool: 'perhaps' is not (write true or false)\n"
        "answer (bool): "
    )
    monkeypatch.setattr("sys.stdin", Terminal(""))
    with pytest.raises(UsageError, match="waits for an answer, and standard input has ended"):
        run(these.said_no, mode="debug")


def test_answers_are_checked_before_anything_runs() -> None:
    for answers, message in (
        ({"approv": True}, "'approv', which is no approval .*did you mean 'approve'.*there are approve"),
        ({"release": True}, "'release', which is no approval"),
        ({"approve": "yes"}, "answers: step 'approve': the answer must be bool, not 'yes'"),
        (["approve"], "answers must be a dict"),
    ):
        with pytest.raises(UsageError, match=message):
            run(these.said_no, mode="debug", answers=answers)  # type: ignore[arg-type]


async def waits(handle: RunHandle[Any], step: str) -> WaitingStep:
    """Follow the log until a step waits, as a service would; give what is shown of it."""
    async for event in handle.events():
        if (event.step, event.kind) == (step, "started"):
            return next(found for found in await handle.waiting() if found.step == step)
    raise AssertionError(f"{step} never waited")


def test_signals_and_events_of_other_runs(server: ServerProcess) -> None:
    """They are found whoever sent them, also while nobody led; what does not match, or cannot be read, is nothing."""

    async def main() -> None:
        async with Client(BusSettings(url=server.url)) as client, Worker(client, slots=2):
            subject = client.bus.subjects.signal("orders.created")
            async with Controller(client):
                await client.send_signal("orders.created", {"id": 7, "total": "before anybody waited"})
                first = await client.submit(these.released, {"nap_s": 0})
                ordered = await client.submit(these.ordered)
                watching = await client.submit(these.watching, {"run": first.id})
                await waits(first, "approve")
                await waits(ordered, "order")
                found = await waits(watching, "other")
                assert found.message == "waits for the event finished of any run of said_no"
                assert {step.kind for step in await watching.waiting()} == {"run_event"}
                # It has succeeded before: of a certain run everything counts.
                async for event in watching.events():
                    if (event.step, event.kind) == ("built", "received"):
                        break
            # Now nobody leads. A client of any language publishes without evpipe.
            for payload in (
                b"{",
                b"\xff" * 100,
                b"[" * 5_000,
                b'{"id":8}',
                b'{"id":7,"total":3}',
                b'{"id":7,"total":4}',
            ):
                await client.bus.signals.send(subject, payload)
            with pytest.raises(UsageError, match="is not the name of a signal"):
                await client.send_signal("orders.>", {})
            # What has its place in the log and is none stands in nobody's way.
            received = client.bus.subjects.event("ordered", ordered.id, "order", "received")
            await client.bus.append_wait(received, b"nonsense")
            await first.approve("approve", False)
            async with Controller(client):
                with anyio.fail_after(20):
                    assert (await ordered.result()).value == [3, 0]
                    other = await client.submit(these.said_no)
                    await waits(other, "approve")
                    await other.cancel()
                    result = await watching.result()
                    assert result.value == {"score": 0.5, "ended": "succeeded", "other": other.id}
                    # What came since the submit of the run counts where that is asked for.
                    await client.send_signal("orders.created", {"id": 7, "total": "too old"})
                    late = await client.submit(these.ordered, {"since": "submit"})
                    await waits(late, "order")
                    await late.cancel("enough")
                    assert str((await late.result()).steps["order"].status) == "cancelled"

    anyio.run(main)


async def idle(client: Client) -> None:
    """Wait until no worker holds anything; a server that was killed has forgotten acks, and they come again."""
    while True:
        if not any(queue.taken or queue.waiting for queue in await client.queues()):
            return
        await anyio.sleep(0.02)


async def listed_by(client: Client, pipeline: str) -> list[WaitingStep]:
    """Give what is listed as waiting, when there is something: the registry comes after the log."""
    while True:
        found = await client.waiting(pipeline=pipeline)
        if found:
            return found
        await anyio.sleep(0.02)


def test_an_approval_survives_its_controller_and_takes_the_first_answer(server: ServerProcess) -> None:
    """A12 on a bus: nothing else has begun, no worker is held, and it is the same after a restart of everything."""

    async def main() -> None:
        async with Client(BusSettings(url=server.url)) as client, Worker(client, slots=1):
            async with Controller(client):
                handle = await client.submit(these.released, {"nap_s": 0.4})
                with pytest.raises(NotFound, match=r"no step 'aprove'; did you mean 'approve'\? \(it has approve to"):
                    await handle.approve("aprove")
                found = await waits(handle, "approve")
                assert (found.message, found.show, found.accepts) == ("Release to production?", {"score": 0.5}, "bool")
            server.kill()
            server.start()
            with anyio.fail_after(20):
                async with Controller(client):
                    # What waited while nobody led waits still.
                    state = await handle.state()
                    assert {name: str(step.status) for name, step in state.steps.items()} == {
                        "build": "succeeded",
                        "approve": "running",
                        "delay": "pending",
                        "release": "pending",
                    }
                    await idle(client)
                    listed = await listed_by(client, "released")
                    assert [(step.run, step.step) for step in listed] == [(handle.id, "approve")]
                    assert await client.waiting(pipeline="other") == []
                    with pytest.raises(NotWaiting, match=r"'delay' .* is no approval"):
                        await handle.approve("delay")
                    with pytest.raises(UsageError, match="the answer must be bool, not 'yes'"):
                        await handle.approve("approve", "yes")
                    await handle.approve("approve", by="ann", message="well done")
                    with pytest.raises(
                        AlreadyAnswered, match=r"was answered by ann at .*: True; the first answer"
                    ) as e:
                        await handle.approve("approve", False, by="bob")
                    assert (e.value.by, e.value.answer) == ("ann", True)
                    async for event in handle.events():
                        if (event.step, event.kind) == ("approve", "approved"):
                            assert dict(event.data) == {"answer": True, "by": "ann", "message": "well done"}
                        if (event.step, event.kind) == ("delay", "started"):
                            break
                async with Controller(client):
                    # A sleep goes on, too: its end is where it was.
                    result = await handle.result()
                    assert result.steps["approve"].answered_by == "ann"
                    nap = result.steps["delay"]
                    assert nap.started_at is not None
                    assert nap.ended_at is not None
                    assert (nap.ended_at - nap.started_at).total_seconds() >= 0.399
                    assert result.value == "released 0.5"
                    with pytest.raises(AlreadyAnswered):
                        await handle.approve("approve")

    anyio.run(main)


def test_what_waits_is_cancelled_and_a_finaliser_waits_on(server: ServerProcess) -> None:
    async def main() -> None:
        async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client, slots=1):
            with anyio.fail_after(20):
                handle = await client.submit(these.released)
                last = await client.submit(these.waits_last)
                await waits(handle, "approve")
                await waits(last, "hangs")
                with pytest.raises(NotWaiting, match="does not wait yet: it is pending"):
                    await last.approve("sure")
                await handle.cancel("enough")
                await last.cancel("enough")
                result = await handle.result()
                assert {name: str(step.status) for name, step in result.steps.items()} == {
                    "build": "succeeded",
                    "approve": "cancelled",
                    "delay": "cancelled",
                    "release": "cancelled",
                }
                with pytest.raises(NotWaiting, match=r"does not wait any more: it is cancelled \(request: enough\)"):
                    await handle.approve("approve")
                await waits(last, "sure")
                with pytest.raises(NotWaiting):
                    await last.approve("hangs")
                await last.approve("sure", False, by="ann")
                result = await last.result()
                assert (str(result.status), result.error) == ("cancelled", "enough")
                assert result.steps["last"].value == "released the rest"

    anyio.run(main)


def test_what_is_no_answer_stands_in_nobody_s_way() -> None:
    """Answers that came too early, are none, or cannot be read are in the log; the first good one counts."""

    async def main() -> None:
        server = MemoryServer()
        async with MemoryBus(server) as bus, Worker(Client(bus=bus), slots=1):
            client = Client(bus=bus)
            handle = await client.submit(these.released, {"nap_s": 0.0})
            subject = bus.subjects.event("released", handle.id, "approve", "approved")
            nonsense = [b"", b"\x81\xa1v\x01", b"\x83\xa1v\x01\xa6answer\xa3yes\xa2by\x07", b"\xc1" * 100]
            for payload in nonsense:
                await bus.append_wait(subject, payload)
            async with Controller(client):
                await waits(handle, "approve")
                await bus.append_wait(subject, b"\x82\xa1v\x01\xa6answer\x07")
                await handle.approve("approve", by="ann")
                assert (await handle.result(timeout_s=20)).steps["approve"].answered_by == "ann"

    anyio.run(main)
