"""The artifacts of an attempt, in the process in which its step runs.

The worker has put those that the attempt needs into its folder, and stores what the attempt leaves there; neither
looks at values. The folder is made by whoever has something to put into it: most attempts have nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evpipe.core.bindings import BindingError
from evpipe.wire.messages import LaunchOrder, decode_launch
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import IN, Spool, attempt_shelf, attempt_spool


class AttemptFiles:
    """Reads the artifacts among an attempt's arguments and writes those of its output.

    Args:
        folder: of the attempt alone; need not exist.
        allow_pickle: whether the worker allows pickles; the step has to, too.
        inputs: the folder below it in which those that it needs are.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool, inputs: str = IN) -> None:
        self._folder = folder
        self._inputs = inputs
        self.allow_pickle = allow_pickle
        self._spool: Spool | None = None

    @classmethod
    def of_frame(cls, frame: Mapping[str, Any]) -> AttemptFiles:
        """Take what the worker says of them (see `children.frames`)."""
        return cls(Path(frame["folder"]), allow_pickle=frame["allow_pickle"])

    def decode(self, data: bytes, order: LaunchOrder) -> LaunchOrder:
        """Decode a launch with the values of its artifacts in their places.

        Args:
            order: the same, decoded without them.

        Raises:
            ArtifactUnreadable: if one cannot be read, or has no such part.
        """
        reader = attempt_shelf(self._folder, self._inputs, pickles=order.pickle and self.allow_pickle)
        try:
            return decode_launch(data, reader)
        except BindingError as error:
            raise ArtifactUnreadable(str(error)) from error

    def writer(self, order: LaunchOrder) -> Spool:
        """Give what stores the parts of its output."""
        if self._spool is None:
            self._spool = attempt_spool(self._folder, pickles=order.pickle and self.allow_pickle)
        return self._spool

    @property
    def wrote(self) -> bool:
        """Whether there are files that belong to its output."""
        return self._spool is not None and bool(self._spool.files)
