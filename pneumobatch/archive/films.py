"""The decode stage that training and screening share: catalogue rows in, small grey pictures out.

Input columns: `image_id`, `uri`. Output: one row for each input row, in order, with `pixels` (uint8[S, S] as
fixed-size binary; NULL where there is no picture), `status` (`scored` stands for readable), `reason`, `sha256`,
`format`, the image statistics and the DICOM allow-list.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pneumobatch import tables
from pneumobatch.archive import fetch, headers
from pneumobatch.archive.errors import DecodeError, DomainError
from pneumobatch.archive.pixels import decode
from pneumobatch.config import Gate
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

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Fetches and decodes; a film that cannot be used becomes a row with a reason, never an exception."""
        uris = rows["uri"].to_pylist()
        decoded = [self._film(data, uri) for data, uri in zip(fetch.fetch_many(uris), uris, strict=True)]
        wanted = schema(self.size)
        columns: dict[str, Any] = {
            name: pa.array([row.get(name) for row in decoded], wanted.field(name).type)
            for name in wanted.names
            if name != "image_id"
        }
        return pa.table({"image_id": rows["image_id"], **columns}, schema=wanted)

    def _film(self, data: bytes | OSError, uri: str) -> dict[str, Any]:
        if isinstance(data, OSError):
            reason = "missing" if isinstance(data, FileNotFoundError) else "unreadable"
            return {"status": Status.FAILED, "reason": reason}
        found = {"sha256": hashlib.sha256(data).hexdigest()}
        try:
            film = decode(data, uri, self.size, max_pixels=self.max_pixels, gate=self.gate, ages=self.ages)
        except DomainError as error:
            return {**found, **error.facts, "status": Status.REJECTED, "reason": str(error.rule)}
        except DecodeError as error:
            return {**found, "status": Status.FAILED, "reason": str(error.reason), "format": _kind(data)}
        return {
            **found,
            **film.statistics,
            **film.attributes,
            "status": Status.SCORED,
            "pixels": film.pixels.tobytes(),
            "format": film.format,
            "width": film.width,
            "height": film.height,
        }


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
