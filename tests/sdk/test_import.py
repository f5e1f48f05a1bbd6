"""`import evpipe` is standard library only: a file with a @step is imported everywhere, often."""

import subprocess
import sys
from pathlib import Path

import evpipe

SCRIPT = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import evpipe
took_s = time.perf_counter() - start

@evpipe.step(retries=2)
def load(rows: int) -> list[int]:
    return [rows]

@evpipe.pipeline
def work() -> list[int]:
    return load(1)

work.build({})
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(took_s)
print(*sorted(loaded - sys.stdlib_module_names - {"evpipe"}))
print(*sorted(name for name in sys.modules if name.startswith("evpipe.")))
"""


def run(script: str) -> tuple[float, list[str]]:
    """Give the user CPU seconds of a python that runs the script, and the lines that it printed."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines()


def test_a_file_with_a_step_loads_the_standard_library_only() -> None:
    """Nothing of the bus, the wire or a dependency; the cost is printed beside that of a bare python."""
    bare_s, _ = run("pass")
    cost_s, (took_s, foreign, ours) = run(SCRIPT)
    print(f"import evpipe: {float(took_s) * 1e3:.0f} ms; process {cost_s * 1e3:.0f} ms, bare {bare_s * 1e3:.0f} ms CPU")
    assert foreign == ""
    assert {name.split(".")[1] for name in ours.split()} == {"core", "errors", "sdk"}


def test_every_name_that_is_promised_is_listed_and_typed() -> None:
    """`__all__`, the lazy table and the imports for type checkers tell the same story."""
    assert len(set(evpipe.__all__)) == len(evpipe.__all__)
    assert set(evpipe._LAZY) <= set(evpipe.__all__)
    eager = set(evpipe.__all__) - set(evpipe._LAZY)
    assert eager <= set(vars(evpipe))
    assert set(evpipe.__all__) <= set(dir(evpipe))
    source = Path(evpipe.__file__).read_text()
    for name, module in evpipe._LAZY.items():
        assert any(line.strip().startswith(f"from {module} import") and name in line for line in source.splitlines())


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    """The lazy look-up does not change what a misspelt name is."""
    assert not hasattr(evpipe, "stpe")
