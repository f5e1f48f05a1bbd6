"""`SkipStep`: how a step's body says that its step is to be left out."""

from __future__ import annotations


class SkipStep(Exception):
    """Raised by the body of a step: the step ends as `skipped`, for the reason `condition`, with this message.

        @step(retries=3)
        def fetch(day: str) -> list[str]:
            if not published(day):
                raise SkipStep(f"nothing was published on {day}")

    What follows is what follows from a `when` that is false. It is no failure: nothing is tried again, `on_failure`
    does not matter, and nothing is cached. A decorator below `@step` may raise it before the body is called. It has to
    come out of the body by itself: in a group of exceptions it is a failure. Outside of a run it is an exception like
    any other.
    """
