"""Prometheus and Grafana ask for what there is."""

import json
import re
from pathlib import Path

import ray
import yaml

from pneumobatch.screening import gauges, pipeline
from tests.deploy.manifests import DEPLOY, RAY_OBJECTS, pods


def test_the_dashboard_asks_only_for_metrics_that_are_exported() -> None:
    board = json.loads((DEPLOY / "monitoring" / "grafana.json").read_text())
    asked = {
        metric
        for panel in board["panels"]
        for target in panel["targets"]
        for metric in re.findall(r"\b((?:ray|autoscaler)_\w+)\{", target["expr"])
    }
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    exported = set(re.findall(r"\b(?:ray|autoscaler)_\w+", "".join(p.read_text() for p in folder.glob("*_panels.py"))))
    assert len(asked) >= 12
    counted = re.findall(r'Counter\("(\w+)"', Path(pipeline.__file__).read_text())
    gauged = re.findall(r'Gauge\("(\w+)"', Path(gauges.__file__).read_text())
    assert asked - exported == {*(f"ray_{name}_total" for name in counted), *(f"ray_{name}" for name in gauged)}
    # A counter appears with its first films already counted: what it grew by since it was first seen misses them.
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (missed,) = (text for text in expressions if re.search(rf"ray_{counted[0]}_total{{[^}}]*status!=", text))
    assert "max_over_time(" in missed and "increase(" not in missed and "delta(" not in missed
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(positions)) == len(positions)


def test_prometheus_scrapes_the_ports_that_the_pods_name() -> None:
    (job,) = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"]
    (ports,) = (
        rule["regex"] for rule in job["relabel_configs"] if rule["source_labels"][0].endswith("container_port_name")
    )
    named = {
        port["name"]
        for found in RAY_OBJECTS
        for pod in pods(found.values[0])
        for container in pod["containers"]
        for port in container.get("ports", [])
    }
    assert set(ports.split("|")) <= named
