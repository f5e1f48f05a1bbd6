"""Misuses of the public API. Each line marked with `# wrong` must have an error, and no other line."""

# ruff: noqa: B018 - the misuse of an attribute is the point

from typing import NamedTuple, TypedDict

from evpipe import Retry, pipeline, step


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
    load.options(cache=True)  # wrong: unknown option
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
