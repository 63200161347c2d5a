"""The samples of boosting where weak bases have different tokenizers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.masks import RoundWeights, write_masks
from ensemw2s.boosting.segments import SEGMENTS
from ensemw2s.config import parse_config
from ensemw2s.data.tokens import tokenize_examples
from ensemw2s.models import tiny
from ensemw2s.pipeline import segments
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.segments import Easy, with_segments
from ensemw2s.training import setup
from ensemw2s.training.batches import Layout, step_batches

ROWS = [("sort 11 3 =", "3 11"), ("sort 14 9 3 =", "3 9 14"), ("sort 11 =", "11")]


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A graph with two tokenizers, the easy answers as tokens of both, and both tokenizers."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    config = parse_config(
        {
            "name": "mixed",
            "storage": str(tmp_path),
            "data": {
                "source": {"kind": "files", "paths": [str(tmp_path / "rows.jsonl")]},
                "split": {"mode": "random"},
            },
            "models": {
                "weak": [{"base": "tiny-weak"}, {"base": "tiny-weak", "vocabulary": 32}],
                "strong": {"base": "tiny-strong"},
            },
        }
    )
    graph = build_graph(config)
    texts = [f"{prompt} {answer}" for prompt, answer in ROWS] * 3
    tokenizers = [tiny.train_tokenizer(texts, size) for size in (64, 21)]
    examples = pa.table({"id": ["a", "b", "c"], "prompt": [p for p, _ in ROWS], "answer": [a for _, a in ROWS]})
    tables = [tokenize_examples(examples, tokenizer, config.data) for tokenizer in tokenizers]
    graph.tokens.path.mkdir(parents=True)
    for base, table in zip(graph.weak, with_segments(examples, tables, tokenizers, config), strict=True):
        pq.write_table(table, graph.easy("easy_train", base))
    by_base = dict(zip((base.path for base in graph.weak), tokenizers, strict=True))
    monkeypatch.setattr(segments, "load_tokenizer", lambda path, revision: by_base[path])
    return graph


def read(graph, number):
    return pq.read_table(graph.easy("easy_train", graph.weak[number]))


def test_both_tokenizers_have_the_same_segments(mixed):
    one, other = (read(mixed, n) for n in (0, 1))
    assert one["answer_ids"] != other["answer_ids"]
    assert [s[-1] for s in one[SEGMENTS].to_pylist()] == [s[-1] for s in other[SEGMENTS].to_pylist()]
    assert sum(Easy.read(mixed).lengths) == sum(s[-1] + 1 for s in one[SEGMENTS].to_pylist())


def test_a_segment_is_wrong_where_any_of_its_tokens_is(mixed):
    easy, (first, second) = Easy.read(mixed), mixed.weak

    def predict(table, models):
        true = np.concatenate([np.array(ids) for ids in pq.read_table(table)["answer_ids"].to_pylist()])
        wrong = true.copy()
        wrong[0] = 0
        return np.stack([wrong if model == "bad" else true for model in models])

    votes = easy.votes([("good", second), ("bad", first), ("bad", second), ("good", first)], predict)
    errors = votes != easy.answers
    assert errors.sum(axis=1).tolist() == [0, 1, 1, 0]
    assert errors[1, 0]
    assert errors[2, 0]


def test_training_multiplies_by_the_segments_weight_and_divides_by_segments(mixed, tmp_path):
    easy = Easy.read(mixed)
    mask = np.zeros(sum(easy.lengths), bool)
    mask[0] = True
    write_masks(tmp_path / "errors.parquet", easy.ids, easy.lengths, {"round": mask})
    weights = RoundWeights(masks=[(str(tmp_path / "errors.parquet"), 1.0)])
    expected = weights.multipliers(easy.lengths)
    for base in mixed.weak:

        class Spec:
            tokens = (str(mixed.easy("easy_train", base)),)
            weights = RoundWeights(masks=[(str(tmp_path / "errors.parquet"), 1.0)])

            class objective:
                kind = "xent"

        data = setup.training_set(Spec)
        first = data.segments[0] == 0
        assert data.multipliers[: len(first)][first] == pytest.approx(expected[0])
        assert data.shares.sum() == pytest.approx(len(expected)), "every segment counts once, however it is cut"
        layout = Layout.of(batch_size=3, micro_batch_size=None, world=1, rank=0)
        [[batch]] = step_batches(data, layout, pad_id=0, seed=0, epoch=0)
        assert float(batch["weights"].sum()) == pytest.approx(data.multipliers.sum() / expected.sum(), rel=1e-5)
