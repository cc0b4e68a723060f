"""A small labelled folder that the archive's tests share."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def png(value: int) -> bytes:
    """A grey picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = {
        "NORMAL/IM-0001-0001.png": 1,
        "NORMAL/NORMAL2-IM-0001-0002-0001.png": 2,
        "PNEUMONIA/person7_bacteria_1.png": 3,
        "PNEUMONIA/person7_bacteria_2.png": 3,
        "PNEUMONIA/person7_virus_9.png": 4,
        "other.png": 5,
    }
    for name, value in names.items():
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return tmp_path / "films"
