"""Synthetic films: deterministic, mixed, and with exactly the planted faults."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pneumobatch.archive import phantoms
from pneumobatch.archive.pixels import DecodeError, DomainError, decode
from pneumobatch.config import Gate

PLANTED = {"empty", "truncated", "html_page", "not_an_image", "wrong_extension", "body_part", "view"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("phantoms")
    return folder, phantoms.write_archive(folder, 80, seed=7)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_film_has_the_size_and_depth_that_was_asked_for() -> None:
    picture = phantoms.film(np.random.default_rng(0), 1, width=320, height=200)
    assert (picture.shape, picture.dtype) == ((200, 320), np.uint16)
    assert picture.max() > 50_000


def test_equal_seeds_write_equal_bytes_and_others_other_films(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        phantoms.write_archive(tmp_path / name, 12, seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    different = {data for data in files(tmp_path / "a").values() if len(data) > 100}
    assert len(different & set(files(tmp_path / "c").values())) == 0


def test_the_counts_add_up(archive: tuple[Path, dict[str, int]]) -> None:
    folder, counts = archive
    assert counts["normal"] + counts["pneumonia"] == 80
    assert sum(counts.values()) == len(files(folder))
    assert set(counts) == {"normal", "pneumonia", "duplicate", *PLANTED}


def test_every_file_ends_as_it_was_planted(archive: tuple[Path, dict[str, int]]) -> None:
    folder, counts = archive
    ends: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for name, data in files(folder).items():
        try:
            film = decode(data, name, 64, max_pixels=10**6, gate=Gate(), ages=(1, 5))
            ends["good"] += 1
            formats[film.format] += 1
            assert film.format != "dicom" or film.attributes["manufacturer"] == "Phantom Works"
        except DecodeError as error:
            ends[error.reason] += 1
        except DomainError as error:
            ends[error.rule] += 1
    assert ends == {"good": 80 + counts["duplicate"], **{kind: counts[kind] for kind in PLANTED}}
    assert formats["jpeg"] > formats["png"] > 5
    assert formats["dicom"] > 5


def test_duplicates_are_byte_identical(archive: tuple[Path, dict[str, int]]) -> None:
    folder, counts = archive
    hashes = Counter(hashlib.sha256(data).hexdigest() for data in files(folder).values())
    assert sum(number - 1 for number in hashes.values()) - counts["duplicate"] in {0, 1}  # a JPEG under two names too
