import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ensemw2s.config import LabelingConfig
from ensemw2s.data.tokens import tokenize_examples
from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.requests import Generation
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import ResourceError
from ensemw2s.labeling.chunks import LabelChunk, LabelJob
from ensemw2s.labeling.labeler import Labeler, Maker, _row, most_frequent
from ensemw2s.labeling.parts import LABEL_SCHEMA, REJECTED, SAMPLE_FIELDS, SOFT_FIELDS, part_name, parts, read_labels
from ensemw2s.models import loading


def prompts(*texts: str) -> pa.Table:
    return pa.table({"id": [f"p{i}" for i in range(len(texts))], "prompt": list(texts)})


THREE = prompts("3 1 2", "9 8", "up 5 4 1 7")


def config(**fields) -> LabelingConfig:
    return LabelingConfig(**{"max_new_tokens": 5, "batch_size": 2, **fields})


def label(table: pa.Table, loaded, data, config) -> pa.Table:
    """The labels alone, where none is rejected."""
    labels, rejected = Maker.of(loaded, config).label(table, data, config)
    assert len(rejected) == 0
    return labels


@torch.no_grad()
def greedy(models, weights, prompt: list[int], steps: int) -> tuple[list[int], list[float], list[float]]:
    """Tokens, their log-probabilities and the agreement, each prefix read anew and alone."""
    tokens, logprobs, agreement = list(prompt), [], []
    for _ in range(steps):
        probs = [torch.softmax(m(torch.tensor([tokens]), use_cache=False).logits[0, -1].double(), -1) for m in models]
        combined = sum(w * p for w, p in zip(weights, probs, strict=True))
        token = int(combined.argmax())
        tokens.append(token)
        logprobs.append(float(combined[token].log()))
        agreement.append(sum(w for w, p in zip(weights, probs, strict=True) if int(p.argmax()) == token))
        if token == 2:
            break
    return tokens[len(prompt) :], logprobs, agreement


def test_labels_are_what_the_members_choose_together_with_all_that_the_contract_names(loaded, experts, data):
    both = loaded(0.75, 0.25)
    table = label(THREE, both, data, config())
    assert table.schema == LABEL_SCHEMA
    assert table["id"].to_pylist() == ["p0", "p1", "p2"]
    assert table["prompt"].to_pylist() == THREE["prompt"].to_pylist()
    for row in table.to_pylist():
        ids = both.tokenizer.encode(f"<bos>sort {row['prompt']} =", add_special_tokens=False)
        tokens, logprobs, agreement = greedy(experts, [0.75, 0.25], ids, 5)
        assert row["token_ids"] == tokens
        assert row["n_tokens"] == len(tokens)
        assert row["logprob"] == pytest.approx(sum(logprobs), abs=1e-4)
        assert row["agreement"] == pytest.approx(np.mean(agreement), abs=1e-6)
        np.testing.assert_allclose(row["token_agreement"], agreement, atol=1e-6)
        divided = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
        expected = [0.0 if share > 0.99 else divided for share in agreement]  # two voters: agreed, or 3 to 1
        np.testing.assert_allclose(row["token_entropy"], expected, atol=1e-6)
        assert row["vote_entropy"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert row["finish_reason"] == ("stop" if tokens[-1] == 2 else "length")
        assert row["answer"] == both.tokenizer.decode([t for t in tokens if t > 3]).strip()


def test_a_lone_maker_always_agrees_with_itself(loaded, data):
    assert label(THREE, loaded(1.0), data, config())["agreement"].to_pylist() == [1.0, 1.0, 1.0]


def ended(tokens: list[int], logprob: float, reason: str = "stop") -> Generation:
    """A generation of two members that agree, all its probability in its first token."""
    numbers = np.zeros(len(tokens), np.float32)
    numbers[0] = logprob
    votes = np.array([[token, token] for token in tokens])
    return Generation(tokens, numbers, np.ones(len(tokens), np.float32), votes, numbers * 0, reason)


def test_an_answer_that_ended_at_once_is_empty(loaded):
    row = _row({"id": "p0", "prompt": "3 1 2"}, [ended([2], -0.5)], loaded(1.0))
    assert (row["id"], row["answer"], row["n_tokens"], row["finish_reason"]) == ("p0", "", 1, "stop")
    assert (row["logprob"], row["agreement"], row["consistency"]) == (-0.5, 1.0, 1.0)


def test_the_most_frequent_answer_wins_and_its_likeliest_sample_is_the_label(loaded):
    one = loaded(1.0)
    a, b = (one.tokenizer.encode(text, add_special_tokens=False) for text in ("1 2", "9"))
    samples = [ended([*b, 2], -0.1), ended([*a, 2], -3.0), ended([*a, 2], -2.0), ended([*a, 9], -0.2, "length")]
    found, share = most_frequent(samples, one)
    assert (found, share) == (samples[2], 0.5)
    assert most_frequent(samples[:2], one) == (samples[0], 0.5)
    assert most_frequent(samples[3:], one) == (samples[3], 1.0)


def test_samples_are_the_same_whatever_the_batch_and_other_seeds_give_others(loaded, data):
    both = loaded(0.5, 0.5)
    several = {"samples": 6, "temperature": 1.5, "top_p": 0.95}
    first = label(THREE, both, data, config(**several))
    assert first.schema == pa.schema([*LABEL_SCHEMA, *SAMPLE_FIELDS])
    again = label(THREE.take([2, 1, 0]), both, data, config(**several, batch_size=64)).take([2, 1, 0])
    assert again["token_ids"].to_pylist() == first["token_ids"].to_pylist()
    assert again["consistency"].to_pylist() == first["consistency"].to_pylist()
    assert all(share in [k / 6 for k in range(1, 7)] for share in first["consistency"].to_pylist())
    others = [label(THREE, both, data, config(**several, seed=seed))["token_ids"].to_pylist() for seed in (50, 70)]
    assert any(other != first["token_ids"].to_pylist() for other in others)


def test_batch_and_order_do_not_change_a_label(loaded, data):
    both = loaded(0.5, 0.5)
    whole = label(THREE, both, data, config(batch_size=64)).to_pylist()
    turned = label(THREE.take([2, 0, 1]), both, data, config(batch_size=1)).to_pylist()
    for one, other in zip([whole[2], whole[0], whole[1]], turned, strict=True):
        assert one["token_ids"] == other["token_ids"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)


def test_distributions_are_kept_where_asked_for(loaded, data):
    both = loaded(0.5, 0.5)
    table = label(THREE, both, data, config(soft_top_k=3))
    assert table.schema == pa.schema([*LABEL_SCHEMA, *SOFT_FIELDS])
    for row in table.to_pylist():
        assert [len(top) for top in row["top_tokens"]] == [3] * row["n_tokens"]
        assert [top[0] for top in row["top_tokens"]] == row["token_ids"]
        assert all(logprobs == sorted(logprobs, reverse=True) for logprobs in row["top_logprobs"])
        assert sum(logprobs[0] for logprobs in row["top_logprobs"]) == pytest.approx(row["logprob"], rel=1e-3)
        assert all(0 < np.exp(np.float32(logprobs)).sum() <= 1 + 1e-3 for logprobs in row["top_logprobs"])


def test_no_prompts_give_no_labels(loaded, data):
    assert label(THREE.slice(0, 0), loaded(1.0), data, config()).schema == LABEL_SCHEMA


def test_prompts_that_cannot_be_labelled_are_put_aside_with_the_reason_and_touch_no_other(loaded, data):
    both, short = loaded(0.5, 0.5), data.model_copy(update={"max_prompt_tokens": 520})
    table = prompts("3 1 2", "1 " * 600, "9 8", "1 " * 510, "up 5 4 1 7")
    labels, rejected = Maker.of(both, config(batch_size=8)).label(table, short, config(batch_size=8))
    assert labels["id"].to_pylist() == ["p0", "p2", "p4"]
    assert labels.drop_columns("id").equals(label(THREE, both, data, config(batch_size=8)).drop_columns("id"))
    assert rejected["id"].to_pylist() == ["p1", "p3"]
    first, second = rejected["reason"].to_pylist()
    assert first.startswith("the prompt has 604 tokens, data.max_prompt_tokens allows 520")
    assert "more than the model's context of 512" in second


def test_prompts_for_which_there_is_no_memory_are_nobodys_fault(loaded, data, monkeypatch):
    maker = Maker.of(loaded(1.0), config())

    def none_left(*_):
        raise MemoryError("none left")

    monkeypatch.setattr(maker.engine.engine.groups[0], "reserve", none_left, raising=False)
    with pytest.raises(ResourceError, match="no memory for"):
        maker.label(THREE, data, config())


def test_labels_can_be_tokenized_again_for_a_student(loaded, data):
    labels = label(THREE, loaded(0.5, 0.5), data, config())
    tokens = tokenize_examples(labels, loaded(1.0).tokenizer, data)
    assert [ids[-1] for ids in tokens["answer_ids"].to_pylist()] == [2, 2, 2]


@pytest.fixture
def job(tmp_path, experts, tokenizer) -> LabelJob:
    """Seven prompts for a saved ensemble."""
    members = []
    for i, model in enumerate(experts):
        loading.save_trained(model, tokenizer, tmp_path / f"m{i}")
        members.append(
            MemberSource(
                name=f"m{i}", directory=tmp_path / f"m{i}", alpha=1.0, weight=1.0, round=i + 1, weighted_error=0.1
            )
        )
    save_ensemble(tmp_path / "ensemble", members=members, rule="probability", tokenizer=tokenizer)
    pq.write_table(prompts(*[f"{i} {i + 1}" for i in range(7)]), tmp_path / "prompts.parquet")
    (tmp_path / "labels").mkdir()
    voter = Voter(name="ensemw2s", ensemble=str(tmp_path / "ensemble"))
    return LabelJob(voter, tmp_path / "prompts.parquet", tmp_path / "labels")


def labeler(job: LabelJob, data) -> Labeler:
    return Labeler([job], data, config())


def part_of(chunk: LabelChunk) -> Path:
    return chunk.output / part_name(chunk.prompts.start)


def pending(job: LabelJob, size: int) -> list[LabelChunk]:
    return [chunk for chunk in job.chunks(size) if not part_of(chunk).exists()]


def test_a_worker_leaves_a_part_for_each_chunk_and_together_they_are_the_labels(job, data, loaded):
    work = labeler(job, data)
    facts = [work(chunk) for chunk in reversed(pending(job, 3))]
    assert [f.rows for f in facts] == [1, 3, 3]
    assert sorted(p.name for p in job.output.iterdir()) == [part_name(start) for start in (0, 3, 6)]
    found = read_labels(job.output)
    whole = label(pq.read_table(job.prompts), loaded(0.5, 0.5), data, config())
    assert found["token_ids"].to_pylist() == whole["token_ids"].to_pylist()
    assert sum(f.tokens for f in facts) == sum(whole["n_tokens"].to_pylist())


def test_a_part_that_is_there_is_not_made_again(job, data):
    work = labeler(job, data)
    first, second, third = pending(job, 3)
    work(second)
    assert [chunk.prompts.start for chunk in pending(job, 3)] == [0, 6]
    before = (part_of(second)).read_bytes()
    work(first)
    work(third)
    assert pending(job, 3) == []
    assert (part_of(second)).read_bytes() == before
    assert first.output == job.output.resolve()


def test_a_chunk_whose_part_is_there_is_not_decoded_again(job, data):
    work = labeler(job, data)
    [chunk, *_] = pending(job, 2)
    first = work(chunk)
    part = part_of(chunk)
    written = part.stat().st_mtime_ns
    again = labeler(job, data)(chunk)  # as another actor would, after the first one's death
    assert part.stat().st_mtime_ns == written
    assert [getattr(again, field) for field in ("rows", "rejected", "reason", "tokens")] == [
        getattr(first, field) for field in ("rows", "rejected", "reason", "tokens")
    ]
    assert again.kinds == ()


@pytest.mark.slow
def test_the_same_chunk_gives_the_same_bytes(job, data):
    [chunk] = job.chunks(10)
    labeler(job, data)(chunk)
    part = part_of(chunk)
    before = part.read_bytes()
    part.unlink()
    labeler(job, data)(chunk)
    assert part.read_bytes() == before


@pytest.mark.slow
def test_threads_label_chunks_of_several_jobs_each_with_its_own_maker(job, data, experts, tokenizer, tmp_path):
    """Chunks come as Ray Data gives them to an actor that works on three at a time."""
    single = LabelJob(Voter(name="one", models=[str(tmp_path / "m0")], weights=[1.0]), job.prompts, tmp_path / "single")
    work = Labeler([job, single], data, config())
    waiting = [chunk for pair in zip(pending(job, 2), pending(single, 2), strict=True) for chunk in pair]
    errors: list[BaseException] = []

    def run(mine: list[LabelChunk]) -> None:
        try:
            for chunk in mine:
                work(chunk)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(waiting[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert errors == []
    for one in (job, single):
        alone = LabelJob(one.voter, one.prompts, tmp_path / "alone" / one.voter.name)
        [whole] = alone.chunks(10)
        labeler(alone, data)(whole)
        assert read_labels(one.output)["token_ids"].equals(read_labels(alone.output)["token_ids"])


def test_the_part_of_a_chunk_whose_prompts_are_all_rejected_is_empty_and_says_that_it_is_done(job, data):
    [chunk] = job.chunks(10)
    facts = labeler(job, data.model_copy(update={"max_prompt_tokens": 2}))(chunk)
    assert (facts.rows, facts.rejected, facts.tokens) == (7, 7, 0)
    assert [len(pq.read_table(part)) for part in parts(job.output)] == [0]
    assert len(pq.read_table(job.output / REJECTED / part_name(0))) == 7
    assert pending(job, 10) == []


def test_labels_are_read_by_pandas_and_datasets_while_others_are_written(job, data, tmp_path):
    import datasets
    import pandas as pd

    work = Labeler([job], data, config(soft_top_k=2))
    first, second, _ = pending(job, 3)
    work(first)
    work(second)
    (job.output / ".part-0000000006.parquet.0123abcd.tmp").write_bytes(b"half a part")
    expected = read_labels(job.output)
    frame = pd.concat(map(pd.read_parquet, parts(job.output)), ignore_index=True)
    assert frame["answer"].tolist() == expected["answer"].to_pylist()
    assert frame["top_logprobs"][0][0].dtype == "float16"
    files = str(job.output / "part-*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["token_ids"][:] == expected["token_ids"].to_pylist()
