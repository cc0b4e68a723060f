"""Patient-disjoint, stratified folds."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pneumobatch.archive import catalog
from pneumobatch.progress import say

_NUMBER = re.compile(r"([0-9]+)(?=[^0-9]*$)")


def labelled(films: pa.Table, uri: str) -> pa.Table:
    """Returns the films of the archive at `uri` that have a label.

    Raises:
        ValueError: There is none.
    """
    known = films.filter(pc.is_valid(films["label"]))
    if not known.num_rows:
        raise ValueError(
            f"archive.uri: no film of {uri} has a label; give class folders, or "
            "archive.labels by path, file name or image_id (only an evaluation joins accessions, studies and instances)"
        )
    return known


def distinct(films: pa.Table, max_bytes: int) -> pa.Table:
    """Returns films without the copies of others, whose patients are one (`one_patient`).

    To be given `labelled` films, as the original of one may have no label.
    """
    compared = one_patient(catalog.find_duplicates(films, max_bytes))
    return compared.filter(pc.is_null(compared["duplicate_of"]))


def one_patient(compared: pa.Table) -> pa.Table:
    """Returns films with one name for patients who share a byte-identical film, as they are one person.

    Args:
        compared: Columns image_id, patient and the `duplicate_of` of `catalog.find_duplicates`. A film without a
            patient is of the patient who has its copy.
    """
    original = pc.coalesce(compared["duplicate_of"], compared["image_id"])
    film = pc.index_in(original, compared["image_id"].combine_chunks())
    names = compared["patient"].combine_chunks().dictionary_encode()
    known = pc.is_valid(names)
    films, patients = film.filter(known).to_numpy(), names.indices.filter(known).to_numpy() + len(compared)
    nodes = len(compared) + len(names.dictionary)
    graph = coo_array((np.ones(len(films), np.int8), (films, patients)), shape=(nodes, nodes))
    _, person = connected_components(graph, directed=False)
    one = names.dictionary.take(pc.index_in(pa.array(person[film.to_numpy()]), pa.array(person[len(compared) :])))
    merged = len(names.dictionary) - pc.count_distinct(one).as_py()
    if merged:
        say(f"patients who have a byte-identical film of another, and count as the same person: {merged}")
    return compared.set_column(compared.column_names.index("patient"), "patient", one)


def validation_fold(
    labels: Sequence[int], patients: Sequence[str | None], fraction: float, seed: int, *, shifted: bool = False
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Chooses the validation fold by whole patients, with the classes in proportion.

    Args:
        labels: 0 or 1 for each image.
        patients: Grouping key of each image; None is a patient of one image.
        fraction: Share of the images to hold out, 0–1.
        seed: Seed of the choice.
        shifted: Hold out each series' first patients instead of any: keys that differ in their last number alone are
            a series, and numbers follow the order in which films were taken. So validation films come from another
            time than training films, as those of a later test do.

    Returns:
        bool[N], True in the validation fold. It depends on the set of images, not on their order of patients.

    Raises:
        ValueError: A class has fewer than two patients, so no fold can hold both classes on both sides; or `shifted`
            is asked for and a patient has no number.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, patient in enumerate(patients):
        members[f"#{index}" if patient is None else patient].append(index)
    fold = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for value, name in ((0, "normal"), (1, "pneumonia")):
        # A patient with films of both classes counts where most of them are.
        group = sorted(
            key for key, rows in members.items() if round(np.mean([labels[i] for i in rows]) + 1e-9) == value
        )
        if len(group) < 2:
            raise ValueError(
                f"archive.uri: the archive has {len(group)} {name} patients with a label; a validation fold needs two, "
                "one for training and one for itself: add films of others, or mend archive.labels, "
                "archive.patient_column or archive.patients where they are misread"
            )
        wanted = fraction * sum(len(members[key]) for key in group)
        held = 0
        for key in _first_of_each_series(group) if shifted else [group[place] for place in rng.permutation(len(group))]:
            rows = members[key]
            if held and held + len(rows) / 2 > wanted:
                continue
            fold[rows] = True
            held += len(rows)
        if fold[[i for key in group for i in members[key]]].all():
            fold[members[group[0]]] = False
    return fold


def _first_of_each_series(patients: Sequence[str]) -> list[str]:
    """Orders patients so that every beginning takes the same share of each series, its lowest numbers."""
    series: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for patient in patients:
        number = None if patient.startswith("#") else _NUMBER.search(patient)
        if number is None:
            raise ValueError(
                "training.validation: shifted needs patients who are numbered in the order of their films, and not "
                "every film here has such a patient; give archive.patient_column or choose random"
            )
        series[patient[: number.start()] + "#" + patient[number.end() :]].append((int(number[1]), patient))
    placed = [
        (rank / len(members), patient)
        for members in series.values()
        for rank, (_, patient) in enumerate(sorted(members))
    ]
    return [patient for _, patient in sorted(placed)]
