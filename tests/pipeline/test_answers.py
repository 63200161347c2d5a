import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.pipeline.answers import write_answers


def test_every_answer_stands_beside_its_prompt_and_the_true_one(tmp_path):
    truths = {"id": pa.table({"id": ["a", "b"], "prompt": ["1+1", "2+2"], "answer": ["2", "4"]})}
    columns = {"id": {"one": {"answer": ["2", "5"]}, "forced_only": {"forced": [True, False]}}}
    write_answers(tmp_path / "answers.parquet", truths, columns)
    assert pq.read_table(tmp_path / "answers.parquet").to_pylist() == [
        {"split": "id", "voter": "one", "id": "a", "prompt": "1+1", "answer": "2", "truth": "2"},
        {"split": "id", "voter": "one", "id": "b", "prompt": "2+2", "answer": "5", "truth": "4"},
    ]
