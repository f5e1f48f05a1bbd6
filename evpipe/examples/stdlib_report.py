"""A look at Python's own standard library: find its files, analyse them in parallel, merge, report.

    evpipe run evpipe.examples.stdlib_report:report

It shows steps that run in parallel (`analyse`), values that flow from step to step, a fan-in, a retry (the
first attempt of `publish` fails on purpose) and, on a terminal, the live table of steps.
"""

from __future__ import annotations

import ast
import itertools
import sysconfig
from pathlib import Path
from typing import TypedDict

from evpipe import Retry, pipeline, step

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
    files = Path(sysconfig.get_path("stdlib")).glob("*.py")
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
        source = Path(file).read_bytes()
        counts["lines"] += source.count(b"\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                counts["classes"] += 1
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                counts["functions"] += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                counts["longest"] = max(counts["longest"], (length, node.name, Path(file).name))
    return counts


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
