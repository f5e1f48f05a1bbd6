"""Every error that evpipe raises, sorted by what the caller can do about it.

The lowest layer: it imports nothing. A step's failure is data in the log (`StepFailed`), not one of
these; only `RunFailed` shows it to a caller who asked for a value that does not exist.
"""

from __future__ import annotations


class EvpipeError(Exception):
    """The root of all errors of this package."""


class UsageError(EvpipeError):
    """The call, the graph or the settings are wrong: fix them and call again."""


class NotKnownYet(UsageError, TypeError):
    """A handle was used as if its value were there while the graph is being built."""


class LimitExceeded(UsageError):
    """Something is larger than a named limit."""

    def __init__(self, message: str, *, limit: str, found: int, allowed: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.found = found
        self.allowed = allowed


class EncodingError(UsageError):
    """A value has no encoding on the wire. `path` says where in the value it is.

    Its cause is what the user's serializer raised, where that is why.
    """

    def __init__(self, message: str, *, path: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.path = path
        #: The end of the message: what to do instead.
        self.advice = advice


class Conflict(UsageError):
    """The key of a submit is taken by a run with another graph or other parameters."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class NotFound(EvpipeError):
    """A run or a step with that name does not exist."""


class NotWaiting(UsageError):
    """The step that was to be answered does not wait for an answer (yet, or any more).

    Attributes: `run_id`, `step`, `status` (the step's).
    """

    def __init__(self, message: str, *, run_id: str, step: str, status: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.step = step
        self.status = status


class AlreadyAnswered(UsageError):
    """Somebody else answered first, and the first answer counts.

    Attributes: `run_id`, `step`, `answer`, `by` (who; may be empty).
    """

    def __init__(self, message: str, *, run_id: str, step: str, answer: object, by: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.step = step
        self.answer = answer
        self.by = by


class ProtocolError(EvpipeError):
    """Bytes or subjects that do not follow the protocol."""


class RemoteProtocolError(ProtocolError):
    """What was read from the bus does not follow the protocol."""


class BusError(EvpipeError):
    """The bus could not do what was asked."""


class BusUnreachable(BusError):
    """No server answered at the URL within the time allowed."""


class BusRefused(BusError):
    """The server answered and will not do it: too old, JetStream off, no permission, bad settings."""


class BusClosed(BusError):
    """The bus was closed on this side while the call was waiting."""


class ServerNotFound(BusError):
    """No nats-server binary for the embedded bus was found on this machine."""


class ProcessDied(EvpipeError):
    """The process in which a step ran ended without a result; never raised, but `Retry(on=ProcessDied)` names it."""


class CommandFailed(EvpipeError):
    """The program of a command step ended with an exit code that is none of success.

    Never raised, but `Retry(on=CommandFailed)` names it.
    """


class RunFailed(EvpipeError):
    """The run has no value because it did not succeed.

    Attributes: `run_id`, `status` (the run's), and of the first failed step, where there is one:
    `step`, `attempt`, `traceback` (text, may be empty).
    """

    def __init__(
        self,
        message: str,
        *,
        run_id: str,
        status: str,
        step: str | None = None,
        attempt: int = 0,
        traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.status = status
        self.step = step
        self.attempt = attempt
        self.traceback = traceback


class WaitTimeout(EvpipeError, TimeoutError):
    """The time given to a waiting call is over; the run itself goes on."""


def only_one(error: BaseException) -> BaseException:
    """Take an error out of the groups that task groups put around it."""
    while isinstance(error, BaseExceptionGroup):
        # Of several the first is as good as any: one sentence is what is shown.
        ours = [inner for inner in error.exceptions if isinstance(inner, EvpipeError)]
        error = (ours or error.exceptions)[0]
    return error
