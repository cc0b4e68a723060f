"""Every manifest is valid by its schema, every command in it parses, and nothing in it contradicts the others."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from pneumobatch import cli
from pneumobatch.screening import gauges, pipeline

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "schemas"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [
    pytest.param(found, id=f"{path.name}:{found['metadata']['name']}")
    for path in MANIFESTS
    for found in yaml.safe_load_all(path.read_text())
]
RAY_OBJECTS = [found for found in OBJECTS if found.values[0]["apiVersion"].startswith("ray.io/")]
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


def walk(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(part)


def pods(found: Any) -> Iterator[dict[str, Any]]:
    for part in walk(found):
        if isinstance(part, dict) and "containers" in part:
            yield part


def clusters(found: Any) -> Iterator[dict[str, Any]]:
    for part in walk(found):
        if isinstance(part, dict) and "headGroupSpec" in part:
            yield part


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
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
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


def texts(pages: str) -> Iterator[tuple[Path, str]]:
    """Every string and command of the manifests of deploy/, and every line of its page that fits `pages`."""
    for path in sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.md")]):
        if path.suffix == ".md":
            found = re.findall(pages, path.read_text(), re.MULTILINE)
        else:
            parts = [part for each in yaml.safe_load_all(path.read_text()) for part in walk(each)]
            found = [part for part in parts if isinstance(part, str)]
            found += [" ".join(part["command"]) for part in parts if isinstance(part, dict) and part.get("command")]
        yield from ((path, text) for text in found)


def commands() -> Iterator[Any]:
    """Every `pneumobatch VERB …` in a manifest or page of deploy/."""
    for path, text in texts(r"^.*\bpneumobatch (?:submit )?[a-z]+ \S+\.toml.*$"):
        match = re.search(r"(?<![\w/:-])pneumobatch ((?:submit )?(?:" + "|".join(VERBS) + r")\b[^;|'`]*)", text)
        if match:
            words = shlex.split(match[1])
            if sent := re.search(r"--working-dir (\S+)", text):  # the job runs in that folder
                words[1] = f"{sent[1]}/{words[1]}"
            yield pytest.param(words, id=f"{path.name}: {' '.join(words[:2])}")


def ray_commands() -> Iterator[Any]:
    """Every `ray …` in a manifest or page of deploy/, and `ray start` as KubeRay calls it."""
    for path, text in texts(r"^(?:.* )?ray [a-z].*$"):
        for match in re.finditer(r"(?:^|(?<=&& ))ray ([a-z][^&|;`]*)", text):
            words = shlex.split(match[1])
            yield pytest.param(words, id=f"{path.name}: {' '.join(words[:2])}")
    for found in RAY_OBJECTS:
        (cluster,) = clusters(found.values[0])
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            words = ["start", *(f"--{key}={value}" for key, value in group["rayStartParams"].items())]
            yield pytest.param(words, id=f"{found.id}: ray start")


VERBS = ("catalog", "train", "screen", "evaluate", "bench", "doctor", "demo")
RUNS = {
    "train": "pneumobatch.training.trainer.train",
    "screen": "pneumobatch.screening.pipeline.screen",
    "night": "pneumobatch.screening.nightly.night",
    "submit": "pneumobatch.submit.submit",
}


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_parses_with_the_real_command_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = words[: 2 if words[0] == "submit" else 1]
    job, *flags = words[len(verbs) :]
    file = ROOT / job.lstrip("/")
    assert file.is_file() and file.parent.name == "jobs"
    taken: list[Any] = []

    def stop(*given: Any) -> None:
        taken.append(given)
        raise RuntimeError("parsed")

    for place in RUNS.values():
        monkeypatch.setattr(place, stop)
    code = cli.run([*verbs, str(file), *flags])
    assert (code, len(taken)) == (1, 1), capsys.readouterr().err


def parsed(words: list[str]) -> click.Context:
    """Reads a command line of Ray without running it."""
    command: click.Command = ray_cli
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    return command.make_context(command.name, list(words))


@pytest.mark.parametrize("words", list(ray_commands()))
def test_every_command_of_ray_parses_with_rays_command_line(words: list[str]) -> None:
    parsed(words)


@pytest.mark.parametrize("words", [["start", "--haed"], ["job", "submit", "--workingdir", "jobs"], ["strat"]])
def test_a_wrong_command_of_ray_is_found(words: list[str]) -> None:
    with pytest.raises(click.UsageError, match="No such"):
        parsed(words)


def test_a_night_asks_for_every_cpu_that_its_cluster_may_have() -> None:
    (night,) = (found.values[0] for found in OBJECTS if found.values[0]["kind"] == "CronJob")
    (words,) = (pod["containers"][0]["command"] for pod in pods(night))
    (staying,) = (found.values[0] for found in RAY_OBJECTS if found.values[0]["kind"] == "RayCluster")
    (group,) = (group for group in staying["spec"]["workerGroupSpecs"] if group["groupName"] == "cpu")
    (worker,) = group["template"]["spec"]["containers"]
    cpus = group["maxReplicas"] * int(worker["resources"]["limits"]["cpu"])
    assert words[words.index("--screening.scorers") + 1] == str(cpus)


def test_all_commands_were_found() -> None:
    found = [" ".join(words.values[0][:2]) for words in commands()]
    for wanted in (
        "screen /jobs/screen.toml",
        "screen /jobs/nightly.toml",
        "train /jobs/kermany.toml",
        "submit screen",
    ):
        assert wanted in found
    assert found.count("submit screen") >= 2
    assert "screen jobs/screen.toml" in found  # by Ray's own command
    of_ray = [" ".join(words.values[0][:2]) for words in ray_commands()]
    assert {"start --head", "start --address=$RAY_HEAD_IP:6379", "job submit", "start --num-cpus=0"} <= set(of_ray)


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
    for remote, local in config["file_mounts"].items():
        assert Path(local).expanduser().exists(), remote


def test_the_dashboard_asks_only_for_metrics_that_are_exported() -> None:
    board = json.loads((DEPLOY / "monitoring" / "grafana.json").read_text())
    asked = {
        metric
        for panel in board["panels"]
        for target in panel["targets"]
        for metric in re.findall(r"\b((?:ray|autoscaler)_\w+)\{", target["expr"])
    }
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    exported = set(re.findall(r"\b(?:ray|autoscaler)_\w+", "".join(p.read_text() for p in folder.glob("*_panels.py"))))
    assert len(asked) >= 12
    counted = re.findall(r'Counter\("(\w+)"', Path(pipeline.__file__).read_text())
    gauged = re.findall(r'Gauge\("(\w+)"', Path(gauges.__file__).read_text())
    assert asked - exported == {*(f"ray_{name}_total" for name in counted), *(f"ray_{name}" for name in gauged)}
    # A counter appears with its first films already counted: what it grew by since it was first seen misses them.
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (missed,) = (text for text in expressions if re.search(rf"ray_{counted[0]}_total{{[^}}]*status!=", text))
    assert "max_over_time(" in missed and "increase(" not in missed and "delta(" not in missed
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(positions)) == len(positions)


def test_prometheus_scrapes_the_ports_that_the_pods_name() -> None:
    (job,) = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"]
    (ports,) = (
        rule["regex"] for rule in job["relabel_configs"] if rule["source_labels"][0].endswith("container_port_name")
    )
    named = {
        port["name"]
        for found in RAY_OBJECTS
        for pod in pods(found.values[0])
        for container in pod["containers"]
        for port in container.get("ports", [])
    }
    assert set(ports.split("|")) <= named


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
