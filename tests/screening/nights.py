"""An archive that grows from night to night, and what its nights publish."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pneumobatch import storage
from pneumobatch.archive import phantoms
from pneumobatch.config import Job


def write(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    picture = (phantoms.film(np.random.default_rng(seed), seed % 2, 96, 96) >> 8).astype(np.uint8)
    Image.fromarray(picture).save(folder / name, "PNG")
    return folder / name


def job(folder: Path, bundle: str, **more: Any) -> Job:
    return Job.model_validate(
        {
            "archive": {"uri": str(folder / "in")},
            "screening": {"bundle": bundle, "nightly": True, "block_images": 8, **more},
            "evaluation": {"bootstrap": 20, "thresholds": 11},
            "output": {"uri": str(folder / "out")},
        }
    )


def rows(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for path in record["predictions"] for row in storage.read_table(str(folder / "out" / path)).to_pylist()]


def names(folder: Path, record: dict[str, Any]) -> list[str]:
    return [row["uri"].rsplit("/", 1)[-1] for row in rows(folder, record)]
