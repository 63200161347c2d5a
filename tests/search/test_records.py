import json

import pytest

from ensemw2s.errors import ArtifactError
from ensemw2s.search.records import Measurement, SearchResult, read_result, write_result

OLDER = {
    "name": "quickstart",
    "created": "2026-03-01T10:00:00+00:00",
    "objective": "ensemble",
    "metric": "exact_match",
    "mode": "max",
    "validation": "easy",
    "best": {"trial": 1, "rounds": 2, "value": 0.75, "point": {"expert.epochs": 3, "boosting.weighting": "loss"}},
    "trials": [
        {
            "trial": 0, "state": "stopped", "rounds": 1, "objective": 0.5, "best_rounds": 1, "seconds": 12.3,
            "point": {"expert.epochs": 1, "boosting.weighting": "bootstrap", "boosting.bootstrap": "mask"},
        },
        {
            "trial": 1, "state": "finished", "rounds": 2, "objective": 0.75, "best_rounds": 2, "seconds": 20.0,
            "point": {"expert.epochs": 3, "boosting.weighting": "loss"},
        },
    ],
    "failed": [{"trial": 2, "reason": "BoostingError: no round gave", "point": {"models.weak": [1, None, "x"]}}],
}  # fmt: skip
"""search.json as it was written before it was a record."""


def test_an_older_search_is_read_and_written_with_the_same_keys(tmp_path) -> None:
    (tmp_path / "search.json").write_text(json.dumps(OLDER))
    found = read_result(tmp_path)
    assert found.best.value == 0.75
    assert found.trials[0].point["boosting.bootstrap"] == "mask"
    write_result(tmp_path, found)
    assert json.loads((tmp_path / "search.json").read_text()) == OLDER


def test_keys_of_a_later_version_are_skipped(tmp_path) -> None:
    (tmp_path / "search.json").write_text(json.dumps({**OLDER, "later": 1}))
    assert read_result(tmp_path) == SearchResult.model_validate(OLDER)


def test_a_damaged_file_is_named_with_the_key_that_is_wrong(tmp_path) -> None:
    (tmp_path / "search.json").write_text(json.dumps({**OLDER, "best": {"trial": 1}}))
    with pytest.raises(ArtifactError, match=r"search\.json is damaged \(best\.rounds: Field required\)"):
        read_result(tmp_path)


def test_tune_is_told_only_of_what_was_measured() -> None:
    measured = Measurement(
        rounds=2, experts=2, value=0.5, exact_match=0.5, objective=0.5, best_rounds=2, seconds=1.0, nll=0.1
    )
    assert measured.for_tune() == {
        "rounds": 2, "experts": 2, "value": 0.5, "exact_match": 0.5, "nll": 0.1, "objective": 0.5, "best_rounds": 2,
        "seconds": 1.0, "final": False, "reason": "", "passes": 0, "best_passes": 0, "iteration": 2,
    }  # fmt: skip
    assert measured.model_copy(update={"passes": 3}).for_tune()["iteration"] == 5, "passes follow the rounds"
    assert Measurement.model_validate({**measured.for_tune(), "done": False, "trial_id": "a"}) == measured
