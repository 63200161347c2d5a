"""The model of time: operations of a token, what limits a decoding step, and speeds of a run that was measured."""

import json

import pytest
from transformers import LlamaConfig

from ensemw2s.costs.hardware import Assumptions, Processor
from ensemw2s.costs.memory import Members
from ensemw2s.costs.shapes import measure
from ensemw2s.costs.throughput import (
    Measured,
    decoding_rate,
    read_measured,
    reading_rate,
    share_of,
    training_flops,
    training_rate,
)
from ensemw2s.errors import ConfigError

SHAPE = measure(LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100))
GPU = Processor(memory_gib=16, bf16_tflops=100, fp32_tflops=20, gb_per_second=500)


def assumed(**values):
    plain = {
        "training_mfu": 0.5,
        "reading_mfu": 0.5,
        "decoding_bandwidth": 1.0,
        "seconds_a_layer": 0.0,
        "overhead_gib": 0,
        "startup_minutes": 0,
        "spot_share": 1,
        "characters_a_token": 4,
    }
    return Assumptions(**(plain | values))


def test_a_trained_token_takes_six_operations_a_weight_and_with_adapters_four():
    m, a = SHAPE.multiplied, 1000
    assert training_flops(SHAPE, 0, checkpointing=False) == 6 * m
    assert training_flops(SHAPE, 0, checkpointing=True) == 8 * m
    assert training_flops(SHAPE, a, checkpointing=False) == 4 * m + 6 * a
    assert training_flops(SHAPE, a, checkpointing=True) == 6 * m + 8 * a


def test_torch_counts_the_same_operations():
    """Of matrix products; the context is short here, so that attention's own are few."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    shape = LlamaConfig(hidden_size=128, intermediate_size=344, num_hidden_layers=2, vocab_size=100)
    model = LlamaForCausalLM(shape)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(4, 16, dtype=torch.int64), use_cache=False).logits.sum().backward()
    wanted = training_flops(measure(shape), 0, checkpointing=False) * 4 * 16
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.05)


def test_half_of_a_gpu_trains_half_as_fast_and_bfloat16_by_its_own_peak():
    whole, half = (share_of(GPU, width=2, parts=parts) for parts in (1, 0.5))
    rates = [training_rate(SHAPE, 0, share, assumed(), checkpointing=False) for share in (whole, half)]
    assert rates[0] == pytest.approx(2 * rates[1]) == pytest.approx(100e12 * 0.5 / 6 / SHAPE.multiplied)
    single = training_rate(SHAPE, 0, share_of(GPU, width=4, parts=1), assumed(), checkpointing=False)
    assert rates[0] == pytest.approx(5 * single)


def test_few_rows_decode_at_the_speed_of_the_memory_and_many_at_that_of_arithmetic():
    share, one = share_of(GPU, width=2, parts=1), [Members(SHAPE, 1, shared=False)]
    few = decoding_rate(one, share, assumed(), slots=1, context=0)
    assert few == pytest.approx(500e9 / (2 * SHAPE.multiplied))
    many = decoding_rate(one, share, assumed(), slots=100_000, context=0)
    assert many == pytest.approx(reading_rate(one, share, assumed()))


def test_members_on_one_base_read_its_weights_once():
    share = share_of(GPU, width=2, parts=1)
    rate = {
        shared: decoding_rate([Members(SHAPE, 4, shared=shared)], share, assumed(), slots=1, context=0)
        for shared in (True, False)
    }
    assert rate[True] == pytest.approx(4 * rate[False])
    slower = decoding_rate([Members(SHAPE, 4, shared=True)], share, assumed(), slots=1, context=10_000)
    assert slower < rate[True] / 2, "every slot's cache is read"
    started = assumed(seconds_a_layer=0.001)
    assert decoding_rate([Members(SHAPE, 4, shared=True)], share, started, slots=1, context=0) < 1 / 0.002


def test_speeds_of_a_finished_run_are_read(tmp_path, older_training):
    for folder, tokens, workers in (("rounds/1/experts/0", 600, 2), ("students/student_ensemw2s", 100, 1)):
        (tmp_path / folder).mkdir(parents=True)
        changed = {"tokens_trained": tokens, "seconds": 10.0, "workers": workers}
        older_training.model_copy(update=changed).write(tmp_path / folder)
    with pytest.raises(ConfigError, match=r"there is no results\.json"):
        read_measured(tmp_path)
    cost = {"tokens_trained": 9, "train_seconds": 1.0, "tokens_decoded": 400, "decode_seconds": 2.0}
    systems = {"ensemw2s": {"cost": cost}, "expert_single": {"cost": cost | {"decode_seconds": 0.0}}}
    (tmp_path / "results.json").write_text(json.dumps({"systems": systems}))
    assert read_measured(tmp_path) == Measured(expert=30, student=10, members=200, alone=None)
