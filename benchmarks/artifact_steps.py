"""The steps of the benchmark of artifacts: each in a process of its own, which says how much memory it has needed."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from pathlib import Path

import numpy as np

from evpipe import pipeline, step

MIB = 1024 * 1024


def peak_mb() -> float:
    """Peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_file(size_mb: int, seed: int) -> Path:
    """Write a file of bytes that nobody can compress, in little memory."""
    file = Path(tempfile.mkdtemp(dir=os.environ.get("EVPIPE_BENCHMARK_FOLDER"))) / "data.bin"
    block = np.random.default_rng(seed).bytes(MIB)
    with file.open("wb") as stream:
        for i in range(size_mb):
            stream.write(i.to_bytes(8, "little") + block[8:])
    return file


@step
def make_file(size_mb: int) -> tuple[Path, float]:
    return write_file(size_mb, 1), peak_mb()


@step
def read_file(made: tuple[Path, float]) -> tuple[int, float, float]:
    """Read it once; gives its size and the peaks of both processes."""
    size = 0
    with made[0].open("rb") as stream:
        while data := stream.read(MIB):
            size += len(data)
    return size, made[1], peak_mb()


@step
def make_arrays(count: int, size_mb: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 2**63, size_mb * MIB // 8) for _ in range(count)]


@step
def check_array(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:8]


@step
def add_up(digests: list[str]) -> int:
    return len(digests)


@pipeline
def one_file(size_mb: int = 1024) -> tuple[int, float, float]:
    return read_file(make_file(size_mb))


@pipeline
def many_arrays(count: int = 1_000, size_mb: int = 1) -> int:
    made = make_arrays(count, size_mb)
    return add_up([check_array(made[i]) for i in range(count)])


@pipeline
def fan_out(count: int = 200, size_mb: int = 50) -> int:
    made = make_arrays(1, size_mb)
    return add_up([check_array(made[0]) for _ in range(count)])
