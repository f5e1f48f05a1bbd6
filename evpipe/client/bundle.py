"""The source files that a run's steps need, gathered at submit so that workers elsewhere can run them.

Nothing is imported for it: from the steps' modules on, the `import` statements of each file are read, also those
inside functions, and what they name is packed if it is the user's own: the file that this process's import path leads
to, if that is in a folder of the path where nothing is installed. What is installed has to be installed at the worker,
too. Each file is packed where its module's name says, so that one folder is all of the worker's import path.
"""

from __future__ import annotations

import ast
import functools
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import FrozenImporter, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, Final, NamedTuple

from evpipe.client.source import Source
from evpipe.errors import UsageError
from evpipe.wire.bundles import pack_bundle

KIND: Final = "bundle"
#: This package is installed at every worker, also where it is developed.
_OURS: Final = "evpipe"
#: What changed since may change again and look the same: the clocks of file systems tick every few milliseconds.
_SETTLED_S: Final = 1.0
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


class _Stamp(NamedTuple):
    """What changes when a file does."""

    modified_ns: int
    changed_ns: int
    size: int

    def is_older(self, now_ns: int) -> bool:
        return max(self.modified_ns, self.changed_ns) < now_ns - _SETTLED_S * 1e9


class _Known(NamedTuple):
    """A bundle that was made, and what it was made from."""

    bundle: Bundle | None
    #: Files that are in it and folders that were looked into; None: there was none.
    watched: Mapping[str, _Stamp | None]


#: The last few, by the modules that were asked for and where they were looked for.
_known: dict[tuple[object, ...], _Known] = {}


class _Found(NamedTuple):
    """A module of the user's."""

    name: str
    file: str
    is_package: bool

    @property
    def inside(self) -> str:
        """Its path in the bundle."""
        return self.name.replace(".", "/") + ("/__init__.py" if self.is_package else ".py")


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
    if known is not None and all(_stamp(path) == stamp for path, stamp in known.watched.items()):
        return known.bundle
    now_ns = time.time_ns()
    gathering = _Gathering(source)
    for module in sorted(key[0]):
        gathering.add(module)
    made = gathering.bundle()
    _known.pop(key, None)
    if all(stamp is None or stamp.is_older(now_ns) for stamp in gathering.watched.values()):
        _known[key] = _Known(made, gathering.watched)
        for old in list(_known)[:-_KNOWN_MAX]:
            _known.pop(old, None)
    return made


class _Gathering:
    """The files that were found, from some modules on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._roots = frozenset(source.paths)
        self._seen: set[str] = set()
        #: Path in the bundle -> content, of modules that are found by their name.
        self._files: dict[str, bytes] = {}
        #: Module -> file and its content, of those that are not.
        self._scripts: dict[str, tuple[Path, bytes]] = {}
        self._main = ""
        #: As in `_Known`.
        self.watched: dict[str, _Stamp | None] = {}

    def add(self, module: str) -> None:
        """Add a step's module and what it imports."""
        name = module
        if module == "__main__":
            name = self._main = self._source.main
        file = self._source.files.get(module)
        if file is not None:
            text = self._read(file)
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
            for found in self._find(name):
                if found.inside not in self._files:
                    text = self._files[found.inside] = self._read(found.file)
                    todo.extend(_imports(text, found.name, found.is_package))

    def _read(self, file: str) -> bytes:
        # Before it is read: what changes meanwhile is another than is known.
        self.watched[file] = _stamp(file)
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"the source file {file} cannot be read: {error.strerror}") from error

    def _find(self, name: str) -> Iterator[_Found]:
        """Give the module with this name and the packages that it is in, as far as they are the user's own."""
        parts = name.split(".")
        if parts[0] == _OURS or parts[0] in sys.builtin_module_names or FrozenImporter.find_spec(parts[0]):
            return
        # Where to look, and what of that is the user's own.
        places = [place or os.getcwd() for place in sys.path if isinstance(place, str)]  # noqa: PTH109
        own = self._roots
        for i in range(len(parts)):
            full = ".".join(parts[: i + 1])
            for place in places:
                if place not in self.watched and _absolute(place) in own:
                    self.watched[place] = _stamp(place)
            place, spec, portions = _look(full, places)
            if spec is None:
                # A namespace package, or a name of the package that is no module.
                places, own = portions, frozenset(p for p in map(_absolute, portions) if os.path.dirname(p) in own)  # noqa: PTH120
                continue
            if _absolute(place) not in own:
                return
            inner = spec.submodule_search_locations
            if isinstance(spec.loader, SourceFileLoader):
                yield _Found(full, spec.loader.path, inner is not None)
            places, own = list(inner or ()), frozenset(map(_absolute, inner or ()))


def _look(name: str, places: list[str]) -> tuple[str, ModuleSpec | None, list[str]]:
    """Look for a module as an import does; `PathFinder` does not where a package of it was not imported yet.

    Returns:
        The place that has it and what it is there; or "", None and the folders of a namespace package of this name.
    """
    portions: list[str] = []
    for place in places:
        try:
            finder = pkgutil.get_importer(place)
            spec = finder.find_spec(name) if finder is not None else None
        except (ImportError, ValueError, AttributeError):
            continue  # somebody's own way of finding modules, or a name that is none
        if spec is None:
            continue
        if spec.loader is not None:
            return place, spec, []
        portions += spec.submodule_search_locations or ()
    return "", None, portions


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - of a text that may be "", which is the current directory


@functools.lru_cache(maxsize=1_024)
def _imports(text: bytes, name: str, is_package: bool) -> tuple[str, ...]:
    """Give the names that the imports of a module with this source may mean."""
    tree = _parsed(text)
    package = name if is_package else name.rpartition(".")[0]
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(package, node)
            if base is not None:
                found[base] = None
                # Each may be a module. Of `*` nobody can say: the package's own imports name what it has.
                found.update((f"{base}.{alias.name}", None) for alias in node.names if alias.name != "*")
    return tuple(found)


def _parsed(text: bytes) -> ast.AST:
    """Parse a file; one that Python does not take has no imports, and whoever imports it is told."""
    try:
        return ast.parse(text)
    except SyntaxError:
        # It may only be a warning (an escape such as "\\d"), where this process makes errors of them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return ast.parse(text)
            except (SyntaxError, ValueError):
                return ast.Module([], [])
    except (ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _base(package: str, node: ast.ImportFrom) -> str | None:
    """Give the module that `from … import` names; None for more dots than there are packages."""
    if not node.level:
        return node.module
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return None
    above = parts[: len(parts) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - the fastest way, for hundreds of files
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size)
