import json
from dataclasses import replace

import pytest

from ensemw2s.config import ClusterConfig, FilesSource
from ensemw2s.data.limits import RowReader
from ensemw2s.errors import ConfigError, DataError, ModelError
from ensemw2s.evaluation import saved
from ensemw2s.evaluation.saved import EvaluateWork, figures
from ensemw2s.labeling.inputs import refuse_run, settings_for
from ensemw2s.models import tiny


def work(tmp_path, *prompts: str, **options) -> EvaluateWork:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in prompts))
    settings = settings_for("no/run", FilesSource(paths=[str(path)]), options)
    return EvaluateWork("no/run", settings, ClusterConfig())


def test_a_row_that_is_too_long_is_named_with_its_file_and_an_option_of_this_command(tmp_path):
    tokenizer = tiny.train_tokenizer(["sort 1 2 3 a"] * 9, 64)
    reader = RowReader("the model", tokenizer, 512)
    given = work(tmp_path, "sort 1", "a " * 2000)
    with pytest.raises(DataError, match=r"rows.jsonl row 2: the prompt has \d+ tokens of the model, --max-prompt-tok"):
        saved._check_rows(given, reader)
    longer = work(tmp_path, "sort 1", "a " * 2000, max_prompt_tokens=9000)
    with pytest.raises(DataError, match=r"row 2: prompt and answer have \d+ tokens, the model takes 512"):
        saved._check_rows(longer, reader)
    saved._check_rows(longer, RowReader("the model", tokenizer, None))


def test_a_student_whose_base_has_moved_is_refused_before_ray_starts(tmp_path):
    tiny.train_tokenizer(["sort 1 2 3 a"] * 9, 64).save_pretrained(tmp_path / "student")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "/old/place"}
    (tmp_path / "student/adapter_config.json").write_text(json.dumps(config))
    given = replace(work(tmp_path, "sort 1"), model=str(tmp_path / "student"), cluster=ClusterConfig(cpus=2))
    with pytest.raises(ModelError, match=r"/old/place.*base_model_name_or_path"):
        saved.prepare(given)


def test_a_wrong_option_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^--max-prompt-tokens: "):
        work(tmp_path, "x", max_prompt_tokens=0)
    with pytest.raises(ConfigError, match=r"^--answer-match: .*is no regular expression"):
        work(tmp_path, "x", answer_match={"kind": "regex", "pattern": "("})


@pytest.mark.parametrize("option", ["--ensemble", "--model", "model one:"])
def test_a_run_in_place_of_a_model_gets_the_same_hint_everywhere(tmp_path, option):
    run = tmp_path / "run"
    (run / "ensemble").mkdir(parents=True)
    (run / "ensemble/ensemble.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"^{option} {run} is a run; its ensemble is {run}/ensemble, its students"):
        refuse_run(option, run)
    refuse_run(option, run / "ensemble")


def test_figures_compare_answers_as_asked():
    rows = {"answer": ["1,000", "x"], "option": [None, None], "forced": [True, False], "token_correct": [2, 1]}
    rows |= {"n_tokens": [2, 2], "nll": [0.1, 0.2]}
    assert figures(rows, ["1000.0", "y"], [None, None], 0).exact_match == 0.0
    assert figures(rows, ["1000.0", "y"], [None, None], 0, "numeric").exact_match == 0.5
