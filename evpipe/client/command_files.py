"""The files that command steps need: gathered where a run is submitted, put beside the program where it runs.

A word that names a file below the folder in which the pipeline was started, or below that of the file in which the
command was written, stands for that file. Python scripts come with the modules of the user's that they import, as do
modules that `python -m` runs. The files of each command are below a folder with its name:

    <name>/files/<path>     as the word has it
    <name>/programs/<path>  the same, of a file that may be run
    <name>/modules/<path>   on the import path of the program
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from evpipe.client.bundle import modules_of_module, modules_of_script
from evpipe.client.source import Source
from evpipe.core.fingerprint import FunctionFacts
from evpipe.core.graph import Graph, steps_in
from evpipe.errors import LimitExceeded, UsageError
from evpipe.sdk.command_line import KIND, CommandLine
from evpipe.sdk.templates import Template, split_leniently
from evpipe.wire.limits import BUNDLE_UNPACKED_BYTES_MAX

#: Where in a command's folder its files are; see above.
FILES: Final = "files"
PROGRAMS: Final = "programs"
MODULES: Final = "modules"
#: What stands for the worker's interpreter.
PYTHON: Final = frozenset({"python", "python3"})
#: Flags of the interpreter that are followed by a word.
_WITH_WORD: Final = frozenset({"-X", "-W"})


class _Named(NamedTuple):
    """A file that a word names."""

    #: As the program is to find it: below its folder.
    inside: str
    path: Path

    @property
    def is_script(self) -> bool:
        return self.path.suffix == ".py"

    @property
    def is_program(self) -> bool:
        return os.access(self.path, os.X_OK)


def commands_of(graph: Graph) -> list[Mapping[str, Any]]:
    """Give the `code` of every command of a graph, each once."""
    found = {str(step.code.get("name")): step.code for step in steps_in(graph) if step.code.get("kind") == KIND}
    return list(found.values())


def function_modules(graph: Graph) -> frozenset[str]:
    """Name the modules of a graph's functions."""
    return frozenset(str(step.code.get("module", "")) for step in steps_in(graph) if step.code.get("kind") == "path")


def command_files(codes: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Gather the files of commands: contents by path, as above.

    Raises:
        UsageError: if a file cannot be read, or a script is named that is not there.
        LimitExceeded: if one is too large.
    """
    found: dict[str, bytes] = {}
    for code in codes:
        name = str(code.get("name"))
        look = _Look(code)
        for named in look.files():
            place = PROGRAMS if named.is_program else FILES
            found[f"{name}/{place}/{named.inside}"] = _content(named, look)
            if named.is_script:
                source = look.source(named.path)
                found |= {f"{name}/{MODULES}/{path}": text for path, text in modules_of_script(source).items()}
        if module := look.module():
            modules = modules_of_module(look.source(), module)
            found |= {f"{name}/{MODULES}/{path}": text for path, text in modules.items()}
    return found


def command_facts(code: Mapping[str, Any]) -> FunctionFacts:
    """Find out what the code of a command is, for its fingerprint: words, the files that they name, their imports."""
    # Only who has cached steps pays for its import.
    from evpipe.client.code_facts import facts_of_program

    look = _Look(code)
    parts = [repr(sorted((key, value) for key, value in code.items() if key not in {"name", "module"}))]
    packages: dict[str, str] = {}
    for named in look.files():
        if named.is_script:
            facts = facts_of_program(look.source(named.path), "__main__")
            packages |= facts.packages
            parts.append(f"{named.inside} {facts.digest}")
        else:
            parts.append(f"{named.inside} {hashlib.sha256(_content(named, look)).hexdigest()}")
    if module := look.module():
        for name in (module, f"{module}.__main__"):
            facts = facts_of_program(look.source(), name)
            packages |= facts.packages
            parts.append(f"{name} {facts.digest}")
    text = "".join(f"{len(part)} {part}\n" for part in parts)
    return FunctionFacts(code=hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(), packages=packages)


class _Look:
    """What the words of a command name on this machine."""

    def __init__(self, code: Mapping[str, Any]) -> None:
        self.line = CommandLine.from_code(code)
        file = getattr(sys.modules.get(str(code.get("module"))), "__file__", None)
        beside = Path(file).absolute().parent if isinstance(file, str) else None
        here = Path.cwd()
        self._folders = [here] if beside in {None, here} else [here, *filter(None, [beside])]
        self._words = split_leniently(self.line.words[0]) if self.line.shell else self.line.words

    def source(self, script: Path | None = None) -> Source:
        """Give where the modules of a script are, or those of a module that the interpreter runs."""
        places = [script.parent] if script is not None else self._folders
        paths = dict.fromkeys([*map(str, places), *Source.of_process().paths])
        return Source(tuple(paths), {} if script is None else {"__main__": str(script)})

    def files(self) -> Iterator[_Named]:
        """Give the files that words name, each once."""
        seen: set[str] = set()
        for i, word in enumerate(self._words):
            for text in texts_of(word):
                inside = inside_of(text)
                if not inside or inside in seen or (i == 0 and "/" not in text):
                    # A program without a slash is looked for on the PATH.
                    continue
                path = next((folder / inside for folder in self._folders if (folder / inside).is_file()), None)
                if path is not None:
                    seen.add(inside)
                    yield _Named(inside, path)
        self._check_script()

    def module(self) -> str:
        """Give the module that the interpreter is to run, or ""."""
        flag, word = self._of_interpreter()
        return word if flag == "-m" and all(part.isidentifier() for part in word.split(".")) else ""

    def _of_interpreter(self) -> tuple[str, str]:
        """Give what the interpreter is to run: "-m" and a module, or "" and a script; "" and "" for nothing known."""
        texts = [word.literal or "" for word in self._words]
        if self.line.shell or not texts or texts[0] not in PYTHON:
            return "", ""
        i = 1
        while i < len(texts) and texts[i].startswith("-") and texts[i] not in {"-m", "-c", "-"}:
            i += 2 if texts[i] in _WITH_WORD else 1
        if i < len(texts) and texts[i] == "-m":
            return "-m", texts[i + 1] if i + 1 < len(texts) else ""
        return "", texts[i] if i < len(texts) and not texts[i].startswith("-") else ""

    def _check_script(self) -> None:
        """Refuse a script that is not here: a program in a folder of its own would not find it."""
        flag, script = self._of_interpreter()
        if flag or not script.endswith(".py") or self.line.cwd is not None or Path(script).is_absolute():
            return
        if not any((folder / script).is_file() for folder in self._folders if inside_of(script)):
            where = " or ".join(map(str, self._folders))
            raise UsageError(
                f"the command '{self.line}': there is no file {script!r} in {where}; name it relative to the folder in "
                "which the pipeline is started, without '..', or give cwd=… where the worker has it"
            )


def texts_of(word: Template) -> list[str]:
    """Give the texts of a word that may name a file: itself, or what an option is set to."""
    text = word.literal
    if not text:
        return []
    option, sign, value = text.partition("=")
    return [value] if sign and option.startswith("-") and value else [text]


def inside_of(text: str) -> str:
    """Give a relative path without dots, or "" for what is none or leads out of its folder."""
    if not text or text.startswith(("/", "~", "-")) or len(text) > 400 or not text.isprintable():
        return ""
    parts = [part for part in text.split("/") if part not in {"", "."}]
    return "" if ".." in parts or any(char in text for char in "\\:") else "/".join(parts)


def _content(named: _Named, look: _Look) -> bytes:
    try:
        size = named.path.stat().st_size
        if size <= BUNDLE_UNPACKED_BYTES_MAX:
            return named.path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the command '{look.line}': the file {named.path} cannot be read: {error.strerror}"
        ) from error
    raise LimitExceeded(
        f"the command '{look.line}' names the file {named.inside}, which has {size:,} bytes; "
        f"{BUNDLE_UNPACKED_BYTES_MAX:,} are allowed: give it as an argument, as in data=Path({named.inside!r})",
        limit="BUNDLE_UNPACKED_BYTES_MAX",
        found=size,
        allowed=BUNDLE_UNPACKED_BYTES_MAX,
    )
