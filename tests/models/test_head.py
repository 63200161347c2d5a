"""Logits of chosen tokens are those that the whole pass gives there, and so are the gradients."""

import logging

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from ensemw2s.config import Lora
from ensemw2s.models import head
from ensemw2s.models.adapters import attach_lora
from ensemw2s.models.head import Head

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
GATED = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "llama": LlamaConfig(**GATED),
    "llama-tied": LlamaConfig(**GATED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GATED, tie_word_embeddings=True),
    "gemma2-cap": Gemma2Config(**GATED, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gemma3-cap": Gemma3TextConfig(**GATED, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "granite-scale": GraniteConfig(**GATED, logits_scaling=3.0),
    "cohere-scale": CohereConfig(**GATED, logit_scale=0.25, **ENDS),
    "gpt-neox": GPTNeoXConfig(**SIZES, intermediate_size=24),
    "phi-bias": PhiConfig(**GATED),
    "gpt2": GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, **ENDS),
    "opt": OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=8),
    "bloom": BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=50),
}


@pytest.fixture(autouse=True)
def _worth_it(monkeypatch):
    monkeypatch.setattr(head, "SMALL", 0)


def make(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()  # without dropout


def gradients(model, logits_of):
    """Loss and gradients of weighted cross-entropy at three unequal answers."""
    ids = torch.arange(3, 27).view(3, 8)
    chosen = torch.zeros(3, 8, dtype=torch.bool)
    chosen[0, 6:], chosen[1, 2:7], chosen[2, 5] = True, True, True
    labels = torch.arange(8)

    def loss(logits, part):
        each = torch.nn.functional.cross_entropy(logits.float(), labels[part], reduction="none")
        return (each * (labels[part] + 1)).sum(), each.detach().sum()

    model.zero_grad()
    found, plain = logits_of(lambda: model(input_ids=ids, use_cache=False), chosen, loss)
    found.backward()
    return [found.detach(), plain, *[p.grad.clone() for p in model.parameters() if p.grad is not None]]


def whole(run, chosen, loss):
    return loss(run().logits[chosen], slice(None))


@pytest.mark.parametrize("at_once", [10**6, 150], ids=["at once", "three at a time"])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_logits_of_all_tokens(name, at_once, monkeypatch):
    monkeypatch.setattr(head, "AT_ONCE", at_once)
    model = make(CONFIGS[name])
    mine = Head(model)
    assert mine.chooses
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape[0] * out.shape[1]))
    found = gradients(model, mine.losses)
    assert max(seen) == (8 if at_once > 150 or name == "opt" else 3)  # whose layers are not called as a whole
    for one, other in zip(found, gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_once", [10**6, 150])
def test_adapters_get_the_same_gradients_also_on_the_output_layer(at_once, monkeypatch):
    monkeypatch.setattr(head, "AT_ONCE", at_once)
    model = attach_lora(make(CONFIGS["llama"]), Lora(rank=2, target_modules=["q_proj", "lm_head"]), 0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    mine = Head(model)
    assert mine.chooses
    for one, other in zip(gradients(model, mine.losses), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_that_needs_all_tokens_gives_them_and_the_log_says_so(caplog):
    class Odd(type(make(CONFIGS["llama"]))):
        def forward(self, input_ids, **more):
            out = super().forward(input_ids, **more)
            out.logits = out.logits.view(*input_ids.shape, -1)
            return out

    model = Odd(CONFIGS["llama"])
    with caplog.at_level(logging.WARNING):
        mine = Head(model)
    assert not mine.chooses
    assert "Odd computes the logits of all tokens" in caplog.text
    for one, other in zip(gradients(model, mine.losses), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_small_vocabulary_is_read_whole(monkeypatch):
    monkeypatch.setattr(head, "SMALL", 51)
    assert not Head(make(CONFIGS["llama"])).chooses


def test_no_chosen_token_gives_no_loss_and_gradients_of_zero():
    model = make(CONFIGS["llama"])
    none = torch.zeros(3, 8, dtype=torch.bool)
    found = gradients(
        model, lambda run, _, loss: Head(model).losses(run, none, lambda logits, _: (logits.sum(), logits))
    )
    assert not any(part.any() for part in found)
