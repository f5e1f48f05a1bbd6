"""Which files a submit packs: those that the steps' modules import, if they are the user's own, and no others."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpipe.client import bundle as bundles
from evpipe.client import own_modules
from evpipe.client.bundle import Bundle, bundle_of
from evpipe.client.source import Source, _own_paths
from evpipe.errors import LimitExceeded, UsageError
from evpipe.wire.bundles import unpack_bundle
from tests.e2e.helpers import clean_environment

#: Of this process: what is installed, and nothing that is somebody's own.
INSTALLED = [path for path in sys.path if path and os.path.abspath(path) not in _own_paths(tuple(sys.path))]  # noqa: PTH100


class Folder:
    """A folder of a user's, from which modules are imported; none is."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self._monkeypatch = monkeypatch
        self.look_in("")

    def look_in(self, *folders: str) -> None:
        """Make the import path of these, and of what is installed."""
        self._monkeypatch.setattr(sys, "path", [*(str(self.path / folder) for folder in folders), *INSTALLED])

    def file(self, inside: str, text: str | bytes = "") -> Path:
        path = self.path / f"{inside}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        importlib.invalidate_caches()
        return path

    def package(self, *names: str) -> None:
        for name in names:
            self.file(f"{name}/__init__")

    def packed(self, *modules: str) -> list[str]:
        return sorted(self.files(*modules))

    def files(self, *modules: str) -> dict[str, bytes]:
        found = bundle_of(modules)
        return {} if found is None else unpack_bundle(found.data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    (tmp_path / "own").mkdir()
    return Folder(tmp_path / "own", monkeypatch)


def test_modules_beside(folder: Folder) -> None:
    """What is imported, and what that imports; not what is only there."""
    folder.file("job", "import near, json\nfrom other import thing")
    folder.file("near", "import far as f")
    folder.file("far")
    folder.file("other")
    folder.file("unrelated", "import far")
    (folder.path / "data.csv").write_text("1,2")
    assert folder.packed("job") == ["far.py", "job.py", "near.py", "other.py"]


def test_packages(folder: Folder) -> None:
    """A module comes with the packages that it is in, each with its own imports; `import a.b.c` names all three."""
    folder.file("job", "import a.b.c")
    folder.file("a/__init__", "import by_a")
    folder.file("a/b/__init__", "from . import by_b")
    folder.package("a/d")
    for name in ("a/b/c", "a/b/by_b", "a/b/unrelated", "by_a", "a/d/unrelated"):
        folder.file(name)
    assert folder.packed("job") == ["a/__init__.py", "a/b/__init__.py", "a/b/by_b.py", "a/b/c.py", "by_a.py", "job.py"]


def test_relative_imports(folder: Folder) -> None:
    folder.package("p", "p/q", "p/r")
    folder.file("p/q/mod", "from . import x\nfrom ..r import y, NAME\nfrom ..r.z import f\nfrom .. import w")
    for name in ("p/q/x", "p/r/y", "p/r/z", "p/w", "x", "y", "w"):
        folder.file(name)
    found = ["p/__init__.py", "p/q/__init__.py", "p/q/mod.py", "p/q/x.py"]
    assert folder.packed("p.q.mod") == [*found, "p/r/__init__.py", "p/r/y.py", "p/r/z.py", "p/w.py"]


def test_relative_import_of_nothing(folder: Folder) -> None:
    """More dots than there are packages name nothing, though a file of that name is there."""
    folder.file("job", "from . import x\nfrom ...a import b")
    folder.file("x")
    folder.file("b")
    assert folder.packed("job") == ["job.py"]


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import near",
        "async def f():\n    def g():\n        class A:\n            from near import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import near",
        "try:\n    import near\nexcept ImportError:\n    near = None",
        "try:\n    import numpy_that_is_missing\nexcept ImportError:\n    import near",
        "lambda: 0; import near",
        "match 1:\n    case 1:\n        import near",
        "import os, near as n, sys",
        "from near import *",
        "from near import (a,\n    b)",
        "\ufeffimport near\r\nx = 1\r\n",
        'x = "\\d"\nimport near',
    ],
    ids=range(12),
)
def test_forms_of_import(folder: Folder, text: str) -> None:
    """Wherever it is written; also where warnings are errors, as in these tests."""
    folder.file("job", text)
    folder.file("near")
    assert folder.packed("job") == ["job.py", "near.py"]


def test_star_of_a_package(folder: Folder) -> None:
    """`from pkg import *` is the package and what it imports itself; not its other modules."""
    folder.file("job", "from pkg import *")
    folder.file("pkg/__init__", "from .a import x\n__all__ = ['x', 'b']")
    folder.file("pkg/a")
    folder.file("pkg/b")
    assert folder.packed("job") == ["job.py", "pkg/__init__.py", "pkg/a.py"]


def test_names_made_at_run_time(folder: Folder) -> None:
    """What no import statement names is not found."""
    folder.file("job", "import importlib\nimportlib.import_module('near')\n__import__('near')\nexec('import near')")
    folder.file("near")
    assert folder.packed("job") == ["job.py"]


def test_namespace_packages(folder: Folder) -> None:
    """Without __init__.py, one inside another, and in two folders of the path; none of it imported here."""
    folder.look_in("one", "two")
    folder.file("one/job", "import ns.sub.deep.mod, ns.right\nfrom ns import left")
    for name in ("one/ns/left", "two/ns/right", "two/ns/sub/deep/mod", "two/ns/sub/unrelated"):
        folder.file(name)
    assert folder.packed("job") == ["job.py", "ns/left.py", "ns/right.py", "ns/sub/deep/mod.py"]


def test_package_in_a_namespace(folder: Folder) -> None:
    folder.file("job", "import ns.pkg.mod")
    folder.file("ns/pkg/__init__")
    folder.file("ns/pkg/mod", "from . import beside")
    folder.file("ns/pkg/beside")
    assert folder.packed("job") == ["job.py", "ns/pkg/__init__.py", "ns/pkg/beside.py", "ns/pkg/mod.py"]


@pytest.mark.parametrize("text", ["def f(:\n", "x = '", "a\0b", "(" * 10_000, "\xff".encode("latin-1")], ids=range(5))
def test_not_python(folder: Folder, text: str | bytes) -> None:
    """A file that Python does not take is packed: whoever imports it is told there what is told here."""
    folder.file("job", "import broken, near")
    folder.file("broken", text)
    folder.file("near")
    assert folder.packed("job") == ["broken.py", "job.py", "near.py"]


def test_cycle(folder: Folder) -> None:
    folder.file("a", "import b")
    folder.file("b", "import c\nimport b")
    folder.file("c", "import a")
    assert folder.packed("b") == folder.packed("a") == ["a.py", "b.py", "c.py"]


def test_two_roots(folder: Folder) -> None:
    """Of a module in two folders the one that Python would import."""
    folder.look_in("one", "two")
    folder.file("one/job", "import twice, mixed")
    folder.file("one/twice", "1")
    folder.file("two/twice", "2")
    folder.file("two/mixed/__init__", "a package, before the module of its name")
    folder.file("two/mixed", "a module")
    found = folder.files("job")
    assert found["twice.py"] == b"1"
    assert sorted(found) == ["job.py", "mixed/__init__.py", "twice.py"]


@pytest.mark.parametrize("order", [("", "src"), ("src", "")], ids=["outer first", "inner first"])
def test_root_in_a_root(folder: Folder, order: tuple[str, str]) -> None:
    """A file is packed where its module's name says, whichever folders of the path it is in; also under two names."""
    folder.look_in(*order)
    folder.file("job", "import inner, src.inner")
    folder.file("src/inner")
    assert folder.packed("job") == ["inner.py", "job.py", "src/inner.py"]


def test_installed(folder: Folder, tmp_path: Path) -> None:
    """Not the standard library, not what is installed, and not evpipe; though a folder of the path is above them."""
    sys.path.insert(0, "/")
    folder.file("job", "import json, os.path, anyio, msgpack, evpipe.client, xml.dom\nimport evpipe")
    assert folder.packed("job") == ["job.py"]
    assert folder.packed("json", "evpipe.examples.stdlib_report", "anyio") == []


def test_environment_in_the_project(folder: Folder) -> None:
    """What is installed in an environment inside the project folder stays there."""
    venv.create(folder.path / ".venv", symlinks=True)
    site = next((folder.path / ".venv" / "lib").glob("python*")) / "site-packages"
    sys.path.append(str(site))
    inside = site.relative_to(folder.path)
    folder.file("job", "import installed, installed_package.mod, ns.mine, ns.theirs")
    for name in ("installed", "installed_package/__init__", "installed_package/mod", "ns/theirs"):
        folder.file(str(inside / name))
    folder.file("ns/mine")
    assert folder.packed("job") == ["job.py", "ns/mine.py"]


def test_beats_what_is_installed(folder: Folder) -> None:
    """A file of the user's whose name an installed module or the standard library has: where it would be imported."""
    folder.file("job", "import anyio, wave, time, os, near")
    for name in ("anyio", "wave", "time", "os", "near"):
        folder.file(name)
    # `time` and `os` come from the interpreter, whatever is on the path.
    assert folder.packed("job") == ["anyio.py", "job.py", "near.py", "wave.py"]
    sys.path.append(sys.path.pop(0))
    assert folder.packed("job") == ["job.py", "near.py"]


def test_compiled(folder: Folder) -> None:
    """What is no source file does not travel: extension modules, and bytecode without its source."""
    folder.file("job", "import ext, old")
    (folder.path / f"ext{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    (folder.path / "old.pyc").write_bytes(b"")
    assert folder.packed("job") == ["job.py"]


def test_zip_on_the_path(folder: Folder) -> None:
    """Modules inside a zip file are not packed, and not in the way."""
    import zipfile

    with zipfile.ZipFile(folder.path / "lib.zip", "w") as made:
        made.writestr("zipped.py", "")
    folder.look_in("", "lib.zip")
    folder.file("job", "import zipped")
    assert folder.packed("job") == ["job.py"]


def test_symlinks(folder: Folder, tmp_path: Path) -> None:
    """A link is packed as the file it leads to, where it is imported from."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "pkg").mkdir(parents=True)
    (elsewhere / "real.py").write_text("import by_link")
    (elsewhere / "pkg" / "__init__.py").write_text("")
    (elsewhere / "pkg" / "mod.py").write_text("x = 1")
    (folder.path / "linked.py").symlink_to(elsewhere / "real.py")
    (folder.path / "package").symlink_to(elsewhere / "pkg")
    folder.file("by_link")
    folder.file("job", "import linked, package.mod")
    found = folder.files("job")
    assert sorted(found) == ["by_link.py", "job.py", "linked.py", "package/__init__.py", "package/mod.py"]
    assert (found["linked.py"], found["package/mod.py"]) == (b"import by_link", b"x = 1")
    (folder.path / "dangling.py").symlink_to(tmp_path / "nowhere")
    folder.file("job", "import dangling")
    assert folder.packed("job") == ["job.py"]


def test_bytes_are_kept(folder: Folder) -> None:
    """Whatever the encoding and the ends of lines; a coding line is heeded where imports are looked for."""
    texts: dict[str, bytes] = {
        "latin": "# -*- coding: latin-1 -*-\nimport größe\n".encode("latin-1"),
        "größe": b"import crlf\r\n",
        "crlf": b"x = '''\r\n'''\r\nimport unknown\r\n",
        "unknown": b"# -*- coding: nonsense -*-\n",
    }
    for name, text in texts.items():
        folder.file(name, text)
    assert folder.files("latin") == {f"{name}.py": text for name, text in texts.items()}


def test_unreadable(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is named."""
    folder.file("job", "import closed")
    closed = folder.file("closed")
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        # Not by its mode: the tests may run as root.
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError) as caught:
        folder.packed("job")
    assert str(caught.value) == f"the source file {closed} cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["a:b", "a\\b", "a\x07b"])
def test_name_that_cannot_travel(folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A script whose name no bundle takes is refused where it is submitted, not where it should run."""
    script = folder.file(name)
    monkeypatch.setattr(Source, "of_process", lambda: Source((str(folder.path),), {"__main__": str(script)}))
    with pytest.raises(UsageError, match="which cannot travel"):
        bundle_of(["__main__"])


def test_too_large(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evpipe.wire.bundles.BUNDLE_UNPACKED_BYTES_MAX", 1_000)
    folder.file("job", "import large")
    folder.file("large", "#" * 1_000)
    with pytest.raises(LimitExceeded, match=r"the largest files are large\.py \(1,000 bytes\), job\.py"):
        folder.packed("job")


@pytest.mark.parametrize("settled_s", [own_modules._SETTLED_S, -9])
def test_change_is_seen(folder: Folder, monkeypatch: pytest.MonkeyPatch, settled_s: float) -> None:
    """A file that is written again is read again; also one whose size and time are what they were."""
    monkeypatch.setattr(own_modules, "_SETTLED_S", settled_s)
    near = folder.file("near", "import a")
    folder.file("job", "import near, later")
    folder.file("a")
    folder.file("b")
    before = near.stat()
    first = bundle_of(["job"])
    assert first == bundle_of(["job"])
    replaced = folder.file("near_", "import b")
    os.utime(replaced, ns=(before.st_atime_ns, before.st_mtime_ns))
    replaced.replace(near)
    os.utime(near, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert near.stat().st_mtime_ns == before.st_mtime_ns
    assert folder.packed("job") == ["b.py", "job.py", "near.py"]
    folder.file("later")
    assert folder.packed("job") == ["b.py", "job.py", "later.py", "near.py"]
    folder.path.joinpath("b.py").unlink()
    assert folder.packed("job") == ["job.py", "later.py", "near.py"]


def test_nothing_is_read_twice(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second submit of the same code reads no file and looks for none; of code that has just changed it does."""
    folder.file("job", "import near")
    folder.file("near")
    looks: list[str] = []
    real = own_modules._look

    def look(name: str, places: list[str]) -> Any:
        looks.append(name)
        return real(name, places)

    monkeypatch.setattr(own_modules, "_look", look)
    made = [bundle_of(["job"]), bundle_of(["job"])]
    assert looks == ["job", "near"] * 2
    monkeypatch.setattr(own_modules, "_SETTLED_S", -9)
    made += [bundle_of(["job"]), bundle_of(["job"]), bundle_of(["job"])]
    assert looks == ["job", "near"] * 3
    assert made == made[:1] * 5


def test_few_are_kept(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_modules, "_SETTLED_S", -9)
    for i in range(bundles._KNOWN_MAX + 3):
        folder.file(f"job{i}")
        bundle_of([f"job{i}"])
    assert len(bundles._known) == bundles._KNOWN_MAX


# ---- what is no module by its name


def named(monkeypatch: pytest.MonkeyPatch, folder: Folder, **files: Path) -> None:
    source = Source((str(folder.path),), {name: str(file) for name, file in files.items()})
    monkeypatch.setattr(Source, "of_process", lambda: source)


def test_two_files_of_one_name(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that have the name of another file keep their content, and modules the place that imports look at."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scripts = [tmp_path / "a" / "job.py", tmp_path / "b" / "job.py"]
    for script in scripts:
        script.write_text(f"import near  # {script}")
    folder.file("near", "import job")
    own = folder.file("job", "own")
    named(monkeypatch, folder, first=scripts[0], second=scripts[1])
    made = bundle_of(["first", "second"])
    assert made is not None
    files = unpack_bundle(made.data)
    assert {module: files[inside] for module, inside in made.files.items()} == {
        "first": scripts[0].read_bytes(),
        "second": scripts[1].read_bytes(),
    }
    assert (files["job.py"], files["near.py"]) == (own.read_bytes(), b"import job")
    assert len(files) == 4


def test_script_that_is_imported(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that its own modules import is one file, not two."""
    script = folder.file("job", "import near")
    folder.file("near", "from job import x")
    named(monkeypatch, folder, __main__=script)
    made = bundle_of(["__main__"])
    assert made is not None
    assert sorted(unpack_bundle(made.data)) == ["job.py", "near.py"]
    assert made.files == {"__main__": "job.py"}


def test_installed_main(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` of what is installed: there is nothing to pack, and the worker is told what `__main__` is."""
    monkeypatch.setattr(Source, "of_process", lambda: Source((), {}, "evpipe.examples.stdlib_report"))
    made = bundle_of(["__main__"])
    assert made is not None
    assert unpack_bundle(made.data) == {}
    assert made.as_map() == {"kind": "bundle", "digest": made.digest, "main": "evpipe.examples.stdlib_report"}


def test_typed_into_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "of_process", Source)
    assert bundle_of(["__main__"]) is None


# ---- what processes of users have

SHOW = """
if __name__ == "__main__":
    import json
    from evpipe.client.bundle import bundle_of
    from evpipe.wire.bundles import unpack_bundle
    made = bundle_of([f.__module__])
    print(json.dumps([sorted(unpack_bundle(made.data)), made.as_map()]))
"""
SCRIPT = "import near\ndef f(): pass\n" + SHOW
Shown = tuple[list[str], dict[str, Any]]


def shown(cwd: Path, *args: str) -> Shown:
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=True
    )
    files, found = json.loads(done.stdout)
    assert (found.pop("kind"), len(found.pop("digest"))) == ("bundle", 64)
    return files, found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Shown]:
    def run(*args: str, **files: str) -> Shown:
        for name, text in {"near": "", "unrelated": "", **files}.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return shown(tmp_path, *args)

    return run


@pytest.mark.parametrize(
    "name", ["job", "not-an-identifier", "2nd", "wave", "antigravity", "mit leer zeichen", "größe"]
)
def test_script(run: Callable[..., Shown], name: str) -> None:
    """`python script.py`, whatever it is called."""
    assert run(f"{name}.py", **{name: SCRIPT}) == (
        sorted([f"{name}.py", "near.py"]),
        {"files": {"__main__": f"{name}.py"}},
    )


def test_script_elsewhere(run: Callable[..., Shown]) -> None:
    """A script's folder is where it imports from, not the current one."""
    found = run("sub/job.py", **{"sub/job": SCRIPT, "sub/near": "import unrelated", "sub/unrelated": ""})
    assert found == (["job.py", "near.py", "unrelated.py"], {"files": {"__main__": "job.py"}})


def test_module(run: Callable[..., Shown]) -> None:
    """`python -m pkg.mod` imports relatively and from the current folder."""
    text = SCRIPT.replace("import near", "import near\nfrom . import beside")
    files = {"pkg/__init__": "", "pkg/mod": text, "pkg/beside": "", "pkg/unrelated": ""}
    found = ["near.py", "pkg/__init__.py", "pkg/beside.py", "pkg/mod.py"]
    assert run("-m", "pkg.mod", **files) == (found, {"main": "pkg.mod"})


def test_package_that_is_run(run: Callable[..., Shown]) -> None:
    """`python -m pkg` runs pkg.__main__."""
    found = run("-m", "pkg", **{"pkg/__init__": "", "pkg/__main__": SCRIPT, "pkg/unrelated": ""})
    assert found == (["near.py", "pkg/__init__.py", "pkg/__main__.py"], {"main": "pkg.__main__"})


TARGET = """
import sys
from evpipe.cli.target import find_target
from evpipe.client.bundle import bundle_of
from evpipe.wire.bundles import unpack_bundle
import json
found = find_target(sys.argv[1])
modules = [str(step.code["module"]) for step in found.pipeline.build({}).graph.steps.values()]
made = bundle_of(modules)
print(json.dumps([sorted(unpack_bundle(made.data)), made.as_map()]))
"""
JOB = """
import near
from evpipe import pipeline, step
@step
def one(): return 1
@pipeline
def ones(): return one()
"""


@pytest.mark.parametrize("flags", [[], ["-P"]], ids=["usual", "safe path"])
def test_target_that_is_a_file(run: Callable[..., Shown], flags: list[str]) -> None:
    """`evpipe run file.py`: also where the file's folder is not on the path."""
    text = JOB.replace("import near", "") if flags else JOB
    files, found = run(*flags, "-c", TARGET, "sub/job.py", **{"sub/job": text, "sub/near": ""})
    assert (files, found) == ((["job.py"], {"files": {"job": "job.py"}}) if flags else (["job.py", "near.py"], {}))


@pytest.mark.parametrize("name", ["not-an-identifier", "wave", "anyio"])
def test_target_that_is_imported_under_another_name(run: Callable[..., Shown], name: str) -> None:
    files, found = run("-c", TARGET, f"sub/{name}.py", **{f"sub/{name}": JOB, "sub/near": ""})
    assert files == sorted([f"{name}.py", "near.py"])
    ((module, inside),) = found["files"].items()
    assert module.startswith("evpipe_target_")
    assert inside == f"{name}.py"


def test_bundle_shows_no_content(folder: Folder) -> None:
    """What is logged of one is its digest, not its megabytes."""
    folder.file("job", "#" * 1_000)
    made = bundle_of(["job"])
    assert isinstance(made, Bundle)
    assert len(repr(made)) < 300
