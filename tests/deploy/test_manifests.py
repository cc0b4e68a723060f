"""Every manifest is valid by its schema, and nothing in it contradicts the others."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.manifests import DEPLOY, MANIFESTS, OBJECTS, RAY_OBJECTS, ROOT, clusters, pods, walk

SCHEMAS = ROOT.parent / "shared" / "schemas"

KUBERNETES = "1.33"


def strict(schema: Any) -> Any:
    """The schema, with fields that it does not name forbidden: the server would drop them without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def ray_schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("KubeRay's resource definitions of ../shared/schemas are not here")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (found for found in definition["spec"]["versions"] if found["name"] == "v1")
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the definition leaves it to the server
    return schema


@pytest.mark.parametrize("found", RAY_OBJECTS)
def test_ray_objects_fit_kuberays_definitions(found: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(ray_schema(found["kind"])).validate(found)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob"])
def test_a_field_that_does_not_exist_is_found(kind: str) -> None:
    (found, *_) = (each.values[0] for each in RAY_OBJECTS if each.values[0]["kind"] == kind)
    wrong = json.loads(json.dumps(found))
    next(iter(clusters(wrong)))["headGroupSpec"]["template"]["spec"]["serviceAcountName"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="serviceAcountName"):
        jsonschema.Draft7Validator(ray_schema(kind)).validate(wrong)


@pytest.mark.parametrize("found", [found for found in OBJECTS if found not in RAY_OBJECTS])
def test_kubernetes_objects_fit_their_schema(found: dict[str, Any]) -> None:
    kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_every_kind_that_was_promised_is_there() -> None:
    kinds = {found.values[0]["kind"] for found in OBJECTS}
    assert kinds == {"ServiceAccount", "RayCluster", "RayJob", "RayCronJob", "CronJob"}


@pytest.mark.parametrize("found", RAY_OBJECTS)
def test_rules_that_only_the_operator_knows(found: dict[str, Any]) -> None:
    (cluster,) = clusters(found)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__ == pinned("ray")
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert cluster["enableInTreeAutoscaling"] is True
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "restartPolicy" not in group["template"]["spec"]  # autoscaler v2 wants it so
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
    assert len(found["metadata"]["name"]) <= 47
    job = next((part for part in walk(found) if isinstance(part, dict) and "entrypoint" in part), None)
    if job:
        assert job["shutdownAfterJobFinishes"] and job["backoffLimit"] > 0
        assert all(group["replicas"] for group in cluster["workerGroupSpecs"])  # scorers are counted at the start


def test_a_night_on_its_own_cluster_is_over_before_the_next() -> None:
    (night,) = (found.values[0]["spec"] for found in OBJECTS if found.values[0]["kind"] == "RayCronJob")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", night["schedule"])  # once a day
    job = night["jobTemplate"]
    assert (1 + job["backoffLimit"]) * job["activeDeadlineSeconds"] < 24 * 3600  # each attempt has its own deadline


def test_the_clusters_are_made_of_the_same_parts() -> None:
    heads, groups = [], {}
    for found in RAY_OBJECTS:
        (cluster,) = clusters(found.values[0])
        head = json.dumps(cluster["headGroupSpec"]).replace("-cuda", "-cpu")
        heads.append((head, json.dumps([cluster["autoscalerOptions"], cluster["authOptions"]])))
        for group in cluster["workerGroupSpecs"]:
            template = json.dumps([group["template"], group["rayStartParams"]])
            assert groups.setdefault(group["groupName"], template) == template
    assert len(set(heads)) == 1
    assert set(groups) == {"cpu", "gpu"}


@pytest.mark.parametrize("found", OBJECTS)
def test_pods_are_restricted_bounded_and_probed(found: dict[str, Any]) -> None:
    accounts = {each.values[0]["metadata"]["name"]: each.values[0] for each in OBJECTS}
    for pod in pods(found):
        account = pod["serviceAccountName"]
        assert account in accounts
        if account != "pneumobatch-head":
            assert pod["automountServiceAccountToken"] is False
            assert accounts[account]["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["runAsNonRoot"] and security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["image"] in {"pneumobatch:0.1.0-cpu", "pneumobatch:0.1.0-cuda"}
            if container["name"].startswith("ray-"):
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


@pytest.mark.parametrize("path", [*MANIFESTS, DEPLOY / "aws" / "cluster.yaml"], ids=lambda path: path.name)
def test_secrets_are_references(path: Path) -> None:
    for found in yaml.safe_load_all(path.read_text()):
        assert found.get("kind") != "Secret"
        for part in walk(found):
            if isinstance(part, dict) and re.search(r"KEY|TOKEN|SECRET|PASSWORD", str(part.get("name", ""))):
                assert set(part) == {"name", "valueFrom"}, part["name"]


def pinned(name: str) -> str:
    (version,) = re.findall(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def test_the_clusters_on_ec2_fit_rays_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    config = yaml.safe_load((DEPLOY / "aws" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert all(kind["node_config"]["IamInstanceProfile"] for kind in types.values())
    for part in walk(config):
        images = {part[key] for key in ("image", "worker_image") if key in part} if isinstance(part, dict) else set()
        assert all("CHANGE-ME" in image for image in images)  # a bare name would be pulled from Docker's registry
    for remote, local in config["file_mounts"].items():
        assert Path(local).expanduser().exists(), remote


def test_the_image_is_pinned_and_runs_as_no_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    names = [stage.split()[2] for stage in stages]
    assert {"cpu", "cuda"} <= set(names)
    for stage in stages:
        base, _, name = stage.split()[:3]
        assert base == "python:${PYTHON}" or base in names
        assert all("-c constraints.txt" in line for line in re.findall(r"pip install .*", stage)), name
        if name in {"cpu", "cuda"}:
            assert stage.rstrip().endswith("USER 1000")
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / part).exists() for part in source.split())
        allowed = (DEPLOY / "Dockerfile.dockerignore").read_text()
        assert all(f"!{part}" in allowed for part in source.split())
    assert not re.search(r"https?://", text)


def test_the_page_names_every_file() -> None:
    page = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name not in {"README.md", "Dockerfile.dockerignore"}:
            assert path.name in page, path.name
    for name in re.findall(r"deploy/[\w/.-]+\.\w+", page):
        assert (ROOT / name).is_file(), name
