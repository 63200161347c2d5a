import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig, FilesSource
from ensemw2s.data.examples import example_table
from ensemw2s.data.splits import SPLITS, Splits
from ensemw2s.models import tiny
from ensemw2s.pipeline.alphabet import characters, say_unknown


def split(prompt: str, answer: str | None):
    row = {"id": prompt, "prompt": prompt, "answer": answer, "difficulty": 0.0, "choices": None}
    return example_table([row])


def splits() -> Splits:
    made = {name: split("p", "e") for name in SPLITS}
    made |= {"ood_test": split("ü", "ß"), "hard_unlabelled": split("q", None)}
    return Splits(**made, hard_labels=pa.table({"id": ["q"], "answer": ["e"]}))


def test_prompts_templates_and_easy_answers_are_known_and_hard_answers_shape_nothing():
    data = DataConfig(source=FilesSource(paths=["-"]), split={"mode": "random"}, prompt_template="A:\n{prompt}")
    assert set(characters(data, splits())) == set("A:\n pqeü")
    same = dataclasses.replace(splits(), ood_test=split("ü", "another"))
    assert characters(data, same) == characters(data, splits())


def test_hard_answers_that_cannot_be_written_are_warned_of(tmp_path, caplog):
    for name in ("ood_test", "hard_labels"):
        pq.write_table(getattr(splits(), name), tmp_path / f"{name}.parquet")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "p", "answer": "e"}\n{"prompt": "ü", "answer": "ß"}\n')
    data = DataConfig(source=FilesSource(paths=[str(file)]), split={"mode": "random"})
    say_unknown(tmp_path, tiny.train_tokenizer(["p e q"], 64), data)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("1 true answers of ood_test cannot be written")
    assert said.endswith("rows.jsonl row 2 has the character 'ß' at place 1")
