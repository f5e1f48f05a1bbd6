"""What a function is that has no source, as one typed into an interpreter: its bytecode, and what its names are."""

from __future__ import annotations

import functools
import re
import types
from typing import Any, Final

#: Names of a module's own that say nothing of its code.
_SKIPPED: Final = frozenset(
    {"__builtins__", "__name__", "__doc__", "__file__", "__spec__", "__loader__", "__package__"}
)


def describe(function: object) -> tuple[str, set[str]]:
    """Describe a function.

    Returns:
        A text that is the same for the same code, and the names of the modules that it uses.

    Raises:
        ValueError: if something that it uses cannot be described.
    """
    describing = _Describing()
    return describing.value(function), describing.modules


class _Describing:
    def __init__(self) -> None:
        self.modules: set[str] = set()
        #: Functions and classes by their identity, in the order in which they were met.
        self._seen: dict[int, int] = {}

    def value(self, found: object) -> str:
        # What `@step` and functools.wraps have put around it.
        inner = getattr(found, "_fn", None)
        if type(found).__module__.partition(".")[0] == "evpipe" and isinstance(inner, types.FunctionType):
            found = inner
        match found:
            case None | bool() | int() | float() | complex() | str() | bytes() if type(found).__module__ == "builtins":
                return f"{type(found).__name__} {found!r}"
            case types.EllipsisType() | types.NotImplementedType() | range() | slice():
                return repr(found)
            case types.CodeType():
                return self._code(found)
            case types.ModuleType():
                self.modules.add(found.__name__)
                return f"module {found.__name__}"
            case types.FunctionType():
                return self._once(found, self._function)
            case type():
                return self._once(found, self._class)
            case types.BuiltinFunctionType() | types.MethodWrapperType() | types.WrapperDescriptorType():
                self.modules.add(str(getattr(found, "__module__", "") or "builtins"))
                return f"builtin {found.__qualname__}"
            case staticmethod() | classmethod() | types.MethodType():
                return f"{type(found).__name__} {self.value(found.__func__)}"
            case property():
                return f"property {[self.value(part) for part in (found.fget, found.fset, found.fdel)]}"
            case functools.partial():
                return f"partial {[self.value(part) for part in (found.func, found.args, found.keywords)]}"
            case re.Pattern():
                return f"pattern {found.pattern!r} {found.flags}"
        if type(found) in {list, tuple}:
            return f"{type(found).__name__} {[self.value(item) for item in found]}"  # type: ignore[attr-defined]  # one of those
        if type(found) in {set, frozenset}:
            return f"{type(found).__name__} {sorted(self.value(item) for item in found)}"  # type: ignore[attr-defined]  # one of those
        if type(found) is dict:
            return f"dict {[(self.value(key), self.value(item)) for key, item in found.items()]}"
        raise ValueError(f"a {type(found).__name__} cannot be described")

    def _once(self, found: Any, describe: Any) -> str:
        module = getattr(found, "__module__", None)
        if module != "__main__" and not (isinstance(found, types.FunctionType) and _is_nameless(found)):
            self.modules.add(str(module or "builtins"))
            return f"{module}:{found.__qualname__}"
        if id(found) in self._seen:
            return f"number {self._seen[id(found)]}"
        self._seen[id(found)] = len(self._seen)
        return str(describe(found))

    def _function(self, found: types.FunctionType) -> str:
        parts = [self._code(found.__code__), self.value(found.__defaults__), self.value(found.__kwdefaults__)]
        parts += [self.value(cell.cell_contents) for cell in found.__closure__ or ()]
        parts += [
            f"{name}: {self.value(found.__globals__[name])}"
            for name in sorted(_names(found.__code__) - _SKIPPED)
            if name in found.__globals__
        ]
        return f"function {parts}"

    def _class(self, found: type) -> str:
        parts = [self.value(base) for base in found.__bases__]
        for name, value in sorted(vars(found).items()):
            if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                parts.append(f"{name}: slot")
            elif name not in {"__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__"}:
                parts.append(f"{name}: {self.value(value)}")
        return f"class {found.__qualname__} {parts}"

    def _code(self, code: types.CodeType) -> str:
        constants = [self.value(constant) for constant in code.co_consts]
        return str(
            [
                code.co_code.hex(),
                constants,
                code.co_names,
                code.co_varnames,
                code.co_freevars,
                code.co_cellvars,
                code.co_flags,
                code.co_argcount,
                code.co_kwonlyargcount,
                code.co_posonlyargcount,
                code.co_exceptiontable.hex(),
            ]
        )


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_nameless(function: types.FunctionType) -> bool:
    """Say whether no module has it under its name."""
    return "<" in function.__qualname__
