import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Request
from ensemw2s.serving.metrics import ReplicaMetrics, merged


def values(page: str, name: str) -> dict[str, float]:
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples if s.name == name]
    return {sample.labels.get("replica", ""): sample.value for sample in samples}


def test_what_engines_did_is_added_up_over_engines(ensemble):
    metrics, tokens = ReplicaMetrics(), 0
    for count in (6, 4):  # the second engine, of a model that was replaced, begins at nothing
        engine = Engine(ensemble, slots=2)
        engine.submit(Request([3, 4, 5], count))
        while engine.busy:
            engine.step()
            metrics.after_step(engine)
        tokens += engine.counters.tokens
        assert values(metrics.text(engine), "ensemw2s_completion_tokens_total") == {"": tokens}
    assert values(metrics.text(engine), "ensemw2s_running_requests") == {"": 0}


def test_pages_of_replicas_become_one_with_their_labels(ensemble):
    pages = []
    for name in ("a", "b"):
        metrics = ReplicaMetrics()
        metrics.first.observe(0.3)
        metrics.requests.labels("stop").inc(2)
        pages.append(({"replica": name}, metrics.text(Engine(ensemble, slots=1))))
    page = merged(pages)
    assert values(page, "ensemw2s_requests_total") == {"a": 2, "b": 2}
    assert values(page, "ensemw2s_time_to_first_token_seconds_count") == {"a": 1, "b": 1}
    assert page.count("# TYPE ensemw2s_requests_total counter") == 1


def test_the_front_needs_no_torch():
    program = "import sys, ensemw2s.serving.metrics, ensemw2s.serving.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
