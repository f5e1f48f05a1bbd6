"""The shipped examples, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import anyio
import pytest
from aiohttp.test_utils import TestClient, TestServer

from evpipe.bus.server import ServerProcess
from evpipe.examples import breast_cancer, curve_scripts, file_words, service, stdlib_report, unreliable
from evpipe.sdk.hook import Mode


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_standard_library_report(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's main command: every part is analysed, `publish` is tried again, the sum is that of the parts."""
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(stdlib_report, "_attempts", iter(range(1, 9)))
    result = stdlib_report.report.options(mode=mode).run(parts=3)
    assert result.steps["publish"].attempts == 2
    files = [result.steps[name].value["files"] for name in ("analyse", "analyse-2", "analyse-3")]
    assert result.value.startswith(f"{sum(files)} modules")
    assert sum(files) > 100


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("mode", get_args(Mode))
def test_models_of_tumours(mode: Mode, data_dir: Path) -> None:
    """The README's main command: the same model and scores in every mode, and a plot that is a picture."""
    result = breast_cancer.choose_model.options(mode=mode).run(models=("logistic", "forest"))
    assert result.error == ""
    assert (result.value["chosen"], result.value["accuracy"] > 0.95) == ("logistic", True)
    assert result.value["plot"].read_bytes().startswith(b"\x89PNG")
    model = result.steps["train-forest"].value
    assert type(model).__module__ == "sklearn.pipeline"
    again = breast_cancer.choose_model.options(mode=mode).run(models=("logistic", "forest"))
    assert again.value["auc"] == result.value["auc"]
    cached = [name for name, step in again.steps.items() if step.status == "cached"]
    assert len(cached) == 7


@pytest.mark.parametrize("mode", get_args(Mode))
def test_words_of_files(mode: Mode, data_dir: Path) -> None:
    """Files come back with their content, the report with all that is in it."""
    result = file_words.word_counts.options(mode=mode).run(files=3, lines=50)
    report = result.value
    assert sorted(str(file.relative_to(report)) for file in report.rglob("*.tsv")) == [
        "parts/part-00.tsv",
        "parts/part-01.tsv",
        "parts/part-02.tsv",
        "total.tsv",
    ]
    total = sum(int(line.split("\t")[1]) for line in (report / "total.tsv").read_text().splitlines())
    assert total == 3 * 50 * 12


@pytest.mark.parametrize("mode", get_args(Mode))
def test_scripts_that_fit_curves(mode: Mode, data_dir: Path) -> None:
    """The curve of the right degree is found by scripts that know nothing of pipelines."""
    result = curve_scripts.best_curve.options(mode=mode).run(degrees=(1, 3))
    assert result.value["degree"] == 3
    assert [round(number) for number in result.value["coefficients"]] == [0, -2, 0, 1]
    assert result.steps["fit-2"].value["said"] == [f"degree 3: error {result.value['error']:.3f}"]


@pytest.mark.parametrize("mode", ["local", "bus"])
def test_what_is_unreliable(mode: Mode, data_dir: Path) -> None:
    """What fails is tried again, what hangs is killed, and the run goes on without it."""
    unreliable._calls.clear()
    result = unreliable.gather.options(mode=mode).run(failures=2)
    assert result.value == "what archive has; no answer in time; what index has"
    assert result.steps["fetch"].attempts == 3
    assert (result.steps["stall"].status, result.steps["stall"].reason) == ("failed", "timeout")


def test_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is submitted over HTTP, its events are streamed to its end, and the subscription counts it."""

    async def main() -> None:
        async with TestClient(TestServer(service.create_app())) as client:
            for body, problem in (("{", "no JSON"), ("[]", "must be an object"), ('{"txt": "a"}', "did you mean")):
                refused = await client.post("/runs", data=body)
                assert (refused.status, problem in await refused.text()) == (400, True), await refused.text()
            headers = {"Idempotency-Key": "monday"}
            submitted = [await client.post("/runs", json={"text": "a b c"}, headers=headers) for _ in range(2)]
            assert [answer.status for answer in submitted] == [202, 202]
            first, second = [(await answer.json())["id"] for answer in submitted]
            assert first == second
            stream = await (await client.get(f"/runs/{first}/events")).text()
            assert '"kind": "finished"' in stream.splitlines()[-2]
            shown = await (await client.get(f"/runs/{first}")).json()
            assert shown == {"status": "succeeded", "value": 3}
            assert (await client.get("/runs/nobody00")).status == 404
            with anyio.fail_after(20):
                while (await (await client.get("/finished")).json()) != {"succeeded": 1}:
                    await anyio.lowlevel.checkpoint()

    with ServerProcess(tmp_path / "nats") as server:
        monkeypatch.setenv("EVPIPE_NATS_URL", server.url)
        anyio.run(main)
