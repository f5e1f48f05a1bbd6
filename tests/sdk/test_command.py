"""Commands: what is wrong with one is said where it is written, and what is in a value never becomes part of it."""

# ruff: noqa: ISC004 - a sentence in a table

from __future__ import annotations

import inspect
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evpipe import Cache, CommandResult, Mutex, Pipeline, Retry, UsageError, command, pipeline, step
from evpipe.core.graph import Step as GraphStep
from evpipe.sdk.command_line import CommandLine

train = command(
    "python train.py --lr {lr:.3f} 'of {x}' --json '{{\"a\": {lr}}}'",
    outputs={"model": Path("m-{x}.bin"), "score": "json.score"},
    cache=Cache(ignore=("x",)),
    retries=2,
)
loop = command('for i in "{{"; do echo $i {xs} {x} --a={x}; done # don\'t {x}', shell=True, name="loop")
ACCEPTED = (
    "str, int, float, bool, None (an empty text) and paths, and lists of them where the placeholder is a word of its "
    "own"
)
#: For what a type checker refuses.
loose: Any = command
loose_step: Any = step
DOUBLED = "a brace that is meant as one is doubled"

WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: command(""), "command 'command': it has no words: the first is the program"),
    (lambda: command("  ", shell=True), "command 'command': it has no words: the first is the program"),
    (lambda: command([]), "command 'command': it has no words: the first is the program"),
    (lambda: loose(3), "command 'command': a command is a text or a list of words, not 3"),
    (
        lambda: loose(["a", 3]),
        "command 'command': the command has 3: it must be a text, in which {x} is the value of x",
    ),
    (lambda: command(["a"], shell=True), "command 'command': with shell=True the command is one text, not ['a']"),
    (lambda: command("a {", name="b"), f"command 'b': 'a {{': Single '{{' encountered in format string; {DOUBLED}"),
    (
        lambda: command("a {0}"),
        f"command 'command': the placeholder {{0}} must be a name, as in {{lr}} or {{lr:.3f}}; {DOUBLED}",
    ),
    (
        lambda: command("a {x.y}"),
        f"command 'command': the placeholder {{x.y}} must be a name, as in {{lr}} or {{lr:.3f}}; {DOUBLED}",
    ),
    (
        lambda: command("a {x!q}"),
        "command 'command': the placeholder {x!q} has the conversion 'q': there are r, s and a",
    ),
    (
        lambda: command("a {x:{y}}"),
        "command 'command': the placeholder {x:{y}} has another inside, which cannot be",
    ),
    (
        lambda: command("a {x:%Y}"),
        "command 'command': the placeholder {x:%Y} has a format that fits neither numbers nor texts: '%Y'",
    ),
    (lambda: command("a 'b"), "command 'command': \"a 'b\" cannot be split into words: No closing quotation"),
    (
        lambda: command("a | b"),
        "command 'command': '|' is for a shell, and none runs this: give shell=True, or quote it if it is meant as an "
        "argument",
    ),
    (
        lambda: command("a 2>{x}"),
        "command 'command': '2>{}' is for a shell, and none runs this: give shell=True, or quote it if it is meant "
        "as an argument",
    ),
    (
        lambda: command("a '{x}'", shell=True),
        "command 'command': the placeholder {x} stands in quotes: values are quoted by evpipe, write it without",
    ),
    (
        lambda: command("a \\{x}", shell=True),
        "command 'command': the placeholder {x} stands in quotes: values are quoted by evpipe, write it without",
    ),
    (
        lambda: command("a", outputs={"m": "model.bin"}),
        "command 'command': 'model.bin' is no source of an output: accepted are Path('model.bin') for a file or a "
        "folder, 'exit_code', 'lines', 'json' and 'json.KEY'",
    ),
    (
        lambda: command("a", outputs="line"),
        "command 'command': 'line' is no source of an output: accepted are Path('line') for a file or a "
        "folder, 'exit_code', 'lines', 'json' and 'json.KEY'; did you mean 'lines'?",
    ),
    (
        lambda: command("a", outputs={"m": Path("/x")}),
        "command 'command': the output '/x' must be a path below the program's folder, such as 'out/model.bin'",
    ),
    (
        lambda: command("a", outputs=("a", "a")),
        "command 'command': outputs must be a dict, as in {'model': Path('model.bin'), 'score': 'json.score'}, "
        "names in the program's JSON in a tuple, or one source, not ('a', 'a')",
    ),
    (
        lambda: loose("a", ok_codes=3),
        "command 'command': ok_codes must be exit codes from 0 to 255 in a tuple, as in (0, 3), not 3",
    ),
    (lambda: command("a", env={"EVPIPE_RUN": "x"}), "command 'command': env has EVPIPE_RUN, which evpipe sets itself"),
    (
        lambda: command("a", env={"A=": "x"}),
        "command 'command': env has the name 'A=': it must be a text without '='",
    ),
    (lambda: command("a", retries=-1), "command 'a': retries: count must be a whole number from 0 to 1000, not -1"),
    (
        lambda: command("a {verbose}", cache=Cache(ignore=("verbos",))),
        "command 'a': Cache(ignore=…) names 'verbos', which it does not take; did you mean 'verbose'?",
    ),
    (lambda: train.words(lr=1), "command 'train': missing a required argument: 'x' (it takes: lr, x)"),
    (
        lambda: command("a {rate}").words(rat=1),
        "command 'a': got an unexpected keyword argument 'rat'; did you mean 'rate'? (it takes: rate)",
    ),
    (lambda: train.words(lr={}, x=1), f"command 'train': {{lr}} is given a dict: accepted are {ACCEPTED}"),
    (lambda: train.words(lr=[1], x=2), f"the placeholder {{lr}} got a list: accepted are {ACCEPTED}"),
    (
        lambda: train.words(lr="a", x=1),
        "the placeholder {lr:.3f} does not fit 'a': Unknown format code 'f' for object of type 'str'",
    ),
    (
        lambda: train.words(lr=1, x="\0"),
        "the placeholder {x} got a text with a zero byte, which no program can be given",
    ),
    (
        lambda: train(lr=1, x=2),
        "command 'train' runs as a step of a pipeline; outside of one train.words(...) gives its words",
    ),
    (
        lambda: train.options(executor="process"),
        "step 'train': executor cannot be set for a command: leave it out",
    ),
    (
        lambda: train.options(outputs=("a",)),
        "step 'train': outputs cannot be set for a command: give them to command(...)",
    ),
    (
        lambda: loose_step(executor="command")(wrong),
        "step 'wrong': executor must be one of inline, thread, process, not 'command': a program is a step by "
        "command(...)",
    ),
]


def wrong() -> None: ...


@pytest.mark.parametrize(("made", "sentence"), WRONG, ids=[sentence[:60] for _, sentence in WRONG])
def test_what_is_refused(made: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        made()
    assert str(caught.value) == sentence


def test_words() -> None:
    """A value is one word, or a part of one; a list is as many words as it has items."""
    assert train.words(lr=np.float32(0.25), x="a 'b'") == [
        *("python", "train.py", "--lr", "0.250"),
        *("of a 'b'", "--json", '{"a": 0.25}'),
    ]
    assert command(["a b", "{x}", "{x!r}", "{{}}"]).words(x="c d") == ["a b", "c d", "'c d'", "{}"]
    assert command("a {x} {y}").words(x=[], y=None) == ["a", ""]
    text = 'for i in "{"; do echo $i "${1}" "${2}" "${3}" --a="${4}"; done # don\'t "${5}"'
    assert loop.words(xs=["b c", 2], x=True) == ["/bin/sh", "-c", text, "sh", "b c", "2", "True", "True", "True"]
    assert (train.name, loop.name) == ("train", "loop")
    names = ["./a b/run.sh", "python -m pkg.tool", "{x} b", "cat /x/y.py", "if true; then ls; fi"]
    made = [command([name] if "b/" in name else name, shell=";" in name).name for name in names]
    assert made == ["run", "tool", "command", "y", "if"]


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), max_size=3))
@settings(max_examples=40)
def test_a_shell_gets_values_as_they_are(values: list[str]) -> None:
    """Whatever is in them, each is one argument."""
    words = command("printf '%s\\0' {values}", shell=True).words(values=values)
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == (values or [""])


@given(st.text(st.characters(exclude_characters="\0\ue000", codec="utf-8"), max_size=40))
def test_a_text_is_split_as_a_shell_splits_it(text: str) -> None:
    """Quoted by the standard library and doubled in its braces it comes back as it was."""
    quoted = shlex.quote(text).replace("{", "{{").replace("}", "}}")
    assert command(f"echo {quoted}").words() == ["echo", text]


CODES = [
    train._code,
    loop._code,
    command("a", outputs="lines")._code,
    command("a", outputs=("b", "c"), env={"A": "{x}"}, cwd="{y}/b", ok_codes=(0, 1))._code,
]


def test_a_code_says_all_of_it() -> None:
    for made in (train, loop, command("a", outputs=Path("{x}*"), env={"A": "{{"}, cwd="b", ok_codes=(1,))):
        assert CommandLine.from_code(made._code) == made._line


@settings(max_examples=50)
@given(st.sampled_from(CODES), st.data())
def test_a_broken_code_is_refused(code: dict[str, Any], data: st.DataObject) -> None:
    """What comes from elsewhere is either a command or refused; nothing else is raised."""
    broken = dict(code)
    key = data.draw(st.sampled_from(sorted({*code, "outputs", "env", "cwd", "ok_codes", "shell"})))
    leaf = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("path") | st.just("named")
    broken[key] = data.draw(
        st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
    )
    try:
        CommandLine.from_code(broken)
    except UsageError:
        return


def test_in_a_pipeline_and_in_the_builder() -> None:
    """The same step, with its options, and handles that know its outputs."""
    echo = command("echo {x}", retries=Retry(1), timeout_s=5, priority=2, limits=Mutex("disk"))

    @pipeline
    def written(x: int) -> Any:
        first = train(lr=0.1, x=x)
        model, score = first
        second = echo.options(name="told", timeout_s=None)(x=score)
        return {"model": model, "told": second["lines"], "code": second["exit_code"]}

    graph = written.build({"x": 3}).graph
    assert list(graph.steps) == ["train", "told"]
    found = graph.steps["told"]
    assert (found.executor, found.timeout_s, found.retries.count) == ("command", None, 1)
    assert (found.priority, [limit.name for limit in found.limits]) == (2, ["disk"])
    assert found.outputs == tuple(CommandResult.__annotations__)

    p = Pipeline("built")
    p.step("train", train, lr="${told.result}", x=[])
    told = p.step("told", echo, x="a", queue="other")
    p.output(told["lines"][0])
    built = p.build({}).graph
    assert {step.name: step.queue for step in built.steps.values()} == {"train": "default", "told": "other"}
    assert built.parents["train"] == ("told",)
    assert isinstance(built.steps["train"], GraphStep)
    with pytest.raises(UsageError, match=r"has no output 'line'; did you mean 'lines'"):
        told["line"]  # type: ignore[typeddict-item]  # refused by a type checker, too
    with pytest.raises(UsageError, match=r"'queue' is a parameter of a and an option of a step"):
        Pipeline("both").step("a", command("a {queue}"), queue="x")


def test_a_command_takes_the_options_of_every_step() -> None:
    """But for those that are about functions."""
    of_steps, of_commands = inspect.signature(step).parameters, inspect.signature(command).parameters
    assert set(of_steps) - set(of_commands) == {"fn", "executor", "pickle"}
    assert {name: of_commands[name].default for name in of_steps if name in of_commands} == {
        name: parameter.default for name, parameter in of_steps.items() if name in of_commands
    }
