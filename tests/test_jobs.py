"""Jobs as a user runs them: as scripts, and submitted to a cluster."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

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
