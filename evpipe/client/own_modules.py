"""The user's own modules: which file an import leads to, if that is in a folder of the path where nothing is installed.

Nothing is imported for it. What is installed, the standard library and this package are not the user's own: workers
have them, and they change with their versions.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib.machinery import FrozenImporter, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Final, NamedTuple

from evpipe.client.source import Source
from evpipe.errors import UsageError

#: This package is installed at every worker, also where it is developed.
OURS: Final = "evpipe"
_PARSING: Final = threading.Lock()
#: What changed since may change again and look the same: the clocks of file systems tick every few milliseconds.
_SETTLED_S: Final = 1.0


class Stamp(NamedTuple):
    """What changes when a file does."""

    modified_ns: int
    changed_ns: int
    size: int

    def is_older(self, now_ns: int) -> bool:
        return max(self.modified_ns, self.changed_ns) < now_ns - _SETTLED_S * 1e9


class Found(NamedTuple):
    """A module of the user's."""

    name: str
    file: str
    is_package: bool
    #: Not if it is compiled.
    is_source: bool

    @property
    def inside(self) -> str:
        """Its path in a bundle."""
        return self.name.replace(".", "/") + ("/__init__.py" if self.is_package else ".py")


class OwnModules:
    """Looks for the modules of one source."""

    def __init__(self, source: Source) -> None:
        self._roots = frozenset(source.paths)
        known = {_absolute(place) for place in sys.path if isinstance(place, str)}
        #: Folders of the source that this process does not look into: those of a script that another process runs.
        self._first = [path for path in source.paths if path not in known]
        #: Files that were read and folders that were looked into, as they were before; None: there was none.
        self.watched: dict[str, Stamp | None] = {}

    def read(self, file: str) -> bytes:
        """Read a file.

        Raises:
            UsageError: if it cannot be read.
        """
        # Before it is read: what changes meanwhile is another than is known.
        self.watched[file] = stamp(file)
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"the source file {file} cannot be read: {error.strerror}") from error

    def is_namespace(self, name: str) -> bool:
        """Say whether a top-level name is a folder of the user's without `__init__.py`, and no module."""
        _, spec, portions = _look(name, self._places())
        return spec is None and any(os.path.dirname(_absolute(portion)) in self._roots for portion in portions)  # noqa: PTH120

    def _places(self) -> list[str]:
        """Give where imports look, in order."""
        return self._first + [place or os.getcwd() for place in sys.path if isinstance(place, str)]  # noqa: PTH109

    def watch(self, folder: str) -> None:
        """Remember a folder that is looked into."""
        self.watched.setdefault(folder, stamp(folder))

    def find(self, name: str) -> Iterator[Found]:
        """Give the module with this name and the packages that it is in, as far as they are the user's own."""
        parts = name.split(".")
        if parts[0] == OURS or parts[0] in sys.builtin_module_names or FrozenImporter.find_spec(parts[0]):
            return
        # Where to look, and what of that is the user's own.
        places = self._places()
        own = self._roots
        for i in range(len(parts)):
            full = ".".join(parts[: i + 1])
            for place in places:
                if place not in self.watched and _absolute(place) in own:
                    self.watched[place] = stamp(place)
            place, spec, portions = _look(full, places)
            if spec is None:
                # A namespace package, or a name of the package that is no module.
                places, own = portions, frozenset(p for p in map(_absolute, portions) if os.path.dirname(p) in own)  # noqa: PTH120
                continue
            if _absolute(place) not in own:
                return
            inner = spec.submodule_search_locations
            file = spec.loader.path if isinstance(spec.loader, SourceFileLoader) else spec.origin
            yield Found(full, file or place, inner is not None, isinstance(spec.loader, SourceFileLoader))
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


def parsed(text: bytes) -> ast.Module | None:
    """Parse a file; None if Python does not take it: whoever imports it is told."""
    # Python 3.11 counts how deep it is in a tree once for all threads, and raises a SystemError when another came in
    # between; nor are the filters of warnings any thread's own.
    with _PARSING:
        try:
            return ast.parse(text)
        except SyntaxError:
            # It may only be a warning (an escape such as "\\d"), where this process makes errors of them.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    return ast.parse(text)
                except (SyntaxError, ValueError):
                    return None
        except (ValueError, RecursionError, MemoryError):
            return None


def base_of(package: str, node: ast.ImportFrom) -> str | None:
    """Give the module that `from … import` names; None for more dots than there are packages."""
    if not node.level:
        return node.module
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return None
    above = parts[: len(parts) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


def stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - the fastest way, for hundreds of files
    except OSError:
        return None
    return Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size)
