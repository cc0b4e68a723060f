import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow as pa
import pytest

from pneumobatch import metrics
from pneumobatch.evaluation import figures

THRESHOLD = 0.42


def draw(films=500, gap=1.5, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(films) < 0.6).astype(int)
    return labels, 1 / (1 + np.exp(-generator.normal(gap * (2 * labels - 1), 1.5)))


def everything(labels, scores, history):
    counts = metrics.count(labels, scores >= THRESHOLD)
    grid = np.linspace(0, 1, 21)
    classes = [("pneumonia", figures.PNEUMONIA, scores[labels == 1]), ("normal", figures.NORMAL, scores[labels == 0])]
    return {
        "confusion": figures.confusion_matrix(counts),
        "roc": figures.roc(labels, scores, counts, metrics.delong_interval(labels, scores), THRESHOLD),
        "precision_recall": figures.precision_recall(labels, scores, counts, THRESHOLD),
        "reliability": figures.reliability(labels, scores),
        "reliability_local": figures.reliability(labels, metrics.shift_prior(scores, 0.6, 0.1), 10, 0.1),
        "scores": figures.scores(classes, THRESHOLD),
        "trade_off": figures.trade_off(grid.tolist(), metrics.grid_counts(labels, scores, grid), THRESHOLD),
        "training": figures.training_curves(history),
    }


def text(svg):
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    )


@pytest.fixture(scope="module")
def drawn(history):
    return everything(*draw(), history)


def test_figures_are_svg_with_ids_of_their_own(drawn):
    ids = [node.get("id") for svg in drawn.values() for node in ElementTree.fromstring(svg).iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    for svg in drawn.values():
        assert svg.startswith("<svg ") and 'role="img"' in svg
        refs = [n.get(k) for n in ElementTree.fromstring(svg).iter() for k in n.attrib if k.endswith("href")]
        assert all(ref[1:] in ids for ref in refs)


def test_figures_are_the_same_bytes_every_time(drawn, history):
    assert everything(*draw(), history) == drawn


def test_figures_say_their_numbers(drawn):
    labels, scores = draw()
    counts = metrics.count(labels, scores >= THRESHOLD)
    for number in (counts.tp, counts.fp, counts.tn, counts.fn):
        assert f"{number:,}" in text(drawn["confusion"])
    assert f"AUROC {metrics.auroc(labels, scores):.3f} (" in text(drawn["roc"])
    assert "prevalence" in text(drawn["precision_recall"])
    assert f"ECE {metrics.ece(labels, scores):.3f}" in text(drawn["reliability"])
    assert f"{counts.tp:,} at or above the threshold" in text(drawn["scores"])


def test_extreme_and_empty_cases_draw(history):
    perfect = np.array([0] * 30 + [1] * 30), np.array([0.0] * 30 + [1.0] * 30)
    assert all(everything(*perfect, history).values())
    figures.confusion_matrix(metrics.Counts(tp=3))
    figures.scores([("label unknown", figures.MUTED, np.array([0.5]))], None)
    figures.scores([], 0.5)
    never = metrics.Counts(fn=30, tn=30)
    figures.precision_recall(*perfect, never, 1.0)


def test_many_films_stay_a_small_figure():
    labels, scores = draw(films=100_000)
    counts = metrics.count(labels, scores >= THRESHOLD)
    assert len(figures.roc(labels, scores, counts, None, THRESHOLD)) < 80_000


def test_training_curves_need_epochs(history):
    assert figures.training_curves(history.drop_columns("epoch")) is None
    assert figures.training_curves(history.select(["epoch", "images_per_second"])) is None
    assert figures.training_curves(history.slice(0, 0)) is None
    gaps = pa.table({"epoch": [1, 2], "train_loss": [0.5, None], "auroc": pa.nulls(2, pa.float64())})
    assert "Validation" not in text(figures.training_curves(gaps))


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.99996, ">0.999"), (1.0, "1.000"), (0.0001, "<0.001"), (0.0, "0.000")]
)
def test_a_rate_does_not_pass_for_one(value, shown):
    assert figures.three(value) == shown
