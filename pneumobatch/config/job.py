"""All sections together, and the job file that holds them."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pneumobatch.config.credentials import without_password
from pneumobatch.config.films import Archive
from pneumobatch.config.learning import PAPER, Augmentation, Experiment, Level, Loss, Network, Training
from pneumobatch.config.screening import Evaluation, Screening
from pneumobatch.config.section import Count, Positive, Section, Uri, plain


class Output(Section):
    """Where a job writes."""

    uri: Annotated[Uri, Field(validate_default=True)] = "outputs"
    """Folder or URI under which everything is written."""
    keep_source_uri: bool | None = None
    """Write each image's source path into the results; unset: yes, unless the archive holds DICOM files."""


class Cluster(Section):
    """The Ray engine a job runs on."""

    address: Annotated[str, AfterValidator(without_password)] | None = None
    """Ray address to attach to, on a machine of the cluster: `auto` or HOST:PORT; `local`: an embedded local engine;
    unset: RAY_ADDRESS, else a local engine. For submit, status, logs and cancel: http://HEAD:8265, the cluster's job
    server."""
    runtime: Literal["image", "package"] = "image"
    """Submitted jobs run the pneumobatch of the cluster's image, or this one's code, sent along, in that image."""
    shared_paths: tuple[Uri, ...] = ()
    """Folders that every node of the cluster mounts at the same place: submitted jobs may name paths below them."""
    patience_minutes: Positive = 30.0
    """How long a job waits for a cluster that has no worker of the kind that it needs: nodes take minutes to come."""
    num_cpus: Annotated[int, Field(ge=0)] = 0
    """CPUs of the local engine; 0: all that this process may use."""
    object_store_gb: Annotated[float, Field(ge=0)] = 0
    """Object store of the local engine, GiB; 0: a quarter of the memory, at most 8."""


class Bench(Section):
    """What `bench` measures."""

    images: Annotated[int, Field(ge=1)] = 200
    """Images a measurement; files are repeated to reach it."""
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    """Rounds; medians are reported."""
    catalog_sizes: tuple[Count, ...] = ()
    """Sizes for the table of catalogue, anti-join, publish and summary, rows; such as [10000, 100000, 1000000]."""
    image_counts: tuple[Count, ...] = ()
    """Archive sizes for the cost-against-size table, images; such as [200, 2000]."""
    training_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs over the films for which training is measured, after one to warm up; 0: it is not measured. The archive
    must be labelled."""


class Demo(Section):
    """The synthetic archive of `demo`."""

    images: Annotated[int, Field(ge=40, le=100_000)] = 480
    """Films in the training archive; half as many are screened."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the phantoms."""


class Job(Section):
    """A whole job: every verb reads the sections it needs, so one file can hold a study."""

    archive: Archive = Archive()
    network: Network = Network()
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    training: Training = Training()
    screening: Screening = Screening()
    evaluation: Evaluation = Evaluation()
    experiment: Experiment = Experiment()
    factors: dict[str, tuple[Level, ...]] = Field(default_factory=dict)
    """The grid of `experiment`: its rows are the product of the factors' levels. Without flags: only in a job file."""
    output: Output = Field(default_factory=Output)
    cluster: Cluster = Cluster()
    bench: Bench = Bench()
    demo: Demo = Demo()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if (
            isinstance(data, dict)
            and isinstance(data.get("training"), dict)
            and data["training"].get("preset") == "paper"
        ):
            return {**data, **{name: {**values, **data.get(name, {})} for name, values in PAPER.items()}}
        return data

    @model_validator(mode="after")
    def _output_apart(self) -> Self:
        if not self.screening.nightly:
            return self
        places = {"archive.uri": (self.archive.uri,), "archive.roots": self.archive.roots}
        for key, uris in places.items():
            if any(uri and f"{plain(self.output.uri)}/".startswith(f"{plain(uri)}/") for uri in uris):
                raise ValueError(
                    f"output.uri: is or lies below {key}, so that the next night would take what this one writes for "
                    "films; give a folder beside it"
                )
        return self


def read_job(path: Path) -> dict[str, Any]:
    """Returns the tables of a TOML job file, unvalidated.

    Raises:
        ValueError: The file is missing or no TOML; the message names it.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows puts a mark before it
    except FileNotFoundError:
        raise ValueError(f"{path}: no such job file; give the path of a TOML file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; give the path of a TOML job file") from None
    except OSError as error:
        raise ValueError(f"{path}: the job file cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML job file: {error}") from None
