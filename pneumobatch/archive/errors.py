"""Why a file gave no film. The texts are fixed: nothing of the file, not even its name, gets into them."""

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why an object could not be read; the `reason` of a `failed` row."""

    EMPTY = "empty"  # no bytes at all
    TRUNCATED = "truncated"  # begins as a picture and ends too early
    NOT_AN_IMAGE = "not_an_image"  # text, a table, an archive …
    HTML_PAGE = "html_page"  # what a proxy or an expired link answers instead of the film
    WRONG_EXTENSION = "wrong_extension"  # a picture whose name promises another format
    TOO_LARGE = "too_large"  # more bytes than archive.max_bytes, or than the decoder's memory holds when it is unfolded
    TOO_MANY_PIXELS = "too_many_pixels"  # larger than archive.max_pixels, found before anything is decoded
    ANIMATED = "animated"  # an animated PNG
    MULTI_FRAME = "multi_frame"  # a DICOM object of several frames
    UNSUPPORTED = "unsupported"  # a known format or variant that is not read: GIF, TIFF, 12-bit JPEG …
    CORRUPT = "corrupt"  # complete, but it contradicts itself or its format
    CRASHED = "crashed"  # every process that tried to decode it died or hung
    MISSING = "missing"  # for callers: the object is in the catalogue and no longer in the archive
    UNREADABLE = "unreadable"  # for callers: the store failed to give the object
    NOT_FINITE = "not_finite"  # for callers: the network made no number of the picture


_TEXT = {
    Reason.EMPTY: "the file is empty",
    Reason.TRUNCATED: "the file ends before the picture does",
    Reason.NOT_AN_IMAGE: "the content is no image",
    Reason.HTML_PAGE: "the content is an HTML page",
    Reason.WRONG_EXTENSION: "the content is of another format than the file extension says",
    Reason.TOO_LARGE: "the file is larger than archive.max_bytes or than the decoder's memory",
    Reason.TOO_MANY_PIXELS: "the picture has more pixels than archive.max_pixels",
    Reason.ANIMATED: "the picture is animated",
    Reason.MULTI_FRAME: "the DICOM object has more than one frame",
    Reason.UNSUPPORTED: "the format or this variant of it is not supported",
    Reason.CORRUPT: "the content contradicts its format",
    Reason.CRASHED: "the decoder died of the file",
    Reason.MISSING: "the object is no longer in the archive",
    Reason.UNREADABLE: "the store could not give the object",
    Reason.NOT_FINITE: "the network made no number of the picture",
}


class DecodeError(ValueError):
    """A file that gives no picture.

    Attributes:
        reason: What is wrong with it, machine-readable.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(_TEXT[reason])
        self.reason = reason

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[Reason]]:  # survives the way between processes
        return DecodeError, (self.reason,)


class DomainError(ValueError):
    """A readable film outside the model's domain.

    Attributes:
        rule: The rule that rejected it: `modality`, `for_processing`, `body_part`, `view`, `age`, `blank`, `inverted`,
            `not_an_xray`.
        facts: What is known of the film by then: columns of `tables.DICOM_ALLOWED` and `tables.STATISTICS`.
    """

    def __init__(self, rule: str, facts: Mapping[str, str | int | float] | None = None) -> None:
        super().__init__(f"outside the model's domain: {rule}")
        self.rule = rule
        self.facts = dict(facts or {})

    def __reduce__(self) -> tuple[type["DomainError"], tuple[str, dict[str, str | int | float]]]:
        return DomainError, (self.rule, self.facts)
