"""The verb `demo`: the whole way on synthetic films, from an archive to a report, in a few minutes on two cores."""

from pathlib import Path
from typing import TYPE_CHECKING

from pneumobatch import storage
from pneumobatch.archive import phantoms
from pneumobatch.config import Job
from pneumobatch.evaluation.console import console_table
from pneumobatch.evaluation.evaluate import evaluate
from pneumobatch.progress import say
from pneumobatch.screening.pipeline import screen
from pneumobatch.training.trainer import train

if TYPE_CHECKING:
    from rich.console import RenderableType


def demo(job: Job) -> list["RenderableType"]:
    """Writes two archives of phantoms, trains on the one, screens and evaluates the other.

    Returns:
        What to show: the summary table, and where report, bundle and tables lie. A second run finds all of it done.

    Raises:
        ValueError: `output.uri` is no local folder; phantoms are written as files.
    """
    if "://" in job.output.uri:
        raise ValueError(f"output.uri: {job.output.uri} is no local folder; the demo writes its films to one")
    # Films of another number or seed are another archive, and its runs others: one output may hold several demos.
    name = f"demo-{job.demo.images}-{job.demo.seed}"
    archives = {
        part: _archive(Path(job.output.uri) / "archive" / name / part, images, job.demo.seed + offset)
        for part, images, offset in (("train", job.demo.images, 0), ("screen", job.demo.images // 2, 1))
    }
    common = job.model_dump(exclude_unset=True, include={"output", "cluster"})
    trained = train(
        Job.model_validate(
            {
                **common,
                "archive": {"uri": str(archives["train"])},
                "network": {"name": "attention_resnet18", "image_size": 96},
                "augmentation": {"crop_area": (0.6, 1.0), "contrast": 0.2, "brightness": 0.1},
                "training": {
                    "run_id": name,
                    "epochs": 24,
                    "batch_size": 32,
                    "workers": 2,
                    "ema_decay": 0.98,
                    "validation_fraction": 0.25,
                    "target": "balanced",
                    "failure_budget": 0.15,  # of the fewest films that a demo may have, the planted defects are 11 %
                },
            }
        )
    )
    record = screen(
        Job.model_validate(
            {
                **common,
                "archive": {"uri": str(archives["screen"])},
                # The phantoms' DICOM files hold invented patients; a real DICOM archive keeps its paths to itself.
                "output": {**common.get("output", {}), "keep_source_uri": True},
                "screening": {"bundle": trained.uri, "run_id": name},
            }
        )
    )
    result = evaluate(Job.model_validate({**common, "evaluation": {"run_id": record["run_id"]}}))
    return [
        console_table(result),
        "images       " + ", ".join(f"{count} {name}" for name, count in record["counts"].items()),
        f"bundle       {trained.uri}",
        *(f"predictions  {storage.join(job.output.uri, path)}" for path in record["predictions"]),
        f"summaries    {result.summary_uri}",
        f"report       {result.report_uri}",
    ]


def _archive(folder: Path, images: int, seed: int) -> Path:
    """Writes an archive of phantoms unless it is there already, whole."""
    marker = folder.with_name(f".{folder.name}")
    if not marker.exists():
        say(f"write {images} synthetic films to {folder}")
        phantoms.write_archive(folder, images, seed)
        marker.touch()
    return folder
