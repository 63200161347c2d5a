"""The label of a multiple-choice question is the option that the members find likeliest together."""

import math

import numpy as np
import pyarrow as pa
import pytest

from ensemw2s.config import Columns, DataConfig, FilesSource, LabelingConfig
from ensemw2s.ensemble.options import ScoredOptions, score_options
from ensemw2s.labeling.choice import unanimous
from ensemw2s.labeling.labeler import Maker
from ensemw2s.labeling.option_labels import _next_tokens, _row
from ensemw2s.labeling.parts import LABEL_SCHEMA, OPTION_FIELDS, SOFT_FIELDS

OPTIONS = [["1 2 3", "7", "3 1"], ["2", "9 9"], ["4", "5", "6"]]


@pytest.fixture(scope="module")
def data() -> DataConfig:
    columns = Columns(choices="choices", multiple_choice={"style": "likelihood"})
    source = FilesSource(paths=["-"], columns=columns)
    return DataConfig(source=source, split={"mode": "random"}, prompt_template="sort {prompt} =")


def config(**fields) -> LabelingConfig:
    return LabelingConfig(**{"max_new_tokens": 5, "batch_size": 4, **fields})


def questions(options: list[list[str] | None]) -> pa.Table:
    n = len(options)
    return pa.table(
        {"id": [f"q{i}" for i in range(n)], "prompt": [f"{i} 2 1" for i in range(n)], "choices": options},
        schema=pa.schema([("id", pa.string()), ("prompt", pa.string()), ("choices", pa.list_(pa.string()))]),
    )


def test_a_label_is_the_likeliest_option_with_its_margin_and_the_members_agreement(loaded, data):
    both, table = loaded(0.75, 0.25), questions(OPTIONS)
    labels, rejected = Maker.of(both, config()).label(table, data, config())
    assert len(rejected) == 0
    assert labels.schema == pa.schema([*LABEL_SCHEMA, *OPTION_FIELDS])
    scored = score_options(table["prompt"].to_pylist(), OPTIONS, both, data, batch_size=1)
    for row, found, options in zip(labels.to_pylist(), scored, OPTIONS, strict=True):
        totals = found.values("answer")
        best = int(totals.argmax())
        assert (row["answer"], row["finish_reason"]) == (options[best], "stop")
        assert row["token_ids"] == found.token_ids[best]
        assert row["logprob"] == pytest.approx(totals[best], abs=1e-4)
        votes = [int(each.argmax()) == best for each in found.members]
        assert row["agreement"] == pytest.approx(0.75 * votes[0] + 0.25 * votes[1])
        assert row["token_agreement"] == pytest.approx([row["agreement"]] * row["n_tokens"])
        first, second, *_ = sorted(np.exp(totals) / np.exp(totals).sum(), reverse=True)
        assert row["margin"] == pytest.approx(first - second, abs=1e-4)


def scored(members: list[list[float]], token_ids: list[list[int]]) -> ScoredOptions:
    """Options a, b, ... of which each token has the same share of the first member's log-likelihood."""
    each = [np.full(len(ids), total / len(ids), np.float32) for ids, total in zip(token_ids, members[0], strict=True)]
    return ScoredOptions(list("abcd")[: len(token_ids)], token_ids, each, np.array(members))


QUESTION = {"id": "q", "prompt": "p", "choices": ["a", "b"]}


def test_students_and_consensus_see_the_agreement_on_options():
    torn = scored([[-1.0, -2.0], [-3.0, -2.0], [-1.0, -2.0]], [[4, 2], [5, 2]])
    same = scored([[-1.0, -2.0], [-2.0, -3.0], [-1.0, -2.0]], [[4, 2], [5, 2]])
    rows = [_row(QUESTION, one, np.array([2.0, 1.0, 1.0]), config()) for one in (torn, same)]
    assert [row["agreement"] for row in rows] == [0.75, 1.0]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert [row["vote_entropy"] for row in rows] == pytest.approx([entropy, 0.0])
    assert unanimous(pa.Table.from_pylist(rows)).tolist() == [False, True]


def test_the_distribution_over_options_becomes_one_over_the_tokens_of_the_chosen_one():
    ids = [[7, 8, 2], [7, 9, 2], [5, 2]]
    tokens, logprobs = _next_tokens(ids, np.array([0.5, 0.3, 0.2]), best=0)
    assert tokens == [[7, 5], [8, 9], [2]]
    expected = [[0.8, 0.2], [0.5 / 0.8, 0.3 / 0.8], [1.0]]
    for found, wanted in zip(logprobs, expected, strict=True):
        np.testing.assert_allclose(np.exp(found.astype(float)), wanted, atol=1e-3)


def test_distributions_are_kept_where_asked_for(loaded, data):
    labels, _ = Maker.of(loaded(1.0), config()).label(questions(OPTIONS), data, config(soft_top_k=2))
    assert labels.schema == pa.schema([*LABEL_SCHEMA, *OPTION_FIELDS, *SOFT_FIELDS])
    for row in labels.to_pylist():
        assert [len(place) > 0 for place in row["top_tokens"]] == [True] * row["n_tokens"]


def test_prompts_without_options_are_decoded_in_the_same_order(loaded, data):
    table = questions([OPTIONS[0], None, OPTIONS[2]])
    labels, _ = Maker.of(loaded(1.0), config()).label(table, data, config())
    assert labels["id"].to_pylist() == ["q0", "q1", "q2"]
    assert [margin is None for margin in labels["margin"].to_pylist()] == [False, True, False]


def test_a_question_that_cannot_be_labelled_is_put_aside_and_touches_no_other(loaded, data):
    long = ["1 " * 40, "2"]
    table = questions([OPTIONS[0], long, OPTIONS[2]])
    short = data.model_copy(update={"max_answer_tokens": 20})
    labels, rejected = Maker.of(loaded(1.0), config()).label(table, short, config())
    assert labels["id"].to_pylist() == ["q0", "q2"]
    assert rejected["id"].to_pylist() == ["q1"]
    assert "data.max_answer_tokens" in rejected["reason"][0].as_py()
