"""What `doctor` finds here, and that what it finds wrong is named with its remedy and nothing secret."""

import errno
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from pneumobatch import cli, cluster
from pneumobatch.config import Cluster, Job
from pneumobatch.doctor import doctor, machine, trials


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster and no key of the surrounding shell."""
    for name in ("RAY_ADDRESS", "PNEUMOBATCH_SITE_KEY"):
        monkeypatch.delenv(name, raising=False)


def examined(output: object, **sections: Any) -> tuple[str, bool]:
    lines, healthy = doctor(Job.model_validate({"output": {"uri": str(output)}, **sections}))
    console = Console(width=300, highlight=False)
    with console.capture() as capture:
        for line in lines:
            console.print(line)
    return capture.get(), healthy


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_this_machine_is_healthy_and_nothing_is_left_behind(protocol: str, tmp_path: Path) -> None:
    text, healthy = examined(f"{protocol}{tmp_path}/new/place")
    assert healthy, text
    for what in ("Python 3", "ray 2", "usable of", "available of", "object store", "a local engine with", "bf16 is "):
        assert what in text
    assert f"9 of 9 work: {', '.join(trials._samples())}" in text
    assert "attention_resnet50 at 224²: 30.2 M parameters, 4.99 G multiply-adds" in text
    assert "PNEUMOBATCH_SITE_KEY is not set" in text
    assert f"free at {tmp_path}" in text
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text, healthy = examined(tmp_path / "file" / "below")
    assert not healthy
    assert f"{tmp_path}/file/below cannot be written" in text
    assert "→ give another output.uri" in text
    assert "not healthy: output.uri; 1 problems" in text


def test_a_disk_that_nothing_can_be_published_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    problems = list(trials.places(Job.model_validate({"output": {"uri": str(tmp_path / "out")}})))
    assert "has no hard links" in problems[0].text
    assert problems[0].state == "problem"
    assert list(tmp_path.iterdir()) == []


def test_a_probe_takes_nothing_with_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "_staging" / "other").mkdir(parents=True)
    trials._probe(str(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "_staging",
        "_staging/other",
        "runs",
    ]


def test_the_site_key_is_never_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOBATCH_SITE_KEY", "correct-horse-battery")
    text, healthy = examined(tmp_path)
    assert healthy
    assert "PNEUMOBATCH_SITE_KEY is set" in text
    assert "horse" not in text


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "resnet19"}, "'resnet19' is no network"),
        ({"weights": "/nowhere/weights.safetensors"}, "network.weights: /nowhere/weights.safetensors is no file"),
        ({"weights": "nothing://bucket/w.safetensors"}, "network.weights: nothing://bucket/w.safetensors cannot be"),
        ({"name": "timm/resnet_of_nobody"}, "timm has no 'resnet_of_nobody'"),
    ],
)
def test_a_network_that_cannot_be_built_is_a_problem(network: dict[str, Any], message: str) -> None:
    problems = [
        finding for finding in trials.network(Job.model_validate({"network": network})) if finding.state == "problem"
    ]
    assert len(problems) == 1
    assert message in problems[0].text
    assert problems[0].remedy


def test_a_broken_decoder_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_LOSSLESS", trials._LOSSLESS[:60] + trials._LOSSLESS[-2:])
    found = list(trials.decoders(Job()))
    assert [(finding.state, finding.text) for finding in found[:-1]] == [
        ("problem", "DICOM JPEG lossless does not work")
    ]
    assert found[0].remedy.endswith("python-gdcm")
    assert found[-1].text.startswith("8 of 9 work")


@pytest.mark.parametrize(("generation", "told"), [(7, "bf16 is emulated"), (8, "bf16 is native")])
def test_a_gpu_that_emulates_bf16_is_told_from_one_that_computes_in_it(
    generation: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    monkeypatch.setattr(trials, "_convolution_seconds", lambda *_: 1.0)
    (found,) = trials.precisions(Job())
    assert told in found.text
    assert f"`auto` takes {'bf16' if generation >= 8 else 'fp32'}" in found.text


def test_without_a_compiler_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert [finding.state for finding in machine.software(Job()) if finding.topic == "compiler"] == ["note"]


def test_small_shared_memory_and_containers_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "/sys/fs/cgroup/memory.max": str(4 << 30),
        "/sys/fs/cgroup/memory.current": str(3 << 30),
        "/sys/fs/cgroup/memory.stat": f"anon 7\ninactive_file {2 << 30}",
        "/proc/meminfo": "MemAvailable:   99999999 kB",
    }
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{4 << 30}\n")
    monkeypatch.setattr(cluster, "CGROUP", tmp_path)
    assert cluster.machine_cpus() == 1
    assert cluster.object_store_bytes(Cluster()) == 1 << 30
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 << 20))
    job = Job.model_validate({"cluster": {"num_cpus": 4096}})
    found = {
        finding.text: finding.remedy for finding in [*machine.processors(job), *machine.memory(job)] if finding.remedy
    }
    assert any("but 1 are usable: processes will share them" in text for text in found)
    assert "3.0 GiB available of 4.0 GiB; 4096 scorers need about 1 GiB each" in found
    (remedy,) = (remedy for text, remedy in found.items() if "Ray will use the disk" in text)
    assert remedy == "enlarge /dev/shm (docker: --shm-size)"  # no store that Ray takes fits into 64 MiB


@pytest.mark.parametrize(("size", "free"), [(12, 5), (9, 5), (12, 13), (0.2, 0.17)])
def test_what_ray_does_with_an_object_store_is_foretold(
    size: float, free: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import services, utils

    usage, space = shutil.disk_usage(tmp_path), int(free * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=space))
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: space)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 64 << 30)

    def foretold(gb: float) -> tuple[str, str, str]:
        job = Job.model_validate({"cluster": {"object_store_gb": gb}})
        (found,) = (finding for finding in machine.memory(job) if finding.topic == "object store")
        try:
            place = services.determine_plasma_store_config(cluster.object_store_bytes(job.cluster), "/tmp/ray")[0]
        except ValueError:
            place = "refused"
        assert found.state == {"refused": "problem", "/tmp/ray": "note", "/dev/shm": "ok"}[place], place
        return found.state, found.text, found.remedy

    state, text, remedy = foretold(size)
    assert ("Ray will not start" in text) == (state == "problem")
    if remedy:
        assert foretold(float(remedy.rpartition(" ")[2]))[0] == "ok"


def test_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run(["doctor", "--output.uri", str(tmp_path / "file" / "below")]) == 1
    assert "not healthy: output.uri" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_a_problem() -> None:
    found = list(machine.engine(Job.model_validate({"cluster": {"address": "ray://127.0.0.1:9"}})))
    assert [finding.state for finding in found] == ["problem"]
    assert "ray://127.0.0.1:9" in found[0].text


@pytest.mark.engine
def test_every_node_that_takes_work_is_compared_and_no_other(
    engine: cluster.Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (node,) = ray.nodes()
    head = {**node, "NodeID": "0" * 56, "Resources": {}}  # nothing can run there
    monkeypatch.setattr(ray, "nodes", lambda: [head, node])
    found = machine._cluster_versions()
    assert (found.state, found.text) == ("ok", "versions as here on 1 nodes")
    there = machine.version("torch").partition("+")[0]
    for here, state in ((f"{there}+cu999", "ok"), ("0.9", "problem")):
        monkeypatch.setattr(machine, "version", lambda name, here=here: here if name == "torch" else version(name))
        found = machine._cluster_versions()
        assert found.state == state
    assert f"torch {there}" in found.text and "0.9 here (1 of 1 nodes)" in found.text
    monkeypatch.setattr(ray, "nodes", lambda: [{**node, "NodeID": "0" * 56}])
    assert "cannot run" in machine._cluster_versions().text
    monkeypatch.setattr(ray, "nodes", lambda: [head])
    assert machine._cluster_versions().state == "note"
