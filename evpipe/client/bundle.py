"""The source files that a run's steps need, gathered at submit so that workers elsewhere can run them.

Nothing is imported for it: from the steps' modules on, the `import` statements of each file are read, also those
inside functions, and what they name is packed if it is the user's own: the file that this process's import path leads
to, if that is in a folder of the path where nothing is installed. What is installed has to be installed at the worker,
too. Each file is packed where its module's name says, so that one folder is all of the worker's import path.
"""

from __future__ import annotations

import ast
import functools
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from evpipe.client.own_modules import OwnModules, Stamp, base_of, parsed, stamp
from evpipe.client.source import Source
from evpipe.wire.bundles import pack_bundle

KIND: Final = "bundle"
#: Under which a submit and its launches name the bundle of files of its commands.
COMMANDS: Final = "commands"
_KNOWN_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Bundle:
    """Source files of one run."""

    digest: str
    data: bytes = field(repr=False)
    #: Modules that stand for a file that their name does not lead to, `__main__` among them: their path in the bundle.
    files: Mapping[str, str]
    #: What `__main__` is called where it can be imported, or "".
    main: str

    def as_map(self) -> dict[str, Any]:
        """Give it as it travels in a submit and in its launches."""
        found: dict[str, Any] = {"kind": KIND, "digest": self.digest}
        if self.files:
            found["files"] = dict(self.files)
        if self.main:
            found["main"] = self.main
        return found


class _Known(NamedTuple):
    """A bundle that was made, and what it was made from."""

    bundle: Bundle | None
    #: Files that are in it and folders that were looked into; None: there was none.
    watched: Mapping[str, Stamp | None]


#: The last few, by the modules that were asked for and where they were looked for.
_known: dict[tuple[object, ...], _Known] = {}


def bundle_of(modules: Iterable[str]) -> Bundle | None:
    """Gather the source files of these modules, and of what they import.

    Args:
        modules: of the steps, as their functions name them.

    Returns:
        None if all of them are installed ones, or were typed into an interpreter.

    Raises:
        UsageError: if a file cannot be read, or has a name that no bundle takes.
        LimitExceeded: if they are too many or too large.
    """
    source = Source.of_process()
    key = (frozenset(modules), tuple(sys.path), source.key)
    known = _known.get(key)
    if known is not None and all(stamp(path) == before for path, before in known.watched.items()):
        return known.bundle
    now_ns = time.time_ns()
    gathering = _Gathering(source)
    for module in sorted(key[0]):
        gathering.add(module)
    made = gathering.bundle()
    _known.pop(key, None)
    if all(found is None or found.is_older(now_ns) for found in gathering.watched.values()):
        _known[key] = _Known(made, gathering.watched)
        for old in list(_known)[:-_KNOWN_MAX]:
            _known.pop(old, None)
    return made


class _Gathering:
    """The files that were found, from some modules on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._own = OwnModules(source)
        self._seen: set[str] = set()
        #: Path in the bundle -> content, of modules that are found by their name.
        self._files: dict[str, bytes] = {}
        #: Module -> file and its content, of those that are not.
        self._scripts: dict[str, tuple[Path, bytes]] = {}
        self._main = ""

    @property
    def watched(self) -> Mapping[str, Stamp | None]:
        """As in `_Known`."""
        return self._own.watched

    @property
    def found(self) -> dict[str, bytes]:
        """Modules that are found by their name: contents by path in a bundle."""
        return self._files

    def add(self, module: str) -> None:
        """Add a step's module and what it imports."""
        name = module
        if module == "__main__":
            name = self._main = self._source.main
        file = self._source.files.get(module)
        if file is not None:
            text = self._own.read(file)
            self._scripts[module] = (Path(file), text)
            self._follow(_imports(text, "", is_package=False))
        elif name:
            self._follow([name])

    def bundle(self) -> Bundle | None:
        """Give all that was found."""
        files = dict(self._files)
        named: dict[str, str] = {}
        for i, (module, (file, text)) in enumerate(self._scripts.items()):
            # Where an import of its name would find it, as at the submitter; unless that finds another file there.
            inside = named[module] = file.name if files.get(file.name, text) == text else f"{i}/{file.name}"
            files[inside] = text
        if not files and not self._main:
            return None
        return Bundle(*pack_bundle(files), named, self._main)

    def _follow(self, names: Iterable[str]) -> None:
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in self._seen:
                continue
            self._seen.add(name)
            for found in self._own.find(name):
                if found.is_source and found.inside not in self._files:
                    text = self._files[found.inside] = self._own.read(found.file)
                    todo.extend(_imports(text, found.name, found.is_package))


def modules_of_script(source: Source) -> dict[str, bytes]:
    """Give the files of the user's own modules that a script imports, by the path that their names lead to.

    Args:
        source: its `__main__` is the script.
    """
    gathering = _Gathering(source)
    gathering.add("__main__")
    return gathering.found


def modules_of_module(source: Source, name: str) -> dict[str, bytes]:
    """Give the files of a module that `python -m` runs, and of what it imports; empty if it is not the user's own."""
    gathering = _Gathering(source)
    # Of a package its `__main__` is run.
    for found in (name, f"{name}.__main__"):
        gathering.add(found)
    return gathering.found


@functools.lru_cache(maxsize=1_024)
def _imports(text: bytes, name: str, is_package: bool) -> tuple[str, ...]:
    """Give the names that the imports of a module with this source may mean."""
    tree = parsed(text)
    if tree is None:
        return ()
    package = name if is_package else name.rpartition(".")[0]
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(package, node)
            if base is not None:
                found[base] = None
                # Each may be a module. Of `*` nobody can say: the package's own imports name what it has.
                found.update((f"{base}.{alias.name}", None) for alias in node.names if alias.name != "*")
    return tuple(found)
