"""Pipelines with steps that wait."""

from __future__ import annotations

from typing import Any, Literal

from evpipe import Pipeline, approval, pipeline, sleep, step, wait_for_event


@step(executor="inline")
async def build(what: str) -> dict[str, float]:
    return {"score": len(what) / 10}


@step(executor="inline")
async def release(what: object) -> str:
    return f"released {what}"


@step(executor="inline")
async def clean_up() -> str:
    return "clean"


@step(executor="inline")
async def identity(value: int) -> int:
    return value


@pipeline
def released(nap_s: float = 0.3) -> str:
    """Scenario A12."""
    wheel = build("wheel")
    ok = approval("Release to production?", show={"score": wheel["score"]}, name="approve")
    delay = sleep(nap_s, after=[ok], name="delay")
    return release.options(when=ok, after=[delay])(wheel["score"])


@pipeline
def texts() -> list[object]:
    """Typed answers: each step gets exactly what was answered."""
    which = approval("Which?", answer=Literal["a", "b"], name="which")
    note = approval("Why?", answer=str, name="note")
    share = approval("How much?", answer=float, name="share", after=[note])
    return [release(which), note, share]


@pipeline
def rejected() -> str | None:
    ok = approval("Go?", reject="fail", name="approve")
    asked = release.options(when=ok)("never")
    clean_up.options(run_if="always", after=[asked])()
    return asked


@pipeline
def said_no() -> list[object]:
    ok = approval("Go?", name="approve")
    return [ok, release.options(when=ok)("never")]


@pipeline
def nobody_answers() -> list[object]:
    late = approval("Go?", name="late", timeout_s=0.2, on_failure="skip")
    spare = approval("Which?", answer=Literal["a", "b"], name="spare", timeout_s=0.2, default="b")
    sure = approval("Sure?", name="sure", timeout_s=60)
    return [release.options(name="never")(late), release(spare), sure]


@pipeline
def bad_nap() -> None:
    found: Any = build("x")
    sleep(found, name="nap")


@pipeline
def waits_last() -> str:
    """A wait that goes on when its run is cancelled: its finaliser asks whether to clean up."""
    wheel = build("wheel")
    hangs = approval("Go?", name="hangs", after=[wheel])
    sure = approval("Really clean up?", name="sure", run_if="always", after=[hangs])
    return release.options(run_if="always", name="last", after=[sure])("the rest")


def built() -> Pipeline:
    p = Pipeline("built")
    wheel = p.step("build", build, what="wheel")
    p.approval("approve", "Release?", show={"score": "${build.score}", "all": wheel}, answer=int)
    nap = p.sleep("nap", "${build.score}", after=["approve"])
    p.output(p.step("release", release, what="${approve.result}", after=[nap]))
    return p


@pipeline
def ordered(since: Any = "wait") -> list[object]:
    """Waits for signals: one that matches, one that never comes."""
    order_id = identity(7)
    order = wait_for_event("orders.created", match={"id": order_id}, since=since, name="order")
    gone = wait_for_event("orders.gone", timeout_s=0.3, default={"total": 0}, name="gone")
    return [order["total"], gone["total"]]


@pipeline
def watching(run: str = "abcdefgh") -> dict[str, object]:
    """Waits for another run, and for any run of a pipeline."""
    built = wait_for_event(run=run, step="build", name="built")
    ended = wait_for_event(run=run, name="ended", timeout_s=60)
    other = wait_for_event(pipeline="said_no", name="other")
    return {"score": built["data"]["value"]["score"], "ended": ended["data"]["status"], "other": other["run"]}
