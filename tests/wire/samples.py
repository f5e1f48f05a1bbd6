"""One message of every kind."""

from __future__ import annotations

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Decision,
    Due,
    Failure,
    Finished,
    Origin,
    StepApproved,
    StepCached,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
)
from evpipe.core.fingerprint import CachePolicy, Components, FunctionFacts, Input, RunFacts
from evpipe.core.graph import Graph, Step
from evpipe.core.parameters import Parameter, ParameterType
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, Reason, RunStatus
from evpipe.core.waits import Wait, WaitKind
from evpipe.wire.cache import components_map
from evpipe.wire.messages import LaunchOrder, Submission

ARTIFACT = Artifact(
    kind="numpy",
    version=1,
    digest="d1" * 32,
    size_bytes=100_000,
    meta={"k": [1, None]},
    content="c0" * 32,
    length=3,
    nested=True,
    path=("a", 0),
)

EVENTS: dict[str, Decision | StepSucceeded | StepApproved] = {
    "started": StepStarted(step="a", attempt=1, worker="w1"),
    "succeeded": StepSucceeded(step="a", attempt=2, value={"x": (1, 2.5)}, started_at_s=1.5),
    "cached": StepCached(
        step="a",
        attempt=1,
        value={"model": ARTIFACT, "score": 0.5},
        fingerprint="fe" * 32,
        origin=Origin(pipeline="churn", run="run00000", step="b", at_s=7.5),
    ),
    "approved": StepApproved(step="a", answer="b", by="ann", message="fine"),
    "received": StepReceived(step="a", value={"id": 7, "at": 0.5}),
    "failed": StepFailed(
        step="a",
        attempt=1,
        reason=Reason.ERROR,
        failure=Failure(message="ValueError: é", types=("builtins.ValueError",), traceback="tb"),
        started_at_s=0.5,
    ),
    "retry": StepRetried(step="a", attempt=2, due_at_s=12.5),
    "skipped": StepSkipped(step="a", reason=Reason.UPSTREAM, message="step 'b' failed"),
    "skipped itself": StepSkipped(
        step="a", attempt=2, reason=Reason.CONDITION, message="no new data", started_at_s=0.5
    ),
    "cancelled": StepCancelled(step="a", attempt=1, reason=Reason.DEADLINE, message="late"),
    "due": Due(step="a", attempt=2),
    "due of the run": Due(step=None),
    "cancel-requested": CancelRequested(cause=CancelCause.FAIL_FAST, message="m"),
    "finished": Finished(status=RunStatus.SUCCEEDED, value=[None, b"\x00"]),
    "finished badly": Finished(status=RunStatus.FAILED, reason=Reason.LOST, message="m"),
}

SUBMISSION = Submission(graph="0123456789abcdef" * 4, parameters={"rows": 10, "depths": (3, 5)}, queue="mine")

CACHING_SUBMISSION = Submission(
    graph="0123456789abcdef" * 4,
    facts=RunFacts(
        python="3.12",
        image="repo/train:1",
        functions={"m:f": FunctionFacts(code="c0de", packages={"numpy": "2.1.0"})},
    ),
    refresh=("a", "b"),
)

CACHING_LAUNCH = LaunchOrder(
    pipeline="demo",
    code={"kind": "path", "name": "m:f"},
    executor="process",
    arguments={"model": ARTIFACT, "small": Artifact(kind="value", digest="ab" * 32, size_bytes=2, data=b"ok")},
    pickle=True,
    fingerprint="fe" * 32,
    components=components_map(
        Components(code="c0de", python="3.12", packages={"numpy": "2.1.0"}, inputs={"x": Input("d1" * 32, "3")})
    ),
    artifacts=(ARTIFACT, Artifact(kind="value", digest="ab" * 32, size_bytes=2, data=b"ok")),
)

LAUNCH = LaunchOrder(
    pipeline="demo",
    code={"kind": "path", "name": "m:f"},
    executor="thread",
    arguments={"data": [1.5], "*": [True]},
    outputs=("model", "score"),
    timeout_s=60.0,
)

GRAPH = Graph.of(
    [
        Step(
            name="load",
            code={"kind": "path", "name": "m:load"},
            arguments={"rows": ParameterRef("rows")},
            executor="thread",
        ),
        Step(
            name="train",
            code={"kind": "path", "name": "m:train"},
            arguments={"data": OutputRef("load"), "first": [OutputRef("load", (0, "k"))], "depth": 3},
            after=("load",),
            queue="gpu",
            executor="inline",
            outputs=("model", "score"),
            retries=RetryPolicy(count=2, on=("builtins.OSError",)),
            timeout_s=60,
            on_failure=OnFailure.CONTINUE,
            description="fits",
        ),
    ],
    pipeline="churn",
    version="1.0.0",
    parameters=(
        Parameter(name="rows", type=ParameterType("int"), default=1000),
        Parameter(name="depths", type=ParameterType("tuple", (ParameterType("literal", values=(3, 5)),))),
    ),
    output=OutputRef("train", ("score",)),
    fail_fast=True,
    deadline_s=3600,
    description="who leaves",
)

CACHING_GRAPH = Graph.of(
    [
        Step(name="load", cache=CachePolicy()),
        Step(name="train", cache=CachePolicy(ttl_s=3600.0, version="2", ignore=("verbose",)), pickle=True),
    ],
    pipeline="churn",
)

WAITING_GRAPH = Graph.of(
    [
        Step(name="nap", arguments={"seconds": 1.5}, wait=Wait(kind=WaitKind.SLEEP)),
        Step(
            name="approve",
            arguments={"message": "Which?", "show": {"slept": OutputRef("nap")}, "default": "b"},
            timeout_s=60,
            wait=Wait(kind=WaitKind.APPROVAL, answer=ParameterType("literal", values=("a", "b"))),
        ),
        Step(name="yes", arguments={"message": "Yes?"}, wait=Wait(kind=WaitKind.APPROVAL, reject_fails=True)),
        Step(
            name="order",
            arguments={"name": "orders.created", "match": {"id": 7}},
            wait=Wait(kind=WaitKind.SIGNAL, since_submit=True),
        ),
        Step(name="other", arguments={"pipeline": "churn", "kind": "finished"}, wait=Wait(kind=WaitKind.RUN_EVENT)),
    ],
    pipeline="waits",
)
