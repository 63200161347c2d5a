import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemw2s.boosting import samme
from ensemw2s.boosting.masks import RoundWeights, read_mask, write_masks
from ensemw2s.errors import ArtifactError


def write(path, lengths, **masks):
    arrays = {name: np.array(bits, bool) for name, bits in masks.items()}
    write_masks(path, [f"e{i}" for i in range(len(lengths))], lengths, arrays)
    return str(path)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2**20 - 1)), min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_masks_come_back_bit_by_bit(tmp_path, examples):
    lengths = [n for n, _ in examples]
    bits = [bool(value >> i & 1) for n, value in examples for i in range(n)]
    flipped = [not bit for bit in bits]
    path = write(tmp_path / "errors.parquet", lengths, round=bits, expert_0=flipped)
    assert read_mask(path).tolist() == bits
    assert read_mask(path, "expert_0").tolist() == flipped
    assert read_mask(path).dtype == bool


def test_a_token_takes_one_bit(tmp_path):
    table = pq.read_table(write(tmp_path / "errors.parquet", [3, 9], round=[1, 0, 1] + [1] * 9))
    assert table["round"].to_pylist() == [bytes([0b10100000]), bytes([255, 0b10000000])]
    assert table["n_tokens"].to_pylist() == [3, 9]
    assert table["id"].to_pylist() == ["e0", "e1"]


def test_damaged_masks_say_what_to_do(tmp_path):
    path = tmp_path / "errors.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(
        ArtifactError, match=r"error masks .*errors.parquet cannot be read .*: delete the round's folder"
    ):
        read_mask(path)
    with pytest.raises(ArtifactError, match=r"absent.parquet cannot be read"):
        read_mask(tmp_path / "absent.parquet")


def test_a_missing_column_is_damage_too(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "n_tokens": pa.array([1], pa.int32())}), tmp_path / "errors.parquet")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_mask(tmp_path / "errors.parquet")


def test_the_first_round_weighs_all_tokens_alike():
    weights = RoundWeights()
    assert weights.weights([2, 1, 1]).tolist() == [0.25] * 4
    assert weights.multipliers([2, 1, 1]).tolist() == [1.0] * 4


def test_weights_follow_from_masks_alphas_and_shrinkage(tmp_path):
    one = write(tmp_path / "1.parquet", [2, 2], round=[1, 1, 0, 0])
    two = write(tmp_path / "2.parquet", [2, 2], round=[1, 0, 1, 0])
    weights = RoundWeights(masks=[(one, math.log(4)), (two, math.log(9))], shrinkage=0.5)
    np.testing.assert_allclose(weights.weights([2, 2]), np.array([6, 2, 3, 1]) / 12)
    np.testing.assert_allclose(weights.multipliers([2, 2]), np.array([6, 2, 3, 1]) / 3)


def test_a_wrong_token_makes_its_whole_window_or_answer_heavier(tmp_path):
    path = write(tmp_path / "1.parquet", [3, 2], round=[0, 1, 0, 0, 0])
    common = {"masks": [(path, math.log(3))], "shrinkage": 1.0}
    by_window = RoundWeights(unit="window", window=2, **common)
    np.testing.assert_allclose(by_window.weights([3, 2]), np.array([3, 1, 1]) / 5)
    np.testing.assert_allclose(by_window.multipliers([3, 2]), np.array([3, 3, 1, 1, 1]) * 3 / 5)
    by_answer = RoundWeights(unit="example", **common)
    np.testing.assert_allclose(by_answer.multipliers([3, 2]), np.array([3, 3, 3, 1, 1]) * 2 / 4)


def test_the_clip_holds(tmp_path):
    path = write(tmp_path / "1.parquet", [4], round=[1, 0, 0, 0])
    weights = RoundWeights(masks=[(path, math.log(97))], clip=2.0)
    np.testing.assert_allclose(weights.weights([4]), [0.5, 1 / 6, 1 / 6, 1 / 6])


def test_bootstrap_draws_by_weight_and_the_same_draw_every_time(tmp_path):
    bits = np.arange(400) < 40
    path = write(tmp_path / "1.parquet", [4] * 100, round=bits)
    weights = RoundWeights(masks=[(path, math.log(9))], weighting="bootstrap", seed=3)
    drawn = weights.multipliers([4] * 100)
    np.testing.assert_array_equal(drawn, weights.multipliers([4] * 100))
    assert drawn.sum() == 400
    assert drawn[:40].mean() == pytest.approx(5, abs=1)  # half of all weight lies on a tenth of the tokens
    only_drawn = weights.model_copy(update={"bootstrap": "mask"}).multipliers([4] * 100)
    np.testing.assert_array_equal(only_drawn, drawn > 0)
    other = weights.model_copy(update={"seed": 4}).multipliers([4] * 100)
    assert (other != drawn).any()


def test_bagging_draws_whole_examples():
    drawn = RoundWeights(unit="example", weighting="bootstrap", seed=1).multipliers([3] * 50)
    by_example = drawn.reshape(50, 3)
    assert (by_example == by_example[:, :1]).all()
    assert by_example[:, 0].sum() == 50
    assert 0.5 < (by_example[:, 0] > 0).mean() < 0.75  # 1 - 1/e are drawn at all


def test_examples_without_an_answer_token_are_no_units():
    weights = RoundWeights(unit="example")
    assert weights.units([2, 0, 1]).tolist() == [0, 0, 1]
    assert weights.weights([2, 0, 1]).tolist() == [0.5, 0.5]


def test_masks_of_other_data_are_refused(tmp_path):
    path = write(tmp_path / "1.parquet", [3], round=[1, 0, 0])
    with pytest.raises(ArtifactError, match=r"1.parquet cover 3 tokens, the training data has 4"):
        RoundWeights(masks=[(path, 1.0)]).weights([4])


def test_a_description_survives_json_to_the_last_digit(tmp_path):
    path = write(tmp_path / "1.parquet", [7], round=[1, 0, 0, 1, 0, 0, 0])
    weights = RoundWeights(masks=[(path, samme.alpha(1 / 3))], shrinkage=0.3, clip=50.0, seed=9)
    back = RoundWeights.model_validate_json(weights.model_dump_json())
    assert back == weights
    np.testing.assert_array_equal(back.weights([7]), weights.weights([7]))


def test_examples_without_errors_follow_with_a_multiplier_of_1(tmp_path):
    write_masks(tmp_path / "errors.parquet", ["a", "b"], [2, 1], {"round": np.array([True, False, False])})
    known = RoundWeights(masks=[(str(tmp_path / "errors.parquet"), 1.0)])
    with_others = known.model_copy(update={"examples": 2})
    found = with_others.multipliers([2, 1, 4])
    np.testing.assert_array_equal(found[:3], known.multipliers([2, 1]))
    np.testing.assert_array_equal(found[3:], np.ones(4))
    drawn = with_others.model_copy(update={"weighting": "bootstrap"}).multipliers([2, 1, 4])
    np.testing.assert_array_equal(drawn[3:], np.ones(4))
