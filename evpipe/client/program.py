"""The user's own modules around one that has steps: what a name in one stands for, and which statements change it."""

from __future__ import annotations

import ast
import functools
import pkgutil
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from evpipe.client.definitions import Decorator, Definitions, Statement, all_imports, definitions_of
from evpipe.client.own_modules import OURS, OwnModules, Stamp
from evpipe.client.source import Source
from evpipe.client.statement_facts import Alias, Touch, Use
from evpipe.errors import UsageError

#: Decorators that are about how a step runs, not about what it computes.
_NOT_CODE: Final = frozenset({"step", "pipeline"})
_RUNNERS: Final = frozenset({"run", "submit"})
#: Methods of a pipeline that call its function only to build a graph, if at all.
_BUILDERS: Final = frozenset({("run",), ("submit",), ("options",)})
#: `step.options(…)` of another which is followed so far.
_MAKERS_MAX: Final = 8


class Module:
    """A module of the user's, read."""

    def __init__(self, label: str, name: str, file: str, text: bytes, *, is_package: bool, is_source: bool) -> None:
        #: "" for the one that has the step, whatever it is called.
        self.label = label
        #: "" if no import leads to it.
        self.name = name
        self.file = file
        self.text = text
        self.is_package = is_package
        #: None: its content counts as it is: it is compiled, or cannot be read as Python.
        self.definitions: Definitions | None = None
        #: All that it imports.
        self.aliases: set[Alias] = set()
        if not is_source:
            return
        self.definitions = definitions_of(text, name, is_package)
        if self.definitions is None:
            self.aliases = all_imports(text, name, is_package)
        for statement in self.statements:
            for facts in statement.parts():
                self.aliases |= facts.aliases

    @property
    def statements(self) -> list[Statement]:
        return self.definitions.statements if self.definitions is not None else []

    def binding(self, name: str) -> list[Statement]:
        """Give the statements that bind a name."""
        return self.definitions.by_name.get(name, []) if self.definitions is not None else []


class Key(NamedTuple):
    """What a name stands for: a name of a module, all of it (""), or with no module an installed one."""

    module: Module | None
    name: str


#: With the attributes that are taken from it.
Target = tuple[Key, tuple[str, ...]]


class Program:
    """Reads modules when they are asked for.

    Args:
        module: that has steps, as their functions name it.
    """

    def __init__(self, source: Source, module: str) -> None:
        self._source = source
        self._own = OwnModules(source)
        self._by_file: dict[str, Module] = {}
        self._by_name: dict[str, Module | None] = {}
        self._resolved: dict[tuple[Module, Use], list[Target]] = {}
        self._altered: dict[tuple[Key, bool], set[Key]] = {}
        #: None: it has no source.
        self.start = self._find_start(module)

    @property
    def watched(self) -> Mapping[str, Stamp | None]:
        """Files that were read and folders that were looked into, as they were before."""
        return self._own.watched

    # ---- modules

    def own(self, name: str) -> Module | None:
        """Give a module of the user's by its name, or None."""
        if name not in self._by_name:
            self._by_name[name] = None
            for found in self._own.find(name):
                read = self._read(
                    found.file, found.name, found.name, is_package=found.is_package, is_source=found.is_source
                )
                if found.name == name:
                    if read is not None and not read.name:
                        # The script, which others import.
                        read.name = name
                    self._by_name[name] = read
        return self._by_name[name]

    def external(self, name: str) -> set[str]:
        """Give the top-level name of an installed module as a set; an empty one for what comes with Python."""
        top = name.partition(".")[0]
        if top in {"", OURS, "__main__"} or top in sys.stdlib_module_names or self._own.is_namespace(top):
            return set()
        return {top}

    @functools.cached_property
    def modules(self) -> list[Module]:
        """All modules of the user's that importing the first one may import, however far away."""
        found: dict[Module, None] = {} if self.start is None else {self.start: None}
        todo = list(found)
        seen: set[Alias] = set()
        while todo:
            for alias in todo.pop().aliases - seen:
                seen.add(alias)
                parts = alias.module.split(".")
                names = [".".join(parts[: i + 1]) for i in range(len(parts))]
                if alias.name not in {"", "*"}:
                    names.append(f"{alias.module}.{alias.name}")
                for module in map(self.own, names):
                    if module is not None and module not in found:
                        found[module] = None
                        todo.append(module)
        return list(found)

    def inside(self, package: Module) -> list[Module]:
        """Give the modules of a package that this process could import, however deep."""
        found: list[Module] = []
        todo = [package] if package.is_package else []
        while todo:
            outer = todo.pop()
            folder = str(Path(outer.file).parent)
            self._own.watch(folder)
            for info in pkgutil.iter_modules([folder]):
                module = self.own(f"{outer.name}.{info.name}")
                if module is not None:
                    found.append(module)
                    if module.is_package:
                        todo.append(module)
        return found

    def _find_start(self, module: str) -> Module | None:
        file = self._source.files.get(module)
        if file is not None:
            return self._read(file, "", "", is_package=False, is_source=True)
        name = self._source.main if module == "__main__" else module
        if not name:
            return None
        for found in self._own.find(name):
            if found.name == name:
                return self._read(found.file, "", name, is_package=found.is_package, is_source=found.is_source)
        # An installed one: what it imports of its package changes with the version. That `python -m` runs is loaded as
        # `__main__`, and counts as if it were imported: both ways share the cache.
        loaded = sys.modules.get(module)
        path = getattr(loaded, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py"):
            return None
        return self._read(path, "", name, is_package=hasattr(loaded, "__path__"), is_source=True)

    def _read(self, file: str, label: str, name: str, *, is_package: bool, is_source: bool) -> Module | None:
        if file not in self._by_file:
            try:
                text = self._own.read(file)
            except UsageError:
                return None
            self._by_file[file] = Module(label, name, file, text, is_package=is_package, is_source=is_source)
        return self._by_file[file]

    # ---- what a name stands for

    def resolve(self, module: Module, use: Use) -> list[Target]:
        """Give what a name with attributes stands for, past imports; more than one where it depends."""
        known = self._resolved.get((module, use))
        if known is not None:
            return known
        # A cycle of imports stands for nothing.
        self._resolved[module, use] = []
        found: list[Target] = []
        base, is_import, name = use.root.partition(":")
        if is_import:
            found = self._resolve_import(Alias(base, name), use.attributes)
        elif module.definitions is None:
            found = [(Key(module, ""), ())]
        else:
            for statement in module.binding(use.root):
                imports = statement.facts.imports.get(use.root)
                if imports is None:
                    found.append((Key(module, use.root), use.attributes))
                for alias in imports or ():
                    found += self._resolve_import(alias, use.attributes)
            for star in module.definitions.stars:
                other = self.own(star.module)
                if other is not None and other is not module and other.binding(use.root):
                    found += self.resolve(other, use)
        found = list(dict.fromkeys(found))
        self._resolved[module, use] = found
        return found

    def _resolve_import(self, alias: Alias, attributes: tuple[str, ...]) -> list[Target]:
        module = self.own(alias.module)
        if alias.name:
            attributes = (alias.name, *attributes)
        if module is None:
            if attributes and self.own(f"{alias.module}.{attributes[0]}") is not None:
                return self._resolve_import(Alias(f"{alias.module}.{attributes[0]}"), attributes[1:])
            top, *inner = alias.module.split(".")
            return [(Key(None, top), (*inner, *attributes))]
        if not attributes:
            return [(Key(module, ""), ())]
        found = list(self.resolve(module, Use(attributes[0], attributes[1:])))
        inside = f"{module.name}.{attributes[0]}"
        if module.is_package and self.own(inside) is not None:
            found += self._resolve_import(Alias(inside), attributes[1:])
        # What nothing there binds may be set from elsewhere.
        return found or [(Key(module, attributes[0]), attributes[1:])]

    def is_not_code(self, module: Module, use: Use | None) -> bool:
        """Say whether a decorator is this package's `step` or `pipeline`, also under another name or with options."""
        for key, rest in self.resolve(module, use) if use is not None else ():
            if key.module is None:
                if key.name == OURS and rest[-1:] and rest[-1] in _NOT_CODE:
                    return True
            elif not rest:
                # `gpu_step = step(queue="gpu")`
                bound = key.module.binding(key.name)
                made_by = bound[0].made_by if len(bound) == 1 else None
                if made_by is not None and made_by.root != key.name and self.is_not_code(key.module, made_by):
                    return True
        return False

    def _is_one_of_ours(self, module: Module, use: Use | None, names: Container[str]) -> bool:
        found = self.resolve(module, use) if use is not None else []
        return any(key == Key(None, OURS) and rest[-1:] and rest[-1] in names for key, rest in found)

    def is_ours(self, module: Module, use: Use | None, depth: int = 0) -> bool:
        """Say whether a name is this package's, or stands for a step or a pipeline."""
        for key, _ in self.resolve(module, use) if use is not None and depth < _MAKERS_MAX else ():
            if key.module is None:
                if key.name == OURS:
                    return True
                continue
            for statement in key.module.binding(key.name):
                if statement.decorators:
                    if any(self.is_not_code(key.module, decorator.use) for decorator in statement.decorators):
                        return True
                    continue
                made_by = statement.made_by
                if made_by is None or (made_by.attributes and made_by.attributes[-1] not in {"options", "Pipeline"}):
                    continue
                if self.is_ours(key.module, made_by, depth + 1):
                    return True
        return False

    def runs_pipeline(self, module: Module, statement: Statement) -> bool:
        """Say whether running a statement may run a pipeline, itself or in a function that it calls."""
        for facts in statement.parts():
            for use in (*facts.calls, *(touch.use for touch in facts.touches)):
                if use.attributes[-1:] and use.attributes[-1] in _RUNNERS and self.is_ours(module, use):
                    return True
        seen = {key for facts in statement.parts() for use in facts.calls for key, _ in self.resolve(module, use)}
        todo = list(seen)
        while todo:
            key = todo.pop()
            for found in key.module.binding(key.name) if key.module is not None else ():
                assert key.module is not None
                makers = [found.made_by, *(decorator.use for decorator in found.decorators)]
                if any(self._is_one_of_ours(key.module, use, {"pipeline", "Pipeline"}) for use in makers):
                    return True
                for facts in found.parts():
                    for use in facts.uses:
                        if self._is_one_of_ours(key.module, use, _RUNNERS):
                            return True
                        for inner, _ in self.resolve(key.module, use):
                            if inner not in seen:
                                seen.add(inner)
                                todo.append(inner)
        return False

    # ---- what changes what

    @functools.cached_property
    def _effects(self) -> dict[Key, list[tuple[Module, Statement]]]:
        found: dict[Key, list[tuple[Module, Statement]]] = {}
        for module in self.modules:
            for statement in module.statements:
                for key in self.changed(module, statement):
                    found.setdefault(key, []).append((module, statement))
        return found

    def effects(self, key: Key) -> list[tuple[Module, Statement]]:
        """Give the statements at top level of any module that may change a thing, beside those that bind it."""
        return self._effects.get(key, [])

    def changed(self, module: Module, statement: Statement, *, maybe: bool = True) -> set[Key]:
        """Give what running a statement changes.

        Args:
            maybe: also what it hands to functions of which nobody knows whether they change it.
        """
        found: set[Key] = set()
        for facts in statement.parts():
            for touch in facts.touches:
                if maybe or touch.how != "asked":
                    found |= self._touched(module, touch)
            for function in facts.calls:
                for key, rest in self.resolve(module, function):
                    found |= self._altered_by(key, builds=self._builds(key, rest))
            for passed in facts.passes:
                if maybe or self._alters_arguments(module, passed.function):
                    found |= self._passed(module, passed.function, passed.argument, dropped=passed.dropped)
            for base in facts.bases:
                found.update(key for key, _ in self.resolve(module, base) if self._knows_its_classes(key))
        return {key for key in found if key.module is None or key.name}

    def _passed(self, module: Module, function: Use | None, argument: Use, *, dropped: bool) -> set[Key]:
        if self.is_ours(module, argument) or (
            self.is_ours(module, function) and not self._is_one_of_ours(module, function, {"serializer"})
        ):
            return set()
        found = set()
        for key, _ in self.resolve(module, argument):
            # A function that is handed on for its value stays what it is.
            if dropped or is_thing(key):
                found.add(key)
        return found

    def _alters_arguments(self, module: Module, function: Use | None) -> bool:
        if function is None:
            return False
        if self._is_one_of_ours(module, function, {"serializer"}):
            return True
        return any(
            facts.alters_arguments
            for key, _ in self.resolve(module, function)
            if key.module is not None
            for statement in key.module.binding(key.name)
            for facts in statement.parts()
        )

    def _touched(self, module: Module, touch: Touch, seen: frozenset[tuple[Module, Use]] = frozenset()) -> set[Key]:
        if (module, touch.use) in seen or self.is_ours(module, touch.use):
            return set()
        seen |= {(module, touch.use)}
        found: set[Key] = set()
        for key, rest in self.resolve(module, touch.use):
            if key.module is None:
                # `np.random.seed(0)`, and not `np.zeros(3)`.
                if touch.how in {"stored", "called"}:
                    found.add(key)
            elif rest[:1] == ("()",) and not is_thing(key):
                found |= self._parts_given(key)
            elif touch.how == "stored" or rest or not (touch.use.attributes or ":" in touch.use.root):
                found.add(key)
                for statement in key.module.binding(key.name):
                    for facts in statement.parts():
                        for part in facts.parts_of.get(key.name, ()):
                            found |= self._touched(key.module, Touch(part, "stored"), seen)
        return found

    def _parts_given(self, key: Key) -> set[Key]:
        """Give what the value of a function may be a part of: `registry().append(f)`. That of a class is new."""
        found: set[Key] = set()
        for statement in key.module.binding(key.name) if key.module is not None else ():
            assert key.module is not None
            if not statement.is_class:
                for use in statement.facts.uses:
                    found.update(inner for inner, _ in self.resolve(key.module, use) if is_thing(inner))
        return found

    def _altered_by(self, start: Key, *, builds: bool) -> set[Key]:
        """Give what calling a function may change that is not its own.

        Args:
            builds: it is a pipeline's, which is called to build a graph.
        """
        if (start, builds) not in self._altered:
            self._altered[start, builds] = self._find_altered(start, builds=builds)
        return self._altered[start, builds]

    def _find_altered(self, start: Key, *, builds: bool, apart: bool = True) -> set[Key]:
        """As above.

        Args:
            apart: steps of a graph that is built run in processes of their own where their decorators say so.
        """
        found: set[Key] = set()
        seen = {(start, builds)}
        todo = [(start, builds)]
        while todo:
            key, building = todo.pop()
            for statement in key.module.binding(key.name) if key.module is not None else ():
                assert key.module is not None
                if apart and building and _gives_executors(statement):
                    # It may be any step that gets it.
                    return self._find_altered(start, builds=builds, apart=False)
                for facts in statement.parts():
                    for touch in facts.alters:
                        found |= self._touched(key.module, touch)
                    for use in facts.uses:
                        for inner, rest in self.resolve(key.module, use):
                            if apart and building and rest in {(), ("options",)} and self._runs_apart(inner):
                                continue
                            one = (inner, building or self._builds(inner, rest))
                            if one not in seen:
                                seen.add(one)
                                todo.append(one)
        return found

    def _builds(self, key: Key, rest: tuple[str, ...]) -> bool:
        """Say whether a call of an attribute of a name is one of a pipeline that builds its graph."""
        return rest in _BUILDERS and self._only_decorator(key, "pipeline") is not None

    def _runs_apart(self, key: Key) -> bool:
        """Say whether a name is a step that a run calls in a process of its own: nothing here changes with it."""
        decorator = self._only_decorator(key, "step")
        given = decorator.node.keywords if decorator is not None and isinstance(decorator.node, ast.Call) else []
        return decorator is not None and not any(
            one.arg is None
            or (one.arg == "executor" and not (isinstance(one.value, ast.Constant) and one.value.value == "process"))
            for one in given
        )

    def _only_decorator(self, key: Key, name: str) -> Decorator | None:
        """Give the decorator of a `def` that has only one, if it is this package's with a name."""
        bound = key.module.binding(key.name) if key.module is not None else []
        if key.module is None or len(bound) != 1 or not isinstance(bound[0].node, ast.FunctionDef):
            return None
        decorators = bound[0].decorators
        if len(decorators) != 1 or not self._is_one_of_ours(key.module, decorators[0].use, {name}):
            return None
        return decorators[0]

    @functools.cached_property
    def _asks_for_subclasses(self) -> bool:
        statements = (statement for module in self.modules for statement in module.statements)
        return any("__subclasses__" in facts.asks for statement in statements for facts in statement.parts())

    def _knows_its_classes(self, start: Key) -> bool:
        """Say whether a class, or one that it comes from, may know those that come from it."""
        if self._asks_for_subclasses:
            return True
        seen = {start}
        todo = [start]
        while todo:
            key = todo.pop()
            for statement in key.module.binding(key.name) if key.module is not None else ():
                assert key.module is not None
                if "'__init_subclass__'" in statement.text or "arg='metaclass'" in statement.text:
                    return True
                for base in statement.facts.bases:
                    for inner, _ in self.resolve(key.module, base):
                        if inner not in seen:
                            seen.add(inner)
                            todo.append(inner)
        return False


def _gives_executors(statement: Statement) -> bool:
    """Say whether a statement may give a step another executor: `f.options(executor="thread")`."""
    nodes = list(ast.walk(statement.node))
    harmless = {
        id(node.func)
        for node in nodes
        if isinstance(node, ast.Call) and not any(one.arg in {None, "executor"} for one in node.keywords)
    }
    return any(
        isinstance(node, ast.Attribute) and node.attr == "options" and id(node) not in harmless for node in nodes
    )


def is_thing(key: Key) -> bool:
    """Say whether a name is bound by an assignment or the like, and not to a function or class."""
    return key.module is not None and any(not one.is_definition for one in key.module.binding(key.name))
