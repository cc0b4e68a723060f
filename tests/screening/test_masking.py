"""Covered regions: where they lie, and that the table tells a network that lives on borders from one that does not."""

import numpy as np
import pyarrow as pa
import pytest

from pneumobatch import config, tables
from pneumobatch.screening import masking

SIZE, FILMS = 64, 240
RECORD = {"run_id": "r", "model_id": "m"}
OPTIONS = config.Evaluation(bootstrap=200)


def films(shows_in: str = "border", patients: int | None = None) -> tuple[pa.Table, np.ndarray]:
    """Films whose class shows in the brightness of one region, with noise; the others are flat."""
    generator = np.random.default_rng(0)
    labels = np.arange(FILMS) % 2
    grey = np.full((FILMS, SIZE, SIZE), 100.0)
    grey += masking.regions(SIZE)[shows_in] * (30 * labels + generator.normal(0, 12, FILMS))[:, None, None]
    rows = [
        {
            "image_id": f"{i * 7919 % FILMS:032x}",
            "status": "scored",
            "probability": 0.5,
            "threshold": 0.5,
            "model_id": "m",
            "run_id": "r",
            "label": int(label),
            "patient": None if patients is None else str(i % patients),
        }
        for i, label in enumerate(labels)
    ]
    return pa.Table.from_pylist(rows, schema=tables.prediction_schema([])), np.clip(grey, 0, 255).astype(np.uint8)


def looking_at(region: str):
    """A network that judges by the brightness of one region alone."""
    where = masking.regions(SIZE)[region]

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(pixels[:, where].mean(1) - 115) / 6))

    return probabilities


def test_the_regions_are_the_outer_tenth_the_corners_and_a_centre_as_large() -> None:
    where = masking.regions(100)
    assert not where["none"].any()
    assert where["border"].sum() == 100**2 - 80**2 and where["border"][9].all() and not where["border"][50, 10:90].any()
    assert where["corners"].sum() == 4 * 20**2 and where["corners"][0, 0] and not where["corners"][0, 20]
    assert where["centre"].sum() == where["border"].sum() and not (where["centre"] & where["border"]).any()
    for region in where.values():
        assert np.array_equal(region, region.T) and np.array_equal(region, region[::-1, ::-1])


def test_a_cover_is_the_mean_of_the_rest_and_leaves_the_rest() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    before, border = pixels.copy(), masking.regions(40)["border"]
    found = masking.covered(pixels, border)
    assert found.dtype == np.uint8 and np.array_equal(pixels, before)
    assert np.array_equal(found[:, ~border], pixels[:, ~border])
    for film, whole in zip(found, pixels, strict=True):
        assert (film[border] == round(whole[~border].mean())).all()


@pytest.mark.parametrize("patients", [None, 60])
def test_the_table_names_the_region_that_a_network_lives_on(patients: int | None) -> None:
    for region, other in (("border", "centre"), ("centre", "border")):
        table, pixels = films(region, patients)
        found = masking.measure(table, pixels, looking_at(region), OPTIONS, RECORD)
        assert found.schema.equals(tables.masking_schema(), check_metadata=True)
        rows = {row["region"]: row for row in found.to_pylist()}
        assert list(rows) == ["none", "border", "corners", "centre"]
        assert {(row["run_id"], row["model_id"]) for row in rows.values()} == {("r", "m")}
        whole, lost, kept = rows["none"], rows[region], rows[other]
        assert (whole["films"], whole["positives"], whole["negatives"]) == (FILMS, FILMS // 2, FILMS // 2)
        assert whole["auroc_low"] < whole["auroc"] < whole["auroc_high"] and whole["auroc_change"] is None
        assert lost["auroc_change"] == pytest.approx(lost["auroc"] - whole["auroc"])
        assert lost["auroc_change_low"] < lost["auroc_change"] < lost["auroc_change_high"] < -0.1
        assert lost["changed_calls"] > 0.1 * FILMS and lost["mean_change"] > 0.1 and lost["accuracy_change"] < -0.1
        assert (kept["auroc_change"], kept["changed_calls"], kept["mean_change"]) == (0, 0, 0)
        assert kept["auroc_change_low"] is kept["auroc_change_high"] is None  # a width of 0 would claim certainty


def test_a_sample_has_half_of_each_class_as_far_as_there_are_so_many() -> None:
    table, _ = films()
    labels = table["label"].to_numpy()
    rows = masking.sample(table, 21, seed=1)
    assert len(set(rows.tolist())) == 21 and labels[rows].sum() == 11
    assert len(masking.sample(table, 5000, seed=1)) == FILMS
    few = table.filter(pa.array((labels == 0) | (np.arange(FILMS) < 6)))
    assert few["label"].to_numpy()[masking.sample(few, 20, seed=1)].sum() == 3
    # The same films, in whatever order they came.
    back = table.take(pa.array(np.arange(FILMS)[::-1]))
    drawn = [set(t["image_id"].take(pa.array(masking.sample(t, 20, 1))).to_pylist()) for t in (table, back)]
    assert drawn[0] == drawn[1]
