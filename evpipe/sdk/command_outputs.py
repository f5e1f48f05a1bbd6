"""What a command step gives: what is taken from its program when that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict

from evpipe.core.names import nearest
from evpipe.errors import UsageError
from evpipe.sdk.templates import Template, template

EXIT_CODE: Final = "exit_code"
LINES: Final = "lines"
JSON: Final = "json"
PATH: Final = "path"


class CommandResult(TypedDict):
    """The value of a command that declares no outputs."""

    exit_code: int
    #: The last lines of its standard output: at most 100, and 16 KiB.
    lines: list[str]
    #: What it wrote as JSON into the file that `EVPIPE_RESULT` names; None: nothing.
    json: Any


class Taken(NamedTuple):
    """What is taken from a program that has ended."""

    #: EXIT_CODE, LINES, JSON or PATH.
    source: str
    #: Of JSON: keys of what is meant in it.
    keys: tuple[str, ...] = ()
    #: Of PATH: where it is, below the program's folder.
    path: Template = Template(())

    def as_list(self) -> list[str]:
        return [self.source, str(self.path)] if self.source == PATH else [self.source, *self.keys]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What becomes the value of a command step; by default a `CommandResult`."""

    #: By the name of the output, in order.
    named: Mapping[str, Taken] | None = None
    #: The one thing that is the value.
    whole: Taken | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the outputs, as a graph has them."""
        if self.whole is not None:
            return None
        return tuple(CommandResult.__annotations__ if self.named is None else self.named)

    @property
    def all(self) -> tuple[Taken, ...]:
        return (self.whole,) if self.whole is not None else tuple((self.named or {}).values())

    def as_list(self) -> list[Any]:
        if self.whole is not None:
            return ["whole", self.whole.as_list()]
        return ["named", [[name, taken.as_list()] for name, taken in self.named.items()]] if self.named else []

    @classmethod
    def from_list(cls, found: Any, where: str) -> Outputs:
        """Read what `as_list` made; UsageError if it did not."""
        match found:
            case []:
                return cls()
            case ["whole", taken]:
                return cls(whole=_taken_of(taken, where))
            case ["named", [*pairs]] if pairs:
                named: dict[str, Taken] = {}
                for pair in pairs:
                    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                        break
                    named[pair[0]] = _taken_of(pair[1], where)
                else:
                    return cls(named=named)
        raise UsageError(f"{where}: {found!r:.80} does not say what its outputs are")


def _taken_of(found: Any, where: str) -> Taken:
    match found:
        case [("exit_code" | "lines") as source]:
            return Taken(source)
        case ["json", *keys] if all(isinstance(key, str) for key in keys):
            return Taken(JSON, tuple(keys))
        case ["path", str(text)]:
            return Taken(PATH, path=template(text, where))
    raise UsageError(f"{where}: {found!r:.80} does not say what an output is")


def outputs_of(given: Any, where: str) -> Outputs:
    """Read the option `outputs` of a command.

    Raises:
        UsageError: if it is none.
    """
    if given is None:
        return Outputs()
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return Outputs(whole=_taken(given, where))
    if isinstance(given, Mapping):
        if not given or not all(isinstance(name, str) and name for name in given):
            raise UsageError(f"{where}: outputs must have names, each with what is taken, not {given!r:.80}")
        return Outputs(named={name: _taken(what, where) for name, what in given.items()})
    names = tuple(given) if isinstance(given, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UsageError(
            f"{where}: outputs must be a dict, as in {{'model': Path('model.bin'), 'score': 'json.score'}}, "
            f"names in the program's JSON in a tuple, or one source, not {given!r:.80}"
        )
    return Outputs(named={name: Taken(JSON, (name,)) for name in names})


def _taken(given: Any, where: str) -> Taken:
    if isinstance(given, str):
        first, *keys = given.split(".")
        if (first in {EXIT_CODE, LINES} and not keys) or (first == JSON and all(keys)):
            return Taken(first, tuple(keys))
        raise UsageError(
            f"{where}: {given!r} is no source of an output: accepted are Path({given!r}) for a file or a folder, "
            f"'exit_code', 'lines', 'json' and 'json.KEY'{nearest(given, (EXIT_CODE, LINES, JSON))}"
        )
    if hasattr(given, "__fspath__"):
        path = template(check_below(str(given.__fspath__()), where), where)
        return Taken(PATH, path=path)
    raise UsageError(
        f"{where}: an output is taken from a Path, 'exit_code', 'lines', 'json' or 'json.KEY', not from {given!r:.80}"
    )


def check_below(text: str, where: str) -> str:
    """Return a path if it leads to something below the folder that it is relative to."""
    if text.startswith("/") or ".." in text.replace("\\", "/").split("/"):
        raise UsageError(
            f"{where}: the output {text!r} must be a path below the program's folder, such as 'out/model.bin'"
        )
    return text
