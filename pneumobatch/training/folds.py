"""Films → decoded folds in the object store, which all of a run's epochs read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pneumobatch import cluster, tables
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.config import Gate, Job
from pneumobatch.progress import say
from pneumobatch.tables import Status

BLOCK_FILMS = 256
"""Films a decode task."""

OLDEST = 90
"""Greatest age that is kept, years: it stands for itself and all above."""


class Fold(NamedTuple):
    """Decoded films of one side of the split."""

    blocks: list["ray.ObjectRef[pa.Table]"]
    """References of Arrow blocks in the object store, films in order."""
    films: pa.Table
    """One row a film, in order: image_id, label, reason, and the columns of `tables.reference_schema` but its score."""

    @property
    def readable(self) -> pa.Table:
        """The films that have a picture."""
        return self.films.filter(pc.equal(self.films["status"], Status.SCORED.value))

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """Labels of the readable films."""
        return self.readable["label"].to_numpy()  # type: ignore[no-any-return]

    def as_scored(self, image_ids: Sequence[str]) -> "Fold":
        """Returns the fold as the start saw it that scored these of its films; the others count as failed then."""
        status, scored = self.films["status"], pc.is_in(self.films["image_id"], pa.array(image_ids, pa.string()))
        other = pc.if_else(pc.equal(status, Status.SCORED.value), Status.FAILED.value, status)
        status = pc.if_else(scored, Status.SCORED.value, other)
        return Fold(self.blocks, self.films.set_column(self.films.column_names.index("status"), "status", status))

    @property
    def unreadable(self) -> int:
        """Films without a picture."""
        return len(self.films) - len(self.labels)


def cache_size(job: Job) -> int:
    """Side of the decoded training films: a seventh larger than the input, so that larger crops keep their detail."""
    return round(job.network.image_size * 8 / 7)


def decode(job: Job, resources: cluster.Resources, films: pa.Table, size: int, title: str) -> Fold:
    """Decodes films once, by the decoder that screening uses; they stay in the object store as uint8.

    Columns in: image_id, uri, label. Out: those of `archive.films` and label, one row a film, in order.

    Raises:
        cluster.NoWorkerError: The cluster has no worker, and none came.
    """
    decoder = FilmDecoder(size, job.archive.max_pixels, Gate(allow_any_age=True), max_bytes=job.archive.max_bytes)
    ray.data.DataContext.get_current().execution_options.preserve_order = True  # a resumed run sees the same order
    rows = films.select(["image_id", "uri", "label"]).combine_chunks()
    chunks = [rows.slice(start, BLOCK_FILMS) for start in range(0, len(rows), BLOCK_FILMS)]

    def decode_chunk(chunk: pa.Table) -> pa.Table:
        return decoder(chunk).append_column("label", chunk["label"])

    # Not `from_arrow`: it waits here for a worker to say what each chunk holds, and where there is none for ever.
    stage = ray.data.from_blocks(chunks).map_batches(decode_chunk, batch_format="pyarrow", batch_size=None)
    say(f"{title}: {len(rows)} at {size} px")
    with cluster.awaited("decoded films", resources, job.cluster, lambda found: found.cpus > 0):
        decoded = stage.materialize()
    described = [name for name in tables.reference_schema().names if name != "probability"]
    summary = decoded.select_columns(["image_id", "reason", *described, "label"])
    return Fold(decoded.to_arrow_refs(), pa.concat_tables(ray.get(summary.to_arrow_refs())))


def require_readable(folds: Sequence[Fold], budget: float) -> None:
    """Tells of films without a picture, and refuses to train on what an outage has left.

    Args:
        folds: All films that should train or judge.
        budget: Share of them that may fail; a film outside the domain (rejected) is no failure.

    Raises:
        ValueError: More have failed.
    """
    rows = [row for fold in folds for row in fold.films.select(["status", "reason"]).to_pylist()]
    reasons = {
        status: Counter(row["reason"] for row in rows if row["status"] == status)
        for status in (Status.FAILED.value, Status.REJECTED.value)
    }
    failed = reasons[Status.FAILED.value].total()
    told = "; ".join(
        f"{count.total()} {status} ({', '.join(f'{reason} {n}' for reason, n in count.most_common())})"
        for status, count in reasons.items()
        if count
    )
    if failed > budget * len(rows):
        raise ValueError(
            f"archive: of {len(rows)} films that should train or judge {told}: more failed than "
            f"training.failure_budget = {budget:.0%}; mend the archive and start again, or raise the budget"
        )
    if told:
        say(f"of {len(rows)} films that should train or judge {told}")


def require_ages(folds: Sequence[Fold], ages: tuple[int, int] | None) -> None:
    """Refuses stated ages that the readable films contradict, as far as theirs are known.

    Raises:
        ValueError: An age lies outside.
    """
    found = [age for fold in folds for age in fold.readable["age_years"].to_pylist() if age is not None]
    # 90 stands for 90 and over: only an upper bound below it leaves it out.
    outside = [age for age in found if ages and (age > ages[1] or (age < ages[0] and age < OLDEST))]
    if outside and ages:
        raise ValueError(
            f"training.validated_age_years: [{ages[0]}, {ages[1]}] leaves out {len(outside)} of {len(found)} films "
            f"with a known age, which cover {min(found)} to {max(found)} years; state those, or leave the films out by "
            "archive.exclude"
        )


def require_workers(training: Fold, validation: Fold, workers: tuple[int, ...], batch_size: int) -> None:
    """Refuses more workers than there are films, as each takes a part of either fold and of every batch.

    Raises:
        ValueError: A fold has fewer readable films, or a batch has.
    """
    if batch_size < max(workers):
        raise ValueError(
            f"training.batch_size: {batch_size} films a step cannot be shared by {max(workers)} training.workers; give "
            f"a batch of {max(workers)} at least, or fewer workers"
        )
    fewest = min(len(training.labels), len(validation.labels))
    if fewest < max(workers):
        raise ValueError(
            f"training.workers: {max(workers)} workers cannot share {len(training.labels)} training and "
            f"{len(validation.labels)} validation films; give {fewest} at most"
        )


def require_classes(fold: Fold, name: str) -> None:
    """Refuses decoded films that cannot train or judge a network.

    Raises:
        ValueError: The fold of that name has no readable film of a class.
    """
    if len(set(fold.labels.tolist())) < 2:
        raise ValueError(
            f"archive: too few readable films of a class are left: the {name} films have one class or none; "
            "pneumobatch screen says what became of each film"
        )
