"""Every command in deploy/ parses with the command line that it calls."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from pneumobatch import cli
from tests.deploy.manifests import DEPLOY, OBJECTS, RAY_OBJECTS, ROOT, clusters, pods, walk


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


VERBS = ("catalog", "train", "screen", "evaluate", "bench", "doctor", "demo")

RUNS = {
    "train": "pneumobatch.training.trainer.train",
    "screen": "pneumobatch.screening.pipeline.screen",
    "night": "pneumobatch.screening.nightly.night",
    "submit": "pneumobatch.submit.submit",
}


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


def test_a_training_on_a_cluster_at_rest_asks_for_its_gpus() -> None:
    found = [words.values[0] for words in commands()]
    trainings = [words for words in found if "train" in words[:2]]
    assert {words[0] for words in trainings} == {"train", "submit"}
    for words in trainings:
        assert words[words.index("--training.use_gpu") + 1] == "true"


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
