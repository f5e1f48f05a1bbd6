"""Mapped steps in a random world: a graph with maps ends as the one in which each element is a step of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import Gathered, OneOf, OutputRef, ParameterRef, Tree
from evpipe.core.commands import Decide, Launch, Quarantine, WakeAt
from evpipe.core.conditions import Comparison, IsTrue
from evpipe.core.events import Finished, Origin, StepCached, StepCancelled, StepFailed, StepSkipped
from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.mapping import Mapped
from evpipe.core.states import OnFailure, Reason, RunIf, RunStatus, StepStatus
from evpipe.core.why import why
from evpipe.errors import UsageError
from tests.core.budget import examples
from tests.core.making import RUN_ID, cancel, failed, folded, graph, snapshot, started, step, submitted, succeeded
from tests.core.oracle import interpret, output_of, run_ends_as
from tests.core.plans import KEY, OUTCOMES, Plan, retry_policies
from tests.core.test_oracle import settled
from tests.core.world import World

SEEDS = st.integers(0, 2**32)
OUTCOMES_WITHOUT_SKIP = tuple(outcome for outcome in OUTCOMES if outcome != "skip")
#: Rules for which it makes no difference whether a list's elements are looked at one by one.
RULES = [RunIf.ALL_SUCCEEDED] * 4 + [RunIf.ALL_DONE, RunIf.NONE_FAILED, RunIf.ALWAYS]


def plain_name(name: str) -> str:
    return name.replace("=", "-")


@st.composite
def mapped_plans(draw: st.DrawFn) -> tuple[Plan, Plan]:
    """A plan with maps, and the same without: over lists, and over other maps whole or element by element."""
    steps: list[Step] = []
    plain: list[Step] = []
    #: Step -> its length; None: it is not mapped.
    lengths: dict[str, int | None] = {}
    #: What is taken as a whole: one that is left out is None in it, and in the other graph it is a parent of its own.
    whole_lists: set[str] = set()
    one_by_one: dict[str, list[str]] = {}
    for i in range(draw(st.integers(1, 6))):
        name = f"s{i}"
        length = draw(st.sampled_from([None, None, 0, 1, 2, 3]))
        options = {
            "retries": draw(retry_policies()),
            "on_failure": draw(st.sampled_from(OnFailure)),
            "run_if": draw(st.sampled_from(RULES)),
        }
        parents = draw(st.lists(st.sampled_from(sorted(lengths)), max_size=3, unique=True)) if lengths else []
        aligned = [parent for parent in parents if lengths[parent] is not None]
        if length is not None and aligned and draw(st.booleans()):
            length = lengths[aligned[0]]
        if length == 0 and any(lengths[parent] != 0 for parent in parents):
            # It may be skipped for them, and in the other graph there is nothing that could be.
            length = 1
        arguments: dict[str, Tree] = {"constant": i}
        each: list[dict[str, Tree]] = [{"constant": i} for _ in range(length or 0)]
        single: dict[str, Tree] = {"constant": i}
        places: list[str] = []
        if length is not None:
            arguments["list"] = [f"{name}.{j}" for j in range(length)]
            places.append("list")
            for j, element in enumerate(each):
                element["list"] = f"{name}.{j}"
        after: list[str] = []
        for parent in parents:
            count = lengths[parent]
            elements = [OutputRef(f"{parent}-{j}") for j in range(count or 0)]
            if length is not None and count == length and draw(st.booleans()):
                path = draw(st.sampled_from([(), (KEY,)]))
                arguments[parent] = OutputRef(parent, path)
                places.append(parent)
                one_by_one.setdefault(name, []).append(parent)
                for j, element in enumerate(each):
                    element[parent] = OutputRef(f"{parent}-{j}", path)
                continue
            whole_lists.add(parent)
            whole: Tree = OutputRef(parent) if count is None else elements
            arguments[parent] = [OutputRef(parent)] if length is not None else OutputRef(parent)
            single[parent] = whole
            for element in each:
                element[parent] = [whole]
            if draw(st.booleans()):
                after.append(parent)
        mapped = Mapped(places=tuple(places)) if length is not None else None
        steps.append(Step(name=name, arguments=arguments, after=tuple(after), mapped=mapped, **options))
        plain_after = [
            one
            for parent in after
            for one in ([parent] if lengths[parent] is None else [f"{parent}-{j}" for j in range(lengths[parent] or 0)])
        ]
        if length is None:
            plain.append(Step(name=name, arguments=single, after=tuple(plain_after), **options))
        for j, element in enumerate(each):
            plain.append(Step(name=f"{name}-{j}", arguments=element, after=tuple(plain_after), **options))
        lengths[name] = length
    names = [one for name, n in lengths.items() for one in ([name] if n is None else [f"{name}={j}" for j in range(n)])]
    for name in reversed(lengths):
        # An element that takes one that was left out is left out, too.
        whole_lists.update(one_by_one.get(name, ()) if name in whole_lists else ())
    kept_in = [name for name in names if "=" in name and name.partition("=")[0] in whole_lists]
    outcomes = {name: OUTCOMES if name not in kept_in else OUTCOMES_WITHOUT_SKIP for name in names}
    scripts = {name: draw(st.lists(st.sampled_from(outcomes[name]), max_size=4).map(tuple)) for name in names}
    with_maps = Graph.of(steps, pipeline="demo", output={name: OutputRef(name) for name in lengths})
    without = Graph.of(plain, pipeline="demo")
    return Plan(with_maps, scripts), Plan(without, {plain_name(name): script for name, script in scripts.items()})


@given(mapped_plans(), SEEDS)
@examples(120)
def test_a_graph_with_maps_ends_as_the_one_without(plans: tuple[Plan, Plan], seed: int) -> None:
    mapped, plain = plans
    world = World(mapped, seed)
    world.play()
    run, expected = world.run, interpret(plain)
    for name, state in run.steps.items():
        if run.spec(name).mapped is None or "=" in name:
            end = expected[plain_name(name)]
            assert (state.status, state.reason, state.attempt) == (end.status, end.reason, end.attempts), name
        elif name not in run.expansions:
            # Skipped before it had elements, for what each of them would have been skipped for.
            assert state.status is StepStatus.SKIPPED
            assert all(end.status is StepStatus.SKIPPED for one, end in expected.items() if one.startswith(f"{name}-"))
        else:
            elements = [run.steps[f"{name}={i}"] for i in range(run.expansions[name].count)]
            bad = (
                any(e.status is StepStatus.FAILED for e in elements)
                and run.spec(name).on_failure is not OnFailure.CONTINUE
            )
            gone = any(e.status is StepStatus.SKIPPED and e.reason is Reason.UPSTREAM for e in elements)
            status = StepStatus.FAILED if bad else StepStatus.SKIPPED if gone else StepStatus.SUCCEEDED
            assert state.status is status, name
            ok = [e.status is StepStatus.SUCCEEDED for e in elements]
            values = [output_of(f"{name}={i}") if good else None for i, good in enumerate(ok)]
            assert run.output_of(name) == values
    assert run.status is run_ends_as(plain.graph, expected)


@given(mapped_plans(), SEEDS)
@examples(60)
def test_each_element_gets_what_is_its_own(plans: tuple[Plan, Plan], seed: int) -> None:
    world = World(plans[0], seed)
    world.play()
    outputs = {plain_name(name): world.run.output_of(name) for name in world.run.outputs}

    def filled(tree: Tree) -> Tree:
        if isinstance(tree, OutputRef):
            value = outputs.get(tree.step)
            return value[KEY] if tree.path and value is not None else value
        if isinstance(tree, dict):
            return {key: filled(child) for key, child in tree.items()}
        return [filled(child) for child in tree] if isinstance(tree, list) else tree

    for _, command in world.emitted:
        if isinstance(command, Launch):
            expected = filled(plans[1].graph.steps[plain_name(command.step)].arguments)
            # What has no elements gives no list at all.
            for name, value in dict(expected).items():
                if name in world.run.steps and world.run.spec(name).mapped and name not in world.run.expansions:
                    expected[name] = (
                        [None] if isinstance(value, list) and value and isinstance(value[0], list) else None
                    )
            assert command.arguments == expected


@given(mapped_plans(), SEEDS, st.booleans())
@examples(60)
def test_a_replay_gives_the_same_and_all_that_is_undone(plans: tuple[Plan, Plan], seed: int, fail_fast: bool) -> None:
    plan = replace(plans[0], graph=replace(plans[0].graph, fail_fast=fail_fast))
    world = World(plan, seed, cancels=not fail_fast)
    world.play()
    assert all(state.ended for state in world.run.steps.values())
    replayed = Run(RUN_ID)
    for length, event in enumerate(world.log, 1):
        replayed.step(event)
        open_steps = sum(not state.ended for state in replayed.steps.values())
        assert replayed.open_count == open_steps
        if replayed.ended:
            break
        outstanding = replayed.outstanding()
        for at, command in world.emitted:
            if at <= length and isinstance(command, (Launch, Decide, WakeAt)):
                done = settled(command, world.log[:length], replayed.open_count == 0)
                assert done or command in outstanding, f"{command} was forgotten after {event}"
    for event in world.log:
        replayed.step(event)
    assert snapshot(replayed) == snapshot(world.run)


def mapping(name: str, *places: str, arguments: dict[str, Tree], **options: object) -> Step:
    return step(name, arguments=arguments, mapped=Mapped(places=places), **options)


def test_a_chain_of_ten_thousand_empty_maps_is_no_recursion() -> None:
    """Each ends when it has no elements, and the next has none either."""
    count = 10_000
    steps = [mapping("m0", "xs", arguments={"xs": []})]
    steps += [mapping(f"m{i}", "xs", arguments={"xs": OutputRef(f"m{i - 1}")}) for i in range(1, count)]
    run = folded(submitted(graph(*steps)))
    assert all(state.status is StepStatus.SUCCEEDED for state in run.steps.values())
    assert [type(command.event) for command in run.outstanding() if isinstance(command, Decide)] == [Finished]


def test_one_end_costs_what_waits_for_it_not_the_map() -> None:
    """A chain of two maps: the end of one element touches that one, its node and what takes its output."""
    count = 2_000
    run = folded(
        submitted(
            graph(
                mapping("a", "xs", arguments={"xs": list(range(count))}),
                mapping("b", "xs", arguments={"xs": OutputRef("a")}),
            )
        )
    )
    assert len(run.expansions) == 2
    commands = run.step(succeeded("a=7", value=70))
    assert commands == (Launch("b=7", 1, {"xs": 70}),)


def test_events_of_a_node_are_nonsense() -> None:
    """It has no attempts: what it is follows from its elements."""
    run = folded(submitted(graph(mapping("a", "xs", arguments={"xs": [1, 2]}))))
    before = snapshot(run)
    for attempt in (0, 1):
        for event in (
            succeeded("a", attempt),
            started("a", attempt),
            failed("a", attempt),
        ):
            assert isinstance(run.step(event)[0], Quarantine), event
    assert isinstance(run.step(StepSkipped(step="a"))[0], Quarantine)
    assert isinstance(run.step(succeeded("a=2"))[0], Quarantine)
    assert snapshot(run) == before
    run.step(cancel())
    assert isinstance(run.step(StepCancelled(step="a"))[0], Quarantine)
    for name in ("a=0", "a=1"):
        run.step(StepCancelled(step=name, attempt=1, reason=Reason.REQUEST))
    assert run.steps["a"].status is StepStatus.CANCELLED
    assert run.status is RunStatus.RUNNING


def test_more_elements_than_a_run_may_have_fail_the_step() -> None:
    run = folded(submitted(graph(step("a"), mapping("m", "xs", arguments={"xs": OutputRef("a")}))))
    (command,) = run.step(succeeded("a", value=[0] * 300_000))
    assert isinstance(command, Decide)
    assert isinstance(command.event, StepFailed)
    assert command.event.failure.message == ("step 'm' would have 300,000 elements: a run has at most 300,000 steps")


def test_a_parameter_is_mapped_over() -> None:
    from evpipe.core.parameters import Parameter, ParameterType

    of = graph(
        mapping("m", "xs", arguments={"xs": ParameterRef("xs")}),
        parameters=(Parameter(name="xs", type=ParameterType("any")),),
    )
    run = folded(submitted(of, xs=[OutputRef("not followed"), 2]))
    assert [command.arguments for command in run.outstanding() if isinstance(command, Launch)] == [
        {"xs": OutputRef("not followed")},
        {"xs": 2},
    ]


@pytest.mark.parametrize(
    ("mapped", "sentence"),
    [
        (Mapped(places=()), "step 'm' is mapped over nothing"),
        (Mapped(places=("ys",)), "step 'm' is mapped over the argument 'ys', which it does not get"),
        (Mapped(places=(3,)), "step 'm' is mapped over the argument 3, which it does not get"),
        (Mapped(places=("xs",), levels=9), "step 'm': levels must be 1 to 8, not 9"),
        (Mapped(places=("xs",), levels=0), "step 'm': levels must be 1 to 8, not 0"),
    ],
)
def test_what_cannot_be_mapped_is_no_graph(mapped: Mapped, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        graph(step("m", arguments={"xs": [1]}, mapped=mapped))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ((), [[{"k": 1}, None], None]),
        (("k",), [[1, None], None]),
        ((0,), [{"k": 1}, None]),
        ((0, "k"), [1, None]),
        ((0, 0), {"k": 1}),
        ((0, 0, "k"), 1),
        ((-1, 5), None),
    ],
)
def test_parts_of_what_was_gathered(path: tuple[str | int, ...], part: object) -> None:
    assert Gathered([[{"k": 1}, None], None], 2).part(OutputRef("m", path)) == part


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ((2,), "the output m has no 2: it has length 2"),
        (("x",), "the output m[0][0] has no 'x': it has keys 'k'"),
        ((0, 0, "x"), "the output m[0][0] has no 'x': it has keys 'k'"),
    ],
)
def test_parts_that_are_not_there(path: tuple[str | int, ...], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Gathered([[{"k": 1}, None], None], 2).part(OutputRef("m", path))
    assert str(caught.value) == sentence


def played(run: Run, **values: object) -> Run:
    """Let all that is outstanding happen, each step giving its value of these."""
    while run.outstanding():
        command = run.outstanding()[0]
        if isinstance(command, Decide):
            run.step(command.event)
        else:
            assert isinstance(command, Launch)
            run.step(succeeded(command.step, value=values.get(command.step)))
    return run


def test_elements_take_one_of_branches() -> None:
    """Of which one was left out, whether they take it whole or map over it."""
    branches = OneOf((OutputRef("a"), OutputRef("b")))
    run = played(
        folded(
            submitted(
                graph(
                    step("a", when=IsTrue(value=False)),
                    step("b"),
                    mapping("m", "xs", arguments={"xs": [1, 2], "whole": branches}),
                    mapping("n", "xs", arguments={"xs": branches}),
                    step("last", arguments={"m": OutputRef("m"), "n": OutputRef("n")}),
                )
            )
        ),
        b=[7, 8, 9],
    )
    assert {run.steps[name].status for name in run.steps if name != "a"} == {StepStatus.SUCCEEDED}
    assert run.expansions["n"].count == 3


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ({"xs": OutputRef("a"), "first": OutputRef("a", (0,))}, ("xs", "first")),
        ({"*": [OutputRef("a"), OutputRef("a", (0,))]}, (0, 1)),
        ({"*": [OutputRef("a"), [OutputRef("a"), OutputRef("a")]]}, (0, 1)),
    ],
)
def test_what_also_takes_the_whole_of_a_map_waits_for_all_of_it(
    arguments: dict[str, Tree], places: tuple[str | int, ...]
) -> None:
    of = graph(
        mapping("a", "xs", arguments={"xs": [1, 2]}), Step(name="m", arguments=arguments, mapped=Mapped(places=places))
    )
    run = folded(submitted(of), succeeded("a=0", value=10))
    assert "m" not in run.expansions
    run.step(succeeded("a=1", value=11))
    first = next(command for command in run.outstanding() if isinstance(command, Launch))
    assert None not in (*first.arguments.values(), *first.arguments.get("*", ()))


def test_a_handler_without_elements_lets_its_run_end() -> None:
    handler = mapping("h", "xs", arguments={"xs": []}, on_exit=True, run_if=RunIf.ALWAYS)
    for steps in ([handler], [step("a"), handler]):
        run = played(folded(submitted(graph(*steps))))
        assert run.status is RunStatus.SUCCEEDED


def test_a_handler_that_fails_stops_no_other() -> None:
    """There is nothing left that fail_fast could stop."""
    handler = mapping("h", "xs", arguments={"xs": [1, 2, 3]}, on_exit=True, run_if=RunIf.ALWAYS)
    run = folded(submitted(graph(handler, fail_fast=True)))
    assert run.step(failed("h=0")) == ()


@pytest.mark.parametrize("xs", [OutputRef("a"), OneOf((OutputRef("a"), OutputRef("b")))])
def test_what_maps_over_nothing_that_is_there_has_no_elements(xs: Tree) -> None:
    steps = [step(name, when=IsTrue(value=False)) for name in "ab"]
    run = played(folded(submitted(graph(*steps, mapping("m", "xs", arguments={"xs": xs}, run_if=RunIf.NONE_FAILED)))))
    assert (run.steps["m"].status, run.output_of("m")) == (StepStatus.SUCCEEDED, [])


def test_elements_are_named_as_people_write_them() -> None:
    """In what is said of conditions, of parts that are missing, and of whose result a step has."""
    xs = OutputRef("a")
    asks = mapping("b", "xs", arguments={"xs": xs}, when=Comparison("==", xs, 1))
    lacks = mapping("c", "xs", arguments={"xs": OutputRef("a", ("score",))})
    run = folded(submitted(graph(mapping("a", "xs", arguments={"xs": [1, 2]}, cache=CachePolicy()), asks, lacks)))
    origin = Origin(pipeline="demo", run="run00002", step="a=5", at_s=0.0)
    run.step(StepCached(step="a=1", attempt=1, value=5, origin=origin))
    assert run.decisions["b=1", StepSkipped] == StepSkipped(
        step="b=1", reason=Reason.CONDITION, message="its condition is false: a[1] == 1"
    )
    failure = run.decisions["c=1", StepFailed]
    assert isinstance(failure, StepFailed)
    assert failure.failure.message == "the output a[1] has no 'score': it has type int"
    assert why(run, "a=1").message == "has the result of step 'a[5]' of run run00002"


def test_a_product_of_very_many_lists_fails_the_step() -> None:
    """Its elements are a number with more digits than Python writes."""
    arguments: dict[str, Tree] = {f"x{i}": OutputRef("a") for i in range(900)}
    product = step("m", arguments=arguments, mapped=Mapped(places=tuple(arguments), product=True))
    (command,) = folded(submitted(graph(step("a"), product))).step(succeeded("a", value=[0] * 100_000))
    assert isinstance(command, Decide)
    assert isinstance(command.event, StepFailed)
    assert command.event.failure.message.startswith("step 'm' would have far too many elements")


def test_of_the_parts_of_a_stored_list_nobody_knows_what_they_are() -> None:
    stored = Artifact(kind="value", digest="a" * 64, size_bytes=100_000, length=2, is_list=True)
    nested = step("m", arguments={"xs": OutputRef("a")}, mapped=Mapped(places=("xs",), levels=2))
    run = folded(submitted(graph(step("a"), nested)), succeeded("a", value=stored))
    failure = run.decisions["m=1", StepFailed]
    assert isinstance(failure, StepFailed)
    assert failure.failure.message == (
        "step 'm[1]' is mapped over what is no list: xs is a part of a list that is stored as one (<value, 100,000 "
        "bytes, aaaaaaaaaaaa>[1]), and not known to be a list: that is known of parts that are all lists and of one "
        "length, or at most 10,000; where a step of its own gives each part, that may be a list; it takes a list or a "
        "tuple"
    )


def test_the_parts_of_a_stored_list_are_mapped_over_where_they_are_known_to_be_lists() -> None:
    stored = Artifact(kind="value", digest="a" * 64, size_bytes=100_000, length=2, is_list=True, lengths=((1, 2), 1))
    nested = step("m", arguments={"xs": OutputRef("a")}, mapped=Mapped(places=("xs",), levels=3))
    part = step("n", arguments={"xs": OutputRef("a", (1,))}, mapped=Mapped(places=("xs",)))
    asks = step("o", arguments={"x": 1}, when=IsTrue(OutputRef("a", (-1,))))
    run = folded(submitted(graph(step("a"), nested, part, asks)), succeeded("a", value=stored))
    launches = {
        command.step: command.arguments.get("xs") for command in run.outstanding() if isinstance(command, Launch)
    }
    assert launches == {
        "m=0=0=0": stored.part((0, 0, 0)),
        "m=1=0=0": stored.part((1, 0, 0)),
        "m=1=1=0": stored.part((1, 1, 0)),
        "n=0": stored.part((1, 0)),
        "n=1": stored.part((1, 1)),
        "o": None,
    }


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            Artifact(kind="numpy", digest="a" * 64, size_bytes=9),
            "is of type <numpy>; … .tolist() makes one of an array",
        ),
        ({1, 2}, "is of type set; … list(...) makes one of a set"),
        (range(3), "is of type range; … list(...) makes one of a range"),
    ],
)
def test_what_is_nearly_a_list_says_how_it_is_one(value: Any, told: str) -> None:
    each = step("m", arguments={"xs": OutputRef("a")}, mapped=Mapped(places=("xs",)))
    failure = folded(submitted(graph(step("a"), each)), succeeded("a", value=value)).decisions["m", StepFailed]
    assert isinstance(failure, StepFailed)
    told = told.replace("…", "it takes a list or a tuple:")
    assert failure.failure.message == f"step 'm' is mapped over what is no list: xs {told}"
