"""The source files that a run's steps need, gathered at submit so that workers elsewhere can run them.

Nothing is imported for it: from the steps' modules on, the `import` statements of each file are read, also those
inside functions, and what they name is packed if it is the user's own: found by this process's import path, and not
installed. What is installed has to be installed at the worker, too.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from evpipe.client.source import Source
from evpipe.errors import UsageError
from evpipe.wire.bundles import pack_bundle

KIND: Final = "bundle"
#: This package is installed at every worker, also where it is developed.
_OURS: Final = "evpipe"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Source files of one run."""

    digest: str
    data: bytes = field(repr=False)
    #: Bytes of each file, by its path in the bundle.
    sizes: Mapping[str, int]
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


class _Found(NamedTuple):
    """A module of the user's."""

    name: str
    file: Path
    #: Its path in the bundle.
    inside: str
    is_package: bool


def bundle_of(modules: Iterable[str]) -> Bundle | None:
    """Gather the source files of these modules, and of what they import.

    Args:
        modules: of the steps, as their functions name them.

    Returns:
        None if all of them are installed ones, or were typed into an interpreter.

    Raises:
        UsageError: if a file cannot be read.
        LimitExceeded: if they are too large.
    """
    gathering = _Gathering(Source.of_process())
    for module in sorted(set(modules)):
        gathering.add(module)
    gathered = gathering.files
    if not gathered:
        return None
    stamps = tuple((inside, str(file), *_stamp(file)) for inside, file in sorted(gathered.items()))
    digest, data, sizes = _packed(stamps)
    return Bundle(digest, data, sizes, gathering.named, gathering.main)


class _Gathering:
    """The files that were found, from some modules on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._roots = [Path(path) for path in source.paths]
        self._seen: set[str] = set()
        #: Path in the bundle -> file.
        self.files: dict[str, Path] = {}
        #: As in `Bundle.files`.
        self.named: dict[str, str] = {}
        self.main = ""

    def add(self, module: str) -> None:
        """Add a step's module and what it imports."""
        first = module
        if module == "__main__":
            first = self.main = self._source.main
        if not first or module in self._source.files:
            file = self._source.files.get(module)
            if file is None:
                return
            path = Path(file)
            inside = self._inside(path) or path.name
            self.named[module] = inside
            self._follow([_Found(module, path, inside, is_package=False)])
        elif first.partition(".")[0] != _OURS:
            self._follow(self._find(first))

    def _follow(self, start: Iterable[_Found]) -> None:
        todo = list(start)
        while todo:
            found = todo.pop()
            if found.inside in self.files:
                continue
            self.files[found.inside] = found.file
            if found.file.suffix != ".py":
                continue
            for name in _imports(str(found.file), *_stamp(found.file), found.name, found.is_package):
                if name not in self._seen:
                    self._seen.add(name)
                    todo.extend(self._find(name))

    def _find(self, name: str) -> Iterator[_Found]:
        """Give the module with this name and the packages that it is in, as far as they are the user's own."""
        if name.partition(".")[0] == _OURS:
            return
        places: list[str] | None = None
        parts = name.split(".")
        for i in range(len(parts)):
            full = ".".join(parts[: i + 1])
            try:
                spec = importlib.machinery.PathFinder.find_spec(full, sys.path if places is None else places)
            except (ImportError, ValueError, AttributeError):
                return
            if spec is None:
                return  # a name of the package, not a module; or a builtin
            places = list(spec.submodule_search_locations or [])
            if spec.origin is not None and spec.has_location:
                file = Path(spec.origin)
                inside = self._inside(file)
                if not inside or file.suffix != ".py":
                    return
                yield _Found(full, file, inside, spec.submodule_search_locations is not None)
            if not places:
                return

    def _inside(self, file: Path) -> str:
        """Give the path in the bundle of a file: that below the first folder of the path that has it."""
        for root in self._roots:
            if file.is_relative_to(root):
                return file.relative_to(root).as_posix()
        return ""


@functools.lru_cache(maxsize=4_096)
def _imports(file: str, modified_ns: int, size: int, name: str, is_package: bool) -> tuple[str, ...]:
    """Give the names that a file's imports may mean; cached for as long as it does not change."""
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (SyntaxError, ValueError):
        return ()  # whoever imports it is told
    except OSError as error:
        raise UsageError(f"the source file {file} cannot be read: {error.strerror}") from error
    package = name if is_package else name.rpartition(".")[0]
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(package, node)
            if base is not None:
                found.update((base, None) for _ in (1,) if base)
                found.update((f"{base}.{alias.name}" if base else alias.name, None) for alias in node.names)
    return tuple(name for name in found if "*" not in name)


def _base(package: str, node: ast.ImportFrom) -> str | None:
    """Give the module that `from … import` names; None for more dots than there are packages."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level - 1 > len(parts):
        return None
    above = parts[: len(parts) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


@functools.lru_cache(maxsize=16)
def _packed(stamps: tuple[tuple[str, str, int, int], ...]) -> tuple[str, bytes, dict[str, int]]:
    files: dict[str, bytes] = {}
    for inside, file, _, _ in stamps:
        try:
            files[inside] = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"the source file {file} cannot be read: {error.strerror}") from error
    digest, data = pack_bundle(files)
    return digest, data, {inside: len(text) for inside, text in files.items()}


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = os.stat(file)  # noqa: PTH116 - the fastest way, for hundreds of files
    except OSError as error:
        raise UsageError(f"the source file {file} cannot be read: {error.strerror}") from error
    return (found.st_mtime_ns, found.st_size)
