import numpy as np
import pytest

from ensemw2s.config import parse_config
from ensemw2s.search import plots
from ensemw2s.search.records import TrialRecord

from .test_space import TREE


def measured(point: dict[str, object], objective: float) -> TrialRecord:
    return TrialRecord(
        trial=0, state="finished", rounds=1, objective=objective, best_rounds=1, seconds=1.0, point=point
    )


@pytest.fixture
def study():
    """What is found depends on the learning rate alone."""
    space = {
        "expert.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "expert.epochs": {"integer": [1, 9]},
        "boosting.prior": {"choice": ["none", "samme"]},
        "boosting.shrinkage": {"uniform": [0.1, 1.0], "when": {"boosting.prior": "none"}},
    }
    config, rng = parse_config({**TREE, "search": {"space": space}}), np.random.default_rng(0)
    trials = []
    for _ in range(60):
        rate = float(10 ** rng.uniform(-4, -2))
        prior = str(rng.choice(["none", "samme"]))
        point = {"expert.learning_rate": rate, "expert.epochs": int(rng.integers(1, 10)), "boosting.prior": prior}
        if prior == "none":
            point["boosting.shrinkage"] = float(rng.uniform(0.1, 1.0))
        trials.append(measured(point, -abs(np.log10(rate) + 3)))
    return plots.study_of(config, trials)


@pytest.mark.slow
def test_the_parameter_that_decides_is_the_most_important(study) -> None:
    found = plots.importance(study)
    assert set(found) == {"expert.learning_rate", "expert.epochs", "boosting.prior", "boosting.shrinkage"}
    assert found["expert.learning_rate"] > 0.6
    assert sum(found.values()) == pytest.approx(1)


def test_bars_show_shares_the_largest_on_top(study) -> None:
    found = plots.importance(study)
    axes = plots.bars(found).axes[0]
    assert [bar.get_width() for bar in axes.patches][::-1] == list(found.values())
    assert [label.get_text() for label in axes.get_yticklabels()][::-1] == list(found)


def test_two_trials_tell_no_importance() -> None:
    space = {"expert.epochs": {"integer": [1, 9]}}
    config = parse_config({**TREE, "search": {"space": space}})
    one = plots.study_of(config, [measured({"expert.epochs": 2}, 0.5)])
    assert plots.importance(one) == {}
