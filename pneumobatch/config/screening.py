"""How films are scored, and how the scores are summarised."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumobatch.config.films import Gate
from pneumobatch.config.section import Fraction, Positive, Section, Uri


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
    whatever text is burned into the films: look at them before passing the report on. Never of an archive with
    DICOM films."""
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
