"""Drift as a metric of the cluster that a night ran on, for its dashboard: Ray exports all the rest as it happens."""

import time

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Gauge

from pneumobatch import cluster
from pneumobatch.config import Cluster

SENT_SECONDS = 30.0
"""A process sends its metrics every 10 s and they go with it; a scraper that asks every 15 s has seen them by then."""

TAGS = ("model_id", "measure", "column")


def drift(config: Cluster, measured: pa.Table) -> None:
    """Exports each judged measure as a share of its bound (`ray_pneumobatch_drift`): from 1 on it has drifted.

    A local engine has nobody who asks, and none is started for it.

    Args:
        config: The cluster's section.
        measured: `tables.drift_schema`.
    """
    judged = measured.filter(pc.is_valid(measured["bound"]))
    if not len(judged) or not cluster.address_of(config):
        return
    with cluster.engine(config):
        gauge = Gauge("pneumobatch_drift", "A night's drift, as a share of what counts as drifted.", TAGS)
        for row in judged.to_pylist():
            gauge.set(abs(row["value"]) / row["bound"], {tag: row[tag] or "" for tag in TAGS})
        time.sleep(SENT_SECONDS)
