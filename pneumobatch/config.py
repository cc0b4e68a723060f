"""One pydantic model per job section; the whole configuration of a job in one place, without torch or ray.

Defaults < preset < job file < flags. Every section is frozen and forbids unknown keys, every range stands in its
`Field`, and the docstring under a key is its help text.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


NOT_REPEATED = "not_repeated"
"""Kind of the error whose input must not be repeated."""

_PASSWORD = re.compile(r"://[^/?#]*:[^/?#]+@")


def _without_password(uri: str) -> str:
    """Configurations are written beside every output."""
    if _PASSWORD.search(uri):
        raise PydanticCustomError(
            NOT_REPEATED,
            "holds a password, which would be written into records; leave it out of the URI: credentials come from the "
            "environment (for fsspec's protocols from variables such as FSSPEC_SFTP_PASSWORD)",
        )
    return uri


def _absolute(uri: str) -> str:
    """Workers have working folders of their own: a relative path means the one where the job was started."""
    if not uri:
        raise ValueError("is empty; name a folder, file or URI, or leave the key out")
    # Not Path.resolve: a link to an archive is a name that its user chose.
    return _without_password(uri) if "://" in uri else os.path.abspath(Path(uri).expanduser())  # noqa: PTH100


Uri = Annotated[str, AfterValidator(_absolute)]


def _plain(uri: str) -> str:
    """A path or URI in the one way in which places are compared."""
    path = uri.removeprefix("file://")
    return (path if "://" in path else os.path.abspath(path)).rstrip("/")  # noqa: PTH100 - links are names


class Section(BaseModel):
    """A frozen section of a job file that knows only its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():  # so that --help tells the range that validation enforces
            limits = " and ".join(dict.fromkeys(_limits([field.annotation, *field.metadata])))
            field.description = f"{field.description or ''}{f' [range: {limits}]' if limits else ''}"


def _limits(parts: list[Any]) -> list[str]:
    """Collects the bounds in a field's annotation, such as `>= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(part, name):g}" for part in parts for name, sign in signs.items() if hasattr(part, name)]
    inner = [
        child
        for part in parts
        for child in (*get_args(part), *getattr(part, "metadata", ()))
        if not isinstance(child, str) and child is not part
    ]
    return found + (_limits(inner) if inner else [])


class Archive(Section):
    """What to read: images and, where known, their labels."""

    uri: Uri | None = None
    """Folder, prefix or Parquet file/folder of the images: local path, s3://… or any fsspec URL."""
    labels: Uri | None = None
    """CSV or Parquet of labels; without it, class folders NORMAL/ and PNEUMONIA/ are the labels where present."""
    include: tuple[str, ...] = ("*",)
    """Glob patterns on the path below the archive; a file is taken when any of them fits."""
    exclude: tuple[str, ...] = ()
    """Glob patterns on the path below the archive; a file is left out when any of them fits."""
    key_column: str | None = None
    """Column of `labels` that names the image: by its path below the archive, its file name (with or without ending),
    or its image_id. Default: the first of uri, image_id, path, file, filename, image, name that is there."""
    label_column: str = "label"
    """Column of `labels` with the class: 1/0, PNEUMONIA/NORMAL, true/false; empty or `pending` is unknown."""
    patient_column: str = "patient"
    """Column of `labels` with the patient, used only to keep splits and intervals honest; never written out."""
    subgroups: tuple[str, ...] = ("etiology", "age_band", "sex", "view", "manufacturer", "site")
    """Columns of `labels` carried to the predictions as subgroups; those that are absent are left out."""
    patients: Literal["auto", "kermany", "none"] = "auto"
    """How patients are known: from the label table, from Kermany's file names, or not at all (auto: as found, but
    normal films by their names only below NORMAL/)."""
    roots: tuple[Uri, ...] = ()
    """Folders or prefixes that a manifest may point into; default: a Parquet manifest's own folder. An S3 inventory
    needs them."""
    bytes_column: str = "bytes"
    """Parquet archives: column with the encoded image."""
    uri_column: str = "uri"
    """Parquet archives without a bytes column: column with each image's path or URI (below the archive)."""
    max_bytes: Annotated[int, Field(ge=1_024)] = 1_000_000_000
    """Size of a file, bytes, above which it fails as `too_large` before it is read whole."""
    max_pixels: Annotated[int, Field(ge=1_024)] = 100_000_000
    """Pixels (width × height) above which an image fails as `too_many_pixels` before it is decoded."""


class Network(Section):
    """The network: the paper's attention-ResNets, its literal side-branch net, or any timm network."""

    name: str = "attention_resnet50"
    """attention_resnet{18,34,50,101,152}, resnet{18,34,50,101,152}, side_branch_net (heavy: 9.7 G multiply-adds per
    3×3 convolution at 512²), or timm/NAME."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Side of the square input, pixels."""
    side_branches: bool = True
    """Attention by side branches (reading 11)."""
    channel_gate: bool = True
    """Channel attention (reading 12)."""
    spatial_gate: bool = True
    """Spatial attention (reading 12)."""
    standardise: bool = False
    """Bring every film to the same mean grey and contrast first, so that neither can stand for the class."""
    mirrored: bool = False
    """Score a film as the mean of its logits and its mirror image's; doubles the cost of scoring, not of training."""
    weights: Annotated[str, AfterValidator(lambda w: w if w == "pretrained" else _absolute(w))] | None = None
    """Starting weights: none, `pretrained` (downloaded by the library), or path/URI of a safetensors state dict."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the linear head, probability."""


class Loss(Section):
    """The training loss."""

    name: Literal["cross_entropy", "focal", "improved_focal"] = "improved_focal"
    """cross_entropy, focal (Lin et al. 2017) or improved_focal (the paper's, with class counts)."""
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Focusing exponent γ (reading 8)."""
    alpha: Fraction = 0.5
    """Weight of the pneumonia class; 1 − alpha is the normal class (reading 8)."""
    literal_scale: bool = False
    """Keep the paper's literal 1/√n weights instead of normalising them to mean 1 (reading 9)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the target moved to the other class, fraction."""


class Augmentation(Section):
    """What training changes about a film; 0 switches a part off."""

    crop_area: tuple[Fraction, Fraction] = (0.4, 1.0)
    """Random resized crop: least and greatest share of the film's area."""
    crop_aspect: Annotated[float, Field(ge=1, le=4)] = 1.33
    """Random resized crop: greatest aspect ratio (and least, its inverse)."""
    contrast: Fraction = 0.4
    """Contrast factor drawn from 1 ± this."""
    brightness: Fraction = 0.2
    """Brightness shift drawn from ± this, share of full scale."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Log-uniform gamma curve drawn from exp(± this)."""
    rotation_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    """Rotation drawn from ± this, degrees."""
    flip: Fraction = 0.5
    """Probability of a left–right flip."""
    sharpness: Fraction = 0.0
    """Factor on fine detail drawn from 1 ± this: films of another resolution, smoothed or sharpened."""
    erase: Fraction = 0.0
    """Probability of blanking one random rectangle of up to a fifth of the film."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.crop_area[0] > self.crop_area[1] or self.crop_area[0] <= 0:
            raise ValueError("augmentation.crop_area: give the least share first, above 0, such as [0.4, 1.0]")
        return self


class Training(Section):
    """How the network is trained."""

    preset: Literal["default", "paper"] = "default"
    """`paper`: AdamW at 5e-5, weight decay 1e-4, ×0.1 every 5 epochs, batch 16, 100 epochs, no EMA (reading 16)."""
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = None
    """Name of the run; the same name goes on where it stopped. Default: derived from the configuration."""
    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 64
    """Images a step over all workers together."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW for the whole batch."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay (biases and normalisation excluded)."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: to 1 % of the peak; step: ×0.1 every `step_epochs`."""
    step_epochs: Count = 5
    """Schedule `step`: epochs between reductions."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Linear warm-up from 1 % of the peak, epochs."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay per step of the weights' moving average, which is what is validated and shipped; 0 switches it off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the hardware has it."""
    workers: Annotated[
        tuple[Count, ...],
        Field(min_length=1, max_length=2),
        BeforeValidator(lambda n: (n,) if isinstance(n, int) else n),
    ] = (1,)
    """Ray Train workers (DDP ranks); two numbers, least and most, make training elastic."""
    use_gpu: bool | None = None
    """One GPU a worker; unset: when the cluster has any."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """CPUs a worker; 0 divides the local machine's CPUs among the workers."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of patients held out to choose epoch, calibration and threshold."""
    validation: Literal["random", "shifted"] = "random"
    """Which patients are held out: random ones; or (shifted) those with the lowest numbers, whose films are from
    another time than the training films, each scored as it is and once more with changed crop, greys and detail."""
    target: Literal["sensitivity", "specificity", "balanced"] = "sensitivity"
    """What the threshold is fitted for on the validation fold; balanced: greatest Youden index."""
    target_value: Fraction = 0.95
    """Rate to reach for target sensitivity or specificity."""
    uncertain: tuple[Fraction, Fraction] = (0.99, 0.99)
    """Films whose probability lies in a band around the threshold are marked uncertain: the narrowest band with this
    sensitivity at its low end and this specificity at its high end on the validation fold; [0, 0]: no band."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint."""
    checkpoints_to_keep: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept, the best by validation AUROC and the latest always among them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, initial weights, order and augmentation."""
    rationale: str = ""
    """How this configuration was chosen, on which films, and what is not known of it: for the bundle's card."""
    validated_age_years: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(le=130)]] | None = None
    """Ages (whole years, inclusive) that the training films cover; screening rejects DICOM films outside it."""


class Gate(Section):
    """Which DICOM films and pictures are inside the model's domain; a film outside is `rejected` by the named rule."""

    modalities: tuple[str, ...] = ("CR", "DX")
    """Accepted Modality values."""
    body_parts: tuple[str, ...] = ("CHEST", "THORAX")
    """Accepted BodyPartExamined values; an absent one is accepted."""
    views: tuple[str, ...] = ("PA", "AP")
    """Accepted view positions; an absent one is accepted."""
    allow_any_age: bool = False
    """Score patients outside the bundle's validated ages, or of an unreadable age, instead of rejecting them."""
    pixel_check: bool = True
    """Reject blank, inverted and non-X-ray pictures."""


class Screening(Section):
    """How an archive is scored."""

    bundle: Uri | None = None
    """Folder or URI of the trained bundle."""
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = None
    """Name of the run; the same name goes on where it stopped, a finished one does nothing. Default: from the date,
    the bundle and the archive."""
    batch_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Images a forward pass; 0: 8 on a CPU core, whose cache holds no more, and 128 on a GPU."""
    block_images: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Images a decode task: the unit that is retried, and lost at most by a kill; 0: 64, more in long archives."""
    scorers: Annotated[int, Field(ge=0)] = 0
    """Most scoring actors; a cluster is asked for all of them at once. 0: one per GPU, or one per CPU where there is
    none, and more as nodes come."""
    use_gpu: bool | None = None
    """Score on GPUs; unset: when there are any as a run begins. A run that is taken up keeps to what it began with."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of scoring; auto: bf16 where the hardware has it. int8: the backbone's convolutions in integers, for
    CPUs with VNNI or AMX; its probabilities differ by a few hundredths at most from those that chose the threshold."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network; auto: when the archive is long enough to pay for it and a C++ compiler is there."""
    nightly: bool = False
    """Take only what is new or changed since this model's published runs, then evaluate, measure drift, and leave the
    review list, the discrepancy list and the report: what a scheduler starts every night."""
    failure_budget: Fraction = 0.05
    """Share of images that may fail before the run counts as failed (all readable ones are scored first)."""
    failures_allowed: Annotated[int, Field(ge=0)] = 0
    """Failed images that are within the budget however few images a run has: one bad file in a quiet night."""
    gate: Gate = Gate()
    """The domain gate."""

    @model_validator(mode="after")
    def _named_by_date(self) -> Self:
        if self.nightly and self.run_id:
            raise ValueError(
                "screening.run_id: with screening.nightly every night is a run of its own, named by its date; leave "
                "run_id out or set nightly to false"
            )
        return self


class Evaluation(Section):
    """How predictions are summarised."""

    run_id: str | None = None
    """Run to evaluate; default: the latest published run under output.uri."""
    scope: Literal["run", "model"] = "run"
    """run: that run's images; model: the latest row of every image in this model's runs up to that one."""
    labels: Uri | None = None
    """CSV or Parquet of labels that arrived later (columns as archive.*, or accession, study, instance); default:
    archive.labels, else the labels in the predictions."""
    thresholds: Annotated[int, Field(ge=2, le=1001)] = 101
    """Points of the threshold grid from 0 to 1."""
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Bootstrap resamples (by patient where known) for AUROC, average precision, Brier and ECE; 0 switches it off.
    Above 5,000 films fewer are drawn, as many as keep the third decimal."""
    bins: Annotated[int, Field(ge=2, le=100)] = 10
    """Equal-width bins of the reliability curve and ECE."""
    min_cell: Annotated[int, Field(ge=0)] = 20
    """Subgroups with fewer labelled images are suppressed."""
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Local prevalence of pneumonia at which PPV, NPV, and the calibration of probabilities that are corrected for it,
    are given beside those of the labelled films; unset: they are not."""
    heat_maps: Annotated[int, Field(ge=0, le=50)] = 0
    """Films of each outcome (true and false positives and negatives) that the report shows with heat maps: class
    activation and the network's spatial gates. Pictures of films then leave the archive with the report, and with them
    whatever text is burned into the films: look at them before passing the report on. Never of a run with DICOM
    films."""
    masked_films: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Labelled films, half of each class, that are scored again with border, corners and, to compare, the centre
    covered: a network that lives on markers changes its mind without them. 0: no such check."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the bootstrap and of the masked films."""
    drift_images: Annotated[int, Field(ge=20)] = 100
    """Scored films of a run below which drift is not judged: chance moves small samples."""
    drift_psi: Positive = 0.25
    """Population stability index above which a distribution counts as drifted (0.1 is usually called moderate)."""
    review_images: Annotated[int, Field(ge=0)] = 200
    """Length of the review and discrepancy lists that the report shows; the tables hold all."""


class Experiment(Section):
    """A comparison of training recipes: the rows of `factors` × seeds × protocols, each a trial of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "experiment"
    """Folder of the results below `experiments/`; the same name goes on where it stopped, and keeps finished trials."""
    baseline: str | None = None
    """Row that every other row is tested against; default: the first."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of initial weights, order and augmentation; the splits stay those of `training.seed`."""
    protocols: Annotated[tuple[Literal["official", "paper_like"], ...], Field(min_length=1)] = ("official",)
    """official: the data set's own training and test folders; paper_like: `held_out` films of each class of the
    archive are the test set, whole patients, and the remainder trains (reading 4)."""
    test: Uri | None = None
    """Folder or URI of the official test films; without it the rows of protocol official are shown as not run."""
    held_out: Count = 208
    """Films of each class that protocol paper_like holds out."""
    concurrent: Count = 2
    """Trials at a time, which share the CPUs; where the cluster has GPUs each trial has one to itself."""
    hours: Positive | None = None
    """Hours after which trials are stopped; what is left is shown as not run, and a later start goes on with it."""
    early_stopping: bool = False
    """Stop the trials that validate worst long before the last epoch (ASHA); they are never tested."""


class Level(Section):
    """One level of a factor: a name, and what it changes in the sections that all rows share."""

    name: Annotated[str, Field(min_length=1)]
    """What the level is called; the names of a row's levels make the row's name."""
    network: Network = Network()
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    training: Training = Training()


class Output(Section):
    """Where a job writes."""

    uri: Annotated[Uri, Field(validate_default=True)] = "outputs"
    """Folder or URI under which everything is written."""
    keep_source_uri: bool | None = None
    """Write each image's source path into the results; unset: yes, unless the archive holds DICOM files."""


class Cluster(Section):
    """The Ray engine a job runs on."""

    address: Annotated[str, AfterValidator(_without_password)] | None = None
    """Ray address to attach to (`auto`, ray://… or HOST:PORT); unset: RAY_ADDRESS, else an embedded local engine.
    For submit, status, logs and cancel: http://HEAD:8265, the cluster's job server."""
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


PAPER: dict[str, dict[str, Any]] = {
    "training": {
        "epochs": 100, "batch_size": 16, "learning_rate": 5e-5, "weight_decay": 1e-4, "schedule": "step",
        "step_epochs": 5, "warmup_epochs": 0.0, "gradient_clip": 0.0, "ema_decay": 0.0,
    },
    "augmentation": {
        "crop_area": (1.0, 1.0), "crop_aspect": 1.0, "contrast": 0.0, "brightness": 0.0, "rotation_degrees": 0.0,
        "flip": 0.0,
    },
}  # fmt: skip
"""Preset `paper` (reading 16): the paper names no augmentation, so it has none."""


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
    factors: dict[str, tuple[Level, ...]] = {}
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
            if any(uri and f"{_plain(self.output.uri)}/".startswith(f"{_plain(uri)}/") for uri in uris):
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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such job file; give the path of a TOML file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; give the path of a TOML job file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML job file: {error}") from None
