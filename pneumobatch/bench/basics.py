"""What measurements share. Without torch, so that the pipeline is measured with the imports that a job has.

A measurement takes its request and a function to call when it is warm, and returns its facts; rates are images/s.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import pyarrow as pa

from pneumobatch.archive import fetch
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.bench.processes import Request
from pneumobatch.models import bundle as bundles

Facts = dict[str, Any]
Ready = Callable[[], None]

STEADY_BLOCKS = 8
"""Blocks (or batches) for every one in flight that a loop gets at least: five of them are measured."""


def model(request: Request) -> tuple[str, bundles.Bundle]:
    """Place and description of the job's bundle."""
    uri = bundles.locate(request.job.screening.bundle)
    return uri, bundles.load(uri)


def decoder_of(request: Request, bundle: bundles.Bundle) -> FilmDecoder:
    """The decoder as the pipeline sets it up."""
    archive, gate = request.job.archive, request.job.screening.gate
    size, ages = bundle.preprocessing.image_size, bundle.validated_age_years
    return FilmDecoder(size, archive.max_pixels, gate, ages, archive.max_bytes)


def repeated(request: Request, images: int) -> pa.Table:
    """So many catalogue rows from the request's films, with ids of their own."""
    ids = [f"{number:032x}" for number in range(images)]
    return pa.table({"image_id": ids, "uri": list(islice(cycle(request.uris), images))})


def content(uri: str) -> bytes:
    """Reads a film that could be read when the bench began."""
    data = fetch.fetch(uri)
    if isinstance(data, OSError):
        raise RuntimeError("archive.uri: a film cannot be read any more; start again when nothing changes the archive")
    return data


def steady(arrivals: list[tuple[float, int]], in_flight: int) -> float | None:
    """Images/s in steady state, from (moment in seconds, images) of each block's arrival.

    Blocks arrive in bursts of up to W = `in_flight`. Counted are those between the arrival of block 2 W, by when every
    worker has delivered, and that of the last but W, until when none has run dry: whether workers keep step or not,
    whole turns are counted. Shorter series leave out their first third and last sixth.

    Returns:
        None where the series is shorter than three turns: it has no steady state.
    """
    blocks = len(arrivals)
    if blocks < 3 * in_flight:
        return None
    first = min(2 * in_flight - 1, blocks // 3)
    last = blocks - 1 - min(in_flight, blocks // 6)
    if last <= first or arrivals[last][0] <= arrivals[first][0]:
        return None
    return sum(images for _, images in arrivals[first + 1 : last + 1]) / (arrivals[last][0] - arrivals[first][0])


def rates(started: float, arrivals: list[tuple[float, int]], in_flight: int) -> Facts:
    """`steady`, where there is one; `whole_rate` from the start on; `rate`, the best that is known."""
    whole = sum(images for _, images in arrivals) / (arrivals[-1][0] - started)
    rate = steady(arrivals, in_flight)
    return {"rate": whole, "whole_rate": whole} if rate is None else {"rate": rate, "whole_rate": whole, "steady": rate}
