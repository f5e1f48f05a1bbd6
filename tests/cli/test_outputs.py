"""What `evpipe runs show --save` writes of the outputs of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest

from evpipe.cli.outputs import Names, save_outputs
from evpipe.errors import UsageError
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import Spool
from evpipe.wire.storing import encode_stored
from evpipe.wire.values import unpack

LARGE = [float(i) for i in range(100_000)]


class Fit(NamedTuple):
    file: Path
    rows: list[Any]


class Objects:
    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def get_file(self, digest: str, file: Path) -> bool:
        found = self._spool.files.get(digest)
        if found is None:
            return False
        await anyio.Path(file).write_bytes(found.read_bytes())
        return True


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(lambda: tmp_path / "spool")


def save(spool: Spool, outputs: dict[str, Any], folder: Path) -> list[str]:
    stored = {step: unpack(encode_stored(value, "the output", spool)) for step, value in outputs.items()}

    async def main() -> list[str]:
        run: Any = SimpleNamespace(expansions={}, outputs=stored, steps={})
        return [line async for line in save_outputs(Objects(spool), run, folder)]

    return anyio.run(main)


def made(tmp_path: Path, name: str) -> Path:
    file = tmp_path / "made" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(name)
    return file


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_artifacts_are_found_wherever_they_are(spool: Spool, tmp_path: Path) -> None:
    array = np.ones(3)
    outputs = {
        "one": array,
        "paths": [made(tmp_path, "a.txt"), made(tmp_path, "b.txt")],
        "mixed": {"xs": [array], "t": (made(tmp_path, "c.txt"), 1)},
        "keyed": {1: array, "p": made(tmp_path, "d.txt")},
        "fit": Fit(made(tmp_path, "e.txt"), [array]),
        "deep": {"x": {"y": array}},
        "keys": {made(tmp_path, "k.txt"): 1},
        "large": {"x": array, "rows": LARGE},
        "larger": [LARGE, [array] * 2],
    }
    out = tmp_path / "out"
    lines = save(spool, outputs, out)
    assert files(out) == {
        "one/output.npy",
        *("paths/output.json", "paths/0/a.txt", "paths/1/b.txt"),
        *("mixed/output.json", "mixed/xs/0.npy", "mixed/t/0/c.txt"),
        *("keyed/output.json", "keyed/1.npy", "keyed/p/d.txt"),
        *("fit/output.json", "fit/file/e.txt", "fit/rows/0.npy"),
        *("deep/output.json", "deep/x/y.npy"),
        *("keys/output.json", "keys/key-0/k.txt"),
        *("large/output.json", "large/x.npy"),
        *("larger/output.json", "larger/1/0.npy", "larger/1/1.npy"),
    }
    assert len(lines) == len(files(out))
    assert f"mixed['t'][0]: {out}/mixed/t/0/c.txt" in lines
    assert (out / "mixed/t/0/c.txt").read_text() == "c.txt"
    assert np.load(out / "deep/x/y.npy").tolist() == [1, 1, 1]
    mixed = json.loads((out / "mixed/output.json").read_text())
    assert mixed["t"][1] == 1
    assert mixed["xs"][0]["artifact"] == "numpy"
    assert mixed["xs"][0]["file"] == "mixed/xs/0.npy"
    assert json.loads((out / "large/output.json").read_text())["rows"] == LARGE


@pytest.mark.parametrize(
    ("value", "file", "data"),
    [
        ("text", "output.txt", b"text"),
        ("x" * 100_000, "output.txt", b"x" * 100_000),
        (b"\x00" * 100_000, "output.bin", b"\x00" * 100_000),
        (None, "output.json", b"null\n"),
        ({"a": (1, float("nan"))}, "output.json", b'{"a": [1, "NaN"]}\n'),
        ({1: "a", "1": "b"}, "output.json", b'[["1", "a"], ["1", "b"]]\n'),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_artifact_is_written_too(spool: Spool, tmp_path: Path, value: Any, file: str, data: bytes) -> None:
    out = tmp_path / "out"
    assert save(spool, {"a": value}, out) == [f"a: {out}/a/{file}"]
    assert (out / "a" / file).read_bytes() == data


def test_keys_that_are_no_names_of_files(spool: Spool, tmp_path: Path) -> None:
    keys = ["..", "", ".", "a/b", "a_b", "A_B", "output.json", "x" * 300, "x" * 299]
    out = tmp_path / "out"
    save(spool, {"s": {key: made(tmp_path, "f.txt") for key in keys}}, out)
    assert {file.name for file in tmp_path.iterdir()} == {"spool", "made", "out"}
    assert len(files(out)) == len(keys) + 1
    assert all((out / entry["file"]).read_text() for entry in json.loads((out / "s/output.json").read_text()).values())


def test_names_are_given_once() -> None:
    names = Names()
    assert [names.new("a") for _ in range(3)] == ["a", "a-2", "a-3"]
    assert [names.new(name, ".npy") for name in ("b", "B", "a")] == ["b.npy", "B-2.npy", "a.npy"]
    assert [names.new(name) for name in ("..", "", "/")] == ["_", "_-2", "_-3"]


def test_a_folder_that_cannot_be_made_is_refused(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is there already; name a new folder"):
        save(spool, {}, tmp_path)
    file = made(tmp_path, "file")
    with pytest.raises(UsageError, match=r"--save .*: it cannot be made \(.*\); name another folder"):
        save(spool, {}, file / "nope")
    with pytest.raises(UsageError, match=r"--save /proc/nope: it cannot be made \(.*\); name another folder"):
        save(spool, {}, Path("/proc/nope"))


def test_the_rest_is_saved_if_one_is_missing(spool: Spool, tmp_path: Path) -> None:
    outputs = {"a": {"big": np.arange(50_000), "small": np.ones(3)}, "b": 1}

    class Forgetful(Objects):
        async def get_file(self, digest: str, file: Path) -> bool:
            return False

    stored = {step: unpack(encode_stored(value, "the output", spool)) for step, value in outputs.items()}
    out = tmp_path / "out"

    async def main() -> None:
        run: Any = SimpleNamespace(expansions={}, outputs=stored, steps={})
        async for _ in save_outputs(Forgetful(spool), run, out):
            pass

    with pytest.raises(ArtifactUnreadable, match=r"not saved: a\['big'\]: .* is missing in the object store"):
        anyio.run(main)
    assert files(out) == {"a/output.json", "a/small.npy", "b/output.json"}
    assert json.loads((out / "a/output.json").read_text())["big"]["file"] is None
