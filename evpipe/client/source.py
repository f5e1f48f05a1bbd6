"""Where code is on one machine: what a submitter packs its bundle from, and where a child of a worker looks.

A child that gets it looks for modules in its folders first, and finds what `__main__` and modules loaded from a file
stand for; what was typed into a notebook is saved for that (`cells`). It never leaves the machine: what a launch says
is `client.bundle`'s.
"""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from evpipe.sdk.functions import TYPED_STEPS, file_of

#: Names of folders of installed packages: every interpreter has its own, and must not see another's.
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Source:
    """Places of code on one machine."""

    #: Folders (or zip files) that modules are looked for in first, in this order; absolute.
    paths: tuple[str, ...] = ()
    #: Modules that stand for a file that no path leads to, by name; `__main__` is one of them.
    files: Mapping[str, str] = field(default_factory=dict)
    #: What `__main__` is called where it can be imported, as with `python -m pkg.module`; or "".
    main: str = ""

    @classmethod
    def of_process(cls) -> Source:
        """Give the places of this process's own code: what is on its path, but not what is installed."""
        main = sys.modules.get("__main__")
        name = _importable_name(main)
        paths = _own_paths(tuple(sys.path))
        files = {} if name else _file_of_typed(main, paths) or _file_of("__main__", main)
        for module_name in TARGETS:
            files |= _file_of(module_name, sys.modules.get(module_name))
        return cls(paths, files, name)

    def as_map(self) -> dict[str, Any]:
        """Give it as a worker tells it to its children."""
        return {"paths": list(self.paths), "files": dict(self.files), "main": self.main}

    @classmethod
    def from_map(cls, found: Mapping[str, Any]) -> Source:
        """Take it from the worker."""
        return cls(tuple(found["paths"]), found["files"], found["main"])

    @property
    def key(self) -> tuple[object, ...]:
        """What two sources have in common if a child of one may run steps of the other."""
        return (self.paths, tuple(sorted(self.files.items())), self.main)


#: Modules that were loaded from a file under a name that no path leads to; whoever loads one adds it.
TARGETS: Final[set[str]] = set()


def _importable_name(main: ModuleType | None) -> str:
    spec = getattr(main, "__spec__", None)
    if spec is None or spec.name in {None, "__main__"} or not file_of(vars(main)):
        return ""
    # Of `python -m pkg` the spec is that of pkg.__main__.
    return str(spec.name)


def _file_of(name: str, module: ModuleType | None) -> dict[str, str]:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return {}
    # Also one that is gone: whoever looks for it there can say so.
    return {name: str(Path(file).absolute())}


def _file_of_typed(main: ModuleType | None, paths: tuple[str, ...]) -> dict[str, str]:
    """Save what was typed into a notebook or an interpreter, if steps were."""
    if main is None or not TYPED_STEPS or file_of(vars(main)):
        return {}
    # Only here: it looks for the places of code itself.
    from evpipe.client.cells import cells_file

    file = cells_file(main, paths)
    return {} if file is None else {"__main__": file}


@functools.lru_cache(maxsize=8)
def _own_paths(entries: tuple[str, ...]) -> tuple[str, ...]:
    library = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "scripts")} | {site.getusersitepackages()}
    own: list[str] = []
    for entry in entries:
        path = os.path.abspath(entry)  # noqa: PTH100 - of a text that may be "", which is the current directory
        parts = Path(path).parts
        standard = path in library or "lib-dynload" in parts or Path(path).name.startswith("python3")
        if path not in own and not standard and not _INSTALLED & set(parts) and Path(path).exists():
            own.append(path)
    return tuple(own)
