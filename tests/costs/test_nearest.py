"""What a refusal advises: the fewest changes that fit, and of these the least."""

import pytest
from transformers import LlamaConfig

from ensemw2s.costs.memory import GIB, Training, training_memory
from ensemw2s.costs.nearest import changed_training, smallest, training_changes
from ensemw2s.costs.shapes import measure

SEVEN = measure(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000))
PLAIN = Training(
    SEVEN, adapters=0, workers=1, zero_stage=1, offload="none", width=2, checkpointing=False, batch=8, most=None,
    tokens=1024, answer=512,
)  # fmt: skip


def advice(t, gib, workers=(2, 4, 8)):
    def fits(values):
        other = changed_training(t, values)
        return other is not None and training_memory(other).peak <= gib * GIB

    return smallest(training_changes(t, "expert", "models.weak.0", workers), fits)


def test_one_change_is_nearer_than_two_and_an_earlier_one_than_a_later():
    changes = [[("a=1", {"a": 1}), ("a=2", {"a": 2})], [("b=1", {"b": 1})], [("c=1", {"c": 1})]]
    assert smallest(changes, lambda v: v.get("c") == 1 or v.get("b") == 1) == ["b=1"]
    assert smallest(changes, lambda v: v.get("a") == 2) == ["a=2"]
    assert smallest(changes, lambda v: "a" in v and "c" in v) == ["a=1", "c=1"]
    assert smallest(changes, lambda v: not v) == []
    assert smallest(changes, lambda v: False) is None


@pytest.mark.parametrize(
    ("gib", "workers", "wanted"),
    [
        (1000, (2, 4, 8), []),
        (150, (2, 4, 8), ["training.workers=2"]),
        (60, (2, 4, 8), ["training.workers=8"]),
        (150, (), ["training.offload=optimizer"]),
        (60, (), ["models.weak.0.lora={rank: 16}"]),
        (40, (), ["expert.micro_batch_size=2", "training.offload=optimizer"]),
        (13, (), ["expert.micro_batch_size=1", "training.zero_stage=3", "training.offload=parameters"]),
    ],
)
def test_smaller_gpus_ask_for_more(gib, workers, wanted):
    assert advice(PLAIN, gib, workers) == wanted


def test_what_does_not_fit_even_as_it_is_loaded_has_no_advice():
    assert advice(PLAIN, 10) is None


def test_adapters_are_the_last_resort_and_not_advised_twice():
    assert advice(PLAIN, 22, workers=()) is not None
    names = [words for change in training_changes(PLAIN, "student", "models.strong", ()) for words, _ in change]
    assert names[-1] == "models.strong.lora={rank: 16}"
    adapted = changed_training(PLAIN, {"adapters": SEVEN.largest // 10})
    again = [words for change in training_changes(adapted, "student", "models.strong", ()) for words, _ in change]
    assert not any("lora" in words for words in again)


def test_offload_without_its_zero_stage_is_no_setting():
    assert changed_training(PLAIN, {"offload": "parameters"}) is None
    assert changed_training(PLAIN, {"offload": "parameters", "zero_stage": 3}) is not None


def test_more_workers_have_fewer_examples_each():
    assert changed_training(PLAIN, {"workers": 4}).micro == 2
    assert changed_training(PLAIN, {"workers": 4, "most": 1}).micro == 1
