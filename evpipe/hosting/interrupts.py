"""Ctrl-C where steps are calls in this thread: the first asks for the end of the run, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

#: What is said when it comes, and the message of the cancel.
CANCELLING: Final = "cancelling (Ctrl-C again to leave at once)"
INTERRUPTED: Final = "interrupted with Ctrl-C"


class Interrupts:
    """What Ctrl-C does while this is entered.

    The first raises KeyboardInterrupt only in what is to end by it (`ending`). Anywhere else, where the run is folded
    or a finaliser runs, it is remembered. Outside of the main thread, or where somebody else handles the signal
    already (a debugger, an event loop), what counts is the KeyboardInterrupt that comes out of a call.
    """

    def __init__(self) -> None:
        #: Whether the end of the run was asked for.
        self.asked = False
        #: Whether the one that asked was raised by this, and has not been caught yet.
        self._raised = False
        self._ending = False
        self._leaving = False
        self._entered = False

    def __enter__(self) -> Self:
        self._entered = True
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        # Only of the main thread; and whoever has put another in its place meanwhile knows better.
        if signal.getsignal(signal.SIGINT) == self._came:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def ending(self, ends: bool) -> Iterator[None]:
        """Let the first Ctrl-C end the block with a KeyboardInterrupt.

        Args:
            ends: False: it does not, because this is to come to its end whatever happens.
        """
        self._ending = ends
        try:
            if ends and self.asked:
                # It came between the last look and this.
                self._raised = True
                raise KeyboardInterrupt
            yield
        finally:
            self._ending = False

    def caught(self) -> bool:
        """Take a KeyboardInterrupt that came out of a call; says whether it asks for the end of the run.

        If not, it is to be raised again: whoever pressed twice does not want to wait.
        """
        if self._leaving or (self.asked and not self._raised):
            return False
        self.asked, self._raised = True, False
        return True

    def _came(self, number: int, frame: FrameType | None) -> None:
        if not self._entered:
            # A debugger has put it back after the run.
            signal.default_int_handler(number, frame)
        if self.asked:
            self._leaving = True
            raise KeyboardInterrupt
        self.asked = True
        if self._ending:
            self._raised = True
            raise KeyboardInterrupt
