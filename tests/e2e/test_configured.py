"""A configured bus: what others see of a run, who is missing, who takes over, what Ctrl-C and a key mean."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from .conftest import ConfiguredBus
from .helpers import Witness, until
from .pipelines import begins_of_fan, value_of_fan

WIDTH = 3


def test_whoever_reads_the_bus_sees_everything(bus: ConfiguredBus, witness: Witness) -> None:
    """A program that only reads the bus sees one launch per step and attempt, and every event in order."""
    bus.host("controller,worker")
    observer = bus.observer()
    result = bus.run("fan", {"witness": str(witness.path), "width": WIDTH}).result()
    observer.until_said('.finished"')
    rows = [json.loads(line) for line in observer.out.splitlines()[1:]]
    launches: dict[tuple[str, int], float] = {}
    events: list[tuple[str, str, float]] = []
    for row in rows:
        tokens = row["subject"].split(".")
        if tokens[1] == "queue":
            assert tokens[2:5] == ["default", "5", result["id"]]
            key = (tokens[5], int(tokens[6]))
            assert key not in launches, "a second launch of the same attempt"
            launches[key] = row["at"]
        else:
            assert tokens[3:5] == ["fan", result["id"]]
            events.append((tokens[5], tokens[6], row["at"]))
    steps = ["first", "held", "held-2", "held-3", "after", "after-2", "after-3", "last"]
    assert sorted(launches) == sorted((step, 1) for step in steps)
    assert [event[:2] for event in (events[0], events[-1])] == [("_", "submitted"), ("_", "finished")]
    assert rows[[row["subject"].endswith(".finished") for row in rows].index(True)]["status"] == "succeeded"
    ended = {step: at for step, kind, at in events if kind == "succeeded"}
    assert sorted(ended) == sorted(steps)
    assert {kind for _, kind, _ in events} <= {"submitted", "started", "succeeded", "finished"}
    # By the server's own clock: a step is launched when its parents have ended, and ends after that.
    assert all(launches[step, 1] < ended[step] for step in steps)
    assert max(ended[step] for step in ("after", "after-2", "after-3")) <= launches["last", 1]


def test_interrupt_detaches(bus: ConfiguredBus, witness: Witness, gate: Path) -> None:
    """On a configured bus Ctrl-C leaves the run alone and says how to watch it."""
    bus.host("controller,worker")
    parameters = {"witness": str(witness.path), "gate": str(gate), "width": 1}
    program = bus.run("fan", parameters, key="x").until_said("run: ")
    until(lambda: witness.has_begun("held0"), "the step runs")
    program.signal(signal.SIGINT)
    assert program.finish() in (130, -signal.SIGINT)
    assert re.search(
        r"goes on; watch it with `evpipe runs watch (\w+)`, cancel it with `evpipe runs cancel \1`", program.err
    )
    gate.touch()
    # The same key is the same run, so this only waits for it.
    assert bus.run("fan", parameters, key="x").result()["value"] == value_of_fan(1)
    assert witness.begins == begins_of_fan(1)


def test_without_a_controller(bus: ConfiguredBus, witness: Witness) -> None:
    """Where no controller answers, that is said within 5 s, and the run goes on when one comes."""
    bus.host("worker")
    program = bus.run("fan", {"witness": str(witness.path)})
    program.until_said("run: ")
    assert until(lambda: "note: no controller answers" in program.err, program.err) < 5.0
    assert "no worker serves" not in program.err
    bus.host("controller")
    assert program.result()["value"] == value_of_fan(WIDTH)


def test_without_a_worker(bus: ConfiguredBus, witness: Witness) -> None:
    """Where no worker serves a queue of the run, that queue is named within 5 s, and a worker that comes runs it."""
    bus.host("controller,worker", "default")
    program = bus.run("needs_gpu", {"witness": str(witness.path)})
    program.until_said("run: ")
    assert until(lambda: "note: no worker serves the queue 'gpu'" in program.err, program.err) < 5.0
    assert "no controller answers" not in program.err
    bus.host("worker", "gpu")
    assert program.result()["value"] == "trained"


def test_the_controller_is_killed(bus: ConfiguredBus, witness: Witness, gate: Path) -> None:
    """A standby takes over within seconds from a controller killed with -9, and no step begins twice."""
    leader = bus.host("controller").until_said("leads\n")
    bus.host("worker")
    standby = bus.host("controller")
    program = bus.run("fan", {"witness": str(witness.path), "gate": str(gate), "width": WIDTH})
    until(lambda: witness.has_begun("held0") and witness.has_begun("held1"), "the steps run")
    leader.kill()
    gate.touch()
    assert until(lambda: "leads\n" in standby.out, "the standby leads") < 4.0
    assert program.result()["value"] == value_of_fan(WIDTH)
    assert witness.begins == begins_of_fan(WIDTH)


def test_the_only_controller_is_killed(bus: ConfiguredBus, witness: Witness, gate: Path) -> None:
    """A run without any controller waits; one that is started later reads the log and ends it."""
    leader = bus.host("controller")
    bus.host("worker")
    program = bus.run("fan", {"witness": str(witness.path), "gate": str(gate), "width": WIDTH})
    until(lambda: witness.has_begun("held0"), "the steps run")
    leader.kill()
    gate.touch()
    until(lambda: witness.ends["held0"] == 1, "a step ends while nobody leads")
    assert witness.begins["after0"] == 0
    bus.host("controller")
    assert program.result()["value"] == value_of_fan(WIDTH)
    assert witness.begins == begins_of_fan(WIDTH)


def test_a_worker_is_killed(bus: ConfiguredBus, witness: Witness, gate: Path) -> None:
    """The steps of a worker killed with -9 are lost and run again elsewhere, each once."""
    bus.host("controller")
    doomed = bus.host("worker")
    program = bus.run("fan", {"witness": str(witness.path), "gate": str(gate), "width": WIDTH})
    until(lambda: all(witness.has_begun(f"held{i}") for i in range(WIDTH)), "the steps run")
    observer = bus.observer()
    # A body that runs for 50 ms is announced; before that its loss is no loss, and the launch just comes again.
    until(lambda: len(re.findall(r'held[-0-9]*\.started"', observer.out)) == WIDTH, "the log shows that they started")
    doomed.kill()
    other = bus.host("worker")
    # Not before: what the killed worker had is killed in the next moment, and must not get to its end in this one.
    until(lambda: all(witness.begins.get(f"held{i}") == 2 for i in range(WIDTH)), "they run again", patience_s=30.0)
    gate.touch()
    found = program.result()
    assert found["value"] == value_of_fan(WIDTH)
    held = ("held", "held-2", "held-3")
    assert {step: found["steps"][step] for step in held} == {step: ["succeeded", 2] for step in held}
    assert {name for name, attempts in found["steps"].items() if attempts[1] != 1} == set(held)
    # Twice begun are those that the killed worker had, once by each; everything else once.
    again = {f"held{i}": 2 for i in range(WIDTH)}
    assert witness.begins == {**begins_of_fan(WIDTH), **again}
    assert [pid for what, name, pid in witness.lines if what == "end" and name in again] == [other.pid] * WIDTH


def test_key(bus: ConfiguredBus, witness: Witness) -> None:
    """The same key, graph and parameters are the same run; anything else under that key is a conflict, named."""
    bus.host("controller,worker")
    parameters = {"witness": str(witness.path)}
    programs = [bus.run("fan", parameters, key="monday") for _ in range(2)]
    one, two = (program.result() for program in programs)
    assert one == two
    assert witness.begins == begins_of_fan(WIDTH)
    wider = bus.run("fan", {**parameters, "width": 4}, key="monday")
    assert wider.finish() == 1
    sentence = f"the key 'monday' belongs to run {one['id']}, which was submitted with width = 3, not 4"
    assert wider.err.splitlines()[-1] == f"evpipe.errors.Conflict: {sentence}"
    assert witness.begins == begins_of_fan(WIDTH)
