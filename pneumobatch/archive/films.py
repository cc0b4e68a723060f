"""The decode stage that training and screening share: catalogue rows in, small grey pictures out.

Input columns: `image_id`, `uri`. Output: one row for each input row, in order, with `pixels` (uint8[S, S] as
fixed-size binary; NULL where there is no picture), `status` (`scored` stands for readable), `reason`, `sha256`,
`format`, the image statistics and the DICOM allow-list.
"""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pneumobatch import storage, tables
from pneumobatch.archive import fetch, headers, sandbox
from pneumobatch.archive.errors import DecodeError, DomainError, Reason
from pneumobatch.archive.pixels import decode
from pneumobatch.config import Archive, Gate
from pneumobatch.tables import Status


def schema(size: int) -> pa.Schema:
    """Schema of decoded rows with pictures of `size`²."""
    return pa.schema(
        {
            "image_id": pa.string(),
            "pixels": pa.binary(size * size),
            "status": pa.string(),
            "reason": pa.string(),
            "sha256": pa.string(),
            "format": pa.string(),
            **tables.STATISTICS,
            **tables.DICOM_ALLOWED,
            "patient": pa.string(),
            **tables.KEYED,
        }
    )


@dataclass(frozen=True)
class FilmDecoder:
    """Callable on catalogue rows; fetch and decode stay together so that only the small picture travels on."""

    size: int
    """Side of the picture, pixels."""
    max_pixels: int
    """Source pixels above which a film fails before decoding."""
    gate: Gate = field(default_factory=Gate)
    """The domain gate."""
    ages: tuple[int, int] | None = None
    """The model's validated ages, whole years."""
    max_bytes: int = Archive.model_fields["max_bytes"].default
    """Size of a file, bytes, above which it fails before it is read whole."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Fetches and decodes; a film that cannot be used becomes a row with a reason, never an exception.

        Raises:
            RuntimeError: The decoding process cannot be started.
        """
        answers = sandbox.shared.answers(self, rows["uri"].to_pylist())
        decoded = [_failed(Reason.CRASHED) if answer is None else answer for answer in answers]
        wanted = schema(self.size)
        columns: dict[str, Any] = {
            name: pa.array([facts.get(name) for facts, _ in decoded], wanted.field(name).type)
            for name in wanted.names
            if name not in {"image_id", "pixels"}
        }
        columns["pixels"] = pa.array([pixels or None for _, pixels in decoded], wanted.field("pixels").type)
        return pa.table({"image_id": rows["image_id"], **columns}, schema=wanted)

    def load(self, items: Sequence[str]) -> Iterator[bytes | Reason]:
        """Yields each film's bytes, or why there are none, in order; a remote store is asked for some films ahead."""
        done = 0
        while done < len(items):
            ahead = items[done : done + AHEAD]
            try:
                for data in fetch.fetch_many(ahead, limit=self.max_bytes):
                    done += 1
                    yield _unfetched(data) if isinstance(data, OSError) else data
            except MemoryError:  # perhaps for want of what its neighbours hold
                yield self._alone(items[done])
                done += 1

    def _alone(self, uri: str) -> bytes | Reason:
        fetch.forget()
        try:
            (data,) = fetch.fetch_many([uri], limit=self.max_bytes)
        except MemoryError:
            return Reason.TOO_LARGE
        return _unfetched(data) if isinstance(data, OSError) else data

    def answer(self, item: str, loaded: bytes | Reason) -> sandbox.Answer:
        """Decodes one film: the columns of its row, and its picture."""
        if isinstance(loaded, Reason):
            return _failed(loaded)
        found: dict[str, Any] = {"sha256": hashlib.sha256(loaded).hexdigest()}
        try:
            film = decode(loaded, item, self.size, max_pixels=self.max_pixels, gate=self.gate, ages=self.ages)
        except DomainError as error:
            found |= {"format": _kind(loaded), "status": Status.REJECTED, "reason": error.rule}
            return sandbox.Answer({**error.facts, **found})
        except DecodeError as error:
            film, reason = None, error.reason
        if film is None:
            if reason == Reason.TOO_LARGE:
                gc.collect()  # the error's frames hold what was unfolded: the next film must not want for it
            return _failed(reason, loaded)
        facts = {"status": Status.SCORED, "format": film.format, "width": film.width, "height": film.height}
        return sandbox.Answer({**found, **film.statistics, **film.attributes, **facts}, film.pixels.tobytes())

    def given_up(self, item: str, loaded: bytes | Reason) -> sandbox.Answer:
        """Names a film that no child survived."""
        return _failed(loaded) if isinstance(loaded, Reason) else _failed(Reason.CRASHED, loaded)


AHEAD = 64
"""Films that are fetched ahead of decoding at most: what they hold counts against the decoder's memory."""


def _unfetched(error: OSError) -> Reason:
    if isinstance(error, storage.TooLargeError):
        return Reason.TOO_LARGE
    if isinstance(error, fetch.DamagedError):
        return Reason.CORRUPT
    return Reason.MISSING if isinstance(error, FileNotFoundError) else Reason.UNREADABLE


def _failed(reason: Reason, data: bytes | None = None) -> sandbox.Answer:
    """The row of a film without a picture; what it is by its bytes, where they are known."""
    facts: dict[str, Any] = {"status": Status.FAILED, "reason": reason}
    if data is not None:
        facts |= {"sha256": hashlib.sha256(data).hexdigest(), "format": _kind(data)}
    return sandbox.Answer(facts)


def _kind(data: bytes) -> str | None:
    """What a file is by its content, though it gave no film: what may be written of it depends on that."""
    try:
        return headers.sniff(data)
    except DecodeError:
        return None


def pixels_of(rows: pa.Table, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Views the pictures of decoded rows as uint8[N, S, S] without a copy; a row without a picture holds zeros."""
    column = rows["pixels"].combine_chunks() if rows["pixels"].num_chunks != 1 else rows["pixels"].chunk(0)
    flat = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * size * size :]
    return flat[: len(column) * size * size].reshape(len(column), size, size)
