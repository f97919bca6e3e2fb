"""Faults done to real processes, each ending with the result of an undisturbed training. Minutes each: `pytest -m faults`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("fault", ["worker", "driver", "machine", "kills", "disk", "search"])
def test_a_fault_changes_nothing_in_the_end(fault: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "jobs/faults.py"), "--only", fault, "--json", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "can be had here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-3000:]
    loss = json.loads(rows.read_text())[0]
    assert loss["value"] == pytest.approx(loss["reference"], rel=1e-6)


def test_with_a_machine_less_the_others_go_on_and_learn_as_much(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "jobs/faults.py"), "--only", "elastic", "--json", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    loss = json.loads(rows.read_text())[0]
    assert loss["value"] == pytest.approx(loss["reference"], rel=0.1), "other workers, other batches of the same epoch"
