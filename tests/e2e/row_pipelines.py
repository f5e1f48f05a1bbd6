"""Pipelines of the rows: what they give is written down by the steps themselves, in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from evpipe import Cache, pipeline, serializer, step


def note(line: str) -> None:
    """Say in the witness file that a body began."""
    with Path(os.environ["EVPIPE_TEST_WITNESS"]).open("a") as file:
        file.write(f"{line}\n")


class Parts(NamedTuple):
    frame: pd.DataFrame
    array: Any
    label: str


@step
def make_parts(rows: int) -> Parts:
    note("make_parts")
    frame = pd.DataFrame(
        {
            "n": np.arange(rows),
            "kind": pd.Categorical(["a", "b"] * (rows // 2), categories=["b", "a", "c"]),
            "at": pd.date_range("2026-03-28", periods=rows, freq="h", tz="Europe/Berlin"),
            "maybe": pd.array([1, None] * (rows // 2), dtype="Int64"),
        }
    )
    return Parts(frame, np.linspace(0, 1, rows).reshape(2, -1), "all")


@step
def describe(parts: Parts) -> dict[str, Any]:
    note("describe")
    return {
        "dtypes": [str(dtype) for dtype in parts.frame.dtypes],
        "categories": list(parts.frame["kind"].cat.categories),
        "sum": int(parts.frame["n"].sum()),
        "shape": parts.array.shape,
        "label": parts.label,
        "type": type(parts).__name__,
    }


@pipeline
def parts(rows: int = 30_000) -> list[Any]:
    made = make_parts(rows)
    return [made, describe(made)]


@pipeline
def parts_elsewhere(rows: int) -> Any:
    """The second step waits for a worker of another queue."""
    return describe.options(queue="later")(make_parts(rows))


# ---- values of many types there and back


@step
def same(value: Any) -> Any:
    return value


@step
def file_of(text: str) -> Path:
    file = Path("made.txt").absolute()
    file.write_text(text)
    return file


@step
def read(file: Path) -> tuple[str, str]:
    return file.name, file.read_text()


@pipeline
def there_and_back(value: Any) -> Any:
    return same(same(value))


@pipeline
def through_a_file(text: str) -> tuple[str, str]:
    return read(file_of(text))


# ---- the cache


@step(cache=True)
def load(rows: int) -> dict[str, Any]:
    note("load")
    return {"values": list(range(rows)), "array": np.arange(rows * 1_000.0)}


@step
def again(rows: int, nonce: float) -> int:
    """Run every time, and give the same."""
    note("again")
    return rows


@step(cache=True)
def scale(values: list[int], array: Any, factor: int) -> float:
    note("scale")
    return factor * (sum(values) + float(array.sum()))


@step(cache=Cache(ignore=("verbose",), version="1"))
def show(value: float, verbose: bool) -> str:
    note("show")
    return f"{value:.0f}"


@pipeline
def cached(rows: int = 100, factor: int = 2, verbose: bool = False, nonce: float = 0.0) -> str:
    data = load(again(rows, nonce))
    return show(scale(data["values"], data["array"], factor), verbose)


@step(cache=Cache(ttl_s=1))
def short_lived(x: int) -> int:
    note("short_lived")
    if Path(os.environ["EVPIPE_TEST_WITNESS"] + ".breaks").exists():
        raise RuntimeError("not now")
    return x


@pipeline
def lives_a_second(x: int = 1) -> int:
    return short_lived(x)


@step(cache=True)
def fails_at_first(x: int) -> int:
    note("fails_at_first")
    if not Path(os.environ["EVPIPE_TEST_WITNESS"] + ".works").exists():
        raise RuntimeError("not yet")
    return x


@pipeline
def not_recorded(x: int = 1) -> int:
    return fails_at_first(x)


class Burning:
    """What cannot be written."""


@serializer(Burning, name="burning")
class BurningSerializer:
    @staticmethod
    def write(value: Burning, file: BinaryIO) -> None:
        message = "the disk is on fire"
        raise RuntimeError(message)

    @staticmethod
    def read(file: BinaryIO) -> Burning:
        return Burning()


@step
def burn() -> Burning:
    return Burning()


@pipeline
def burning() -> Burning:
    return burn()
