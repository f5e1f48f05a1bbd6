"""What a subscriber sees of a record of the log."""

from __future__ import annotations

from evpipe.bus.protocol import Record
from evpipe.client.events import run_event
from evpipe.wire.codec import encode_map
from evpipe.wire.subjects import Subjects

SUBJECTS = Subjects("evpipe")
RUN = "abcdefgh2345"


def test_steps_are_named_as_people_name_them() -> None:
    """Also those that the event tells of; whatever else has such a field stays as it is."""
    origin = {"pipeline": "churn", "run": RUN, "step": "clean=2=0", "at": 5.0}
    told = {"attempt": 3, "from": origin, "parent": "clean=1", "value": {"step": "clean=1"}}
    subject = SUBJECTS.event("churn", RUN, "clean=1", "cached")
    event = run_event(Record(7, 5.0, subject, encode_map(told)), SUBJECTS)
    assert event is not None
    assert (event.step, event.attempt, event.kind) == ("clean[1]", 3, "cached")
    assert event.data == {"from": {**origin, "step": "clean[2][0]"}, "parent": "clean=1", "value": {"step": "clean=1"}}
    of_run = run_event(Record(8, 5.0, SUBJECTS.event("churn", RUN, "_", "finished"), encode_map({})), SUBJECTS)
    assert of_run is not None
    assert of_run.step is None
