"""Runs a pipeline of `tests.e2e.pipelines` on the bus of the environment: NAME, parameters and options as JSON."""

from __future__ import annotations

import json
import sys

from evpipe import run
from tests.e2e import pipelines

if __name__ == "__main__":
    name, parameters, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    result = run(getattr(pipelines, name), parameters, **options)
    steps = {name: [step.status, step.attempts] for name, step in result.steps.items()}
    value = result.value if result.status == "succeeded" else None
    found = {"id": result.id, "status": result.status, "value": value, "error": result.error, "steps": steps}
    print(json.dumps(found))
