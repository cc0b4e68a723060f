"""CARD.md: what a model is, what it was trained on, and what is not known of it."""

from pathlib import Path
from typing import Any

from pneumobatch.config import Job, Loss, Network
from pneumobatch.metrics import Calibration

_TEXT = """# MODEL_ID

**Research use only. Not a medical device.**

A network that gives the probability of pneumonia in a frontal chest X-ray{source}.

## Model
- Network: `{network}`, input {size} × {size} grey, squashed{input}.{attention}
- Trained on {hardware}; code {code}.
- Loss `{loss}`{options}; starting weights: {weights}; the weights of epoch {epoch} of {epochs}.
- Output: probability sigmoid((logit of pneumonia − logit of normal) / {temperature:.4f} {offset:+.4f}); pneumonia at
  probability ≥ {threshold:.4f}.
- Uncertain: probabilities from {low:.4f} to {high:.4f}. Of the validation films{both} at least {certain[0]:.1%} of the
  pneumonias lie at or above the low end and {certain[1]:.1%} of the normal films at or below the high end.
- Probabilities hold where {prevalence:.1%} of the films show pneumonia, as in validation; for another prevalence they
  must be corrected (README, "Another prevalence").

{rationale}## Training data
{train} films ({train_sick} pneumonia, {train_well} normal) trained it and {validation} ({validation_sick} pneumonia,
{validation_well} normal){others} chose epoch, calibration and threshold. {left_out} films were left out
(unlabelled, unreadable, outside the domain, or byte-identical copies). {patients} {held}
Ages covered: {ages}.

## Validation, on the films that also chose epoch, calibration and threshold
AUROC {auroc:.4f}; at the threshold ({target}): sensitivity {sensitivity:.4f}, specificity {specificity:.4f},
accuracy {accuracy:.4f}; ECE {ece:.4f}, Brier score {brier:.4f}.
{shifted}These figures are optimistic: the same fold selected and reports. Test on films of your own.

## Not known
How it does on another hospital, another machine, another age or projection, or where pneumonia is rarer or commoner
than among its training films: measure that with `pneumobatch evaluate` before believing a number. A film can show
findings other than pneumonia, of which this model says nothing.
"""

_HELD = {
    "random": "Validation patients were drawn at random, so a shift between these films and later ones does not show.",
    "shifted": "Validation patients are those with the lowest numbers of each series: the nearest to a shift in time "
    "that the archive itself offers, though of the same hospital. Each of their films chose twice: as it is, and with "
    "changed framing, greys and detail.",
}

_SHIFTED = """With changed framing, greys and detail: AUROC {shifted_auroc:.4f},
sensitivity {shifted_sensitivity:.4f}, specificity {shifted_specificity:.4f}, accuracy {shifted_accuracy:.4f};
ECE {shifted_ece:.4f}, Brier score {shifted_brier:.4f}. The target was fitted on films as they are and changed together.
"""

_SOURCE = """, after Li, *Attention-enhanced architecture
for improved pneumonia detection in chest X-ray images* (2024)"""


def write(
    job: Job, calibration: Calibration, threshold: float, target: str, uncertain: tuple[float, float],
    data: dict[str, Any], found: dict[str, Any], lineage: dict[str, Any],
) -> str:  # fmt: skip
    """Fills in the card; MODEL_ID is replaced when the bundle is saved and its hash is known."""
    ages = job.training.validated_age_years
    return _TEXT.format(
        network=job.network.name,
        size=job.network.image_size,
        input=", brought to one mean and contrast" * job.network.standardise
        + ", scored with its mirror image" * job.network.mirrored,
        hardware=lineage["hardware"] or "unknown hardware",
        code=lineage["code"][:12],
        source=_SOURCE if job.network.attends else "",
        attention=_attention(job.network),
        loss=job.loss.name,
        options=_options(job.loss),
        epoch=found["epoch"],
        epochs=job.training.epochs,
        weights=Path(job.network.weights or "random").name,
        temperature=calibration.temperature,
        offset=calibration.offset,
        threshold=threshold,
        target=target,
        low=uncertain[0],
        high=uncertain[1],
        certain=job.training.uncertain,
        prevalence=data["validation_sick"] / data["validation"],
        ages=f"{ages[0]}–{ages[1]} years" if ages else "not stated",
        patients="No film of a validation patient was trained on."
        if data["patients_known"]
        else "Patients are not known, so films of one patient may stand on both sides.",
        rationale=f"## How it was chosen\n{job.training.rationale.strip()}\n\n" if job.training.rationale else "",
        both=", as they are and changed together," if "shifted_auroc" in found else "",
        others=" of other patients" if data["patients_known"] else "",
        shifted=_SHIFTED.format(**found) if "shifted_auroc" in found else "",
        held=_HELD[job.training.validation],
        **{key: data[key] for key in ("train", "train_sick", "train_well", "validation", "validation_sick")},
        validation_well=data["validation_well"],
        left_out=data["left_out"],
        **{key: found[key] for key in ("auroc", "sensitivity", "specificity", "accuracy", "ece", "brier")},
    )


def _attention(network: Network) -> str:
    if not network.attends:
        return ""
    parts = {"side branches": network.side_branches, "channel": network.channel_gate, "spatial": network.spatial_gate}
    return f" Attention: {', '.join(name for name, on in parts.items() if on) or 'none'}."


def _options(loss: Loss) -> str:
    """What of the loss's section it uses."""
    focal = [f"γ {loss.gamma}", f"α {loss.alpha}"] if loss.name != "cross_entropy" else []
    focal += ["literal 1/√n"] if loss.name == "improved_focal" and loss.literal_scale else []
    smoothed = [f"label smoothing {loss.label_smoothing}"] if loss.label_smoothing else []
    return f" ({', '.join(focal + smoothed)})" if focal or smoothed else ""
