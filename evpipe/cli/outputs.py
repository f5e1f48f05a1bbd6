"""What the steps of a run gave, and the artifacts that they kept beside it: for showing them, and as files."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from evpipe.cli.output import json_text, one_line, plain, value_text
from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError, OutputRef, select
from evpipe.core.machine import Run
from evpipe.core.names import for_people
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.artifacts import VALUE
from evpipe.wire.classes import Twin
from evpipe.wire.digests import value_digest
from evpipe.wire.extensions import LEAVES
from evpipe.wire.lowering import shown
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.storing import artifacts_of, open_stored
from evpipe.wire.values import pack

#: Parts of one output that are shown.
PARTS_MAX: Final = 64
#: Of the name of a file; file systems allow 255 bytes.
NAME_CHARS_MAX: Final = 50
#: What files of a kind are called, where their bytes are a form that others read.
_SUFFIXES: Final = {"numpy": ".npy", "arrow": ".arrow", "pandas": ".arrow", "sklearn": ".skops", "value": ".msgpack"}


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a step, or a part of it that is there by itself."""

    #: Where in the output: "['model']".
    path: str
    #: Type of a value, or kind of an artifact.
    kind: str
    size_bytes: int
    digest: str
    #: The value for a person, where it is small; "" for an artifact.
    shown: str
    artifact: Artifact | None = None

    def described(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": self.kind,
            "bytes": self.size_bytes,
            "digest": self.digest,
            "stored": self.artifact is not None and self.artifact.data is None,
            "value": self.shown or None,
        }


def outputs_of(value: Any) -> list[Output]:
    """Take an output apart: what it has by name is told one by one."""
    named = isinstance(value, dict) and value and len(value) <= PARTS_MAX and all(type(key) is str for key in value)
    if named:
        return [_output(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [_output(f".{field}", part) for field, part in zip(value._fields, value, strict=True)]
    return [_output("", value)]


def _output(path: str, value: Any) -> Output:
    if isinstance(value, Artifact):
        return Output(path, value.kind, value.size_bytes, value.content or value.digest, "", value)
    data = pack(value, "the output")
    return Output(path, type(value).__name__, len(data), value_digest(value), one_line(value_text(value), 80))


async def save_outputs(objects: Any, run: Run, folder: Path) -> AsyncIterator[str]:
    """Write a run's outputs and named artifacts to files below a new folder; gives a line for each file.

    An artifact is a file as it is stored, at a path made of the step and the keys and indices that lead to it; files
    and folders are themselves. The rest of an output is `output.json`, where each artifact has the name of its file.
    What a step kept by name is in a folder beside that of its output, `<step>.artifacts`, under those names.

    Raises:
        UsageError: if the folder is there already, or files cannot be written there.
        ArtifactUnreadable: at the end, if artifacts are missing or damaged: what else there is was written.
    """
    try:
        await anyio.to_thread.run_sync(lambda: folder.mkdir(parents=True))
    except FileExistsError:
        raise UsageError(f"--save {folder}: it is there already; name a new folder") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--save {folder}: it cannot be made ({_said(error)}); name another folder") from error
    missing: list[str] = []
    written = False
    names = Names()
    #: Folders of named artifacts, by step.
    kept: dict[str, tuple[Path, Names]] = {}
    for step, name, value in _to_save(run):
        saving = _Saving(objects, folder, step if name is None else f"{step}.artifacts[{name!r}]")
        try:
            if name is None:
                await saving.output(value, folder / names.new(step))
            else:
                if step not in kept:
                    kept[step] = (folder / names.new(f"{step[: NAME_CHARS_MAX - 10]}.artifacts"), Names())
                await saving.output(value, *kept[step], stem=name)
        except OSError as error:
            what = "the output" if name is None else f"the artifact {name!r}"
            raise UsageError(f"--save {folder}: {what} of step {step!r} cannot be written: {_said(error)}") from error
        for line in saving.lines:
            written = True
            yield line
        missing += saving.missing
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise ArtifactUnreadable(f"not saved: {missing[0]}{more}")
    if not written:
        yield "there are no outputs"


def _to_save(run: Run) -> Iterator[tuple[str, str | None, Any]]:
    """Give step, name (None: it is the output) and value of all that a run gave."""
    for step in run.outputs:
        if step not in run.expansions:  # its elements have all of it
            yield for_people(step), None, run.outputs[step]
    for step, state in run.steps.items():
        for name, value in state.notes.artifacts.items() if state.notes is not None else ():
            yield for_people(step), name, value


class Names:
    """Names of files in one folder: safe ones, and each only once, whatever the file system makes of case."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, wanted: str, suffix: str = "") -> str:
        """Give a name that looks like the one that is wanted."""
        stem = "".join(c if c.isalnum() or c in "_-." else "_" for c in wanted[:NAME_CHARS_MAX]).strip(".") or "_"
        for number in itertools.count(2):
            if (name := f"{stem}{suffix}").casefold() not in self._taken:
                break
            stem = f"{stem.removesuffix(f'-{number - 1}')}-{number}"
        self._taken.add(name.casefold())
        return name


class _Saving:
    """One output on its way to files."""

    def __init__(self, objects: Any, root: Path, step: str) -> None:
        self._objects = objects
        self._root = root
        self._step = step
        self.lines: list[str] = []
        self.missing: list[str] = []

    async def output(self, value: Any, folder: Path, names: Names | None = None, stem: str = "output") -> None:
        value, problem = await self._opened(value)
        if problem:
            self.missing.append(f"{self._step}: {problem}")
            return
        names = names or Names()
        if isinstance(value, Artifact):
            await self._artifact(value, folder, names, stem, "")
            return
        if isinstance(value, (str, bytes)):
            file = folder / names.new(stem, ".txt" if isinstance(value, str) else ".bin")
            data = value.encode(errors="surrogatepass") if isinstance(value, str) else value
        else:
            file = folder / names.new(stem, ".json")
            form = await self._form(value, folder, names, "")
            data = await anyio.to_thread.run_sync(lambda: (json_text(form) + "\n").encode(errors="backslashreplace"))
        await anyio.to_thread.run_sync(_write, file, data)
        self.lines.append(f"{self._step}: {file}")

    async def _form(self, node: Any, folder: Path, names: Names, path: str) -> Any:
        """Give a value as JSON has it; its artifacts are written below the folder."""
        parts = _parts(node)
        if parts is None:
            return node
        done = []
        for key, place, child in parts:
            if type(child) in LEAVES:
                done.append(child)
                continue
            opened, problem = await self._opened(child)
            if problem:
                self.missing.append(f"{self._step}{path}{place}: {problem}")
                done.append({**plain(child), "file": None})
            elif isinstance(opened, Artifact):
                done.append(await self._artifact(opened, folder, names, key, path + place))
            elif _parts(opened) is None or not artifacts_of(opened):
                done.append(await self._form(opened, folder, names, path + place))
            else:
                below = folder / names.new(key)
                done.append(await self._form(opened, below, Names(), path + place))
        if isinstance(node, dict):
            for i, key in enumerate(node):
                for artifact in () if type(key) in LEAVES else artifacts_of(key):
                    await self._artifact(artifact, folder, names, f"key-{i}", f"{path}.keys()[{i}]")
        keys = [key for key, _, _ in parts]
        if isinstance(node, (list, set, frozenset)) or (isinstance(node, tuple) and not hasattr(node, "_fields")):
            return done
        # Keys that are written alike: 1 and "1".
        return dict(zip(keys, done, strict=True)) if len(set(keys)) == len(keys) else list(zip(keys, done, strict=True))

    async def _artifact(self, artifact: Artifact, folder: Path, names: Names, name: str, path: str) -> Any:
        """Write an artifact.

        Returns:
            What stands for it in the rest of the output.
        """
        await anyio.to_thread.run_sync(partial(folder.mkdir, parents=True, exist_ok=True))
        is_path = artifact.kind in {"file", "folder"}
        file = folder / names.new(name, "" if is_path else _SUFFIXES.get(artifact.kind, ""))
        stored = file.with_name(f".{secrets.token_hex(8)}") if is_path else file
        try:
            if artifact.data is not None:
                await anyio.to_thread.run_sync(_write, stored, artifact.data)
            elif not await self._objects.get_file(artifact.digest, stored):
                raise ArtifactUnreadable(f"{artifact} is missing in the object store, or damaged")
            if is_path:
                file = await anyio.to_thread.run_sync(_as_itself, artifact, stored, file)
        except ArtifactUnreadable as error:
            self.missing.append(f"{self._step}{path}: {error}")
            return {**plain(artifact), "file": None}
        self.lines.append(f"{self._step}{path}: {file}")
        return {**plain(artifact), "file": str(file.relative_to(self._root))}

    async def _opened(self, value: Any) -> tuple[Any, str]:
        """Open what is a value of the protocol that is stored; gives it, or what is wrong with it."""
        while isinstance(value, Artifact) and value.kind == VALUE:
            try:
                value = select(open_stored(await self._bytes(value)), OutputRef("", value.path), "the stored value")
            except (ArtifactUnreadable, RemoteProtocolError, BindingError) as error:
                return None, str(error)
        return value, ""

    async def _bytes(self, artifact: Artifact) -> bytes:
        if artifact.data is not None:
            return artifact.data
        file = self._root / f".{secrets.token_hex(8)}"
        try:
            if not await self._objects.get_file(artifact.digest, file):
                raise ArtifactUnreadable(f"{artifact} is missing in the object store, or damaged")
            return await anyio.to_thread.run_sync(file.read_bytes)
        finally:
            file.unlink(missing_ok=True)


def _parts(node: Any) -> list[tuple[str, str, Any]] | None:
    """Take a value apart: name, place and value of each part; None if it has none."""
    if isinstance(node, dict):
        return [(key if type(key) is str else shown(key), f"[{shown(key)}]", child) for key, child in node.items()]
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return [(field, f".{field}", child) for field, child in zip(node._fields, node, strict=True)]
    if isinstance(node, (list, tuple)):
        return [(str(i), f"[{i}]", child) for i, child in enumerate(node)]
    if isinstance(node, (set, frozenset)):
        return [(str(i), f"{{{i}}}", child) for i, child in enumerate(node)]
    fields = _fields(node)
    return None if fields is None else [(name, f".{name}", child) for name, child in fields.items()]


def _fields(node: Any) -> dict[str, Any] | None:
    """Give the fields of a dataclass or a Struct, or of what stands for one whose class is not here."""
    if isinstance(node, Twin):
        return dict(vars(node))
    if isinstance(node, type):
        return None
    names = getattr(type(node), "__dataclass_fields__", None) or getattr(type(node), "__struct_fields__", ())
    return {name: getattr(node, name, None) for name in names} if names else None


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _as_itself(artifact: Artifact, stored: Path, folder: Path) -> Path:
    """Make the file or folder that an artifact is, in a folder of its own; its bytes are not needed any more."""
    from evpipe.wire.serializers.registry import serializer_named
    from evpipe.wire.spool import StoredFile

    def made() -> Path:
        folder.mkdir()
        return folder

    try:
        found = serializer_named(artifact.kind, artifact.version).read(
            StoredFile(artifact.meta, artifact.size_bytes, stored, made)
        )
    finally:
        stored.unlink()
    return Path(found)
