"""Steps that fail and steps that hang: retries with back-off, a time-out, and a run that comes to its end all the same.

    evpipe run evpipe.examples.unreliable:gather

`fetch` fails twice and succeeds; `stall` runs longer than it may and is killed, with all that it started; what depends
on it runs without its value, because its failure is allowed.
"""

from __future__ import annotations

import time

from evpipe import Retry, pipeline, step


class Unavailable(ConnectionError):
    """What a flaky service raises."""


@step(executor="inline", retries=Retry(3, delay_s=0.1, factor=2, on=(ConnectionError,)))
async def fetch(source: str, failures: int) -> str:
    """Fail some times, as a service does that comes up late."""
    _calls[source] = _calls.get(source, 0) + 1
    if _calls[source] <= failures:
        raise Unavailable(f"{source} does not answer (call {_calls[source]})")
    return f"what {source} has"


@step(timeout_s=1, on_failure="continue")
def stall(source: str) -> str:
    """Hang, whatever happens: only killing its process ends it."""
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: BLE001 - a body that swallows everything
            continue


@step
def together(answers: list[str | None]) -> str:
    return "; ".join(answer or "no answer in time" for answer in answers)


#: Calls of `fetch` in this process, by source.
_calls: dict[str, int] = {}


@pipeline(version="1.0.0", deadline_s=120)
def gather(failures: int = 2) -> str:
    return together([fetch("archive", failures), stall("slow-lane"), fetch("index", 0)])


if __name__ == "__main__":
    print(gather.run().value)
