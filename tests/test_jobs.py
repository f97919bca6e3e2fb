"""Jobs as a user runs them: as scripts, and submitted to a cluster."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from casebook import Cohort, Layer, describe_case, open_cohort, write_case, write_cohort
from rayters.annotators.digits import digit_sheets

ROOT = Path(__file__).parents[1]
TINY = ["--epochs", "1", "--network.width", "4", "--sampling.patches-per-epoch", "32", "--batch-size", "8"]


def run_job(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=500)


def test_the_main_job_ends_with_a_table_rows_and_a_picture(tmp_path: Path) -> None:
    done = run_job(str(ROOT / "jobs/train.py"), *TINY, "--json", "rows.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["row"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["annotator confusion / majority vote, Dice"]["ratio"] > 0
    assert (tmp_path / "rayters-runs/train.png").stat().st_size > 20_000
    for name in ("good", "over", "under", "wrong", "blank"):
        assert name in done.stdout
    assert "next" in done.stdout


def small_cohort(folder: Path) -> Cohort:
    """Four sheets of the demo: two of train, one each of validation and test."""
    drawn = digit_sheets(sheets=4)
    rows = []
    for index, split in enumerate(("train", "train", "validation", "test")):
        layers = {Layer(id=name): drawn.labels[index, a] for a, name in enumerate(drawn.annotators)}
        layers[Layer(id="reference", role="reference")] = drawn.reference[index]
        url, image = f"{folder}/cohort/sheet-{index}.ome.zarr", drawn.images[index]
        case = write_case(url, image, spacing_um=(1.0, 1.0), classes=drawn.classes, layers=layers)
        rows.append(describe_case(case, split=split, group=str(index)))
    named = {"classes": drawn.classes, "annotators": drawn.annotators, "reference": "reference"}
    return write_cohort(folder / "cohort", rows, name="digits", **named)


def test_a_network_learns_from_a_fused_layer_and_is_compared_with_the_annotators(tmp_path: Path) -> None:
    small = small_cohort(tmp_path)
    train = [str(ROOT / "jobs/train.py"), "--cohort", small.url, *TINY, "--no-baseline", "--learn-from"]
    without = run_job(*train, "fused-staple", "method:majority-vote", folder=tmp_path)
    assert without.returncode == 1
    assert "has no layer fused-staple, it has good, over, under, wrong, blank, reference" in without.stderr
    fused = run_job(str(ROOT / "jobs/fuse.py"), "--cohort", small.url, "--how", "staple", folder=tmp_path)
    assert fused.returncode == 0, fused.stderr[-3000:]
    done = run_job(*train, "fused-staple", "method:majority-vote", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stdout
    for name in small.annotators:
        assert f"\n{name} " in done.stdout  # whom the report compares with
    model = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("model"))
    assert json.loads((Path(model) / "run.json").read_text())["annotators"] == ["fused-staple"]


def test_what_learns_from_the_reference_is_called_a_ceiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("train_job", ROOT / "jobs/train.py")
    assert spec is not None
    assert spec.loader is not None
    job = sys.modules["train_job"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    small = small_cohort(tmp_path)
    lessons = job._lessons(job.Job(learn_from=("reference",)), small, str(tmp_path))
    assert "ceiling" in capsys.readouterr().out
    assert (open_cohort(lessons.url).annotators, lessons.reference) == (("reference",), None)
    assert job._lessons(job.Job(), small, str(tmp_path)) is small


def test_listings_are_rows_as_well(tmp_path: Path, tiny_model: Path) -> None:
    tokens, publish = str(ROOT / "jobs/tokens.py"), str(ROOT / "jobs/publish.py")
    for command in (
        (tokens, "issue", "--days", "3", "--file", "tokens.json"),
        (tokens, "list", "--file", "tokens.json", "--json", "tokens-rows.json"),
        (publish, "publish", "--checkpoint", str(tiny_model), "--name", "digits", "--registry", "models", "--promote"),
        (publish, "list", "--registry", "models", "--json", "models-rows.json"),
    ):
        done = run_job(*command, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    (token,) = json.loads((tmp_path / "tokens-rows.json").read_text())
    assert token["row"].endswith(", predict")
    assert token["value"] == pytest.approx(3, abs=0.01)
    (model,) = json.loads((tmp_path / "models-rows.json").read_text())
    assert model["row"].startswith("digits@")
    assert (model["value"], model["unit"]) == (1, "served")


@pytest.mark.parametrize(
    "job", sorted(path.name for path in (ROOT / "jobs").glob("*.py") if "__main__" in path.read_text())
)
def test_every_job_teaches_with_help(job: str, tmp_path: Path) -> None:
    done = run_job(str(ROOT / "jobs" / job), "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "python jobs/" in done.stdout


def test_a_cohort_that_does_not_exist_is_said_in_one_line(tmp_path: Path) -> None:
    done = run_job(str(ROOT / "jobs/train.py"), "--cohort", str(tmp_path / "nowhere"), folder=tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_edited_copy_wins_over_an_installed_one(tmp_path: Path, ray_session: None) -> None:
    # Ray 2.60: an installed copy silently wins unless PYTHONPATH of the runtime environment brings the uploaded one
    for part in ("platform", "storage", "jobs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    with (tmp_path / "platform/rayters/__init__.py").open("a") as source:
        source.write('\nEDITED = "the edit is here"\n')
    (tmp_path / "jobs/look.py").write_text(
        "import ray, rayters\n"
        "ray.init()\n"
        "print('driver:', rayters.EDITED)\n"
        "print('task:', ray.get(ray.remote(lambda: __import__('rayters').EDITED).remote()))\n"
    )
    client = JobSubmissionClient(f"http://{ray.worker.global_worker.node.webui_url}")
    import yaml

    environment = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    job = client.submit_job(
        entrypoint=f"{sys.executable} jobs/look.py", runtime_env=environment | {"working_dir": str(tmp_path)}
    )
    deadline = time.monotonic() + 120
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, "the job never ended"
        time.sleep(0.2)
    log = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, log
    assert "driver: the edit is here" in log
    assert "task: the edit is here" in log
