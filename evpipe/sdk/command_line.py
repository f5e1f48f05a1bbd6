"""What a command step runs, and how, as the `code` of a step carries it to a worker.

command("python train.py --lr {lr}") ──▶ CommandLine ──▶ `code` of a step ──▶ worker: CommandLine ──▶ words
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evpipe.errors import UsageError
from evpipe.sdk.command_outputs import Outputs
from evpipe.sdk.templates import Part, Template, for_shell, template

KIND: Final = "command"
#: Set for the program by evpipe.
SET_BY_US: Final = ("EVPIPE_RUN", "EVPIPE_STEP", "EVPIPE_ATTEMPT", "EVPIPE_RESULT", "EVPIPE_RESULT_FD")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What a command step runs, and how."""

    #: With a shell one: what it is to run.
    words: tuple[Template, ...]
    shell: bool = False
    #: Variables of the program's environment beside those of its worker.
    env: Mapping[str, Template]
    #: Folder in which it runs; None: one of the attempt's own.
    cwd: Template | None = None
    #: Exit codes that are no failure.
    ok_codes: tuple[int, ...] = (0,)
    outputs: Outputs

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all placeholders, in order, each once."""
        texts = [*self.words, *self.env.values(), *([] if self.cwd is None else [self.cwd])]
        texts += [taken.path for taken in self.outputs.all]
        return tuple(dict.fromkeys(field.name for text in texts for field in text.fields))

    def __str__(self) -> str:
        return " ".join(map(str, self.words))

    def as_code(self, module: str) -> dict[str, Any]:
        """Give it as the `code` of a step in a graph.

        Args:
            module: name of the module in which it was written, beside which its files may be.
        """
        # Only here, as above.
        import hashlib

        code: dict[str, Any] = {"words": list(map(str, self.words))}
        if self.shell:
            code["shell"] = True
        if self.env:
            code["env"] = {name: str(text) for name, text in self.env.items()}
        if self.cwd is not None:
            code["cwd"] = str(self.cwd)
        if self.ok_codes != (0,):
            code["ok_codes"] = list(self.ok_codes)
        if outputs := self.outputs.as_list():
            code["outputs"] = outputs
        # What facts and files of it go by, as functions have names.
        name = hashlib.sha256(repr([module, *sorted(code.items())]).encode(errors="surrogatepass")).hexdigest()[:16]
        return {"kind": KIND, "module": module, "name": name, **code}

    @classmethod
    def from_code(cls, code: Mapping[str, Any]) -> CommandLine:
        """Read what `as_code` made.

        Raises:
            UsageError: if it did not.
        """
        where = "the command of the launch"
        words, env = code.get("words"), code.get("env", {})
        cwd, ok_codes = code.get("cwd"), code.get("ok_codes", [0])
        if code.get("kind") != KIND or not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"{where} has no words")
        if not isinstance(env, dict) or not all(isinstance(text, str) for pair in env.items() for text in pair):
            raise UsageError(f"{where} has an environment that is none")
        if not isinstance(ok_codes, list) or not all(type(number) is int for number in ok_codes):
            raise UsageError(f"{where} has exit codes that are none")
        if not words or not isinstance(cwd, (str, type(None))):
            raise UsageError(f"{where} has no words, or a folder that is none")
        shell = code.get("shell") is True
        read: Callable[[str, str], Template] = for_shell if shell else template
        return cls(
            words=tuple(read(word, where) for word in words),
            shell=shell,
            env={check_variable(name, where): template(text, where) for name, text in env.items()},
            cwd=None if cwd is None else template(cwd, where),
            ok_codes=tuple(ok_codes),
            outputs=Outputs.from_list(code.get("outputs", []), where),
        )

    def argv(self, values: Mapping[str, Any]) -> list[str]:
        """Give the words that the system gets, with a value for each placeholder.

        Raises:
            UsageError: for a value that is not accepted.
        """
        if not self.shell:
            return [word for part in self.words for word in part.words(values)]
        # To a shell values are its positional parameters, never text that it reads.
        text = ""
        given: list[str] = []
        (whole,) = self.words
        for i, part in enumerate(whole.parts):
            if isinstance(part, str):
                text += part
                continue
            items = values[part.name]
            if isinstance(items, (list, tuple)) and _stands_alone(whole.parts, i):
                added = [part.text(item) for item in items]
            else:
                added = [part.text(items)]
            text += " ".join(f'"${{{len(given) + k + 1}}}"' for k in range(len(added)))
            given += added
        return ["/bin/sh", "-c", text, "sh", *given]


def _stands_alone(parts: Sequence[Part], i: int) -> bool:
    before = parts[i - 1] if i else " "
    after = parts[i + 1] if i + 1 < len(parts) else " "
    return isinstance(before, str) and isinstance(after, str) and before[-1].isspace() and after[0].isspace()


def check_variable(name: Any, where: str) -> str:
    """Return the name of a variable of the environment, if one can have it."""
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise UsageError(f"{where}: env has the name {name!r:.80}: it must be a text without '='")
    if name in SET_BY_US:
        raise UsageError(f"{where}: env has {name}, which evpipe sets itself")
    return name
