"""One command line: parsed, checked against its job file, run, and its errors told."""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
from pydantic import BaseModel, ValidationError
from rich.console import Console

from pneumobatch.cli.app import app, sections_of
from pneumobatch.config import NOT_REPEATED, Job, read_job


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
        + (f" (got {row['input']!r})" if not isinstance(row["input"], dict) and row["type"] != NOT_REPEATED else "")
        for row in error.errors()
    ]
    return "; ".join(dict.fromkeys(lines))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; unexpected errors propagate."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    arguments = _with_joined_booleans(arguments)
    source = ""
    try:
        app.config = None
        if (path := _job_file(arguments)) is not None:
            data = read_job(path)
            _unknown(data, Job, "", path)
            source = f"{path}: "
            Job.model_validate(data)  # the sections that this verb does not read are checked as well
            source = ""
            read = {name: data[name] for name in sections_of(_function(arguments)) if name in data}
            # Below the verb: at the root cyclopts drops a section that is called as a verb is.
            for name in reversed(arguments[: 2 if arguments[0] == "submit" else 1]):
                read = {name: read}
            app.config = cyclopts.config.Dict(read, source=str(path))
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
        if type(error) is not ValueError and not type(error).__module__.startswith("pneumobatch."):
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


def _job_file(arguments: list[str]) -> Path | None:
    """The job file that a command line names, wherever it stands."""
    _, bound, _ = app.parse_args(arguments)
    file: Path | None = bound.arguments.get("job_file")
    taken = (word for word in arguments if word.endswith(".toml") and not word.startswith(("-", "*")))
    if file is None and (word := next(taken, None)):  # a list's flag takes all that follows it
        raise ValueError(
            f"{word}: is taken for a value of the flag before it; name the job file right after the verb, or write a "
            f"value as --section.key={word}"
        )
    return file


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


def main() -> None:
    """Entry point of the command `pneumobatch`."""
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
