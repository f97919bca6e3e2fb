"""What other programs get must come back as it was."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from casebook import IGNORE, CaseFormatError, Layer, describe_case, write_case, write_cohort
from casebook.exports.geojson import outlines, write_geojson
from casebook.exports.nifti import write_nifti
from casebook.formats.geojson import open_polygons
from casebook.formats.nifti import open_nifti
from casebook.formats.opened import Frame
from rayters import gaze
from rayters.gaze import FixedGaze, FoveationGaze
from rayters.inference.export_net import export_net
from rayters.methods import AnnotatorConfusion, MajorityVote, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.training.model import Model, build_net
from rayters.training.run import Run

ROOT = Path(__file__).parents[1]
CLASSES = ("background", "tumour", "stroma")


@settings(max_examples=150, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, IGNORE])))
def test_polygons_rasterise_to_the_labels_they_came_from(labels: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.geojson"
        write_geojson(path, labels, CLASSES)
        again = open_polygons(path, labels.shape, CLASSES).read((0, 0), labels.shape)
    assert np.array_equal(again, labels)


def test_a_ring_with_a_hole_is_two_rings_of_four_corners() -> None:
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    outer, hole = outlines(mask)
    assert sorted(set(outer)) == [(0, 0), (0, 3), (3, 0), (3, 3)]
    assert sorted(set(hole)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len(outer) == len(hole) == 5


def test_rings_touch_at_a_corner_and_never_cross() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    shapely = pytest.importorskip("shapely")
    outer, *holes = outlines(mask)
    polygon = shapely.Polygon(outer, holes)
    assert polygon.is_valid
    assert polygon.area == mask.sum()


def test_coordinates_are_pixels_of_level_0(tmp_path: Path) -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 2] = 2
    assert write_geojson(str(tmp_path / "a.geojson"), labels, CLASSES, scale=(2, 2)) == 1
    again = open_polygons(str(tmp_path / "a.geojson"), (8, 8), CLASSES).read((0, 0), (8, 8))
    assert np.array_equal(again, labels.repeat(2, 0).repeat(2, 1))


def oblique() -> Frame:
    """Slices 2.5 mm apart, tilted by 20 degrees around x."""
    c, s = np.cos(0.35), np.sin(0.35)
    columns = np.array([[0, -s, c], [0, c, s], [1, 0, 0]]).T * (2.5, 0.7, 0.7)
    return Frame(origin=(-12.0, 30.5, 7.25), matrix=tuple(tuple(row) for row in columns.tolist()))


def test_a_nifti_lies_in_the_patient_where_the_image_lay(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (5, 7, 9), dtype=np.uint8)
    write_nifti(str(tmp_path / "a.nii.gz"), labels, (2500.0, 700.0, 700.0), oblique())
    again = open_nifti(str(tmp_path / "a.nii.gz"))
    assert again.frame is not None
    assert np.array_equal(np.asarray(again.pixels)[0], labels)
    np.testing.assert_allclose(again.spacing_um or (), (2500, 700, 700), rtol=1e-5)
    np.testing.assert_allclose(again.frame.matrix, oblique().matrix, atol=1e-5)
    np.testing.assert_allclose(again.frame.origin, oblique().origin, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 6, 8), (6, 8)])
def test_a_nifti_without_a_frame_keeps_pixels_and_spacing(shape: tuple[int, ...], tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    spacing = (3000.0, 500.0, 250.0)[-len(shape) :]
    write_nifti(str(tmp_path / "a.nii.gz"), labels, spacing)
    again = open_nifti(str(tmp_path / "a.nii.gz"))
    assert np.array_equal(np.asarray(again.pixels)[0], labels)
    np.testing.assert_allclose(again.spacing_um or (), spacing, rtol=1e-6)


def test_a_dicom_seg_comes_back_on_the_series_it_refers_to(shared: Path, tmp_path: Path) -> None:
    from casebook.exports.dicom_seg import write_dicom_seg
    from casebook.formats.dicom import open_dicom, read_segmentation

    series = shared / "data/dicom/dcmqi/ct-3slice"
    image = open_dicom(str(series))
    labels = np.zeros(image.pixels.shape[1:], np.uint8)
    labels[0, 100:200, 150:300], labels[1:, 250:260, 40:90], labels[2, :5] = 1, 2, IGNORE
    write_dicom_seg(str(tmp_path / "a.dcm"), labels, CLASSES, str(series), made_by="rayters")
    again = read_segmentation(str(tmp_path / "a.dcm"), image, CLASSES)
    assert np.array_equal(again, np.where(labels == IGNORE, 0, labels))
    with pytest.raises(CaseFormatError, match="another one"):
        write_dicom_seg(str(tmp_path / "b.dcm"), labels[:2], CLASSES, str(series), made_by="rayters")
    with pytest.raises(CaseFormatError, match="nothing was drawn"):
        write_dicom_seg(str(tmp_path / "b.dcm"), np.zeros_like(labels), CLASSES, str(series), made_by="rayters")


@pytest.mark.parametrize("patch_px", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("look", [FixedGaze(), FoveationGaze()], ids=str)
@pytest.mark.parametrize("method", [MajorityVote(), AnnotatorConfusion()], ids=str)
def test_an_exported_net_says_what_the_model_says(
    method: Method, look: gaze.Gaze, patch_px: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    run = Run(method=method, gaze=look, network=UNet(width=4), patch_px=patch_px)  # type: ignore[arg-type]
    task = Task(
        channels=2, classes=3, annotators=2, patch_px=patch_px, view_scales=look.scales(), mean=(9.0, 8.0), std=(2.0, 3.0)
    )  # fmt: skip
    net = build_net(run, task).eval()
    model = Model(run=run, task=task, classes=CLASSES, annotators=("a", "b"), measured={}, net=net)
    export_net(model, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    views = torch.rand(3, len(look.scales()), 2, *patch_px) * 20
    scaled = (views - torch.tensor([9.0, 8.0]).view(1, 1, 2, *(1,) * len(patch_px))) / torch.tensor([2.0, 3.0]).view(
        1, 1, 2, *(1,) * len(patch_px)
    )
    torch.testing.assert_close(program(views), method.predict(net(scaled)).posterior)


def test_the_job_exports_every_case_and_names_those_without_the_layer(tmp_path: Path) -> None:
    labels = np.zeros((40, 50), np.uint8)
    labels[5:9, 6:20] = 1
    rows = []
    for name, layers in (("a", {Layer(id="anna"): labels}), ("b", {Layer(id="ben"): labels})):
        image = np.zeros((1, 40, 50), np.uint8)
        case = write_case(f"{tmp_path}/c/{name}.ome.zarr", image, spacing_um=(1, 1), classes=CLASSES, layers=layers)
        rows.append(describe_case(case, split="test", group=name))
    write_cohort(tmp_path / "c", rows, name="toy", classes=CLASSES)
    command = [sys.executable, str(ROOT / "jobs/export.py"), "--format", "geojson", "--cohort", str(tmp_path / "c")]
    done = subprocess.run(
        [*command, "--layer", "anna", "--to", str(tmp_path / "out")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert "failed   b: no layer 'anna': the case has ben" in done.stdout, done.stderr
    again = open_polygons(str(tmp_path / "out/a.geojson"), (40, 50), CLASSES).read((0, 0), (40, 50))
    assert np.array_equal(again, labels)
