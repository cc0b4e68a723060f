"""Every file of the corpus ends as one row, in a process that stays small; every archive as rows or as one error."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import corpus
import pyarrow as pa
import pytest

from pneumobatch.archive import catalog, sandbox
from pneumobatch.archive.errors import Reason
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.config import Archive

PEAK = 400
"""Resident memory that the decoding process may reach on the corpus, MB: itself, and the largest film thrice."""
RULES = {"modality", "for_processing", "body_part", "view", "age", "blank", "inverted", "not_an_xray"}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[sandbox.Sandbox]:
    """A decoding process of this test's own."""
    child = sandbox.Sandbox(seconds=30)
    monkeypatch.setattr(sandbox, "shared", child)
    yield child
    child.stop()


def peak(child: sandbox.Sandbox) -> float:
    """The most that the process ever held in memory, MB."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def check(rows: list[dict[str, object]]) -> None:
    for row in rows:
        if row["status"] == "failed":
            Reason(row["reason"])
        else:
            assert row["reason"] in (RULES if row["status"] == "rejected" else {None})
        assert (row["pixels"] is None) == (row["status"] != "scored")


def test_every_damaged_film_ends_as_one_row(tmp_path: Path, child: sandbox.Sandbox) -> None:
    for name, data in corpus.films(seed=0):
        (tmp_path / name).write_bytes(data)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) >= 1000
    decoder, found = FilmDecoder(64, corpus.MAX_PIXELS), {}
    for start in range(0, len(names), 50):
        some = names[start : start + 50]
        rows = decoder(pa.table({"image_id": some, "uri": [str(tmp_path / name) for name in some]})).to_pylist()
        assert [row["image_id"] for row in rows] == some
        check(rows)
        found |= {row["image_id"]: row["reason"] for row in rows}
        assert peak(child) < PEAK
    reasons = Counter(found.values())
    assert reasons["crashed"] < 10  # by native code, whatever is found in it later
    assert min(reasons[name] for name in ("truncated", "corrupt", "not_an_image", "too_many_pixels")) > 20
    assert found["deflated.dcm"] == "too_large"
    assert found["scans20000.jpeg"] == "unsupported"
    assert found["claims-4294967295x4294967295.png"] == "too_many_pixels"
    assert found["nested50000-film.dcm"] == "corrupt"


def test_every_damaged_parquet_ends_in_rows_or_in_one_error(tmp_path: Path, child: sandbox.Sandbox) -> None:
    decoder, built, reasons = FilmDecoder(64, corpus.MAX_PIXELS), 0, Counter()
    for name, data in corpus.parquets(seed=0):
        (tmp_path / name).write_bytes(data)
        try:
            rows = catalog.find_duplicates(catalog.build(Archive(uri=str(tmp_path / name))))
        except ValueError as error:
            assert name in str(error)
            assert "SECRET" not in str(error)
            continue
        decoded = decoder(rows).to_pylist()
        assert len(decoded) == len(rows)
        check(decoded)
        built += 1
        reasons.update(row["reason"] for row in decoded)
    assert built > 40
    assert reasons["corrupt"] > 20
    assert peak(child) < PEAK
