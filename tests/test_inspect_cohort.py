"""What a person should look at in a cohort is found, told and drawn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casebook import Layer, describe_case, open_cohort, write_case, write_cohort
from rayters.reports.cohort_agreement import best_shift, look

ROOT = Path(__file__).parents[1]


def disc(y, x, radius=12):
    rows, columns = np.ogrid[:80, :80]
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)


@pytest.fixture
def cohort(tmp_path):
    """Anna and ben agree; carl's drawing is displaced, dora drew nothing, and emil marked something else."""
    drawn = {
        "anna": disc(40, 30),
        "ben": disc(40, 31),
        "carl": disc(40, 50),
        "dora": disc(0, 0, 0),
        "emil": disc(65, 65, 8),
    }
    image = np.random.default_rng(0).integers(0, 255, (3, 80, 80), dtype=np.uint8)
    layers = {Layer(id=who): mask for who, mask in drawn.items()}
    case = write_case(tmp_path / "c/cases/a.ome.zarr", image, spacing_um=(1, 1), classes=("bg", "fg"), layers=layers)
    return write_cohort(tmp_path / "c", [describe_case(case, split="train", group="a")], name="c", classes=("bg", "fg"))


def test_a_displaced_drawing_is_found_with_its_shift():
    shift, before, after = best_shift(disc(40, 30), disc(33, 50))
    assert shift == (7, -20)
    assert before < 0.3
    assert after == pytest.approx(1)


def test_suspicious_pairs_are_the_displaced_the_empty_and_the_disjoint(cohort):
    looked = look(cohort)
    why = {pair: reason for _, pair, _, reason in looked.suspicious}
    assert "anna - ben" not in why
    assert "displaced: moved by (0, -20) px" in why["anna - carl"]
    assert {"anna - dora", "anna - emil"} <= why.keys()
    assert looked.drew == {"anna": 1, "ben": 1, "carl": 1, "dora": 1, "emil": 1}


def test_the_job_prints_the_tables_and_draws_the_pictures(cohort, tmp_path):
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "storage"))
    command = [sys.executable, str(ROOT / "jobs/inspect_cohort.py"), "--cohort", cohort.url]
    command += ["--pictures", str(tmp_path / "pictures"), "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 0, done.stderr
    assert "Cohen kappa" in done.stdout
    assert "displaced" in done.stdout
    rows = {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["Dice anna - ben"] > 0.9
    assert rows["Cohen anna - emil"] < 0.05
    for name in ("cases.png", "agreement.png"):
        assert np.asarray(Image.open(tmp_path / "pictures" / name).convert("L")).std() > 10


def test_a_case_that_cannot_be_read_is_told_and_the_others_are_looked_at(cohort, tmp_path):
    (tmp_path / "c/cases/a.ome.zarr/zarr.json").unlink()
    looked = look(open_cohort(cohort.url))
    assert [case for case, _ in looked.failed] == ["a"]
