"""What was typed into a notebook or an interpreter, saved as a module: so its steps run in processes, also elsewhere.

Of all that was typed only what the steps need is taken: the statements that bind and change the names that their
functions use, each as it was last run, in the order in which they were run. `definitions` says what a statement does.
Whoever imports the module gets the steps and not the cells that plot, print or run pipelines; what steps use of such a
run's result is written as the value that it is.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import re
import sys
import time
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from evpipe.client.cache_folder import cache_folder, draft_in
from evpipe.client.definitions import BUILTINS, Definitions, Statement, definitions_of
from evpipe.client.own_modules import Stamp, stamp
from evpipe.client.program import Key, Module, Program
from evpipe.client.source import Source
from evpipe.sdk.functions import TYPED_STEPS, cells_of

_HEADER: Final = '"""What the steps of a notebook need of its cells."""\n'
#: Later than every statement.
_NOW: Final = sys.maxsize
_FUTURE: Final = re.compile(r"^from __future__ import .+$", re.MULTILINE)
#: Magics that run their cell as it is.
_PLAIN_MAGICS: Final = frozenset({"time", "capture"})
#: Types of values that may be written into a module as text, and how long that may be.
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
_TEXT_CHARS_MAX: Final = 65_536
#: A file that nobody has needed for so long is removed.
_KEPT_S: Final = 30 * 24 * 3600.0
_DAY_S: Final = 24 * 3600.0


class _Known(NamedTuple):
    key: object
    text: str
    watched: Mapping[str, Stamp | None]


#: The last one.
_known: _Known | None = None


def cells_file(main: types.ModuleType, paths: tuple[str, ...]) -> str | None:
    """Save what the steps that were typed need; gives the file, which is another when they are.

    Args:
        main: what was typed into.
        paths: where modules of the user's are looked for.

    Returns:
        None if no step was typed, or nothing is known of what was typed.
    """
    global _known
    space = vars(main)
    steps = sorted(name for name in TYPED_STEPS if callable(space.get(name)))
    cells = cells_of(space) if steps else []
    if not cells:
        return None
    key = (tuple(cells), tuple((name, _place_of(space[name])) for name in steps), tuple(sys.path))
    known = _known
    if known is None or known.key != key or any(stamp(file) != seen for file, seen in known.watched.items()):
        program = Program(Source(paths), "")
        choice = _Choice(cells, steps, space, program)
        known = _Known(key, choice.text(), dict(program.watched))
        # What no cell binds may be another the next time.
        _known = None if choice.missing else known
    return str(_saved(known.text))


def _saved(text: str) -> Path:
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = cache_folder("cells")
    file = folder / f"evpipe_cells_{digest[:12]}.py"
    with suppress(OSError):
        # Not touched more often: children that have loaded it go by its time.
        if file.read_text() == text and file.stat().st_mtime > time.time() - _DAY_S:
            return file
    draft = draft_in(folder)
    draft.write_text(text)
    draft.replace(file)
    _remove_old(folder)
    return file


def _remove_old(folder: Path) -> None:
    before = time.time() - _KEPT_S
    with suppress(OSError):
        for found in folder.iterdir():
            if found.stat().st_mtime < before:
                found.unlink()


def module_text(cells: Sequence[str], steps: Iterable[str], space: Mapping[str, Any], program: Program) -> str:
    """Give the source of a module that has some steps.

    Args:
        cells: all that was run, in this order.
        steps: names of their functions.
        space: the names that were typed, as they are now.
        program: finds the user's own modules.
    """
    return _Choice(cells, steps, space, program).text()


class _Choice:
    """The statements of some cells that names need."""

    def __init__(self, cells: Sequence[str], steps: Iterable[str], space: Mapping[str, Any], program: Program) -> None:
        self._space = space
        self._futures = sorted({found for cell in cells for found in _FUTURE.findall(cell)})
        self._program = program
        #: Of each statement its cell, and where in that.
        self._statements: list[tuple[str, Statement]] = []
        merged = Definitions(ast.Module([], []), "")
        for cell in map(_plain, cells):
            found = definitions_of(cell.encode(), "", False)
            for statement in found.statements if found is not None else ():
                index = len(self._statements)
                self._statements.append((cell, statement))
                # Those of a cell are shared by all that ask for its text.
                placed = Statement(statement.node, index, statement.facts, statement.decorators, statement.guarded)
                merged.statements.append(placed)
                for name in {name for facts in placed.parts() for name in facts.binds}:
                    merged.by_name.setdefault(name, []).append(placed)
        self._module = Module("", "", "", b"", is_package=False, is_source=True)
        self._module.definitions = merged
        self._program.start = self._module
        for statement in merged.statements:
            for facts in statement.parts():
                self._module.aliases |= facts.aliases
                merged.stars += [alias for alias in facts.aliases if alias.name == "*"]
        self._all = merged
        #: Statements that change a thing, by the thing.
        self._effects: dict[Key, list[Statement]] = {}
        for statement in merged.statements:
            for key in program.changed(self._module, statement, maybe=False):
                self._effects.setdefault(key, []).append(statement)
        #: Places of the statements that are needed.
        self._chosen: set[int] = set()
        self._todo: list[tuple[str, int]] = []
        self._needed: set[tuple[str, int]] = set()
        self._taken: set[tuple[int, int]] = set()
        #: Names that none of them binds.
        self.missing: set[str] = set()
        self._todo += [(name, _NOW) for name in steps]
        while self._todo:
            needed = self._todo.pop()
            if needed not in self._needed:
                self._needed.add(needed)
                self._find(*needed)
        self._given = self._give()

    def text(self) -> str:
        """Give the module's source."""
        parts = [_HEADER, *(f"{line}\n" for line in self._futures)]
        parts += [f"{line}\n" for _, line in sorted(self._given.items())]
        parts += [self._source(index) for index in sorted(self._chosen)]
        return "\n".join(parts)

    def _find(self, name: str, before: int) -> None:
        bound = [one for one in self._all.by_name.get(name, ()) if one.index < before]
        if not bound and name in self._all.by_name:
            # Used by what ran before it was bound, and so never reached; or bound again since.
            bound, before = self._all.by_name[name], _NOW
        if not bound:
            self._find_elsewhere(name, before)
            return
        sure = [one.index for one in bound if one.binds_surely]
        first = sure[-1] if sure else bound[0].index
        if before == _NOW and sure:
            first = self._live(name, bound) or first
            bound = [one for one in bound if one.index <= first or not one.binds_surely]
        for one in bound:
            if one.index >= first:
                self._take(one, before)
        for one in self._effects.get(Key(self._module, name), ()):
            if first < one.index < before:
                self._take(one, before)

    def _find_elsewhere(self, name: str, before: int) -> None:
        if name in BUILTINS:
            return
        stars = [one for one in self._all.statements if any(alias.name == "*" for alias in one.facts.aliases)]
        for one in stars:
            if one.index < before:
                self._take(one, before)
        if not stars:
            self.missing.add(name)

    def _take(self, statement: Statement, before: int) -> None:
        """Choose a statement whose functions are called before a place."""
        if (statement.index, before) in self._taken:
            return
        self._taken.add((statement.index, before))
        if not statement.is_definition and self._program.runs_pipeline(self._module, statement):
            # It would run again in every process that has the module.
            self.missing.update(statement.facts.binds)
            return
        self._chosen.add(statement.index)
        for facts in statement.parts():
            for root in facts.immediate:
                self._use(root, statement.index)
            for root in facts.deferred:
                self._use(root, before)
            for use in facts.quoted:
                if use.root in self._all.by_name:
                    self._use(use.root, before)
            if facts.dynamic:
                # Any name may be meant; of those that take work to make the one who asks has to name it.
                for one in self._all.statements:
                    if one.is_definition or one.facts.imports or not one.facts.calls:
                        for name in one.facts.binds:
                            self._use(name, before)
            for use in facts.uses:
                for key, _ in self._program.resolve(self._module, use):
                    if key.module is not self._module and key.module is not None:
                        # What a cell has set in another module.
                        for one in self._effects.get(key, ()):
                            self._take(one, before)

    def _use(self, root: str, before: int) -> None:
        if ":" not in root:
            self._todo.append((root, before))

    def _live(self, name: str, bound: Sequence[Statement]) -> int | None:
        """Give the statement that made a function what it is now: where one has failed, that is not the last."""
        place = _place_of(self._space.get(name))
        if place is None:
            return None
        file, line = place
        text = _text_of(file)
        for one in reversed(bound):
            if one.is_definition and _first_line(one.node) == line and self._statements[one.index][0].rstrip() == text:
                return one.index
        return None

    def _give(self) -> dict[str, str]:
        """Give statements for names that no chosen one binds: of a start-up file, a magic, or the result of a run."""
        given: dict[str, str] = {}
        annotations = not any("annotations" in line for line in self._futures)
        while True:
            for name in self.missing.intersection(self._space) - set(given):
                line = _line_for(name, self._space[name])
                if line is not None:
                    given[name] = line
            broken = self._broken(given, annotations=annotations)
            if not broken:
                return given
            # The module can still be imported, and who needs none of that can run.
            self._chosen -= broken
            for index in broken:
                self.missing.update(self._statements[index][1].facts.binds)

    def _broken(self, given: Mapping[str, str], *, annotations: bool) -> set[int]:
        """Give the chosen statements that would fail for a name that is not there."""
        there = BUILTINS | set(given)
        names = set(there)
        broken: set[int] = set()
        for index in sorted(self._chosen):
            statement = self._statements[index][1]
            names.update(name for facts in statement.parts() for name in facts.binds)
            if any(alias.name == "*" for alias in statement.facts.aliases):
                return broken
            used = {root for facts in statement.parts() for root in facts.immediate}
            if (annotations or not statement.is_definition) and any(
                root in self.missing and root not in names for root in used
            ):
                broken.add(index)
        return broken

    def _source(self, index: int) -> str:
        """Give a statement as it was typed; where it shares its lines, as Python writes it."""
        cell, statement = self._statements[index]
        node = statement.node
        first, last = _first_line(node), node.end_lineno or node.lineno
        alone = not statement.guarded and not isinstance(node, (ast.Import, ast.ImportFrom)) and node.col_offset == 0
        for other_cell, other in self._statements[max(index - 1, 0) : index + 2]:
            if other is not statement and other_cell is cell:
                alone = alone and (_first_line(other.node) > last or (other.node.end_lineno or 0) < first)
        if not alone:
            return f"{ast.unparse(node)}\n"
        return "\n".join(cell.split("\n")[first - 1 : last]) + "\n"


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _plain(cell: str) -> str:
    """Give what a cell runs: of one with a magic that only measures it, what is below that."""
    if not cell.startswith("get_ipython().run_cell_magic("):
        return cell
    with warnings.catch_warnings(), suppress(SyntaxError, ValueError):
        warnings.simplefilter("ignore")
        match ast.parse(cell).body:
            case [ast.Expr(ast.Call(args=[ast.Constant(str() as magic), _, ast.Constant(str() as body)]))]:
                return body if magic in _PLAIN_MAGICS else ""
    return cell


def _place_of(value: Any) -> tuple[str, int] | None:
    """Give where a function was written."""
    value = inspect.unwrap(getattr(value, "_fn", value)) if callable(value) else value
    if not isinstance(value, types.FunctionType):
        return None
    return value.__code__.co_filename, value.__code__.co_firstlineno


def _text_of(file: str) -> str:
    entry = linecache.cache.get(file)
    return _plain("".join(entry[2])).rstrip() if entry is not None and len(entry) > 2 else ""


def _line_for(name: str, value: Any) -> str | None:
    """Give a statement that makes a name what it is now, if a short one does."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        module, full = value.__module__, value.__qualname__
        found = getattr(sys.modules.get(str(module)), full, None)
        return f"from {module} import {full} as {name}" if found is value and module != "__main__" else None
    if type(value) not in _PLAIN:
        return None
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        text = repr(value)
        if len(text) <= _TEXT_CHARS_MAX and ast.literal_eval(text) == value:
            return f"{name} = {text}"
    return None
