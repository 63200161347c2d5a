import threading
import time

import pytest

from ensemw2s.progress import stage_metrics


class Gauge:
    """Keeps what it is set to, in the order of the settings, as Ray's passes it on."""

    def __init__(self) -> None:
        self.settings: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.settings.append((value, tags))

    @property
    def values(self) -> list[float]:
        return [value for value, _ in self.settings]


@pytest.fixture
def gauge(monkeypatch):
    made = Gauge()
    monkeypatch.setattr(stage_metrics, "_gauge", lambda: made)
    monkeypatch.setattr(stage_metrics, "BEAT", 0.01)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    return made


def test_a_stage_is_told_of_again_and_again_until_it_ends(gauge):
    with stage_metrics.running("study", "labels"):
        until = time.monotonic() + 10
        while len(gauge.settings) < 5:
            assert time.monotonic() < until
            time.sleep(0.01)
    told = len(gauge.settings)
    assert gauge.values == sorted(gauge.values)
    assert gauge.values[-1] < 10
    assert all(tags == {"run": "study", "stage": "labels"} for _, tags in gauge.settings)
    time.sleep(0.05)
    assert len(gauge.settings) == told


def test_a_stage_that_failed_is_not_told_of_any_more(gauge):
    with pytest.raises(ValueError, match="x"), stage_metrics.running("study", "labels"):
        raise ValueError("x")
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics of labels"]


def test_the_shortest_stage_is_told_of(gauge, monkeypatch):
    monkeypatch.setattr(stage_metrics, "BEAT", 60)
    with stage_metrics.running("study", "labels"):
        pass
    assert len(gauge.settings) == 2


def test_without_a_ray_nobody_is_told(monkeypatch):
    monkeypatch.setattr(stage_metrics, "_gauge", lambda: pytest.fail("there is nobody to tell"))
    with stage_metrics.running("study", "labels"):
        pass
