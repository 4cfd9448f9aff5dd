"""The KubeRay manifests: what they must agree on, and, where the CRDs are at hand, every field by their schema.

KUBERAY_CRDS=FOLDER names KubeRay's helm-chart/kuberay-operator/crds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "docs" / "production" / "kuberay"
FILES = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("name", FILES)
def test_all_pods_have_one_image_one_store_and_the_version_of_ray_that_is_installed(name: str) -> None:
    spec = cluster_of(name)
    containers = [c for pod in pods(spec) for c in pod["template"]["spec"]["containers"]]
    assert {c["image"] for c in containers} == {"REGISTRY/cv-pipeline:2.0.0"}
    assert all(c["envFrom"] == [{"secretRef": {"name": "cv-pipeline"}}] for c in containers)
    assert spec["rayVersion"] == version("ray") and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    ports = {p["name"]: p["containerPort"] for p in containers[0]["ports"]}
    assert ports == {"gcs": 6379, "client": 10001, "dashboard": 8265}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def pods(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["headGroupSpec"]
    yield from spec["workerGroupSpecs"]


@pytest.mark.parametrize(("name", "crd"), FILES.items())
def test_every_field_is_one_of_kuberay_s(name: str, crd: str) -> None:
    if not os.environ.get("KUBERAY_CRDS"):
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load((Path(os.environ["KUBERAY_CRDS"]) / crd).read_text())
    (found,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema, made = found["schema"]["openAPIV3Schema"], manifest(name)
    jsonschema.validate(made, schema)
    assert not list(unknown(made, schema, name))


def unknown(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    """Fields that a schema does not have: Kubernetes would drop them without a word."""
    if isinstance(value, list):
        for item in value:
            yield from unknown(item, schema["items"], at)
    elif isinstance(value, dict) and "properties" in schema:
        for key, inner in value.items():
            if key in schema["properties"]:
                yield from unknown(inner, schema["properties"][key], f"{at}.{key}")
            else:
                yield f"{at}.{key}"
