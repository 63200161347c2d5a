import os
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
from ensemw2s.errors import DataError, ResourceError
from ensemw2s.labeling.labels import (
    LABEL_SCHEMA,
    SOFT_FIELDS,
    Labeler,
    LabelJob,
    _pending,
    _row,
    label,
    part_name,
    read_labels,
    write_part,
)
from ensemw2s.labeling.stream import chunks
from ensemw2s.models import loading


def prompts(*texts: str) -> pa.Table:
    return pa.table({"id": [f"p{i}" for i in range(len(texts))], "prompt": list(texts)})


THREE = prompts("3 1 2", "9 8", "up 5 4 1 7")


def config(**fields) -> LabelingConfig:
    return LabelingConfig(**{"max_new_tokens": 5, "batch_size": 2, **fields})


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
        assert row["finish_reason"] == ("stop" if tokens[-1] == 2 else "length")
        assert row["answer"] == both.tokenizer.decode([t for t in tokens if t > 3]).strip()


def test_a_lone_maker_always_agrees_with_itself(loaded, data):
    assert label(THREE, loaded(1.0), data, config())["agreement"].to_pylist() == [1.0, 1.0, 1.0]


def test_an_answer_that_ended_at_once_is_empty(loaded):
    ended = Generation([2], np.array([-0.5], np.float32), np.array([0.75], np.float32), np.array([[2]]), "stop")
    row = _row("p0", "3 1 2", ended, loaded(1.0))
    assert (row["answer"], row["n_tokens"], row["finish_reason"]) == ("", 1, "stop")
    assert (row["logprob"], row["agreement"]) == (-0.5, 0.75)


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
        assert sum(logprobs[0] for logprobs in row["top_logprobs"]) == pytest.approx(row["logprob"], abs=1e-4)
        assert all(0 < np.exp(logprobs).sum() <= 1 + 1e-6 for logprobs in row["top_logprobs"])


def test_no_prompts_give_no_labels(loaded, data):
    assert label(THREE.slice(0, 0), loaded(1.0), data, config()).schema == LABEL_SCHEMA


def test_a_prompt_that_is_too_long_is_an_error(loaded, data):
    with pytest.raises(DataError, match="prompt of example p0 has"):
        label(prompts("1 " * 40), loaded(1.0), data.model_copy(update={"max_prompt_tokens": 10}), config())


def test_labels_can_be_tokenized_again_for_a_student(loaded, data):
    labels = label(THREE, loaded(0.5, 0.5), data, config())
    tokens = tokenize_examples(labels, loaded(1.0).tokenizer, data)
    assert [ids[-1] for ids in tokens["answer_ids"].to_pylist()] == [2, 2, 2]


def test_names_of_parts_sort_in_the_order_of_the_prompts():
    starts = [0, 25, 500, 1000, 20_000, 3_000_000_000]
    names = [part_name({"start": start}) for start in starts]
    assert names[1] == "part-0000000025.parquet"
    assert sorted(names) == names


def test_parts_are_read_in_order_and_half_written_ones_are_not_parts(tmp_path):
    for start in (50, 0, 1000):
        write_part(pa.table({"start": [start, start + 1]}), tmp_path / part_name({"start": start}))
    (tmp_path / ".part-0000000010.parquet.0123.tmp").write_bytes(b"half")
    assert read_labels(tmp_path)["start"].to_pylist() == [0, 1, 50, 51, 1000, 1001]


def test_a_part_that_cannot_be_written_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match=r"part-0.parquet cannot be written \(No space left on device\); what is"):
        write_part(pa.table({"a": [1]}), tmp_path / "part-0.parquet")
    assert list(tmp_path.iterdir()) == []


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
    described = {"output": str(job.output), "voter": job.voter.model_dump()}
    return Labeler([described], data.model_dump(mode="json"), config().model_dump(mode="json"))


def test_a_worker_leaves_a_part_for_each_chunk_and_together_they_are_the_labels(job, data, loaded):
    work = labeler(job, data)
    facts = [work(chunk) for chunk in reversed(list(_pending([job], 3)))]
    assert [f["rows"] for f in facts] == [1, 3, 3]
    assert sorted(p.name for p in job.output.iterdir()) == [part_name({"start": start}) for start in (0, 3, 6)]
    found = read_labels(job.output)
    whole = label(pq.read_table(job.prompts), loaded(0.5, 0.5), data, config())
    assert found["token_ids"].to_pylist() == whole["token_ids"].to_pylist()
    assert sum(f["tokens"] for f in facts) == sum(whole["n_tokens"].to_pylist())


def test_a_part_that_is_there_is_not_made_again(job, data):
    work = labeler(job, data)
    first, second, third = _pending([job], 3)
    work(second)
    assert [chunk["start"] for chunk in _pending([job], 3)] == [0, 6]
    before = (job.output / part_name(second)).read_bytes()
    work(first)
    work(third)
    assert list(_pending([job], 3)) == []
    assert (job.output / part_name(second)).read_bytes() == before
    assert Path(first["output"]) == job.output.resolve()


@pytest.mark.slow
def test_the_same_chunk_gives_the_same_bytes(job, data):
    [chunk] = chunks(job.prompts, 10, output=str(job.output))
    labeler(job, data)(chunk)
    before = (job.output / part_name(chunk)).read_bytes()
    labeler(job, data)(chunk)
    assert (job.output / part_name(chunk)).read_bytes() == before
