"""The files that a cluster is told what to serve with: each is what Ray's own schema accepts, and they say the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayters.serving.settings import Settings, from_json

JOBS = Path(__file__).parents[1] / "jobs"


def served(path: Path) -> dict[str, Any]:
    """The Serve config of a file."""
    document = yaml.safe_load(path.read_text())
    return yaml.safe_load(document["spec"]["serveConfigV2"]) if document.get("kind") == "RayService" else document


@pytest.mark.parametrize("path", [JOBS / "serve.yaml", JOBS / "k8s/rayservice.yaml"], ids=lambda p: p.name)
def test_rays_own_schema_accepts_the_config(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(served(path))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    settings = from_json(application.args)
    assert settings.replicas.gpus == 0.25
    assert settings.secure_cookies


def test_the_manifest_deploys_what_the_config_file_does() -> None:
    assert served(JOBS / "serve.yaml") == served(JOBS / "k8s/rayservice.yaml")


def test_the_application_is_built_from_its_settings() -> None:
    from dataclasses import asdict

    from rayters.serving.cluster import application

    application(asdict(Settings(models="m")))
    with pytest.raises(ValueError, match="is no setting"):
        application({"model": "m"})


def test_the_manifest_has_what_kuberay_requires_and_shuts_what_it_can() -> None:
    # KubeRay's own schema needs its operator; these are the fields that its API reference marks as required
    spec = yaml.safe_load((JOBS / "k8s/rayservice.yaml").read_text())["spec"]
    cluster = spec["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert isinstance(group["rayStartParams"], dict)
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert all("KEY" not in entry["name"] and "SECRET" not in entry["name"] for entry in container["env"])
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["groupName"]
