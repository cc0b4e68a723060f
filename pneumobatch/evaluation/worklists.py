"""What a person should look at next: films nobody has labelled, and films where model and label disagree.

In: predictions with what labels are known. Out: `tables.review_schema`, `tables.discrepancy_schema`, each ranked.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import tables


def review(films: pa.Table) -> pa.Table:
    """Returns the scored films without a known label, the most probable pneumonia first."""
    unknown = films.filter((pc.field("status") == tables.Status.SCORED) & pc.field("label").is_null())
    return _ranked(unknown, "probability", tables.review_schema())


def discrepancies(films: pa.Table) -> pa.Table:
    """Returns the scored films whose known label is not the model's call, the furthest beyond the threshold first."""
    wrong = films.filter(
        (pc.field("status") == tables.Status.SCORED) & (pc.field("predicted_label") != pc.field("label"))
    )
    probability, threshold = wrong["probability"].to_numpy(), wrong["threshold"].to_numpy()
    side = np.where(probability < threshold, threshold, 1 - threshold)
    gap = np.abs(probability - threshold) / np.maximum(side, np.finfo(float).tiny)
    wrong = wrong.append_column("gap", pa.array(gap))
    return _ranked(wrong, "gap", tables.discrepancy_schema())


def _ranked(films: pa.Table, by: str, schema: pa.Schema) -> pa.Table:
    # image_id settles ties, so that the same films have the same ranks whatever order they came in.
    films = films.sort_by([(by, "descending"), ("image_id", "ascending")])
    films = films.append_column("rank", pa.array(np.arange(1, len(films) + 1)))
    return pa.table([films[field.name].cast(field.type) for field in schema], schema=schema)
