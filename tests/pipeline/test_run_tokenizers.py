"""A whole run whose weak models have a tokenizer each."""

import pyarrow.parquet as pq
import pytest

from ensemw2s.ensemble.artifact import Ensemble

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def test_weak_models_of_two_tokenizers_label_for_a_student(workplace, own_jsonl) -> None:
    weak = [{"base": "tiny-weak"}, {"base": "tiny-weak", "pretraining_seed": 1, "vocabulary": 48}]
    study = workplace.study(own_jsonl, **{"models.weak": weak, "evaluation.systems": ["ensemw2s", "student_ensemw2s"]})
    finished = workplace.done("run", study)
    assert "report.html" in finished.text

    results = workplace.json("results.json")
    [first, second] = results["rounds"]
    assert first["accepted"]
    assert {expert["base"] for one in (first, second) for expert in one["experts"]} == {"weak-0", "weak-1"}
    ensemble = Ensemble.from_pretrained(workplace.run_folder / "ensemble")
    assert len(ensemble.manifest.tokenizers) == 2
    parts = (workplace.run_folder / "labels").glob("part-*.parquet")
    labels = [label for part in parts for label in pq.read_table(part).to_pylist()]
    assert len(labels) == 60
    assert all(0 < label["agreement"] <= 1 for label in labels if label["answer"])
    for system in ("ensemw2s", "student_ensemw2s"):
        figures = results["systems"][system]["ood"]
        assert figures["n"] == 40
        assert 0 <= figures["exact_match"] <= 1
