"""What a look into the network adds to an evaluation. It needs bundle, films and torch, so it is made elsewhere."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pneumobatch.config import Job
from pneumobatch.evaluation.published import Bundle, Record


class Picture(NamedTuple):
    """One film with its heat maps; each picture is a JPEG."""

    outcome: str
    """`true positive`, `false positive`, `false negative` or `true negative`."""
    image_id: str
    uri: str | None
    probability: float
    film: bytes
    """As the network sees it."""
    evidence: bytes
    """The film under its evidence for pneumonia and for normal."""
    gate: bytes | None
    """The film as bright as the spatial gates let it through; None where the network has none."""
    cells: tuple[int, int]
    """Rows and columns in which the evidence is known."""


class Explained(NamedTuple):
    """Heat maps and the check of the borders, or why there are none."""

    pictures: Sequence[Picture] = ()
    without_pictures: str | None = None
    """Why there are none, where evaluation.heat_maps asks for some."""
    masking: pa.Table | None = None
    """`tables.masking_schema`."""
    without_masking: str | None = None
    """Why there is none, where evaluation.masked_films asks for it."""


Explain = Callable[[Job, Record, Bundle, pa.Table], Explained]
"""Explains a run: job, its record, its bundle, and the films of the scope with what labels are known."""


def embedded(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Returns pictures by outcome, each as a source that a page can hold."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for picture in pictures:
        shown = {"the film": picture.film, "evidence": picture.evidence, "spatial gate": picture.gate}
        sources = {name: f"data:image/jpeg;base64,{b64encode(data).decode()}" for name, data in shown.items() if data}
        groups.setdefault(picture.outcome, []).append(picture._asdict() | {"shown": sources})
    return [{"outcome": outcome, "films": films} for outcome, films in groups.items()]
