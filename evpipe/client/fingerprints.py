"""What the fingerprint of a step in a run is made of: the controller looks it up, `explain` says what changed."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from evpipe.core.artifact import Artifact
from evpipe.core.fingerprint import Components, FunctionFacts, Input, RunFacts
from evpipe.core.graph import Graph, Step, steps_in
from evpipe.sdk.command_line import KIND
from evpipe.wire.cache import SHOWN_CHARS_MAX
from evpipe.wire.digests import value_digest

#: Names the container image that the steps of this machine's runs run in, where they do.
IMAGE_VARIABLE: Final = "EVPIPE_IMAGE"
#: Stands for all arguments of a step that has very many.
ALL: Final = "*"
#: What is said of the arguments of one step, at the most; and what a digest takes of it.
INPUTS_BYTES_MAX: Final = 32 * 1024
_INPUT_BYTES: Final = 72
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 48


def facts_of_run(graph: Graph) -> RunFacts | None:
    """Find out what this process knows of the functions of the cached steps of a graph, and of those built into it.

    Returns:
        None if there are no such steps.
    """
    codes = [step.code for step in steps_in(graph) if step.cache is not None]
    if not codes:
        return None
    # Only who has cached steps pays for its import.
    from evpipe.client.code_facts import facts_of
    from evpipe.client.command_files import command_facts

    found = facts_of(code for code in codes if code.get("kind") != KIND)
    functions = {
        f"{module}:{name}": FunctionFacts(code=facts.digest, packages=facts.packages)
        for (module, name), facts in found.items()
    }
    for code in codes:
        name = f"{code.get('module')}:{code.get('name')}"
        if code.get("kind") == KIND and name not in functions:
            functions[name] = command_facts(code)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return RunFacts(python=version, image=os.environ.get(IMAGE_VARIABLE, ""), functions=functions)


def components_of(step: Step, arguments: Mapping[str, Any], facts: RunFacts) -> Components | None:
    """Give what the fingerprint of a step with these arguments is made of.

    Returns:
        None if it is not cached, or nothing is known of its function.
    """
    function = facts.functions.get(f"{step.code.get('module')}:{step.code.get('name')}")
    if step.cache is None or function is None or not function.code:
        return None
    inputs: dict[str, Input] = {}
    for name, value in arguments.items():
        named: Iterable[tuple[str, Any]] = [(name, value)]
        if name == "*" and isinstance(value, (list, tuple)):
            named = [(f"*{i}", item) for i, item in enumerate(value)]
        for argument, given in named:
            if argument not in step.cache.ignore:
                inputs[argument] = Input(value_digest(given, f"argument {argument!r}"), shown(given))
    if sum(len(argument) + len(given.shown) + _INPUT_BYTES for argument, given in inputs.items()) > INPUTS_BYTES_MAX:
        # They travel with the launch and stay with the result: of very many, one digest says as much.
        digests = [[argument, given.digest] for argument, given in sorted(inputs.items())]
        inputs = {ALL: Input(value_digest(digests), f"{len(digests):,} arguments")}
    # The outputs that are declared shape the value.
    code = function.code if step.outputs is None else f"{function.code} {','.join(step.outputs)}"
    return Components(
        code=code,
        version=step.cache.version,
        python=facts.python,
        image=facts.image,
        packages=function.packages,
        inputs=inputs,
    )


def shown(value: Any) -> str:
    """Show a value in a few characters, on one line."""
    if isinstance(value, Artifact):
        return str(value)
    try:
        text = _SHOWN.repr(value)
    except Exception:  # noqa: BLE001 - code of a user
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"
