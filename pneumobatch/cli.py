"""`pneumobatch VERB JOB.toml [--section.key value …]`: parses and validates first, imports torch and ray afterwards.

Exit codes: 0 done; 1 the job failed, or another start holds its run; 2 wrong usage or configuration.
"""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from pydantic import BaseModel, ValidationError
from rich.console import Console

from pneumobatch import __version__
from pneumobatch.config import (
    Archive,
    Augmentation,
    Bench,
    Cluster,
    Demo,
    Evaluation,
    Experiment,
    Job,
    Loss,
    Network,
    Output,
    Screening,
    Section,
    Training,
    read_job,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

EPILOGUE = (
    "Every verb takes a job file and flags; flags win over the file, the file over the defaults. A file may hold the "
    "sections of other verbs too. Lists repeat their flag. Research use only; not a medical device."
)

app = cyclopts.App(
    name="pneumobatch",
    help="Screens archives of chest X-rays for pneumonia, and trains the network that does it, on Ray.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=cyclopts.Parameter(name_transform=lambda name: name, negative_iterable=(), consume_multiple=True),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

JobFile = Annotated[Path | None, cyclopts.Parameter(name="JOB.toml", help="Job file (TOML).")]
JobId = Annotated[str, cyclopts.Parameter(name="ID", help="Id of a submitted job, as submit and status tell it.")]


def _job(grid: Path | None = None, /, **sections: Section) -> Job:
    """Puts the sections together again as they were given, so that a preset only fills what was not.

    `grid` is the job file of an experiment: its factors have no flags and are read from there.
    """
    given: dict[str, Any] = {name: section.model_dump(exclude_unset=True) for name, section in sections.items()}
    return Job.model_validate({**given, "factors": read_job(grid).get("factors", {})} if grid else given)


def _show(*lines: "RenderableType") -> None:
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))


@app.command
def catalog(job_file: JobFile = None, /, *, archive: Archive = Archive(), output: Output = Output()) -> None:
    """List an archive: one row an image, with a stable id and what is known of it."""
    from pneumobatch import storage
    from pneumobatch.archive import catalog as catalogue

    films = catalogue.find_duplicates(catalogue.build(archive))
    target = storage.join(output.uri, "catalog", "catalog.parquet")
    storage.write_table(target, catalogue.publishable(films, keep_uri=output.keep_source_uri))
    labels = films["label"].to_pylist()
    copies = len(films) - films["duplicate_of"].null_count
    _show(
        f"{len(films)} images: {labels.count(1)} pneumonia, {labels.count(0)} normal, {labels.count(None)} without a "
        f"label; {copies} byte-identical copies",
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
    job = _job(
        archive=archive, network=network, loss=loss, augmentation=augmentation, training=training, output=output,
        cluster=cluster,
    )  # fmt: skip
    from pneumobatch.training.trainer import train as run

    trained = run(job)
    found = trained.bundle.metrics
    _show(
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
    job = _job(
        job_file, archive=archive, network=network, loss=loss, augmentation=augmentation, training=training,
        experiment=experiment, evaluation=evaluation, output=output, cluster=cluster,
    )  # fmt: skip
    from pneumobatch.training.experiment import experiment as run

    done = run(job)
    _show(*done.told)
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
    job = _job(archive=archive, screening=screening, evaluation=evaluation, output=output, cluster=cluster)
    if job.screening.nightly:
        from pneumobatch.evaluation.console import told
        from pneumobatch.screening.nightly import night

        done = night(job)
        _show(*(_published(record, output) for record in done.records))
        if done.result:
            _show(*told(done.result))
        if done.over_budget:
            raise RuntimeError("; ".join(done.over_budget))
        return
    from pneumobatch.screening.pipeline import screen as run

    _show(_published(run(job), output))


def _published(record: dict[str, Any], output: Output) -> str:
    from pneumobatch import storage

    counts = ", ".join(f"{count} {name}" for name, count in record["counts"].items())
    paths = [f"predictions  {storage.join(output.uri, path)}" for path in record["predictions"]]
    return "\n".join([f"run {record['run_id']}: {counts}", *paths])


@app.command
def runs(job_file: JobFile = None, /, *, output: Output = Output()) -> None:
    """List what ran under an output, with counts, and what was left unfinished."""
    from pneumobatch.screening.ledger import console_table

    _show(console_table(output.uri))


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
    _show(*(f"{'ok   ' if finding.right else 'WRONG'}  {finding.what}: {finding.told}" for finding in findings))
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

    job = _job(archive=archive, evaluation=evaluation, output=output)
    from pneumobatch.screening.explain import explain

    _show(*told(run(job, explain)))


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
    job = _job(demo=demo, output=output, cluster=cluster)
    from pneumobatch.demo import demo as run

    _show(*run(job))


@app.command
def bench(
    job_file: JobFile = None,
    /,
    *,
    archive: Archive = Archive(),
    screening: Screening = Screening(),
    bench: Bench = Bench(),
    cluster: Cluster = Cluster(),
) -> None:
    """Measure decoding, network, plain loops and this pipeline side by side on the same films."""
    job = _job(archive=archive, screening=screening, bench=bench, cluster=cluster)
    from pneumobatch.bench import bench as run

    _show(*run(job))


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
    job = _job(network=network, cluster=cluster, output=output)
    from pneumobatch.doctor import doctor as run

    lines, healthy = run(job)
    _show(*lines)
    return 0 if healthy else 1


submit = cyclopts.App(
    name="submit",
    help="Run a verb as a job of a cluster, and follow it: submit VERB JOB.toml --cluster.address http://HEAD:8265.",
)
app.command(submit)


def _submitted(verb: str, function: Callable[..., Any]) -> Callable[..., int]:
    """The verb's own command line, of which a cluster makes a job."""

    @functools.wraps(function)
    def command(job_file: Path | None = None, /, **sections: Section) -> int:
        from pneumobatch.submit import submit as run

        if "experiment" not in sections:
            return run(verb, _job(**sections), _sections(function))
        return run(verb, _job(job_file, **sections), [*_sections(function), "factors"])

    signature = inspect.signature(function)
    options = {name: option for name, option in signature.parameters.items() if name != "cluster"}
    cluster = inspect.Parameter("cluster", inspect.Parameter.KEYWORD_ONLY, default=Cluster(), annotation=Cluster)
    command.__signature__ = signature.replace(parameters=[*options.values(), cluster])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, "cluster": Cluster}
    return command


for _verb in (catalog, train, experiment, screen, evaluate, bench, doctor):
    submit.command(_submitted(_verb.__name__, _verb), name=_verb.__name__)


@app.command
def status(
    submission: Annotated[str | None, cyclopts.Parameter(name="ID", help="Id of a submitted job; none: all.")] = None,
    /,
    *,
    cluster: Cluster = Cluster(),
) -> None:
    """Say how a submitted job stands, or list all that a cluster knows."""
    from pneumobatch import submit

    _show(*submit.listed(submit.status(submit.connect(cluster), submission)))


@app.command
def logs(submission: JobId, /, *, cluster: Cluster = Cluster()) -> int:
    """Print a submitted job's log, follow it while it runs, and end with its exit code."""
    from pneumobatch import submit

    return submit.follow(submit.connect(cluster), submission)


@app.command
def cancel(submission: JobId, /, *, cluster: Cluster = Cluster()) -> None:
    """Stop a submitted job; what it staged stays, and the same job submitted again goes on from there."""
    from pneumobatch import submit

    _show(f"{submission}: {submit.cancel(submit.connect(cluster), submission)}")


def _unknown(data: dict[str, Any], model: type[BaseModel], path: str, file: Path) -> None:
    """Raises for the first key of a job file that no section knows, with the nearest one."""
    for key, value in data.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, 1, 0.4)
            raise ValueError(f"{file}: unknown key {path}{key}" + (f"; did you mean {path}{near[0]}?" if near else ""))
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, dict):
                raise ValueError(f"{file}: {path}{key} is a section; write [{path}{key}] and its keys below")
            _unknown(value, kind, f"{path}{key}.", file)


def _described(error: ValidationError, source: str) -> str:
    lines = [
        f"{source}{'.'.join(str(part) for part in row['loc'] if '[' not in str(part))}: {row['msg']}"
        + (f" (got {row['input']!r})" if not isinstance(row["input"], dict) else "")
        for row in error.errors()
    ]
    return "; ".join(dict.fromkeys(lines))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; unexpected errors propagate."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    arguments = _with_joined_booleans(arguments)
    source = ""
    try:
        if (word := _job_word(arguments)) is not None:
            path = Path(word)
            data = read_job(path)
            _unknown(data, Job, "", path)
            source = f"{path}: "
            Job.model_validate(data)  # the sections that this verb does not read are checked as well
            source = ""
            read = {name: data[name] for name in _sections(_function(arguments)) if name in data}
            # Below the verb: at the root cyclopts drops a section that is called as a verb is.
            for name in reversed(arguments[: 2 if arguments[0] == "submit" else 1]):
                read = {name: read}
            app.config = cyclopts.config.Dict(read, source=str(path))
        else:
            app.config = None
        code = app(arguments)
    except cyclopts.ValidationError as error:
        cause = error.__cause__ or error.__context__
        section = error.argument.name.removeprefix("--") + "." if error.argument else ""
        text = _described(cause, section) if isinstance(cause, ValidationError) else str(error)
    except cyclopts.CycloptsError as error:
        text = str(error)
    except ValidationError as error:
        text = _described(error, source)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        text = str(error)
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] not in {"builtins", "pneumobatch"} or isinstance(
            error, NotImplementedError | RecursionError
        ):
            raise
        errors.print(f"failed: {error}", markup=False)
        return 1
    except OSError as error:
        # A path below an archive may name a patient: what the system says of it is told without it.
        told = f"{error.strerror} (a file or folder that is not named here)" if error.filename else str(error)
        errors.print(f"failed: {told}", markup=False)
        return 1
    else:
        return code if isinstance(code, int) else 0
    errors.print(f"error: {text}", markup=False)
    return 2


def _job_word(arguments: list[str]) -> str | None:
    """The word of a command line that names the job file: the first after the verb, and after `verify RUN`."""
    place = 2 if arguments[:1] in (["verify"], ["submit"]) else 1
    words = arguments[1 : place + 1]
    if len(words) < place or any(word.startswith("-") for word in words):
        return None
    function = _function(arguments)
    return words[-1] if function and "job_file" in inspect.signature(function).parameters else None


def _function(arguments: list[str]) -> Callable[..., Any] | None:
    """What a command line calls, if there is such a verb."""
    found = app
    for word in arguments[: 2 if arguments[:1] == ["submit"] else 1]:
        if word not in found:
            return None
        found = found[word]
    return found.default_command


def _with_joined_booleans(arguments: list[str]) -> list[str]:
    """Lets a switch be written as in a job file: `--key true` besides `--key` and `--no-key`."""
    joined: list[str] = []
    for word in arguments:
        if word.lower() in {"true", "false"} and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word.lower()}"
        else:
            joined.append(word)
    return joined


def _sections(function: Callable[..., Any] | None) -> list[str]:
    assert function is not None
    return [name for name in function.__annotations__ if name in Job.model_fields]


def main() -> None:
    """Entry point of the command `pneumobatch`."""
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
