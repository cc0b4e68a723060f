"""Bundles: round trip, tampering, and where they are found."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware, scoring
from pneumobatch.models.weights import load_network

Make = Callable[..., bundles.Bundle]


def test_round_trip(tmp_path: Path, make_bundle: Make) -> None:
    made = make_bundle(str(tmp_path))
    assert bundles.load(str(tmp_path)) == made
    assert made.model_id.startswith("attention_resnet18-")
    network = load_network(str(tmp_path), made)
    assert not network.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "CARD.md",
        "bundle.json",
        "history.parquet",
        "model.safetensors",
        "reference.parquet",
    ]
    assert made.model_id in (tmp_path / "CARD.md").read_text()


def test_the_reference_is_bound_by_its_hash_and_older_bundles_have_none(tmp_path: Path, make_bundle: Make) -> None:
    made = make_bundle(str(tmp_path))
    written = (tmp_path / "reference.parquet").read_bytes()
    assert made.reference_sha256 == hashlib.sha256(written).hexdigest()
    path = tmp_path / "bundle.json"
    content = json.loads(path.read_text())
    del content["reference_sha256"]
    path.write_text(json.dumps(content))
    older = bundles.load(str(tmp_path))
    assert older.reference_sha256 == "" and older.identity() == made.identity()


def test_an_uncertain_band_is_bound_and_a_bundle_without_one_keeps_its_name(tmp_path: Path, make_bundle: Make) -> None:
    without, made = make_bundle(str(tmp_path / "a")), make_bundle(str(tmp_path / "b"), uncertain=(0.25, 0.75))
    assert made.model_id != without.model_id
    path = tmp_path / "a" / "bundle.json"
    content = json.loads(path.read_text())
    del content["uncertain"]  # as it was written before there were bands
    path.write_text(json.dumps(content))
    assert bundles.load(str(tmp_path / "a")) == without
    assert bundles.load(str(tmp_path / "b")).uncertain == (0.25, 0.75)
    path = tmp_path / "b" / "bundle.json"
    for band in ([0.25, 0.7], None):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"uncertain": band}))
        with pytest.raises(ValueError, match="was changed"):
            bundles.load(str(tmp_path / "b"))


@pytest.mark.parametrize("key", ["standardise", "mirrored"])
def test_what_the_network_does_to_a_film_belongs_to_the_model(tmp_path: Path, make_bundle: Make, key: str) -> None:
    make_bundle(str(tmp_path))
    path = tmp_path / "bundle.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "network": {**content["network"], key: True}}))
    with pytest.raises(ValueError, match="was changed"):
        bundles.load(str(tmp_path))
    older = {name: value for name, value in content["network"].items() if name not in {"standardise", "mirrored"}}
    path.write_text(json.dumps({**content, "network": older}))
    assert bundles.load(str(tmp_path)).model_id == content["model_id"]


def test_an_identity_of_the_first_bundles_is_still_the_same() -> None:
    network = bundles.Network(name="attention_resnet18", image_size=64)
    bundle = bundles.Bundle(
        format=1, network=network, preprocessing=bundles.Preprocessing(image_size=64), temperature=1.5, threshold=0.5,
        target="x",
    )  # fmt: skip
    assert bundle.identity().startswith("8edc16edbb8c")
    assert bundle.model_copy(update={"offset": 0.25}).identity() != bundle.identity()


def test_another_threshold_or_other_weights_are_refused(tmp_path: Path, make_bundle: Make) -> None:
    make_bundle(str(tmp_path / "a"))
    make_bundle(str(tmp_path / "b"), seed=1)
    path = tmp_path / "a" / "bundle.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "threshold": 0.9}))
    with pytest.raises(ValueError, match="was changed"):
        bundles.load(str(tmp_path / "a"))
    path.write_text(json.dumps(content))
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="not the file that bundle.json was written for"):
        load_network(str(tmp_path / "a"), bundles.load(str(tmp_path / "a")))


@pytest.mark.parametrize("change", [{"validated_age_years": [0, 130]}, {"validated_age_years": None}, {"format": 1}])
def test_other_ages_are_another_model_and_an_older_bundle_keeps_its_name(
    tmp_path: Path, make_bundle: Make, change: dict[str, Any]
) -> None:
    path, ages = tmp_path / "bundle.json", (1, 5)
    older = make_bundle(str(tmp_path), format=1, validated_age_years=ages)
    assert bundles.load(str(tmp_path)) == older  # whose ages its name does not tell
    made = make_bundle(str(tmp_path), validated_age_years=ages)
    assert bundles.load(str(tmp_path)) == made and made.model_id != older.model_id
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="was changed"):
        bundles.load(str(tmp_path))


@pytest.mark.parametrize("name", ["../../elsewhere/x", "attention_resnet152", ""])
def test_a_model_is_called_by_its_network(tmp_path: Path, make_bundle: Make, name: str) -> None:
    made = make_bundle(str(tmp_path))
    path = tmp_path / "bundle.json"
    changed = {"model_id": f"{name}-{made.identity()[:12]}"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match="was changed"):
        bundles.load(str(tmp_path))


def test_a_training_output_stands_for_its_only_bundle(tmp_path: Path, make_bundle: Make) -> None:
    make_bundle(str(tmp_path / "bundles" / "one"))
    assert bundles.locate(str(tmp_path)) == str(tmp_path / "bundles" / "one")
    make_bundle(str(tmp_path / "bundles" / "two"))
    with pytest.raises(ValueError, match=r"several \(one, two\)"):
        bundles.locate(str(tmp_path))
    with pytest.raises(ValueError, match="no bundle.json"):
        bundles.locate(str(tmp_path / "bundles"))


def test_scoring_in_bf16_agrees_with_fp32(bundle_uri: str) -> None:
    bundle = bundles.load(bundle_uri)
    films = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)
    device = torch.device("cpu")
    exact = scoring.eager(bundle_uri, bundle, "fp32", device)(films)
    rough = scoring.eager(bundle_uri, bundle, "bf16", device)(films)
    assert exact.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.05)


def test_compiled_network_agrees_and_is_cached(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hardware.compiler() is None:
        pytest.skip("no C++ compiler is here")
    monkeypatch.setenv("PNEUMOBATCH_CACHE", str(tmp_path))
    bundle = bundles.load(bundle_uri)
    films = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8)
    device = torch.device("cpu")
    path = hardware.compiled_path(bundle, "fp32", 2, "cpu", torch.get_num_threads())
    assert not path.exists()
    first = scoring.compiled(bundle_uri, bundle, "fp32", 2, device)(films)
    assert path.exists()
    torch.testing.assert_close(first, scoring.eager(bundle_uri, bundle, "fp32", device)(films), rtol=1e-3, atol=1e-4)
    written = path.stat().st_mtime_ns
    torch.save(films, tmp_path / "films.pt")
    words = [bundle_uri, str(torch.get_num_threads()), str(tmp_path / "films.pt")]
    found = subprocess.run([sys.executable, "-c", AGAIN, *words], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [first.tolist(), False]
    assert path.stat().st_mtime_ns == written


AGAIN = """
import json, sys, torch
from pneumobatch.models import bundle, scoring
uri, threads, films = sys.argv[1:]
torch.set_num_threads(int(threads))
logits = scoring.compiled(uri, bundle.load(uri), "fp32", 2, torch.device("cpu"))(torch.load(films))
print(json.dumps([logits.tolist(), "torch._dynamo" in sys.modules]))
"""
"""A scorer that finds its network compiled: it does without the compiler, whose import takes two seconds."""
