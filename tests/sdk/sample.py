"""Steps at module level, as users write them, for the tests beside this file."""

from typing import Any, NamedTuple, TypedDict

from evpipe import step


class Fit(TypedDict):
    model: str
    score: float


class Partial(TypedDict, total=False):
    score: float


class Split(NamedTuple):
    train: list[float]
    test: Fit


@step
def load(rows: int) -> list[float]:
    return [float(rows)] * rows


@step(queue="gpu")
def train(data: list[float], depth: int = 3) -> Fit:
    return {"model": f"m{depth}", "score": sum(data) / depth}


@step
def partial(data: object) -> Partial:
    return {}


@step
def split(data: list[float]) -> Split:
    return Split(data, {"model": "m", "score": 1.0})


@step
def pair(data: object) -> tuple[Fit, float]:
    return {"model": "m", "score": 1.0}, 2.0


@step(outputs=("low", "high"))
def bounds(data: object):  # type: ignore[no-untyped-def]  # what outputs= is for
    return 1.0, 2.0


@step
def fits(data: object) -> list[Fit]:
    return []


@step
def show(*args: Any, **kwargs: Any) -> str:
    return repr((args, kwargs))


@step
def mixed(first: int, /, second: int, *rest: int, flag: bool = False, **more: int) -> str:
    return repr((first, second, rest, flag, more))


@step
async def fetch(url: str) -> Fit:
    return {"model": url, "score": 0.0}
