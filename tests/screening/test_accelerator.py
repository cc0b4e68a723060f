"""How films reach a scorer on an accelerator: Ray is told of one that is not there, and the scorer does without."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TAKES = """
import json, sys
import pyarrow as pa
import ray
import torch
from pneumobatch import cluster
from pneumobatch.config import Cluster, Job
from pneumobatch.models import bundle as bundles
from pneumobatch.screening import pipeline
from pneumobatch.screening.scorer import Plan, Scorer

class Pretending(Scorer):
    def network(self):
        return lambda films_BSS: films_BSS[:, 0, :2] * 0.0

    def batch(self, films_NSS):
        assert 0 <= len(films_NSS) <= 4
        return torch.zeros((4, self.size, self.size), dtype=torch.uint8)  # no memory can be pinned here

    def __call__(self, rows):
        return super().__call__(rows).append_column("together", pa.repeat(len(rows), len(rows)))

bundle_uri, *uris = sys.argv[1:]
bundle = bundles.load(bundle_uri)
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
with cluster.engine(Cluster()) as resources:
    assert resources.gpus == 1
    job = Job(screening={"block_images": 8, "gate": {"pixel_check": False}})
    films = pa.table({"image_id": [str(n) for n in range(len(uris))], "uri": uris, "version": ["1"] * len(uris)})
    plan = Plan(bundle_uri, bundle.model_id, 4, "bf16", False, "cuda", 1)
    rows = pa.concat_tables(pipeline.score(job, bundle, plan, films, resources, Pretending))
print(json.dumps({name: rows[name].to_pylist() for name in ("image_id", "status", "probability", "together")}))
"""


def test_films_come_in_several_batches_at_once_and_each_is_scored_once(tmp_path: Path, bundle_uri: str) -> None:
    generator, uris = np.random.default_rng(0), []
    for number in range(44):
        uris.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(generator.integers(0, 255, (70, 70), np.uint8)).save(uris[-1])
    Path(uris[5]).write_bytes(b"")
    call = [sys.executable, "-c", TAKES, bundle_uri, *uris]
    done = subprocess.run(call, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert sorted(rows["image_id"], key=int) == [str(number) for number in range(44)]
    assert [film for film, status in zip(rows["image_id"], rows["status"], strict=True) if status == "failed"] == ["5"]
    scored = [status == "scored" for status in rows["status"]]
    assert [probability == 0.5 for probability in rows["probability"]] == scored
    assert rows["together"].count(16) == 32  # four batches of four, and a remainder
