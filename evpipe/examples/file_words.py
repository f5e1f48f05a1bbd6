"""Files from step to step: each file is counted by a step of its own, and a folder of reports comes out.

    evpipe run evpipe.examples.file_words:word_counts -p files=8

A `Path` that a step returns travels with its content, a folder with all that is in it: whoever takes it gets a copy of
its own, on whatever machine it runs.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

from evpipe import pipeline, step

WORDS = ("event", "log", "step", "run", "queue", "launch", "worker", "shard", "slot", "handle", "attempt", "artifact")


@step
def write_files(files: int, lines: int, seed: int) -> list[Path]:
    """Make some text files."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    made: list[Path] = []
    for i in range(files):
        file = folder / f"part-{i:02}.txt"
        file.write_text("\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(lines)) + "\n")
        made.append(file)
    return made


@step
def count(file: Path) -> dict[str, int]:
    return dict(Counter(file.read_text().split()).most_common())


@step
def report(counts: list[dict[str, int]]) -> Path:
    """Write one table a file and one of the sum into a folder."""
    folder = Path(tempfile.mkdtemp()) / "report"
    (folder / "parts").mkdir(parents=True)
    total: Counter[str] = Counter()
    for i, found in enumerate(counts):
        total.update(found)
        (folder / "parts" / f"part-{i:02}.tsv").write_text(_table(found))
    (folder / "total.tsv").write_text(_table(dict(total.most_common())))
    return folder


def _table(found: dict[str, int]) -> str:
    return "".join(f"{word}\t{number}\n" for word, number in found.items())


@pipeline(version="1.0.0")
def word_counts(files: int = 6, lines: int = 2_000, seed: int = 1) -> Path:
    written = write_files(files, lines, seed)
    return report([count(written[i]) for i in range(files)])


if __name__ == "__main__":
    print((word_counts.run().value / "total.tsv").read_text(), end="")
