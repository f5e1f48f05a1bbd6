"""Misuses of the public API. Each line marked with `# wrong` must have an error, and no other line."""

# ruff: noqa: B018 - the misuse of an attribute is the point

from typing import NamedTuple, TypedDict

from evpipe import Pipeline, Retry, pipeline, run, step


class Fit(TypedDict):
    model: str
    score: float


class Split(NamedTuple):
    train: list[float]
    test: list[float]


@step
def load(rows: int) -> list[float]:
    return [float(rows)]


@step
async def fetch(url: str) -> bytes:
    return url.encode()


@step
def train(data: list[float], depth: int = 3) -> Fit:
    return {"model": "m", "score": sum(data) / depth}


@step
def split(data: list[float]) -> Split:
    return Split(data, data)


@step
def bounds(data: list[float]) -> tuple[float, str]:
    return min(data), str(max(data))


@step(retrys=3)  # wrong: unknown option
def one() -> int:
    return 1


@step(executor="gpu")  # wrong: no such executor
def two() -> int:
    return 2


@step(retries=Retry(delay_s=1.0))  # wrong: a Retry without a count
def three() -> int:
    return 3


@pipeline(verison="1.0.0")  # wrong: unknown option
def four() -> int:
    return 4


@pipeline
def churn(rows: int = 1000) -> float:
    load("many")  # wrong: wrong argument type
    load()  # wrong: missing argument
    load(rows=rows, source="db")  # wrong: unknown keyword
    train(["a", "b"])  # wrong: wrong element type
    train(fetch("x"))  # wrong: the awaited value is bytes
    fit = train(load(rows))
    fit["scroe"]  # wrong: misspelt key
    split(load(rows)).tset  # wrong: no such field
    _low, _middle, _high = bounds(load(rows))  # wrong: a pair
    load.options(queue=3)  # wrong: wrong type of an option
    load.options(warp=True)  # wrong: unknown option
    load.options(name="load2")("many")  # wrong: wrong argument type
    load.fn("many")  # wrong: wrong argument type
    return fit["model"]  # wrong: text, not a number


def results() -> None:
    text: str = churn.run(rows=5).value  # wrong: the value is a float
    print(text)
    churn.run(row=5)  # wrong: unknown parameter
    churn.run(rows="5")  # wrong: wrong type of a parameter
    churn.options(mode="cloud").run(5)  # wrong: no such mode
    churn.options(mode="local").run("5")  # wrong: wrong type of a parameter
    churn.run().values  # wrong: no such attribute
    churn.run().steps[0]  # wrong: steps have names


def built() -> None:
    p = Pipeline("churn", verison="1.0.0")  # wrong: unknown option
    rows: str = p.param("rows", int, default=5)  # wrong: the parameter is a number
    p.param("rows", int, 5)  # wrong: a default is given by keyword
    data = p.step("load", load, rows=rows)
    fit = p.step("train", train, data=data)
    fit["scroe"]  # wrong: misspelt key
    train(p.step("fetch", fetch, url="x"))  # wrong: the awaited value is bytes
    p.step("load2", "load")  # wrong: not a function
    p.step("load2")  # wrong: no function
    p.step("load2", load, rows=5, timeout_s="5")  # wrong: wrong type of an option
    p.step("load2", load, rows=5, after=data[0])  # wrong: not a list
    p.step("load2", load, args=[5])  # wrong: not a mapping
    p.options(mode="cloud").run(rows=5)  # wrong: no such mode
    run(load)  # wrong: a step is not a pipeline
