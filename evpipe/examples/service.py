"""A web service that runs pipelines: it hosts a controller and a worker, submits runs and streams their events.

    python -m evpipe.examples.service --port 8080
    curl -d '{"text": "events in, commands out"}' localhost:8080/runs          {"id": "…"}
    curl localhost:8080/runs/ID/events                                         server-sent events until the run's end
    curl localhost:8080/runs/ID                                                {"status": "succeeded", "value": 4}
    curl localhost:8080/finished                                               how many runs ended, by status

It needs aiohttp (`pip install 'evpipe[examples]'`). With EVPIPE_NATS_URL it uses that bus, and may run in any number of
processes; without, an embedded server of its own user.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aiohttp import web

from evpipe import Client, Controller, EvpipeError, NotFound, UsageError, Worker, connect, pipeline, step

if TYPE_CHECKING:
    from evpipe.client.handle import RunHandle


class Ends(Counter[str]):
    """How many runs have ended, by status."""


CLIENT = web.AppKey("client", Client)
ENDS = web.AppKey("ends", Ends)


@step
async def split(text: str) -> list[str]:
    return text.split()


@step
async def count(words: list[str]) -> int:
    return len(words)


@pipeline(name="count-words", queue="words")
def count_words(text: str) -> int:
    return count(split(text))


async def submit(request: web.Request) -> web.Response:
    """POST /runs: the same Idempotency-Key is the same run, however often it is sent."""
    try:
        body = await request.json()
    except json.JSONDecodeError as error:
        raise web.HTTPBadRequest(text=f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text='the body must be an object, as in {"text": "…"}')
    try:
        handle = await request.app[CLIENT].submit(count_words, body, key=request.headers.get("Idempotency-Key"))
    except UsageError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    return web.json_response({"id": handle.id}, status=202)


async def show(request: web.Request) -> web.Response:
    """GET /runs/ID: its status, and its value when it has one."""
    handle = await _handle(request)
    run = await handle.state()
    value = await handle.value() if run.status == "succeeded" else None
    return web.json_response({"status": run.status, "value": value})


async def events(request: web.Request) -> web.StreamResponse:
    """GET /runs/ID/events: every event from the first on; ends with the run."""
    handle = await _handle(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    async for event in handle.events():
        data = json.dumps({"kind": event.kind, "step": event.step, "attempt": event.attempt})
        await response.write(f"id: {event.sequence}\ndata: {data}\n\n".encode())
    await response.write_eof()
    return response


async def finished(request: web.Request) -> web.Response:
    """GET /finished: what the subscription below has counted."""
    ends: Ends = request.app[ENDS]
    return web.json_response(dict(ends))


async def _handle(request: web.Request) -> RunHandle[Any]:
    try:
        return await request.app[CLIENT].get_run(request.match_info["id"])
    except (NotFound, UsageError) as error:
        raise web.HTTPNotFound(text=str(error)) from error


async def count_ends(app: web.Application) -> None:
    """Subscribe to the ends of all runs of this pipeline, whoever submitted them."""
    async for event in app[CLIENT].events(pipeline="count-words", kind="finished"):
        app[ENDS][str(event.data.get("status"))] += 1


async def host(app: web.Application) -> AsyncIterator[None]:
    """Host a controller and a worker for as long as the service lives."""
    async with connect() as client, Controller(client), Worker(client, ["words"], slots=8):
        app[CLIENT] = client
        subscription = asyncio.create_task(count_ends(app))
        yield
        subscription.cancel()
        await asyncio.gather(subscription, return_exceptions=True)


def create_app() -> web.Application:
    app = web.Application()
    app[ENDS] = Ends()
    app.cleanup_ctx.append(host)
    app.add_routes(
        [
            web.post("/runs", submit),
            web.get("/runs/{id}", show),
            web.get("/runs/{id}/events", events),
            web.get("/finished", finished),
        ]
    )
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080)
    port = parser.parse_args().port
    try:
        web.run_app(create_app(), host="127.0.0.1", port=port)
    except EvpipeError as error:
        raise SystemExit(f"service: {error}") from error


if __name__ == "__main__":
    main()
