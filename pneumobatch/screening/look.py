"""Films of a finished run, found again as they were and scored by its network, for a closer look."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pneumobatch import cluster
from pneumobatch.archive import catalog, fetch
from pneumobatch.archive.films import FilmDecoder, pixels_of
from pneumobatch.config import Archive, Gate, Job
from pneumobatch.evaluation.published import Bundle, Record
from pneumobatch.models import bundle as bundles
from pneumobatch.models.hardware import BATCH, computes_int8, hardware_precision
from pneumobatch.models.networks import Classifier
from pneumobatch.models.weights import load_network
from pneumobatch.screening.scorer import Plan, Scorer

MOVED = 0.1
"""A film whose probability is off by more than this from what was published is another film by now."""

Pixels = NDArray[np.uint8]


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
        if precision == "int8" and (device != "cpu" or not computes_int8()):
            precision = hardware_precision(device)  # the run was scored on other hardware
        self.scorer = Scorer(
            Plan(bundle.uri, self.bundle.model_id, BATCH[device], precision, False, device, cluster.machine_cpus())
        )

    def network(self) -> Classifier:
        """The bundle's network, in fp32 on the CPU."""
        return load_network(self.uri, self.bundle)

    def at(self, films: pa.Table) -> Seen:
        """Returns those of the films that are still what they were when the run scored them."""
        films = films.append_column("place", self._places(films))
        films = films.filter(pc.field("place").is_valid())
        if not len(films):
            return Seen(films, np.zeros((0, self.size, self.size), np.uint8))
        places = films["place"].to_pylist()
        order = pa.array(sorted(range(len(places)), key=lambda film: fetch.in_file(places[film])), pa.int64())
        decoded = self.decoder(pa.table({"image_id": films["image_id"], "uri": films["place"]}).take(order))
        decoded = decoded.take(pc.sort_indices(order))  # as `films` are again
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
