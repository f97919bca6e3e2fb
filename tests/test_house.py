"""What the layout of the house must never become."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "platform", ROOT / "storage", ROOT / "jobs"]


@pytest.mark.parametrize("folder", ["platform", "storage", "jobs", "tests"])
def test_a_source_root_is_not_a_package(folder: str) -> None:
    # platform/__init__.py would shadow the standard library's platform: ray, torch and pytest die on import
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_standard_library_still_wins_with_the_project_as_working_folder() -> None:
    seen = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"], cwd=ROOT, capture_output=True, text=True
    )
    assert seen.returncode == 0, seen.stderr


def test_no_job_carries_the_name_of_a_standard_module() -> None:
    assert not {job.stem for job in (ROOT / "jobs").glob("*.py")} & set(sys.stdlib_module_names)


def test_every_ray_library_has_one_file() -> None:
    users: dict[str, set[str]] = {}
    for path in (ROOT / "platform").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in getattr(node, "names", [])]
            )
            for name in names if isinstance(node, ast.Import | ast.ImportFrom) else []:
                if name.startswith("ray."):
                    users.setdefault(".".join(name.split(".")[:2]), set()).add(path.stem)
    users["ray.train"] -= {"stream"}  # its StreamConfig is a ray.train.DataConfig
    users["ray.data"] -= {
        "predict_cohort"
    }  # training streams patches, inference blocks of cases: each has its one file
    users["ray.serve"] -= {"routing"}  # which replica gets a request is a concept of its own
    for library in ("ray.data", "ray.train", "ray.tune", "ray.serve"):
        assert len(users.get(library, set())) <= 1, f"{library} is imported by {users[library]}"


def test_files_stay_readable() -> None:
    long = {
        str(path): lines
        for root in SOURCES
        for path in root.rglob("*.py")
        if (lines := path.read_text().count("\n")) > 400
    }
    assert not long, f"a file is a concept of 40-200 lines, never more than 400: {long}"


def test_the_cluster_file_is_what_ray_up_accepts() -> None:
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_the_cluster_installs_the_dependencies_and_not_the_package() -> None:
    commands = (ROOT / "cluster.yaml").read_text()
    assert "pip install -q -r requirements.txt" in commands
    assert "pip install -e" not in commands


def test_torch_is_pinned_to_versions_with_a_cpu_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.6,<2.14" in project["dependencies"]
