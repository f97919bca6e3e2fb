"""Folders become cohorts; what cannot be read is told and leaves the rest alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from casebook import CaseFormatError, CaseNotFoundError, open_case, open_cohort
from casebook.formats import Opened
from casebook.ingest import Ingest, ingest
from casebook.layout import match_files
from casebook.masks import parse_values, to_classes

DATA = Path(__file__).parents[2] / "shared" / "data"
ROOT = Path(__file__).parents[1]


def needs(folder):
    return pytest.mark.skipif(not (DATA / folder).exists(), reason=f"the data set {folder} is not beside the project")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for case in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / "in" / f"{case}.png", rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))
        for who in ("anna", "ben"):
            save(tmp_path / "in" / f"{case}_{who}.png", rng.integers(0, 2, (40, 30), dtype=np.uint8) * 255)
    return tmp_path / "in"


def test_a_folder_with_a_suffix_per_annotator_becomes_a_cohort(folder, tmp_path):
    outcome = ingest(Ingest(source=str(folder), to=str(tmp_path / "out"), group=r"p\d+"))
    cohort = open_cohort(tmp_path / "out")
    assert cohort == outcome.cohort
    assert [row.case for row in cohort.cases] == ["p1_a", "p1_b", "p2_a"]
    assert cohort.annotators == ("anna", "ben")
    assert [row.group for row in cohort.cases] == ["p1", "p1", "p2"]
    case = open_case(cohort.cases[0].url)
    mask = np.asarray(Image.open(folder / "p1_a_anna.png")) // 255
    assert (case.read_labels(("anna",), 0, (0, 0), (40, 30))[0] == mask).all()


def test_a_second_run_skips_what_is_there_and_takes_what_changed(folder, tmp_path):
    config = Ingest(source=str(folder), to=str(tmp_path / "out"))
    assert ingest(config).written == 3
    assert ingest(config).skipped == 3
    save(folder / "p2_a_ben.png", np.full((40, 30), 255, np.uint8))
    again = ingest(config)
    assert (again.written, again.skipped) == (1, 2)
    assert open_case(again.cohort.cases[2].url).read_labels(("ben",), 0, (0, 0), (40, 30)).all()


def test_several_cases_are_in_work_at_once(folder, tmp_path, monkeypatch):
    import casebook.ingest as module

    both = threading.Barrier(2)  # opens only when two threads stand before it
    opened = module.open_image

    def waits(path):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(20 if "p2" not in path else 0.01)
        return opened(path)

    monkeypatch.setattr(module, "open_image", waits)
    steps = []
    config = Ingest(source=str(folder), to=str(tmp_path / "out"), side_by_side=2)
    outcome = ingest(config, progress=lambda done, total, name: steps.append((done, total, name)))
    assert [row.case for row in outcome.cohort.cases] == ["p1_a", "p1_b", "p2_a"]
    assert [done for done, *_ in steps] == sorted(done for done, *_ in steps)
    assert steps[-1][:2] == (3, 3)
    assert {name for *_, name in steps} == {"p1_a", "p1_b", "p2_a"}
    assert not both.broken or both.n_waiting == 0


@dataclass(frozen=True, kw_only=True)
class Long:
    """A slide of 40 blocks, each of which takes a while."""

    reads: list
    shape: tuple = (1, 40 * 2048, 64)
    dtype: str = "uint8"
    identity: str = "long"

    def read(self, origin, size):
        self.reads.append(origin)
        time.sleep(0.05)
        return np.zeros((1, *size), np.uint8)


def test_what_ends_the_ingest_ends_the_slides_in_work_at_the_next_block(folder, tmp_path, monkeypatch):
    import casebook.ingest as module

    reads = []

    def opens(path):
        if "p1_a" in path:
            return Opened(pixels=Long(reads=reads))
        while len(reads) < 3:
            time.sleep(0.01)
        raise KeyboardInterrupt  # as Ctrl-C would

    monkeypatch.setattr(module, "open_image", opens)
    with pytest.raises(KeyboardInterrupt):
        ingest(Ingest(source=str(folder), to=str(tmp_path / "out"), side_by_side=2))
    assert 3 <= len(reads) < 30


KILLED = """
import sys, time
import casebook.ingest as module
opened = module.open_image
def slowly(path):
    time.sleep(0.2)
    return opened(path)
module.open_image = slowly
module.ingest(module.Ingest(source=sys.argv[1], to=sys.argv[2], side_by_side=2),
              progress=lambda done, total, name: print(int(done), flush=True))
"""


def test_killed_between_cases_it_goes_on_with_those_that_are_missing(tmp_path):
    for number in range(12):
        save(tmp_path / f"in/c{number:02}.png", np.full((40, 30, 3), number, np.uint8))
        save(tmp_path / f"in/c{number:02}_anna.png", np.eye(40, 30, dtype=np.uint8))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "storage")}, stdout=subprocess.PIPE)
    while int(process.stdout.readline()) < 4:  # the two in work count for less than one each: three are whole
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(CaseNotFoundError):
        open_cohort(tmp_path / "out")  # half a cohort is none
    again = ingest(Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out")))
    assert again.skipped >= 3
    assert again.written + again.skipped == 12
    for number, row in enumerate(again.cohort.cases):
        assert (open_case(row.url).read_image(0, (0, 0), (40, 30)) == number).all()


def test_bad_files_are_told_and_leave_the_rest_alone(folder, tmp_path):
    (folder / "p1_a.png").write_bytes((folder / "p1_a.png").read_bytes()[:300])
    save(folder / "p1_b_ben.png", np.zeros((40, 31), np.uint8))
    save(folder / "p2_a_ben.png", np.full((40, 30), 9, np.uint8) * np.eye(40, 30, dtype=np.uint8) + 1)
    outcome = ingest(Ingest(source=str(folder), to=str(tmp_path / "out")))
    assert [row.case for row in outcome.cohort.cases] == ["p1_b", "p2_a"]
    assert [row.annotators for row in outcome.cohort.cases] == [("anna",), ("anna",)]
    told = {note.file: note.seen + note.remedy for note in outcome.failures}
    assert "truncated" in told["p1_a.png"]
    assert "40 x 31 px, the image 40 x 30 px" in told["p1_b_ben.png"]
    assert "the mask holds 1, 10; the classes are 0..1" in told["p2_a_ben.png"]
    assert ingest(Ingest(source=str(folder), to=str(tmp_path / "out"))).written == 2  # failed ones are tried again


def test_an_empty_mask_is_background_or_no_opinion_as_asked(folder, tmp_path):
    save(folder / "p1_a_anna.png", np.zeros((40, 30), np.uint8))
    for empty, annotators in (("background", ("anna", "ben")), ("ignore", ("ben",))):
        outcome = ingest(Ingest(source=str(folder), to=str(tmp_path / empty), empty=empty))
        assert outcome.cohort.cases[0].annotators == annotators
        assert [note.file for note in outcome.notes] == ["p1_a_anna.png"]
        assert not outcome.failures


def test_layouts_are_recognised():
    found = match_files(["images/a.png", "anna/a.png", "ben/a.tif"], None, None)
    assert [d.annotator for d in found.cases[0].drawings] == ["anna", "ben"]
    found = match_files(["a/image.nii.gz", "a/r1.nii.gz", "b/image.nii.gz", "notes.txt"], None, None)
    assert [(c.case, len(c.drawings)) for c in found.cases] == [("a", 1), ("b", 0)]
    found = match_files(["1_2.png", "1_2_anna.png", "1_2_ben_b.png"], None, None)
    assert [d.annotator for d in found.cases[0].drawings] == ["anna", "ben_b"]
    with pytest.raises(CaseFormatError, match="--images and --labels"):
        match_files(["a.png", "b.png"], None, None)


def test_patterns_take_repeated_fields_classes_and_splits():
    paths = ["val/x/img.nrrd", "anna/x/Cord.nrrd", "anna/x/Brain.nrrd", "stray.png"]
    found = match_files(paths, "{split}/{case}/img.nrrd", "{annotator}/{case}/{class}.nrrd")
    assert found.cases[0].split == "validation"
    assert [(d.annotator, d.label_class) for d in found.cases[0].drawings] == [("anna", "Brain"), ("anna", "Cord")]
    assert found.unused == ("stray.png",)
    with pytest.raises(CaseFormatError, match="both 'anna' on 'x'"):
        match_files(["x.png", "x_anna.png", "x_anna.tif"], "{case}.png", "{case}_{annotator}.*")


def test_masks_are_understood_or_refused():
    two = ("background", "vessel")
    assert to_classes(np.array([[0, 255]], np.uint8), two).tolist() == [[0, 1]]
    assert to_classes(np.array([[0.0, 1.0]], np.float32), two).tolist() == [[0, 1]]
    assert to_classes(np.array([[0, 1, 255]], np.uint8), two).tolist() == [[0, 1, 255]]
    assert to_classes(np.array([[True, False]]), two).tolist() == [[1, 0]]
    assert to_classes(np.array([[0, 128, 200]]), two, threshold=127).tolist() == [[0, 1, 1]]
    values = parse_values(("0=background", "3=vessel", "9=IGNORE"), two)
    assert to_classes(np.array([[0, 3, 9]]), two, values=values).tolist() == [[0, 1, 255]]
    with pytest.raises(CaseFormatError, match="NaN"):
        to_classes(np.array([[np.nan]]), two)
    with pytest.raises(CaseFormatError, match=r"0, 3, 9; the classes are 0..1"):
        to_classes(np.array([[0, 3, 9]]), two)


def test_float_pictures_become_16_bits_and_say_how(tmp_path):
    pixels = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", pixels)
    save(tmp_path / "anna/a.png", np.eye(10, dtype=np.uint8))
    outcome = ingest(Ingest(source=str(tmp_path), to=str(tmp_path / "out")))
    case = open_case(outcome.cohort.cases[0].url)
    slope, intercept = case.intensity
    back = case.read_image(0, (0, 0), (10, 10)) * slope + intercept
    assert case.dtype == "uint16"
    assert np.abs(back - np.moveaxis(pixels, -1, 0)).max() < 1e-5


def nifti(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


def test_a_mask_that_lies_elsewhere_in_the_patient_is_refused_with_both_places(tmp_path):
    image = np.random.default_rng(0).integers(-500, 500, (5, 20, 30)).astype(np.int16)
    here, there = np.diag([0.7, 0.7, 2.5, 1]), np.diag([0.7, 0.7, 2.5, 1])
    there[:3, 3] = (0, 3, 0)
    nifti(tmp_path / "in/a/image.nii.gz", image, here)
    nifti(tmp_path / "in/a/good.nii.gz", (image > 0).astype(np.uint8), here)
    nifti(tmp_path / "in/a/moved.nii.gz", (image > 0).astype(np.uint8), there)
    nifti(tmp_path / "in/a/thick.nii.gz", (image > 0).astype(np.uint8), np.diag([0.7, 0.7, 5, 1]))
    outcome = ingest(Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out")))
    row = outcome.cohort.cases[0]
    assert row.annotators == ("good",)
    assert row.shape == (5, 20, 30)
    assert row.spacing_um == pytest.approx((2500, 700, 700))
    assert (open_case(row.url).read_image(0, (0, 0, 0), (5, 20, 30))[0] == image).all()
    told = {note.file: note.seen for note in outcome.failures}
    assert "3.00 mm from the image" in told["a/moved.nii.gz"]
    assert "(5000, 700, 700) um, the image of (2500, 700, 700) um" in told["a/thick.nii.gz"]


def run_job(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT / 'storage'}"}
    command = [sys.executable, str(ROOT / "jobs/ingest.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_job_ends_with_a_table_and_an_honest_exit_code(folder, tmp_path):
    good = run_job("--source", folder, "--to", tmp_path / "out", "--json", tmp_path / "rows.json")
    assert good.returncode == 0, good.stderr
    assert "2 groups" not in good.stdout
    assert {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}["cases written"] == 3
    (folder / "p1_a.png").write_bytes(b"nonsense")
    bad = run_job("--source", folder, "--to", tmp_path / "out")
    assert bad.returncode == 1
    assert "NOT INGESTED (1)" in bad.stdout
    assert "Traceback" not in bad.stderr + bad.stdout
    assert run_job("--source", tmp_path / "nowhere", "--to", tmp_path / "out").returncode == 2


@needs("chase")
def test_chase_has_two_observers_and_seven_children(tmp_path):
    config = Ingest(source=str(DATA / "chase"), to=str(tmp_path), group=r"(\d+)[LR]", classes=("background", "vessel"))
    cohort = ingest(config).cohort
    assert len(cohort.cases) == 14
    assert cohort.annotators == ("1stHO", "2ndHO")
    assert len({row.group for row in cohort.cases}) == 7


@needs("mnist-annotators")
def test_mnist_with_float_channels_a_reference_and_its_own_splits(tmp_path):
    config = Ingest(
        source=str(DATA / "mnist-annotators/MNIST_examples"), to=str(tmp_path), reference="GT", threshold=127,
        images="{split}/Gaussian/{case}_Gaussian.tif", labels="{split}/{annotator}/{case}_{annotator}.tif",
    )  # fmt: skip
    outcome = ingest(config)
    cohort = outcome.cohort
    assert [len(cohort.split(s).cases) for s in ("train", "validation", "test")] == [70, 10, 20]
    assert cohort.annotators == ("Over", "Under", "Wrong")
    assert cohort.reference == "GT"
    assert cohort.cases[0].channels == 3
    assert not outcome.failures
