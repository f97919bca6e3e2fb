"""Experiment trackers hear of a training and of a search, by Ray's own integrations; without network here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casebook import Cohort
from rayters.annotators.demo import demo_cohort
from rayters.methods import MajorityVote
from rayters.networks.backbone import UNet
from rayters.training.run import Run, to_json
from rayters.training.tracking import flat, refuse_absent, sweep_callbacks
from rayters.tuning.sweep import run_trials

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _a_folder_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow would rather have a server or a database, and makes one where it stands."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return demo_cohort(str(tmp_path_factory.mktemp("demo")))


def test_settings_are_told_by_their_path() -> None:
    told = flat(to_json(Run(method=MajorityVote(), network=UNet(width=4), patch_px=(32, 32))))
    assert told["method"] == "MajorityVote"
    assert told["network.width"] == 4
    assert told["patch_px"] == "[32, 32]"
    assert "" not in told


def test_a_tracker_that_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rayters\[mlflow\]'"):
        refuse_absent(["mlflow"])


def test_mlflow_and_wandb_hold_what_the_job_trained(demo: Cohort, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'rayters[mlflow]'")
    pytest.importorskip("wandb", reason="pip install 'rayters[wandb]'")
    told = {
        "MLFLOW_TRACKING_URI": str(tmp_path / "mlruns"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "jobs/train.py"), "--cohort", demo.url, "--storage", str(tmp_path / "runs")]
    small = ["--no-baseline", "--epochs", "2", "--sampling.patches-per-epoch", "32", "--network.width", "4"]
    done = subprocess.run(
        [*command, *small, "--name", "seen", "--patch-px", "32", "32", "--track", "mlflow", "wandb"],
        env=os.environ | told, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    client = mlflow.MlflowClient(told["MLFLOW_TRACKING_URI"])
    (run,) = runs_in(client)
    assert run.data.params["method"] == "AnnotatorConfusion"
    curve = client.get_metric_history(run.info.run_id, "validation/validation_loss")
    assert len(curve) == 2, "one point for each epoch"
    assert list((tmp_path / "wandb").glob("offline-run-*-seen/*.wandb")), "Weights & Biases has a run of that name"


def test_mlflow_holds_one_run_for_each_trial_of_a_search(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'rayters[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    trials = [{"learning_rate": rate} for rate in (0.1, 0.2)]
    run_trials(
        lambda trial, data, report: {"dice": 10 * trial["learning_rate"]},
        trials,
        tmp_path / "trials",
        cpus=0.5,
        callbacks=sweep_callbacks(["mlflow"]),
    )
    found = runs_in(mlflow.MlflowClient(str(tmp_path / "mlruns")))
    assert {run.data.params["trial/learning_rate"]: run.data.metrics["result/dice"] for run in found} == {
        "0.1": 1.0,
        "0.2": 2.0,
    }


def runs_in(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("rayters").experiment_id]))
