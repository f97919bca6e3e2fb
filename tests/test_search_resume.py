"""A search that is killed with SIGKILL goes on to the same ranking; and what it chooses by does not know the reference."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casebook import CaseRow, Cohort, Layer, describe_case, open_case, write_case
from rayters.training.model import Model, load_model
from rayters.tuning.criterion import at_level_0, noisy_agreement, reference_agreement

SEARCH = """
import sys, time
from pathlib import Path
from rayters.methods import MajorityVote, RobustLoss
from rayters.tuning.search import Budget, Plan, search
from rayters.tuning.space import Space
from rayters.tuning.sweep import read_result, write_result

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)

def sweep(trials, may_stop):  # what run_trials does, without a Ray to wait for
    for trial in trials:
        if read_result(folder, trial) is None:
            time.sleep(0.3)
            worth = trial["candidate"].get("RobustLoss.power", 0.4) - trial["seed"] / 10
            write_result(folder, trial, {"dice": worth, "ece": 0.1, "seconds": 0.3})
    return [read_result(folder, trial) for trial in trials]

plan = Plan(space=Space(methods=(MajorityVote, RobustLoss), only=("power", "dice")), seeds=2, at_once=2)
for found in search(plan, Budget(trials=4), sweep):
    pass
for each in found:
    print("RANK", each.number, dict(each.candidate), round(each.mean("dice"), 6))
"""


def start(script: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)


def ranking(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return [line for line in out.splitlines() if line.startswith("RANK")]


def test_a_killed_search_ends_with_the_ranking_of_an_undisturbed_one(tmp_path: Path) -> None:
    script = tmp_path / "search_job.py"
    script.write_text(SEARCH)
    killed = start(script, tmp_path / "killed")
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "killed").glob("*.json"))) < 6:  # of twelve trainings, in the second generation
        assert killed.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline, "the search measured nothing"
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    left = len(list((tmp_path / "killed").glob("*.json")))
    assert left < 12
    resumed = ranking(start(script, tmp_path / "killed"))
    assert resumed == ranking(start(script, tmp_path / "whole"))
    assert len(resumed) == 6  # two defaults and four trials, of two seeds each


def small_case(folder: Path, *, with_reference: bool) -> tuple[Cohort, CaseRow]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (1, 32, 32), dtype=np.uint8)
    blob = np.zeros((32, 32), np.uint8)
    blob[8:24, 8:24] = 1
    layers = {Layer(id="anna"): blob, Layer(id="ben"): np.roll(blob, 3, axis=0)}
    if with_reference:
        layers[Layer(id="gold", role="reference")] = 1 - blob
    url = str(folder / "case.ome.zarr")
    write_case(url, image, spacing_um=(1.0, 1.0), classes=("background", "digit"), layers=layers)
    row = describe_case(open_case(url), split="validation", group="g")
    cohort = Cohort(
        url=str(folder), name="small", classes=("background", "digit"), annotators=("anna", "ben"), stable_annotators=True,
        reference="gold" if with_reference else None, licence=None, cases=(row,),
    )  # fmt: skip
    return cohort, row


@pytest.fixture
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def test_the_criterion_reads_the_annotators_and_never_the_reference(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, row = small_case(tmp_path / "with", with_reference=True)
    read: list[str] = []
    plain = type(open_case(row.url)).read_labels

    def noted(self: object, layers: tuple[str, ...], *where: object) -> object:
        read.extend(layers)
        return plain(self, layers, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(type(open_case(row.url)), "read_labels", noted)
    noisy_agreement(model, cohort)
    assert set(read) == {"anna", "ben"}
    reference_agreement(model, cohort)
    assert "gold" in read  # only where it is asked for, to be reported


def test_the_criterion_is_the_same_without_any_reference_on_disk(tmp_path: Path, model: Model) -> None:
    told, _ = small_case(tmp_path / "with", with_reference=True)
    untold, _ = small_case(tmp_path / "without", with_reference=False)
    assert noisy_agreement(model, told) == noisy_agreement(model, untold)
    assert reference_agreement(model, untold) is None
    shutil.rmtree(tmp_path / "with")


def test_a_coarse_model_is_judged_on_the_finest_level(tmp_path: Path, model: Model) -> None:
    cohort, _ = small_case(tmp_path, with_reference=False)
    coarse = replace(model, run=replace(model.run, downsampling=2))
    assert noisy_agreement(coarse, cohort).dice.keys() == {"case"}
    edge = np.stack([np.eye(4, dtype=np.float32)] * 2) / 2 + 0.25
    fine = at_level_0(edge, (7, 8), 2)
    assert fine.shape == (2, 7, 8)
    assert np.allclose(at_level_0(np.full((2, 4, 4), 0.5, np.float32), (7, 8), 2), 0.5)
