"""Configuration: precedence, presets, ranges, and every committed job file."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pneumobatch.config import Job, Section, read_job

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_committed_job_files_are_valid(path: Path) -> None:
    job = Job.model_validate(read_job(path))
    assert job != Job()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_cleaning_a_checkout_spares_what_jobs_wrote(path: Path) -> None:
    (told,) = subprocess.run(
        ["make", "-n", "clean"], cwd=path.parents[1], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told.startswith("rm -rf ")
    assert Path(read_job(path)["output"]["uri"]).parts[0] not in told.split()


def test_there_are_job_files() -> None:
    assert JOBS


def test_every_key_has_a_help_text_and_says_its_range() -> None:
    def walk(model: type[Section], path: str) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                walk(field.annotation, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no help text"

    walk(Job, "")
    described = Job.model_fields["training"].annotation.model_fields["epochs"].description  # type: ignore[union-attr]
    assert "range: >= 1" in str(described)


def test_preset_paper_fills_only_what_was_not_given() -> None:
    job = Job.model_validate({"training": {"preset": "paper", "epochs": 3}, "augmentation": {"flip": 0.5}})
    assert job.training.epochs == 3
    assert job.training.batch_size == 16
    assert job.training.learning_rate == 5e-5
    assert job.augmentation.flip == 0.5
    assert job.augmentation.contrast == 0


def test_unknown_keys_and_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValidationError, match="epoch"):
        Job.model_validate({"training": {"epoch": 3}})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Job.model_validate({"training": {"epochs": 0}})
    with pytest.raises(ValidationError, match="least share first"):
        Job.model_validate({"augmentation": {"crop_area": [0.9, 0.3]}})
    with pytest.raises(ValidationError, match=r"training\.validated_age_years: give the youngest age first"):
        Job.model_validate({"training": {"validated_age_years": [5, 1]}})
    assert Job.model_validate({"training": {"validated_age_years": [3, 3]}}).training.validated_age_years == (3, 3)


def test_relative_paths_mean_the_folder_of_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job.model_validate({"archive": {"uri": "films"}, "output": {"uri": "s3://bucket/out"}})
    assert job.archive.uri == str(tmp_path / "films")
    assert job.output.uri == "s3://bucket/out"
    assert Job().output.uri == str(tmp_path / "outputs")
    with pytest.raises(ValueError, match=r"archive\.uri(?s:.*)a user whom this machine does not know"):
        Job.model_validate({"archive": {"uri": "~nobody-of-this-name/films"}})
    with pytest.raises(ValueError, match="has one slash after s3:.*write s3://"):
        Job.model_validate({"output": {"uri": "s3:/bucket/out"}})
    with pytest.raises(ValueError, match="is empty; name a folder, file or URI, or leave the key out"):
        Job.model_validate({"archive": {"uri": ""}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("archive", "uri", "sftp://me:hunter2@host/films"),
        ("archive", "roots", ["simplecache::sftp://me:hunt@er2@host/films"]),
        ("output", "uri", "sftp://:hunter2@host/out"),
        ("screening", "bundle", "https://me:hunter2@host/bundle"),
        ("archive", "uri", "s3://KEY:SE/CRET@bucket/films"),
        ("archive", "uri", "s3://KEY:123/CRET@bucket/films"),
        ("archive", "uri", "s3://KEY@bucket/films"),
        ("archive", "uri", "sftp://me%3Ahunter2@host/films"),
        ("archive", "uri", "https://ghp_hunter2@host/films"),
        ("archive", "uri", "https://account.host/films?sv=1&sig=hunter2"),
        ("archive", "labels", "https://host/labels.csv?access_token=hunter2"),
        ("archive", "labels", "https://bucket.host/labels.csv?X-Amz-Signature=hunter2"),
        ("evaluation", "labels", "s3://bucket/labels.csv?X-Amz-Credential=hunter2"),
        ("output", "uri", "simplecache::s3://bucket/out?secret_key=hunter2"),
        ("network", "weights", "https://me:hunter2@host/weights"),
        ("cluster", "address", "http://me:hunter2@head:8265"),
    ],
)
def test_a_uri_with_a_password_is_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"{section}\.{key}(?s:.*)credentials come from the environment"):
        Job.model_validate({section: {key: value}})


@pytest.mark.parametrize(
    "uri",
    [
        "sftp://me@host/a:b@c",
        "sftp://me@host:2222/films@night",
        "abfss://films@account.dfs.core.windows.net/x",
        "oci://films@namespace/x",
        "http://[::1]:8265",
        "http://head:8265/a@b",
        "https://host/films?page=2&sort=name",
        "s3://b/x:y@z",
        "s3://b/films?key=1",
        "s3://b/a@b/what?.png",
        "zip://a.png::s3://b/x@y.zip",
        "hf://datasets/owner/films@main/x",
    ],
)
def test_a_uri_without_a_password_is_taken(uri: str) -> None:
    assert Job.model_validate({"archive": {"uri": uri}, "cluster": {"address": uri}}).archive.uri == uri


@pytest.mark.parametrize(
    ("archive", "output", "key"),
    [
        ({"uri": "s3://a/films/"}, "s3://a/films/out", "archive.uri"),
        ({"uri": "s3://a/films/"}, "s3://a/films", "archive.uri"),
        ({"uri": "s3://a"}, "s3://a/out", "archive.uri"),
        ({"uri": "file:///d/films"}, "/d/films/out", "archive.uri"),
        ({"uri": "/d/films"}, "file:///d/x/../films/out", "archive.uri"),
        ({"uri": "/d/films"}, "/d//films/", "archive.uri"),
        ({"uri": "/"}, "/d/out", "archive.uri"),
        ({"uri": "s3://i/manifest.json", "roots": ["s3://x", "s3://a/chest"]}, "s3://a/chest/out", "archive.roots"),
        ({"uri": "s3://a/films/"}, "s3://a/films-out", None),
        ({"uri": "s3://a/films/"}, "s3://a", None),
        ({"uri": "/d/films"}, "/d/films-out", None),
        ({"uri": "/d/films"}, "s3://d/films", None),
        ({"uri": "s3://i/manifest.json", "roots": ["s3://a/chest"]}, "s3://a/chest-out", None),
    ],
)
def test_a_night_does_not_write_into_its_archive(archive: dict[str, object], output: str, key: str | None) -> None:
    job: dict[str, object] = {"archive": archive, "output": {"uri": output}}
    Job.model_validate(job)
    if key is None:
        Job.model_validate(job | {"screening": {"nightly": True}})
        return
    with pytest.raises(ValueError, match=f"output.uri: is or lies below {key}"):
        Job.model_validate(job | {"screening": {"nightly": True}})


@given(st.integers(1, 50))
def test_workers_may_be_one_number_or_a_range(most: int) -> None:
    assert Job.model_validate({"training": {"workers": most}}).training.workers == (most,)
    assert Job.model_validate({"training": {"workers": [1, most]}}).training.workers == (1, most)


def test_a_job_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.toml: no such job file"):
        read_job(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("[training\n")
    with pytest.raises(ValueError, match=r"bad\.toml: not a TOML job file"):
        read_job(tmp_path / "bad.toml")
