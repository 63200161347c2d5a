import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.data.tokens import TOKENS_SCHEMA, TokenData
from ensemw2s.errors import DataError
from ensemw2s.training.batches import (
    BUCKET,
    Layout,
    TrainingSet,
    collate,
    epoch_batches,
    read_training_set,
    step_batches,
)

sizes = st.integers(1, 40)
lengths_of_examples = st.lists(st.integers(2, 30), min_size=1, max_size=90)


def training_set(*pairs: tuple[list[int], list[int]], multipliers: list[float] | None = None) -> TrainingSet:
    rows = [{"id": str(i), "prompt_ids": p, "answer_ids": a} for i, (p, a) in enumerate(pairs)]
    tokens = TokenData.from_table(pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA))
    return TrainingSet(tokens, np.ones(tokens.n_samples) if multipliers is None else np.array(multipliers))


def random_set(n: int, seed: int = 0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    pairs = [([1] * int(rng.integers(1, 9)), [5] * int(rng.integers(1, 6))) for _ in range(n)]
    total = sum(len(answer) for _, answer in pairs)
    return training_set(*pairs, multipliers=rng.exponential(size=total).tolist())


@settings(deadline=None)
@given(lengths_of_examples, sizes, st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_steps_that_are_full_but_for_one(lengths, batch_size, epoch):
    batches = epoch_batches(np.array(lengths), batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert len(batches) == -(-len(lengths) // batch_size)


def test_order_follows_from_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(2, 30, 300)
    orders = {
        (seed, epoch): np.concatenate(epoch_batches(lengths, 8, seed=seed, epoch=epoch)).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    np.random.seed(99)  # the global generator has no say
    again = np.concatenate(epoch_batches(lengths, 8, seed=1, epoch=1)).tolist()
    assert again == orders[1, 1]
    assert len({tuple(order) for order in orders.values()}) == 4


def test_batches_hold_examples_of_like_length_and_come_in_random_order():
    lengths = np.random.default_rng(0).integers(2, 200, 8 * BUCKET)
    batches = epoch_batches(lengths, 8, seed=0, epoch=0)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 10  # of 8 random ones it would be about 150
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)


@settings(deadline=None)
@given(st.integers(1, 50), st.one_of(st.none(), sizes), st.integers(1, 9), st.integers(0, 50))
def test_workers_share_a_step_without_overlap_and_all_make_as_many_passes(batch_size, micro, world, missing):
    batch = np.arange(100, 100 + max(1, batch_size - missing))
    layouts = [Layout.of(batch_size=batch_size, micro_batch_size=micro, world=world, rank=r) for r in range(world)]
    slots = [layout.slots(batch) for layout in layouts]
    assert len({part.shape for part in slots}) == 1
    given_out = np.concatenate([part.ravel() for part in slots])
    assert sorted(given_out[given_out >= 0].tolist()) == batch.tolist()
    assert micro is None or slots[0].shape[1] <= micro


def test_without_a_micro_batch_size_a_worker_takes_its_share_in_one_pass():
    layout = Layout.of(batch_size=7, micro_batch_size=None, world=2, rank=1)
    assert (layout.micro, layout.accumulation) == (4, 1)
    assert layout.slots(np.arange(7)).tolist() == [[1, 3, 5, -1]]


def test_a_worker_more_than_there_are_examples_gets_empty_rows():
    layout = Layout.of(batch_size=2, micro_batch_size=None, world=3, rank=2)
    assert layout.slots(np.arange(2)).tolist() == [[-1]]


@pytest.mark.parametrize(("world", "micro"), [(1, None), (2, None), (3, 2), (5, 1)])
def test_the_weights_of_every_step_sum_to_one_over_all_workers_and_passes(world, micro):
    data = random_set(21)
    layouts = [Layout.of(batch_size=8, micro_batch_size=micro, world=world, rank=r) for r in range(world)]
    workers = [list(step_batches(data, layout, pad_id=0, seed=0, epoch=2)) for layout in layouts]
    steps = list(zip(*workers, strict=True))
    assert len(steps) == 3
    for parts in steps:
        total = sum(float(batch["weights"].sum()) for passes in parts for batch in passes)
        assert total == pytest.approx(1.0, abs=1e-6)


def test_twice_the_weight_for_every_token_changes_nothing():
    data = random_set(9)
    doubled = TrainingSet(data.tokens, 2 * data.multipliers)
    layout = Layout.of(batch_size=4, micro_batch_size=None, world=1, rank=0)
    for one, two in zip(
        step_batches(data, layout, pad_id=0, seed=0, epoch=0),
        step_batches(doubled, layout, pad_id=0, seed=0, epoch=0),
        strict=True,
    ):
        assert (one[0]["weights"] == two[0]["weights"]).all()


def test_a_step_whose_tokens_all_have_no_weight_has_no_loss_and_no_division_by_zero():
    data = training_set(([1], [5, 2]), multipliers=[0, 0])
    layout = Layout.of(batch_size=1, micro_batch_size=None, world=1, rank=0)
    [[batch]] = step_batches(data, layout, pad_id=0, seed=0, epoch=0)
    assert not batch["weights"].any()


def test_labels_and_weights_stand_where_the_answer_is_predicted():
    data = training_set(([1, 7], [8, 9, 2]), ([1, 7, 7, 7], [2]), multipliers=[1, 2, 3, 4])
    batch = collate(data, np.array([0, 1]), pad_id=0, total=10.0)
    assert batch["input_ids"].tolist() == [[1, 7, 8, 9, 2], [1, 7, 7, 7, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 5]
    assert batch["labels"].tolist() == [[-100, 8, 9, 2, -100], [-100, -100, -100, 2, -100]]
    np.testing.assert_allclose(batch["weights"], [[0, 0.1, 0.2, 0.3, 0], [0, 0, 0, 0.4, 0]])


def test_padding_is_masked_and_a_missing_row_is_a_lone_padding_token_without_label():
    data = training_set(([1], [2]), ([1, 7, 7], [8, 2]))
    batch = collate(data, np.array([0, 1, -1]), pad_id=63, total=1.0)
    assert batch["input_ids"].tolist() == [[1, 2, 63, 63, 63], [1, 7, 7, 8, 2], [63] * 5]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert (batch["labels"][2] == -100).all()
    assert not batch["weights"][2].any()


def test_several_tables_are_one_data_set_in_their_order(token_table):
    one, two = token_table("one", ([1], [5, 2])), token_table("two", ([1, 4], [2]), ([1], [6, 6, 2]))
    data = read_training_set([one, two], soft=False)
    assert data.tokens.ids == ["one-0", "two-0", "two-1"]
    assert data.lengths == [2, 1, 3]
    assert data.multipliers.tolist() == [1.0] * 6


def test_examples_of_a_table_with_weights_count_as_it_says_and_all_others_count_one(token_table):
    plain = token_table("easy", ([1], [5, 2]), ([1], [6, 2]))
    weighted = token_table("hard", ([1, 4], [2]), ([1], [6, 6, 2]), weight=pa.array([0.25, 0.5], pa.float32()))
    data = read_training_set([plain, weighted], soft=False)
    assert data.weights is not None
    assert data.weights.tolist() == [1.0, 1.0, 0.25, 0.5]
    assert read_training_set([plain], soft=False).weights is None


def test_a_step_of_examples_that_count_little_has_a_small_loss():
    """Multipliers are relative to the step, weights are not: examples of like length share a step."""
    data = training_set(([1], [5, 2]), ([1], [6, 2]))
    light = dataclasses.replace(data, weights=np.array([0.25, 0.25]))
    layout = Layout.of(batch_size=2, micro_batch_size=1, world=1, rank=0)
    sums = [
        sum(float(micro["weights"].sum()) for micro in micros)
        for one in (data, light)
        for micros in step_batches(one, layout, pad_id=0, seed=0, epoch=0)
    ]
    assert sums == pytest.approx([1.0, 0.25])


def test_tables_without_examples_are_nothing_to_train_on(tmp_path):
    pq.write_table(TOKENS_SCHEMA.empty_table(), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"nothing to train on: .*none.parquet hold no examples"):
        read_training_set([str(tmp_path / "none.parquet")], soft=False)


def soft_columns(tokens: list, logprobs: list) -> dict[str, pa.Array]:
    return {
        "top_tokens": pa.array(tokens, pa.list_(pa.list_(pa.int32()))),
        "top_logprobs": pa.array(logprobs, pa.list_(pa.list_(pa.float32()))),
    }


def test_target_distributions_are_normalised_over_the_tokens_that_were_kept(token_table):
    columns = soft_columns([[[5, 9], [2, 5]]], [[np.log([0.6, 0.2]), np.log([0.5, 0.0625])]])
    data = read_training_set([token_table("soft", ([1], [5, 2]), **columns)], soft=True)
    assert data.soft_ids.tolist() == [[5, 9], [2, 5]]
    np.testing.assert_allclose(data.soft_probabilities, [[0.75, 0.25], [8 / 9, 1 / 9]], rtol=1e-5)


@pytest.mark.parametrize("apart", [True, False], ids=["another table", "null in the same table"])
def test_examples_without_a_distribution_put_all_probability_on_their_own_token(token_table, apart):
    """Easy labelled examples beside soft pseudo-labels, as `student.mix_easy` has them."""
    soft, easy = ([1], [5, 2]), ([1], [7, 2])
    tokens, logprobs = [[[5, 9], [2, 5]]], [[[-0.1, -3.0], [-0.2, -2.0]]]
    if apart:
        paths = [token_table("labels", soft, **soft_columns(tokens, logprobs)), token_table("easy", easy)]
    else:
        columns = soft_columns([*tokens, None], [*logprobs, None])
        paths = [token_table("mixed", soft, easy, **columns)]
    data = read_training_set(paths, soft=True)
    assert data.soft_ids[2:, 0].tolist() == [7, 2]
    np.testing.assert_allclose(data.soft_probabilities[2:], [[1, 0], [1, 0]])
    np.testing.assert_allclose(data.soft_probabilities.sum(axis=1), 1, rtol=1e-6)


def test_target_distributions_stand_where_their_token_is_predicted(token_table):
    columns = soft_columns([[[5, 9], [2, 5]]], [[[0.0, -50.0], [0.0, -50.0]]])
    data = read_training_set([token_table("placed", ([1, 4, 4], [5, 2]), **columns)], soft=True)
    batch = collate(data, np.array([0, -1]), pad_id=0, total=2.0)
    assert batch["soft_ids"][0].tolist() == [[0, 0], [0, 0], [5, 9], [2, 5], [0, 0]]
    assert batch["soft_probabilities"][0, 2:4, 0].tolist() == [1.0, 1.0]
    assert not batch["soft_probabilities"][1].any()
