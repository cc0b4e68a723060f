"""Patient-disjoint, stratified folds."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def validation_fold(
    labels: Sequence[int], patients: Sequence[str | None], fraction: float, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Chooses the validation fold by whole patients, with the classes in proportion.

    Args:
        labels: 0 or 1 for each image.
        patients: Grouping key of each image; None is a patient of one image.
        fraction: Share of the images to hold out, 0–1.
        seed: Seed of the choice.

    Returns:
        bool[N], True in the validation fold. It depends on the set of images, not on their order of patients.

    Raises:
        ValueError: A class has fewer than two patients, so no fold can hold both classes on both sides.
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
            raise ValueError(f"the archive has {len(group)} {name} patients with a label; a validation fold needs two")
        wanted = fraction * sum(len(members[key]) for key in group)
        held = 0
        for position in rng.permutation(len(group)):
            rows = members[group[position]]
            if held and held + len(rows) / 2 > wanted:
                continue
            fold[rows] = True
            held += len(rows)
        if fold[[i for key in group for i in members[key]]].all():
            fold[members[group[0]]] = False
    return fold
