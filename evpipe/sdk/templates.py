"""Texts with placeholders, and how they become the words of a program.

A placeholder is a field of Python's format language. A value becomes one word, or a part of one: it is put in after the
text was split, so that nothing in it can be a word, a quote or a command of a shell.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from evpipe.errors import UsageError

#: What a value of a placeholder may be.
ACCEPTED: Final = (
    "str, int, float, bool, None (an empty text) and paths, and lists of them where the placeholder is a word of its "
    "own"
)
#: What only a shell understands: an operator, or a redirection.
_OF_SHELLS: Final = r"\|\|?|&&?|;|[0-9&]?>.*|<.*"
_CONVERSIONS: Final[Mapping[str, Callable[[object], str]]] = {"r": repr, "s": str, "a": ascii}
#: Stands for a placeholder while a text is split; of no use for anything else.
_MARK: Final = "\ue000"


class Field(NamedTuple):
    """A placeholder."""

    name: str
    conversion: str = ""
    spec: str = ""

    def __str__(self) -> str:
        conversion = f"!{self.conversion}" if self.conversion else ""
        return f"{{{self.name}{conversion}{':' if self.spec else ''}{self.spec}}}"

    def text(self, value: Any) -> str:
        """Format a value.

        Raises:
            UsageError: if it is none that is accepted, or does not take the format.
        """
        if value is None:
            return ""
        if isinstance(value, (list, tuple)) or not is_accepted(value):
            raise UsageError(f"the placeholder {self} got a {type(value).__name__}: accepted are {ACCEPTED}")
        given: Any = value.__fspath__() if hasattr(value, "__fspath__") else value
        if self.conversion:
            given = _CONVERSIONS[self.conversion](given)
        try:
            text = format(given, self.spec)
        except (ValueError, TypeError) as error:
            raise UsageError(f"the placeholder {self} does not fit {value!r:.80}: {error}") from None
        if "\0" in text:
            raise UsageError(f"the placeholder {self} got a text with a zero byte, which no program can be given")
        return text


def is_accepted(value: Any) -> bool:
    """Say whether a value may be that of a placeholder, as far as its type says."""
    # Numbers of numpy are numbers, too.
    kinds = (str, numbers.Real, list, tuple)
    return value is None or isinstance(value, kinds) or hasattr(value, "__fspath__")


Part: TypeAlias = str | Field


class Template(NamedTuple):
    """A text with placeholders."""

    parts: tuple[Part, ...]

    @property
    def literal(self) -> str | None:
        """The text, if it has no placeholders."""
        return "".join(map(str, self.parts)) if all(isinstance(part, str) for part in self.parts) else None

    @property
    def fields(self) -> Iterator[Field]:
        return (part for part in self.parts if isinstance(part, Field))

    def text(self, values: Mapping[str, Any]) -> str:
        """Put values in; UsageError for one that is not accepted."""
        return "".join(part if isinstance(part, str) else part.text(values[part.name]) for part in self.parts)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Give one word; or one for each item of a list, where the placeholder of that is all there is."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Field):
            field = self.parts[0]
            items = values[field.name]
            if isinstance(items, (list, tuple)):
                return [field.text(item) for item in items]
        return [self.text(values)]

    def __str__(self) -> str:
        doubled = (
            part.replace("{", "{{").replace("}", "}}") if isinstance(part, str) else str(part) for part in self.parts
        )
        return "".join(doubled)


def template(text: str, where: str) -> Template:
    """Read a text with placeholders.

    Raises:
        UsageError: if a placeholder is more than a name with a format, or a brace is alone.
    """
    # Only here: a file with nothing but functions as steps does without.
    from string import Formatter

    if "\0" in text:
        raise UsageError(f"{where}: {text!r:.80} has a zero byte, which no program can be given")
    parts: list[Part] = []
    try:
        found = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"{where}: {text!r:.200}: {error}; a brace that is meant as one is doubled") from None
    for literal, name, spec, conversion in found:
        if literal and parts and isinstance(parts[-1], str):
            # Doubled braces come by themselves.
            parts[-1] += literal
        elif literal:
            parts.append(literal)
        if name is not None:
            parts.append(_field(name, conversion or "", spec or "", where))
    return Template(tuple(parts))


def _field(name: str, conversion: str, spec: str, where: str) -> Field:
    field = Field(name, conversion, spec)
    if not name.isidentifier():
        raise UsageError(
            f"{where}: the placeholder {field} must be a name, as in {{lr}} or {{lr:.3f}}; "
            "a brace that is meant as one is doubled"
        )
    if conversion and conversion not in _CONVERSIONS:
        raise UsageError(f"{where}: the placeholder {field} has the conversion {conversion!r}: there are r, s and a")
    if "{" in spec:
        raise UsageError(f"{where}: the placeholder {field} has another inside, which cannot be")
    for example in (1.0, 1, "text"):
        try:
            format(example, spec)
        except ValueError:
            continue
        return field
    raise UsageError(f"{where}: the placeholder {field} has a format that fits neither numbers nor texts: {spec!r}")


def split(text: str, where: str) -> tuple[Template, ...]:
    """Split a text into words as a shell does, and leave everything else that a shell does undone."""
    import shlex

    whole = template(text, where)
    fields = list(whole.fields)
    marked = "".join(part if isinstance(part, str) else _MARK for part in whole.parts)
    if marked.count(_MARK) > len(fields):
        raise UsageError(f"{where}: the character U+E000 cannot be in a command")
    try:
        words = shlex.split(marked)
    except ValueError as error:
        raise UsageError(f"{where}: {text!r:.200} cannot be split into words: {error}") from None
    for word in _with_quotes(marked):
        if re.fullmatch(_OF_SHELLS, word):
            shown = word.replace(_MARK, "{}")
            raise UsageError(
                f"{where}: {shown!r} is for a shell, and none runs this: give shell=True, or quote it if it is meant "
                "as an argument"
            )
    waiting = iter(fields)
    return tuple(Template(tuple(_unmarked(word, waiting))) for word in words)


def _with_quotes(text: str) -> list[str]:
    """Give the words of a text with their quotes, as far as they can be told."""
    import shlex

    try:
        return shlex.split(text, posix=False)
    except ValueError:
        return []


def _unmarked(word: str, fields: Iterator[Field]) -> Iterator[Part]:
    pieces = word.split(_MARK)
    for i, piece in enumerate(pieces):
        if i:
            yield next(fields)
        if piece:
            yield piece


def for_shell(text: str, where: str) -> Template:
    """Read a text that a shell is to run; its placeholders must not be quoted, for the values are."""
    whole = template(text, where)
    quote, escaped, comment, before = "", False, False, " "
    for part in whole.parts:
        if isinstance(part, Field):
            if quote or escaped:
                raise UsageError(
                    f"{where}: the placeholder {part} stands in quotes: values are quoted by evpipe, write it without"
                )
            before = "x"
            continue
        for char in part:
            if comment:
                comment = char != "\n"
            elif escaped:
                escaped = False
            elif char == "\\" and quote != "'":
                escaped = True
            elif quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            elif char == "#" and before.isspace():
                comment = True
            before = char
    return whole


def split_leniently(text: Template) -> tuple[Template, ...]:
    """Give the words of a shell's text, as far as they can be told, that have no placeholders."""
    import shlex

    marked = "".join(part if isinstance(part, str) else _MARK for part in text.parts)
    lexer = shlex.shlex(marked, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return tuple(Template((word,)) for word in lexer if _MARK not in word)
    except ValueError:
        return ()
