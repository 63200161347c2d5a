"""A small ensemble with a tokenizer, for tests of the endpoint."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM

from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.models import tiny
from ensemw2s.models.loading import save_trained
from ensemw2s.serving.api import make_api
from ensemw2s.serving.hosted import HostedModel
from ensemw2s.serving.settings import HostedSettings, Limits

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


LIMITS = Limits(max_tokens=64, body_bytes=20_000, prompt_bytes=10_000, prompt_tokens=60, n=8, concurrent=6)


class Local:
    """Holds models in this process."""

    def __init__(self, folders, limits: Limits = LIMITS) -> None:
        self.held = {
            name: HostedModel(HostedSettings(name=name, path=str(folders / name), slots=4), limits)
            for name in ("ensemble", "student")
        }

    async def cards(self):
        return {name: one.card for name, one in self.held.items()}

    async def answer(self, model, job, put):
        loop = asyncio.get_running_loop()
        return await self.held[model].answer(job, lambda piece: loop.call_soon_threadsafe(put, piece))

    async def encoded(self, model, prompt, *, special):
        return await self.held[model].encoded(prompt, special=special)

    async def metrics(self):
        return ""

    async def ready(self):
        return True


@contextmanager
def over_http(api):
    """Address of an ASGI app that listens on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def backend(folders):
    local = Local(folders)
    yield local
    for one in local.held.values():
        one.close()
        assert one.loop.join(10)


@pytest.fixture(scope="module")
def url(backend):
    with over_http(make_api(backend, LIMITS)) as found:
        yield found


@pytest.fixture(scope="session")
def served():
    return over_http


@pytest.fixture(scope="session")
def limits():
    return LIMITS
