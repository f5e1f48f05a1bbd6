"""Which installed packages an import stands for, with their versions and those of what they require.

As `importlib.metadata` has it, but read for the asked names only: its table of all names takes a third of a second to
make where a hundred packages are installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from evpipe.client.own_modules import OURS

_NAME: Final = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
_EXTRA: Final = re.compile(r"\bextra\s*==")
_INFO: Final = (".dist-info", ".egg-info")


class _Package:
    """An installed package: a folder of metadata."""

    def __init__(self, info: Path) -> None:
        self.info = info
        text = ""
        for name in ("METADATA", "PKG-INFO") if info.is_dir() else ("",):
            with suppress(OSError):
                text = (info / name).read_text(errors="replace")
                break
        header = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
        fields = [line.partition(":")[::2] for line in header.splitlines() if not line.startswith((" ", "\t"))]
        first = {name.lower(): value.strip() for name, value in reversed(fields)}
        stem, _, version = info.stem.partition("-")
        self.name = first.get("name") or stem
        self.version = first.get("version") or version
        #: Names of packages, normalised; not those that only an extra asks for. Whether the other conditions hold is
        #: not looked at: what is installed nevertheless may be in use.
        self.requires: list[str] = []
        for name, value in fields:
            found = _NAME.match(value)
            if name.lower() == "requires-dist" and found and not _EXTRA.search(value.partition(";")[2]):
                self.requires.append(_normal(found[1]))


class _Installed:
    """The packages that are installed in some folders."""

    def __init__(self, folders: Iterable[str]) -> None:
        #: Metadata by normalised name; of two the one that imports find.
        self._infos: dict[str, Path] = {}
        self._packages: dict[str, _Package] = {}
        #: Normalised names of the packages that have a module, by its top-level name.
        self._owners: dict[str, list[str]] = {}
        for folder in folders:
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(_INFO):
                        stem = entry.name.removesuffix(_INFO[0]).removesuffix(_INFO[1])
                        self._infos.setdefault(_normal(stem.partition("-")[0]), Path(entry.path))

    def package(self, name: str) -> _Package | None:
        """Give one by its normalised name."""
        if name not in self._packages and name in self._infos:
            self._packages[name] = _Package(self._infos[name])
        return self._packages.get(name)

    def is_editable(self, name: str) -> bool:
        """Say whether a package's files are where somebody edits them."""
        return b'"editable": true' in _read(self._infos[name] / "direct_url.json")

    def owners(self, modules: set[str]) -> Mapping[str, list[str]]:
        """Give the normalised names of the packages that have these modules: more than one of a namespace."""
        missing = modules - set(self._owners)
        self._owners |= {module: [] for module in missing}
        if missing:
            # A module's folder or file as a line of RECORD has it, or a line of top_level.txt.
            wanted = {
                module: re.compile(rb"^" + re.escape(module).encode() + rb"[/.]", re.MULTILINE) for module in missing
            }
            for name, info in self._infos.items():
                record = _read(info / "RECORD")
                top = set(_read(info / "top_level.txt").decode(errors="replace").split())
                for module, pattern in wanted.items():
                    if module in top or (module.encode() in record and pattern.search(record)):
                        self._owners[module].append(name)
        return self._owners


_known: dict[tuple[object, ...], _Installed] = {}


def packages_of(modules: Iterable[str]) -> dict[str, str]:
    """Give the version of every installed package that has one of these modules, and of all that those require.

    Args:
        modules: top-level names, none of them of the standard library.

    Returns:
        Versions by name; for a module that no package has, or one that is developed (installed as editable), the
        digest of its files by its own name.
    """
    installed = _installed()
    wanted = set(modules)
    owners = installed.owners(wanted)
    found: dict[str, str] = {}
    todo: list[str] = []
    for module in sorted(wanted):
        todo += owners[module]
        if not owners[module] or any(installed.is_editable(name) for name in owners[module]):
            found[module] = _digest_of_files(module)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        package = installed.package(name)
        if name in seen or package is None or name == OURS:
            continue
        seen.add(name)
        found[package.name] = package.version
        todo += package.requires
    return found


def _installed() -> _Installed:
    folders = [path for path in dict.fromkeys(sys.path) if isinstance(path, str)]
    # What is installed while this runs changes a folder.
    key = tuple((folder, _modified(folder)) for folder in folders)
    if key not in _known:
        _known.clear()
        _known[key] = _Installed(folders)
    return _known[key]


def _digest_of_files(module: str) -> str:
    """Give what tells one version of a module from another where nothing else does."""
    with suppress(ImportError, ValueError, AttributeError, OSError):
        spec = importlib.util.find_spec(module)
        if spec is None:
            return ""
        folders = [Path(folder) for folder in spec.submodule_search_locations or () if folder]
        files = sorted((file.relative_to(folder), file) for folder in folders for file in folder.rglob("*.py"))
        if not folders and spec.origin is not None:
            files = [(Path(), Path(spec.origin))]
        found = hashlib.sha256()
        for inside, file in files:
            found.update(f"{inside.as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return found.hexdigest()[:16]
    return ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 - the fastest way
    except OSError:
        return 0
