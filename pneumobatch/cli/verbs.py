"""The verbs: each takes its sections, calls what does the work, and prints what it left."""

from typing import Annotated, Any

import cyclopts

from pneumobatch.cli.app import JobFile, app, job_of, show
from pneumobatch.config import (
    Archive,
    Augmentation,
    Bench,
    Cluster,
    Demo,
    Evaluation,
    Experiment,
    Loss,
    Network,
    Output,
    Screening,
    Training,
)


@app.command
def catalog(job_file: JobFile = None, /, *, archive: Archive = Archive(), output: Output = Output()) -> None:
    """List an archive: one row an image, with a stable id and what is known of it."""
    from pneumobatch import storage
    from pneumobatch.archive import catalog as catalogue
    from pneumobatch.archive import left_out

    films = catalogue.find_duplicates(catalogue.build(archive), archive.max_bytes)
    target = storage.join(output.uri, "catalog", "catalog.parquet")
    storage.write_table(target, catalogue.publishable(films, keep_uri=output.keep_source_uri))
    labels = films["label"].to_pylist()
    copies = len(films) - films["duplicate_of"].null_count
    show(
        f"{len(films)} images: {labels.count(1)} pneumonia, {labels.count(0)} normal, {labels.count(None)} without a "
        f"label; {copies} byte-identical copies",
        *filter(None, [left_out.told(left_out.counted(films))]),
        f"catalogue  {target}",
    )


@app.command
def train(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    network: Network = Network(),
    loss: Loss = Loss(),
    augmentation: Augmentation = Augmentation(),
    training: Training = Training(),
    output: Output = Output(),
    cluster: Cluster = Cluster(),
) -> None:
    """Train a network on a labelled archive, by DDP on Ray Train, and leave a bundle."""
    job = job_of(
        archive=archive, network=network, loss=loss, augmentation=augmentation, training=training, output=output,
        cluster=cluster,
    )  # fmt: skip
    from pneumobatch.training.trainer import train as run

    trained = run(job)
    found = trained.bundle.metrics
    show(
        f"validation: AUROC {found['auroc']:.4f}, sensitivity {found['sensitivity']:.4f}, specificity "
        f"{found['specificity']:.4f} at threshold {trained.bundle.threshold:.4f} ({trained.bundle.target})",
        f"bundle  {trained.uri}",
    )


@app.command
def experiment(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    network: Network = Network(),
    loss: Loss = Loss(),
    augmentation: Augmentation = Augmentation(),
    training: Training = Training(),
    experiment: Experiment = Experiment(),
    evaluation: Evaluation = Evaluation(),
    output: Output = Output(),
    cluster: Cluster = Cluster(),
) -> None:
    """Train every row of a grid as a Ray Tune trial, test them on the same films, and report with paired tests."""
    job = job_of(
        job_file, archive=archive, network=network, loss=loss, augmentation=augmentation, training=training,
        experiment=experiment, evaluation=evaluation, output=output, cluster=cluster,
    )  # fmt: skip
    from pneumobatch.training.experiment import experiment as run

    done = run(job)
    show(*done.told)
    if done.failed:
        raise RuntimeError(f"{done.failed} trials failed (see the report); the next start tries them again")


@app.command
def screen(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    screening: Screening = Screening(),
    evaluation: Evaluation = Evaluation(),
    output: Output = Output(),
    cluster: Cluster = Cluster(),
) -> None:
    """Score an archive with a bundle: one row of predictions an image, published when whole; or a night of it."""
    job = job_of(archive=archive, screening=screening, evaluation=evaluation, output=output, cluster=cluster)
    if job.screening.nightly:
        from pneumobatch.evaluation.console import told
        from pneumobatch.screening.nightly import night

        done = night(job)
        show(*(_published(record, output) for record in done.records))
        if done.result:
            show(*told(done.result))
        if done.unpublished:
            raise RuntimeError("; ".join(done.unpublished))
        return
    from pneumobatch.screening.pipeline import screen as run

    show(_published(run(job), output))


def _published(record: dict[str, Any], output: Output) -> str:
    from pneumobatch import storage

    counts = ", ".join(f"{count} {name}" for name, count in record["counts"].items())
    paths = [f"predictions  {storage.join(output.uri, path)}" for path in record["predictions"]]
    return "\n".join([f"run {record['run_id']}: {counts}", *paths])


@app.command
def runs(job_file: JobFile = None, /, *, output: Output = Output()) -> None:
    """List what ran under an output, with counts, and what was left unfinished."""
    from pneumobatch.screening.ledger import console_table

    show(console_table(output.uri))


@app.command
def verify(
    run_id: Annotated[str, cyclopts.Parameter(name="RUN", help="Id of a published run.")],
    job_file: JobFile = None,
    /,
    *,
    output: Output = Output(),
) -> int:
    """Prove a published run against its catalogue: hashes, counts, one row an image."""
    from pneumobatch.screening.verify import verify as run

    findings = run(output.uri, run_id)
    show(*(f"{'ok   ' if finding.right else 'WRONG'}  {finding.what}: {finding.told}" for finding in findings))
    return 0 if all(finding.right for finding in findings) else 1


@app.command
def evaluate(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    evaluation: Evaluation = Evaluation(),
    output: Output = Output(),
) -> None:
    """Summarise a run's predictions against labels: rates with intervals, figures and a report."""
    from pneumobatch.evaluation.console import told
    from pneumobatch.evaluation.evaluate import evaluate as run
    from pneumobatch.screening.explain import explain

    job = job_of(archive=archive, evaluation=evaluation, output=output)
    show(*told(run(job, explain)))


@app.command
def demo(
    job_file: JobFile = None,
    /,
    *,
    demo: Demo = Demo(),
    output: Output = Output(uri="demo"),
    cluster: Cluster = Cluster(),
) -> None:
    """Write synthetic chest films, train on them, screen others, evaluate, and show where everything lies."""
    job = job_of(demo=demo, output=output, cluster=cluster)
    from pneumobatch.demo import demo as run

    show(*run(job))


@app.command
def bench(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    training: Training = Training(),
    screening: Screening = Screening(),
    bench: Bench = Bench(),
    cluster: Cluster = Cluster(),
) -> None:
    """Measure decoding, network, plain loops and this pipeline side by side on the same films."""
    job = job_of(archive=archive, training=training, screening=screening, bench=bench, cluster=cluster)
    from pneumobatch.bench import bench as run

    show(*run(job))


@app.command
def doctor(
    job_file: JobFile = None,
    /,
    *,
    network: Network = Network(),
    cluster: Cluster = Cluster(),
    output: Output = Output(),
) -> int:
    """Say what the machine and the cluster offer, which decoders and precisions work, and what is wrong."""
    job = job_of(network=network, cluster=cluster, output=output)
    from pneumobatch.doctor import doctor as run

    lines, healthy = run(job)
    show(*lines)
    return 0 if healthy else 1
