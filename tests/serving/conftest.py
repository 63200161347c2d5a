"""A small ensemble with a tokenizer, for tests of the endpoint."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.models import tiny
from ensemw2s.models.loading import save_trained

VOCABULARY = 64
EOS = 2


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(["sort these numbers please 0 1 2 3 4 5 6 7 8 9"] * 9, VOCABULARY)


@pytest.fixture(scope="session")
def make_model():
    def make(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        model.lm_head.weight.data[EOS] = 0.0  # seldom the likeliest, so that answers are long
        return model

    return make


@pytest.fixture(scope="session")
def ensemble(make_model) -> EnsembleForCausalLM:
    return EnsembleForCausalLM([make_model(seed) for seed in range(2)], [0.6, 0.4])


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_model, tokenizer):
    """A saved ensemble of two experts, and a student."""
    root = tmp_path_factory.mktemp("served")
    sources = []
    for i in range(2):
        save_trained(make_model(i), tokenizer, root / f"expert-{i}")
        sources.append(MemberSource(f"round-{i + 1}", root / f"expert-{i}", 1.0 + i, 0.6 - 0.2 * i, i + 1))
    save_ensemble(root / "ensemble", members=sources, rule="probability", tokenizer=tokenizer)
    save_trained(make_model(7), tokenizer, root / "student")
    return root
