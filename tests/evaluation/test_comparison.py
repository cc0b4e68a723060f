"""Results of an experiment: numbers from counts, differences on the same films, a page that says what is missing."""

import html
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from pneumobatch import metrics, tables
from pneumobatch.config import Evaluation, Job
from pneumobatch.evaluation import comparison, comparison_report
from pneumobatch.evaluation.comparison import Entry

OPTIONS = Evaluation(bootstrap=300)


def entry(row: str, noise: float, *, seed: int = 0, count: int = 240, protocol: str = "paper_like") -> Entry:
    """A model whose scores blur as `noise` grows; films come in an order of its own, two of each patient."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, count)
    order = np.random.default_rng(seed + len(row)).permutation(count)
    scores = 1 / (1 + np.exp(-(labels * 2 - 1) * 2 - noise * np.random.default_rng(seed + 100).normal(size=count)))
    films = pa.table(
        {
            "image_id": [f"{i:04}" for i in range(count)],
            "label": pa.array(labels, pa.int8()),
            "patient": [f"Secret {i // 2}" for i in range(count)],
            "published_patient": [f"{i // 2:x}" for i in range(count)],
            "probability": scores,
        }
    )
    facts: dict[str, Any] = {
        "row": row, "protocol": protocol, "seed": seed, "status": "done", "threshold": 0.5, "network": row,
        "weights": "random", "image_size": 32, "loss": "focal", "preset": "default", "epochs": 3, "batch_size": 8,
        "learning_rate": 0.001, "target": "balanced", "chosen_epoch": 2, "train_films": 100, "validation_films": 20,
        "parameters": 11_000_000, "multiply_adds": 37_000_000, "hardware": "1 CPU", "arithmetic": "fp32",
        "code": "0123456789ab", "seconds": 66.0, "unreadable": 0,
    }  # fmt: skip
    return Entry(facts, films.take(pa.array(order)))


def missing(row: str, status: str, reason: str) -> Entry:
    facts = {**entry(row, 1.0).facts, "status": status, "reason": reason}
    return Entry({key: facts[key] for key in facts if key not in {"threshold", "chosen_epoch", "seconds"}})


@pytest.fixture(scope="module")
def compared() -> tuple[pa.Table, pa.Table]:
    entries = [
        entry("base", 3.0),
        entry("twin", 3.0),
        entry("sharp", 0.5),
        missing("gone", "failed", "<out of memory>"),
    ]
    return comparison.compare(entries, "base", OPTIONS)


def by_row(results: pa.Table, **wanted: Any) -> dict[str, Any]:
    (found,) = [row for row in results.to_pylist() if all(row[key] == value for key, value in wanted.items())]
    return found


def test_every_entry_is_a_row_in_the_schema_and_in_order(compared: tuple[pa.Table, pa.Table]) -> None:
    results, predictions = compared
    assert results.schema.equals(tables.result_schema(), check_metadata=True)
    assert predictions.schema.equals(tables.trial_prediction_schema(), check_metadata=True)
    assert results["row"].to_pylist() == ["base", "twin", "sharp", "gone"]
    assert by_row(results, row="gone")["reason"] == "<out of memory>"
    assert by_row(results, row="gone")["accuracy"] is None
    assert len(predictions) == 3 * 240


def test_rates_and_tests_can_be_redone_from_the_predictions(compared: tuple[pa.Table, pa.Table]) -> None:
    results, predictions = compared
    scores = {
        name: predictions.filter(pa.compute.equal(predictions["row"], name)).sort_by("image_id").to_pydict()
        for name in ("base", "sharp")
    }
    row, sharp, base = by_row(results, row="sharp"), scores["sharp"], scores["base"]
    counts = metrics.count(sharp["label"], sharp["predicted_label"])
    assert (row["tp"], row["fp"], row["tn"], row["fn"]) == (counts.tp, counts.fp, counts.tn, counts.fn)
    assert (row["accuracy_low"], row["accuracy_high"]) == counts.interval("accuracy")
    assert row["auroc"] == metrics.auroc(sharp["label"], sharp["probability"])
    paired = metrics.mcnemar(sharp["label"], sharp["predicted_label"], base["predicted_label"])
    assert (row["only_row"], row["only_baseline"], row["mcnemar_p"]) == tuple(paired)
    areas = metrics.delong_paired(sharp["label"], sharp["probability"], base["probability"])
    assert areas is not None and row["delong_p"] == areas.p_value
    assert row["auroc_difference"] == pytest.approx(areas.value)


def test_the_same_model_differs_by_nothing_and_a_better_one_by_more_than_chance(
    compared: tuple[pa.Table, pa.Table],
) -> None:
    twin, sharp = (by_row(compared[0], row=name) for name in ("twin", "sharp"))
    assert twin["accuracy_difference"] == 0 and twin["mcnemar_p"] == 1 and twin["delong_p"] == 1
    assert twin["auroc_difference_low"] is None  # a width of 0 would claim certainty
    assert sharp["accuracy_difference_low"] > 0 and sharp["auroc_difference_low"] > 0
    assert sharp["mcnemar_p"] < 0.001 and sharp["delong_p"] < 0.001
    base = by_row(compared[0], row="base")
    assert base["baseline"] and base["accuracy_difference"] is None and base["mcnemar_p"] is None


@pytest.mark.parametrize(
    ("status", "told"), [("stopped", "was stopped early"), ("failed", "failed"), ("not_run", "was not run")]
)
def test_rows_say_why_the_baseline_has_no_numbers(status: str, told: str) -> None:
    found = [missing("base", status, "after epoch 2 of 9"), entry("sharp", 0.5), entry("sharp", 0.5, seed=1)]
    results, _ = comparison.compare(found, "base", OPTIONS)
    row = by_row(results, row="sharp", seed=0)
    assert row["accuracy"] is not None and row["mcnemar_p"] is None
    assert row["reason"] == f"not compared with the baseline, which {told}: after epoch 2 of 9"
    assert row["reason"] in comparison_report.render(Job(), results, "base", {})


def test_several_seeds_have_a_mean_with_an_interval_of_the_mean() -> None:
    entries = [entry(row, noise, seed=seed) for seed in (0, 1, 2) for row, noise in (("base", 3.0), ("sharp", 1.3))]
    results, _ = comparison.compare(entries, "base", OPTIONS)
    mean = by_row(results, row="sharp", status="mean")
    alone = [row for row in results.to_pylist() if row["row"] == "sharp" and row["status"] == "done"]
    assert mean["seeds"] == 3 and mean["seed"] is None
    for name in ("accuracy", "auroc", "accuracy_difference"):
        assert mean[name] == pytest.approx(np.mean([row[name] for row in alone]))
        assert mean[f"{name}_low"] < mean[name] < mean[f"{name}_high"]
    assert by_row(results, row="base", status="mean")["accuracy_difference"] is None


def test_different_test_films_are_never_compared_and_lose_nothing_else() -> None:
    results, _ = comparison.compare([entry("base", 3.0), entry("sharp", 1.3, count=238)], "base", OPTIONS)
    other = by_row(results, row="sharp")
    assert other["test_films"] == 238 and other["auroc"] > 0.9 and other["accuracy_low"] is not None
    assert other["mcnemar_p"] is None and other["delong_p"] is None and other["auroc_difference"] is None
    assert other["reason"].startswith("not compared with the baseline")
    assert other["reason"] in html.unescape(comparison_report.render(Job(), results, "base", {}))


def test_a_mean_is_of_the_seeds_that_share_films_and_differs_where_each_has_its_pair() -> None:
    found = [entry(row, noise, seed=seed) for seed in (0, 1) for row, noise in (("base", 3.0), ("sharp", 1.3))]
    results, _ = comparison.compare(
        [*found, entry("base", 3.0, seed=2, count=238), entry("sharp", 1.3, seed=2)], "base", OPTIONS
    )
    base, sharp = (by_row(results, row=row, status="mean") for row in ("base", "sharp"))
    assert (base["seeds"], sharp["seeds"]) == (2, 3)
    alone = [row["accuracy"] for row in results.to_pylist() if row["row"] == "base" and row["test_films"] == 240]
    assert base["accuracy"] == pytest.approx(np.mean(alone))
    assert sharp["accuracy_difference"] is None and "not each of these seeds" in sharp["reason"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_report.console_table(results, "base"))
    for shown in (console.export_text(), comparison_report.render(Job(), results, "base", {})):
        assert "2 of 3 seeds" in shown and "3 of 3 seeds" in shown


def test_a_mean_tells_what_its_trials_ran_on() -> None:
    found = [entry("base", 3.0, seed=seed) for seed in (0, 1)]
    found[1].facts["hardware"] = "2 CPU"
    found[1].facts["code"] = None
    mean = by_row(comparison.compare(found, "base", OPTIONS)[0], status="mean")
    assert (mean["hardware"], mean["arithmetic"], mean["code"]) == ("mixed", "fp32", "mixed")


def marks(results: pa.Table) -> int:
    """How many differences the page marks as found."""
    return comparison_report.render(Job(), results, "base", {}).count('<span class="mark-drift">')


def test_a_difference_is_marked_where_the_test_and_the_patients_agree(compared: tuple[pa.Table, pa.Table]) -> None:
    assert marks(compared[0]) == 2  # of `sharp`: accuracy and AUROC
    base, sharp = entry("base", 3.0), entry("sharp", 0.5)
    assert base.test is not None and sharp.test is not None
    films = base.test.to_pylist()
    missed = {film["image_id"] for film in films if (film["probability"] >= 0.5) != film["label"]}
    of_one = [  # the same films, but all that `base` calls wrongly are of one patient
        Entry(found.facts, found.test.drop_columns(["patient"]).append_column("patient", pa.array(
            ["one" if name in missed else name for name in found.test["image_id"].to_pylist()]
        )))
        for found in (base, sharp)
        if found.test is not None
    ]  # fmt: skip
    results, _ = comparison.compare(of_one, "base", OPTIONS)
    row = by_row(results, row="sharp")
    assert row["mcnemar_p"] < 0.001 and row["delong_p"] < 0.001 and row["accuracy_difference_low"] <= 0
    assert marks(results) == 0
    assert marks(comparison.compare([base, sharp], "base", Evaluation(bootstrap=0))[0]) == 0  # no interval, no mark


def test_the_page_tells_each_rows_rule_of_the_threshold_or_the_one_of_all(compared: tuple[pa.Table, pa.Table]) -> None:
    assert "the validation fold chose for balanced." in comparison_report.render(Job(), compared[0], "base", {})
    found = [entry("base", 3.0), entry("sharp", 0.5)]
    found[1].facts["target"] = "specificity >= 0.985"
    page = comparison_report.render(Job(), comparison.compare(found, "base", OPTIONS)[0], "base", {})
    assert "chose, by the rule that the table of recipes tells." in page
    assert page.count(">specificity &gt;= 0.985<") == 1 and page.count(">balanced<") == 1


def test_the_page_tells_of_rows_that_are_of_several_versions_of_the_code(compared: tuple[pa.Table, pa.Table]) -> None:
    assert "versions of the code" not in comparison_report.render(Job(), compared[0], "base", {})
    found = [entry("base", 3.0), entry("sharp", 0.5)]
    found[1].facts["code"] = None
    page = comparison_report.render(Job(), comparison.compare(found, "base", OPTIONS)[0], "base", {})
    assert "Rows of 2 versions of the code; their differences may be the code's." in page
    assert "code 0123456789ab" in page and "code unknown" in page


def test_the_page_tells_what_is_missing_and_names_no_patient(compared: tuple[pa.Table, pa.Table]) -> None:
    results, predictions = compared
    page = comparison_report.render(Job(), results, "base", {"paper_like": "120 films held out"})
    assert "failed: &lt;out of memory&gt;" in page
    assert "120 films held out".capitalize() in page
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "Secret" not in page and "Secret" not in str(predictions["patient"].to_pylist())
    assert "0.05 / 4 = 0.013" in page
