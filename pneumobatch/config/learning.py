"""A network and how it is trained; comparisons of such recipes."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pneumobatch.config.section import Count, Fraction, Positive, Section, Uri, absolute


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
    weights: Annotated[str, AfterValidator(lambda w: w if w == "pretrained" else absolute(w))] | None = None
    """Starting weights: none, `pretrained` (downloaded by the library), or path/URI of a safetensors state dict."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the linear head, probability."""

    @property
    def attends(self) -> bool:
        """Whether it is one of the paper's networks, which alone look at the three switches of attention."""
        return self.name.startswith("attention_") or self.name == "side_branch_net"


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
    """Random resized crop: greatest aspect ratio (and least, its inverse); what sticks out of the film
    is cut off, so that where the least area is above its inverse crops may be smaller."""
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
    shading: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Uneven exposure: grey multiplied by a plane through 1 that rises by up to this towards each side."""
    erase: Fraction = 0.0
    """Probability of blanking one random rectangle of up to a fifth of the film."""
    margins: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    """Blank margins, as of collimators and digital frames, on half of the films: greatest width on each side, share of
    the film's side."""

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
    synchronise: bool = True
    """Batch normalisation over the films of all workers, so that their number makes no difference; off: each over its
    own films, which is quicker where workers would wait for one another at every layer."""
    use_gpu: bool | None = None
    """One GPU a worker; unset: when the cluster has any."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """CPUs a worker; 0 divides the local machine's CPUs among the workers."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of patients held out to choose epoch, calibration and threshold."""
    validation: Literal["random", "shifted"] = "random"
    """Which patients are held out: random ones; or (shifted) those with the lowest numbers, whose films are from
    another time than the training films, each scored as it is and once more with changed framing, greys and detail."""
    target: Literal["sensitivity", "specificity", "balanced"] = "sensitivity"
    """What the threshold is fitted for on the validation fold; balanced: greatest Youden index."""
    target_value: Fraction = 0.95
    """Rate to reach for target sensitivity or specificity."""
    uncertain: tuple[Fraction, Fraction] = (0.99, 0.99)
    """Films whose probability lies in a band around the threshold are marked uncertain: the narrowest band with this
    sensitivity at its low end and this specificity at its high end on the validation fold; [0, 0]: no band."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint."""
    failure_budget: Fraction = 0.05
    """Share of the films that should train or judge that may fail to be read; above it nothing is trained."""
    checkpoints_to_keep: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept, the best by validation AUROC and the latest always among them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, initial weights, order and augmentation."""
    rationale: str = ""
    """How this configuration was chosen, on which films, and what is not known of it: for the bundle's card."""
    validated_age_years: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(le=130)]] | None = None
    """Ages (whole years, inclusive) that the training films cover; screening rejects DICOM films outside it."""

    @model_validator(mode="after")
    def _ages_ordered(self) -> Self:
        ages = self.validated_age_years
        if ages and ages[0] > ages[1]:
            raise ValueError("training.validated_age_years: give the youngest age first, such as [1, 5]")
        return self


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
    """Trials at a time, which share the CPUs; where the cluster has GPUs these decide."""
    trials_per_gpu: Count = 1
    """Trials at a time on every GPU, which share its memory: a small network alone leaves most of it idle."""
    hours: Positive | None = None
    """Hours after which trials are stopped; what is left is shown as not run, and a later start goes on with it."""
    early_stopping: bool = False
    """Stop the trials that validate worst long before the last epoch (ASHA), but none of the baseline; they are never
    tested."""


class Level(Section):
    """One level of a factor: a name, and what it changes in the sections that all rows share."""

    name: Annotated[str, Field(min_length=1)]
    """What the level is called; the names of a row's levels make the row's name."""
    network: Network = Network()
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    training: Training = Training()
