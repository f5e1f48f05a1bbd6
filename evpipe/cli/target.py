"""TARGET of `evpipe run`: from `module:pipeline` or `file.py:pipeline` to the pipeline.

The user's module is imported as Python would: the current directory, or the file's, comes first on `sys.path`. A file
is imported under its stem, because that is where a worker of this process, and one elsewhere, looks for its steps.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, NamedTuple

import evpipe
from evpipe.cli.output import UserCodeRaised
from evpipe.client.source import TARGETS
from evpipe.core.names import nearest
from evpipe.errors import EvpipeError, UsageError
from evpipe.sdk.definition import AnyPipeline
from evpipe.sdk.pipeline import PipelineFunction
from evpipe.sdk.step import Step

_FORMS: Final = "write module:pipeline or file.py:pipeline"
_PACKAGE: Final = str(Path(evpipe.__file__).parent) + os.sep
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
NAMES_SHOWN_MAX: Final = 12


class Target(NamedTuple):
    """What was found."""

    pipeline: AnyPipeline[..., Any]
    #: Not empty if the module's name is not what the file's name promises: workers elsewhere cannot import it.
    note: str = ""


def find_target(text: str) -> Target:
    """Import the module that TARGET names and give its pipeline.

    Raises:
        UsageError: if there is no such thing, or no single one.
        UserCodeRaised: if the module raised.
    """
    place, name = _split(text)
    note = ""
    if _is_file(place):
        module, note = _import_file(place)
    else:
        module = import_module(place, _FORMS)
    return Target(_choose(module, place, name), note)


def _split(text: str) -> tuple[str, str | None]:
    if text.endswith(".py") and ":" not in Path(text).name:
        return text, None
    place, colon, name = text.rpartition(":")
    if not colon:
        place, name = text, ""
    if not place or (colon and not name):
        raise UsageError(f"{text!r} is not a target: {_FORMS}")
    return place, name or None


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


# ---- importing


def import_module(name: str, forms: str) -> ModuleType:
    """Import a module of the user's by its name, as `python -m` would.

    Args:
        forms: says what may be written, for the sentence that refuses it.

    Raises:
        UsageError: if there is no such module.
        UserCodeRaised: if it raised.
    """
    if _MODULE.match(name) is None:
        raise UsageError(f"{name!r} is not the name of a module: {forms}")
    put_on_path(Path.cwd())
    try:
        with _user_code(f"importing {name}"):
            return importlib.import_module(name)
    except UserCodeRaised as error:
        missing = error.__cause__
        # A module that is there and lacks one that it imports is another matter.
        if isinstance(missing, ModuleNotFoundError) and (name == missing.name or name.startswith(f"{missing.name}.")):
            raise UsageError(
                f"there is no module {name!r} in {Path.cwd()} or among the installed packages: {forms}"
            ) from None
        raise


def _import_file(place: str) -> tuple[ModuleType, str]:
    path = Path(place).expanduser()
    if path.suffix != ".py":
        other = path.with_name(f"{path.name}.py")
        hint = f"; did you mean {other}?" if other.is_file() else ": the name of a file must end in .py"
        raise UsageError(f"{place!r} is not a Python file{hint}")
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        others = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UsageError(f"the file {place} {what}{nearest(path.name, others)}")
    path = path.resolve()
    name = path.stem
    note = ""
    taken = _taken(name, path)
    if taken:
        name = _safe_name(path)
        note = f"{place} is imported as {name}, because {taken}"
    if taken or sys.flags.safe_path:
        # No path leads to a module of this name: children are told the file.
        TARGETS.add(name)
    put_on_path(path.parent)
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded, note
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the suffix .py has a loader"
    assert spec.loader is not None, "as above"
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as an import would: dataclasses and the steps' own look-up need it.
    sys.modules[name] = module
    try:
        with _user_code(f"importing {place}"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module, note


def _taken(name: str, path: Path) -> str:
    """Say why a file cannot be imported under this name, or ""."""
    if not name.isidentifier():
        return f"{name!r} cannot be the name of a module"
    if name in sys.stdlib_module_names or name == "__main__":
        return f"{name!r} is a module of Python itself"
    loaded = sys.modules.get(name)
    if loaded is not None:
        return "" if _is_of(getattr(loaded, "__file__", None), path) else f"another module {name!r} is loaded"
    try:
        # Before the file's own directory is on the path: what is found now is somebody else's.
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    # A folder without __init__.py has no origin, and a file beats it.
    if spec is None or spec.origin is None or _is_of(spec.origin, path):
        return ""
    return f"there is an installed module {name!r} ({spec.origin})"


def _is_of(file: str | None, path: Path) -> bool:
    return file is not None and Path(file).resolve() == path


def _safe_name(path: Path) -> str:
    """A module's name that is the same whenever the same file is run: a run's key is compared with its graph."""
    legal = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    return f"evpipe_target_{legal}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def put_on_path(folder: Path) -> None:
    """Let modules be found there first, unless Python was told not to."""
    if not sys.flags.safe_path and sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


# ---- what the user's code raises


@contextmanager
def _user_code(doing: str) -> Iterator[None]:
    """The border to the user's module."""
    try:
        yield
    except SystemExit as error:
        raise UsageError(
            f"{doing} ended with SystemExit({error.code!r}): "
            'put what it does as a script under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise told(error, doing, _past_ours(error.__traceback__)) from error


@contextmanager
def pipeline_body(pipeline: AnyPipeline[..., Any]) -> Iterator[None]:
    """Tell what the pipeline's own body raised while its graph was made from everything else."""
    if not isinstance(pipeline, PipelineFunction):
        yield  # a Pipeline has no body: its lines ran when its module was imported
        return
    code = pipeline.fn.__code__
    try:
        yield
    except Exception as error:
        frames = _from_code(error.__traceback__, code)
        if frames is None:
            raise
        raise told(error, f"building the graph of pipeline {pipeline.name!r}", frames) from error


def told(error: Exception, doing: str, frames: TracebackType | None) -> UsageError:
    """Make of what user code raised a sentence with the line, and for errors not ours the traceback."""
    if isinstance(error, EvpipeError):
        where = _last_line(frames)
        return UsageError(f"{where}: {error}" if where else str(error))
    text = str(error)
    message = f"{doing} failed: {type(error).__name__}{': ' if text else ''}{text}"
    shown = "".join(traceback.format_exception(type(error), error, frames))
    return UserCodeRaised(message.splitlines()[0], traceback=shown)


def _past_ours(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames that lead to the user's file."""
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _from_code(frames: TracebackType | None, code: CodeType) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code is not code:
        frames = frames.tb_next
    return frames


def _is_ours(file: str) -> bool:
    return file.startswith((_PACKAGE, "<frozen importlib")) or file == importlib.__file__


def _last_line(frames: TracebackType | None) -> str:
    """Give "file:line" of the deepest frame that is the user's."""
    found = ""
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if not _is_ours(file):
            here = Path.cwd()
            path = Path(file)
            found = f"{path.relative_to(here) if path.is_relative_to(here) else path}:{frames.tb_lineno}"
        frames = frames.tb_next
    return found


# ---- choosing


def _choose(module: ModuleType, place: str, name: str | None) -> AnyPipeline[..., Any]:
    every = {key: value for key, value in vars(module).items() if isinstance(value, AnyPipeline)}
    if name is not None:
        return _named(module, every, place, name)
    # One that the module only imported is its choice where it has none of its own.
    own = {key: value for key, value in every.items() if value.module == module.__name__} or every
    found = {id(value): key for key, value in own.items()}
    if len(found) == 1:
        return next(iter(own.values()))
    if not found:
        raise UsageError(f"{place} has no pipeline: decorate a function of it with @pipeline")
    names = list(found.values())
    raise UsageError(f"{place} has {len(names)} pipelines: say which, as in {place}:{names[0]} ({_listed(names)})")


def _named(module: ModuleType, every: dict[str, AnyPipeline[..., Any]], place: str, name: str) -> AnyPipeline[..., Any]:
    if name in every:
        return every[name]
    by_name = [pipeline for pipeline in every.values() if pipeline.name == name]
    if by_name:
        return by_name[0]
    if hasattr(module, name):
        found = getattr(module, name)
        what = "a step" if isinstance(found, Step) else f"a {type(found).__name__}"
        raise UsageError(f"{place}:{name} is {what}, not a pipeline: decorate a function with @pipeline")
    has = f"it has {_listed(list(every))}" if every else "it has none"
    raise UsageError(f"{place} has no pipeline {name!r}{nearest(name, every)} ({has})")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return ", ".join(names[:NAMES_SHOWN_MAX]) + more
