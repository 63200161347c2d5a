"""Tiny random Llama experts with sharp, differing opinions, and a reference that knows no cache, batch or padding."""

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ensemw2s.config import Lora
from ensemw2s.models import loading, tiny

VOCABULARY = 64
EOS = 2


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    text = "sort these numbers in ascending order please 0 1 2 3 4 5 6 7 8 9"
    tokenizer = tiny.train_tokenizer([text] * 9, VOCABULARY)
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.eos_token_id == EOS
    return tokenizer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    def make(seed: int, vocabulary: int = VOCABULARY, context: int = 64) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=0.3,  # sharp distributions, so that a wrong position or mask changes the argmax
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=EOS,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def experts(make_model) -> list[LlamaForCausalLM]:
    return [make_model(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def full_folders(tmp_path_factory, experts, tokenizer) -> list[Path]:
    root = tmp_path_factory.mktemp("full")
    for index, model in enumerate(experts):
        loading.save_trained(model, tokenizer, root / str(index))
    return [root / str(index) for index in range(len(experts))]


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory, make_model, tokenizer) -> list[Path]:
    """Three LoRA experts, with weights as after training, on one base."""
    root = tmp_path_factory.mktemp("lora")
    loading.save_trained(make_model(10), tokenizer, root / "base")
    for index in range(3):
        model = loading.attach_lora(loading.load_causal_lm(root / "base"), Lora(rank=4), seed=index)
        generator = torch.Generator().manual_seed(index)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        base = loading.BaseReference(path=str(root / "base"), revision=None)
        loading.save_trained(model, tokenizer, root / str(index), base=base)
    return [root / str(index) for index in range(3)]


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of lengths 1 to 13, not sorted."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, VOCABULARY, size=n).tolist() for n in (5, 1, 13, 8, 2, 9, 3, 11, 5, 7)]


@pytest.fixture(scope="session")
def many() -> list[list[int]]:
    """Twenty prompts of lengths 1 to 19."""
    generator = np.random.default_rng(1)
    return [generator.integers(3, VOCABULARY, size=int(n)).tolist() for n in generator.integers(1, 20, size=20)]


@pytest.fixture(scope="session")
def make_other() -> Callable[..., PreTrainedModel]:
    """Models that count positions, keep a cache, attend or give logits in another way than Llama; by kind and seed."""
    small = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": VOCABULARY, "initializer_range": 0.3}
    layers = {**small, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    kinds: dict[str, Callable[[], PreTrainedModel]] = {
        "learned positions": lambda: GPT2LMHeadModel(GPT2Config(**gpt2, vocab_size=VOCABULARY)),
        "no positions": lambda: BloomForCausalLM(BloomConfig(**small, n_layer=2)),
        "sliding window": lambda: MistralForCausalLM(MistralConfig(**layers, sliding_window=6)),
        "convolutions": lambda: Lfm2ForCausalLM(Lfm2Config(**layers, layer_types=["conv", "full_attention"])),
        "normalised heads": lambda: Qwen3ForCausalLM(Qwen3Config(**layers, head_dim=8)),
    }

    def make(kind: str, seed: int) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return kinds[kind]().eval()

    return make


@pytest.fixture(scope="session")
def counting() -> LlamaForCausalLM:
    """A model of known answers: after token t comes t + 1, after the last 0."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    eye = torch.eye(VOCABULARY)
    model.model.embed_tokens.weight.data = eye.clone()
    model.lm_head.weight.data = eye.roll(1, 0).clone()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model


@pytest.fixture(scope="session")
def naive_greedy() -> Callable[..., list[int]]:
    """Greedy decoding of one prompt by plain models: every prefix from its start, alone, in float64 numpy."""

    @torch.no_grad()
    def decode(
        models: Sequence[torch.nn.Module],
        weights: Sequence[float],
        prompt: Sequence[int],
        steps: int,
        eos: Sequence[int],
        rule: str = "probability",
        temperatures: Sequence[float] | None = None,
    ) -> list[int]:
        shares = np.asarray(weights, float) / np.sum(weights)
        tokens = list(prompt)
        for _ in range(steps):
            logits = [model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double() for model in models]
            logits = [one / t for one, t in zip(logits, temperatures or [1.0] * len(logits), strict=True)]
            probs = np.stack([torch.softmax(one, -1).numpy() for one in logits])
            if rule == "probability":
                combined = shares @ probs
            elif rule == "log_probability":
                combined = shares @ np.log(probs)
            else:
                combined = shares @ (probs == probs.max(-1, keepdims=True))
            tokens.append(int(np.argmax(combined)))
            if tokens[-1] in eos:
                break
        return tokens[len(prompt) :]

    return decode
