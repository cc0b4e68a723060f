"""Which films the report shows, and how: the film, its evidence, and what the network's spatial gates let through."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from pneumobatch.evaluation.explained import Picture
from pneumobatch.models.heatmaps import heat_maps
from pneumobatch.models.networks import Classifier

OUTCOMES = {"false negative": (1, 0), "false positive": (0, 1), "true positive": (1, 1), "true negative": (0, 0)}
"""Label and call; what was called wrongly first."""

AT_ONCE = 4
"""Films whose gradients are held at a time."""

SIDE = 224
"""Side of a picture, pixels; most networks see no more."""

PNEUMONIA, NORMAL = np.array([200, 80, 10]), np.array([11, 106, 168])
"""Colours of evidence for each class: those of the report's figures."""

OPAQUE = 0.75
"""Opacity of the strongest evidence."""

Floats = NDArray[np.floating[Any]]


def chosen(films: pa.Table, each: int) -> pa.Table:
    """Takes films of each outcome: the errors that are furthest from the threshold, and right calls like most others.

    Of right calls those around the median probability are taken, as the surest ones show the network at its best.

    Args:
        films: Scored, label known.
        each: Of each outcome, as far as there are so many.
    """
    films = films.sort_by([("probability", "ascending"), ("image_id", "ascending")])
    labels, calls = films["label"].to_numpy(), films["predicted_label"].to_numpy()
    rows = []
    for label, call in OUTCOMES.values():
        mine = np.flatnonzero((labels == label) & (calls == call))
        if label == call:
            mine = mine[max(0, (mine.size - each) // 2) :]
        elif call:
            mine = mine[::-1]
        rows.append(mine[:each])
    return films.take(pa.array(np.concatenate(rows)))


def draw(network: Classifier, films: pa.Table, pixels_NSS: NDArray[np.uint8]) -> list[Picture]:
    """Draws films and their heat maps, in the order given.

    The evidence of all films has one scale, so that a faint map means faint evidence.

    Raises:
        NoFeatureMapError: The network has none.
    """
    grey_N1SS = torch.from_numpy(pixels_NSS)[:, None].float() / 255
    maps = [heat_maps(network, part) for part in torch.split(grey_N1SS, AT_ONCE)]
    evidence_NSS = np.concatenate([part.evidence_BSS.numpy() for part in maps])
    evidence_NSS /= max(float(np.abs(evidence_NSS).max()), 1e-12)
    gates = [part.gate_BSS.numpy() for part in maps if part.gate_BSS is not None]
    lit_NSS = [_lit(film, gate) for film, gate in zip(pixels_NSS, np.concatenate(gates), strict=True)] if gates else []
    outcomes = {pair: name for name, pair in OUTCOMES.items()}
    return [
        Picture(
            outcomes[row["label"], row["predicted_label"]],
            row["image_id"],
            row["uri"],
            row["probability"],
            _jpeg(film),
            _jpeg(_tinted(film, evidence)),
            _jpeg(lit_NSS[i]) if lit_NSS else None,
            maps[0].cells,
        )
        for i, (row, film, evidence) in enumerate(zip(films.to_pylist(), pixels_NSS, evidence_NSS, strict=True))
    ]


def _tinted(film_SS: NDArray[np.uint8], evidence_SS: Floats) -> Floats:
    """Lays the colour of each class over the film, the more opaque the stronger the evidence (−1 to 1) for it."""
    opacity_SS1 = OPAQUE * np.abs(evidence_SS)[..., None]
    return film_SS[..., None] * (1 - opacity_SS1) + opacity_SS1 * np.where(
        evidence_SS[..., None] > 0, PNEUMONIA, NORMAL
    )


def _lit(film_SS: NDArray[np.uint8], gate_SS: Floats) -> Floats:
    """Dims the film to a fifth where its gate is least, and leaves it where the gate is greatest."""
    low, high = (float(bound) for bound in np.percentile(gate_SS, [2, 98]))  # one bright cell must not dim all the rest
    share_SS = np.clip((gate_SS - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(film_SS * (0.2 + 0.8 * share_SS))


def _jpeg(picture: Floats | NDArray[np.uint8]) -> bytes:
    """Encodes grey [S, S] or colour [S, S, 3], 0–255, at the size of the page."""
    image = Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
