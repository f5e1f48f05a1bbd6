"""The modules of a child: where it looks for a source's code, and whether what it has loaded is still that."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from evpipe.client.source import Source
from evpipe.sdk.loading import LoadingEnds, loading
from evpipe.wire.messages import LaunchOrder, decode_launch
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.code import CodeNotFound, find_function

RUNS_KEPT: Final = 1_000


class Modules:
    """Loads the code of one source in this process."""

    def __init__(self, source: Source) -> None:
        self.source = source
        #: The environment before anything of the user's was loaded, which may change it.
        self.environ = dict(os.environ)
        self._folders = tuple(os.path.join(path, "") for path in source.paths)  # noqa: PTH118 - a text that ends in /
        #: Time and size of every file of the source's own that was loaded, as they were then.
        self._loaded: dict[str, tuple[int, int]] = {}
        self._seen: set[str] = set()
        #: The line of the script that runs a pipeline, if its loading ended there.
        self._ended_at = 0
        #: Launches are decoded in threads, too: none takes a module that another is still loading.
        self._lock = threading.RLock()
        #: Runs that were looked at; a few of them.
        self._runs: dict[str, None] = {}

    def install(self) -> None:
        """Let imports find the source's modules first."""
        own = list(self.source.paths)
        sys.path[:] = own + [path for path in sys.path if path not in own]

    def prepare(self, module: str) -> None:
        """Load a module that no import would find.

        Raises:
            CodeNotFound: if its file raises, or is not there.
        """
        if module == "__main__":
            self._prepare_main()
        elif module in self.source.files and module not in sys.modules:
            self._load(module, self.source.files[module])

    def order(self, data: bytes, files: AttemptFiles) -> LaunchOrder:
        """Decode a launch when its code is loaded, with the values of its artifacts.

        A value's class is looked up among modules that are loaded already: when this launch is the first of its module,
        it is decoded again.

        Raises:
            RemoteProtocolError: if it is not one.
            CodeNotFound: if its function is not there.
            ArtifactUnreadable: if an artifact among its arguments cannot be read.
        """
        order = decode_launch(data)
        if order.executor == "command":
            # It has no code here.
            return files.decode(data, order) if order.artifacts else order
        module = str(order.code.get("module"))
        with self._lock:
            before = sys.modules.get(module)
            with loading(module):
                self.prepare(module)
                self._check(order)
            # Before it runs, which may take long: a file that changes meanwhile is another than was loaded.
            self.note()
        if order.artifacts:
            # Now that the serializers of its module are known.
            return files.decode(data, order)
        return order if sys.modules.get(module) is before else decode_launch(data)

    def _check(self, order: LaunchOrder) -> None:
        try:
            find_function(order.code)
        except CodeNotFound as error:
            if order.code.get("module") == "__main__" and self._ended_at:
                raise CodeNotFound(
                    f"{error} above line {self._ended_at}, where it runs a pipeline: put that at its end, or under "
                    '`if __name__ == "__main__":`'
                ) from error
            raise

    def stale(self, run: str) -> bool:
        """Say whether a file that is loaded has changed since; looked at once per run."""
        if run in self._runs:
            return False
        self._runs[run] = None
        if len(self._runs) > RUNS_KEPT:
            del self._runs[next(iter(self._runs))]
        self._note()
        return any(_stamp(file) != stamp for file, stamp in self._loaded.items())

    def note(self) -> None:
        """Remember what was loaded meanwhile."""
        if len(sys.modules) != len(self._seen):
            self._note()

    def _note(self) -> None:
        for name, module in list(sys.modules.items()):
            if name in self._seen:
                continue
            self._seen.add(name)
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and (file.startswith(self._folders) or file in self.source.files.values()):
                self._loaded.setdefault(file, _stamp(file))

    def _prepare_main(self) -> None:
        main = sys.modules.get("__main__")
        if main is not None and main.__dict__.get("__evpipe_main__"):
            return
        if self.source.main:
            try:
                main = importlib.import_module(self.source.main)
            except Exception as error:
                raise CodeNotFound(f"importing {self.source.main} failed: {type(error).__name__}: {error}") from error
        elif "__main__" in self.source.files:
            path = self.source.files["__main__"]
            stem = Path(path).stem
            taken = stem in sys.stdlib_module_names or (stem in sys.modules and sys.modules[stem].__file__ != path)
            # Under its file's name, as other modules of the program may import it; so the guard is false.
            main = self._load("evpipe_main" if taken or not stem.isidentifier() else stem, path)
            # As of any script: who starts processes (multiprocessing) takes it for one by this.
            main.__spec__ = None
        else:
            return
        main.__dict__["__evpipe_main__"] = True
        sys.modules["__main__"] = main

    def _load(self, name: str, path: str) -> ModuleType:
        loaded = sys.modules.get(name)
        if loaded is not None:
            return loaded
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not Path(path).is_file():
            raise CodeNotFound(f"the file {path} does not exist on this worker's machine")
        module = importlib.util.module_from_spec(spec)
        # Before it runs, as an import would: dataclasses and the steps' own look-up need it.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except LoadingEnds as end:
            # Of the script alone: in other modules that is an error.
            self._ended_at = next(
                line for frame, line in traceback.walk_tb(end.__traceback__) if frame.f_globals is vars(module)
            )
        except BaseException as error:
            sys.modules.pop(name, None)
            if isinstance(error, Exception):
                raise CodeNotFound(f"loading {path} failed: {type(error).__name__}: {error}") from error
            raise
        return module


def _stamp(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)  # noqa: PTH116 - once per file and run
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
