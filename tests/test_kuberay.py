"""The files for KubeRay hold what its resources require, and run commands that exist. No cluster is asked."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
JOB = ROOT / "jobs/k8s/rayjob.yaml"

AMOUNTS = {"type": "object", "required": ["cpu", "memory"], "additionalProperties": {"type": "string"}}
CONTAINER = {
    "type": "object",
    "required": ["name", "image", "resources", "securityContext"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "resources": {"required": ["limits", "requests"], "properties": {"limits": AMOUNTS, "requests": AMOUNTS}},
        "securityContext": {
            "properties": {"runAsNonRoot": {"const": True}, "allowPrivilegeEscalation": {"const": False}}
        },
    },
}
TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {"required": ["containers"], "properties": {"containers": {"minItems": 1, "items": CONTAINER}}}
    },
}
START = {"type": "object", "additionalProperties": {"type": "string"}}  # KubeRay's map[string]string
GROUP = {
    "type": "object",
    "required": ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    "properties": {"rayStartParams": START, "template": TEMPLATE, "replicas": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}
GROUP["properties"] |= {name: {} for name in ("groupName", "minReplicas", "maxReplicas")}  # type: ignore[operator]
CLUSTER = {
    "type": "object",
    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"properties": {"mode": {"const": "token"}}, "required": ["mode"]},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "headGroupSpec": {"required": ["rayStartParams", "template"], "properties": {"rayStartParams": START, "template": TEMPLATE}},
        "workerGroupSpecs": {"type": "array", "minItems": 1, "items": GROUP},
    },
    "additionalProperties": False,
}  # fmt: skip
RAYJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"anyOf": [{"required": ["name"]}, {"required": ["generateName"]}]},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes"],
            "properties": {
                "entrypoint": {"type": "string"},
                "runtimeEnvYAML": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "activeDeadlineSeconds": {"type": "integer"},
                "backoffLimit": {"type": "integer"},
                "rayClusterSpec": CLUSTER,
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(JOB.read_text())
    return loaded


def test_the_job_holds_what_a_rayjob_requires() -> None:
    jsonschema.validate(manifest(), RAYJOB)


@pytest.mark.parametrize("missing", ["entrypoint", "rayClusterSpec"])
def test_a_job_without_what_it_requires_is_refused(missing: str) -> None:
    broken = manifest()
    del broken["spec"][missing]
    with pytest.raises(jsonschema.ValidationError, match=missing):
        jsonschema.validate(broken, RAYJOB)


def test_every_volume_that_is_mounted_is_there() -> None:
    spec = manifest()["spec"]["rayClusterSpec"]
    for pod in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        inside = pod["template"]["spec"]
        mounted = {mount["name"] for each in inside["containers"] for mount in each.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in inside["volumes"]}


def test_the_entrypoint_is_a_command_that_the_job_understands() -> None:
    words = shlex.split(manifest()["spec"]["entrypoint"])
    assert words[:2] == ["python", "jobs/tune.py"]
    said = subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in said.stdout


def test_the_code_that_is_sent_wins_over_the_image() -> None:
    sent = yaml.safe_load(manifest()["spec"]["runtimeEnvYAML"])
    ours = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    assert sent["env_vars"]["PYTHONPATH"] == ours["env_vars"]["PYTHONPATH"]
