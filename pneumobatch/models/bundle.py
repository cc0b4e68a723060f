"""The trained model on disk: a folder of safetensors, JSON, Parquet and Markdown. No pickle is ever loaded.

model.safetensors   weights (of the moving average, where training kept one)
bundle.json         network, preprocessing, classes, calibration, threshold, metrics, hashes, versions
history.parquet     one row an epoch
reference.parquet   what the validation films looked like, and how they scored: drift is measured against it
CARD.md             what it is, what it was trained on, what is not known

Here is what needs no torch; `models.weights` writes a bundle and loads its network.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pneumobatch import storage
from pneumobatch.config import Network


class Preprocessing(BaseModel):
    """How bytes become the network's input; fixed with the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image_size: int
    """Side of the square uint8 input, pixels."""
    resize: Literal["squash"] = "squash"
    """Both sides are scaled to image_size; the aspect ratio is not kept, as in the paper's data."""


class Bundle(BaseModel):
    """Everything about a trained model but its weights: the content of bundle.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1, 2] = 2
    """Version of this file's layout; 2: the validated ages belong to the model's identity."""
    model_id: str = ""
    """Network name and the first 12 hex digits of `identity()`; as `named()` returns it."""
    network: Network
    """The network section that built it."""
    preprocessing: Preprocessing
    """How pixels are made."""
    classes: tuple[str, str] = ("normal", "pneumonia")
    """Names of output 0 and 1."""
    temperature: float = Field(gt=0)
    """The margin (logit of pneumonia minus that of normal) is divided by this; fitted on validation."""
    offset: float = 0.0
    """Added to that before the sigmoid; fitted on validation. 0: an older bundle."""
    threshold: float = Field(ge=0, le=1)
    """A calibrated probability at or above it is pneumonia; chosen on validation for `target`."""
    target: str
    """What the threshold was chosen for, such as `sensitivity >= 0.95`."""
    uncertain: tuple[float, float] | None = None
    """Lowest and highest probability at which a film is marked uncertain, around the threshold; unset: an older bundle,
    which marks none."""
    ranges: dict[str, tuple[float, float]] = {}
    """Least and greatest input of each convolution that int8 computes, over the validation films; empty: an older
    bundle, or a network without such."""
    validated_age_years: tuple[int, int] | None = None
    """Ages (whole years, inclusive) that the training films cover; unset: unknown."""
    metrics: dict[str, Any] = {}
    """Validation results at the threshold."""
    data: dict[str, Any] = {}
    """Counts, split and fingerprint of the training data."""
    training: dict[str, Any] = {}
    """The resolved configuration of the training, its code's hash, the hardware of its last epoch (NULL: unknown), and
    when it first started and ended (UTC); `seconds` and `code` are those of the start that ended it."""
    versions: dict[str, str] = {}
    """Package versions."""
    weights_sha256: str = ""
    """SHA-256 of model.safetensors."""
    reference_sha256: str = ""
    """SHA-256 of reference.parquet; empty: an older bundle, which has none."""

    def identity(self) -> str:
        """Returns the SHA-256 that binds weights, preprocessing, calibration, threshold, band and ages together."""
        # What came after the first bundles counts where it is switched on: theirs keep their identity.
        later = {name for name in ("standardise", "mirrored") if not getattr(self.network, name)}
        bound = [
            self.weights_sha256, self.network.model_dump(exclude={"weights", *later}), self.preprocessing.model_dump(),
            self.temperature, self.threshold,
            *([self.uncertain] if self.uncertain else []),  # an older bundle keeps its name
            *([{"offset": self.offset}] if self.offset else []),
            *([{"ranges": self.ranges}] if self.ranges else []),
            *([{"ages": self.validated_age_years}] if self.format > 1 else []),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()

    def named(self) -> str:
        """Returns the model_id that belongs to what the bundle holds."""
        return f"{self.network.name.removeprefix('timm/')}-{self.identity()[:12]}"


def locate(uri: str | None) -> str:
    """Returns the bundle's own folder; the output folder of a training that left one bundle stands for it.

    Raises:
        ValueError: There is none, or more than one.
    """
    if uri is None:
        raise ValueError("screening.bundle is missing: give the folder that `train` wrote")
    if storage.is_file(storage.join(uri, "bundle.json")):
        return uri
    below = [
        file.path for file in storage.list_files(storage.join(uri, "bundles")) if file.path.endswith("/bundle.json")
    ]
    if len(below) == 1:
        return storage.join(uri, "bundles", below[0].removesuffix("/bundle.json"))
    if below:
        names = ", ".join(sorted(path.removesuffix("/bundle.json") for path in below))
        raise ValueError(f"screening.bundle: {uri}/bundles holds several ({names}); name one")
    raise ValueError(f"screening.bundle: {uri} holds no bundle.json; give the folder that `train` wrote")


def load(uri: str) -> Bundle:
    """Reads and checks bundle.json.

    Raises:
        ValueError: There is no bundle, or its threshold is not bound to its weights.
    """
    try:
        bundle = Bundle.model_validate_json(storage.read_bytes(storage.join(uri, "bundle.json")))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"screening.bundle: {uri} holds no bundle.json; give the folder that `train` wrote") from None
    except ValidationError as error:
        raise ValueError(f"screening.bundle: {uri}/bundle.json is not valid: {error}") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"screening.bundle: {uri}/bundle.json cannot be read: {why}") from None
    if bundle.model_id != bundle.named():
        raise ValueError(
            f"screening.bundle: {uri}/bundle.json was changed: its name, threshold, calibration, preprocessing or "
            f"ages do not belong to model {bundle.model_id}; train again or restore the file"
        )
    return bundle
