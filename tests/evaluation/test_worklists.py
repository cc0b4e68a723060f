import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pneumobatch import tables
from pneumobatch.evaluation.worklists import discrepancies, review


def test_the_review_list_ranks_what_nobody_has_labelled(make_predictions):
    films = make_predictions(labelled=0.5)
    found = review(films)
    wanted = films.filter((pc.field("status") == "scored") & pc.field("label").is_null())
    assert set(found["image_id"].to_pylist()) == set(wanted["image_id"].to_pylist())
    assert found["rank"].to_pylist() == list(range(1, len(found) + 1))
    scores = found["probability"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert found.schema.equals(tables.review_schema(), check_metadata=True)


def test_the_discrepancy_list_ranks_by_how_far_the_model_is_wrong(predictions):
    found = discrepancies(predictions).to_pylist()
    wanted = [
        row
        for row in predictions.to_pylist()
        if row["status"] == "scored" and row["label"] is not None and row["label"] != row["predicted_label"]
    ]
    assert {row["image_id"] for row in found} == {row["image_id"] for row in wanted} and found
    gaps = [(p - 0.42) / 0.58 if p >= 0.42 else (0.42 - p) / 0.42 for p in (row["probability"] for row in found)]
    assert [row["gap"] for row in found] == pytest.approx(gaps)
    assert gaps == sorted(gaps, reverse=True) and 0 <= min(gaps) < max(gaps) <= 1
    assert {row["label"] for row in found[:20]} == {0, 1}  # neither kind of error hides the other


def test_a_threshold_at_the_edge_has_gaps_of_nothing(predictions):
    index = predictions.column_names.index("threshold")
    films = predictions.set_column(index, "threshold", pa.array([1.0] * len(predictions)))
    assert 0 <= pc.min(discrepancies(films)["gap"]).as_py()


def test_equal_scores_rank_the_same_in_any_order(make_predictions):
    films = make_predictions(labelled=0)
    index = films.column_names.index("probability")
    flat = films.set_column(index, "probability", pa.array([0.5] * len(films)))
    assert review(flat).equals(review(flat.take(list(range(len(flat)))[::-1])))


def test_nothing_to_look_at_is_an_empty_list(make_predictions):
    assert len(discrepancies(make_predictions(labelled=0))) == 0
    assert len(review(make_predictions(0))) == 0
