"""The artifacts of an attempt, in the process in which its step runs.

The worker has put those that the attempt needs into its folder, and stores what the attempt leaves there; neither
looks at values. The folder is made by whoever has something to put into it: most attempts have nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evpipe.core.bindings import BindingError
from evpipe.wire.artifacts import is_digest
from evpipe.wire.messages import LaunchOrder, decode_launch
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.spool import Shelf, Spool, attempt_shelf, attempt_spool


class AttemptFiles:
    """Reads the artifacts among an attempt's arguments and writes those of its output.

    Args:
        shelf: gives what reads; told whether pickles may be read.
        spool: gives what writes; told whether it may pickle.
        allow_pickle: whether the worker allows pickles; the step has to, too.
    """

    def __init__(self, shelf: Callable[[bool], Shelf], spool: Callable[[bool], Spool], *, allow_pickle: bool) -> None:
        self._shelf = shelf
        self._make_spool = spool
        self.allow_pickle = allow_pickle
        self._spool: Spool | None = None

    @classmethod
    def below(cls, folder: str, *, allow_pickle: bool) -> AttemptFiles:
        """Give those of an attempt with a folder of its own, which need not exist."""
        return cls(
            lambda pickles: attempt_shelf(folder, pickles=pickles),
            lambda pickles: attempt_spool(folder, pickles=pickles),
            allow_pickle=allow_pickle,
        )

    @classmethod
    def of_frame(cls, frame: Mapping[str, Any]) -> AttemptFiles:
        """Take what the worker says of them (see `children.frames`)."""
        return cls.below(frame["folder"], allow_pickle=frame["allow_pickle"])

    def decode(self, data: bytes, order: LaunchOrder) -> LaunchOrder:
        """Decode a launch with the values of its artifacts in their places.

        Args:
            order: the same, decoded without them.

        Raises:
            ArtifactUnreadable: if one cannot be read, or has no such part.
        """
        reader = self._shelf(order.pickle and self.allow_pickle)
        try:
            return decode_launch(data, reader)
        except BindingError as error:
            raise ArtifactUnreadable(str(error)) from error

    def writer(self, order: LaunchOrder) -> Spool:
        """Give what stores the parts of its output."""
        if self._spool is None:
            self._spool = self._make_spool(order.pickle and self.allow_pickle)
        return self._spool

    @property
    def wrote(self) -> bool:
        """Whether there are files that belong to its output."""
        return self._spool is not None and bool(self._spool.files)


def files_in(folder: Path) -> dict[str, Path]:
    """Give the files that an attempt left for its output and its artifacts, by their digests."""
    found = (file for file in folder.iterdir() if is_digest(file.name))
    # What a step has put there itself may be anything.
    return {file.name: file for file in found if file.is_file() and not file.is_symlink()}
