"""`Pipeline`: steps added by name, parameters that stay parameters, references to what comes later."""

# ruff: noqa: ISC004 - a sentence in a table; `${…}` is what is tested

import copy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypedDict

import anyio
import pytest

from evpipe import Client, Conflict, NotKnownYet, Pipeline, Retry, RunResult, RunStatus, UsageError, pipeline, run, step
from evpipe.bus.memory import MemoryBus
from evpipe.cli.run import read_parameters
from evpipe.cli.target import find_target, pipeline_body
from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.core.parameters import REQUIRED, Parameter, ParameterType
from evpipe.core.states import OnFailure
from evpipe.sdk import hook
from evpipe.sdk.hook import RunOptions
from evpipe.wire.graphs import decode_graph, encode_graph, graph_digest
from tests.sdk import sample as typed_sample

#: Without types: most of what is done here is what a type checker would refuse, too.
sample: Any = typed_sample


class Scored(TypedDict):
    model: str
    score: float


class Ends(NamedTuple):
    low: int
    high: int


class Confusing(TypedDict):
    result: int


def numbers(rows: int) -> list[int]:
    return list(range(rows))


async def total(data: list[int], extra: Any = None) -> int:
    return sum(data)


def fit(data: list[int], depth: int = 3) -> Scored:
    return {"model": f"m{depth}", "score": sum(data) / depth}


def ends(data: list[int]) -> Ends:
    return Ends(data[0], data[-1])


def confusing() -> Confusing:
    return {"result": 1}


def join(*, parts: Any, text: str = "") -> Any:
    return [parts, text]


def clashing(queue: str, args: int, name: str = "", step: str = "") -> str:
    return f"{queue} {args} {name} {step}"


def by_position(first: int, second: int, /, third: int = 0) -> int:
    return first - second + third


@step(outputs=("low", "high"))
def bounds(data: list[int]):  # type: ignore[no-untyped-def]  # what outputs= is for
    return min(data), max(data)


def numbered() -> Any:
    """Give a pipeline with the step "load", and with its attribute `p` typed loosely."""
    p: Any = Pipeline("churn", version="1.0.0")
    p.step("load", numbers, rows=p.param("rows", int, default=4))
    return p


churn: Any = Pipeline("churn", version="1.0.0")
_rows = churn.param("rows", int, default=4)
_load = churn.step("load", numbers, rows=_rows)
_fit = churn.step("fit", fit, data=_load, depth=2, after=["sum"])
churn.step("sum", total, data="${load.result}", extra=["${ends.high}", {"rows": "${pipeline.rows}"}])
churn.step("ends", ends, data=_load)
churn.step("bounds", bounds, data=_load)
churn.step(
    "join",
    join,
    parts=[
        "${fit.score}",
        "${fit.model}",
        ("${ends[-1]}", "${ends.low}"),
        "${bounds[1]}",
        "${load[2]}",
        "${sum.result}",
    ],
    text="$${HOME} costs 5 $",
)
churn.output({"score": _fit["score"], "all": churn.step("all", join, parts="${join.result}"), "rows": [_rows]})


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_a_built_pipeline_runs_like_a_decorated_one(mode: Any) -> None:
    """`run`, `p.run` and its options; every kind of reference gives the value that it names."""
    for rows, result in ((4, churn.options(mode=mode).run()), (5, run(churn, {"rows": 5}, mode=mode))):
        data = list(range(rows))
        score = sum(data) / 2
        joined = [[score, "m2", (rows - 1, 0), rows - 1, 2, sum(data)], "${HOME} costs 5 $"]
        assert result.value == {"score": score, "all": [joined, ""], "rows": [rows]}
        assert {entry.status for entry in result.steps.values()} == {"succeeded"}


def test_one_graph_serves_all_values() -> None:
    """Parameters are references in the graph, so a hundred runs with other values store one graph."""
    graphs = [churn.build(values).graph for values in ({}, {"rows": 7})]
    data = [encode_graph(graph) for graph in graphs]
    assert graph_digest(data[0]) == graph_digest(data[1])
    assert decode_graph(data[0]) == graphs[0]
    assert graphs[0].steps["load"].arguments == {"rows": ParameterRef("rows")}
    assert churn.build({"rows": 7}).parameters == {"rows": 7}


def test_the_graph_is_that_of_the_calls() -> None:
    """Names, options, edges and references are what was written."""
    graph = churn.build({}).graph
    assert (graph.pipeline, graph.version, churn.name) == ("churn", "1.0.0", "churn")
    assert list(graph.steps) == ["load", "fit", "sum", "ends", "bounds", "join", "all"]
    assert graph.parents["fit"] == ("load", "sum")
    assert graph.parents["sum"] == ("load", "ends")
    assert graph.steps["sum"].arguments == {
        "data": OutputRef("load"),
        "extra": [OutputRef("ends", ("high",)), {"rows": ParameterRef("rows")}],
    }
    # An index of declared outputs is the name: the value may come as a tuple or as a dict.
    assert graph.steps["join"].arguments["parts"][3:5] == [OutputRef("bounds", ("high",)), OutputRef("load", (2,))]
    assert (graph.steps["sum"].executor, graph.steps["load"].executor) == ("inline", "process")
    assert repr(churn) == "<pipeline 'churn' 1.0.0: 7 steps>"


def test_options_of_pipeline_and_steps() -> None:
    """Keywords that no parameter of the function has are options; those of a @step are kept."""
    p: Any = Pipeline("p", queue="cpu", fail_fast=True, deadline_s=60, description="d")
    data = p.step("load", numbers, rows=1, retries=Retry(2), timeout_s=5, on_failure="skip", description="l")
    p.step("train", sample.train, data=data)
    p.step("train-here", sample.train.options(timeout_s=3), data=data, queue="cpu2", after=[data, "last"])
    p.step("last", join, parts=0, outputs=["a", "b"], executor="thread")
    graph = p.build({}).graph
    assert (graph.fail_fast, graph.deadline_s, graph.description) == (True, 60, "d")
    load, train, here, last = graph.steps.values()
    assert (load.queue, load.retries.count, load.timeout_s, load.on_failure) == ("cpu", 2, 5.0, OnFailure.SKIP)
    assert (train.queue, here.queue, here.timeout_s, here.after) == ("gpu", "cpu2", 3.0, ("load", "last"))
    assert (load.description, last.outputs) == ("l", ("a", "b"))


def test_arguments_whose_names_are_taken_go_in_args() -> None:
    """Every parameter of every function can be given: by keyword, or where that could be an option in `args`."""
    p: Any = Pipeline("p")
    both = p.step("both", clashing, args={"queue": "a", "args": 1}, name="n", step="s")
    optioned = p.step("queued", step(clashing).options(queue="gpu"), args={"queue": "a", "args": 1})
    first = p.step("first", by_position, first=5, second=3, third=1)
    p.output([both, optioned, first])
    steps = p.build({}).graph.steps
    assert (steps["both"].queue, steps["queued"].queue) == ("default", "gpu")
    assert steps["first"].arguments == {"*": [5, 3], "third": 1}
    assert p.options(mode="debug").run().value == ["a 1 n s", "a 1  ", 3]


def test_a_build_is_a_snapshot() -> None:
    """What is added, or changed in a list that was passed, changes later builds at most."""
    p = numbered()
    values: list[Any] = [1]
    p.param("values", list, default=values)
    p.step("join", join, parts=values)
    values.append(2)
    before = p.build({})
    p.output("done")
    p.step("more", total, data="${load.result}")
    p.output(p.param("last"))
    assert list(before.graph.steps) == ["load", "join"]
    assert before.graph.steps["join"].arguments == {"parts": [1]}
    assert (before.parameters["values"], before.graph.output) == ([1], None)
    assert list(p.build({"last": 1}).graph.steps) == ["load", "join", "more"]


def test_parameters_are_typed() -> None:
    """Types are those of annotations; the order is that of the calls."""
    p = Pipeline("p")
    p.param("rows", int)
    p.param("mode", Literal["fast", "slow"], default="fast")
    p.param("names", list[str] | None, default=None)
    p.param("more")
    names = ParameterType("union", (ParameterType("list", (ParameterType("str"),)), ParameterType("none")))
    assert p.parameters == (
        Parameter(name="rows", type=ParameterType("int"), default=REQUIRED),
        Parameter(name="mode", type=ParameterType("literal", values=("fast", "slow")), default="fast"),
        Parameter(name="names", type=names, default=None),
        Parameter(name="more", type=ParameterType("any"), default=REQUIRED),
    )
    assert read_parameters(p, ["rows=5", "mode=slow"]) == {"rows": 5, "mode": "slow"}


def test_texts_are_texts_outside_of_arguments() -> None:
    """A value from a user is never read, and a decorated call takes a text as it is."""
    p = numbered()
    text = p.param("text", str, default="${load.result}")
    p.step("join", join, parts=text, text="a", args={})
    p.output(text)
    assert p.build({}).parameters["text"] == "${load.result}"
    assert p.options(mode="debug").run(text="${pipeline.rows}").value == "${pipeline.rows}"
    graph = pipeline(name="d")(lambda: sample.show("${load.result}")).build({}).graph
    assert graph.steps["show"].arguments == {"*": ["${load.result}"]}


def test_the_command_line_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the variable, or alone where the module has no other pipeline of its own."""
    assert find_target(f"{__name__}:churn").pipeline is churn
    other: Any = ModuleType("other_module")
    monkeypatch.setitem(sys.modules, "other_module", other)
    other.imported = churn
    assert find_target("other_module").pipeline is churn
    exec("import evpipe; own = evpipe.Pipeline('own')", vars(other))
    assert find_target("other_module").pipeline is other.own


def test_what_building_raises_on_the_command_line_is_told_as_it_is() -> None:
    """There is no body in which it could have been raised."""
    p = numbered()
    p.step("s", join, parts="${laod.result}")
    with pytest.raises(UsageError, match=r"^step 's' takes the output of 'laod', which"), pipeline_body(p):
        p.build({})


@pytest.mark.anyio
async def test_a_client_submits_it() -> None:
    """A run by key is the same run for the same values, and its graph that of every other run."""
    async with MemoryBus() as bus, Client(bus=bus) as client:
        first = await client.submit(churn, {"rows": 5}, key="k")
        again = await client.submit(churn, {"rows": 5}, key="k")
        assert (first.id, first.pipeline) == (again.id, "churn")
        with pytest.raises(Conflict, match="with rows = 5, not 6"):
            await client.submit(churn, {"rows": 6}, key="k")


@pytest.mark.parametrize("take", [run, lambda target: anyio.run(Client(bus=MemoryBus()).submit, target)])
def test_what_is_no_pipeline_is_refused(take: Any) -> None:
    """The sentence names both ways to make one."""
    with pytest.raises(UsageError, match=r"takes a function with @pipeline or a Pipeline, not a function$"):
        take(numbers)
    with pytest.raises(UsageError, match=r"and options beside it, as in (run|submit)\(p, .*p\.options\("):
        take(churn.options(key="k"))


def test_run_goes_through_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a decorated pipeline."""
    seen: list[Any] = []

    def fake(target: Any, values: Any, options: Any) -> RunResult[Any]:
        seen.append((target, dict(values), options))
        return RunResult(id="r", pipeline="churn", status=RunStatus.SUCCEEDED, _value=1)

    monkeypatch.setattr(hook, "run_hook", fake)
    assert churn.run(rows=5).value == 1
    assert churn.options(mode="local", key="k", timeout_s=3).run().value == 1
    assert seen == [
        (churn, {"rows": 5}, RunOptions()),
        (churn, {"rows": 4}, RunOptions(mode="local", key="k", timeout_s=3)),
    ]


def _loop(value: Any) -> None:
    for _ in value:
        pass


MISUSES: list[tuple[Callable[[Any], Any], str]] = [
    (bool, "used as a condition: give it to a step as when=…, or pass it to a step and decide there"),
    (_loop, "iterated over: pass it whole to a step"),
    (lambda v: v + 1, "calculated with: pass it to a step and calculate there"),
    (str, "made text: pass it to a step and show it there (repr() names the handle)"),
    (lambda v: f"{v}", "made text: pass it to a step and show it there (repr() names the handle)"),
    (int, "made a number: pass it to a step and do that there"),
    (range, "made a number: pass it to a step and do that there"),
    (len, "measured with len(): take its length in a step"),
    (lambda v: v[0], "indexed: pass it to a step and index it there"),
    (lambda v: v.real, "asked for its attribute 'real': use it in a step and return what you need"),
    (copy.copy, "copied or pickled: pass the handle itself on, to as many steps as need it"),
]


@pytest.mark.parametrize(("misuse", "problem"), MISUSES)
def test_a_misuse_of_a_parameter_is_refused_at_its_line(misuse: Callable[[Any], Any], problem: str) -> None:
    """One graph serves all values, so none is there while it is built."""
    rows: Any = Pipeline("p").param("rows", int, default=3)
    with pytest.raises(NotKnownYet) as caught:
        misuse(rows)
    assert str(caught.value) == (
        f"the parameter 'rows' is not known while the pipeline is being built, so it cannot be {problem}"
    )
    assert repr(rows) == "<parameter 'rows' of pipeline 'p'>"


OTHER: Any = Pipeline("other")
OTHERS = OTHER.step("load", numbers, rows=1)
OTHER_ROWS = OTHER.param("rows", int, default=1)
LITERAL = "($${ is a literal ${)"
FORMS = (
    "is not a reference: write '${load.result}' (the whole output of step load), '${train.score}', '${train[0]}' or "
    f"'${{pipeline.rows}}' {LITERAL}"
)
IS_FOREIGN = "is from another pipeline: it can only be used in step(...) and output(...) of its own Pipeline"

#: Called with a pipeline that has the parameter "rows" and the step "load"; each line is refused by itself.
REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda p: p.step("s", fit, deth=3, data=1),
        "step 's': got an unexpected keyword argument 'deth'; did you mean 'depth'? (it takes: data, depth=3)",
    ),
    (lambda p: p.step("s", fit, depth=3), "step 's': missing a required argument: 'data' (it takes: data, depth=3)"),
    (
        lambda p: p.step("s", numbers, name="x", rows=1),
        "step 's': got an unexpected keyword argument 'name' (it takes: rows)",
    ),
    (
        lambda p: p.step("s", clashing, queue="gpu", args={"args": 1}),
        "step 's': 'queue' is a parameter of clashing and an option of a step: args={'queue': …} gives it to the "
        "function, step(clashing).options(queue=…) sets the option",
    ),
    (
        lambda p: p.step("s", step(clashing), queue="gpu"),
        "step 's': 'queue' is a parameter of clashing and an option of a step: args={'queue': …} gives it to the "
        "function, clashing.options(queue=…) sets the option",
    ),
    (
        lambda p: p.step("s", clashing, args=1),
        "step 's': 'args' is a parameter of clashing: args={'args': …} gives it to the function",
    ),
    (lambda p: p.step("s", numbers, args=[1]), "step 's': args must be a dict of arguments by name, not [1]"),
    (lambda p: p.step("s", numbers, args={1: 2}), "step 's': the names in args must be text, not 1"),
    (
        lambda p: p.step("s", numbers, args={"rows": 1}, rows=1),
        "step 's': argument 'rows' is given in args and by keyword",
    ),
    (
        lambda p: p.step("load", numbers, rows=1),
        "pipeline 'churn' has a step named 'load' already: give this one another name",
    ),
    (
        lambda p: p.step("pipeline", numbers, rows=1),
        "step 'pipeline' needs another name: '${pipeline.rows}' is the parameter 'rows'",
    ),
    (
        lambda p: p.step("a.b", numbers, rows=1),
        "step name 'a.b' is not allowed: allowed are 1 to 64 letters, digits, '_' and '-', the first a letter or digit",
    ),
    (lambda p: p.step("s", 3), "step 's' must be a function or a @step, not 3"),
    (
        lambda p: p.step("s", OTHER, cache=True),
        "step 's' is pipeline 'other': cache is an option of the steps in it",
    ),
    (lambda p: p.step("s", OTHER, depth=1), "pipeline 'other' has no parameter 'depth' (it has rows)"),
    (
        lambda p: p.step("s", lambda: 1),
        f"step 's' cannot be a lambda ({__name__}.<lambda>.<locals>.<lambda>): "
        "a worker finds a step by its module and name; write a `def` at module level",
    ),
    (
        lambda p: p.step("s", int),
        "step 's' cannot be the class int: write a `def` that makes and returns what is needed",
    ),
    (
        lambda p: p.step("s", numbers, rows=1, timeout_s=0),
        "step 's': timeout_s must be seconds above 0 and at most 31,622,400, or None, not 0",
    ),
    (lambda p: p.step("s", numbers, rows=1, after="load"), "step 's': after takes a list: after=['load']"),
    (
        lambda p: p.step("s", numbers, rows=OTHERS),
        f"argument 'rows' of step 's': <handle load of pipeline 'other'> {IS_FOREIGN}",
    ),
    (
        lambda p: p.step("s", numbers, rows=[OTHER_ROWS]),
        f"argument 'rows' of step 's': <parameter 'rows' of pipeline 'other'> {IS_FOREIGN}",
    ),
    (
        lambda p: p.step("s", numbers, rows=1, after=[OTHERS]),
        f"step 's': after: <handle load of pipeline 'other'> {IS_FOREIGN}",
    ),
    (lambda p: p.output([OTHERS]), f"the output of pipeline 'churn': <handle load of pipeline 'other'> {IS_FOREIGN}"),
    (lambda _: sample.load(OTHERS), f"step 'load': <handle load of pipeline 'other'> {IS_FOREIGN}"),
    (
        lambda p: p.output("${load.result}"),
        "the output of pipeline 'churn': '${load.result}' is not read here, only in arguments of steps: "
        "give the handle",
    ),
    (
        lambda p: p.step("s", join, parts={"${load.result}"}),
        "argument 'parts' of step 's': '${load.result}' cannot stand inside a set: use a list, tuple or dict",
    ),
    (
        lambda p: p.step("s", join, parts=["model-${load.result}"]),
        "argument 'parts' of step 's': a reference must be all of its text, and 'model-${load.result}' is not: "
        f"let a step put the text together {LITERAL}",
    ),
    (
        lambda p: p.step("s", join, parts="${load.result"),
        "argument 'parts' of step 's': a reference must be all of its text, and '${load.result' is not: "
        f"let a step put the text together {LITERAL}",
    ),
    (lambda p: p.step("s", join, parts="${HOME}"), f"argument 'parts' of step 's': '${{HOME}}' {FORMS}"),
    (lambda p: p.step("s", join, parts="${}"), f"argument 'parts' of step 's': '${{}}' {FORMS}"),
    (lambda p: p.step("s", join, parts="${load[x]}"), f"argument 'parts' of step 's': '${{load[x]}}' {FORMS}"),
    (
        lambda p: p.step("s", join, parts="${pipeline.rows.x}"),
        "argument 'parts' of step 's': '${pipeline.rows.x}' takes a part of a parameter: "
        "pass it whole and take the part in the step",
    ),
    (
        lambda p: [p.step("fit", fit, data=1), p.step("s", join, parts="${fit.scroe}")],
        "argument 'parts' of step 's': '${fit.scroe}': the value of step 'fit' has no output 'scroe'; "
        "did you mean 'score'? (it has 'model', 'score')",
    ),
    (
        lambda p: [p.step("odd", confusing), p.step("s", join, parts="${odd.result}")],
        "argument 'parts' of step 's': '${odd.result}' would be the whole output, and step 'odd' has an output named "
        "'result': '${odd.result.result}' is that one; for the whole pass the handle",
    ),
    (lambda p: p.param("rows", int), "parameter 'rows' is there twice"),
    (
        lambda p: p.param("more", int, default="x"),
        "the default of parameter 'more' of pipeline 'churn' must be int, not 'x' (str)",
    ),
    (
        lambda p: p.param("more", 1000),
        "parameter 'more' of pipeline 'churn': the type must be one such as int, not 1000 "
        "(a default is given as default=…)",
    ),
    (
        lambda p: p.param("more", list, default=[p.param("other")]),
        "parameter 'more' of pipeline 'churn': <parameter 'other' of pipeline 'churn'> is not a value: "
        "those of parameters are known before a run",
    ),
    (lambda p: p.build({"row": 5}), "pipeline 'churn' has no parameter 'row'; did you mean 'rows'? (it has rows)"),
    (lambda p: p.build({"rows": "5"}), "parameter 'rows' of pipeline 'churn' must be int, not '5' (str)"),
    (lambda p: p.bind(5), "pipeline 'churn' takes 0 by position, and 1 were given"),
    (
        lambda _: Pipeline("a b"),
        "pipeline name 'a b' is not allowed: "
        "allowed are 1 to 64 letters, digits, '_' and '-', the first a letter or digit",
    ),
    (
        lambda _: Pipeline("p", deadline_s=0),
        "pipeline 'p': deadline_s must be seconds above 0 and at most 31,622,400, or None, not 0",
    ),
]


@pytest.mark.parametrize(("use", "sentence"), REFUSED)
def test_a_mistake_is_refused_at_its_line(use: Callable[[Any], Any], sentence: str) -> None:
    """And leaves no step behind that would be in the next build."""
    p = numbered()
    with pytest.raises(UsageError) as caught:
        use(p)
    assert str(caught.value) == sentence
    assert "s" not in p.build({"other": 0} if len(p.parameters) > 1 else {}).graph.steps


#: Added to a pipeline that has the parameter "rows" and the step "load"; refused when it is built.
REFUSED_AT_BUILD: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda p: p.step("s", join, parts=["${laod.result}"]),
        "step 's' takes the output of 'laod', which is not in the pipeline; did you mean 'load'?",
    ),
    (
        lambda p: p.step("s", join, parts="${pipeline.row}"),
        "step 's' takes the parameter 'row', which the pipeline does not have; did you mean 'rows'?",
    ),
    (
        lambda p: p.step("s", join, parts=1, after=["laod"]),
        "step 's' waits for the step 'laod', which is not in the pipeline; did you mean 'load'?",
    ),
    (
        lambda p: [p.step("s", join, parts=[{"a": "${fit.scroe}"}]), p.step("fit", fit, data=1)],
        "argument 'parts' of step 's': '${fit.scroe}': the value of step 'fit' has no output 'scroe'; "
        "did you mean 'score'? (it has 'model', 'score')",
    ),
    (
        lambda p: [p.step("s", join, parts="${ends[2]}"), p.step("ends", ends, data=1)],
        "argument 'parts' of step 's': '${ends[2]}': the value of step 'ends' has no index 2: it has 2 parts",
    ),
    (
        lambda p: [p.step("s", join, parts="${load-2.result}"), p.step("load-2", join, parts=1, after=["s"])],
        "the steps wait for each other in a cycle: s -> load-2 -> s",
    ),
]


@pytest.mark.parametrize(("use", "sentence"), REFUSED_AT_BUILD)
def test_a_reference_to_nothing_is_refused_when_it_is_built(use: Callable[[Any], Any], sentence: str) -> None:
    """What it names could have been added until then."""
    p = numbered()
    use(p)
    with pytest.raises(UsageError) as caught:
        p.build({})
    assert str(caught.value) == sentence


TEXTS: list[tuple[str, Any]] = [
    ("", ""),
    ("5 $ {x}", "5 $ {x}"),
    ("$${load.result}", "${load.result}"),
    ("$$${load.result}", "$${load.result}"),
    ("a $${b} $${c}", "a ${b} ${c}"),
    ("${load.result}", OutputRef("load")),
    ("${load.result[0].x}", OutputRef("load", (0, "x"))),
    ("${load[-1]}", OutputRef("load", (-1,))),
    ("${load.key with space[3]}", OutputRef("load", ("key with space", 3))),
    ("${pipeline.rows}", ParameterRef("rows")),
]


@pytest.mark.parametrize(("text", "tree"), TEXTS)
def test_a_text_is_one_reference_or_literal(text: str, tree: Any) -> None:
    """Whether the step that it names is there already or comes later."""
    earlier, later = numbered(), Pipeline("p")
    earlier.step("s", join, parts=[text])
    later.step("s", join, parts=[text])
    later.step("load", numbers, rows=later.param("rows", int, default=1))
    for p in (earlier, later):
        assert p.build({}).graph.steps["s"].arguments == {"parts": [tree]}
