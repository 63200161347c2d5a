"""An ensemble of a run through the Hugging Face interface of lm-evaluation-harness, on tasks made of the run's splits.

Another program's prompts, batches, padding, stopping and metric give what our own evaluation says, example by example.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ensemw2s.config import load_config
from ensemw2s.ensemble.artifact import Ensemble
from ensemw2s.ensemble.voter import Voter, load_voters
from ensemw2s.evaluation.evaluator import evaluate

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


@pytest.fixture(scope="module")
def harness(undisturbed, tmp_path_factory):
    """Runs one task on the run's ensemble; gives its figures and its samples in the order of the rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        lm_eval = pytest.importorskip("lm_eval")
        from lm_eval.models.huggingface import HFLM

        ensemble = Ensemble.from_pretrained(undisturbed.run_folder / "ensemble")
        model = HFLM(
            pretrained=ensemble.model, tokenizer=ensemble.tokenizer, batch_size=8, device="cpu", max_length=512
        )

        def run(rows: list[dict[str, Any]], **task: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
            file = tmp_path_factory.mktemp("task") / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            common = {
                "task": "own",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": str(file)},
                "test_split": "train",
                "doc_to_text": "{{prompt}}",
                "target_delimiter": " ",
            }
            found = lm_eval.simple_evaluate(model, tasks=[common | task], bootstrap_iters=0, log_samples=True)
            samples = sorted(found["samples"]["own"], key=lambda sample: sample["doc_id"])
            return found["results"]["own"], samples

        yield run


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "data" / f"{split}_test.parquet", columns=["prompt", "answer"]).to_pylist()


@pytest.mark.parametrize("split", ["id", "ood"])
def test_generated_answers_and_exact_match_are_those_of_our_evaluation(harness, undisturbed, split: str) -> None:
    rows = rows_of(undisturbed.run_folder, split)
    settings = {"until": ["<eos>"], "max_gen_toks": 12, "do_sample": False}
    figures, samples = harness(
        rows,
        output_type="generate_until",
        doc_to_target=" {{answer}}",
        generation_kwargs=settings,
        metric_list=[{"metric": "exact_match"}],
    )
    ours = pq.read_table(undisturbed.run_folder / "evaluation" / "answers.parquet").to_pylist()
    answers = [row["answer"] for row in ours if (row["voter"], row["split"]) == ("ensemw2s", split)]
    assert [sample["filtered_resps"][0].strip() for sample in samples] == answers
    right = [answer == row["answer"] for answer, row in zip(answers, rows, strict=True)]
    assert undisturbed.json("results.json")["systems"]["ensemw2s"][split]["exact_match"] == sum(right) / len(right)
    assert figures["exact_match,none"] == sum(right) / len(right)
    if split == "id":
        assert any(right), "equal figures of zero would say little"


def test_the_likeliest_of_several_options_is_that_of_our_evaluation(harness, undisturbed) -> None:
    """Both end options with the end token, which the harness does not add."""
    rows = rows_of(undisturbed.run_folder, "id")
    for row in rows:
        numbers = row["answer"].split(" ")
        row["choices"] = list(dict.fromkeys(" ".join(order) for order in (numbers[::-1], numbers, sorted(numbers))))
        row["ended"] = [f"{choice}<eos>" for choice in row["choices"]]
    figures, _ = harness(
        rows,
        output_type="multiple_choice",
        doc_to_choice="ended",
        doc_to_target="{{choices.index(answer)}}",
        metric_list=[{"metric": "acc"}],
    )
    config = load_config(undisturbed.run_folder / "config.yaml")
    [loaded] = load_voters([Voter(name="all", ensemble=str(undisturbed.run_folder / "ensemble"))], precision="fp32")
    table = pq.read_table(undisturbed.run_folder / "data" / "id_test.parquet")
    index = table.schema.get_field_index("choices")
    table = table.set_column(index, table.schema.field(index), [[row["choices"] for row in rows]])
    ours = evaluate(table, loaded, config.data, config.labeling, decoded=False, shown=0)["option"]
    assert figures["acc,none"] == sum(o == row["answer"] for o, row in zip(ours, rows, strict=True)) / len(rows)
