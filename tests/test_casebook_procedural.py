"""The procedural slide is the same wherever and however it is cut, and its annotators differ as they are named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from casebook.procedural import STYLES, ProceduralDrawing, ProceduralSlide

ROOT = Path(__file__).parents[1]
SIDE = 10**6


@given(
    st.integers(0, SIDE - 400),
    st.integers(0, SIDE - 400),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(1, 120),
    st.integers(1, 120),
)
@settings(max_examples=20, deadline=None)
def test_any_cut_shows_the_same_pixels(y, x, dy, dx, height, width):
    slide, drawing = ProceduralSlide(side_px=SIDE), ProceduralDrawing(side_px=SIDE, style="over")
    part = (slice(dy, dy + height), slice(dx, dx + width))
    assert (slide.read((y, x), (220, 220))[:, *part] == slide.read((y + dy, x + dx), (height, width))).all()
    assert (drawing.read((y, x), (220, 220))[part] == drawing.read((y + dy, x + dx), (height, width))).all()


def test_over_is_wider_and_under_narrower_than_the_truth():
    area = {
        style: int(ProceduralDrawing(side_px=SIDE, style=style).read((4000, 8000), (3000, 3000)).sum())
        for style in (*STYLES, "truth")
    }
    assert area["under"] < area["good"] < area["over"]
    assert abs(area["good"] / area["truth"] - 1) < 0.1


def test_another_seed_is_another_slide():
    a, b = (ProceduralSlide(side_px=SIDE, seed=seed).read((5000, 5000), (300, 300)) for seed in (0, 1))
    assert np.mean(a != b) > 0.3


def test_the_job_writes_resumes_and_checks_a_small_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT / 'storage'}"}
    command = [
        sys.executable,
        str(ROOT / "jobs/make_slide.py"),
        "--to",
        str(tmp_path / "c"),
        "--side",
        "1500",
        "--boxes",
        "10",
    ]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    assert "boxes that differ" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "only checking it" in again.stdout
