"""The grid: rows by name, what they change, and what is refused. No engine."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pneumobatch.config import Job, read_job
from pneumobatch.training import grid
from pneumobatch.training.protocols import Split

JOBS = Path(__file__).parents[2] / "jobs"


def job(factors: dict[str, Any], **sections: Any) -> Job:
    return Job.model_validate({"factors": factors, **sections})


NETWORKS = [
    {"name": "plain", "network": {"name": "resnet18"}},
    {"name": "gated", "network": {"side_branches": False}},
]
RECIPES = [{"name": "ours"}, {"name": "paper", "training": {"preset": "paper"}}]


def test_rows_are_the_product_of_the_levels_over_the_common_ground() -> None:
    rows = grid.rows(job({"network": NETWORKS, "recipe": RECIPES}, network={"image_size": 64}, training={"epochs": 3}))
    assert list(rows) == ["plain, ours", "plain, paper", "gated, ours", "gated, paper"]
    assert all(row.network.image_size == 64 and row.training.epochs == 3 for row in rows.values())
    assert rows["plain, ours"].network.name == "resnet18"
    assert rows["gated, ours"].network.name == "attention_resnet50" and not rows["gated, ours"].network.side_branches
    assert rows["plain, ours"].training.batch_size == 64
    assert rows["plain, paper"].training.batch_size == 16 and rows["plain, paper"].augmentation.flip == 0


@pytest.mark.parametrize("name", ["paper-ablation", "paper-comparison", "loss-sweep"])
def test_committed_grids_are_whole(name: str) -> None:
    parsed = Job.model_validate(read_job(JOBS / f"{name}.toml"))
    rows = grid.rows(parsed)
    assert len(rows) == {"paper-ablation": 30, "paper-comparison": 11, "loss-sweep": 12}[name]
    assert grid.baseline(parsed) in rows
    assert len({row.network.image_size for row in rows.values()}) == 1
    assert len({row.training.epochs for row in rows.values()}) == 1


def test_the_sweep_chooses_by_shifted_films_and_changes_films_as_the_recipe_does() -> None:
    sweep, best = (Job.model_validate(read_job(JOBS / f"{name}.toml")) for name in ("loss-sweep", "kermany-best"))
    assert all(row.training.validation == "shifted" for row in grid.rows(sweep).values())
    assert sweep.augmentation == best.augmentation
    smaller = {"name": sweep.network.name, "image_size": sweep.network.image_size}
    assert sweep.network == best.network.model_copy(update=smaller)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (job({}), "factors: the job names none"),
        (job({"network": []}), "factors.network: has no level"),
        (job({"network": [NETWORKS[0], NETWORKS[0]]}), "two rows have the same name"),
        (
            job({"a": [{"name": "a", "loss": {"gamma": 1}}], "b": [{"name": "b", "loss": {"gamma": 2}}]}),
            "'a, b' give loss.gamma different values",
        ),
        (job({"r": [{"name": "other", "training": {"seed": 1}}]}), "the seeds of all rows are experiment.seeds"),
        (job({"r": [{"name": "other", "training": {"validation_fraction": 0.5}}]}), "all rows share one fold"),
        (job({"network": NETWORKS}, experiment={"baseline": "plan"}), "did you mean 'plain'?"),
        (
            job({"r": [{"name": "ours", "training": {"preset": "default"}}]}, training={"preset": "paper"}),
            "take it out there",
        ),
    ],
)
def test_a_wrong_grid_is_refused_with_the_remedy(given: Job, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        grid.rows(given)


def test_a_level_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factors\.loss\.0\.loss\.gama"):
        job({"loss": [{"name": "x", "loss": {"gama": 1}}]})


def _split(labels: list[int], size: int = 9000) -> Split:
    films = pa.table(
        {
            "image_id": [str(i) for i in range(len(labels))],
            "label": pa.array(labels, pa.int8()),
            "bytes": pa.array([9000] * (len(labels) - 1) + [size], pa.int64()),
        }
    )
    return Split(films, films, films, "")


def test_a_trial_is_known_by_all_that_its_scores_depend_on_and_by_nothing_else() -> None:
    def keys(labels: list[int], size: int = 9000, **sections: Any) -> list[str]:
        splits = {"official": _split(labels, size)}
        return [trial.key for trial in grid.trials(job({"n": NETWORKS}, **sections), splits)]

    keys_before = keys([0, 1])
    assert len(set(keys_before)) == 2
    assert keys([0, 1], training={"workers": 2, "target": "balanced", "max_failures": 9}) == keys_before
    assert keys([0, 1], training={"uncertain": (0.9, 0.9), "rationale": "none"}) == keys_before
    assert not set(keys([0, 1], training={"epochs": 7})) & set(keys_before)
    assert not set(keys([0, 1], augmentation={"flip": 0.1})) & set(keys_before)
    assert not set(keys([1, 1])) & set(keys_before)
    assert not set(keys([0, 1], size=9001)) & set(keys_before)  # a film was mended under its name
    assert not set(keys([0, 1], archive={"max_pixels": 2000})) & set(keys_before)  # other films can be read
    assert not set(keys([0, 1], archive={"max_bytes": 2000})) & set(keys_before)
    assert not set(keys([0, 1], experiment={"seeds": [5]})) & set(keys_before)
    assert keys([0, 1], experiment={"seeds": [0, 5]})[:2] == keys_before


@pytest.mark.parametrize(
    "changed",
    [
        [{"loss": {"name": "cross_entropy", "gamma": gamma}} for gamma in (1.0, 2.0)],
        [{"loss": {"name": "cross_entropy", "alpha": alpha}} for alpha in (0.25, 0.5)],
        [{"loss": {"name": "focal", "literal_scale": literal}} for literal in (True, False)],
        [{"training": {"step_epochs": epochs}} for epochs in (5, 6)],
        [{"network": {"name": "timm/resnet18", "channel_gate": gate}} for gate in (True, False)],
    ],
)
def test_what_a_recipe_does_not_look_at_makes_no_other_trial(changed: list[dict[str, Any]]) -> None:
    rows = job({"r": [{"name": str(number), **level} for number, level in enumerate(changed)]})
    with pytest.raises(ValueError, match="rows '0' and '1' learn the same"):
        grid.trials(rows, {"official": _split([0, 1])})


def test_a_trial_is_known_by_what_its_starting_weights_hold(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"

    def key() -> str:
        rows = job({"n": [{"name": "a"}]}, network={"weights": str(weights)})
        return grid.trials(rows, {"official": _split([0, 1])})[0].key

    with pytest.raises(ValueError, match=r"network\.weights: .*weights\.safetensors cannot be read"):
        key()
    weights.write_bytes(b"one")
    before = key()
    weights.write_bytes(b"two")
    assert key() != before
    weights = weights.with_name("moved.safetensors")
    weights.write_bytes(b"one")
    assert key() == before


def test_two_rows_of_one_recipe_are_refused() -> None:
    same = job({"n": [{"name": "a"}, {"name": "b", "network": {"name": "attention_resnet50"}}]})
    with pytest.raises(ValueError, match="rows 'a' and 'b' learn the same"):
        grid.trials(same, {"official": _split([0, 1])})
