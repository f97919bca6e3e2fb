"""Whole cohorts predicted on Ray: what lies on disk afterwards, and that nothing which dies on the way changes a byte of it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from casebook import CaseRow, Cohort, Layer, describe_case, open_case, open_cohort, write_case, write_cohort
from casebook.errors import CaseNotFoundError
from rayters.gaze import FoveationGaze
from rayters.inference.predict import predict_region
from rayters.inference.predict_cohort import Pool, predict_cohort
from rayters.inference.tiling import Tiling
from rayters.inference.weights import pack
from rayters.inference.work import Blocks, Done, plan_work, predict_here, to_do, whole_cases
from rayters.inference.writing import Output
from rayters.methods import AnnotatorConfusion, MajorityVote
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.training.model import Model, build_net, load_model, save_model
from rayters.training.run import Run

ROOT = Path(__file__).parents[1]
CLASSES = ("background", "tumour")
ANNOTATORS = ("anna", "ben")
POOL = Pool(workers=2, cpus_per_worker=0.5)
SMALL = Output(block_mib=1)  # blocks of 1024 px, the smallest there are


def cohort_of(folder: Path, *shapes: tuple[int, ...], drawn: bool = True) -> Cohort:
    """Noise on a gradient, (C, *S) each; every annotator draws the bright half."""
    rows: list[CaseRow] = []
    for number, shape in enumerate(shapes):
        noise = np.random.default_rng(number).integers(0, 80, shape)
        image = (noise + np.linspace(0, 170, shape[-1]).astype(int)).astype(np.uint8)
        labels = (image[0] > 128).astype(np.uint8)
        layers = {Layer(id=name): labels for name in ANNOTATORS} if drawn else {}
        url = f"{folder}/cases/c{number}.ome.zarr"
        case = write_case(url, image, spacing_um=(0.5,) * (len(shape) - 1), classes=CLASSES, layers=layers)
        rows.append(describe_case(case, split="test", group=str(number)))
    rows = [replace(row, case=f"c{number}") for number, row in enumerate(rows)]
    return write_cohort(folder, rows, name="toy", classes=CLASSES, annotators=ANNOTATORS)


def model_at(
    folder: Path,
    *,
    channels: int = 1,
    patch_px: tuple[int, ...] = (64, 64),
    downsampling: int = 1,
    classes: tuple[str, ...] = CLASSES,
    plain: bool = False,
    seed: int = 0,
) -> str:
    """A model that nobody trained, saved; by default one with two fields of view and a confusion for each pixel."""
    torch.manual_seed(seed)
    run = Run(
        method=MajorityVote() if plain else AnnotatorConfusion(level="pixel"),
        gaze=FoveationGaze(fields_of_view=(1.0, 2.0)),
        network=UNet(width=4),
        patch_px=patch_px,
        downsampling=downsampling,
    )
    task = Task(
        channels=channels, classes=len(classes), annotators=2, patch_px=patch_px, view_scales=(1.0, 2.0),
        mean=(120.0,) * channels, std=(60.0,) * channels,
    )  # fmt: skip
    net = build_net(run, task)
    torch.nn.init.normal_(
        net.eye.foveate.layers[-1].weight
    )  # it looks at some places with one view, at some with the other
    folder.mkdir(parents=True)
    save_model(folder, Model(run=run, task=task, classes=classes, annotators=ANNOTATORS, measured={}, net=net))
    return str(folder)


def predicted(
    model: str,
    cohort: Cohort,
    output: Output = SMALL,
    skip_glass: bool | None = None,
    tiling: Tiling = Tiling(),
) -> list[Done]:
    """In this process."""
    packed = pack((model,))
    work = plan_work(packed, cohort, tiling=tiling, output=output, skip_glass=skip_glass)
    return [*predict_here(packed, cohort, work)]


def predicted_on_ray(model: str, cohort: Cohort, output: Output = SMALL) -> list[Done]:
    packed = pack((model,))
    work = plan_work(packed, cohort, tiling=Tiling(), output=output)
    return sorted(predict_cohort(packed, cohort, work, POOL), key=lambda done: done.case)


def pixels(url: str, level: int = 0) -> np.ndarray:
    case = open_case(url)
    return case.read_image(level, (0,) * len(case.shapes[level]), case.shapes[level]).astype(np.float32)


def open_zarr_attributes(url: str) -> dict[str, Any]:
    return dict(json.loads((Path(url) / "zarr.json").read_text())["attributes"]["ome"])


def layer(url: str, name: str, level: int = 0) -> np.ndarray:
    case = open_case(url)
    return case.read_labels((name,), level, (0,) * len(case.shapes[level]), case.shapes[level])[0]


def digest(folder: Path) -> dict[str, str]:
    """Every file below, by its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("downsampling", [1, 2])
def test_what_is_written_is_what_the_model_sees_in_the_whole_case(downsampling: int, tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 1100, 1300))
    model = model_at(tmp_path / "model", downsampling=downsampling)
    assert [done.state for done in predicted(model, cohort)] == ["predicted"]
    url = cohort.cases[0].url
    whole, maps = predict_region(load_model(model), open_case(url)), f"{cohort.url}/predictions/rayters/c0"
    posterior = open_case(f"{maps}/posterior.ome.zarr")
    assert posterior.spacing_um[0] == (0.5 * downsampling,) * 2
    assert posterior.intensity == (1 / 255, 0)
    # a block is another batch than the whole, which may turn the last bit, and with it one step of 255
    for name, seen in (
        ("posterior", whole.posterior), ("uncertainty", whole.uncertainty[None]), ("reliability", whole.reliability),
    ):  # fmt: skip
        assert seen is not None
        np.testing.assert_allclose(pixels(f"{maps}/{name}.ome.zarr") / 255, seen, atol=0.0021)
    assert whole.gaze is not None
    assert set(np.unique(whole.gaze)) == {1, 2}
    gaze, sure = open_case(f"{maps}/gaze.ome.zarr"), pixels(f"{maps}/gaze_uncertainty.ome.zarr")[0] / 255
    np.testing.assert_allclose(sure, whole.gaze_uncertainty, atol=0.0021)
    assert (np.abs(pixels(gaze.url)[0] * gaze.intensity[0] - whole.gaze) > 0.005).mean() < 1e-4
    assert whole.annotator_labels is not None
    for name, seen in (("rayters", whole.labels), ("rayters-ben", whole.annotator_labels[1])):
        on_grid = seen.repeat(downsampling, 0).repeat(downsampling, 1)[:1100, :1300]
        assert (layer(url, name) != on_grid).mean() < 1e-4
    roles = {each.id: each.role for each in open_case(url).layers}
    assert roles == {"anna": "annotator", "ben": "annotator"} | dict.fromkeys(
        ("rayters", "rayters-anna", "rayters-ben"), "prediction"
    )


def test_confusion_maps_hold_every_entry_of_every_annotators_matrix(tmp_path: Path) -> None:
    cohort, model = cohort_of(tmp_path / "cohort", (1, 150, 130)), model_at(tmp_path / "model")
    tiling = Tiling(confusion=True)
    assert [done.state for done in predicted(model, cohort, tiling=tiling)] == ["predicted"]
    url = f"{cohort.url}/predictions/rayters/c0/confusion.ome.zarr"
    names = [channel["label"] for channel in open_zarr_attributes(url)["omero"]["channels"]]
    assert names[:4] == [f"anna: {i} where {j}" for i in CLASSES for j in CLASSES]
    written = pixels(url).reshape(2, 2, 2, 150, 130) / 255  # annotator, what is written, where
    seen = predict_region(load_model(model), open_case(cohort.cases[0].url), tiling=tiling).confusion
    np.testing.assert_allclose(written, seen, atol=0.0021)
    np.testing.assert_allclose(written.sum(1), 1, atol=0.005)


def test_volumes_get_every_level_of_their_pyramid(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 20, 150, 300))
    model = model_at(tmp_path / "model", patch_px=(8, 64, 64))
    assert predicted(model, cohort)[0].state == "predicted"
    case = open_case(cohort.cases[0].url)
    assert len(case.shapes) > 1
    for level, shape in enumerate(case.shapes):
        assert layer(case.url, "rayters", level).shape == shape


def test_threads_give_the_same_bytes_as_one_after_the_other(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 1100, 1300), (1, 100, 90))
    packed = pack((model_at(tmp_path / "model", patch_px=(128, 128)),))
    for workers in (1, 2):
        output = replace(SMALL, to=str(tmp_path / str(workers)))
        work = plan_work(packed, cohort, tiling=Tiling(), output=output)
        assert {d.state for d in predict_here(packed, cohort, work, workers=workers)} == {"predicted"}
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_a_cohort_of_its_own_leaves_the_cases_as_they_were(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 200, 300), (1, 100, 90))
    before = digest(tmp_path / "cohort")
    model = model_at(tmp_path / "model", classes=("background", "another", "third"))
    found = predicted(model, cohort, replace(SMALL, to=str(tmp_path / "own")))
    assert [done.state for done in found] == ["predicted", "predicted"]
    assert digest(tmp_path / "cohort") == before
    rows = [done.row for done in found if done.row]
    own = write_cohort(tmp_path / "own", rows, name="own", classes=("background", "another", "third"))
    assert [row.case for row in open_cohort(own.url).cases] == ["c0", "c1"]
    case = open_case(own.cases[0].url)
    assert case.channels == 3
    assert [each.id for each in case.layers] == ["rayters", "rayters-anna", "rayters-ben"]
    assert np.array_equal(pixels(case.url).argmax(0)[:5], layer(case.url, "rayters")[:5])


def test_what_is_done_is_left_alone_until_the_model_changes(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90))
    model, another = model_at(tmp_path / "model"), model_at(tmp_path / "another", seed=1)
    assert [done.state for done in predicted(model, cohort)] == ["predicted"]
    first = digest(tmp_path / "cohort")
    assert [done.state for done in predicted(model, cohort)] == ["left alone"]
    assert digest(tmp_path / "cohort") == first
    assert [done.state for done in predicted(another, cohort)] == ["predicted"]
    second = digest(tmp_path / "cohort")
    assert second != first
    assert second.keys() == first.keys()


def test_what_is_to_do_does_not_depend_on_what_is_done(tmp_path: Path) -> None:
    # Ray asks again when a node with an answer was lost: another answer would leave the case unfinished for ever
    cohort = cohort_of(tmp_path / "cohort", (1, 1100, 90))
    packed = pack((model_at(tmp_path / "model"),))
    work = plan_work(packed, cohort, tiling=Tiling(), output=SMALL)
    before = to_do(work, "c0", cohort.cases[0].url)
    assert [row["block"] for row in before] == [0, 1]
    first = Blocks(work, (packed[0].unpack(),))(before[:1])[0]
    assert first["pixels"] == 1024 * 90
    assert to_do(work, "c0", cohort.cases[0].url) == before
    again = Blocks(work, (packed[0].unpack(),))(before[:1])[0]
    assert (again["state"], again["pixels"]) == ("predicted", 0)


def test_a_case_is_whole_when_every_block_has_come_however_often() -> None:
    def block(number: int, state: str = "predicted") -> dict[str, object]:
        return {
            "case": "a",
            "block": number,
            "of": 3,
            "state": state,
            "pixels": 5,
            "error": "lost" * (state == "failed"),
        }

    assert list(whole_cases([block(0), block(0), block(2), block(0)])) == []
    assert list(whole_cases([block(2), block(0), block(0), block(1), block(1)])) == [
        Done(case="a", state="predicted", pixels=15)
    ]
    assert [d.state for d in whole_cases([block(2), block(0, "failed"), block(1)])] == ["failed"]


def test_a_layer_that_somebody_drew_is_never_replaced(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90))
    done = predicted(model_at(tmp_path / "model"), cohort, replace(SMALL, name="anna"))
    assert done[0].state == "failed"
    assert "'anna' that is no prediction" in done[0].error
    assert layer(cohort.cases[0].url, "anna").any()


def test_a_case_without_labels_is_predicted_like_any_other(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90), drawn=False)
    assert predicted(model_at(tmp_path / "model"), cohort)[0].state == "predicted"
    assert set(np.unique(layer(cohort.cases[0].url, "rayters"))) <= {0, 1}


def test_a_method_that_says_nothing_about_annotators_writes_nothing_about_them(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90))
    assert predicted(model_at(tmp_path / "model", plain=True), cohort)[0].state == "predicted"
    assert [each.id for each in open_case(cohort.cases[0].url).layers] == ["anna", "ben", "rayters"]
    written = {path.name for path in (tmp_path / "cohort/predictions/rayters/c0").iterdir()}
    assert written == {"posterior.ome.zarr", "uncertainty.ome.zarr", "gaze.ome.zarr", "gaze_uncertainty.ome.zarr"}


def test_an_empty_slide_is_background(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    glass = np.full((3, 300, 300), 243, np.uint8)
    case = write_case(f"{folder}/cases/c0.ome.zarr", glass, spacing_um=(0.5, 0.5), classes=CLASSES, layers={})
    row = replace(describe_case(case, split="test", group="0"), case="c0")
    cohort = write_cohort(folder, [row], name="glass", classes=CLASSES, annotators=ANNOTATORS)
    assert predicted(model_at(tmp_path / "model", channels=3), cohort, skip_glass=True)[0].state == "predicted"
    assert not layer(case.url, "rayters").any()
    assert not pixels(f"{folder}/predictions/rayters/c0/uncertainty.ome.zarr").any()


def test_one_unreadable_case_does_not_stop_the_others(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90), (1, 100, 90), (1, 100, 90))
    shutil.rmtree(cohort.cases[0].url)
    next(Path(cohort.cases[1].url, "0").rglob("c/0/0/0")).write_bytes(b"no zstd frame")
    found = predicted(model_at(tmp_path / "model"), cohort)
    assert [done.state for done in found] == ["failed", "failed", "predicted"]
    assert "no whole case lies at" in found[0].error
    assert "cannot be decoded" in found[1].error


@pytest.mark.parametrize(
    ("channels", "classes", "says"),
    [
        (3, CLASSES, "trained on 3 channels"),
        (1, ("background", "digit"), "the model speaks of the classes background, digit"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_anything_is_written(
    channels: int, classes: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 100, 90))
    before = digest(tmp_path / "cohort")
    with pytest.raises(ValueError, match=says):
        predicted(model_at(tmp_path / "model", channels=channels, classes=classes), cohort)
    assert digest(tmp_path / "cohort") == before


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseNotFoundError, match="nowhere"):
        pack((str(tmp_path / "nowhere"),))


def job(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs/predict.py"), "--block-mib", "1", *arguments]


def markers(folder: Path) -> int:
    return sum(1 for _ in folder.rglob(".partial/0/*"))


def test_a_job_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "cohort", (1, 1100, 2200))
    shutil.copytree(tmp_path / "cohort", tmp_path / "copy")
    model = model_at(tmp_path / "model")
    assert predicted(model, cohort)[0].state == "predicted"

    command = job("--model", model, "--cohort", str(tmp_path / "copy"))
    victim = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not 1 <= markers(tmp_path / "copy") < 6:
        assert time.monotonic() < deadline, "no block was finished"
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert "rayters" not in {each.id for each in open_case(str(tmp_path / "copy/cases/c0.ome.zarr")).layers}
    again = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr[-2000:]
    one, other = digest(tmp_path / "cohort"), digest(tmp_path / "copy")
    assert other.keys() == one.keys()
    # the provenance of each image names the case that it was predicted from, which is another folder
    assert {name for name in one if one[name] != other[name]} <= {n for n in one if n.endswith("ome.zarr/zarr.json")}
    rows = {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["cases predicted"] == 1


def test_a_node_that_dies_in_mid_prediction_changes_nothing(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cohort = cohort_of(tmp_path / "cohort", (1, 1100, 2200))
    model = model_at(tmp_path / "model")
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert predicted(model, cohort, replace(SMALL, to=str(undisturbed)))[0].state == "predicted"
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)

        def kill() -> None:
            while markers(disturbed) < 1:
                time.sleep(0.02)
            cluster.remove_node(doomed, allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = predicted_on_ray(model, cohort, replace(SMALL, to=str(disturbed)))
        killer.join(timeout=60)
        assert found[0].state == "predicted", found[0].error
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert digest(disturbed) == digest(undisturbed)
