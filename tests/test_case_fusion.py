"""Fusing whole cases, block by block."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from casebook import (
    IGNORE,
    Case,
    CaseRow,
    Layer,
    add_layer,
    describe_case,
    open_case,
    open_cohort,
    write_case,
    write_cohort,
)
from rayters.annotators import fuse
from rayters.annotators.case_fusion import FusedSource, blocks, count_case, recipe, spatial_staple_case, staple_model
from rayters.annotators.digits import digit_sheets
from rayters.annotators.fuse import count_patterns, dawid_skene, majority_vote

ROOT = Path(__file__).parents[1]
NAMES = ("good", "over", "under", "wrong", "blank")


def sheet(url: str, seed: int = 0) -> tuple[Case, np.ndarray]:
    """A case with five annotators and a reference, and the annotators' layers."""
    drawn = digit_sheets(sheets=1, rows=2, columns=3, seed=seed)
    layers = drawn.labels[0].copy()
    layers[2, :10] = IGNORE
    named = {Layer(id=name): layers[a] for a, name in enumerate(NAMES)}
    named[Layer(id="reference", role="reference")] = drawn.reference[0]
    return write_case(url, drawn.images[0], spacing_um=(1.0, 1.0), classes=drawn.classes, layers=named), layers


def test_blocks_cover_every_pixel_once() -> None:
    for shape in ((7, 13), (20, 7, 13)):
        seen = np.zeros(shape, dtype=int)
        for origin, size in blocks(shape, 5):
            seen[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))] += 1
        assert (seen == 1).all()


def test_counting_in_blocks_is_counting_at_once() -> None:
    case, layers = sheet("memory://fusion/count.ome.zarr")
    found, whole = count_case(case, NAMES, block_px=17), count_patterns(layers)
    assert np.array_equal(found.patterns, whole.patterns)
    assert np.array_equal(found.counts, whole.counts)


def test_a_source_read_in_parts_is_the_fusion_of_the_whole() -> None:
    case, layers = sheet("memory://fusion/source.ome.zarr")
    model = dawid_skene(layers, classes=2)
    for source, expected in (
        (FusedSource(case=case, annotators=NAMES), majority_vote(layers, classes=2)),
        (FusedSource(case=case, annotators=NAMES, model=model), model.fuse(layers).layer),
    ):
        parts = np.full(source.shape, 99, dtype=np.uint8)
        for origin, size in blocks(source.shape, 20):
            parts[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))] = source.read(origin, size)
        assert np.array_equal(parts, expected)


def test_staple_from_patterns_is_staple_from_pixels() -> None:
    case, layers = sheet("memory://fusion/staple.ome.zarr")
    model = staple_model(count_case(case, NAMES), classes=2)
    pixels = fuse.staple(layers, classes=2)
    assert np.allclose(model.confusion, pixels.confusion, atol=1e-4)
    assert np.array_equal(model.fuse(layers).layer, pixels.layer)


def test_a_balanced_background_does_not_outweigh_what_was_marked() -> None:
    layers = np.zeros((3, 200, 200), dtype=np.uint8)
    layers[:, :10, :10] = 1
    layers[0, :10, :20] = 1  # marks twice the area
    patterns = count_patterns(layers)
    assert staple_model(patterns, classes=2).confusion[0, 0, 0] > 0.99
    assert staple_model(patterns, classes=2, balanced=True).confusion[0, 0, 0] < 0.8


def test_identity_tells_two_fusions_apart() -> None:
    case, layers = sheet("memory://fusion/identity.ome.zarr")
    vote = FusedSource(case=case, annotators=NAMES)
    other = FusedSource(case=case, annotators=NAMES, model=dawid_skene(layers, classes=2))
    assert vote.identity == FusedSource(case=case, annotators=NAMES).identity
    assert len({vote.identity, other.identity, FusedSource(case=case, annotators=NAMES[:3]).identity}) == 3


def test_a_recipe_tells_how_a_layer_was_made_and_not_on_which_machine() -> None:
    model = dawid_skene(sheet("memory://fusion/recipe.ome.zarr")[1], classes=2)
    same = replace(model, confusion=model.confusion + 1e-12)
    other = replace(model, confusion=model.confusion[::-1])
    noted = recipe("dawid-skene", NAMES, model=model)
    assert noted.startswith("rayters dawid-skene ")
    assert recipe("dawid-skene", NAMES, model=same) == noted
    others = {
        recipe("dawid-skene", NAMES, model=other),
        recipe("dawid-skene", NAMES[:3], model=model),
        recipe("staple", NAMES),
        recipe("staple", NAMES, balanced=True),
    }
    assert len(others | {noted}) == 5


def test_spatial_staple_refuses_what_does_not_fit() -> None:
    case, _ = sheet("memory://fusion/spatial.ome.zarr")
    assert spatial_staple_case(case, NAMES).shape == case.shapes[0]
    with pytest.raises(ValueError, match="in memory"):
        spatial_staple_case(case, NAMES, most_pixels=100)


def cohort(folder: Path, *, stable: bool = True) -> list[CaseRow]:
    rows = []
    for number in range(3):
        case, _ = sheet(f"{folder}/case-{number}.ome.zarr", seed=number)
        rows.append(describe_case(open_case(case.url), split="train", group=str(number)))
    write_cohort(folder, rows, name="sheets", classes=rows and ("background", "digit"), annotators=NAMES,
                 stable_annotators=stable, reference="reference", licence=None)  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def job() -> Any:
    """jobs/fuse.py as a module."""
    spec = importlib.util.spec_from_file_location("fuse_job", ROOT / "jobs/fuse.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuse_job"] = module
    spec.loader.exec_module(module)
    return module


def test_a_case_is_fused_once_and_then_left_alone(job: Any, tmp_path: Path) -> None:
    case, layers = sheet(f"{tmp_path}/case.ome.zarr")
    what = job.Job(cohort=str(tmp_path), how="vote")
    first, second = (job.fuse_case(what, NAMES, case.url, "case", None, "reference") for _ in range(2))
    assert (first.state, second.state) == ("fused", "left alone")
    case = open_case(case.url)
    assert case.annotators == NAMES  # a fusion is no annotator
    assert next(layer.role for layer in case.layers if layer.id == "fused-vote") == "fusion"
    stored = case.read_labels(("fused-vote",), 0, (0, 0), case.shapes[0])[0]
    assert np.array_equal(stored, majority_vote(layers, classes=2))
    assert np.array_equal(first.dice[0], first.dice[1])  # the vote is the vote


def test_a_layer_that_was_made_otherwise_is_fused_again_and_a_strangers_is_left_alone(job: Any, tmp_path: Path) -> None:
    case, layers = sheet(f"{tmp_path}/case.ome.zarr")
    what = job.Job(cohort=str(tmp_path), how="dawid-skene")
    relearnt = dawid_skene(np.concatenate([layers[:, :20], layers[:, :20]], axis=1), classes=2)
    states = [
        job.fuse_case(what, annotators, case.url, "case", model, None).state
        for annotators, model in (
            (NAMES, dawid_skene(layers, classes=2)),
            (NAMES, dawid_skene(layers, classes=2)),  # learnt a second time, from the same
            (NAMES, relearnt),
            (NAMES[:4], dawid_skene(layers[:4], classes=2)),
        )
    ]
    assert states == ["fused", "left alone", "fused", "fused"]
    mine = Layer(id="by-hand", role="fusion", tool="a committee")
    add_layer(case.url, mine, np.zeros(case.shapes[0], np.uint8))
    kept = job.Job(cohort=str(tmp_path), how="vote", layer="by-hand")
    assert job.fuse_case(kept, NAMES, case.url, "case", None, None).state == "left alone"
    assert job.fuse_case(replace(kept, replace=True), NAMES, case.url, "case", None, None).state == "fused"


@pytest.mark.parametrize("how", ["staple", "spatial-staple"])
def test_every_way_of_fusing_a_single_case_works(job: Any, tmp_path: Path, how: str) -> None:
    case, _ = sheet(f"{tmp_path}/case.ome.zarr")
    done = job.fuse_case(job.Job(cohort=str(tmp_path), how=how), NAMES, case.url, "case", None, "reference")
    assert done.state == "fused", done.error
    assert done.dice[0, 0] > 0


def test_persons_that_are_none_and_layers_that_are_taken_are_refused(job: Any, tmp_path: Path) -> None:
    cohort(tmp_path, stable=False)
    with pytest.raises(ValueError, match="--how staple"):
        job.main(job.Job(cohort=str(tmp_path)))
    with pytest.raises(ValueError, match="'reference' is an annotator or the reference"):
        job.main(job.Job(cohort=str(tmp_path), how="vote", layer="reference"))


def test_a_worker_that_is_lost_costs_its_own_case_only(
    job: Any,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cohort(tmp_path)
    fuse_case = job.fuse_case

    def killed_at_the_second(what: Any, annotators: Any, url: str, name: str, model: Any, reference: Any) -> Any:
        if name == "case-1":
            os.kill(os.getpid(), signal.SIGKILL)
        return fuse_case(what, annotators, url, name, model, reference)

    monkeypatch.setattr(job, "fuse_case", killed_at_the_second)
    monkeypatch.setattr(job, "connected", nullcontext)  # the session's Ray
    ray.cloudpickle.register_pickle_by_value(job)  # which cannot import a job
    assert job.main(job.Job(cohort=str(tmp_path), how="vote", json=str(tmp_path / "rows.json"))) == 1
    found = {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert (found["cases fused"], found["cases failed"]) == (2, 1)
    assert "failed   case-1: " in capsys.readouterr().out


def test_a_cohort_is_learnt_from_by_the_layers_that_are_named(job: Any, tmp_path: Path) -> None:
    rows = cohort(tmp_path, stable=False)
    for row in rows:
        job.fuse_case(job.Job(cohort=str(tmp_path), how="staple"), NAMES, row.url, row.case, None, None)
    whole = open_cohort(tmp_path)
    fused = whole.learning_from(("fused-staple",))
    assert fused.annotators == ("fused-staple",)
    assert fused.reference is None
    assert fused.stable_annotators  # STAPLE is the same in every case, whoever the annotators are
    assert [row.annotators for row in fused.cases] == [("fused-staple",)] * 3
    assert [row.foreground for row in fused.cases] == [row.foreground for row in whole.cases]
    assert not whole.learning_from(("fused-staple", "good")).stable_annotators
    with pytest.raises(ValueError, match="case 'case-0' has no layer fused-vote, it has good, over.*fused-staple"):
        whole.learning_from(("fused-vote",))
    with pytest.raises(ValueError, match="name one"):
        whole.learning_from(())


def test_a_case_that_is_only_tested_needs_no_layer_to_learn_from(tmp_path: Path) -> None:
    rows = cohort(tmp_path)
    mixed = replace(open_cohort(tmp_path), cases=(rows[0], replace(rows[1], split="test")))
    add_layer(rows[0].url, Layer(id="fused", role="fusion"), np.zeros(rows[0].shape, np.uint8))
    assert [row.annotators for row in mixed.learning_from(("fused",)).cases] == [("fused",), ()]


def test_the_job_fuses_a_cohort_and_loses_nothing_to_a_broken_case(tmp_path: Path) -> None:
    rows = cohort(tmp_path)
    (Path(rows[2].url) / "zarr.json").write_text("{")
    command = [sys.executable, str(ROOT / "jobs/fuse.py"), "--cohort", str(tmp_path), "--json", "rows.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "failed   case-2" in done.stdout
    found = {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert (found["cases fused"], found["cases failed"]) == (2, 1)
    assert found["dawid-skene / vote, Dice with the reference"] > 0
    for row in rows[:2]:
        assert "fused-dawid-skene" in [layer.id for layer in open_case(row.url).layers]
