"""What the steps of a run gave: for showing it, and as files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from evpipe.cli.output import one_line, value_text
from evpipe.core.artifact import Artifact
from evpipe.core.machine import Run
from evpipe.errors import UsageError
from evpipe.wire.digests import value_digest
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.values import pack

#: Parts of one output that are shown.
PARTS_MAX: Final = 64
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


def _artifacts(run: Run) -> Iterator[tuple[str, str, Artifact]]:
    for name, value in run.outputs.items():
        for part in outputs_of(value):
            if part.artifact is not None:
                yield name, part.path, part.artifact


async def save_outputs(objects: Any, run: Run, folder: Path) -> list[str]:
    """Write the artifacts among a run's outputs to files, as they are stored; files and folders as themselves.

    Returns:
        A line for each.

    Raises:
        UsageError: if the folder is there already.
        ArtifactUnreadable: if an artifact is missing or damaged.
    """
    try:
        await anyio.to_thread.run_sync(lambda: folder.mkdir(parents=True))
    except FileExistsError:
        raise UsageError(f"--save {folder}: it is there already; name a new folder") from None
    lines: list[str] = []
    for step, path, artifact in _artifacts(run):
        place = folder / step
        place.mkdir(exist_ok=True)
        name = "".join(c for c in path if c.isalnum() or c in "_-.").strip(".") or "output"
        file = place / f"{name}{_SUFFIXES.get(artifact.kind, '')}"
        if artifact.data is not None:
            file.write_bytes(artifact.data)
        elif not await objects.get_file(artifact.digest, file):
            raise ArtifactUnreadable(f"{step}{path}: {artifact} is missing in the object store, or damaged")

        if artifact.kind in {"file", "folder"}:
            file = await anyio.to_thread.run_sync(_as_itself, artifact, file, place / name)
        lines.append(f"{step}{path}: {file}")
    return lines or ["there are no stored outputs"]


def _as_itself(artifact: Artifact, stored: Path, folder: Path) -> Path:
    """Make the file or folder that an artifact is."""
    from evpipe.wire.serializers.registry import serializer_named
    from evpipe.wire.spool import StoredFile

    bytes_at = stored.rename(stored.with_name(f".{stored.name}.stored"))

    def made() -> Path:
        folder.mkdir()
        return folder

    try:
        found = serializer_named(artifact.kind, artifact.version).read(
            StoredFile(artifact.meta, artifact.size_bytes, bytes_at, made)
        )
    finally:
        bytes_at.unlink()
    return Path(found)
