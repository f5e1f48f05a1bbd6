"""What counts as the code of a step: edits that change its digest, and edits that do not; the packages that it uses."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

from evpipe.client import own_modules, program
from evpipe.client.code_facts import CodeFacts, _known, facts_of
from evpipe.client.definitions import Definitions, definitions_of
from evpipe.client.packages import _installed, _normal, packages_of
from evpipe.client.source import _own_paths
from tests.e2e.helpers import clean_environment

#: Of this process: what is installed, and nothing that is somebody's own.
INSTALLED = [path for path in sys.path if path and os.path.abspath(path) not in _own_paths(tuple(sys.path))]  # noqa: PTH100

#: What a user may have; the step is `job.train`.
FILES = {
    "job": '''
"""A job."""
from __future__ import annotations

import functools
import json
import os

import tools
import pkg
import shapes
from evpipe import pipeline, step
from helpers import prepare, timed as clocked
from config import LIMITS

DEPTH = 3
OPTIONS = {"a": 1}
OPTIONS["b"] = 2
scale = lambda x: x * 2
try:
    import fast_json as codec
except ImportError:
    codec = json
unrelated = 1


def other(x):
    return x + unrelated


@step
def load(rows: int) -> list:
    return list(range(rows))


@step(retries=2, timeout_s=60, executor="thread")
@clocked(3)
def train(data, depth=DEPTH):
    """Train."""
    # A comment.
    from local import late
    total = prepare(data) + scale(depth)
    circle = shapes.Circle(total)
    return [total, circle.area(), pkg.exported(), tools.deep.limit(), OPTIONS, codec, LIMITS["x"], late()]


@pipeline
def jobs():
    return train(load(3))


if __name__ == "__main__":
    data = jobs.run(rows=500)
    print(data, train([1]))
''',
    "helpers": """
import functools
from more import twice, FACTOR

REGISTRY = {}

def register(name):
    def decorate(fn):
        REGISTRY[name] = fn
        return fn
    return decorate

def timed(times):
    def decorate(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)
        return inner
    return decorate

@timed(1)
def others():
    return 1

def prepare(data):
    return twice(sum(data)) * FACTOR

def unused():
    return REGISTRY
""",
    "more": "FACTOR = 2\nOTHER = 3\ndef twice(x):\n    return thrice(x) - x\ndef thrice(x):\n    return 3 * x\n",
    "tools/__init__": "'''Tools.'''\n",
    "tools/deep": "from config import LIMITS\ndef limit():\n    return LIMITS['x']\ndef unused():\n    return 1\n",
    "config": "LIMITS = {'x': 1}\nUNUSED = 2\n",
    "pkg/__init__": "from .inner import exported, hidden\nfrom . import inner\n",
    "pkg/inner": "def exported():\n    return _value\n_value = 1\ndef hidden():\n    return 2\n",
    "shapes": '''
class Shape:
    pi = 3
    def area(self):
        """The area."""
        return self.size() * self.pi
    def size(self):
        return 1

class Circle(Shape):
    def __init__(self, r):
        self.r = r

class Unused(Shape):
    pass
''',
    "local": "def late():\n    return 1\n",
    "fast_json": "x = 1\n",
}


class Project:
    """A folder of a user's, from which modules are imported; none is."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(sys, "path", [str(path), *INSTALLED])

    def write(self, files: Mapping[str, str]) -> Project:
        for inside, text in files.items():
            file = self.path / f"{inside}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        importlib.invalidate_caches()
        return self

    def facts(self, name: str = "train", module: str = "job") -> CodeFacts:
        return facts_of([{"kind": "path", "module": module, "name": name}])[module, name]

    def digest(self, name: str = "train", module: str = "job") -> str:
        return self.facts(name, module).digest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path / "project", monkeypatch)


SAME: dict[str, tuple[str, str, str]] = {
    "comment": ("job", "# A comment.", "# Another one."),
    "comment at the end": ("job", "DEPTH = 3", "DEPTH = 3  # deep"),
    "docstring": ("job", '"""Train."""', '"""Train\n    a model."""'),
    "no docstring": ("job", '    """Train."""\n', ""),
    "docstring of the module": ("job", '"""A job."""', ""),
    "docstring of a method": ("shapes", '"""The area."""', '"""Its area."""'),
    "formatting": ("job", "prepare(data) + scale(depth)", "(\n        prepare( data )\n        + scale(depth))"),
    "quotes": ("job", '{"a": 1}', "{'a': 0x1}"),
    "blank lines": ("job", "DEPTH = 3\n", "\n\n\nDEPTH = 3\n\n"),
    "future": ("job", "from __future__ import annotations\n", ""),
    "moved constant": ("job", "DEPTH = 3\nOPTIONS = {", "OPTIONS = {"),
    "moved function": ("more", "def twice(x):\n    return thrice(x) - x\n", ""),
    "unrelated function": ("job", "def other(x):", "def another(y):\n    return y\n\n\ndef other(x):"),
    "unrelated function changed": ("job", "return x + unrelated", "return x - unrelated"),
    "unrelated constant": ("job", "unrelated = 1", "unrelated = 2"),
    "unrelated import": ("job", "import json\n", "import json\nimport decimal, xml.dom\n"),
    "unrelated name in an import": ("job", "import prepare,", "import prepare, unused,"),
    "unrelated in a module": ("config", "UNUSED = 2", "UNUSED = 3"),
    "unrelated in a package": ("pkg/inner", "return 2", "return 3"),
    "unrelated subclass": ("shapes", "class Unused(Shape):", "class Unused(Circle):"),
    "another with the same wrapper": ("helpers", "def others():\n    return 1", "def others():\n    return 2"),
    "registered elsewhere": ("helpers", "def unused():", "@register('u')\ndef unused():"),
    "options of the step": ("job", "@step(retries=2, timeout_s=60,", "@step(retries=5, name='fit',"),
    "executor": ("job", 'executor="thread"', 'executor="process"'),
    "step under another name": ("job", "import pipeline, step", "import pipeline, step as task, step"),
    "pipeline": ("job", "return train(load(3))", "return train(load(4))"),
    "other step": ("job", "return list(range(rows))", "return list(range(rows + 1))"),
    "main guard": ("job", "rows=500", "rows=600"),
}
OTHER: dict[str, tuple[str, str, str]] = {
    "body": ("job", "return [total,", "return [total + 1,"),
    "local name": ("job", "return [total, circle", "return [circle, circle"),
    "default argument": ("job", "depth=DEPTH", "depth=4"),
    "constant": ("job", "DEPTH = 3", "DEPTH = 4"),
    "constant two modules away": ("more", "FACTOR = 2", "FACTOR = 3"),
    "constant of a module and of a module of a package": ("config", "'x': 1", "'x': 2"),
    "helper": ("helpers", "sum(data)", "max(data)"),
    "helper's helper": ("more", "3 * x", "4 * x"),
    "class": ("shapes", "self.r = r", "self.r = -r"),
    "base class": ("shapes", "pi = 3", "pi = 4"),
    "bases": ("shapes", "class Circle(Shape)", "class Circle(Shape, object)"),
    "method": ("shapes", "return 1", "return 2"),
    "wrapper": ("helpers", "        return fn(*args, **kwargs)", "        return 2 * fn(*args, **kwargs)"),
    "argument of a wrapper": ("job", "@clocked(3)", "@clocked(4)"),
    "wrapper removed": ("job", "@clocked(3)\n", ""),
    "lambda": ("job", "x * 2", "x * 3"),
    "re-export": ("pkg/inner", "_value = 1", "_value = 2"),
    "re-export of another": ("pkg/__init__", "import exported, hidden", "import hidden as exported"),
    "module of a package": ("tools/deep", "return LIMITS['x']", "return 1"),
    "conditional import": ("job", "import fast_json as codec", "import json as codec"),
    "conditionally imported": ("fast_json", "x = 1", "x = 2"),
    "item set": ("job", 'OPTIONS["b"] = 2', 'OPTIONS["b"] = 3'),
    "item set elsewhere": ("config", "UNUSED = 2", "LIMITS['y'] = 2"),
    "imported late": ("local", "return 1", "return 2"),
    "import renamed": ("job", "timed as clocked", "register as clocked"),
}


def changed(edits: Mapping[str, tuple[str, str, str]], name: str) -> dict[str, str]:
    module, before, after = edits[name]
    assert FILES[module].count(before) >= 1, "the edit changes nothing"
    files = {**FILES, module: FILES[module].replace(before, after, 1)}
    if name == "moved constant":
        files["job"] = files["job"].replace("scale = ", "DEPTH = 3\nscale = ")
    elif name == "moved function":
        files["more"] += before
    elif name == "step under another name":
        files["job"] = files["job"].replace("@step(", "@task(")
    assert files != FILES
    return files


@pytest.mark.parametrize("name", SAME)
def test_edit_that_does_not_count(project: Project, name: str) -> None:
    before = project.write(FILES).digest()
    assert project.write(changed(SAME, name)).digest() == before


@pytest.mark.parametrize("name", OTHER)
def test_edit_that_counts(project: Project, name: str) -> None:
    before = project.write(FILES).digest()
    assert project.write(changed(OTHER, name)).digest() != before


#: Less obvious ways to code: the text of `job` and, below `== name`, of other modules. The step is `job.f`; EDIT is 1,
#: then 2, or what is said.
WAYS: dict[str, str | tuple[str, str, str]] = {
    "base": """
import m
def f(): return m.X
== m
X = [EDIT]
""",
    "module handed on": """
import m
def f(): return dir(m)
== m
X = EDIT
""",
    "getattr": """
import m
def f(n): return getattr(m, n)
== m
def g(): return EDIT
""",
    "star": """
from m import *
def f(): return x
== m
x = EDIT
""",
    "star of a star": """
from a import *
def f(): return x
== a
from b import *
== b
x = EDIT
""",
    "star and __all__": (
        """
x = 1
from m import *
def f(): return x
== m
__all__ = ['EDIT']
x = 1
""",
        "x",
        "y",
    ),
    "attribute chain": """
import a.b.c
def f(): return a.b.c.g()
== a/__init__
== a/b/__init__
== a/b/c
def g(): EDIT
""",
    "namespace package": """
from ns.deep import m
def f(): return m.x
== ns/deep/m
x = EDIT
""",
    "relative import": """
from p.q import f
== p/__init__
== p/q
from . import r
def f(): return r.x
== p/r
x = EDIT
""",
    "relative import in a function": """
from p import f
== p/__init__
def f():
    from .r import x
    return x
== p/r
x = EDIT
""",
    "append": """
R = []
R.append(EDIT)
def f(): return R
""",
    "append to an attribute": """
import m
m.R.append(EDIT)
def f(): return m.g()
== m
R=[]
def g(): return R
""",
    "attribute set": """
import m
m.X = EDIT
from n import f
== n
import m
def f(): return m.X
== m
""",
    "setdefault": """
R = {}
R.setdefault('a', []).append(EDIT)
def f(): return R
""",
    "augmented": """
x = 1
x += EDIT
def f(): return x
""",
    "annotated": """
x: int = EDIT
def f(): return x
""",
    "tuple": """
x, (y, *z) = 1, (EDIT, 3)
def f(): return z
""",
    "walrus": """
if (x := EDIT): pass
def f(): return x
""",
    "loop": """
for x in [EDIT]: pass
def f(): return x
""",
    "loop over a thing": """
R = {}
for k in 'ab':
    R[k] = EDIT
def f(): return R
""",
    "loop over its parts": """
R = [[], []]
for r in R:
    r.append(EDIT)
def f(): return R
""",
    "part of a thing": """
R = {'a': {}}
r = R['a']
r['b'] = EDIT
def f(): return R
""",
    "with": """
with open('EDIT') as x: pass
def f(): return x
""",
    "if": """
import sys
if sys.platform == 'EDIT':
    x = 1
else:
    x = 2
def f(): return x
""",
    "try": """
try:
    x = 1
except ValueError:
    x = EDIT
def f(): return x
""",
    "match": """
match EDIT:
    case [x, *_]: pass
    case x: pass
def f(): return x
""",
    "global": """
def init():
    global x
    x = EDIT
init()
def f(): return x
""",
    "function that registers": """
R = {}
def put(n, g):
    R[n] = g
def g(): return EDIT
put('g', g)
def f(): return R['g']()
""",
    "decorator that registers": """
from r import R
import models
def f(n): return R[n]()
== r
R = {}
def put(g):
    R[g.__name__] = g
    return g
== models
from r import put
@put
def a(): return EDIT
""",
    "method that registers": """
from r import APP
import models
def f(n): return APP.run(n)
== r
class App:
    def add(self, g): self.x = g
    def run(self, n): return self.x
APP = App()
== models
import r
@r.APP.add
def a(): return EDIT
""",
    "singledispatch": """
import functools
@functools.singledispatch
def g(x): return 1
@g.register(int)
def _(x): return EDIT
def f(x): return g(x)
""",
    "subclass that its base knows": """
import m, n
def f(): return m.Base.found
== m
class Base:
    found = []
    def __init_subclass__(cls): cls.found.append(cls)
== n
import m
class A(m.Base):
    x = EDIT
""",
    "subclasses": """
class B: pass
class A(B):
    x = EDIT
def f(): return B.__subclasses__()
""",
    "seed": """
import random
random.seed(EDIT)
def f(): return random.random()
""",
    "seed elsewhere": """
import random, m
def f(): return random.random()
== m
import random
random.seed(EDIT)
""",
    "pipeline's function changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
def g(): pass
@pipeline
def p():
    random.seed(EDIT)
    return f(), g()
if __name__ == '__main__':
    p.run()
""",
    "helper of a pipeline's function changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
def h(): random.seed(EDIT)
@pipeline
def p():
    h()
    return f()
if __name__ == '__main__':
    p.run()
""",
    "step in a thread changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step(executor='thread')
def g(): random.seed(EDIT)
@pipeline
def p(): return f(), g()
if __name__ == '__main__':
    p.run()
""",
    "step in a loop changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
async def g(): random.seed(EDIT)
@pipeline
def p(): return f(), g()
if __name__ == '__main__':
    p.run()
""",
    "step with options of another changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
o = {'executor': 'thread'}
@step(**o)
def g(): random.seed(EDIT)
@pipeline
def p(): return f(), g()
if __name__ == '__main__':
    p.run()
""",
    "step that gets a thread changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
def g(): random.seed(EDIT)
@pipeline
def p(): return f(), g.options(executor='thread')()
if __name__ == '__main__':
    p.run()
""",
    "step that a helper gives a thread changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
def g(): random.seed(EDIT)
def h(s): return s.options(executor='thread')()
@pipeline
def p(): return f(), h(g)
if __name__ == '__main__':
    p.run()
""",
    "step's function changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
def g(): random.seed(EDIT)
@pipeline
def p():
    g.fn()
    return f()
if __name__ == '__main__':
    p.run()
""",
    "step called plainly changes it": """
import random
from evpipe import pipeline, step
@step
def f(): return random.random()
@step
def g(): random.seed(EDIT)
g()
@pipeline
def p(): return f()
if __name__ == '__main__':
    p.run()
""",
    "main block": """
C = {}
def f(): return C
if __name__ == '__main__':
    C['x'] = EDIT
""",
    "handed on": """
R = [1]
def g(r, x): r.append(x)
g(R, EDIT)
def f(): return R
""",
    "handed on for a value": """
R = [1]
from m import g
x = g(R, EDIT)
def f(): return R
== m
def g(r, x): r.append(x)
""",
    "globals": """
x = EDIT
def f(n): return globals()[n]
""",
    "globals are set": """
globals().update(x=EDIT)
def f(): return x
""",
    "eval": """
x = EDIT
def f(): return eval('x')
""",
    "exec at top level": """
exec('x = EDIT')
def f(): return x
""",
    "module by its name": """
import importlib
def f(): return importlib.import_module('m')
== m
x = EDIT
""",
    "module by a part of its name": """
import importlib
def f(n): return importlib.import_module(f'p.{n}')
== p/__init__
== p/m
x = EDIT
""",
    "plugins": """
import pkgutil, importlib, p
def f():
    return [importlib.import_module(m.name) for m in pkgutil.iter_modules(p.__path__)]
== p/__init__
== p/a/__init__
== p/a/b
x = EDIT
""",
    "sys.modules": """
import sys
x = EDIT
def f(n): return getattr(sys.modules[__name__], n)
""",
    "annotation": """
class P:
    def g(self): return EDIT
def f(p: list[P]): return p[0].g()
""",
    "quoted annotation": """
def f(p: 'list[P]'): return p[0].g()
class P:
    def g(self): return EDIT
""",
    "dataclass field": """
import dataclasses
@dataclasses.dataclass
class P:
    x: int = EDIT
def f(): return P()
""",
    "comprehension": """
x = EDIT
def f(): return [y for y in [1] if x]
""",
    "class body sees the module": """
x = EDIT
def f():
    class A:
        x = x
    return A
""",
    "twice bound": """
x = 1
y = x
x = EDIT
def f(): return y, x
""",
    "order of bindings": (
        """
x = 1
EDIT
def f(): return x, y
""",
        "y = x\nx = 2",
        "x = 2\ny = x",
    ),
    "order of changes": (
        """
R = []
EDIT
def f(): return R
""",
        "R.append(1)\nR.append(2)",
        "R.append(2)\nR.append(1)",
    ),
    "order of a call": (
        """
x = 1
def g(): return x
EDIT
def f(): return x, y
""",
        "y = g()\nx = 2",
        "x = 2\ny = g()",
    ),
    "aliases exchanged": (
        """
from m import EDIT
def f(): return g() - h()
== m
def a(): 1
def b(): 2
""",
        "a as g, b as h",
        "b as g, a as h",
    ),
    "modules exchanged": """
import a, b
def f(): return a.g() - b.g()
== a
def g(): return EDIT
== b
def g(): return 3 - EDIT
""",
    "serializer": """
from evpipe import serializer
class G: pass
def f() -> G: return G()
@serializer(G, name='g', version=1)
class S:
    def write(x, file): EDIT
    def read(file): 2
""",
    "not python 2": """
import m
def f(): return m.x
== m
print 'EDIT'
""",
    "nests deep": """
def f(): return x
x = MINUSESEDIT
""",
    "nothing binds it": """
import m
def f(): return m.x
== m
setattr(m, 'x', EDIT)
""",
    "module getattr": """
import m
def f(): return m.x
== m
def __getattr__(name): return EDIT
""",
    "step that is an assignment": """
from evpipe import step
f = step(retries=2)(lambda: EDIT)
""",
}


def digests(project: Project, case: str | tuple[str, str, str]) -> list[str]:
    """Give the digest of the step before and after the edit."""
    text, *edits = (case, "1", "2") if isinstance(case, str) else case
    found: list[str] = []
    for edit in edits:
        first, *others = text.replace("MINUSES", "-" * 900).replace("EDIT", edit).split("\n== ")
        files = {name: rest for name, _, rest in (other.partition("\n") for other in others)}
        found.append(project.write({"job": first, **files}).digest("f"))
    return found


@pytest.mark.parametrize("name", WAYS)
def test_way_to_code(project: Project, name: str) -> None:
    """An edit of what the step uses changes its digest, however it gets there."""
    before, after = digests(project, WAYS[name])
    assert len(before) == len(after) == 64
    assert before != after


#: As above, of edits that do not count.
APART: dict[str, str | tuple[str, str, str]] = {
    "order": (
        """
EDIT
def f(): return x + y
""",
        "x = 1\ny = 2",
        "y = 2\nx = 1",
    ),
    "read": """
C = {'a': 1}
print(len(C), EDIT)
x = C.get('a', EDIT)
def f(): return C
""",
    "pipeline is run": """
from evpipe import Pipeline, pipeline, step
C = {}
@step
def f(c): return C
@pipeline
def p(): return f(C)
p.run(EDIT, C)
q = Pipeline('q')
q.step('f', f, c=C)
q.run(rows=EDIT)
""",
    "pipeline whose steps use what they import": """
import pathlib, os
from evpipe import pipeline, step
@step
def f(): return pathlib.Path('x').exists(), os.sep
@step(executor='process')
def g(x):
    out = pathlib.Path(x)
    out.write_text('EDIT')
    os.putenv('a', 'b')
@pipeline
def p(): return f(), g.options(name='x')(1)
def main(): print(p.run().value, EDIT)
if __name__ == '__main__':
    print(p.options(mode='local').run(), 'EDIT')
    p.run(EDIT)
    main()
""",
    "wrapped function": """
import numpy
def f(x): return x
g = numpy.vectorize(f, EDIT)
""",
    "local of another": """
x = EDIT
def f():
    x = 1
    return [x for x in range(x)], lambda x: x
""",
    "literal": """
from typing import Literal
x = EDIT
def f(x: Literal['y', 'x y']): return x
""",
    "module made by numpy": """
import numpy as np
x = np.zeros(EDIT)
def f(): return np.ones(3)
""",
    "options": """
from evpipe import step
gpu = step(queue='EDIT')
@gpu
def f(): return 1
""",
    "evpipe as": """
import evpipe as e
@e.step(retries=EDIT)
def f(): return 1
""",
    "re-exported step": """
from base import task
@task(retries=EDIT)
def f(): return 1
== base
from evpipe import step as task
""",
    "retry on": """
from evpipe import Retry, step
class E(Exception):
    x = EDIT
@step(retries=Retry(1, on=(E,)))
def f(): 1
""",
    "u prefix": (
        """
def f(): return EDIT'x'
""",
        "",
        "u",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_code_apart(project: Project, name: str) -> None:
    before, after = digests(project, APART[name])
    assert before == after


def test_steps_differ(project: Project) -> None:
    """Two that call each other are two."""
    project.write({"job": "def f(n): return n and g(n - 1)\ndef g(n): return n and f(n - 1)\n"})
    assert project.digest("f") != project.digest("g")


SHOW = """
if __name__ == "__main__":
    import json, sys
    sys.path += sys.argv[1:]
    from evpipe.client.code_facts import facts_of
    print(json.dumps(facts_of([{"module": train.__module__, "name": "train"}])[train.__module__, "train"].digest))
"""
IMPORTED = """
import json
from evpipe.client.code_facts import facts_of
print(json.dumps(facts_of([{"module": "job", "name": "train"}])["job", "train"].digest))
"""


def run(folder: Path, *args: str, seed: int = 0) -> object:
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=clean_environment(PYTHONHASHSEED=seed),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_same_everywhere(project: Project, tmp_path: Path) -> None:
    """Whatever the seed of hashes, the folder, and whether it is a script, a module, or imported by others."""
    files = {
        **FILES,
        "job": FILES["job"].replace("data = jobs.run(rows=500)\n    print(data, train([1]))", "pass") + SHOW,
    }
    files["local"] = "def late():\n    import job\n    return job.DEPTH\n"
    project.write(files)
    (tmp_path / "elsewhere").mkdir()
    other = shutil.copytree(project.path, tmp_path / "elsewhere" / "deep")
    found = [run(project.path, "job.py", seed=seed) for seed in range(3)]
    found += [run(other, "job.py"), run(tmp_path, "elsewhere/deep/job.py"), run(other, "-m", "job")]
    found += [run(other, "-c", IMPORTED), run(project.path, "-c", IMPORTED, seed=5), project.digest()]
    assert len(set(map(str, found))) == 1
    assert len(str(found[0])) == 64


TYPED = """
import functools, math, re
import near
from evpipe import step
LIMIT = {"a": (1, 2.5, {"x"}), "b": re.compile("x+")}
class Point:
    def __init__(self, x): self.x = x
    def up(self): return self.x + BY
def wrap(fn):
    @functools.wraps(fn)
    def inner(*args): return fn(*args)
    return inner
@step
@wrap
def train(x, by=2):
    return math.sqrt(helper(x)) + by, LIMIT, Point(1).up(), near.f, [y + 1 for y in x]
BY = 1
def helper(x): return x * 2
"""
ASK = """
import json
from evpipe.client.code_facts import facts_of
codes = [{"module": "__main__", "name": name} for name in ("train", "gone")]
print(json.dumps([found.digest for found in facts_of(codes).values()]))
"""


def test_typed(tmp_path: Path) -> None:
    """A function without source: its bytecode, that of what it uses, and the values of the globals that it names."""
    (tmp_path / "near.py").write_text("def f(): return g()\ndef g(): return 1\n")

    def digest(text: str = TYPED, **options: int) -> str:
        found: Any = run(tmp_path, "-c", f"exec(compile({text!r}, '<stdin>', 'exec'))\n{ASK}", **options)
        train, gone = found
        assert gone == ""
        return str(train)

    first = digest()
    assert len(first) == 64
    assert digest(seed=7) == first
    edits = {
        "by=2": "by=3",
        "x * 2": "x * 3",
        '{"x"}': '{"y"}',
        "2.5": "2.6",
        "x+": "x",
        "y + 1": "y + 2",
        "self.x + BY": "self.x - BY",
        "BY = 1": "BY = 2",
        "return fn(*args)": "return 1, fn(*args)",
        "math.sqrt": "math.floor",
    }
    for before, after in edits.items():
        assert before in TYPED
        assert digest(TYPED.replace(before, after)) != first, before
    (tmp_path / "near.py").write_text("def f(): return g()\ndef g(): return 2\n")
    assert digest() != first
    # What cannot be described is not known.
    assert digest(TYPED.replace("BY = 1", "BY = object()")) == ""


LATE = """
from evpipe import step
class Late:
    def get(self):
        from near import g
        return g
def helper():
    def inner():
        import anyio.abc as abc
        return abc
    return inner() if Late else 0
@step(cache=True)
def train(n):
    import structlog
    return structlog, helper(), Late().get()
"""


def test_typed_imports_when_called(tmp_path: Path) -> None:
    """What a function without source imports within it counts, as does what those that it calls import."""
    (tmp_path / "near.py").write_text("def g(): return 1\ndef h(): return 1\n")
    ask = """
import json
from evpipe.client.code_facts import facts_of
found = facts_of([{"module": "__main__", "name": "train"}])["__main__", "train"]
print(json.dumps([found.digest, dict(found.packages)]))
"""

    def facts(text: str = LATE) -> tuple[str, dict[str, str]]:
        found: Any = run(tmp_path, "-c", f"exec(compile({text!r}, '<stdin>', 'exec'))\n{ask}")
        return found[0], found[1]

    first, packages = facts()
    assert len(first) == 64
    assert {"structlog": version("structlog"), "anyio": version("anyio")}.items() <= packages.items()
    (tmp_path / "near.py").write_text("def g(): return 2\ndef h(): return 1\n")
    assert facts()[0] != first
    # More constants than an instruction has room for.
    many = (
        "def helper():\n    x = [" + ", ".join(f"{i}.5, y" for i in range(300)) + "]\n    from near import h as abc\n"
    )
    before = facts(LATE.replace("def helper():\n", many))
    (tmp_path / "near.py").write_text("def g(): return 2\ndef h(): return 2\n")
    assert facts(LATE.replace("def helper():\n", many))[0] != before[0]
    # What is looked for when it runs is not known, so its steps are not cached.
    for hidden in ("import importlib; importlib.import_module(n)", "exec(n)", "globals()[n]", "__import__(n)"):
        assert facts(LATE.replace("import structlog\n", f"import structlog; {hidden}\n"))[0] == "", hidden


INSTALLED_JOB = """
from evpipe import pipeline, step
from .rates import rate
FACTOR = object()
@step(cache=True)
def train(n):
    import six
    return six, rate(), FACTOR
@pipeline
def p():
    return train(1)
"""
SHOW_ALL = """
import json
from evpipe.client.code_facts import facts_of
found = facts_of([{"module": MODULE, "name": "train"}])[MODULE, "train"]
print(json.dumps([found.digest, dict(found.packages)]))
"""


def test_installed_module_as_main(tmp_path: Path) -> None:
    """`python -m` of an installed module has the facts of that module when it is imported, with its packages."""
    site = tmp_path / "lib" / "site-packages"

    def install(name: str, number: str, files: Mapping[str, str]) -> None:
        for old in site.glob(f"{name}-*"):
            shutil.rmtree(old)
        info = site / f"{name}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n\n")
        (info / "RECORD").write_text("".join(f"{inside},,\n" for inside in files))
        for inside, text in files.items():
            (site / inside).parent.mkdir(exist_ok=True)
            (site / inside).write_text(text)

    guard = "".join(f"    {line}\n" for line in SHOW_ALL.replace("MODULE", "'__main__'").splitlines())
    job = f"{INSTALLED_JOB}\nif __name__ == '__main__':\n{guard}"
    files = {"mypkg/__init__.py": "", "mypkg/rates.py": "def rate(): return 2\n", "mypkg/job.py": job}
    install("mypkg", "1", {**files, "mypkg/__main__.py": job})
    install("six", "1.16.0", {"six.py": ""})
    imported = "import mypkg.job" + SHOW_ALL.replace("MODULE", "'mypkg.job'")

    def facts(*args: str) -> tuple[str, dict[str, str]]:
        code = f"import sys; sys.path.insert(0, {str(site)!r}); "
        if args[0] == "-m":
            code += f"import runpy; sys.argv = ['']; runpy.run_module({args[1]!r}, run_name='__main__', alter_sys=True)"
        else:
            code += args[1].replace("import mypkg.job", "import mypkg.job\n")
        found: Any = run(tmp_path, "-c", code)
        return found[0], found[1]

    first = facts("-m", "mypkg.job")
    assert len(first[0]) == 64
    assert first[1] == {"mypkg": "1", "six": "1.16.0"}
    assert facts("-c", imported) == first
    assert facts("-m", "mypkg") == first
    install("six", "1.17.0", {"six.py": ""})
    assert facts("-m", "mypkg.job") == facts("-c", imported) == (first[0], {"mypkg": "1", "six": "1.17.0"})


def test_example_as_main(tmp_path: Path) -> None:
    """A step of an example that `python -m` runs has the facts that it has when it is imported."""
    ask = """
import json, sys
from evpipe.client.code_facts import facts_of
names = ("load", "split", "train", "evaluate", "best")
print(json.dumps([[f.digest, dict(f.packages)] for f in facts_of([{"module": M, "name": n} for n in names]).values()]))
"""
    name = "evpipe.examples.breast_cancer"
    imported = run(tmp_path, "-c", f"import {name}{ask.replace('M,', f'{name!r},')}")
    # As `-m` does it, up to the main block, which would run it.
    started = f"""
import importlib.util, sys
spec = importlib.util.find_spec({name!r})
main = sys.modules["__main__"]
main.__file__, main.__spec__, main.__package__ = spec.origin, spec, spec.parent
exec(compile(open(spec.origin).read().partition("\\nif __name__")[0], spec.origin, "exec"))
"""
    found: Any = run(tmp_path, "-c", started + ask.replace("M,", "'__main__',"))
    assert found == imported
    assert all(len(digest) == 64 for digest, _ in found)


def test_module_that_nobody_can_read(project: Project) -> None:
    """A step of a module that is not there."""
    assert project.facts("f", "nowhere") == CodeFacts("")


def test_installed_step(project: Project) -> None:
    """A step of an installed module: its file; what that imports of its package changes with the version."""
    importlib.import_module("evpipe.examples.stdlib_report")
    found = project.facts("count", "evpipe.examples.stdlib_report")
    assert len(found.digest) == 64
    assert found.packages == {}


# ---- packages

USES = """
import json, numpy, anyio
from evpipe import step
import structlog as log
import msgpack
def helper():
    import sniffio
def f(): return numpy.zeros(3)
def g(): return log.get_logger(), json
def h():
    import anyio.abc
    return helper()
def i(): return 1
def j():
    try:
        import msgpack
    except ImportError:
        pass
def k(): return idna_version
from more import *
"""


def test_packages(project: Project) -> None:
    """Only those that reached code imports, and what they require; not this package, nor the standard library."""
    project.write({"job": USES, "more": "from idna import __version__ as idna_version\nimport nats\n"})
    found = {name: project.facts(name).packages for name in "fghijk"}
    assert found["f"] == {"numpy": version("numpy")}
    assert found["g"] == {"structlog": version("structlog")} | dict(packages_of(["structlog"]))
    assert {"anyio", "idna"} <= set(found["h"])
    assert found["h"]["idna"] == version("idna")
    assert found["i"] == {}
    assert found["j"] == {"msgpack": version("msgpack")}
    assert found["k"] == {"idna": version("idna")}


def test_as_importlib_has_it() -> None:
    """The names that modules and packages have are those of `importlib.metadata`."""
    table = {name: found for name, found in packages_distributions().items() if name != "__pycache__"}
    owners = _installed().owners(set(table))
    assert {name: sorted(owners[name]) for name in table} == {
        name: sorted({_normal(package) for package in packages}) for name, packages in table.items()
    }


def test_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements without extras, in a cycle, missing, and under other spellings; modules that no package has."""

    def installed(name: str, number: str, text: str, record: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{text}\n\nName: no\n"
        )
        (folder / "RECORD").write_text(record)

    requires = 'Requires-Dist: B.b (>=1)\nRequires-Dist: c; extra == "x"\nRequires-Dist: d[e]>=2; python_version > "3"'
    installed("A-a", "1.0", requires, "aa/__init__.py,,\nns/a.py,,\n")
    installed("b-b", "2", "Requires-Dist: a_a\nRequires-Dist: missing", "bb.py,,\nns/b.py,,\n")
    installed("c", "3", "", "cc.py,,\n")
    installed("d", "4", "", "dd.cpython-311.so,,\n")
    (tmp_path / "nobodys.py").write_text("x = 1")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    everything = {"A-a": "1.0", "b-b": "2", "d": "4"}
    assert packages_of(["aa"]) == packages_of(["bb"]) == packages_of(["ns"]) == everything
    assert packages_of(["cc", "dd"]) == {"c": "3", "d": "4"}
    first = packages_of(["nobodys"])
    assert list(first) == ["nobodys"]
    (tmp_path / "nobodys.py").write_text("x = 2")
    assert packages_of(["nobodys"]) != first
    assert packages_of(["nowhere"]) == {"nowhere": ""}
    # What is installed meanwhile is seen.
    installed("e", "5", "", "ee.py,,\n")
    os.utime(tmp_path, ns=(1, 1))
    assert packages_of(["ee"]) == {"e": "5"}


# ---- what it costs


def test_known_until_a_file_changes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(FILES)
    monkeypatch.setattr(own_modules, "_SETTLED_S", -9)
    reads: list[str] = []

    def read(text: bytes, name: str, is_package: bool) -> Definitions | None:
        reads.append(name)
        return definitions_of(text, name, is_package)

    monkeypatch.setattr(program, "definitions_of", read)
    codes = [{"kind": "path", "module": "job", "name": name} for name in ("load", "train", "other")]
    first = facts_of(codes * 300)
    assert set(first) == {("job", "load"), ("job", "train"), ("job", "other")}
    assert sorted(reads) == sorted(set(reads))
    count = len(reads)
    assert facts_of(codes) == first
    assert len(reads) == count
    project.write({"more": FILES["more"].replace("FACTOR = 2", "FACTOR = 3")})
    second = facts_of(codes)
    assert second["job", "train"] != first["job", "train"]
    assert second["job", "load"] == first["job", "load"]
    assert len(_known) <= 256


def test_package_installed_meanwhile(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that did not change the packages are looked up again: a notebook lives longer than they do."""
    site = tmp_path / "lib" / "site-packages"

    def install(number: str) -> None:
        for old in site.glob("*.dist-info"):
            shutil.rmtree(old)
        info = site / f"dep-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dep\nVersion: {number}\n\n")
        (info / "RECORD").write_text("dep.py,,\n")
        os.utime(site, ns=(int(number), int(number)))

    monkeypatch.setattr(own_modules, "_SETTLED_S", -9)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    install("1")
    project.write({"job": "def f():\n    import dep\n"})
    first = project.facts("f")
    assert first.packages == {"dep": "1"}
    install("2")
    assert project.facts("f") == CodeFacts(first.digest, {"dep": "2"})


def test_quick(project: Project) -> None:
    """A script with a library of many files takes no longer than a person notices."""
    project.write({"job": "import pytest\ndef f(): return pytest.skip()\n" + "def g(x): return [x for y in x]\n" * 200})
    began = time.process_time()
    project.facts("f")
    assert time.process_time() - began < 1.5
