"""`command`: a program that runs as a step of a pipeline, with its arguments in the place of placeholders."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from inspect import BoundArguments, Parameter, Signature
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, overload

from evpipe.core.names import NAME_LENGTH_MAX, check_name
from evpipe.errors import UsageError
from evpipe.sdk.command_line import CommandLine, check_variable
from evpipe.sdk.command_outputs import LINES, CommandResult, Outputs, outputs_of
from evpipe.sdk.handle import Handle
from evpipe.sdk.options import UNSET, OnFailureName, RunIfName, StepOptions, check_options
from evpipe.sdk.shape import Shape, shape_of
from evpipe.sdk.step import Step, check_ignored
from evpipe.sdk.templates import ACCEPTED, Template, for_shell, is_accepted, split, split_leniently, template

if TYPE_CHECKING:
    from os import PathLike

    from evpipe.sdk.cache import Cache
    from evpipe.sdk.limits import Limit
    from evpipe.sdk.retry import Retry

    #: What a command's outputs are taken from.
    CommandOutputs: TypeAlias = str | PathLike[str] | Sequence[str] | Mapping[str, str | PathLike[str]]

R_co = TypeVar("R_co", covariant=True)

_EXECUTORS = ("command",)


class CommandStep(Step[..., R_co]):
    """A command as a step. Made by `command` only."""

    def __init__(self, line: CommandLine, module: str, name: str, options: StepOptions) -> None:
        self.__name__ = self.name = name
        self.__doc__ = options.description or None
        self._line = line
        self._options = options
        self._exact_name = None
        self._fn = _never
        self._code = line.as_code(module)
        self._signature = Signature([Parameter(field, Parameter.KEYWORD_ONLY) for field in line.fields])
        self._shapes = {}

    def words(self, **arguments: Any) -> list[str]:
        """Give the words that the system would get, in the order of `exec`; for tests of what is written.

        Raises:
            UsageError: if an argument is unknown, missing or of a type that a placeholder does not take.
        """
        return self._line.argv(self._bind((), arguments, f"command {self.name!r}").arguments)

    def __repr__(self) -> str:
        return f"<command {self.name!r}: {self._line}>"

    def _call_plainly(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise UsageError(
            f"command {self.name!r} runs as a step of a pipeline; outside of one {self.name}.words(...) gives its words"
        )

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> BoundArguments:
        bound = super()._bind(args, kwargs, where)
        for name, value in bound.arguments.items():
            # Handles and what is made of them become values later, as do texts that are references.
            if not type(value).__module__.startswith("evpipe.sdk.") and not is_accepted(value):
                raise UsageError(f"{where}: {{{name}}} is given a {type(value).__name__}: accepted are {ACCEPTED}")
        return bound

    def _shape(self) -> Shape:
        return _shape(self._line.outputs)

    def _check_options(self, given: Mapping[str, object], where: str) -> dict[str, Any]:
        for option in ("executor", "outputs", "pickle"):
            if given.get(option, UNSET) is not UNSET:
                hint = "give them to command(...)" if option == "outputs" else "leave it out"
                raise UsageError(f"{where}: {option} cannot be set for a command: {hint}")
        checked = check_options(given, where, executors=_EXECUTORS)
        check_ignored(checked.get("cache"), self._signature, where)
        return checked

    def _check_found_by_name(self) -> None:
        """Nothing has to be found: the graph has all of it."""


@overload
def command(
    words: str | Sequence[str],
    /,
    *,
    name: str | None = ...,
    outputs: None = ...,
    shell: bool = ...,
    env: Mapping[str, str] | None = ...,
    cwd: str | PathLike[str] | None = ...,
    ok_codes: Sequence[int] = ...,
    queue: str | None = ...,
    retries: int | Retry = ...,
    timeout_s: float | None = ...,
    on_failure: OnFailureName | None = ...,
    after: Sequence[object] = ...,
    cache: bool | Cache = ...,
    when: object = ...,
    run_if: RunIfName = ...,
    priority: int | None = ...,
    limits: Limit | Sequence[Limit] | None = ...,
    description: str = ...,
) -> CommandStep[CommandResult]: ...
@overload
def command(
    words: str | Sequence[str],
    /,
    *,
    name: str | None = ...,
    outputs: CommandOutputs,
    shell: bool = ...,
    env: Mapping[str, str] | None = ...,
    cwd: str | PathLike[str] | None = ...,
    ok_codes: Sequence[int] = ...,
    queue: str | None = ...,
    retries: int | Retry = ...,
    timeout_s: float | None = ...,
    on_failure: OnFailureName | None = ...,
    after: Sequence[object] = ...,
    cache: bool | Cache = ...,
    when: object = ...,
    run_if: RunIfName = ...,
    priority: int | None = ...,
    limits: Limit | Sequence[Limit] | None = ...,
    description: str = ...,
) -> CommandStep[Any]: ...
def command(
    words: str | Sequence[str],
    /,
    *,
    name: str | None = None,
    outputs: CommandOutputs | None = None,
    shell: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | PathLike[str] | None = None,
    ok_codes: Sequence[int] = (0,),
    queue: str | None = None,
    retries: int | Retry = 0,
    timeout_s: float | None = None,
    on_failure: OnFailureName | None = None,
    after: Sequence[object] = (),
    cache: bool | Cache = False,
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    priority: int | None = None,
    limits: Limit | Sequence[Limit] | None = None,
    description: str = "",
) -> CommandStep[Any]:
    """Make a step of a program.

    A call, as in `train(lr=0.1)` of `train = command("python train.py --lr {lr}")`, adds it to the pipeline.

    Args:
        words: a text, which is split as a shell does and given to none, or a list of words. `{lr}` and `{lr:.3f}` are
            placeholders, the keyword arguments of a call; `{{` is a brace. Their values are str, int, float, bool, None
            (an empty text) and paths of files and folders, which are there when the program starts; also lists of
            them where the placeholder is a word of its own. `python` is the worker's interpreter. Files that the words
            name relative to the folder in which the pipeline is started, or to that of the file in which this is
            written, travel with the run, Python scripts with the modules of yours that they import.
        name: what its steps are named after; default: the script's name, or the program's.
        outputs: what the value is. Default: a `CommandResult`. A dict of names, each with what is taken:
            `Path("a.bin")` (a file or folder below the one in which it ran; with `*` a list of all that match),
            "exit_code", "lines" (all lines of standard output, up to 10,000 and 1 MiB), "json" (what the program
            wrote as JSON into the file that `EVPIPE_RESULT` names, or to the descriptor that `EVPIPE_RESULT_FD` names)
            or "json.KEY". A tuple of names: keys of that. One of these alone: the value is that.
        shell: whether `/bin/sh` runs the text; values come to it quoted.
        env: variables of its environment beside the worker's; they may have placeholders.
        cwd: folder in which it runs, relative to that of its worker; default: one of the attempt's own, which is
            removed afterwards and has the files that the words name.
        ok_codes: exit codes that are no failure.
        queue: these and the rest are those of `@step`.

    Raises:
        UsageError: if there are no words, a placeholder is none, or an option is not allowed.

    """
    shown = name if isinstance(name, str) else "command"
    where = f"command {shown!r:.80}"
    line = CommandLine(
        words=_words(words, where, shell=shell),
        shell=shell,
        env={
            check_variable(key, where): template(_text(text, where, "env"), where) for key, text in (env or {}).items()
        },
        cwd=None if cwd is None else template(_text(cwd, where, "cwd"), where),
        ok_codes=_ok_codes(ok_codes, where),
        outputs=outputs_of(outputs, where),
    )
    step_name = _name_for(line) if name is None else check_name("step", name)
    given = {
        "executor": None,
        "queue": queue,
        "retries": retries,
        "timeout_s": timeout_s,
        "on_failure": on_failure,
        "after": after,
        "cache": cache,
        "when": when,
        "run_if": run_if,
        "priority": priority,
        "limits": limits,
        "description": description,
    }
    where = f"command {step_name!r}"
    options = StepOptions(**check_options(given, where, executors=_EXECUTORS))
    # As namedtuple and Enum know their module: that of the caller.
    made: CommandStep[Any] = CommandStep(
        line, sys._getframe(1).f_globals.get("__name__", "__main__"), step_name, options
    )
    check_ignored(options.cache, made._signature, where)
    return made


def _words(given: Any, where: str, *, shell: bool) -> tuple[Template, ...]:
    if not isinstance(shell, bool):
        raise UsageError(f"{where}: shell must be True or False, not {shell!r:.80}")
    if isinstance(given, str):
        if shell and given.strip():
            return (for_shell(given, where),)
        found = split(given, where)
    elif shell:
        raise UsageError(f"{where}: with shell=True the command is one text, not {given!r:.80}")
    elif isinstance(given, (list, tuple)):
        found = tuple(template(_text(word, where, "the command"), where) for word in given)
    else:
        raise UsageError(f"{where}: a command is a text or a list of words, not {given!r:.80}")
    if not found or not found[0].parts:
        raise UsageError(f"{where}: it has no words: the first is the program")
    return found


def _text(given: Any, where: str, what: str) -> str:
    text = given.__fspath__() if hasattr(given, "__fspath__") else given
    if not isinstance(text, str):
        raise UsageError(f"{where}: {what} has {given!r:.80}: it must be a text, in which {{x}} is the value of x")
    return text


def _ok_codes(given: Any, where: str) -> tuple[int, ...]:
    codes = tuple(given) if isinstance(given, (list, tuple, set, frozenset, range)) else ()
    if not codes or not all(type(code) is int and 0 <= code <= 255 for code in codes):
        raise UsageError(
            f"{where}: ok_codes must be exit codes from 0 to 255 in a tuple, as in (0, 3), not {given!r:.80}"
        )
    return codes


def _name_for(line: CommandLine) -> str:
    """Name it after its script or module, else its program."""
    texts = [word.literal or "" for word in (line.words if not line.shell else split_leniently(line.words[0]))]
    module = next((after for before, after in itertools.pairwise(texts) if before == "-m"), "")
    script = next((text for text in texts if text.endswith(".py")), "")
    found = module.rpartition(".")[2] or re.sub(r".*/|\.[A-Za-z0-9]+$", "", script or (texts[0] if texts else ""))
    legal = re.sub(r"[^A-Za-z0-9_-]+", "-", found).strip("_-")[:NAME_LENGTH_MAX]
    return legal or "command"


def _shape(outputs: Outputs) -> Shape:
    if outputs.whole is not None:
        return Shape(parts=(str,)) if outputs.whole.source == LINES else Shape()
    if outputs.named is None:
        return shape_of(CommandResult, {})
    names = tuple(outputs.named)
    return Shape(names=names, length=len(names), is_declared=True)


def _never(*_args: Any, **_kwargs: Any) -> Handle:
    raise AssertionError("a command has no function")
