"""A look at Python's own standard library: find its files, analyse them in parallel, merge, report.

    evpipe run evpipe.examples.stdlib_report:report

It shows steps that run in parallel (`analyse`), values that flow from step to step, a fan-in, a retry (the
first attempt of `publish` fails on purpose) and, on a terminal, the live table of steps.
"""

from __future__ import annotations

import itertools
import re
import sysconfig
from pathlib import Path
from typing import TypedDict

from evpipe import Retry, pipeline, step

DEFINITION = re.compile(r"(\s*)(?:async\s+)?(def|class)\s+(\w+)")

#: What is installed beside the library, and its tests.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests"}

#: Counts the attempts of `publish` in this process.
_attempts = itertools.count(1)


class Counts(TypedDict):
    """What is counted in some files."""

    files: int
    lines: int
    functions: int
    classes: int
    #: Lines, name and file of the longest function.
    longest: tuple[int, str, str]


@step
def find(parts: int) -> list[list[str]]:
    """Give the modules of the standard library, dealt into lists of about the same size in bytes."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in root.rglob("*.py") if not LEFT_OUT & set(file.relative_to(root).parts)]
    dealt: list[list[str]] = [[] for _ in range(parts)]
    for i, file in enumerate(sorted(files, key=lambda file: file.stat().st_size, reverse=True)):
        # There and back again: each list gets a large file, then each a smaller one.
        there_and_back = i % (2 * parts)
        dealt[min(there_and_back, 2 * parts - 1 - there_and_back)].append(str(file))
    return dealt


@step(timeout_s=120)
def analyse(files: list[str]) -> Counts:
    """Count what is in some files."""
    counts = Counts(files=len(files), lines=0, functions=0, classes=0, longest=(0, "", ""))
    for file in files:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        counts["lines"] += len(lines)
        for number, line in enumerate(lines):
            found = DEFINITION.match(line)
            if found is None:
                continue
            indent, keyword, name = found.groups()
            if keyword == "class":
                counts["classes"] += 1
                continue
            counts["functions"] += 1
            counts["longest"] = max(
                counts["longest"], (block_length(lines, number, len(indent)), name, Path(file).name)
            )
    return counts


def block_length(lines: list[str], start: int, indent: int) -> int:
    """Count the lines of the block that begins at `start`: it ends before the next line that is not deeper."""
    last = start
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if line.strip():
            if len(line) - len(line.lstrip()) <= indent and line.lstrip()[0] not in "#)":
                break
            last = number
    return last - start + 1


@step
def merge(parts: list[Counts]) -> Counts:
    """Add up the counts of all parts."""
    return Counts(
        files=sum(part["files"] for part in parts),
        lines=sum(part["lines"] for part in parts),
        functions=sum(part["functions"] for part in parts),
        classes=sum(part["classes"] for part in parts),
        longest=max(part["longest"] for part in parts),
    )


@step(retries=Retry(3, delay_s=0.3, on=(ConnectionError,)))
def publish(counts: Counts) -> str:
    """Write the report; the first attempt fails on purpose, as a service that is away for a moment would."""
    if next(_attempts) == 1:
        raise ConnectionError("the printer is not answering (on purpose: this is what a retry looks like)")
    lines, name, file = counts["longest"]
    return (
        f"{counts['files']} modules, {counts['lines']:,} lines, {counts['functions']:,} functions, "
        f"{counts['classes']:,} classes; the longest function is {name} in {file} with {lines} lines"
    )


@pipeline(version="1.0.0")
def report(parts: int = 8) -> str:
    """Look at the standard library in so many parts."""
    batches = find(parts)
    counts = [analyse(batches[i]) for i in range(parts)]
    return publish(merge(counts))


if __name__ == "__main__":
    print(report.run().value)
