import pyarrow as pa
import pyarrow.compute as pc

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
    gaps = [abs(row["probability"] - row["threshold"]) for row in found]
    assert gaps == [row["gap"] for row in found] == sorted(gaps, reverse=True)


def test_equal_scores_rank_the_same_in_any_order(make_predictions):
    films = make_predictions(labelled=0)
    index = films.column_names.index("probability")
    flat = films.set_column(index, "probability", pa.array([0.5] * len(films)))
    assert review(flat).equals(review(flat.take(list(range(len(flat)))[::-1])))


def test_nothing_to_look_at_is_an_empty_list(make_predictions):
    assert len(discrepancies(make_predictions(labelled=0))) == 0
    assert len(review(make_predictions(0))) == 0
