"""What the statements of a module define and use, found in its source: `code_facts` and `cells` go from one to another.

A module is read as its top-level statements: which names each binds, which names of the module it uses (seen past the
locals of functions), what it imports, and which objects that others have bound it changes.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evpipe.client.own_modules import parsed
from evpipe.client.statement_facts import Alias, Facts, Reader, Use, aliases_of, use_of

BUILTINS: Final = frozenset(dir(builtins))
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Decorator:
    """One decorator of a function or class at top level."""

    node: ast.expr
    #: None: it has no name.
    use: Use | None
    facts: Facts


@dataclass(eq=False)
class Statement:
    """A statement at top level; of an import the part for one name."""

    node: ast.stmt
    #: Place in the module.
    index: int
    facts: Facts
    decorators: Sequence[Decorator] = ()
    #: Its place is inside another one, which is there only for `__main__`.
    guarded: bool = False

    @functools.cached_property
    def text(self) -> str:
        """Its normalised source, without decorators."""
        node = self.node
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and node.decorator_list:
            # Not in place: others read the tree, too.
            node = type(node)(**{**dict(ast.iter_fields(node)), "decorator_list": []})
        return normalised(node)

    @property
    def binds_surely(self) -> bool:
        """Say whether the names that it binds are new objects afterwards, whatever they were before."""
        kinds = (*_FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
        return isinstance(self.node, kinds) or type(self.node).__name__ == "TypeAlias"

    @property
    def is_definition(self) -> bool:
        """Say whether it binds one name to a function or a class."""
        return isinstance(self.node, (*_FUNCTIONS, ast.ClassDef))

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def made_by(self) -> Use | None:
        """Give the function whose value it assigns, or None."""
        node = self.node
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            return use_of(node.value)
        return None

    def parts(self) -> Iterator[Facts]:
        """Give what is known of it and of its decorators."""
        yield self.facts
        for decorator in self.decorators:
            yield decorator.facts


class Definitions:
    """A module's statements."""

    def __init__(self, tree: ast.Module, package: str) -> None:
        #: In their order.
        self.statements: list[Statement] = []
        #: Those that bind a name.
        self.by_name: dict[str, list[Statement]] = {}
        #: Modules of which it takes all names.
        self.stars: list[Alias] = []
        for node, guarded in _flat(tree.body):
            for part in _split(node):
                self._add(part, guarded, package)

    def _add(self, node: ast.stmt, guarded: bool, package: str) -> None:
        reader = Reader(package)
        decorators: list[Decorator] = []
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            for expression in node.decorator_list:
                inner = Reader(package)
                inner.read_decorator(expression)
                decorators.append(Decorator(expression, use_of(expression), inner.facts))
        reader.read(node)
        statement = Statement(node, len(self.statements), reader.facts, decorators, guarded)
        self.statements.append(statement)
        for facts in statement.parts():
            for name in facts.binds:
                self.by_name.setdefault(name, []).append(statement)
        self.stars += [alias for alias in reader.facts.aliases if alias.name == "*"]


@functools.lru_cache(maxsize=256)
def definitions_of(text: bytes, name: str, is_package: bool) -> Definitions | None:
    """Read a module's source; None if that cannot be done, because Python does not take it or it nests too deep.

    Args:
        name: of the module, "" for a script.
    """
    try:
        tree = parsed(text)
        return None if tree is None else Definitions(tree, name if is_package else name.rpartition(".")[0])
    except (RecursionError, MemoryError):
        return None


def all_imports(text: bytes, name: str, is_package: bool) -> set[Alias]:
    """Give all that a module's source imports, also where `definitions_of` gives None."""
    package = name if is_package else name.rpartition(".")[0]
    found: set[Alias] = set()
    tree = parsed(text)
    for node in () if tree is None else ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(alias for _, alias in aliases_of(node, package))
    return found


def normalised(node: ast.AST) -> str:
    """Give the text of a node without what does not count: comments, layout, docstrings, places."""
    return ast.dump(_Bare().visit(node) if _has_noise(node) else node)


def _has_noise(node: ast.AST) -> bool:
    return any(_docstring(found) is not None or getattr(found, "kind", None) for found in ast.walk(node))


def _docstring(node: ast.AST) -> ast.stmt | None:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first
    return None


class _Bare(ast.NodeTransformer):
    """Makes a copy of a tree without docstrings; `u"x"` is "x"."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        changed: dict[str, Any] = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                value = [self.visit(item) if isinstance(item, ast.AST) else item for item in value]
            elif isinstance(value, ast.AST):
                value = self.visit(value)
            elif name == "kind":
                value = None
            changed[name] = value
        if _docstring(node) is not None:
            changed["body"] = changed["body"][1:] or [ast.Pass()]
        return type(node)(**changed)


# ---- statements


def _flat(body: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, bool]]:
    """Give top-level statements; those under `if __name__ == "__main__"` as if they stood at top level, too."""
    for node in body:
        if isinstance(node, ast.If) and _is_guard(node.test):
            for inner in (*node.body, *node.orelse):
                yield inner, True
        elif not (isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))):
            yield node, False


def _is_guard(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = [test.left, *test.comparators]
    return any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides) and any(
        isinstance(side, ast.Constant) and side.value == "__main__" for side in sides
    )


def _split(node: ast.stmt) -> Iterator[ast.stmt]:
    """Give an import as one statement per name."""
    if isinstance(node, ast.ImportFrom):
        if node.module == "__future__" and not node.level:
            return
        for alias in node.names:
            yield ast.copy_location(ast.ImportFrom(module=node.module, names=[alias], level=node.level), node)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield ast.copy_location(ast.Import(names=[alias]), node)
    else:
        yield node
