"""The scenarios of other engines as evpipe's pipelines. Seconds are hundredths, what is random is fixed.

All steps run in the process that tests them, so what they share stands in this module.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import anyio

from evpipe import (
    Cache,
    CommandFailed,
    Pipeline,
    Retry,
    RunSummary,
    SkipStep,
    approval,
    command,
    current,
    exit_status,
    one_of,
    pipeline,
    sleep,
    step,
)
from evpipe.sdk.options import RunIfName

#: How often a step was called, by whatever tells it apart.
CALLS: Counter[str] = Counter()
#: Who has come to a place where several meet.
_MET: defaultdict[str, set[str]] = defaultdict(set)
_ALL_MET: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)


@step
async def done(*inputs: Any) -> str:
    return "done"


@step
async def bad(*inputs: Any) -> str:
    message = "bad"
    raise ValueError(message)


@step
async def give(value: Any) -> Any:
    return value


#: Is told of a step when its body begins.
TELL: list[Callable[[str], None]] = []


@step
async def take(seconds: float) -> str:
    for tell in TELL:
        tell(current().step)
    await anyio.sleep(seconds)
    return "done"


@step
async def meet(place: str, name: str, *inputs: Any, count: int = 2) -> str:
    """Wait until so many have come: steps that cannot overlap never end."""
    if place:
        _MET[place].add(name)
        if len(_MET[place]) >= count:
            _ALL_MET[place].set()
        await _ALL_MET[place].wait()
    return name


def start_again() -> None:
    """Forget what was counted, and who has met."""
    for remembered in (CALLS, _MET, _ALL_MET, BROKEN, TELL):
        remembered.clear()


def task(name: str, *after: Any, does: Any = done, **options: Any) -> Any:
    """A step of this name that needs these."""
    return does.options(name=name, after=list(after), **options)()


# ---- A1 diamonds


@pipeline
def diamond(place: str = "") -> None:
    """`place` is empty where two steps cannot run at the same time."""
    a = task("A")
    b = meet.options(name="B")(place, "B", a)
    c = meet.options(name="C")(place, "C", a)
    task("D", b, c)


@pipeline
def two_roots(place: str = "") -> None:
    a = task("A")
    b = meet.options(name="B")(place, "B")
    c = meet.options(name="C")(place, "C", a)
    task("D", a, b)
    task("last", c)


@pipeline
def subset(target: str = "") -> None:
    """The body is Python: it adds what the target needs."""
    a = task("A")
    c = task("C", a)
    if not target:
        task("D", task("B", a), c)
    task("E", c)


@pipeline
def diamond_of_diamonds() -> str:
    def inner(outer: str, *after: Any) -> Any:
        a = give.options(name=f"{outer}-A", after=list(after))(f"{outer}A")
        b, c = (give.options(name=f"{outer}-{name}", after=[a])(outer + name) for name in "BC")
        return give.options(name=f"{outer}-D", after=[b, c])(f"{outer}D")

    a = inner("A")
    found: str = inner("D", inner("B", a), inner("C", a))
    return found


@pipeline
def inner_diamond(outer: str, before: tuple[str, ...] = ()) -> str:
    a = give.options(name="A")(f"{outer}A")
    b, c = (give.options(name=name, after=[a])(outer + name) for name in "BC")
    found: str = give.options(name="D", after=[b, c])(f"{outer}D")
    return found


@pipeline
def diamond_of_pipelines() -> str:
    a = inner_diamond.options(name="A")("A")
    b, c = (inner_diamond.options(name=name)(name, (a,)) for name in "BC")
    return inner_diamond.options(name="D")("D", (b, c))


# ---- A2, A3 dependencies on outcomes


@pipeline
def expressions(on_failure: str = "fail") -> None:
    a = task("A")
    b = task("B", a)
    c = task("C", a, does=bad, on_failure=on_failure)
    task("x1", c, run_if="all_done", when=a)
    x2 = task("x2", b, c, run_if="any_succeeded")
    x3 = task("x3", b, c)
    task("x4", x2, x3, run_if="any_succeeded")


@pipeline
def after_failure() -> None:
    a = task("A")
    b = task("B", a, does=bad)
    c = task("C", a)
    task("D", b, c, run_if="any_failed", when=c)
    e = task("E", a, does=bad)
    f = task("F", a)
    task("G", e, f)


@pipeline
def goes_on() -> None:
    s = task("S", does=bad, on_failure="skip")
    task("failed", s, run_if="any_failed")
    task("went", s)


# ---- A5 conditions


def of_a_text() -> Pipeline:
    p = Pipeline("of_a_text")
    flag = p.param("flag", str)
    for name in ("one", "two", "three"):
        p.step(name, done, when=flag == "true")
    return p


@pipeline
def coin() -> dict[str, Any]:
    flip = give.options(name="flip")("heads")
    h = give.options(name="H", when=flip == "heads")("heads")
    t = give.options(name="T", when=flip == "tails")("tails")
    told = give.options(name="told", run_if="all_done")(t)
    return {"value": one_of(h, t), "of tails": told}


# ---- A7 handlers


@step
async def notify(about: RunSummary) -> list[Any]:
    assert about["run"]
    return [
        about["pipeline"],
        about["status"],
        about["duration_s"] >= 0,
        [failed["step"] for failed in about["failed"]],
    ]


@pipeline(
    on_exit=[
        notify,
        done.options(name="celebrate", when=exit_status == "succeeded"),
        done.options(name="cry", when=exit_status != "succeeded"),
    ]
)
def handled(*, fails: bool) -> None:
    task("main", does=bad if fails else done)


@pipeline
def cleaned(fails: str = "") -> None:
    def with_cleanup(name: str, *after: Any) -> Any:
        this = task(name, *after, does=bad if name == fails else done)
        return [this, task(f"clean-{name}", this, run_if="always")]

    a = with_cleanup("A")
    with_cleanup("D", *with_cleanup("B", *a), *with_cleanup("C", *a))


@pipeline(on_exit=done.options(name="at-exit"))
def hooked() -> None:
    task("running")
    task("main")


# ---- A8 retries


@pipeline
def third_time() -> Any:
    """Exit codes 1, 1, 0."""
    tries = command("test $EVPIPE_ATTEMPT -ge 3 && echo attempt $EVPIPE_ATTEMPT", shell=True, outputs="lines")
    return tries.options(name="flaky", retries=Retry(10, delay_s=0))()


@pipeline
def never() -> None:
    task("broken", does=bad, retries=Retry(10, delay_s=0))


@pipeline
def backs_off() -> None:
    """Seconds are hundredths: a minute is 0.6."""
    policy = Retry(1000, delay_s=0.01, factor=2, delay_max_s=0.05, jitter=0, within_s=0.6)
    task("broken", does=bad, retries=policy)


@step
async def outside() -> None:
    message = "the network is away"
    raise ConnectionError(message)


@pipeline
def what_is_retried() -> None:
    """Of an exit alone, of something outside alone, of both."""
    exits = command("exit 1", shell=True)
    for name, on in (("exits", (CommandFailed,)), ("outside", (OSError,)), ("both", ())):
        policy = Retry(1, delay_s=0, on=on)
        exits.options(name=f"exit-{name}", retries=policy, on_failure="skip")()
        outside.options(name=f"outside-{name}", retries=policy, on_failure="skip")()


@step(queue="doomed")
async def outlives_its_worker() -> int:
    """Stay for as long as its first worker lives; gives the attempt that did not."""
    if current().attempt == 1:
        await anyio.sleep_forever()
    return current().attempt


@pipeline
def loses_its_worker() -> int:
    return outlives_its_worker.options(name="lost")()


class WorthAnother(Exception):
    """What a step raises when another attempt may help."""


@step(retries=Retry(10, delay_s=0, on=(WorthAnother,)))
async def judged(codes: list[int], flag: bool, token: str) -> None:
    """Decide about another attempt where all is known that it depends on."""
    code = codes[CALLS[token]]
    CALLS[token] += 1
    message = f"exit code {code}"
    raise WorthAnother(message) if code > 1 and flag else RuntimeError(message)


@pipeline
def while_it_helps(codes: list[int], token: str, *, flag: bool) -> None:
    judged(codes, flag, token)


# ---- A9, F5 lists


@step
async def add(number: int, to: int = 1) -> int:
    return number + to


@step
async def times_2(number: int) -> int:
    return number * 2


@step
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@pipeline
def loop() -> Any:
    a = task("A")
    b = give.options(name="B", after=[a]).map(["foo", "bar", "baz"])
    task("C", b)
    return b


@pipeline
def expanded(found: Any) -> Any:
    """The list is known when the first step has given it."""
    children = give.options(name="each").map(give.options(name="list")(found))
    task("then", children)
    return children


@pipeline
def sequences() -> Any:
    """What Python has a word for is said in Python."""
    found = {
        "count": [*range(5)],
        "to": [*range(100, 106)],
        "from": [*range(200, 203)],
        "down": [*range(5, -1, -1)],
        "named": [f"testuser{i:02X}" for i in range(5)],
    }
    return {name: give.options(name=name).map(values) for name, values in found.items()}


@pipeline
def one_mapped(numbers: tuple[int, ...] = (1, 2, 3)) -> int:
    found: int = total.options(name="sum")(add.options(name="add_one").map(list(numbers)))
    return found


@pipeline
def two_mapped() -> Any:
    doubled = times_2.map(give.options(name="list")([1, 2, 3]))
    return add.options(name="add_10").map(doubled, to=10)


# ---- A12 approval


@pipeline
def release(nap_s: float = 0.2) -> str:
    built = task("build")
    said = approval("Release, with which note?", answer=str, name="approve", after=[built])
    delay = sleep(nap_s, after=[said], name="delay")
    found: str = give.options(name="release", after=[delay])(said)
    return found


# ---- A13 time-outs


@pipeline
def limited() -> None:
    a = take.options(name="A", timeout_s=5)(0.05)
    take.options(name="B", timeout_s=0.05, after=[a])(0.15)
    take.options(name="C", timeout_s=5, after=[a])(0.05)


@pipeline(deadline_s=0.5)
def out_of_time(seconds: float = 86_400) -> None:
    for i in range(3):
        take.options(name=f"long-{i}")(seconds)
        take.options(name=f"nowhere-{i}", queue="nobody")(0)


@pipeline
def each_attempt() -> None:
    take.options(name="B", timeout_s=0.05, retries=Retry(1, delay_s=0))(0.15)


@pipeline
def all_attempts() -> None:
    take.options(name="B", timeout_s=0.05, retries=Retry(1000, delay_s=0, within_s=1))(0.15)


# ---- A14 results that are used again

#: Items that are broken today.
BROKEN: set[str] = set()


@step
async def world(token: str) -> str:
    CALLS[token] += 1
    return "world"


@pipeline
def remembered(token: str, ttl_s: float = 60) -> str:
    return world.options(name="hello", cache=Cache(ttl_s=ttl_s))(token)


@step(cache=True)
async def item(token: str, number: int) -> int:
    CALLS[f"{token} {number}"] += 1
    if f"{token} {number}" in BROKEN:
        message = "not today"
        raise ValueError(message)
    return number


@pipeline
def items(token: str) -> None:
    found = [item.options(name=f"item-{number}")(token, number) for number in (1, 2, 3)]
    task("save", *found, run_if="always")


# ---- F1, F3 branches


@step
async def choose(chosen: str, of: tuple[str, ...]) -> str:
    if chosen not in of:
        message = f"there is no branch {chosen!r}"
        raise ValueError(message)
    return chosen


@pipeline
def branches(first: str, second: str = "true_2") -> None:
    branch_1 = choose.options(name="branch_1")(first, ("true_1", "false_1"))
    true_1 = task("true_1", when=branch_1 == "true_1")
    false_1 = task("false_1", when=branch_1 == "false_1")
    branch_2 = choose.options(name="branch_2", after=[false_1])(second, ("true_2", "false_2"))
    true_2 = task("true_2", when=branch_2 == "true_2")
    false_2 = task("false_2", when=branch_2 == "false_2")
    join_2 = done.options(name="join_2")(one_of(true_2, false_2))
    false_3 = task("false_3", join_2)
    done.options(name="join_1")(one_of(true_1, false_3))


@step(retries=2)
async def always_skips() -> str:
    message = "it always skips"
    raise SkipStep(message)


def skipping(rule: RunIfName, *, itself: bool = False) -> Pipeline:
    p = Pipeline("skipping")
    goes = p.param("goes", bool, default=False)
    skipper = p.step("skipper", always_skips) if itself else p.step("skipper", done, when=goes)
    normal = p.step("normal", done)
    join = p.step("join", done, after=[skipper, normal], run_if=rule)
    p.step("final", done, after=[join])
    return p


# ---- F7 setup and teardown


@pipeline
def one_teardown() -> None:
    s = task("s")
    teardown("t", s, task("work", s))


def teardown(name: str, setup: Any, *after: Any, **options: Any) -> Any:
    """What cleans up after a setup that went well, whatever became of the work; its own failure does not count."""
    options = {"run_if": "always", "when": setup, "on_failure": "skip", **options}
    return task(name, *after, **options)


@pipeline
def sections(fails: str = "", skips: str = "", waits: bool = False, last: bool = False) -> None:
    """`last` puts the work that waits after the other where two steps cannot run at the same time."""

    def does(name: str) -> dict[str, Any]:
        return {"does": bad if name == fails else done}

    outer = task("os", **does("os"))
    goes = give.options(name="goes", after=[outer])(skips != "is")
    inner = task("is", outer, when=goes, **does("is"))
    inner_work = task("iw", inner, **does("iw"))
    inner_end = teardown("it", inner, inner_work)
    work = take.options(name="ow", after=[outer, *([inner_end] if last else ())])(60) if waits else task("ow", outer)
    teardown("ot", outer, work, inner_end, **does("ot"))


@step(cache=True)
async def kept(token: str, name: str) -> str:
    CALLS[f"{token} {name}"] += 1
    return name


@pipeline
def work_again(token: str) -> None:
    """What has effects, as a setup and its teardown, is not cached."""
    before = kept.options(name="before")(token, "before")
    s = kept.options(name="s", after=[before], cache=False)(token, "s")
    work = kept.options(name="work", after=[s])(token, "work")
    kept.options(name="t", run_if="always", when=s, after=[work], cache=False)(token, "t")


# ---- F11 groups


@pipeline
def groups(fails: bool = False) -> None:
    start = task("start")
    one = task("section_1-task_1", start)
    leaves = [
        task("section_1-task_2", one, does=bad if fails else done),
        task("section_1-task_3", start),
    ]
    first = task("section_2-task_1", *leaves)
    inner = [task(f"section_2-inner-task_{i}", *leaves) for i in (2, 3)]
    last = task("section_2-inner-task_4", *inner)
    task("end", first, last)


# ---- C1 lazy data flow


@step(cache=True)
async def load(token: str) -> list[int]:
    return list(range(8))


@step(cache=True, outputs=("a", "b", "c", "d"))
async def split(data: list[int], seed: int) -> tuple[list[int], ...]:
    return tuple([value + seed for value in data[i::4]] for i in range(4))


@step(cache=True)
async def fit(a: list[int], b: list[int]) -> int:
    return sum(a) + sum(b)


@step(cache=True)
async def score(model: int, c: list[int], d: list[int]) -> float:
    return model / (sum(c) + sum(d))


@pipeline
def lazy(token: str, seed: int = 1) -> float:
    a, b, c, d = split(load(token), seed)
    return score(fit(a, b), c, d)


def asked_before(body: Any) -> Any:
    """A callback before a step, as a decorator: it changes an argument, or vetoes the step."""

    @functools.wraps(body)
    async def asked(data: list[int], seed: int) -> Any:
        if seed < 0:
            message = "the callback said no"
            raise SkipStep(message)
        return await body(data, seed + 1)

    return asked


@step(outputs=("a", "b", "c", "d"))
@asked_before
async def asked_split(data: list[int], seed: int) -> tuple[list[int], ...]:
    return await split.fn(data, seed)


@pipeline
def asks(token: str, seed: int) -> float:
    a, b, c, d = asked_split.options(name="split")(load(token), seed)
    return score(fit(a, b), c, d)
