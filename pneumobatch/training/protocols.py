"""The experiment's protocols (reading 4): which films train, which select, and which report.

In both, a validation fold of the training side, the same for all rows, selects epoch, calibration and threshold, and
the test films are only reported on (reading 5). No patient has films on two sides, as far as patients are known.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch.archive import catalog
from pneumobatch.config import Archive, Job
from pneumobatch.training.splits import distinct, labelled, validation_fold

COLUMNS = ["image_id", "uri", "bytes", "sha256", "duplicate_of", "label", "patient"]


DRAWN = {"random": "random patients", "shifted": "the patients with the lowest numbers"}
"""Whose films are the validation fold, by `training.validation` of the section that all rows share."""


class Split(NamedTuple):
    """The three sides of a protocol, each with the catalogue's columns `COLUMNS`, one row a film."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table
    told: str
    """How the films were divided, in words."""


class NotRun(NamedTuple):
    """A protocol that cannot be run here."""

    reason: str


def split(job: Job, protocol: str) -> Split | NotRun:
    """Divides the archive's labelled films, of byte-identical ones the first, by one of `experiment.protocols`.

    Raises:
        ValueError: There are no labelled films, or too few of a class.
    """
    if protocol == "official":
        if job.experiment.test is None:
            return NotRun("experiment.test is not set: give the folder of the official test films")
        rest, test, told = _official(job, job.experiment.test)
    else:
        rest, test, told = _paper_like(job)
    plan = job.training
    held = validation_fold(
        rest["label"].to_pylist(), rest["patient"].to_pylist(), plan.validation_fraction, plan.seed,
        shifted=plan.validation == "shifted",
    )  # fmt: skip
    told += f"; {held.sum()} films of {DRAWN[plan.validation]} are the validation fold of all rows"
    unknown = rest["patient"].null_count + test["patient"].null_count
    if unknown:
        told += f"; the patients of {unknown} films are not known, so films of one patient may stand on two sides"
    return Split(rest.filter(pa.array(~held)), rest.filter(pa.array(held)), test, told)


def _official(job: Job, uri: str) -> tuple[pa.Table, pa.Table, str]:
    listed, home = _listed(job.archive), str(job.archive.uri)
    test, films = labelled(_listed(job.archive.model_copy(update={"uri": uri})), uri), labelled(listed, home)
    # Both folders may have films of one path, and so of one id.
    films = films.set_column(0, "image_id", pc.binary_join_element_wise("training:", films["image_id"], ""))
    # The test films stand first: of copies in both folders theirs stay.
    both = distinct(pa.concat_tables([test, films]), job.archive.max_bytes)
    tested = pc.is_in(both["image_id"], test["image_id"].combine_chunks())
    test, rest = both.filter(tested), both.filter(pc.invert(tested))
    of_test_patients = pc.and_(pc.is_valid(rest["patient"]), pc.is_in(rest["patient"], pc.unique(test["patient"])))
    rest = rest.filter(pc.invert(of_test_patients))
    if not len(rest):
        raise ValueError(
            f"experiment.test: every film of {home} is a copy of one of {uri}, or of a patient there; it must be "
            "another folder than archive.uri"
        )
    left_out = len(listed) - len(rest)
    return rest, test, (
        f"the data set's own test folder, {len(test)} films, and its training folder, {len(rest)} films; {left_out} of "
        "the training folder are left out (copies of other films, without a label, or of a test patient)"
    )  # fmt: skip


def _paper_like(job: Job) -> tuple[pa.Table, pa.Table, str]:
    films = distinct(labelled(_listed(job.archive), str(job.archive.uri)), job.archive.max_bytes)
    wanted = job.experiment.held_out
    held = held_out(films["label"].to_pylist(), films["patient"].to_pylist(), wanted, job.training.seed)
    test, rest = films.filter(pa.array(held)), films.filter(pa.array(~held))
    sick = int(pc.sum(test["label"]).as_py() or 0)
    for name, kept, left in (
        ("pneumonia", sick, pc.sum(rest["label"]).as_py() or 0),
        ("normal", len(test) - sick, pc.sum(pc.equal(rest["label"], 0)).as_py() or 0),
    ):
        if kept < wanted or left < 2:
            raise ValueError(
                f"experiment.held_out: {wanted} {name} films cannot be held out of {kept + left} by whole patients; "
                "give a smaller number"
            )
    return rest, test, (
        f"{wanted} normal and {wanted} pneumonia films of the archive held out by whole patients, seed "
        f"{job.training.seed}; the other {len(rest)} films train and validate"
    )  # fmt: skip


def _listed(archive: Archive) -> pa.Table:
    return catalog.build(archive).select(COLUMNS)


def held_out(
    labels: list[int], patients: list[str | None], films: int, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Chooses `films` films of each class by whole patients, in random order, as far as patients fit.

    Returns:
        bool[N], True where held out. None as a patient is a patient of one film.
    """
    members: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        members.setdefault(f"#{index}" if patient is None else patient, []).append(index)
    keys = sorted(members)
    held, left = np.zeros(len(labels), dtype=bool), {0: films, 1: films}
    for position in np.random.default_rng(seed).permutation(len(keys)):
        rows = members[keys[position]]
        sick = sum(labels[row] for row in rows)
        if sick <= left[1] and len(rows) - sick <= left[0]:
            held[rows] = True
            left = {0: left[0] - (len(rows) - sick), 1: left[1] - sick}
    return held
