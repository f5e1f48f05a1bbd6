"""What of a notebook's cells is saved as a module: what the steps need, as it was last run, and nothing else."""

from __future__ import annotations

import importlib.util
import linecache
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evpipe import step
from evpipe.client import cells as module_of_cells
from evpipe.client.bundle import bundle_of
from evpipe.client.code_facts import facts_of
from evpipe.client.program import Program
from evpipe.client.source import Source
from evpipe.sdk import functions
from evpipe.sdk.options import executors_of
from evpipe.wire.bundles import unpack_bundle
from tests.e2e.helpers import clean_environment

HEADER = '"""What the steps of a notebook need of its cells."""'


def chosen(*cells: str, names: str = "f", space: dict[str, Any] | None = None) -> list[str]:
    """Give the statements that a module of these cells has for some functions."""
    program = Program(Source.of_process(), "")
    text = module_of_cells.module_text(cells, names.split(), space or {}, program)
    assert text.startswith(HEADER)
    return [part.strip("\n") for part in text.removeprefix(HEADER).split("\n\n") if part.strip()]


F = "def f(): return x"

CHOSEN: dict[str, tuple[list[str], list[str]]] = {
    "only what is needed": (["x = 1", "y = 2", F, "print(x)", "def g(): return y"], ["x = 1", F]),
    "order of cells": ([F, "x = 1"], [F, "x = 1"]),
    "last binding": (["x = 1", F, "x = 2"], [F, "x = 2"]),
    "last function": (["x = 1", "def f(): return 1", F], ["x = 1", F]),
    "cell run again": (["x = 1", F, "x = 1", F], ["x = 1", F]),
    "binding of itself": (["x = 1", "x = x + 1", F], ["x = 1", "x = x + 1", F]),
    "augmented": (["x = 1", "x += 1", F, "x += 1"], ["x = 1", "x += 1", F, "x += 1"]),
    "bound anew after that": (["x = 1", "x += 1", F, "x = 5"], [F, "x = 5"]),
    "value of an old one": (["a = 1", "x = a", "a = 2", F], ["a = 1", "x = a", F]),
    "value by an old helper": (
        ["def g(): return 1", "x = g()", "def g(): return 2", F],
        ["def g(): return 1", "x = g()", F],
    ),
    "helper that was changed": (
        ["def x(): return a", "a = 1", F, "def x(): return b", "b = 1"],
        [F, "def x(): return b", "b = 1"],
    ),
    "set in an item": (["x = {}", "x['a'] = 1", F, "x.update(b=1)"], ["x = {}", "x['a'] = 1", F, "x.update(b=1)"]),
    "and bound anew": (["x = {}", "x['a'] = 1", "x = {}", F], ["x = {}", F]),
    "not changed": (["x = {}", "x", "x.get(1)", "len(x)", "print(x)", "y = x.copy()", "show(x)", F], ["x = {}", F]),
    "changed by a helper": (
        ["x = []", "def put(r, v): r.append(v)", "put(x, 1)", F],
        ["x = []", "def put(r, v): r.append(v)", "put(x, 1)", F],
    ),
    "registered": (
        ["x = {}", "def put(g):\n    x[1] = g\n    return g", "@put\ndef g(): return 1", F],
        ["x = {}", "def put(g):\n    x[1] = g\n    return g", "@put\ndef g(): return 1", F],
    ),
    "magics": (
        ["get_ipython().run_line_magic('matplotlib', 'inline')\nx = 1", "get_ipython().system('ls')", F],
        ["x = 1", F],
    ),
    "cell that is measured": (
        ["get_ipython().run_cell_magic('time', '', 'x = 1\\nfor y in x: pass\\n')", F],
        ["x = 1", F],
    ),
    "cell of another language": (["get_ipython().run_cell_magic('bash', '', 'x=1\\n')", "x = 1", F], ["x = 1", F]),
    "not Python": (["x = 1", "x = = 2", "\ufeff", "", F], ["x = 1", F]),
    "compound": (
        ["try:\n    import x\nexcept ImportError:\n    x = None", F],
        ["try:\n    import x\nexcept ImportError:\n    x = None", F],
    ),
    "runs of pipelines": (
        [
            "from evpipe import pipeline, step",
            "x = 1",
            "@step\ndef f(): return x",
            "@pipeline\ndef p(): return f()",
            "p.run()",
            "r = p.run(); r.value",
            "if __name__ == '__main__':\n    p.run(x=x)",
        ],
        ["from evpipe import step", "x = 1", "@step\ndef f(): return x"],
    ),
    "runs in disguise": (
        [
            "import evpipe\nfrom evpipe import step, Pipeline",
            "@evpipe.pipeline\ndef p(): return f()",
            "q = Pipeline('q')",
            "def go(): return evpipe.run(p)",
            "x, y = go().value, 1",
            "z = p.options(mode='local').run().value",
            "a = p()",
            "b = q.run()",
            "def f(): return x, y, z, a, b, c",
            "c = x + 1",
        ],
        ["def f(): return x, y, z, a, b, c"],
    ),
    "imports one by one": (["import os, sys as x\nfrom a import b, c", F], ["import sys as x", F]),
    "semicolons": (["x = 1; y = 2", F], ["x = 1", F]),
    "as it was typed": (
        ["x = (1,\n     2)  # two\n\n\n# a comment\ny = 3", "def f():\n    # why\n    return x"],
        ["x = (1,\n     2)  # two", "def f():\n    # why\n    return x"],
    ),
    "decorators": (
        ["import functools", "@functools.lru_cache(\n    maxsize=None)\ndef f():\n    return 1"],
        ["import functools", "@functools.lru_cache(\n    maxsize=None)\ndef f():\n    return 1"],
    ),
    "future": (
        ["x = 1", "from __future__ import annotations", "def f(a: b): return x"],
        ["from __future__ import annotations", "x = 1", "def f(a: b): return x"],
    ),
    "guarded": (["if __name__ == '__main__':\n    x = 1\n    y = 2", F], ["x = 1", F]),
    "default and body": (
        ["x = 1", "def f(y=x): return x", "x = 2"],
        ["x = 1", "def f(y=x): return x", "x = 2"],
    ),
    "annotations": (
        ["class P: pass", "class Q: pass", "class R: pass", "def f(p: P, q: 'Q') -> None: pass"],
        ["class P: pass", "class Q: pass", "def f(p: P, q: 'Q') -> None: pass"],
    ),
    "serializer": (
        [
            "from evpipe import serializer",
            "class x: pass\nclass Y: pass",
            "@serializer(x, name='x')\nclass X: pass",
            "@serializer(Y, name='y')\nclass Z: pass",
            F,
        ],
        ["from evpipe import serializer", "class x: pass", "@serializer(x, name='x')\nclass X: pass", F],
    ),
    "star": (
        ["from math import *", "def f(): return sin(1), len([])"],
        ["from math import *", "def f(): return sin(1), len([])"],
    ),
    "another module's": (
        ["import logging", "import tests.sdk.sample as s", "s.DEPTH = 5", "def f(): return s.DEPTH"],
        ["import tests.sdk.sample as s", "s.DEPTH = 5", "def f(): return s.DEPTH"],
    ),
    "globals": (["x = 1", "def f(n): return globals()[n]"], ["x = 1", "def f(n): return globals()[n]"]),
    "cycle": (["def f(): return g()", "def g(): return f()"], ["def f(): return g()", "def g(): return f()"]),
    "deleted": (["x = 1", F, "del x", "x = 2"], [F, "x = 2"]),
    "loop": (["x = {}\nfor k in 'ab':\n    x[k] = k", F], ["x = {}", "for k in 'ab':\n    x[k] = k", F]),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_chosen(name: str) -> None:
    cells, expected = CHOSEN[name]
    assert chosen(*cells) == expected


def test_two_steps() -> None:
    """The module has what all of them need, once."""
    cells = ["x = 1", "y = 2", F, "def g(): return x + y", "def h(): return 1"]
    assert chosen(*cells, names="f g") == ["x = 1", "y = 2", F, "def g(): return x + y"]


def test_names_that_no_cell_binds() -> None:
    """What a start-up file or a magic has imported is imported; plain values are written; the rest is not there."""
    space = {"np": os, "join": os.path.join, "n": 3, "o": object(), "P": Path, "unused": 4}
    got = chosen("def f(): return np, join, n, o, P, len, nothing", space=space)
    assert got == [
        f"from {Path.__module__} import Path as P",
        f"from {os.path.__name__} import join as join",
        "n = 3",
        "import os as np",
        "def f(): return np, join, n, o, P, len, nothing",
    ]


def test_results_of_runs() -> None:
    """What a run has given is written as it is now; what cannot be written, and all that is made of it, is left out."""
    cells = [
        "from evpipe import pipeline, step",
        "@pipeline\ndef p(): return f()",
        "run = p.run()\nvalue = run.value",
        "total = sum(value)\nstatus = run.status\nother = len(str(run))",
        "@step\ndef f(): return total, status, value",
        "@step\ndef g(a=other): return a",
        "class Mine: pass",
    ]
    space = {"run": object(), "value": [1, (2, "x"), {"a": None}], "total": 3, "status": object(), "other": object()}
    assert chosen(*cells, names="f g", space=space) == [
        "value = [1, (2, 'x'), {'a': None}]",
        "from evpipe import step",
        "total = sum(value)",
        "@step\ndef f(): return total, status, value",
    ]


# ---- as an interpreter has it


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(functions, "TYPED_STEPS", found := set[str]())
    for module in ("evpipe.client.source", "evpipe.client.cells"):
        monkeypatch.setattr(sys.modules[module], "TYPED_STEPS", found)
    shell = Shell(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "__main__", shell.main)
    yield shell
    for name in shell.files:
        linecache.cache.pop(name, None)


class Shell:
    """Runs cells as IPython does, and is `__main__`."""

    def __init__(self, cache: Path) -> None:
        self.main = types.ModuleType("__main__")
        self.main.__dict__["_ih"] = [""]
        self.files: list[str] = []
        self.folder = cache / ("Library/Caches" if sys.platform == "darwin" else ".") / "evpipe" / "cells"

    def __call__(self, text: str) -> None:
        name = f"<ipython-input-{len(self.files)}-test>"
        self.files.append(name)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        self.main.__dict__["_ih"].append(text)
        exec(compile(text, name, "exec"), self.main.__dict__)

    def file(self) -> Path | None:
        found = Source.of_process().files.get("__main__")
        return None if found is None else Path(found)

    def text(self) -> str:
        file = self.file()
        assert file is not None
        return file.read_text()


def loaded(file: Path) -> dict[str, Any]:
    """Import the file, as a child does."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    del sys.modules[file.stem]
    return vars(module)


STEP = "from evpipe import step\n@step\ndef double(n: int) -> int:\n    return n * by\n"


def test_saved(shell: Shell) -> None:
    """The file has the steps, another name when it has other code, and can be imported."""
    assert shell.file() is None
    shell("by = 2")
    assert shell.file() is None
    shell(STEP)
    first = shell.file()
    assert first is not None
    assert first.parent == shell.folder.resolve()
    assert loaded(first)["double"](4) == 8
    assert shell.file() == first
    shell("double.fn(3)")
    assert shell.file() == first
    shell("by = 3")
    second = shell.file()
    assert second is not None
    assert second != first
    assert loaded(second)["double"](4) == 12
    shell("by = 2")
    shell(STEP)
    assert shell.file() == first


def test_process_steps(shell: Shell) -> None:
    """What is in a cell may run in processes; what was made by other means may not."""
    shell("by = 2\n" + STEP)
    made = shell.main.__dict__["double"]
    assert made._options.executor == "process"
    assert executors_of(made.fn) == ("process", "thread")
    exec("def typed(): return 1", shell.main.__dict__)
    assert executors_of(shell.main.__dict__["typed"]) == ("thread",)
    shell("import functools\ndef wrap(g):\n    return functools.wraps(g)(lambda *a: g(*a))")
    shell("@step\n@wrap\ndef w(): return 1")
    assert shell.main.__dict__["w"]._options.executor == "process"


def test_failed_cell(shell: Shell) -> None:
    """A cell that has failed before it bound a function has not bound it."""
    shell("by = 2\n" + STEP)
    with pytest.raises(ZeroDivisionError):
        shell("1 / 0\n" + STEP.replace("n * by", "n"))
    assert "n * by" in shell.text()
    with pytest.raises(ZeroDivisionError):
        shell(STEP.replace("n * by", "n - by") + "\n1 / 0")
    assert "n - by" in shell.text()


def test_step_that_is_gone(shell: Shell) -> None:
    shell("by = 2\n" + STEP)
    shell("del double")
    assert shell.file() is None
    shell("double = 1")
    assert shell.file() is None


def test_plain_functions_of_a_builder(shell: Shell) -> None:
    """Functions without a decorator count when they are steps."""
    shell("def one(): return 1\ndef two(): return 2")
    shell("from evpipe import Pipeline\np = Pipeline('p')\na = p.step('a', one)")
    assert "def one" in shell.text()
    assert "def two" not in shell.text()


def test_travels(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle has the file, and the user's modules that it imports."""
    (tmp_path / "near.py").write_text("by = 2")
    (tmp_path / "unused.py").write_text("by = 2")
    monkeypatch.syspath_prepend(str(tmp_path))
    shell("import near, unused\nfrom near import by\n" + STEP)
    file = shell.file()
    assert file is not None
    made = bundle_of(["__main__"])
    assert made is not None
    assert sorted(unpack_bundle(made.data)) == [file.name, "near.py"]
    assert made.files == {"__main__": file.name}


def test_fingerprint(shell: Shell) -> None:
    """A step in a cell has a fingerprint: of its code and not of all cells."""
    code = [{"kind": "path", "module": "__main__", "name": "double"}]
    shell("by = 2\n" + STEP)
    first = facts_of(code)["__main__", "double"].digest
    assert len(first) == 64
    shell("@step\ndef other(): return 1")
    shell("by = 2  # again\n" + STEP)
    assert facts_of(code)["__main__", "double"].digest == first
    shell("by = 3")
    assert facts_of(code)["__main__", "double"].digest != first


def test_cleared(shell: Shell) -> None:
    """What is cleared away is written again; what nobody has needed for long is removed then."""
    shell("by = 2\n" + STEP)
    file = shell.file()
    assert file is not None
    old = file.with_name("evpipe_cells_old.py")
    old.write_text("")
    os.utime(old, (1, 1))
    before = time.time() - 3 * 24 * 3600
    os.utime(file, (before, before))
    assert shell.file() == file
    assert file.stat().st_mtime > before + 3600
    assert not old.exists()
    file.unlink()
    file.parent.rmdir()
    assert shell.file() == file
    assert file.is_file()


#: As Python 3.13.0 has it.
OWN = "from importlib.machinery import ModuleSpec\n__file__ = 'x.py'\n__spec__ = ModuleSpec('_pyrepl.x', None)"


@pytest.mark.parametrize("own", ["", OWN])
def test_typed_into_python(tmp_path: Path, own: str) -> None:
    """What Python 3.13's own interpreter remembers is used where there are no cells; `__file__` is not the user's."""
    script = f"""
import linecache
{own}
def typed(number, text):
    name = f"<python-input-{{number}}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), "<stdin>")
    exec(compile(text, name, "exec"), globals())
typed(9, "by = 1")
typed(10, {STEP!r})
typed(11, "by = 3")
from evpipe.client.source import Source
print(double._options.executor, open(Source.of_process().files["__main__"]).read())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean_environment(XDG_CACHE_HOME=tmp_path, HOME=tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    statements = done.stdout.replace(HEADER, "").split("\n\n")
    assert [part.strip() for part in statements if part.strip()] == [
        "process",
        "from evpipe import step",
        "@step\ndef double(n: int) -> int:\n    return n * by",
        "by = 3",
    ]


def test_typed_after_a_script(shell: Shell, tmp_path: Path) -> None:
    """With `python -i` the script's steps are those of its file, and what is typed runs in threads."""
    shell.main.__dict__["__file__"] = str(tmp_path / "script.py")
    text = "def typed(): return 1"
    exec(compile(text, "<python-input-0>", "exec"), shell.main.__dict__)
    assert executors_of(shell.main.__dict__["typed"]) == ("thread",)
    exec(compile(text, str(tmp_path / "script.py"), "exec"), shell.main.__dict__)
    assert executors_of(step(shell.main.__dict__["typed"]).fn) == ("process", "thread")
    assert set() == functions.TYPED_STEPS


def test_nothing_of_files(shell: Shell) -> None:
    """Steps of modules are none of what was typed."""

    def local() -> int:
        return 1

    local.__qualname__ = "local"
    step(local)
    assert set() == functions.TYPED_STEPS
