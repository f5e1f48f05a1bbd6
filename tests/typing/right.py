"""Uses of the public API that must type-check, and the types that they must have."""

import asyncio
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, assert_type, reveal_type

from evpipe import (
    CommandResult,
    MetricPoint,
    Pipeline,
    Retry,
    RunEvent,
    RunResult,
    RunStatus,
    StepContext,
    StepResult,
    StepStatus,
    approval,
    command,
    connect,
    current,
    pipeline,
    run,
    sleep,
    step,
    wait_for_event,
)


class Fit(TypedDict):
    model: str
    score: float


class Split(NamedTuple):
    train: list[float]
    test: list[float]


@step
def load(rows: int, *, source: str = "db") -> list[float]:
    return [float(rows)] if source else []


@step(retries=2, timeout_s=60, queue="gpu", on_failure="skip", after=["load"], executor="thread")
def train(data: list[float], depth: int = 3) -> Fit:
    return {"model": "m", "score": sum(data) / depth}


@step(retries=Retry(3, delay_s=0.5, on=(OSError, ValueError)))
async def fetch(url: str) -> bytes:
    return url.encode()


@step
async def ping(url: str) -> int:
    return len(url)


@step(name="split-it", description="halves")
def split(data: list[float]) -> Split:
    return Split(data, data)


@step(outputs=("low", "high"))
def bounds(data: list[float]) -> tuple[float, str]:
    return min(data), str(max(data))


tool = command("tool --rate {rate:.2f}", retries=2, cache=True, env={"A": "{rate}"})
made = command(["make", "{name}"], outputs={"model": Path("model.bin"), "score": "json.score"}, cwd=Path("src"))


@step
def best(scores: list[float]) -> float:
    return max(scores)


@pipeline(version="1.0.0", fail_fast=True, deadline_s=60)
def churn(rows: int = 1000, depths: tuple[int, ...] = (3, 5)) -> float:
    data = load(rows)
    assert_type(data, list[float])
    assert_type(fetch("http://localhost"), bytes)
    assert_type(tool(rate=0.1), CommandResult)
    assert_type(tool.options(queue="gpu")(rate=0.1)["lines"], list[str])
    assert_type(tool.words(rate=0.1), list[str])
    assert_type(made(name="a"), Any)
    assert_type(ping(url="http://localhost"), int)
    assert_type(load.options(queue="gpu", name="load2")(rows, source="file"), list[float])
    assert_type(fetch.options(retries=0, timeout_s=None)("x"), bytes)
    fits = [train(data, depth=d) for d in depths]
    assert_type(fits[0]["score"], float)
    assert_type(fits[0]["model"], str)
    parts = split(data)
    assert_type(parts.test, list[float])
    assert_type(parts[0], list[float])
    left, right = parts
    assert_type(left, list[float])
    low, high = bounds(right)
    assert_type(low, float)
    assert_type(high, str)
    return best.options(after=[data, low, "ping"])([f["score"] for f in fits])


@pipeline
def bare(name: str) -> dict[str, list[float]]:
    return {name: load(1)}


@pipeline
def nested() -> float:
    assert_type(churn(500), float)
    assert_type(churn.options(name="again", retries=1, after=["churn"])(rows=5), float)
    assert_type(churn.map([1, 2])[0], float)
    return churn(rows=1)


def results() -> None:
    assert_type(churn(500), float)
    assert_type(nested.run().steps["churn"].run, str | None)
    assert_type(churn.fn(rows=500), float)
    result = churn.run(rows=500, depths=(1, 2))
    assert_type(result, RunResult[float])
    assert_type(result.value, float)
    assert_type(churn.options(mode="local", key="k", timeout_s=5).run(500).value, float)
    assert_type(bare.run("x").value, dict[str, list[float]])
    assert_type(result.status, RunStatus)
    assert_type(result.steps["load"], StepResult)
    assert_type(result.steps["load"].status, StepStatus)
    # A result may stand where one of a wider type is expected.
    wider: RunResult[float | str] = result
    reveal_type(wider.value)


def plain_functions() -> None:
    assert_type(load.fn(3, source="x"), list[float])
    assert_type(load(3), list[float])
    assert_type(asyncio.run(fetch.fn("x")), bytes)
    reveal_type(churn.run)


def undecorated(data: list[float], queue: str) -> Fit:
    return {"model": queue, "score": sum(data)}


async def undecorated_coroutine(url: str) -> bytes:
    return url.encode()


async def built() -> None:
    p = Pipeline("churn", version="1.0.0", queue="cpu", fail_fast=True, deadline_s=60, description="d")
    rows = p.param("rows", int, default=1000)
    assert_type(rows, int)
    assert_type(p.param("name"), Any)
    p.param("mode", Literal["fast", "slow"], default="fast")
    p.param("names", list[str] | None, default=None)
    data = p.step("load", load, rows=rows)
    assert_type(data, list[float])
    fit = p.step("train", train, data="${load.result}", depth=3, queue="gpu", after=[data, "fetch"], retries=Retry(2))
    assert_type(fit["score"], float)
    assert_type(p.step("fetch", fetch, url="x", timeout_s=None, executor="inline"), bytes)
    assert_type(p.step("plain", undecorated, args={"queue": "x"}, data=data, on_failure="skip"), Fit)
    assert_type(p.step("plain2", undecorated_coroutine, url="x"), bytes)
    assert_type(p.step("options", fetch.options(queue="gpu"), url="x", outputs=None), bytes)
    p.output({"score": fit["score"], "rows": rows})
    assert_type(p.run(rows=500), RunResult[Any])
    assert_type(p.options(mode="local").run(rows=500).status, RunStatus)
    assert_type(run(p, {"rows": 500}), RunResult[Any])
    assert_type(run(churn, {"rows": 500}), RunResult[float])
    async with connect() as client:
        handle = await client.submit(p, {"rows": 500}, key="k")
        assert_type(await handle.result(), RunResult[Any])


@pipeline
def waits(order_id: int = 7) -> list[object]:
    ok = approval("Release?", show={"id": order_id}, timeout_s=60, default=False)
    assert_type(ok, bool)
    assert_type(approval("Why?", answer=str), str)
    which: Literal["a", "b"] = approval("Which?", answer=Literal["a", "b"])
    order = wait_for_event("orders.created", match={"id": order_id}, since="submit")
    settled = sleep(20, after=[ok])
    wait_for_event(pipeline="churn", step="train", kind="failed", after=[settled])
    return [ok, which, order["total"]]


async def answers() -> None:
    async with connect() as client:
        for waiting in await client.waiting(pipeline="waits"):
            handle = await client.get_run(waiting.run)
            await handle.approve(waiting.step, True, by="ann", message="fine")
        assert_type(await client.send_signal("orders.created", {"id": 7}), int)
    waits.options(mode="debug", answers={"approval": True}).run()


@step
def says(rows: int) -> Path:
    attempt = current()
    assert_type(attempt, StepContext)
    attempt.progress(0.4, "epoch 3")
    attempt.progress(1)
    attempt.metric("loss", rows, step=rows)
    attempt.metric("loss", Fraction(1, 3))
    attempt.artifact("rows", [rows])
    attempt.log.bind(rows=rows).info("loaded %s", "x", share=0.5)
    assert_type((attempt.run, attempt.step, attempt.attempt, attempt.cancelled), tuple[str, str, int, bool])
    assert_type(result_metrics(), list[MetricPoint])
    return attempt.folder / "model.bin"


def result_metrics() -> list[MetricPoint]:
    return churn.run().steps["load"].metrics


async def hooks() -> None:
    client = connect()

    @client.on(pipeline="churn", kind="failed", since=3)
    async def alarm(event: RunEvent) -> None:
        print(event.run)

    @client.on()
    def note(event: RunEvent) -> int:
        return event.sequence

    async with client:
        handle = await client.get_run("aaaaaaaa")
        assert_type(await handle.metrics("load"), list[MetricPoint])
        assert_type(await handle.artifacts("load"), dict[str, Any])
        assert_type((await handle.progress())["load"].fraction, float)
        await alarm(await anext(client.events()))
