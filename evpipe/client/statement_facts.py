"""What a statement uses, binds, imports and may change, found in its source: what `definitions` knows of each.

Names are seen past the locals of functions. Nothing is run: what only shows when code runs (`globals()`, `exec`, names
put together) is marked.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from evpipe.client.own_modules import base_of

#: Methods that do not change their object, as far as its class is not out to surprise.
_READERS: Final = """
as_posix astype copy count decode describe dumps encode endswith exists fget findall format get head index info is_dir
is_file items isdigit join keys lower lstrip match mean most_common plot read_bytes read_text replace resolve rstrip
search setter show split splitlines startswith strip sum tail to_dict tolist upper values with_suffix
"""
#: Functions that do not change their arguments.
_HARMLESS: Final = """
abs all any ascii bin bool bytes callable chr dict dir display enumerate filter float format frozenset getattr hasattr
hash help hex id int isinstance issubclass len list locals map max min oct ord pow print range repr reversed round set
slice sorted str sum tuple type vars zip
"""
_READER_METHODS: Final = frozenset(_READERS.split())
_HARMLESS_FUNCTIONS: Final = frozenset(_HARMLESS.split())
#: What they read or bind is not in the source.
_DYNAMIC: Final = frozenset({"globals", "eval", "exec"})
_FINDERS: Final = frozenset({"import_module", "__import__", "iter_modules", "walk_packages", "spec_from_file_location"})
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


class Use(NamedTuple):
    """A name of the module that is used, and the attributes that are taken from it: `tools.sub.f`.

    Where it is changed, "[]" among them is an item and "()" what a call gives.
    """

    #: Of what an import inside a function or class gives: "module:name", or "module:".
    root: str
    attributes: tuple[str, ...] = ()


class Alias(NamedTuple):
    """What an import gives a name to."""

    module: str
    #: What of it: an attribute or a module inside; "": the module itself; "*": all.
    name: str = ""


How: TypeAlias = Literal["stored", "called", "decorated", "asked"]


class Touch(NamedTuple):
    """An object that may be changed: an item or attribute stored in it, or a method of it called."""

    use: Use
    #: "stored"; a method of it is "called" (for its effect: the value is dropped), has "decorated" something, or is
    #: "asked" (the value is used).
    how: How


class Pass(NamedTuple):
    """An argument of a call: the function may change it."""

    #: None: not a name.
    function: Use | None
    argument: Use
    #: The call's value is not used, so there is an effect.
    dropped: bool


@dataclass(slots=True)
class Facts:
    """What is known of a statement, or of a part of it."""

    #: Names that it binds in the module.
    binds: set[str] = field(default_factory=set)
    #: Names that it binds by importing.
    imports: dict[str, list[Alias]] = field(default_factory=dict)
    #: Names of the module that it uses, anywhere inside.
    uses: set[Use] = field(default_factory=set)
    #: Those in quoted types, if they are any.
    quoted: set[Use] = field(default_factory=set)
    #: Those that it uses when it is run, and not only when a function in it is called.
    immediate: set[str] = field(default_factory=set)
    #: Those that functions in it use when they are called.
    deferred: set[str] = field(default_factory=set)
    #: All that it imports, anywhere inside.
    aliases: set[Alias] = field(default_factory=set)
    #: What running it may change.
    touches: set[Touch] = field(default_factory=set)
    passes: set[Pass] = field(default_factory=set)
    #: Functions that running it calls.
    calls: set[Use] = field(default_factory=set)
    #: What calling the functions in it may change.
    alters: set[Touch] = field(default_factory=set)
    #: Calling the functions in it may change their arguments.
    alters_arguments: bool = False
    #: Names bound to parts of other objects: `sub = CONFIG["model"]`.
    parts_of: dict[str, set[Use]] = field(default_factory=dict)
    #: Of a class: its bases; a base may keep a list of them.
    bases: set[Use] = field(default_factory=set)
    #: It names what its source does not show; when it is run, or when a function in it is called.
    dynamic: bool = False
    dynamic_at_once: bool = False
    #: It imports what its source does not show.
    finds_modules: bool = False
    #: It asks for `__path__`, `__subclasses__` and the like.
    asks: set[str] = field(default_factory=set)


@dataclass
class _Scope:
    """A function or a class inside a statement."""

    is_class: bool = False
    names: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)
    #: Names that are the module's.
    module_names: set[str] = field(default_factory=set)
    imports: dict[str, list[Alias]] = field(default_factory=dict)
    parts_of: dict[str, set[Use]] = field(default_factory=dict)


class Reader(ast.NodeVisitor):
    """Finds out what is known of one statement."""

    def __init__(self, package: str) -> None:
        self.facts = Facts()
        self._package = package
        self._scopes: list[_Scope] = []
        #: Functions that the place is inside of.
        self._depth = 0
        #: The call whose value is dropped.
        self._dropped: ast.expr | None = None

    def read(self, node: ast.stmt) -> None:
        """Read a statement; not the decorators of what it defines."""
        if isinstance(node, _FUNCTIONS):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._class(node)
        else:
            self.visit(node)

    def read_decorator(self, node: ast.expr) -> None:
        """Read a decorator, which is a call of it with what it decorates."""
        self.visit(node)
        self._decorates(node)

    def _decorates(self, node: ast.expr) -> None:
        use = use_of(node)
        if use is not None:
            self._call(use)
            # `@registry.add` and `@registry.add("x")` change the registry.
            if use.attributes and use.attributes[-1] not in _READER_METHODS:
                self._touch(Touch(use, "decorated"))
        if isinstance(node, ast.Call):
            # `@serializer(Grid, …)` is about Grid.
            for argument in _arguments(node):
                self._pass(use, argument, dropped=True)

    # ---- names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._use(Use(node.id))
        else:
            self._bind(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        attributes = [node.attr]
        found = node.value
        while isinstance(found, ast.Attribute):
            attributes.append(found.attr)
            found = found.value
        for attribute in attributes:
            if attribute.startswith("__"):
                self.facts.asks.add(attribute)
        if isinstance(found, ast.Name):
            self._use(Use(found.id, tuple(reversed(attributes))))
        else:
            self.visit(found)
        if not isinstance(node.ctx, ast.Load):
            self._store(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            self._store(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._use(Use(node.target.id))
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        if self._scopes:
            self._scopes[-1].module_names.update(node.names)

    def visit_Constant(self, node: ast.Constant) -> None:
        pass

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self._bind(node.rest)
        self.generic_visit(node)

    def _scope_of(self, name: str) -> _Scope | None:
        """Give the scope inside the statement that a name belongs to; None: the module."""
        for i in range(len(self._scopes) - 1, -1, -1):
            scope = self._scopes[i]
            if name in scope.module_names:
                return None
            # What a class binds is seen in its body only, and there a name may still be the module's.
            if name in scope.names and not scope.is_class:
                return scope
        return None

    def _of_module(self, use: Use) -> list[Use]:
        """Give what a name stands for outside of the statement."""
        scope = self._scope_of(use.root)
        if scope is None:
            return [use]
        return [Use(f"{alias.module}:{alias.name}", use.attributes) for alias in scope.imports.get(use.root, ())]

    def _use(self, use: Use) -> None:
        for found in self._of_module(use):
            self.facts.uses.add(found)
            (self.facts.deferred if self._depth else self.facts.immediate).add(found.root)
            module = "sys" if found.root == "sys:" else found.root
            if module in _DYNAMIC or (module, *found.attributes[:1]) == ("sys", "modules"):
                self._is_dynamic()
            last = found.attributes[-1] if found.attributes else found.root.rpartition(":")[2]
            if last in _FINDERS:
                self.facts.finds_modules = True

    def _is_dynamic(self) -> None:
        self.facts.dynamic = True
        if not self._depth:
            self.facts.dynamic_at_once = True

    def _bind(self, name: str) -> None:
        if not self._scopes:
            self.facts.binds.add(name)
            return
        scope = self._scopes[-1]
        if name in scope.module_names:
            # `global name` in a function: whoever calls it binds the name.
            self.facts.alters.add(Touch(Use(name), "stored"))
            if not self._depth:
                self.facts.binds.add(name)

    # ---- changes

    def _store(self, target: ast.expr) -> None:
        chain = _chain(target)
        if chain is not None:
            self._touch(Touch(chain, "stored"))

    def _touch(self, touch: Touch) -> None:
        root = touch.use.root
        scope = self._scope_of(root)
        for use in self._of_module(touch.use):
            (self.facts.alters if self._depth else self.facts.touches).add(Touch(use, touch.how))
        if scope is not None:
            if root in scope.parameters:
                self.facts.alters_arguments = True
            for use in scope.parts_of.get(root, ()):
                (self.facts.alters if self._depth else self.facts.touches).add(Touch(use, touch.how))

    def _call(self, use: Use) -> None:
        if not self._depth:
            self.facts.calls.update(self._of_module(use))

    def _pass(self, function: Use | None, argument: ast.expr, *, dropped: bool) -> None:
        if isinstance(argument, (ast.List, ast.Tuple, ast.Set)):
            for item in argument.elts:
                self._pass(function, item, dropped=dropped)
            return
        chain = _chain(argument)
        if chain is None:
            return
        scope = self._scope_of(chain.root)
        if scope is not None and dropped and chain.root in scope.parameters:
            self.facts.alters_arguments = True
        for found in self._of_module(chain):
            if not self._depth:
                named = self._of_module(function) if function is not None else []
                self.facts.passes.add(Pass(named[0] if named else None, found, dropped))
            elif dropped:
                self.facts.alters.add(Touch(found, "stored"))

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        self._dropped = value
        self.visit(value)
        self._dropped = None

    def visit_Call(self, node: ast.Call) -> None:
        dropped = node is self._dropped
        function = use_of(node.func)
        if isinstance(node.func, ast.Attribute):
            chain = _chain(node.func)
            if chain is not None and node.func.attr not in _READER_METHODS:
                self._touch(Touch(chain, "called" if dropped else "asked"))
        if function is not None:
            self._call(function)
            if function.root in {"vars", "locals"} and not function.attributes and not node.args and not self._depth:
                self._is_dynamic()
            if self._named_module(function, node):
                return
        if function is None or function.attributes or function.root not in _HARMLESS_FUNCTIONS:
            for argument in _arguments(node):
                self._pass(function, argument, dropped=dropped)
        self.generic_visit(node)

    def _named_module(self, function: Use, node: ast.Call) -> bool:
        """Read `import_module("tools")` as an import."""
        last = function.attributes[-1] if function.attributes else function.root
        first = node.args[0] if node.args else None
        if last not in {"import_module", "__import__"} or not isinstance(first, ast.Constant):
            return False
        if not isinstance(first.value, str) or first.value.startswith(".") or len(node.args) > 1 or node.keywords:
            return False
        finds = self.facts.finds_modules
        self.visit(node.func)
        self.facts.finds_modules = finds
        self.facts.aliases.add(Alias(first.value))
        self.facts.uses.add(Use(f"{first.value}:"))
        return True

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._is_part(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if node.value is not None:
            self._is_part(node.target, node.value)
            self.visit(node.value)
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._is_part(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._is_part(node.target, node.iter)
        self.generic_visit(node)

    visit_AsyncFor = visit_For  # noqa: N815 - names of `ast`

    def visit_withitem(self, node: ast.withitem) -> None:
        if node.optional_vars is not None:
            self._is_part(node.optional_vars, node.context_expr)
        self.generic_visit(node)

    def _is_part(self, target: ast.expr, value: ast.expr) -> None:
        """Remember that what is bound may be a part of another object, which changes with it."""
        targets = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value]
        uses = {chain for found in values if (chain := _chain(found)) is not None}
        for name in targets:
            if not isinstance(name, ast.Name) or not uses:
                continue
            scope = self._scopes[-1] if self._scopes else None
            parts = self.facts.parts_of if scope is None or name.id in scope.module_names else scope.parts_of
            for use in uses:
                inner = self._scope_of(use.root)
                parts.setdefault(name.id, set()).update(self._of_module(use))
                if inner is not None:
                    parts[name.id].update(inner.parts_of.get(use.root, ()))
                    if scope is not None and use.root in inner.parameters:
                        scope.parameters.add(name.id)

    # ---- imports

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, alias in aliases_of(node, self._package):
            self.facts.aliases.add(alias)
            if alias.name == "*":
                continue
            if isinstance(node, ast.Import):
                # All of `import a.b.c` is imported, though `a` is bound.
                self.facts.aliases.update(Alias(found.name) for found in node.names)
            if not self._scopes or name in self._scopes[-1].module_names:
                self.facts.binds.add(name)
                self.facts.imports.setdefault(name, []).append(alias)
            elif self._scopes[-1].is_class:
                self.facts.uses.add(Use(f"{alias.module}:{alias.name}"))

    visit_ImportFrom = visit_Import  # noqa: N815 - names of `ast`

    # ---- scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
            self._decorates(decorator)
        self._function(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - names of `ast`

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._bind(node.name)
        self._signature(node.args)
        if node.returns is not None:
            self._annotation(node.returns)
        self._inside(node.args, node.body, [*_type_parameters(node)])

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._signature(node.args)
        self._inside(node.args, [node.body], [])

    def _signature(self, arguments: ast.arguments) -> None:
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)
        for argument in _parameters(arguments):
            if argument.annotation is not None:
                self._annotation(argument.annotation)

    def _inside(self, arguments: ast.arguments, body: Sequence[ast.AST], more: list[ast.AST]) -> None:
        names = {argument.arg for argument in _parameters(arguments)}
        scope = _local(body, self._package)
        scope.names |= names
        scope.parameters = set(names)
        self._scopes.append(scope)
        self._depth += 1
        dropped, self._dropped = self._dropped, None
        for node in (*body, *more):
            self.visit(node)
        self._dropped = dropped
        self._depth -= 1
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
            self._decorates(decorator)
        self._class(node)

    def _class(self, node: ast.ClassDef) -> None:
        self._bind(node.name)
        for base in (*node.bases, *(keyword.value for keyword in node.keywords)):
            self.visit(base)
            chain = _chain(base)
            if chain is not None:
                self.facts.bases.update(self._of_module(chain))
                self._call(chain)
        for parameter in _type_parameters(node):
            self.visit(parameter)
        scope = _local(node.body, self._package)
        scope.is_class = True
        self._scopes.append(scope)
        for inner in node.body:
            self.visit(inner)
        self._scopes.pop()

    def _comprehension(self, node: Any) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        scope = _Scope()
        for generator in node.generators:
            scope.names |= {found.id for found in ast.walk(generator.target) if isinstance(found, ast.Name)}
        self._scopes.append(scope)
        for generator in node.generators:
            # Before what is made of it: who changes an item changes a part of what it comes from.
            self._is_part(generator.target, generator.iter)
            self.visit(generator.target)
            for condition in generator.ifs:
                self.visit(condition)
        for generator in others:
            self.visit(generator.iter)
        for name in ("key", "value", "elt"):
            if hasattr(node, name):
                self.visit(getattr(node, name))
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815 - names of `ast`

    def _annotation(self, node: ast.expr) -> None:
        """Read what a type names: also where it is quoted, for that is resolved when somebody asks."""
        for found in ast.walk(node):
            if isinstance(found, ast.Constant) and isinstance(found.value, str):
                try:
                    quoted = ast.parse(found.value, mode="eval").body
                except (SyntaxError, ValueError):
                    continue
                for name in ast.walk(quoted):
                    use = use_of(name) if isinstance(name, (ast.Name, ast.Attribute)) else None
                    if use is not None:
                        self.facts.quoted.update(self._of_module(use))
        self.visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        pass


def _type_parameters(node: Any) -> list[ast.AST]:
    """Give the bounds of `def f[T: Bound]()`; their names are taken for the module's, which has none of them."""
    return [
        found
        for parameter in getattr(node, "type_params", ())
        for found in (getattr(parameter, "bound", None), getattr(parameter, "default_value", None))
        if found is not None
    ]


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return found + [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]


def _arguments(node: ast.Call) -> Iterator[ast.expr]:
    for argument in node.args:
        yield argument.value if isinstance(argument, ast.Starred) else argument
    for keyword in node.keywords:
        yield keyword.value


def _local(body: Sequence[ast.AST], package: str) -> _Scope:
    """Find the names that a function's or a class's own statements bind."""
    scope = _Scope()
    todo: list[ast.AST] = list(body)
    others: set[str] = set()
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                scope.names.add(node.name)
                todo += node.decorator_list
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                # What they bind is theirs, but for `:=`.
                scope.names |= {f.target.id for f in ast.walk(node) if isinstance(f, ast.NamedExpr)}
                continue
            case ast.Name():
                if not isinstance(node.ctx, ast.Load):
                    scope.names.add(node.id)
            case ast.Import() | ast.ImportFrom():
                for name, alias in aliases_of(node, package):
                    scope.names.add(name)
                    scope.imports.setdefault(name, []).append(alias)
            case ast.Global():
                scope.module_names.update(node.names)
            case ast.Nonlocal():
                others.update(node.names)
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                if node.name:
                    scope.names.add(node.name)
            case ast.MatchMapping():
                if node.rest:
                    scope.names.add(node.rest)
        todo += ast.iter_child_nodes(node)
    scope.names -= others
    return scope


def use_of(node: ast.expr) -> Use | None:
    """Give a name with attributes; of a call that of what is called."""
    if isinstance(node, ast.Call):
        node = node.func
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return Use(node.id, tuple(reversed(attributes))) if isinstance(node, ast.Name) else None


def _chain(node: ast.expr) -> Use | None:
    """Give the name that an object is a part of, or comes from."""
    attributes: list[str] = []
    while True:
        match node:
            case ast.Attribute():
                attributes.append(node.attr)
                node = node.value
            case ast.Subscript():
                attributes.append("[]")
                node = node.value
            case ast.Call():
                attributes.append("()")
                node = node.func
            case ast.Starred() | ast.Await() | ast.NamedExpr():
                node = node.value
            case ast.Name():
                return Use(node.id, tuple(reversed(attributes)))
            case _:
                return None


# ---- parts of statements


def aliases_of(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Alias]]:
    """Give what an import binds, and to what. `import a.b` binds `a`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname is None:
                yield alias.name.partition(".")[0], Alias(alias.name.partition(".")[0])
            else:
                yield alias.asname, Alias(alias.name)
    else:
        base = base_of(package, node)
        for alias in node.names if base is not None else ():
            yield alias.asname or alias.name, Alias(base or "", alias.name)
