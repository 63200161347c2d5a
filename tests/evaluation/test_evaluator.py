import copy
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ensemw2s.cluster.pool import chunks
from ensemw2s.config import DataConfig, LabelingConfig, ReasoningGymSource
from ensemw2s.data.examples import example_table
from ensemw2s.data.tokens import tokenize_examples
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.voter import Loaded, Voter
from ensemw2s.evaluation.chunks import SplitChunk
from ensemw2s.evaluation.evaluate import _joined
from ensemw2s.evaluation.evaluator import Evaluator, evaluate
from ensemw2s.evaluation.voters import VoterGroup
from ensemw2s.models import loading, tiny

LABELING = LabelingConfig(max_new_tokens=5, batch_size=2)
DATA = DataConfig(source=ReasoningGymSource(dataset="number_sorting"), prompt_template="sort {prompt} =")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9 up = down"] * 9, 64)


@pytest.fixture(scope="module")
def models(tokenizer):
    made = [tiny.create_tiny("tiny-weak", tokenizer, seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        for model in made:
            model.model.norm.weight.mul_(4.0)
    return made


@pytest.fixture(scope="module")
def pair(models, tokenizer) -> Loaded:
    return Loaded(EnsembleForCausalLM(models, [0.75, 0.25], names=["first", "second"]), tokenizer)


def examples(*rows: tuple) -> pa.Table:
    return example_table(
        {"id": f"e{i}", "prompt": prompt, "answer": answer, "difficulty": 0.0, "choices": (*rest, None)[0]}
        for i, (prompt, answer, *rest) in enumerate(rows)
    )


SUMS = examples(("3 1 2", "1 2 3"), ("9 8", "8 9"), ("up 5 4 1 7", "1 4 5 7"))


@torch.no_grad()
def naive(models, weights, tokenizer, prompt: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each answer token, and whether it is the likeliest, each prefix read anew and alone."""
    table = tokenize_examples(examples((prompt, answer)), tokenizer, DATA)
    [tokens], [target] = table["prompt_ids"].to_pylist(), table["answer_ids"].to_pylist()
    logprobs, right = [], []
    for token in target:
        probs = [torch.softmax(m(torch.tensor([tokens]), use_cache=False).logits[0, -1].double(), -1) for m in models]
        combined = sum(w * p for w, p in zip(weights, probs, strict=True))
        logprobs.append(float(combined[token].log()))
        right.append(int(combined.argmax()) == token)
        tokens = [*tokens, token]
    return np.array(logprobs), np.array(right)


def test_teacher_forcing_gives_tokens_right_and_their_likelihood(pair, models, tokenizer):
    found = evaluate(SUMS, pair, DATA, LABELING, decoded=False, shown=0)
    options = {"option", "option_sum", "option_token", "option_byte"}
    assert found.keys() == {"n_tokens", "token_correct", "nll", "forced"} | options
    for i, row in enumerate(SUMS.to_pylist()):
        logprobs, right = naive(models, [0.75, 0.25], tokenizer, row["prompt"], row["answer"])
        assert found["n_tokens"][i] == len(right)
        assert found["token_correct"][i] == right.sum()
        assert found["forced"][i] == right.all()
        assert found["nll"][i] == pytest.approx(-logprobs.sum(), abs=1e-3)


def test_an_answer_that_was_decoded_is_not_read_again_under_teacher_forcing(pair, tokenizer, monkeypatch):
    from ensemw2s.evaluation import evaluator as module

    table = tokenize_examples(SUMS, tokenizer, DATA)
    said = decode(pair.model, table["prompt_ids"].to_pylist(), max_new_tokens=5, eos_ids=pair.eos_id, batch_size=2)
    answers = [said[0].token_ids, table["answer_ids"][1].as_py(), said[2].token_ids]
    where = table.schema.get_field_index("answer_ids")
    table = table.set_column(where, table.schema.field(where), pa.array(answers, table.schema.field(where).type))
    monkeypatch.setattr(module, "tokenize_examples", lambda *_: table)
    read, real = [], module.score
    monkeypatch.setattr(
        module, "score", lambda m, prompts, *rest, **o: read.append(len(prompts)) or real(m, prompts, *rest, **o)
    )
    once = evaluate(SUMS, pair, DATA, LABELING, decoded=True, shown=0, members=True)
    both = evaluate(SUMS, pair, DATA, LABELING, decoded=False, shown=0, members=True)
    assert read == [1, 3]
    assert once["forced"] == [True, False, True]
    for key in ("n_tokens", "token_correct", "forced", "answer_ids", "member_ids"):
        assert once[key] == both[key]
    np.testing.assert_allclose(once["nll"], both["nll"], atol=1e-4)


def test_in_half_precision_every_answer_has_one_pass_under_teacher_forcing(models, tokenizer, monkeypatch):
    from ensemw2s.evaluation import evaluator as module

    half = Loaded(EnsembleForCausalLM([copy.deepcopy(m).bfloat16() for m in models], [0.75, 0.25]), tokenizer)
    table = tokenize_examples(SUMS, tokenizer, DATA)
    prompts = table["prompt_ids"].to_pylist()
    said = decode(half.model, prompts, max_new_tokens=5, eos_ids=half.eos_id, batch_size=2)
    where = table.schema.get_field_index("answer_ids")
    column = pa.array([g.token_ids for g in said], table.schema.field(where).type)
    monkeypatch.setattr(module, "tokenize_examples", lambda *_: table.set_column(where, "answer_ids", column))
    read, real = [], module.score
    monkeypatch.setattr(
        module, "score", lambda m, prompts, *r, **o: read.append(len(prompts)) or real(m, prompts, *r, **o)
    )
    evaluate(SUMS, half, DATA, LABELING, decoded=True, shown=0)
    assert read == [3]


def test_decoding_counts_the_tokens_of_every_member(pair, models, tokenizer):
    alone = Loaded(EnsembleForCausalLM(models[:1], [1.0]), tokenizer)
    one = evaluate(SUMS, alone, DATA, LABELING, decoded=True, shown=0)
    twice = Loaded(EnsembleForCausalLM([models[0], models[0]], [0.5, 0.5]), tokenizer)
    two = evaluate(SUMS, twice, DATA, LABELING, decoded=True, shown=0)
    assert two["answer"] == one["answer"]
    assert two["n_decoded"] == [2 * n for n in one["n_decoded"]]
    assert two["agreement"] == [1.0] * 3
    assert all(seconds > 0 for seconds in one["seconds"])
    assert len(set(one["seconds"])) == 1


def test_tokens_with_their_votes_are_kept_for_the_first_examples(pair, models, tokenizer):
    found = evaluate(SUMS, pair, DATA, LABELING, decoded=True, shown=2)
    assert [tokens is None for tokens in found["tokens"]] == [False, False, True]
    for i in range(2):
        tokens = found["tokens"][i]
        assert 2 * len(tokens) == found["n_decoded"][i]
        assert np.mean([t["agreement"] for t in tokens]) == pytest.approx(found["agreement"][i], abs=1e-6)
        for t in tokens:
            assert [(v["member"], v["alpha"]) for v in t["votes"]] == [("first", 0.75), ("second", 0.25)]
            share = sum(v["alpha"] for v in t["votes"] if v["token"] == t["text"])
            assert share == pytest.approx(t["agreement"], abs=1e-6)
    json.dumps(found)


CHOICES = ["1 2 3", "3 2 1", "7"]


def test_what_each_member_predicts_is_kept_where_it_is_asked_for(pair, models, tokenizer):
    rows = evaluate(SUMS, pair, DATA, LABELING, decoded=False, shown=0, members=True)
    assert "member_ids" not in evaluate(SUMS, pair, DATA, LABELING, decoded=False, shown=0)
    for i, model in enumerate(models):
        alone = evaluate(
            SUMS,
            Loaded(EnsembleForCausalLM([model], [1.0], names=["x"]), tokenizer),
            DATA,
            LABELING,
            decoded=False,
            shown=0,
            members=True,
        )
        assert "member_ids" not in alone, "a model alone is no ensemble"
        right = [
            np.equal(said[i], answer).sum() for said, answer in zip(rows["member_ids"], rows["answer_ids"], strict=True)
        ]
        assert right == alone["token_correct"]
    assert [len(answer) for answer in rows["answer_ids"]] == rows["n_tokens"]


def test_the_option_is_the_one_with_the_highest_likelihood_of_the_whole(pair, models, tokenizer):
    table = examples(("3 1 2", "7", CHOICES), ("9 8", "8 9"), ("2 2", "2", ["9", "2"]))
    found = evaluate(table, pair, DATA, LABELING, decoded=False, shown=0)["option"]
    for i, choices in ((0, CHOICES), (2, ["9", "2"])):
        totals = [naive(models, [0.75, 0.25], tokenizer, table["prompt"][i].as_py(), c)[0].sum() for c in choices]
        assert found[i] == choices[int(np.argmax(totals))]
    assert found[1] is None


def test_of_options_that_are_equally_likely_the_first_is_chosen(models, tokenizer, monkeypatch):
    from ensemw2s.ensemble import options as module

    real = module.score

    def level(*arguments, **options):
        return [type(s)(np.full(2, -1.0), *list(vars(s).values())[1:]) for s in real(*arguments, **options)]

    monkeypatch.setattr(module, "score", level)
    alone = Loaded(EnsembleForCausalLM(models[:1], [1.0]), tokenizer)
    table = examples(("3 1 2", "7", CHOICES), ("3 1", "7", CHOICES[::-1]))
    assert evaluate(table, alone, DATA, LABELING, decoded=False, shown=0)["option"] == ["1 2 3", "7"]


def test_hard_votes_keep_the_likelihood_finite(models, tokenizer):
    alone = Loaded(EnsembleForCausalLM(models[:1], [1.0], "vote"), tokenizer)
    found = evaluate(SUMS, alone, DATA, LABELING, decoded=False, shown=0)
    assert all(math.isfinite(nll) for nll in found["nll"])


def test_the_batch_size_changes_nothing(pair):
    one = evaluate(SUMS, pair, DATA, LABELING, decoded=True, shown=0)
    other = evaluate(SUMS, pair, DATA, LabelingConfig(max_new_tokens=5, batch_size=1), decoded=True, shown=0)
    for key in ("answer", "n_decoded", "token_correct", "forced", "option"):
        assert one[key] == other[key]
    np.testing.assert_allclose(one["nll"], other["nll"], atol=1e-3)


@pytest.fixture
def worker(models, tokenizer, tmp_path) -> Evaluator:
    for i, model in enumerate(models):
        loading.save_trained(model, tokenizer, tmp_path / f"m{i}")
    folders = [str(tmp_path / f"m{i}") for i in range(2)]
    groups = [
        VoterGroup(
            name="weak",
            voters=(
                Voter(name="expert_single", models=folders[:1], weights=[1.0]),
                Voter(name="ensemw2s", models=folders, weights=[0.75, 0.25]),
            ),
        ),
        VoterGroup(name="other", voters=(Voter(name="student", models=folders[1:], weights=[1.0]),)),
    ]
    pq.write_table(SUMS, tmp_path / "test.parquet")
    return Evaluator(groups, DATA, LABELING)


def split_chunks(path, size: int, split: str, group: str, shown: int = 0) -> list[SplitChunk]:
    return [SplitChunk(chunk, split, group, decoded=True, shown=shown) for chunk in chunks(path, size)]


def test_chunks_of_a_split_join_to_what_the_whole_gives(worker, pair, tmp_path):
    parts = {}
    for chunk in reversed(split_chunks(tmp_path / "test.parquet", 2, "ood", "weak", shown=2)):
        found = worker(chunk)
        assert (found.split, found.start) == ("ood", chunk.examples.start)
        assert {len(columns["answer"]) for columns in found.columns.values()} == {chunk.examples.rows}
        parts[found.start] = found.columns
    joined = _joined({start: columns["ensemw2s"] for start, columns in parts.items()})
    whole = evaluate(SUMS, pair, DATA, LABELING, decoded=True, shown=2)
    assert joined["answer"] == whole["answer"]
    assert joined["forced"] == whole["forced"]
    assert [tokens is None for tokens in joined["tokens"]] == [False, False, True]
    others = _joined({start: columns["expert_single"] for start, columns in parts.items()})
    assert others["tokens"] == [None] * 3, "tokens are kept of the ensemble alone"


def test_voters_that_share_the_memory_hold_no_caches_between_their_turns(worker, tmp_path):
    for group, held in (("weak", False), ("other", True)):
        [chunk] = split_chunks(tmp_path / "test.parquet", 5, "id", group)
        worker(chunk)
        engines = list(worker._engines.values())
        assert len(engines) == len(worker._loaded[1])
        assert [any(part.cache.bytes for part in engine.groups) for engine in engines] == [held] * len(engines)


@pytest.mark.slow
def test_a_worker_changes_to_another_group_and_back(worker, tmp_path):
    def answers(group: str) -> dict:
        [chunk] = split_chunks(tmp_path / "test.parquet", 5, "id", group)
        return {name: rows["answer"] for name, rows in worker(chunk).columns.items()}

    first, other = answers("weak"), answers("other")
    assert first.keys() == {"expert_single", "ensemw2s"}
    assert other.keys() == {"student"}
    assert answers("weak") == first
