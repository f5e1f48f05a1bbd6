"""The table of scenarios: how each ends in the engine that it comes from, how it ends here, and why they differ.

A… are Argo Workflows', F… Airflow's, C… ClearML's. `skip` and `omit` are both `skipped` here, for the reason
`condition` where something was chosen and `upstream` where something went wrong.
"""

from __future__ import annotations

from typing import Any, Final

from evpipe import RunResult, StepResult
from tests.scenarios import pipelines as these
from tests.scenarios.row import Row

Result = RunResult[Any]


def after(late: str, *early: str) -> Any:
    """A check: a step became ready when these had ended, not before."""

    def check(result: Result) -> None:
        for name in early:
            assert _moment(result.steps[late], "queued_at") >= _moment(result.steps[name], "ended_at"), (late, name)

    return check


def both(*checks: Any) -> Any:
    def check(result: Result) -> None:
        for one in checks:
            one(result)

    return check


def attempts(**expected: int) -> Any:
    """A check: how many attempts steps took."""

    def check(result: Result) -> None:
        assert {name: result.steps[name].attempts for name in expected} == expected

    return check


def several_attempts(step: str) -> Any:
    """A check: it was tried again, however often there was time for."""

    def check(result: Result) -> None:
        assert result.steps[step].attempts > 1

    return check


def called(**expected: int) -> Any:
    """A check: how often bodies have run so far, by what they count under."""

    def check(_: Result) -> None:
        found = {name: these.CALLS[name.replace("_", " ")] for name in expected}
        assert found == expected

    return check


def output(step: str, value: Any) -> Any:
    def check(result: Result) -> None:
        assert result.steps[step].value == value

    return check


def ended_between(least_s: float, step: str) -> Any:
    """A check: the step took at least so long from when it was ready."""

    def check(result: Result) -> None:
        one = result.steps[step]
        assert (_moment(one, "ended_at") - _moment(one, "queued_at")).total_seconds() >= least_s - 0.002

    return check


def says(step: str, words: str) -> Any:
    """A check: why it has no value is said clearly."""

    def check(result: Result) -> None:
        assert words in result.steps[step].error

    return check


def _moment(step: StepResult, which: str) -> Any:
    found = getattr(step, which)
    assert found is not None, f"{step.name} has no {which}"
    return found


SINKS: Final = "every failed step fails its run unless its on_failure says otherwise; there the sinks decide"
ELEVEN: Final = " ".join(f"each[{i}]" for i in range(11))
SEQUENCES: Final = " ".join(
    f"{name}[{i}]"
    for name, count in {"count": 5, "to": 6, "from": 3, "down": 6, "named": 5}.items()
    for i in range(count)
)
INNER: Final = " ".join(f"{outer}-{inner}" for outer in "ABCD" for inner in "ABCD")

ROWS: Final[list[Row]] = [
    # ---- A1
    Row(
        id="A1a",
        pipeline=these.diamond,
        parameters={"place": "A1a"},
        in_debug={"place": ""},
        theirs="A B C D: ok",
        ours="A B C D: succeeded",
        check=both(after("B", "A"), after("C", "A"), after("D", "B", "C")),
    ),
    Row(
        id="A1b",
        pipeline=these.two_roots,
        parameters={"place": "A1b"},
        in_debug={"place": ""},
        theirs="A B C D: ok",
        ours="A B C D last: succeeded",
        check=both(after("C", "A"), after("D", "A", "B")),
    ),
    Row(id="A1c whole", pipeline=these.subset, theirs="A B C D E: ok", ours="A B C D E: succeeded"),
    Row(
        id="A1c",
        pipeline=these.subset,
        parameters={"target": "E"},
        theirs="A C E: ok",
        ours="A C E: succeeded",
        differs="a run has no option for a target: the body is Python, and a parameter says what it adds",
    ),
    Row(
        id="A1d",
        pipeline=these.diamond_of_diamonds,
        theirs=f"{INNER}: ok",
        ours=f"{INNER}: succeeded",
        value="DD",
        check=both(after("B-A", "A-D"), after("C-A", "A-D"), after("D-A", "B-D", "C-D"), output("C-B", "CB")),
    ),
    Row(
        id="A1d pipelines",
        pipeline=these.diamond_of_pipelines,
        theirs="A B C D: ok",
        ours="A B C D: succeeded",
        value="DD",
        differs="a diamond as a step is a run of its own: its tasks have their names in that run",
        check=both(after("B", "A"), after("C", "A"), after("D", "B", "C")),
    ),
    # ---- A2
    Row(
        id="A2",
        pipeline=these.expressions,
        theirs="A B x1 x2 x4: ok, C: fail, x3: omit",
        ours="A B x1 x2 x4: succeeded, C: failed error, x3: skipped upstream",
        our_run="failed",
        differs=SINKS,
        check=after("x2", "C"),
    ),
    Row(
        id="A2 allowed",
        pipeline=these.expressions,
        parameters={"on_failure": "skip"},
        theirs="A B x1 x2 x4: ok, C: fail, x3: omit",
        ours="A B x1 x2 x4: succeeded, C: failed error, x3: skipped upstream",
        check=after("x2", "C"),
    ),
    # ---- A3
    Row(
        id="A3",
        pipeline=these.after_failure,
        theirs="A C D F: ok, B E: fail, G: omit",
        their_run="fail",
        ours="A C D F: succeeded, B E: failed error, G: skipped upstream",
        our_run="failed",
    ),
    Row(
        id="A3 continue",
        pipeline=these.goes_on,
        theirs="S: fail, failed: ok, went: skip",
        ours="S: failed error, failed: succeeded, went: skipped upstream",
    ),
    # ---- A5
    Row(
        id="A5a true",
        pipeline=these.of_a_text(),
        parameters={"flag": "true"},
        theirs="one two three: ok",
        ours="one two three: succeeded",
    ),
    Row(
        id="A5a false",
        pipeline=these.of_a_text(),
        parameters={"flag": "false"},
        theirs="one two three: skip",
        ours="one two three: skipped condition",
    ),
    Row(
        id="A5b",
        pipeline=these.coin,
        theirs="flip H: ok, T: skip",
        ours="flip H told: succeeded, T: skipped condition",
        value={"value": "heads", "of tails": None},
        differs="what a skipped step would have given is None, and the empty text there",
    ),
    # ---- A7
    Row(
        id="A7a fails",
        pipeline=these.handled,
        parameters={"fails": True},
        theirs="main: fail, notify cry: ok, celebrate: skip",
        their_run="fail",
        ours="main: failed error, notify cry: succeeded, celebrate: skipped condition",
        our_run="failed",
        check=both(after("notify", "main"), output("notify", ["handled", "failed", True, ["main"]])),
    ),
    Row(
        id="A7a succeeds",
        pipeline=these.handled,
        parameters={"fails": False},
        theirs="main notify celebrate: ok, cry: skip",
        ours="main notify celebrate: succeeded, cry: skipped condition",
        check=output("notify", ["handled", "succeeded", True, []]),
    ),
    Row(
        id="A7b",
        pipeline=these.cleaned,
        theirs="A B C D clean-A clean-B clean-C clean-D: ok",
        ours="A B C D clean-A clean-B clean-C clean-D: succeeded",
        check=both(after("B", "clean-A"), after("C", "clean-A"), after("D", "clean-B", "clean-C")),
    ),
    Row(
        id="A7b fails",
        pipeline=these.cleaned,
        parameters={"fails": "B"},
        theirs="A C clean-A clean-B clean-C: ok, B: fail, D: omit",
        their_run="fail",
        ours="A C clean-A clean-B clean-C clean-D: succeeded, B: failed error, D: skipped upstream",
        our_run="failed",
        differs="a cleanup is a finaliser of its own, so that of D, which did not run, runs, too",
    ),
    Row(
        id="A7c",
        pipeline=these.hooked,
        theirs="running main at-exit: ok",
        ours="running main at-exit: succeeded",
        differs="what is to happen once when a run runs is a step without parents, or a subscriber to its events",
        check=both(attempts(running=1, **{"at-exit": 1}), after("at-exit", "running", "main")),
    ),
    # ---- A8
    Row(
        id="A8a",
        pipeline=these.third_time,
        theirs="flaky: ok",
        ours="flaky: succeeded",
        value=["attempt 3"],
        differs="attempts are counted from 1",
        check=attempts(flaky=3),
    ),
    Row(
        id="A8b",
        pipeline=these.never,
        theirs="broken: fail",
        their_run="fail",
        ours="broken: failed error",
        our_run="failed",
        check=attempts(broken=11),
    ),
    Row(
        id="A8c",
        pipeline=these.backs_off,
        theirs="broken: fail",
        their_run="fail",
        ours="broken: failed error",
        our_run="failed",
        # Waits of 0.01, 0.02, 0.04, 0.05, 0.05, …; the one that would end after 0.6 is not made.
        check=both(ended_between(0.55, "broken"), says("broken", "would begin more than 0.6 s after the first)")),
    ),
    Row(
        id="A8d",
        pipeline=these.what_is_retried,
        theirs="exit-exits exit-outside exit-both outside-exits outside-outside outside-both: fail",
        ours="exit-exits exit-outside exit-both outside-exits outside-outside outside-both: failed error",
        differs="exceptions say what is retried; an attempt lost with its worker is always followed by another",
        check=attempts(
            **{"exit-exits": 2, "exit-outside": 1, "exit-both": 2},
            **{"outside-exits": 1, "outside-outside": 2, "outside-both": 2},
        ),
    ),
    Row(
        id="A8d lost",
        pipeline=these.loses_its_worker,
        theirs="lost: ok",
        ours="lost: succeeded",
        dies="doomed",
        value=2,
        differs="there a policy has to ask for it; here what is lost is tried again without being charged to retries",
        check=attempts(lost=2),
        not_in=dict.fromkeys(("local", "debug"), "its worker is the process that has the run: both would be gone"),
    ),
    Row(
        id="A8e",
        pipeline=these.while_it_helps,
        parameters={"codes": [2, 2, 1], "token": "A8e", "flag": True},
        theirs="judged: fail",
        their_run="fail",
        ours="judged: failed error",
        our_run="failed",
        differs="no expression decides about another attempt, but the class of what the step raises",
        check=attempts(judged=3),
    ),
    Row(
        id="A8e once",
        pipeline=these.while_it_helps,
        parameters={"codes": [2], "token": "A8e once", "flag": False},
        theirs="judged: fail",
        their_run="fail",
        ours="judged: failed error",
        our_run="failed",
        differs="as A8e",
        check=attempts(judged=1),
    ),
    # ---- A9
    Row(
        id="A9a",
        pipeline=these.loop,
        theirs="A B[0] B[1] B[2] C: ok",
        ours="A B B[0] B[1] B[2] C: succeeded",
        value=["foo", "bar", "baz"],
        check=both(after("B[1]", "A"), after("C", "B[0]", "B[1]", "B[2]")),
    ),
    Row(
        id="A9b",
        pipeline=these.expanded,
        parameters={"found": [*range(20, 31)]},
        theirs=f"list {ELEVEN} then: ok",
        ours=f"list each {ELEVEN} then: succeeded",
        value=[*range(20, 31)],
    ),
    Row(
        id="A9b empty",
        pipeline=these.expanded,
        parameters={"found": []},
        theirs="list then: ok",
        ours="list each then: succeeded",
        value=[],
    ),
    Row(
        id="A9b no list",
        pipeline=these.expanded,
        parameters={"found": "20..30"},
        theirs="list: ok, each: fail, then: omit",
        their_run="fail",
        ours="list: succeeded, each: failed output, then: skipped upstream",
        our_run="failed output",
        check=says("each", "is mapped over what is no list: value is of type str; it takes a list or a tuple"),
    ),
    Row(
        id="A9c",
        pipeline=these.sequences,
        theirs=f"{SEQUENCES}: ok",
        ours=f"count to from down named {SEQUENCES}: succeeded",
        differs="sequences have no words of their own: range, a step and a format are Python's",
        value={
            "count": [0, 1, 2, 3, 4],
            "to": [100, 101, 102, 103, 104, 105],
            "from": [200, 201, 202],
            "down": [5, 4, 3, 2, 1, 0],
            "named": ["testuser00", "testuser01", "testuser02", "testuser03", "testuser04"],
        },
    ),
    # ---- A12
    Row(
        id="A12",
        pipeline=these.release,
        theirs="build approve delay release: ok",
        ours="build approve delay release: succeeded",
        answers={"approve": "looks good\n✓"},
        value="looks good\n✓",
        check=both(ended_between(0.2, "delay"), after("release", "delay")),
    ),
    Row(
        id="A12 restarted",
        pipeline=these.release,
        theirs="build approve delay release: ok",
        ours="build approve delay release: succeeded",
        answers={"approve": "after the restart"},
        restarts=True,
        value="after the restart",
        check=both(ended_between(0.2, "delay"), after("release", "delay")),
        not_in={"debug": "no controller is there that could end: all is one call"},
    ),
    Row(
        id="A12 stopped",
        pipeline=these.release,
        theirs="build: ok, approve: fail, delay release: never",
        their_run="fail",
        ours="build: succeeded, approve delay release: cancelled request",
        our_run="cancelled request",
        differs="who stops a run cancels it: it has not failed, and neither has what was not done",
        cancel_at=[("approve", "started")],
    ),
    # ---- A13
    Row(
        id="A13a",
        pipeline=these.limited,
        theirs="A C: ok, B: timeout",
        their_run="fail",
        ours="A C: succeeded, B: failed timeout",
        our_run="failed timeout",
    ),
    Row(
        id="A13b",
        pipeline=these.out_of_time,
        theirs="long-0 long-1 long-2 nowhere-0 nowhere-1 nowhere-2: fail",
        their_run="fail",
        ours="long-0 long-1 long-2 nowhere-0 nowhere-1 nowhere-2: cancelled deadline",
        our_run="failed deadline",
        differs="the run has failed, its steps were cancelled for the reason `deadline`",
        in_debug={"seconds": 0.55},
    ),
    Row(
        id="A13c",
        pipeline=these.each_attempt,
        theirs="B: timeout",
        their_run="fail",
        ours="B: failed timeout",
        our_run="failed timeout",
        check=attempts(B=2),
    ),
    Row(
        id="A13c all",
        pipeline=these.all_attempts,
        theirs="B: timeout",
        their_run="fail",
        ours="B: failed timeout",
        our_run="failed timeout",
        check=both(several_attempts("B"), says("B", "would begin more than 1 s after the first)")),
    ),
    # ---- A14
    Row(
        id="A14a first",
        after="A14a",
        pipeline=these.remembered,
        parameters={"token": "A14a", "ttl_s": 2},
        theirs="hello: ok",
        ours="hello: succeeded",
        value="world",
    ),
    Row(
        id="A14a second",
        after="A14a",
        pipeline=these.remembered,
        parameters={"token": "A14a", "ttl_s": 2},
        theirs="hello: cached",
        ours="hello: cached",
        value="world",
        check=called(A14a=1),
    ),
    Row(
        id="A14a third",
        after="A14a",
        pause_s=2,
        pipeline=these.remembered,
        parameters={"token": "A14a", "ttl_s": 2},
        theirs="hello: ok",
        ours="hello: succeeded",
        value="world",
        check=called(A14a=2),
    ),
    Row(
        id="A14b first",
        after="A14b",
        pipeline=these.items,
        parameters={"token": "A14b"},
        broken=["A14b 2"],
        theirs="item-1 item-3 save: ok, item-2: fail",
        their_run="fail",
        ours="item-1 item-3 save: succeeded, item-2: failed error",
        our_run="failed",
    ),
    Row(
        id="A14b second",
        after="A14b",
        pipeline=these.items,
        parameters={"token": "A14b"},
        theirs="item-1 item-2 item-3 save: ok",
        ours="item-1 item-3: cached, item-2 save: succeeded",
        differs="what was done is `cached`; there the step runs and finds its marker",
        check=called(A14b_1=1, A14b_2=2, A14b_3=1),
    ),
    # ---- F1
    Row(
        id="F1 true",
        pipeline=these.branches,
        parameters={"first": "true_1"},
        theirs="branch_1 true_1 join_1: ok, false_1 branch_2 true_2 false_2 join_2 false_3: skip",
        ours="branch_1 true_1 join_1: succeeded, false_1 branch_2 true_2 false_2 join_2 false_3: skipped condition",
    ),
    Row(
        id="F1 false",
        pipeline=these.branches,
        parameters={"first": "false_1"},
        theirs="branch_1 false_1 branch_2 true_2 join_2 false_3 join_1: ok, true_1 false_2: skip",
        ours="branch_1 false_1 branch_2 true_2 join_2 false_3 join_1: succeeded, true_1 false_2: skipped condition",
    ),
    Row(
        id="F1 unknown",
        pipeline=these.branches,
        parameters={"first": "nowhere"},
        theirs="branch_1: fail, true_1 false_1 branch_2 true_2 false_2 join_2 false_3 join_1: omit",
        their_run="fail",
        ours="branch_1: failed error, true_1 false_1 branch_2 true_2 false_2 join_2 false_3 join_1: skipped upstream",
        our_run="failed",
        differs="a branch is a step that gives a value: it checks itself that it gives one that there is",
    ),
    # ---- F3
    Row(
        id="F3 all_success",
        pipeline=these.skipping("all_succeeded"),
        theirs="skipper join final: skip, normal: ok",
        ours="skipper join final: skipped condition, normal: succeeded",
    ),
    Row(
        id="F3 one_success",
        pipeline=these.skipping("any_succeeded"),
        theirs="skipper: skip, normal join final: ok",
        ours="skipper: skipped condition, normal join final: succeeded",
    ),
    Row(
        id="F3 all_success itself",
        pipeline=these.skipping("all_succeeded", itself=True),
        theirs="skipper join final: skip, normal: ok",
        ours="skipper join final: skipped condition, normal: succeeded",
        check=both(attempts(skipper=1, join=0), says("skipper", "it always skips")),
    ),
    Row(
        id="F3 one_success itself",
        pipeline=these.skipping("any_succeeded", itself=True),
        theirs="skipper: skip, normal join final: ok",
        ours="skipper: skipped condition, normal join final: succeeded",
    ),
    # ---- F5
    Row(
        id="F5 sum",
        pipeline=these.one_mapped,
        theirs="add_one[0] add_one[1] add_one[2] sum: ok",
        ours="add_one add_one[0] add_one[1] add_one[2] sum: succeeded",
        value=9,
    ),
    Row(
        id="F5",
        pipeline=these.two_mapped,
        theirs="list times_2[0] times_2[1] times_2[2] add_10[0] add_10[1] add_10[2]: ok",
        ours="list times_2 times_2[0] times_2[1] times_2[2] add_10 add_10[0] add_10[1] add_10[2]: succeeded",
        value=[12, 14, 16],
        differs="add_10[1] begins when times_2[1] has ended, whatever its siblings do",
        check=both(*(after(f"add_10[{i}]", f"times_2[{i}]") for i in range(3))),
    ),
    Row(
        id="F5 empty",
        pipeline=these.one_mapped,
        parameters={"numbers": ()},
        theirs="add_one sum: skip",
        ours="add_one sum: succeeded",
        value=0,
        differs="a list without elements gives a list without elements, and what takes it runs",
    ),
    # ---- F7
    Row(id="F7", pipeline=these.one_teardown, theirs="s work t: ok", ours="s work t: succeeded"),
    Row(
        id="F7(1)",
        pipeline=these.sections,
        theirs="os ow is iw it ot: ok",
        ours="os ow goes is iw it ot: succeeded",
    ),
    Row(
        id="F7(2)",
        pipeline=these.sections,
        parameters={"fails": "iw"},
        theirs="os ow is it ot: ok, iw: fail",
        their_run="fail",
        ours="os ow goes is it ot: succeeded, iw: failed error",
        our_run="failed",
    ),
    Row(
        id="F7(3)",
        pipeline=these.sections,
        parameters={"fails": "is"},
        theirs="os ow ot: ok, is: fail, iw it: omit",
        their_run="fail",
        ours="os ow goes ot: succeeded, is: failed error, iw: skipped upstream, it: skipped condition",
        our_run="failed",
    ),
    Row(
        id="F7(4)",
        pipeline=these.sections,
        parameters={"fails": "os"},
        theirs="os: fail, ow is iw it ot: omit",
        their_run="fail",
        ours="os: failed error, ow goes is iw: skipped upstream, it ot: skipped condition",
        our_run="failed",
    ),
    Row(
        id="F7(5)",
        pipeline=these.sections,
        parameters={"fails": "ot"},
        theirs="os ow is iw it: ok, ot: fail",
        ours="os ow goes is iw it: succeeded, ot: failed error",
        differs='a teardown says that its failure does not count: on_failure="skip"',
    ),
    Row(
        id="F7(6)",
        pipeline=these.sections,
        parameters={"skips": "is"},
        theirs="os ow ot: ok, is iw it: skip",
        ours="os ow goes ot: succeeded, is iw it: skipped condition",
    ),
    Row(
        id="F7(7) first",
        after="F7(7)",
        pipeline=these.work_again,
        parameters={"token": "F7"},
        theirs="before s work t: ok",
        ours="before s work t: succeeded",
    ),
    Row(
        id="F7(7)",
        after="F7(7)",
        pipeline=these.work_again,
        parameters={"token": "F7"},
        refresh=("work",),
        theirs="before: cached, s work t: ok",
        ours="before: cached, s work t: succeeded",
        differs="what has effects is not cached, so it runs in every run; `refresh` names what else is to run again",
        check=called(F7_before=1, F7_s=2, F7_work=2, F7_t=2),
    ),
    Row(
        id="F7(8)",
        pipeline=these.sections,
        parameters={"waits": True},
        theirs="os it ot: ok, ow: fail",
        their_run="fail",
        ours="os goes is iw it ot: succeeded, ow: cancelled request",
        our_run="cancelled request",
        differs="a run is cancelled, it cannot be marked failed by hand; its finalisers run all the same",
        cancel_at=[("ow", "started"), ("it", "succeeded")],
        in_debug={"last": True},
    ),
    # ---- F11
    Row(
        id="F11",
        pipeline=these.groups,
        theirs="start section_1-task_1 section_1-task_2 section_1-task_3 section_2-task_1 section_2-inner-task_2 "
        "section_2-inner-task_3 section_2-inner-task_4 end: ok",
        ours="start section_1-task_1 section_1-task_2 section_1-task_3 section_2-task_1 section_2-inner-task_2 "
        "section_2-inner-task_3 section_2-inner-task_4 end: succeeded",
        differs="a group is the common beginning of names",
        check=both(
            after("section_2-task_1", "section_1-task_2", "section_1-task_3"),
            after("section_2-inner-task_2", "section_1-task_2", "section_1-task_3"),
            after("end", "section_2-task_1", "section_2-inner-task_4"),
        ),
    ),
    Row(
        id="F11 fails",
        pipeline=these.groups,
        parameters={"fails": True},
        theirs="start section_1-task_1 section_1-task_3: ok, section_1-task_2: fail, section_2-task_1 "
        "section_2-inner-task_2 section_2-inner-task_3 section_2-inner-task_4 end: omit",
        their_run="fail",
        ours="start section_1-task_1 section_1-task_3: succeeded, section_1-task_2: failed error, section_2-task_1 "
        "section_2-inner-task_2 section_2-inner-task_3 section_2-inner-task_4 end: skipped upstream",
        our_run="failed",
    ),
    # ---- C1
    Row(
        id="C1 first",
        after="C1",
        pipeline=these.lazy,
        parameters={"token": "C1"},
        theirs="load split fit score: ok",
        ours="load split fit score: succeeded",
        value=14 / 22,
    ),
    Row(
        id="C1 second",
        after="C1",
        pipeline=these.lazy,
        parameters={"token": "C1"},
        theirs="load split fit score: cached",
        ours="load split fit score: cached",
        value=14 / 22,
    ),
    Row(
        id="C1 other seed",
        after="C1",
        pipeline=these.lazy,
        parameters={"token": "C1", "seed": 3},
        theirs="load: cached, split fit score: ok",
        ours="load: cached, split fit score: succeeded",
        value=22 / 30,
    ),
    Row(
        id="C1 changed",
        pipeline=these.asks,
        parameters={"token": "C1 changed", "seed": 6},
        theirs="load split fit score: ok",
        ours="load split fit score: succeeded",
        value=38 / 46,
    ),
    Row(
        id="C1 veto",
        pipeline=these.asks,
        parameters={"token": "C1 veto", "seed": -1},
        theirs="load: ok, split fit score: never",
        ours="load: succeeded, split fit score: skipped condition",
        differs="the callback is a decorator, so there is an attempt, which ends when it says no",
        check=both(attempts(split=1, fit=0), says("split", "the callback said no")),
    ),
]
