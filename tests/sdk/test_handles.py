"""Handles: what may be done with a value that is not there yet, and a sentence for everything else."""

# ruff: noqa: FURB171, ISC004, PLW0108, RUF015 - a sentence in a table; each way to use a handle as it is written

import asyncio
import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from evpipe import NotKnownYet, UsageError, pipeline
from evpipe.core.bindings import OutputRef
from tests.sdk import sample as typed_sample

#: Without types: most of what is done to handles here is what a type checker would refuse, too.
sample: Any = typed_sample


def in_a_build(use: Callable[[], Any]) -> Any:
    """Run `use` as the body of a pipeline and give what it returned, as the graph has it."""
    return pipeline(name="p")(lambda: use()).build({}).graph.output


def load() -> Any:
    return sample.load(1)


def train() -> Any:
    return sample.train(load())


def _set(handle: Any) -> None:
    handle["a"] = 1


def _set_attribute(handle: Any) -> None:
    handle.a = 1


def _delete(handle: Any) -> None:
    del handle["a"]


def _with(handle: Any) -> None:
    with handle:
        pass


def _await(handle: Any) -> None:
    async def wait() -> None:
        await handle

    asyncio.run(wait())


def _loop(handle: Any) -> None:
    for _ in handle:
        pass


def _unpack(handle: Any) -> None:
    _a, _b = handle


CONDITION = "used as a condition: give it to a step as when=…, or pass it to a step and decide there"
CALCULATED = "calculated with: pass it to a step and calculate there"
TEXT = "made text: pass it to a step and show it there (repr() names the handle)"
NUMBER = "made a number: pass it to a step and do that there"
CHANGED = "changed: pass it to a step that returns the changed value"
ENTERED = "entered with `with`: pass it to a step and enter it there"
COPIED = "copied or pickled: pass the handle itself on, to as many steps as need it"
ITERATED = "iterated over or unpacked: pass it whole to a step (to unpack it, annotate 'load' with a fixed tuple[A, B])"

MISUSES: list[tuple[Callable[[Any], Any], str]] = [
    (bool, CONDITION),
    (lambda h: 1 if h else 2, CONDITION),
    (lambda h: h and 1, CONDITION),
    (lambda h: not h, CONDITION),
    (_loop, ITERATED),
    (_unpack, ITERATED),
    (lambda h: [*h], ITERATED),
    (list, ITERATED),
    (sum, ITERATED),
    (len, "measured with len(): take its length in a step"),
    (lambda h: 1 in h, "searched with in: pass it to a step and search it there"),
    (lambda h: h + 1, CALCULATED),
    (lambda h: 1 - h, CALCULATED),
    (lambda h: h @ h, CALCULATED),
    (lambda h: -h, CALCULATED),
    (round, CALCULATED),
    (math.floor, CALCULATED),
    (abs, CALCULATED),
    (str, TEXT),
    (lambda h: f"{h}", TEXT),
    (lambda h: f"{h:.2f}", TEXT),
    (lambda h: "%s" % h, TEXT),  # noqa: UP031 - one of the ways
    (int, NUMBER),
    (float, NUMBER),
    (range, NUMBER),
    (lambda h: [1, 2][h], NUMBER),
    (bytes, "made bytes or a path: pass it to a step and do that there"),
    (open, "made bytes or a path: pass it to a step and do that there"),
    (lambda h: h(), "called: pass it to a step and call it there"),
    (_await, "awaited: a step that takes it as an argument runs when it is there"),
    (next, "iterated over: pass it whole to a step"),
    (_with, ENTERED),
    (_set, CHANGED),
    (_set_attribute, CHANGED),
    (_delete, CHANGED),
    (lambda h: h[1:], "sliced: pass it whole to a step and slice it there"),
    (
        lambda h: h[1.5],
        "indexed by 1.5: take a part by a text key or a whole number, or index it in a step",
    ),
    (lambda h: h.mean(), "asked for its attribute 'mean': use it in a step and return what you need"),
    (lambda h: h._asdict(), "asked for its attribute '_asdict': use it in a step and return what you need"),
    (copy.copy, COPIED),
    (copy.deepcopy, COPIED),
    (pickle.dumps, COPIED),
]


@pytest.mark.parametrize(("misuse", "problem"), MISUSES)
def test_a_misuse_of_a_handle_is_refused_at_its_line(misuse: Callable[[Any], Any], problem: str) -> None:
    """A body that goes on with a placeholder as if it were the value would go wrong far away."""
    with pytest.raises(NotKnownYet) as caught:
        in_a_build(lambda: misuse(load()))
    assert str(caught.value) == (
        f"the value of step 'load' is not known while the pipeline is being built, so it cannot be {problem}"
    )


PARTS: list[tuple[Callable[[], Any], tuple[Any, ...]]] = [
    (lambda: train()["score"], ("score",)),
    (lambda: load()[0], (0,)),
    (lambda: load()[-1], (-1,)),
    (lambda: sample.show()["any"][3]["thing"], ("any", 3, "thing")),
    (lambda: sample.split(load()).train, ("train",)),
    (lambda: sample.split(load()).test["score"], ("test", "score")),
    (lambda: sample.split(load())["test"], ("test",)),
    (lambda: sample.split(load())[-1], (1,)),
    (lambda: sample.pair(1)[0]["model"], (0, "model")),
    (lambda: [*sample.pair(1)][1], (1,)),
    (lambda: sample.bounds(1)["high"], ("high",)),
    (lambda: sample.bounds(1)[1], ("high",)),
    (lambda: [*sample.bounds(1)][0], ("low",)),
    (lambda: sample.fits(1)[7]["score"], (7, "score")),
    (lambda: sample.fetch("x")["score"], ("score",)),
]


@pytest.mark.parametrize(("use", "path"), PARTS)
def test_a_part_of_a_handle_is_a_reference(use: Callable[[], Any], path: tuple[Any, ...]) -> None:
    """Keys, indexes and fields become the path of a reference, checked as far as annotations tell."""
    output = in_a_build(use)
    assert isinstance(output, OutputRef)
    assert output.path == path


WRONG_PARTS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: train()["scroe"],
        "the value of step 'train' has no output 'scroe'; did you mean 'score'? (it has 'model', 'score')",
    ),
    (
        lambda: sample.split(load()).tset,
        "the value of step 'split' has no output 'tset'; did you mean 'test'? (it has 'train', 'test')",
    ),
    (
        lambda: sample.split(load()).test["modle"],
        "split['test'] has no output 'modle'; did you mean 'model'? (it has 'model', 'score')",
    ),
    (
        lambda: sample.fits(1)[0]["x"],
        "fits[0] has no output 'x' (it has 'model', 'score')",
    ),
    (
        lambda: sample.bounds(1)["hihg"],
        "the value of step 'bounds' has no output 'hihg'; did you mean 'high'? (it has 'low', 'high')",
    ),
    (lambda: train()[0], "the value of step 'train' has no index 0: its outputs are ['model'] and ['score']"),
    (
        lambda: sample.pair(1)[2],
        "the value of step 'pair' has no index 2: it has 2 parts",
    ),
    (
        lambda: sample.pair(1)["a"],
        "the value of step 'pair' has no output 'a': it is a tuple of 2 without names",
    ),
    (
        lambda: train().score,
        "the value of step 'train' is not known while the pipeline is being built, so it cannot be asked for its "
        "attribute 'score': its outputs are ['model'] and ['score']",
    ),
    (
        lambda: [*train()],
        "the value of step 'train' is not known while the pipeline is being built, so it cannot be iterated over "
        "or unpacked: its outputs are ['model'] and ['score']",
    ),
]


@pytest.mark.parametrize(("use", "sentence"), WRONG_PARTS)
def test_a_part_that_cannot_be_there_is_refused_at_its_line(use: Callable[[], Any], sentence: str) -> None:
    """A misspelt name costs a second, not the run that would end with it."""
    with pytest.raises(UsageError) as caught:
        in_a_build(use)
    assert str(caught.value) == sentence


def test_debuggers_and_dicts_may_look_at_a_handle() -> None:
    """repr, hash, identity, len of a known length and protocol look-ups never raise."""

    def body() -> None:
        handle = train()
        assert repr(handle) == "<handle train of pipeline 'p'>"
        assert f"{handle['score']!r}" == "<handle train['score'] of pipeline 'p'>"
        assert {handle: 1}[handle] == 1
        assert handle in [handle]
        assert not hasattr(handle, "_repr_html_")
        assert len(sample.pair(1)) == 2
        assert "__getitem__" in dir(handle)

    in_a_build(body)


FOREIGN = "a handle can only be used in the body of its own pipeline, while that is built"


def test_a_handle_is_no_good_after_its_build() -> None:
    """A handle that was kept would name a step of another graph, or of none."""
    kept: list[Any] = []
    in_a_build(lambda: kept.append(load()))
    ended = f"<handle load of pipeline 'p'> is from a build that has ended: {FOREIGN}"
    uses: list[tuple[Callable[[], Any], str]] = [
        (lambda: kept[0][0], ended),
        (lambda: sample.train(kept[0]), f"step 'train': {ended}"),
        (lambda: in_a_build(lambda: sample.train(kept[0])), f"argument 'data' of step 'train': {ended}"),
        (lambda: in_a_build(lambda: sample.load.options(after=kept)(1)), f"step 'load': after: {ended}"),
        (lambda: in_a_build(lambda: kept), f"the value returned by pipeline 'p': {ended}"),
    ]
    for use, sentence in uses:
        with pytest.raises(UsageError) as caught:
            use()
        assert str(caught.value) == sentence


def test_a_handle_is_no_good_in_a_build_inside_its_own() -> None:
    """Two graphs that are built at the same time do not share handles."""

    def outer() -> None:
        handle = load()
        in_a_build(lambda: sample.train(handle))

    with pytest.raises(UsageError) as caught:
        in_a_build(outer)
    assert str(caught.value) == (
        f"argument 'data' of step 'train': <handle load of pipeline 'p'> is from another pipeline: {FOREIGN}"
    )


def test_a_handle_is_no_value_of_a_parameter() -> None:
    """A pipeline that is built inside another one gets values, never the other one's handles."""

    def inner(anything: Any) -> Any:
        return anything

    with pytest.raises(UsageError) as caught:
        in_a_build(lambda: pipeline(inner).build({"anything": [load()]}))
    assert str(caught.value) == (
        f"parameter 'anything' of pipeline 'inner': <handle load of pipeline 'p'> is from another pipeline: {FOREIGN}"
    )
