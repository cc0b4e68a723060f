"""A look into the network over a real run: pictures where they may leave, the check of the borders everywhere."""

import io
import re
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pneumobatch import cli, cluster, tables
from pneumobatch.models import bundle as bundles
from pneumobatch.screening.pictures import OUTCOMES, chosen

BAND = (0.2, 0.8)
OPEN = {".jpeg", ""}  # and the folders of the classes
WANTED = ["--evaluation.heat_maps", "2", "--evaluation.masked_films", "12", "--evaluation.bootstrap", "20"]


@pytest.fixture(scope="module")
def site(
    engine: cluster.Resources,
    films: Path,
    make_bundle: Callable[..., bundles.Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs of one model over copies of the phantoms: of JPEG files alone, of all with DICOM among them, and of the JPEG
    files among these."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(films, folder / "films")
    shutil.copytree(
        films, folder / "pictures", ignore=lambda _, names: [n for n in names if Path(n).suffix not in OPEN]
    )
    make_bundle(str(folder / "bundle"), uncertain=BAND)
    for run_id, archive, pattern in (("jpeg", "pictures", "*"), ("dicom", "films", "*"), ("beside", "films", "*.jpeg")):
        options = ["--screening.run_id", run_id, "--archive.include", pattern, "--screening.failure_budget", "0.9"]
        place = ["--archive.uri", str(folder / archive), "--output.uri", str(folder / "out")]
        assert cli.run(["screen", *place, "--screening.bundle", str(folder / "bundle"), *options]) == 0
    return folder


def evaluated(site: Path, run_id: str, *more: str) -> tuple[str, list[Path]]:
    """The run's page, and its tables of the masked films."""
    place = ["--output.uri", str(site / "out"), "--evaluation.run_id", run_id]
    assert cli.run(["evaluate", *place, *more]) == 0
    page = (site / "out" / "reports" / run_id / "index.html").read_text()
    return page, sorted((site / "out" / "masking").rglob(f"{run_id}-*.parquet"))


def rows(site: Path, run_id: str) -> pa.Table:
    (file,) = (site / "out" / "predictions").rglob(f"{run_id}.parquet")
    return pq.ParquetFile(file).read()


@pytest.mark.engine
def test_screening_marks_what_is_uncertain(site: Path) -> None:
    table = rows(site, "dicom")
    inside = pc.and_(pc.greater_equal(table["probability"], BAND[0]), pc.less_equal(table["probability"], BAND[1]))
    assert table["uncertain"].equals(inside)
    assert table["uncertain"].null_count == len(table) - table["status"].to_pylist().count("scored") > 0


@pytest.mark.engine
def test_pictures_and_borders_of_a_run_without_dicom(site: Path) -> None:
    page, (masking,) = evaluated(site, "jpeg", *WANTED)
    table = pq.read_table(masking, partitioning=None)
    assert table.schema.equals(tables.masking_schema(), check_metadata=True)
    assert table["films"].to_pylist() == [12] * 4 and table["positives"][0].as_py() == 6
    # Film, evidence and gate; nothing but data in the page, and nothing but pixels in the data.
    sources = re.findall(r'<img src="([^"]*)"', page)
    known = rows(site, "jpeg").filter((pc.field("status") == "scored") & pc.field("label").is_valid())
    shown = chosen(known, 2)
    assert len(sources) == 3 * len(shown) > 0 and "img-src data:;" in page.replace('">', ";")
    for source in sources:
        head, _, data = source.partition(",")
        picture = Image.open(io.BytesIO(b64decode(data)))
        assert head == "data:image/jpeg;base64" and picture.size == (224, 224) and not picture.getexif()
    grey = np.asarray(Image.open(io.BytesIO(b64decode(sources[0].partition(",")[2]))))
    assert grey.ndim == 2 and grey.std() > 10
    for name in shown["uri"].to_pylist():
        assert name in page
    assert "holds pictures of films" in page and "Does it live on markers and borders?" in page


@pytest.mark.engine
@pytest.mark.parametrize("run_id", ["dicom", "beside"])
def test_no_picture_of_an_archive_with_dicom_leaves_but_its_borders_are_checked(run_id: str, site: Path) -> None:
    page, (masking,) = evaluated(site, run_id, *WANTED)
    assert "<img" not in page and "img-src" not in page and "base64" not in page
    assert "No heat maps: the archive holds DICOM films" in page
    assert rows(site, run_id)["uri"].null_count == len(rows(site, run_id))  # so the archive was listed again
    assert pq.read_table(masking, partitioning=None)["films"][0].as_py() == 12


@pytest.mark.engine
def test_by_default_nothing_is_looked_at(site: Path) -> None:
    before = sorted((site / "out").rglob("masking/**/*.parquet"))
    page, _ = evaluated(site, "jpeg", "--evaluation.bootstrap", "20")
    assert "<img" not in page and "Where the network looks" not in page and "holds no image and no patient" in page
    assert sorted((site / "out").rglob("masking/**/*.parquet")) == before


@pytest.mark.engine
def test_what_moved_or_changed_is_not_shown_and_the_page_says_why(site: Path, tmp_path: Path) -> None:
    page, _ = evaluated(site, "dicom", *WANTED, "--archive.uri", str(tmp_path / "nowhere"))
    assert "Borders not checked: none of the films is where it was screened" in page
    assert str(tmp_path) not in page
    shutil.move(site / "pictures", site / "moved")
    try:
        page, _ = evaluated(site, "jpeg", *WANTED)
        assert "No heat maps: none of the films is where it was screened" in page and "<img" not in page
    finally:
        shutil.move(site / "moved", site / "pictures")
    shutil.move(site / "bundle", site / "moved")
    try:
        page, _ = evaluated(site, "jpeg", *WANTED)
        assert "No heat maps: the bundle no longer lies where the run found it" in page and "<img" not in page
    finally:
        shutil.move(site / "moved", site / "bundle")


def test_errors_are_shown_from_the_worst_and_right_calls_from_the_middle() -> None:
    scores = np.round(np.random.default_rng(0).random(400), 3)
    labels = np.arange(400) % 2
    calls = (scores >= 0.42).astype(int)
    schema = tables.prediction_schema([])
    films = [
        {"image_id": f"{i:032x}", "status": "scored", "probability": p, "predicted_label": c, "label": label}
        for i, (p, c, label) in enumerate(zip(scores.tolist(), calls.tolist(), labels.tolist(), strict=True))
    ]
    found = chosen(pa.Table.from_pylist(films, schema=schema), 3).to_pylist()
    assert len(found) == 12
    for label, call in OUTCOMES.values():
        mine = sorted(scores[(labels == label) & (calls == call)])
        shown = [row["probability"] for row in found if (row["label"], row["predicted_label"]) == (label, call)]
        if label == call:
            assert shown == mine[(len(mine) - 3) // 2 :][:3]
        else:
            assert shown == (mine[::-1] if call else mine)[:3]
    only = pa.Table.from_pylist([row for row in films if row["label"] and row["predicted_label"]], schema=schema)
    assert len(chosen(only, 3)) == 3 and len(chosen(only.slice(0, 2), 3)) == 2
