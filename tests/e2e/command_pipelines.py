"""Pipelines of commands, with the scripts in `programs`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from evpipe import CommandFailed, Retry, command, one_of, pipeline, step

fit = command(
    "python programs/fit.py --lr {lr:.2f} --data={data}",
    outputs={
        "model": Path("model.bin"),
        "parts": Path("parts/*.txt"),
        "all": Path("parts"),
        "score": "json.score",
        "lines": "lines",
        "code": "exit_code",
    },
)
greet = command("./programs/greet.sh {words} 'and {last}' {none}", ok_codes=(0, 3), env={"GREETING": "hello {last}"})
shout = command(
    "for word in {words} {last}; do echo $word | tr a-z A-Z; done > out.txt; cat out.txt >&2; wc -l < out.txt # {none}",
    shell=True,
    name="shout",
    outputs="lines",
)
read = command(["cat", "{files}"], outputs="lines")
tell = command("""python -c 'import os; os.write(int(os.environ["EVPIPE_RESULT_FD"]), b"[1, {{}}]")'""", outputs="json")
echo = command("echo {x} $EVPIPE_STEP", shell=True, name="echo", outputs="lines")
here = command("sh -c pwd", cwd="{folder}", outputs="lines", name="here")
names = command("""sh -c 'echo "{{\\"a\\": 1, \\"b\\": null}}" > $EVPIPE_RESULT'""", outputs=("a", "b"), name="names")
fails = command("sh -c 'echo out; echo 1st >&2; echo why >&2; exit {code}'", name="fails")
HARMFUL = "$(touch harmed) `touch harmed` '; touch harmed; \" &"


@step
def text(value: str) -> Path:
    file = Path(tempfile.mkdtemp(), "text.txt")
    file.write_text(value)
    return file


@step
def a_dict() -> dict[str, int]:
    return {"a": 1}


@step
def folder_name(path: Path) -> str:
    return path.name


@pipeline
def scripts(lr: float = 0.5) -> Any:
    fitted = fit(lr=lr, data=text("data"))
    found = names()
    return {
        "score": fitted["score"],
        "lines": fitted["lines"],
        "code": fitted["code"],
        "greeted": greet(words=["a b", 2, True], last=HARMFUL, none=None),
        "shouted": shout(words=["x y", HARMFUL], last=1, none="\n exit 9"),
        "read": read(files=[fitted["model"], text("more")]),
        "parts": read(files=fitted["parts"]),
        "told": tell(),
        "here": here(folder=fitted["all"]),
        "name": folder_name(fitted["all"]),
        "names": [found["a"], found["b"]],
        "one": one_of(fails.options(on_failure="skip")(code=1)["lines"], found["a"]),
    }


@pipeline
def failures() -> None:
    for code in (7, 200):
        fails(code=code)
    command("kill -TERM $$", shell=True, name="killed")()
    command("no-such-program-as-this", name="missing")()
    command("./programs/fitting.py", name="no-program")()
    command("echo {x}", name="dict")(x=a_dict())
    command("echo {x:.2f}", name="format")(x=text.options(name="t")("a"))
    command("true", outputs=Path("a.bin"), name="no-file")()
    command("true", outputs="json", name="no-result")()
    command("echo no > $EVPIPE_RESULT", outputs="json", shell=True, name="no-json")()
    command("echo '{{}}' > $EVPIPE_RESULT", outputs="json.a", shell=True, name="no-key")()
    command("seq 10001", outputs="lines", name="many")()
    command("pwd", cwd="/no/such/folder", name="no-folder")()
    command("true", outputs=Path("{x}"), name="outside")(x="../a")


@pipeline
def mapped(rates: tuple[float, ...] = (0.1, 0.2)) -> Any:
    """A command for each of what is known now, one for each of what a command gave, and one for all of them."""
    data = text("data")
    fits = fit.map(lr=rates, data=data)
    words = echo.map(x=command("seq {n}", outputs="lines", name="seq")(n=3))
    return {"scores": fits["score"], "all": read(files=fits["model"]), "words": words}


@pipeline
def attempts() -> Any:
    """A first attempt that fails and a second that does not, one that is late, and many lines."""
    once = Retry(1, delay_s=0.01, on=(CommandFailed,))
    tried = command("test $EVPIPE_ATTEMPT = 2", shell=True, name="tried", retries=once, outputs="exit_code")()
    late = command("sleep 60; echo never", shell=True, name="slow", timeout_s=0.3, on_failure="continue")()
    return [tried, late, command("seq 5000", name="chatty")()["lines"]]
