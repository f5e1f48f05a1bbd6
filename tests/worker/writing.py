"""Steps that write in every way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evpipe import Retry, pipeline, step
from tests.worker.steps import wait_for

MEGABYTE = b"x" * 1024 * 1024


@step
def both(name: str, after: Any = None) -> str:
    """Lines to both streams, the last without an end."""
    for i in range(3):
        print(f"{name} out {i}")
        print(f"{name} err {i}", file=sys.stderr)
    print(f"{name} end", end="")
    return name


@step(retries=Retry(2, delay_s=0))
def again(file: str) -> int:
    with Path(file).open("a") as out:
        out.write("x")
    attempt = len(Path(file).read_text())
    print(f"attempt {attempt}")
    if attempt < 3:
        raise ValueError(attempt)
    return attempt


@step
def junk() -> None:
    os.write(1, b"\xff\xfe\x00 binary\n\x1b[31mred\x1b[0m\n\n\xe2\x82")
    os.write(1, b"\xac euro\r\n\xe2\x82")


@step
def endless_line() -> float:
    """100 MB without an end; gives the seconds that it took."""
    began = time.monotonic()
    for _ in range(100):
        os.write(1, MEGABYTE)
    print("\nthe next line")
    return time.monotonic() - began


@step
def quick(count: int) -> int:
    for i in range(count):
        print(i)
    return count


@step
def progress() -> None:
    for i in range(20_000):
        print(f"\r{i / 200:.2f} % of the work is done", end="", flush=i % 100 == 0)
    print("\r100 %")
    print("10 %\r20 %", end="")


@step
def subprocesses() -> None:
    print("before")
    subprocess.run(["sh", "-c", "echo from sh; echo to err >&2; printf 'without an end'"], check=True)


@step
def replace_stdout() -> None:
    """What is in the buffer of a stream that is put aside is its own, too."""
    sys.stdout.write("before")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    print("never seen")


@step
def wait_and_write(name: str, folder: str, other: str) -> str:
    """Take turns with another step."""
    print(f"{name} 1")
    (Path(folder) / name).touch()
    wait_for(str(Path(folder) / other))
    print(f"{name} 2")
    return name


@step(executor="thread")
def thread_lines(name: str, folder: str, other: str) -> str:
    return wait_and_write.fn(name, folder, other)


@step
async def flood(count: int, length: int) -> int:
    print("\n".join("y" * length for _ in range(count)))
    print("z" * 3_000_000, end="")
    return count


@pipeline
def chain() -> list[str]:
    first = both("one")
    return [first, both.options(name="two")("two", first)]


@pipeline
def attempts(file: str) -> int:
    return again(file)


@pipeline
def turns(folder: str) -> list[str]:
    return [
        wait_and_write.options(name="a")("a", folder, "b"),
        wait_and_write.options(name="b")("b", folder, "a"),
    ]


@pipeline
def turns_in_threads(folder: str) -> list[str]:
    return [thread_lines.options(name="a")("a", folder, "b"), thread_lines.options(name="b")("b", folder, "a")]


@pipeline
def writes(kind: str) -> Any:
    first = {
        "junk": junk,
        "endless_line": endless_line,
        "progress": progress,
        "subprocesses": subprocesses,
        "replace_stdout": replace_stdout,
    }[kind]()
    return [first, both("next", first)]


@pipeline
def many_lines(count: int) -> int:
    return quick(count)


@pipeline
def floods(count: int, length: int) -> int:
    return flood(count, length)
