"""Every name and label that the dashboard asks for is one that Ray or this package exports."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from ensemw2s.ensemble.engine import Counters
from ensemw2s.progress import stage_metrics
from ensemw2s.serving.metrics import ReplicaMetrics, merged

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow  # the import of Ray's dashboard
FUNCTIONS = {"sum", "avg", "max", "max_over_time", "rate", "histogram_quantile", "by"}


class Idle:
    """Of an engine, what its page reads."""

    running = waiting = 0
    counters = Counters()


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Labels of each metric, by the name that Prometheus has for it."""
    names = {f"ray_{name}": set(gauge._view.columns) for name, gauge in METRICS_GAUGES.items()}
    stages = stage_metrics._gauge().info
    names[f"ray_{stages['name']}"] = set(stages["tag_keys"])
    replica = ReplicaMetrics()
    replica.requests.labels("stop").inc()
    page = merged([({"model": "ensemble", "replica": "a"}, replica.text(Idle()))])
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


@pytest.fixture(scope="module")
def panels():
    board = json.loads((ROOT / "cluster/grafana/ensemw2s.json").read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def expressions(panels):
    return [target["expr"] for panel in panels for target in panel["targets"]]


def asked(expression: str) -> set[str]:
    """Names of metrics in an expression."""
    without = re.sub(r"\[\$?\w+\]|by \([^)]*\)", "", expression)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", without)) - FUNCTIONS


def test_every_metric_is_exported_with_the_labels_that_it_is_grouped_by(expressions, exported):
    for expression in expressions:
        names = asked(expression)
        assert names, expression
        assert names <= set(exported), expression
        labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert labels
        assert all(labels <= exported[name] for name in names), expression


def test_a_legend_has_the_labels_that_are_left(panels):
    for panel in panels:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            assert shown == kept - {"le"}


def test_all_that_the_endpoint_and_stages_export_is_on_the_dashboard(expressions, exported):
    shown = set().union(*map(asked, expressions))
    ours = {name for name in exported if "ensemw2s" in name and not name.endswith(("_created", "_sum", "_count"))}
    assert ours - shown == {"ensemw2s_draft_acceptance_rate"}, "the share is drawn from the two counters"


def test_a_misspelt_metric_is_seen(exported):
    assert asked("sum by (model) (rate(ensemw2s_token_total[1m]))") == {"ensemw2s_token_total"}
    assert "ensemw2s_token_total" not in exported


def test_panels_do_not_lie_on_each_other(panels):
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
