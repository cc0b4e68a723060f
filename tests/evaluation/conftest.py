"""Synthetic predictions with the shape of a real run: classes overlap, subgroups differ, some films never score."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pneumobatch import storage, tables

Predictions = Callable[..., pa.Table]
THRESHOLD = 0.42
BAND = (0.2, 0.75)


def synthetic(films: int = 600, seed: int = 0, labelled: float = 0.95, separation: float = 2.2) -> pa.Table:
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(films):
        sick = generator.random() < 0.62
        logit = generator.normal(separation if sick else -separation, 1.9)
        status, reason = generator.choice(
            [("scored", None), ("rejected", "view_not_frontal"), ("rejected", "pixel_check_blank"),
             ("failed", "truncated_jpeg"), ("duplicate", None)],
            p=[0.95, 0.02, 0.01, 0.01, 0.01],
        ) if i else ("scored", None)  # fmt: skip
        probability = float(1 / (1 + np.exp(-logit))) if status == "scored" else None
        rows.append(
            {
                "image_id": f"{i:032x}",
                "uri": f"secret/Doe_Jane_{i}/IM-{i}.dcm",
                "status": status,
                "reason": reason,
                "probability": probability,
                "predicted_label": None if probability is None else int(probability >= THRESHOLD),
                "threshold": THRESHOLD,
                "uncertain": None if probability is None else BAND[0] <= probability <= BAND[1],
                "model_id": "attention_resnet50-3f9c2a77",
                "run_id": "2026-10-01-night",
                "label": int(sick) if generator.random() < labelled else None,
                "patient": f"patient-{i // 2}",
                "format": "dicom",
                "age_years": int(generator.choice([0, 1, 2, 3, 4, 5, 9, 14])),
                "sex": str(generator.choice(["F", "M"])),
                "view": str(generator.choice(["PA", "AP"], p=[0.8, 0.2])),
                "manufacturer": str(generator.choice(["Alpha", "Beta", "Gamma"], p=[0.66, 0.32, 0.02])),
                "etiology": str(generator.choice(["bacteria", "virus"])) if sick else None,
                "scored_at": datetime(2026, 10, 1, 2, 3, 4, tzinfo=UTC),
            }
        )
    return pa.Table.from_pylist(rows, schema=tables.prediction_schema(["etiology"]))


@pytest.fixture(scope="session")
def predictions() -> pa.Table:
    return synthetic()


@pytest.fixture(scope="session")
def make_predictions() -> Predictions:
    return synthetic


@pytest.fixture(scope="session")
def without_paths(predictions: pa.Table) -> pa.Table:
    """As of a DICOM archive."""
    index = predictions.column_names.index("uri")
    return predictions.set_column(index, "uri", pa.nulls(len(predictions), pa.string()))


@pytest.fixture(scope="session")
def reference() -> pa.Table:
    """A bundle's reference that knows scores, ages, sexes, views and manufacturers."""
    films = synthetic(2000, seed=7)
    return tables.upgraded(films.select(tables.reference_schema().names), tables.reference_schema())


@pytest.fixture
def record(predictions: pa.Table) -> dict[str, Any]:
    counts = {str(s): predictions["status"].to_pylist().count(s) for s in tables.Status}
    return {
        "run_id": "2026-10-01-night",
        "model_id": "attention_resnet50-3f9c2a77",
        "verb": "screen",
        "started_at": "2026-10-01T01:00:00+00:00",
        "finished_at": "2026-10-01T02:10:00+00:00",
        "counts": {"catalogued": len(predictions), **counts},
        "predictions": ["predictions/model_id=m/run_date=2026-10-01/part-0.parquet"],
        "bundle": "/models/private/attention_resnet50",
        "threshold": THRESHOLD,
        "versions": {"pneumobatch": "0.1.0", "torch": "2.11.0", "ray": "2.55.0"},
        "weights_sha256": "3f9c2a77" * 8,
        "hardware": {"cpus": 2, "gpus": 0, "nodes": 1},
        "seconds": 61.2,
        "config": {"archive": {"uri": "/mnt/pacs/Doe_Jane", "key_column": "uri"}, "screening": {"batch_size": 32}},
    }


@pytest.fixture(scope="session")
def history() -> pa.Table:
    epochs = np.arange(1, 21)
    rise = 1 - np.exp(-epochs / 4)
    return pa.table(
        {
            "epoch": epochs,
            "train_loss": 0.6 * np.exp(-epochs / 5) + 0.04,
            "validation_loss": 0.5 * np.exp(-epochs / 4) + 0.10 + 0.002 * epochs,
            "accuracy": 0.70 + 0.25 * rise,
            "sensitivity": 0.75 + 0.22 * rise,
            "specificity": 0.60 + 0.32 * rise,
            "auroc": 0.80 + 0.185 * rise,
            "learning_rate": 1e-3 * (1 + np.cos(np.pi * epochs / 20)) / 2,
            "images_per_second": 140.0 + epochs,
        }
    )


Publish = Callable[[Path, pa.Table, dict[str, Any], str, str], None]


@pytest.fixture(scope="session")
def publish() -> Publish:
    """Writes predictions and their run record as screening does."""

    def write(folder: Path, films: pa.Table, record: dict[str, Any], run_id: str, date: str) -> None:
        path = f"predictions/model_id={record['model_id']}/run_date={date}/{run_id}.parquet"
        index = films.column_names.index("model_id")
        films = films.set_column(
            index, films.schema.field(index), pa.array([record["model_id"]] * len(films), pa.string())
        )
        storage.write_table(storage.join(str(folder), path), films)
        counts = {"catalogued": len(films)} | {str(s): films["status"].to_pylist().count(s) for s in tables.Status}
        mine = {"run_id": run_id, "predictions": [path], "finished_at": f"{date}T02:10:00+00:00", "counts": counts}
        storage.write_bytes(storage.join(str(folder), "runs", f"{run_id}.json"), json.dumps(record | mine).encode())

    return write
