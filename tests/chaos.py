"""Trials that kill a screening run or its object store at random moments, start it again, and compare the results.

    make chaos N=100        python -m tests.chaos --trials 100 --seed 0 [--kinds driver,raylet,…]

A trial is made by its seed: what is killed and when, or what the store does wrong. A run is started again until it ends
well. Afterwards there must be exactly one row for every catalogued image, the same probabilities as in an undisturbed
run, one record, and nothing else that a reader could see; and no reader saw a part of it meanwhile.

Kills are kill -9 of the driver, a scoring actor, a decoding child, any other Ray worker, or the raylet. Faults of the
store are injected by `tests.faults` before a Ceph gateway of the trials' own; without its packages they are left out.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from pneumobatch import storage
from pneumobatch.archive import phantoms
from pneumobatch.screening.verify import verify
from tests import ceph
from tests.faults import FaultProxy, Rule
from tests.untrained import write_bundle

KILLS = ("driver", "actor", "decoder", "worker", "raylet")
FAULTS = ("slow_down", "reset", "lost_reply", "truncate", "stall", "outage")
FILMS = 320
STARTS = 6
"""Starts after which a trial counts as failed."""
PATIENCE = 300.0
"""Seconds after which a start counts as hung."""
OUTAGE_SECONDS = 60.0
ORPHANED_SECONDS = 90.0
"""Seconds after which what is left of an engine counts as lost: when all of Ray dies at once, its two agents look for
the dead control store for up to a minute before they end."""


@dataclass
class Outcome:
    """How a trial went."""

    kind: str
    seed: int
    starts: int = 0
    hit: int = 0
    """Kills that met a process, or faults that were injected."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What all trials share: the archive, the bundle, and the rows of an undisturbed run."""

    folder: Path
    archive: str
    bundle: str
    rows: dict[str, tuple[str, str | None, float | None]]


def write_films(folder: Path) -> None:
    """An archive of small films, with files that fail and copies."""
    rng = np.random.default_rng(0)
    base = [(phantoms.film(rng, label, 96, 96) >> 8).astype(np.uint8) for label in (0, 1) for _ in range(8)]
    for index in range(FILMS):
        target = folder / f"{index % 8}" / f"{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(base[index % len(base)])
        picture.putpixel((0, 0), index % 256)
        picture.putpixel((1, 0), index // 256)
        picture.save(target, compress_level=1)
    (folder / "1" / "empty.png").write_bytes(b"")
    (folder / "2" / "cut.png").write_bytes((folder / "2" / "0002.png").read_bytes()[:300])
    shutil.copy(folder / "3" / "0003.png", folder / "5" / "copy.png")


def command(scene_archive: str, bundle: str, output: str) -> list[str]:
    flags = {"archive.uri": scene_archive, "screening.bundle": bundle, "screening.run_id": "run", "output.uri": output}
    more = ["--screening.block_images", "4", "--screening.compile", "off", "--cluster.object_store_gb", "0.3"]
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "pneumobatch", "screen", *words, *more]


def rows_of(output: str) -> dict[str, tuple[str, str | None, float | None]]:
    files = [file.path for file in storage.list_files(storage.join(output, "predictions"))]
    parts = [storage.read_table(storage.join(output, "predictions", path)) for path in files]
    listed = [row for part in parts for row in part.to_pylist()]
    rows = {row["image_id"]: (row["status"], row["reason"], row["probability"]) for row in listed}
    assert len(rows) == len(listed), "an image has two rows"
    return rows


def prepare(folder: Path) -> Scene:
    """Makes archive and bundle, and scores them undisturbed."""
    write_films(folder / "films")
    write_bundle(str(folder / "bundle"))
    archive, bundle, output = str(folder / "films"), str(folder / "bundle"), str(folder / "undisturbed")
    subprocess.run(command(archive, bundle, output), check=True, capture_output=True, timeout=PATIENCE)
    return Scene(folder, archive, bundle, rows_of(output))


def descendants(driver: int) -> list[tuple[psutil.Process, str]]:
    """All processes below the driver with their command lines."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                found.append((process, " ".join(process.cmdline())))
    return found


def victims(kind: str, driver: int) -> list[psutil.Process]:
    if kind == "driver":
        return [psutil.Process(driver)]
    below = descendants(driver)
    return {
        "actor": [process for process, line in below if line.startswith("ray::MapWorker")],
        "decoder": [process for process, line in below if "pneumobatch.archive.sandbox" in line],
        "worker": [process for process, line in below if line.startswith("ray::") and "MapWorker" not in line],
        "raylet": [process for process, line in below if line.split(" ")[0].endswith("/raylet")],
    }[kind]


def kill_at_random(kind: str, driver: subprocess.Popen[bytes], output: str, dice: random.Random) -> bool:
    """Waits for a moment of the dice's choice and kills what is there then or next; False where nothing came."""
    if dice.random() < 0.4:
        time.sleep(dice.uniform(0.5, 14))
    else:
        parts = storage.join(output, "_staging", "run", "parts")
        while driver.poll() is None and not storage.is_folder(parts):
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 2))
    while driver.poll() is None:
        if chosen := victims(kind, driver.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(chosen).kill()
                return True
        time.sleep(0.02)
    return False


def wait(driver: subprocess.Popen[bytes], engine: list[psutil.Process], outcome: Outcome) -> int:
    """Waits for the end of a start; what outlives it is a finding of its own."""
    try:
        code = driver.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        outcome.wrong.append("hung")
        driver.kill()
        code = driver.wait()
    _, alive = psutil.wait_procs(engine, timeout=ORPHANED_SECONDS)
    for process in alive:
        title = "a process"
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has no command line, and counts
            title = " ".join(process.cmdline())[:200].strip()
        outcome.wrong.append(f"{title} outlived its driver")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return code


@contextlib.contextmanager
def reader(output: str, whole: int, outcome: Outcome) -> Iterator[None]:
    """Looks at the predictions all the time, as an analytics query would."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            try:
                seen = len(rows_of(output))
            except (OSError, pa.ArrowInvalid) as error:
                outcome.wrong.append(f"a reader met {type(error).__name__}")
                return
            if seen not in (0, whole):
                outcome.wrong.append(f"a reader saw {seen} of {whole} rows")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compare(output: str, scene: Scene, outcome: Outcome) -> None:
    """Holds what is published against the undisturbed run."""
    outcome.wrong += [f"verify: {finding.what}" for finding in verify(output, "run") if not finding.right]
    rows = rows_of(output)
    if rows.keys() != scene.rows.keys():
        outcome.wrong.append(f"{len(rows)} rows instead of {len(scene.rows)}")
    different = sum(rows[key] != scene.rows[key] for key in rows.keys() & scene.rows.keys())
    if different:
        outcome.wrong.append(f"{different} rows differ from the undisturbed run")
    visible = Counter(file.path.split("/")[0] for file in storage.list_files(output))
    if visible != {"predictions": 1, "runs": 1, "catalog": 1}:
        outcome.wrong.append(f"visible: {dict(visible)}")
    if left := len(list(storage.list_files(storage.join(output, "_staging")))):
        outcome.wrong.append(f"{left} files left in the staging")


def start(scene_command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(scene_command, stdout=file, stderr=file, env=environment, start_new_session=True)


def killing(kind: str, seed: int, scene: Scene) -> Outcome:
    """A trial that kills processes of up to three starts."""
    dice, outcome, began = random.Random(f"{kind} {seed}"), Outcome(kind, seed), time.monotonic()
    output = str(scene.folder / f"{kind}-{seed}")
    kills = dice.randint(1, 3)
    with reader(output, len(scene.rows), outcome):
        code = -1
        while code != 0 and outcome.starts < STARTS:
            outcome.starts += 1
            driver = start(command(scene.archive, scene.bundle, output), dict(os.environ), scene.folder / "log")
            if kills:
                outcome.hit += kill_at_random(kind, driver, output, dice)
                kills -= 1
            engine = [process for process, _ in descendants(driver.pid)]
            code = wait(driver, engine, outcome)
    if code != 0:
        outcome.wrong.append(f"exit code {code} after {outcome.starts} starts")
    else:
        compare(output, scene, outcome)
    outcome.seconds = time.monotonic() - began
    shutil.rmtree(output, ignore_errors=True)
    return outcome


def rules_of(kind: str, dice: random.Random) -> list[Rule]:
    return {
        "slow_down": [Rule("status", probability=dice.uniform(0.05, 0.3))],
        "reset": [Rule("reset", probability=dice.uniform(0.02, 0.15))],
        "lost_reply": [Rule("lost_reply", method="PUT", probability=dice.uniform(0.1, 0.5))],
        "truncate": [Rule("truncate", method="GET", probability=dice.uniform(0.02, 0.15))],
        "stall": [Rule("stall", method="GET", probability=0.005, seconds=dice.uniform(5, 40))],
        "outage": [],
    }[kind]


def failing_store(kind: str, seed: int, scene: Scene, outage: float = OUTAGE_SECONDS) -> Outcome:
    """A trial over a store that fails: archive and output lie in it, only the readers bypass the faults."""
    dice, outcome, began = random.Random(f"{kind} {seed}"), Outcome(kind, seed), time.monotonic()
    store, bucket = os.environ["AWS_ENDPOINT_URL"], f"{kind.replace('_', '-')}-{seed}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    archive, output = f"s3://{bucket}/in", f"s3://{bucket}/out"
    for path in sorted(Path(scene.archive).rglob("*.png")):
        storage.write_bytes(storage.join(archive, str(path.relative_to(scene.archive))), path.read_bytes())
    with FaultProxy(store, rules_of(kind, dice), seed=seed) as proxy, reader(output, len(scene.rows), outcome):
        environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
        code = -1
        while code != 0 and outcome.starts < STARTS:
            outcome.starts += 1
            driver = start(command(archive, scene.bundle, output), environment, scene.folder / "log")
            if kind == "outage":
                time.sleep(dice.uniform(2, 16))
                proxy.outage(outage)
                outcome.hit += 1
            code = wait(driver, [], outcome)
        outcome.hit += sum(proxy.injected.values())
    if code != 0:
        outcome.wrong.append(f"exit code {code} after {outcome.starts} starts")
    else:
        compare(output, scene, outcome)
    storage.delete(archive)
    storage.delete(output)
    outcome.seconds = time.monotonic() - began
    return outcome


def tally(outcomes: list[Outcome]) -> str:
    """One line a kind: trials, how many were right, hits, starts, and what was wrong."""
    lines = [f"{'kind':<11} trials  right  hits  starts  seconds  wrong"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        wrong = Counter(text for outcome in of for text in outcome.wrong)
        lines.append(
            f"{kind:<11} {len(of):6} {sum(not o.wrong for o in of):6} {sum(o.hit for o in of):5} "
            f"{sum(o.starts for o in of):7} {sum(o.seconds for o in of):8.0f}  "
            + "; ".join(f"{n} × {text}" for text, n in wrong.items())
        )
    right = sum(not outcome.wrong for outcome in outcomes)
    return "\n".join([*lines, f"{right} of {len(outcomes)} trials right"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="comma-separated; default: all that can run")
    options = parser.parse_args()
    missing = ceph.missing()
    kinds = [kind for kind in options.kinds.split(",") if kind] or [*KILLS, *(() if missing else FAULTS)]
    if missing:
        print(f"no faults of the store: {', '.join(missing)} are not installed")
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if set(kinds) & set(FAULTS):
            os.environ |= stack.enter_context(ceph.Ceph(Path(folder) / "ceph")).environment
        scene = prepare(Path(folder))
        try:
            for number in range(options.trials):
                kind, seed = kinds[number % len(kinds)], options.seed + number
                killed = kind in KILLS
                outcome = killing(kind, seed, scene) if killed else failing_store(kind, seed, scene)
                outcomes.append(outcome)
                print(f"{number + 1}/{options.trials} {outcome}", flush=True)
                if outcome.wrong:
                    print((scene.folder / "log").read_text()[-3000:], flush=True)
                (scene.folder / "log").unlink(missing_ok=True)
        except KeyboardInterrupt:
            pass
    print(tally(outcomes))
    return 0 if outcomes and not any(outcome.wrong for outcome in outcomes) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
