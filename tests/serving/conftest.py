"""A small ensemble with a tokenizer, for tests of the endpoint."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.models import tiny

VOCABULARY = 64


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(["sort these numbers please 0 1 2 3 4 5 6 7 8 9"] * 9, VOCABULARY)


@pytest.fixture(scope="session")
def make_model():
    def make(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def ensemble(make_model) -> EnsembleForCausalLM:
    return EnsembleForCausalLM([make_model(seed) for seed in range(2)], [0.6, 0.4])
