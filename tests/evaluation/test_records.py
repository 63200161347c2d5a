"""results.json of older runs is read and written back unchanged; damage is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.records import Metrics, RunResults, SystemResult

OLD = Path(__file__).parent / "data" / "results-0.1.json"
"""Of a quickstart run of version 0.1.0, with two of its examples."""


def test_a_file_of_version_0_1_is_written_back_key_by_key_in_its_order(tmp_path: Path) -> None:
    RunResults.read(OLD).put_file(tmp_path / "results.json")
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (OLD, tmp_path / "results.json"))
    assert json.dumps(new) == json.dumps(old)


def test_the_figures_of_an_old_file_are_found_by_system_and_split() -> None:
    results = RunResults.read(OLD)
    assert results.metrics("ensemw2s", "ood").exact_match == 0.819
    assert results.cost("ensemw2s").tokens_trained == 721440
    assert results.recovered("student_ensemw2s", "ood").ceiling_minus_weak.difference == pytest.approx(0.491)
    assert [record.accepted for record in results.rounds] == [True] * 5
    assert results.curves.on("validation")[0] == 0.882
    assert results.labels["bagging"].finish_reasons == {"stop": 2000}
    assert results.examples[0].tokens[1].votes[0].member == "member-0"


def test_what_a_run_does_not_have_is_none_and_not_an_error() -> None:
    results = RunResults(systems={"bagging": SystemResult(id=Metrics(exact_match=0.5))})
    assert results.metrics("bagging", "ood") == results.metrics("ensemw2s", "id") == Metrics()
    assert results.cost("bagging") is None
    assert results.recovered("student_single", "id") is None
    assert results.curves.on("hard_validation") == ()


def test_null_means_absent(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"systems": {"bagging": None}, "comparisons": None, "curves": None, "seed": 1}))
    assert RunResults.read(path) == RunResults(seed=1)


def test_parts_that_only_some_runs_have_are_not_written_by_others(tmp_path: Path) -> None:
    RunResults().put_file(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert not {"fit", "generations", "hard_validation", "created", "stages"} & written.keys()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is not the results.json of a run: it has no systems"),
        ({"systems": 3}, "it has no systems"),
        ({"systems": {}, "comparisons": [{"a": "x"}]}, r"damaged \(comparisons\.0\.b: Field required\): delete it"),
        ({"systems": {"x": {"id": {"n": "many"}}}}, r"damaged \(systems\.x\.id\.n: "),
    ],
)
def test_a_damaged_file_is_named_with_the_key_that_is_wrong(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=message) as caught:
        RunResults.read(tmp_path / "results.json")
    assert str(tmp_path / "results.json") in str(caught.value)
