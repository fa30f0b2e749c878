"""report.json: written only when it fits the published schema, refused when damaged."""

import dataclasses
import json
import time

import jsonschema
import pytest
import torch

from app.pipelines import _licences
from app.report import InputFile, Licence, Quality, Report, read_report, schema, write_report
from app.stopwatch import StageCost, Stopwatch
from splat.errors import InputError
from splat.progress import Progress
from splat.similarity import Similarity


def report(**changes) -> Report:
    plain = Report(
        command="photos",
        inputs=[InputFile("a.jpg", "0" * 64, True, None), InputFile("b.jpg", "f" * 64, False, "too few matches")],
        scale="arbitrary",
        result_from_input=Similarity(torch.eye(3), torch.tensor([1.0, 2, 3]), 2.0),
        seed=0,
        device="cpu",
        backend="native",
        gaussians=10,
        stages=[StageCost("fit", 1.5, 2.0, 300.0)],
        train=Quality(25.0, 0.9, None, 8),
        holdout=None,
        licences=[Licence("XFeat", "Apache-2.0")],
    )
    return dataclasses.replace(plain, **changes)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_round_trip_and_documented_keys(tmp_path):
    write_report(report(), tmp_path / "report.json")
    back = read_report(tmp_path)
    documented = (
        "status inputs frame scale device backend seed versions stages gaussians metrics warnings fallbacks licences".split()
    )
    assert set(documented) <= set(back)
    assert back["inputs"][1] == {
        "name": "b.jpg",
        "sha256": "f" * 64,
        "placed": False,
        "reason": "too few matches",
        "holdout": False,
    }
    assert back["metrics"] == {"train": {"psnr": 25.0, "ssim": 0.9, "lpips": None, "n": 8}, "holdout": None}
    assert back["result_from_input"] == [[2, 0, 0, 1], [0, 2, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]
    assert back["stages"] == [{"name": "fit", "seconds": 1.5, "cpu_seconds": 2.0, "peak_mb": 300.0}]
    assert "torch" in back["versions"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": "furlongs"}, {"inputs": [InputFile("a.jpg", "short", True, None)]}, {"gaussians": -1},
        {"train": Quality(float("nan"), 0.5, None, 1)}, {"train": Quality(20.0, 0.5, None, 0)}, {"warnings": [3]},
    ],
)  # fmt: skip
def test_a_report_that_does_not_fit_is_not_written(tmp_path, wrong):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        write_report(report(**wrong), tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_report(tmp_path):
    with pytest.raises(InputError, match="not a result folder"):
        read_report(tmp_path)
    write_report(report(), tmp_path / "report.json")
    plain = json.loads((tmp_path / "report.json").read_text())
    del plain["frame"]
    (tmp_path / "report.json").write_text(json.dumps(plain))
    with pytest.raises(InputError, match="frame"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        read_report(tmp_path)


def test_only_the_weights_that_were_used_are_listed():
    assert _licences({"reprojection_px": 0.5, "xfeat": 0.0}) == _licences({}) == []
    assert {found.name for found in _licences({"xfeat": 1.0})} == {"XFeat features", "LighterGlue matcher"}


def test_the_stopwatch_books_time_and_memory_to_the_stage_that_spent_them():
    before = time.monotonic()
    watch = Stopwatch()
    watch.go_on_from([StageCost("poses", 5.0, 4.0, 1.0)])
    try:
        watch.note(Progress("poses", 1, 1))
        until_then = time.monotonic() - before
        time.sleep(0.2)
        busy_until = time.process_time() + 0.2
        watch.note(Progress("fit", 1, 2))  # a first event at step 1 has worked before it
        while time.process_time() < busy_until:
            pass
        watch.note(Progress("mesh", 0, 1))  # one at step 0 opens its stage: the time before was the fit's
        time.sleep(0.15)
        watch.split()
    finally:
        watch.stop()
    costs = watch.costs
    assert 5.0 <= costs["poses"].seconds <= 5.0 + until_then
    assert costs["fit"].seconds > 0.39 and costs["mesh"].seconds > 0.14
    assert 0.15 < costs["fit"].cpu_seconds < 0.35 and costs["mesh"].cpu_seconds < 0.1
    assert all(cost.peak_mb > 10 for cost in (costs["fit"], costs["mesh"]))
