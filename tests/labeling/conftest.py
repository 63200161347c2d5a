"""Two tiny models that answer on their own and together, with the tokenizer of digits and a few words."""

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ensemw2s.config import DataConfig, ReasoningGymSource
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.voter import Loaded
from ensemw2s.models import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9 up = down"] * 9, 64)


@pytest.fixture(scope="session")
def experts(tokenizer) -> list[LlamaForCausalLM]:
    """Of random weights, made sharp: every answer is a choice that a wrong position or mask would change."""
    models = [tiny.create_tiny("tiny-weak", tokenizer, seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        for model in models:
            model.model.norm.weight.mul_(6.0)
    return models


@pytest.fixture(scope="session")
def loaded(tokenizer, experts) -> Callable[..., Loaded]:
    """The experts with these weights."""

    def make(*weights: float, **options: str) -> Loaded:
        return Loaded(EnsembleForCausalLM(experts[: len(weights)], weights, **options), tokenizer)

    return make


@pytest.fixture(scope="session")
def data() -> DataConfig:
    source = ReasoningGymSource(dataset="number_sorting")
    return DataConfig(source=source, prompt_template="sort {prompt} =", answer_prefix=" ")
