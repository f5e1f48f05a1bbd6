"""What the code of a step is, for its fingerprint: all of the user's that its function uses, and installed packages.

From the statement that binds the function's name on, names lead to the statements that bind them, in the same module
and in those of the user's that it imports, and to statements that change what they have bound. What the source does not
show (`globals()`, a module that is passed on, a name that nothing binds) counts as the whole module: a digest may
change without need, but must not stay where the code does another thing.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
import time
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from evpipe.client.bytecode import _Describing
from evpipe.client.definitions import BUILTINS, Statement, normalised
from evpipe.client.own_modules import Stamp, base_of, parsed, stamp
from evpipe.client.packages import packages_of
from evpipe.client.program import Key, Module, Program
from evpipe.client.source import Source
from evpipe.client.statement_facts import Alias, Facts, Use

#: Digests of another way to make them must not be taken for these.
_FORM: Final = "evpipe code 1"
_KNOWN_MAX: Final = 256
#: Names that a module has without binding them.
_OF_MODULES: Final = frozenset(
    {"__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__builtins__"}
)
#: Functions of which the bytecode does not say what they read or import.
_DYNAMIC: Final = frozenset({"eval", "exec", "globals", "__import__"})
#: Also as attributes.
_FINDERS: Final = frozenset({"import_module", "spec_from_file_location", "iter_modules", "walk_packages"})
#: A longer text does not name a module.
_NAME_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What is known of a function's code."""

    #: SHA-256 in hex; "" if it cannot be known.
    digest: str
    #: Version of every installed package that it uses, by name.
    packages: Mapping[str, str] = field(default_factory=dict)


class _Known(NamedTuple):
    digest: str
    #: Top-level names of installed modules. Not their versions: another may be installed while this process runs.
    uses: frozenset[str]
    #: Files that were read and folders that were looked into.
    watched: Mapping[str, Stamp | None]


#: The last ones, by function and by where modules were looked for.
_known: dict[tuple[object, ...], _Known] = {}


def facts_of(codes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], CodeFacts]:
    """Find out what the code of some steps' functions is.

    Args:
        codes: as `sdk.functions.code_of` makes them.

    Returns:
        By module and name.
    """
    source = Source.of_process()
    place = (tuple(sys.path), source.key)
    now_ns = time.time_ns()
    programs: dict[str, Program] = {}
    found: dict[tuple[str, str], CodeFacts] = {}
    packages: dict[frozenset[str], Mapping[str, str]] = {}
    for code in codes:
        module, name = str(code.get("module", "")), str(code.get("name", ""))
        if (module, name) in found:
            continue
        key = (module, name, *place)
        known = _known.pop(key, None)
        if known is None or any(stamp(path) != before for path, before in known.watched.items()):
            if module not in programs:
                programs[module] = Program(source, module)
            program = programs[module]
            digest, uses = _facts(program, module, name)
            known = _Known(digest, frozenset(uses), program.watched)
        if known.uses not in packages:
            packages[known.uses] = packages_of(known.uses)
        found[module, name] = CodeFacts(known.digest, packages[known.uses])
        # What was typed has no file to watch.
        if known.watched and all(seen is None or seen.is_older(now_ns) for seen in known.watched.values()):
            _known[key] = known
            for old in list(_known)[:-_KNOWN_MAX]:
                _known.pop(old, None)
    return found


def facts_of_program(source: Source, module: str) -> CodeFacts:
    """Find out what the code of a whole program is: a script, or a module that `python -m` runs, and what it imports.

    Args:
        source: where it and its modules are.
        module: "__main__" for the source's script.
    """
    program = Program(source, module)
    parts: list[str] = []
    packages = program.external(module) if program.start is None else set()
    for found in program.modules:
        tree = parsed(found.text) if found.definitions is not None else None
        text = normalised(tree) if tree is not None else hashlib.sha256(found.text).hexdigest()
        parts.append(_hash([found.label, text]))
        for alias in found.aliases:
            if program.own(alias.module) is None and program.own(f"{alias.module}.{alias.name or '_'}") is None:
                packages |= program.external(alias.module)
    return CodeFacts(_hash([_FORM, "program", *sorted(parts)]), packages_of(packages))


def _facts(program: Program, module: str, name: str) -> tuple[str, set[str]]:
    """Give the digest of a function's code, and the top-level names of the installed modules that it uses."""
    if program.start is None:
        return _facts_of_typed(program, module, name)
    try:
        reached = _Reached(program)
        reached.take(program.start, name)
        return reached.digest(name), reached.packages
    except (RecursionError, MemoryError):
        # It nests too deep to be looked into.
        return _facts_of_files(program, name)


def _facts_of_typed(program: Program, module: str, name: str) -> tuple[str, set[str]]:
    """Find out what is known of a function that has no source."""
    function: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if not callable(function):
        return "", set()
    try:
        describing = _Typed(module)
        text = describing.value(function)
    except (RecursionError, ValueError):
        return "", set()
    reached = _Reached(program)
    for alias in describing.aliases | {Alias(used) for used in describing.modules}:
        reached.take_import(alias)
    return _hash(["typed", text, reached.digest(name)]), reached.packages


class _Typed(_Describing):
    """Describes a function, and notes what it imports when it is called, as do those of its module that it uses.

    Args:
        home: name of its module.
    """

    def __init__(self, home: str) -> None:
        super().__init__()
        self._home = home
        self._package = ""
        #: What is imported inside functions.
        self.aliases: set[Alias] = {Alias(home)} - {Alias("__main__")}

    def _once(self, found: Any, describe: Any) -> str:
        if getattr(found, "__module__", None) != self._home:
            return super()._once(found, describe)
        # Of one that was compiled and has no source the name does not say what it does either.
        if id(found) in self._seen:
            return f"number {self._seen[id(found)]}"
        self._seen[id(found)] = len(self._seen)
        return str(describe(found))

    def _function(self, found: types.FunctionType) -> str:
        before, self._package = self._package, str(found.__globals__.get("__package__") or "")
        text = super()._function(found)
        self._package = before
        return text

    def _code(self, code: types.CodeType) -> str:
        if _FINDERS & set(code.co_names):
            raise ValueError("it looks for modules")
        # The level and the names of `from` are put on the stack before.
        level: Any = None
        names: Any = None
        for instruction in dis.get_instructions(code):
            if instruction.opname == "EXTENDED_ARG":
                continue
            if instruction.opname == "IMPORT_NAME":
                base = base_of(self._package, ast.ImportFrom(module=instruction.argval or None, names=[], level=level))
                if base is None:
                    raise ValueError("it imports what is above its package")
                self.aliases.update([Alias(base), *(Alias(base, name) for name in names or ())])
            elif instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"} and instruction.argval in _DYNAMIC:
                raise ValueError(f"it uses {instruction.argval}")
            level, names = names, instruction.argval
        return super()._code(code)


def _facts_of_files(program: Program, name: str) -> tuple[str, set[str]]:
    """Take all files that importing the module may read, as they are."""
    modules = program.modules
    parts = sorted(f"{module.label} {hashlib.sha256(module.text).hexdigest()}" for module in modules)
    packages: set[str] = set()
    for alias in {alias for module in modules for alias in module.aliases}:
        if program.own(alias.module) is None:
            packages |= program.external(alias.module)
    return _hash([_FORM, "files", name, *parts]), packages


def _hash(parts: Iterable[str]) -> str:
    # Each with its length: no text can be taken for the end of another.
    return hashlib.sha256("".join(f"{len(part)} {part}\n" for part in parts).encode(errors="surrogatepass")).hexdigest()


class _Reached:
    """What some names use, and what that uses."""

    def __init__(self, program: Program) -> None:
        self._program = program
        #: Statements that make a name what it is, in no order.
        self._names: dict[Key, list[tuple[Module, Statement]]] = {}
        self._statements: dict[tuple[Module, Statement], None] = {}
        self._whole: dict[Module, None] = {}
        self._followed: set[tuple[Module, Use]] = set()
        self._todo: list[tuple[Module, Statement] | Module] = []
        #: Top-level names of installed modules.
        self.packages: set[str] = set()

    def take(self, module: Module, name: str) -> None:
        """Count a name of a module."""
        self._follow(module, Use(name))
        self._drain()

    def take_import(self, alias: Alias) -> None:
        """Count what an import would give a name to."""
        self._follow_import(alias, ())
        self._drain()

    def digest(self, name: str) -> str:
        """Give the digest of all that was reached.

        Args:
            name: of the function: two that call each other reach the same.
        """
        parts: list[str] = []
        for key, statements in self._names.items():
            label = key.module.label if key.module is not None else "installed"
            texts = [self._text(*found) for found in self._in_order(key, statements)]
            parts.append(_hash(["name", label, key.name, *texts]))
        for module in self._whole:
            if module.definitions is None:
                parts.append(_hash(["file", module.label, hashlib.sha256(module.text).hexdigest()]))
            else:
                nameless = [one for one in module.statements if not any(facts.binds for facts in one.parts())]
                parts.append(_hash(["module", module.label, *(self._text(module, one) for one in nameless)]))
        return _hash([_FORM, name, *sorted(parts)])

    def _text(self, module: Module, statement: Statement) -> str:
        decorators = [
            normalised(decorator.node)
            for decorator in statement.decorators
            if not self._program.is_not_code(module, decorator.use)
        ]
        return _hash([*decorators, statement.text])

    def _in_order(self, key: Key, statements: list[tuple[Module, Statement]]) -> list[tuple[Module, Statement]]:
        """Sort the statements that make a name what it is.

        Of one the place does not count. Of more it does, and so does that of one which uses the name meanwhile.
        """
        module = key.module
        if len(statements) > 1 and module is not None:
            for found in self._statements:
                if found[0] is module and found not in statements and _sees(*found, key.name):
                    statements = [*statements, found]
        return sorted(statements, key=lambda found: (found[0].label, found[1].index))

    # ---- from one to another

    def _drain(self) -> None:
        while self._todo:
            found = self._todo.pop()
            if isinstance(found, Module):
                self._follow_all(found)
                continue
            module, statement = found
            for decorator in statement.decorators:
                if not self._program.is_not_code(module, decorator.use):
                    self._follow_facts(module, decorator.facts)
            self._follow_facts(module, statement.facts)

    def _take_statement(self, module: Module, statement: Statement) -> None:
        if (module, statement) not in self._statements:
            self._statements[module, statement] = None
            self._todo.append((module, statement))

    def _take_whole(self, module: Module) -> None:
        if module not in self._whole:
            self._whole[module] = None
            self._todo.append(module)

    def _follow_all(self, module: Module) -> None:
        """Count all of a module."""
        if module.definitions is None:
            for alias in module.aliases:
                self._follow_import(alias, ())
            return
        for name in module.definitions.by_name:
            self._follow(module, Use(name))
        for statement in module.statements:
            self._take_statement(module, statement)
        for star in module.definitions.stars:
            self._follow_import(star, ())

    def _follow_facts(self, module: Module, facts: Facts) -> None:
        for use in facts.uses:
            self._follow(module, use)
        for use in facts.quoted:
            if ":" in use.root or module.binding(use.root):
                self._follow(module, use)
        for alias in facts.aliases:
            self._note_package(alias)
        if facts.dynamic or facts.finds_modules:
            self._take_whole(module)
        if "__path__" in facts.asks or facts.finds_modules:
            self._take_found(module, facts)

    def _take_found(self, module: Module, facts: Facts) -> None:
        """Count all modules that code which looks for modules may mean: those that texts of its module name."""
        names = {module.name if module.is_package else module.name.rpartition(".")[0]}
        for statement in module.statements:
            for node in ast.walk(statement.node):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.add(node.value.strip(".")[:_NAME_CHARS_MAX])
        packages = [self._program.own(name) for name in names if all(part.isidentifier() for part in name.split("."))]
        for use in facts.uses:
            packages += [key.module for key, _ in self._program.resolve(module, use) if not key.name]
        for package in packages:
            if package is not None:
                for found in (package, *self._program.inside(package)):
                    self._take_whole(found)

    def _note_package(self, alias: Alias) -> None:
        """Note what is installed of what a statement imports."""
        program = self._program
        if program.own(alias.module) is None and program.own(f"{alias.module}.{alias.name or '_'}") is None:
            self.packages |= program.external(alias.module)

    def _follow(self, module: Module, use: Use) -> None:
        if (module, use) in self._followed:
            return
        self._followed.add((module, use))
        base, is_import, name = use.root.partition(":")
        if is_import:
            self._follow_import(Alias(base, name), use.attributes)
            return
        if module.definitions is None:
            self._take_whole(module)
            return
        bound = module.binding(use.root)
        self._need(module, use.root)
        for statement in bound:
            for alias in statement.facts.imports.get(use.root, ()):
                self._follow_import(alias, use.attributes)
        known = bool(bound) or use.root in BUILTINS or use.root in _OF_MODULES
        if not (self._follow_stars(module, module.definitions.stars, use, known=known) or known):
            # Something else binds it, or nothing does.
            self._take_whole(module)

    def _follow_stars(self, module: Module, stars: Iterable[Alias], use: Use, *, known: bool) -> bool:
        """Count a name that may come from `from other import *`; says whether it surely does."""
        found = False
        for star in stars:
            other = self._program.own(star.module)
            if other is not None and other is not module and other.binding(use.root):
                found = True
                self._follow(other, use)
                if other.binding("__all__"):
                    self._follow(other, Use("__all__"))
            elif not known:
                self._follow_import(star, ())
        return found

    def _need(self, module: Module, name: str) -> None:
        """Count the statements that make a name what it is."""
        key = Key(module, name)
        if key in self._names:
            return
        bound = module.binding(name)
        found = dict.fromkeys((module, statement) for statement in bound)
        found |= dict.fromkeys(self._program.effects(key))
        for statement in module.statements:
            facts = statement.facts
            if facts.dynamic_at_once or (not bound and any(alias.name == "*" for alias in facts.aliases)):
                found[module, statement] = None
        if found:
            self._take_name(key, list(found))

    def _take_name(self, key: Key, statements: list[tuple[Module, Statement]]) -> None:
        self._names[key] = statements
        for found in statements:
            self._take_statement(*found)

    def _follow_import(self, alias: Alias, attributes: tuple[str, ...]) -> None:
        """Count what an import gives a name to, as far as attributes of it are used."""
        program = self._program
        module = program.own(alias.module)
        if alias.name and alias.name != "*":
            attributes = (alias.name, *attributes)
        first = attributes[0] if attributes else ""
        inner = program.own(f"{alias.module}.{first}") if first and (module is None or module.is_package) else None
        if inner is not None:
            self._follow_import(Alias(f"{alias.module}.{first}"), attributes[1:])
        if module is None:
            if inner is None:
                self._note_package(alias)
                key = Key(None, alias.module.partition(".")[0])
                if key not in self._names:
                    self._take_name(key, program.effects(key))
        elif not first:
            self._take_whole(module)
        elif module.definitions is None or module.binding(first) or (module.definitions.stars and inner is None):
            self._follow(module, Use(first, attributes[1:]))
        elif inner is None and first not in _OF_MODULES:
            self._need(module, first)
            self._take_whole(module)
            for found in program.inside(module) if first == "__path__" else ():
                self._take_whole(found)


def _sees(module: Module, statement: Statement, name: str) -> bool:
    """Say whether running a statement uses a name of its module, itself or in functions that it may call."""
    seen: set[str] = set()
    todo = [root for facts in statement.parts() for root in facts.immediate]
    while todo:
        root = todo.pop()
        if root == name:
            return True
        if root not in seen:
            seen.add(root)
            todo += [use.root for one in module.binding(root) for facts in one.parts() for use in facts.uses]
    return False
