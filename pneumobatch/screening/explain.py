"""A look into the network: heat maps of chosen films, and what covered borders do to the scores of a sample.

In: the evaluated films (`tables.prediction_schema`, with labels). Out: `evaluation.explained.Explained`. The films are
fetched, decoded and scored again as screening does it. Pictures leave only where the run holds no DICOM film, as paths
do; the check of the borders leaves numbers alone, so every archive may have it.
"""

import os
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pneumobatch import tables
from pneumobatch.archive import catalog
from pneumobatch.archive.films import FilmDecoder, pixels_of
from pneumobatch.config import Archive, Gate, Job
from pneumobatch.evaluation.explained import Explained
from pneumobatch.evaluation.published import Bundle, Record
from pneumobatch.models import bundle as bundles
from pneumobatch.models.heatmaps import NoFeatureMapError
from pneumobatch.models.networks import Classifier
from pneumobatch.models.scoring import BATCH
from pneumobatch.screening import masking, pictures
from pneumobatch.screening.scorer import Plan, Scorer

MOVED = 0.1
"""A film whose probability is off by more than this from what was published is another film by now."""

GONE = "none of the films is where it was screened, and as it was"
DICOM = "the run holds DICOM films, and no picture of these leaves the archive"

Pixels = NDArray[np.uint8]


def explain(job: Job, record: Record, bundle: Bundle, films: pa.Table) -> Explained:
    """Makes what evaluation.heat_maps and evaluation.masked_films ask for, or says why it cannot.

    Raises:
        ValueError: The bundle's weights are not those that its bundle.json was written for.
    """
    options, found = job.evaluation, Explained()
    known = films.filter((pc.field("status") == tables.Status.SCORED.value) & pc.field("label").is_valid())
    if missing := bundle.missing or (None if len(known) else "no label is known for any scored film"):
        wanted = [missing if number else None for number in (options.heat_maps, options.masked_films)]
        return Explained(without_pictures=wanted[0], without_masking=wanted[1])
    look = Look(job, record, bundle)
    if options.heat_maps and "dicom" in films["format"].unique().to_pylist():
        found = found._replace(without_pictures=DICOM)
    elif options.heat_maps:
        shown = look.at(pictures.chosen(known, options.heat_maps))
        try:
            drawn = pictures.draw(look.network(), shown.films, shown.pixels) if len(shown.films) else []
            found = found._replace(pictures=drawn, without_pictures=None if drawn else GONE)
        except NoFeatureMapError as error:
            found = found._replace(without_pictures=str(error))
    if options.masked_films:
        sample = look.at(known.take(pa.array(masking.sample(known, options.masked_films, options.seed))))
        table = masking.measure(*sample, look.probabilities, options, record) if len(sample.films) else None
        found = found._replace(masking=table, without_masking=None if table else GONE)
    return found


class Seen(NamedTuple):
    """Films that were found again as they were."""

    films: pa.Table
    pixels: Pixels
    """uint8[N, S, S]."""


class Look:
    """Fetches, decodes and scores some of a run's films again; they are too few for an engine."""

    def __init__(self, job: Job, record: Record, bundle: Bundle) -> None:
        screened = record.get("config", {})
        self.archive = job.archive if job.archive.uri else Archive.model_validate(screened.get("archive", {}))
        self.uri, self.bundle = bundle.uri, bundles.load(bundle.uri)
        self.size = self.bundle.preprocessing.image_size
        gate = Gate.model_validate(screened.get("screening", {}).get("gate", {}))
        self.decoder = FilmDecoder(self.size, self.archive.max_pixels, gate, None, self.archive.max_bytes)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = (record.get("plan") or {}).get("precision", "fp32")
        threads = len(os.sched_getaffinity(0))
        self.scorer = Scorer(Plan(bundle.uri, BATCH[device], precision, False, device, threads))

    def network(self) -> Classifier:
        """The bundle's network, in fp32 on the CPU."""
        return bundles.load_network(self.uri, self.bundle)

    def at(self, films: pa.Table) -> Seen:
        """Returns those of the films that are still what they were when the run scored them."""
        films = films.append_column("place", self._places(films))
        films = films.filter(pc.field("place").is_valid())
        if not len(films):
            return Seen(films, np.zeros((0, self.size, self.size), np.uint8))
        decoded = self.decoder(pa.table({"image_id": films["image_id"], "uri": films["place"]}))
        pixels = pixels_of(decoded, self.size)
        off = np.abs(self.probabilities(pixels) - films["probability"].to_numpy())
        same = np.flatnonzero(decoded["pixels"].is_valid().to_numpy() & (off <= MOVED))
        return Seen(films.take(pa.array(same)), pixels[same])

    def _places(self, films: pa.Table) -> pa.ChunkedArray:
        """Where the films lie: as the predictions say or, where they must not, as the archive is listed now."""
        if not films["uri"].null_count:
            return films["uri"]
        try:
            listed = catalog.build(self.archive)
        except (OSError, ValueError):  # it has moved, and its name must not get into a report
            return pa.chunked_array([pa.nulls(len(films), pa.string())])
        return listed["uri"].take(pc.index_in(films["image_id"], listed["image_id"].combine_chunks()))

    def probabilities(self, pixels_NSS: Pixels) -> NDArray[np.float64]:
        """Calibrated probabilities [N], as screening computes them."""
        flat = pa.array([film.tobytes() for film in pixels_NSS], pa.binary(self.size**2))
        return self.scorer(pa.table({"pixels": flat}))["probability"].to_numpy()  # type: ignore[no-any-return]
