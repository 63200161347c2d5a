"""Predicted bytes are those that torch, DeepSpeed and the engine really hold, for models that fit here."""

import gc
import itertools
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ensemw2s.config import Lora, Recipe
from ensemw2s.costs import memory
from ensemw2s.costs.memory import (
    BUCKET,
    Members,
    Training,
    activation_bytes,
    cache_bytes,
    decoding_memory,
    resting_bytes,
    training_memory,
)
from ensemw2s.costs.shapes import measure, tiny_shape
from ensemw2s.ensemble.decoding import decode_with, list_engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.models import head, loading, tiny
from ensemw2s.models.adapters import attach_lora
from ensemw2s.storage.store import Description
from ensemw2s.training import loop, objectives
from ensemw2s.training.spec import Objective, Start, TrainSpec

CPU = torch.device("cpu")
SEVEN = measure(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000))


def training(shape, **values):
    plain = {
        "adapters": 0,
        "workers": 1,
        "zero_stage": 0,
        "offload": "none",
        "width": 4,
        "checkpointing": False,
        "batch": 4,
        "most": None,
        "tokens": 16,
        "answer": 8,
    }
    return Training(shape, **(plain | values))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny.train_tokenizer(["sort 1 2 3"] * 5, 64)
    loading.save_trained(tiny.create_tiny("tiny-strong", tokenizer, 0), tokenizer, folder)
    return folder, len(tokenizer)


def storages():
    """Bytes of every tensor that is alive, by where it lies."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device == CPU:
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


WAYS = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 0, "width": 2},
    {"zero_stage": 3, "width": 2},
    {"zero_stage": 1, "width": 2, "lora": Lora(rank=4)},
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(f"{k}={getattr(v, 'rank', v)}" for k, v in way.items()))
def test_weights_gradients_and_optimizer_are_what_deepspeed_holds(base, tmp_path, token_rows, quiet_process, way):
    folder, vocabulary = base
    lora, shape = way.get("lora"), tiny_shape("tiny-strong", vocabulary)
    values = {key: value for key, value in way.items() if key != "lora"}
    wanted = training(shape, adapters=shape.adapters(lora), **values)
    before = set(storages())
    spec = TrainSpec(
        name="measured",
        output=str(tmp_path / "out"),
        fingerprint=Description(stage="a"),
        start=Start(path=str(folder), lora=lora),
        tokens=[token_rows],
        recipe=Recipe(epochs=1, batch_size=4),
        zero_stage=wanted.zero_stage,
        offload=wanted.offload,
        precision="bf16" if wanted.width == 2 else "fp32",
    )
    run = loop._Run(spec, CPU, None, None)
    ids = torch.randint(3, vocabulary, (4, 16))
    for _ in range(2):  # AdamW makes its moments in the first step
        run.engine.backward(run.engine(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).mean())
        held = {place: size for place, size in storages().items() if place not in before}
        run.engine.step()
    run.close()
    bucket = BUCKET * wanted.width  # allocated whole, though nothing of it is touched here
    real = sum(size for size in held.values() if size != bucket)
    if wanted.offload == "optimizer":  # one on each side of the way, here both on the CPU
        real -= 2 * wanted.width * shape.largest
    assert real == pytest.approx(sum(resting_bytes(wanted).values()), rel=0.01)


@pytest.fixture
def token_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ensemw2s.data.tokens import TOKENS_SCHEMA

    rows = [{"id": str(i), "prompt_ids": [4, 5, 6], "answer_ids": [7, 2]} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA), tmp_path / "tokens.parquet")
    return str(tmp_path / "tokens.parquet")


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "feed_forward"), [((8, 8), 344), ((8, 2), 512)])
def test_activations_of_the_layers_are_what_torch_keeps_for_the_backward_pass(heads, feed_forward, dtype, rank):
    layers, tokens = 4, 64
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
    )
    lora = Lora(rank=rank) if rank else None
    model = LlamaForCausalLM(config)
    model = (attach_lora(model, lora, 0) if lora else model).to(dtype).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (model.base_model.model if lora else model).model(input_ids=torch.randint(64, (2, tokens)), use_cache=False)
    shape = measure(config)
    wanted = training(shape, adapters=shape.adapters(lora), width=dtype.itemsize, batch=2, tokens=tokens, answer=0)
    head = 2 * 2 * dtype.itemsize * 64 * tokens
    assert sum(size for size, _ in kept.values()) == pytest.approx(activation_bytes(wanted) - head, rel=0.06)


def test_prompts_have_logits_in_training_only_where_the_vocabulary_is_small():
    assert (memory.LEARNT, memory.WHOLE) == (head.AT_ONCE, head.SMALL)
    long, short = (training(SEVEN, tokens=tokens, answer=8) for tokens in (512, 16))
    assert memory.head_bytes(long) == memory.head_bytes(short) == 32000 * 4 * 8 * 12
    small = replace(long, shape=tiny_shape("tiny-weak", 64))
    assert memory.head_bytes(small) == 64 * 4 * (512 * 2 * 4 + 8 * 12)


def test_long_answers_have_logits_part_by_part():
    whole = training(SEVEN, tokens=4096, answer=4096)
    assert memory.head_bytes(whole) == pytest.approx(memory.LEARNT * 12, rel=0.01)
    sharded = replace(whole, zero_stage=3)  # the loss alone is computed part by part
    assert memory.head_bytes(sharded) == pytest.approx(32000 * 4 * 4096 * 2 * 4 + memory.LEARNT * 12, rel=0.01)


def peak_bytes(work):
    """The most that torch allocates at a time while it works."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("stage", "at_once", "wanted"),
    [(0, 2**30, 25.2e6), (0, 2**20, 12.6e6), (3, 2**20, {torch.float32: 29.4e6, torch.bfloat16: 21.0e6})],
    ids=["all answers", "parts", "parts of ZeRO 3"],
)
def test_the_head_takes_what_torch_allocates(monkeypatch, stage, at_once, wanted, dtype):
    """4 × 128 tokens of a vocabulary of 8192, half of them answers: all logits are 16.8 MB in float32."""
    monkeypatch.setattr(head, "AT_ONCE", at_once)
    monkeypatch.setattr(memory, "LEARNT", at_once)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    output, ids = head.Head(model, sharded=stage == 3), torch.randint(8192, (4, 128))
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, 63:-1] = True
    tokens = {"labels": ids[:, 64:].flatten(), "weights": torch.ones(4 * 64)}

    def loss(logits, part):
        those = {key: value[part] for key, value in tokens.items()}
        return objectives.loss(logits, those, Objective(), progress=0.0)

    found = peak_bytes(lambda: output.losses(lambda: model(input_ids=ids, use_cache=False), chosen, loss)[0].backward())
    said = memory.head_bytes(training(measure(config), zero_stage=stage, width=dtype.itemsize, tokens=128, answer=64))
    assert said == pytest.approx(wanted[dtype] if isinstance(wanted, dict) else wanted, rel=0.01)
    assert found == pytest.approx(said, rel=0.03)


def test_checkpointing_leaves_little_of_the_activations():
    whole = training(SEVEN, width=2, tokens=1024, answer=256)
    less = replace(whole, checkpointing=True)
    assert activation_bytes(less) < activation_bytes(whole) / 8
    assert activation_bytes(replace(less, most=1)) * 4 == activation_bytes(less)


@pytest.mark.parametrize("members", [1, 3])
def test_the_cache_is_what_the_engine_allocates(members):
    tokenizer = tiny.train_tokenizer(["sort 1 2 3"] * 5, 64)
    models = [tiny.create_tiny("tiny-strong", tokenizer, i) for i in range(members)]
    ensemble = EnsembleForCausalLM(models, [1.0] * members)
    prompts = [[4, 5, 6]] * 5 + [[4] * 60]
    engine = list_engine(ensemble, batch_size=4)
    decode_with(engine, prompts, max_new_tokens=12, eos_ids=2)
    real = sum(part.cache.bytes for part in engine.groups)
    shape = tiny_shape("tiny-strong", len(tokenizer))
    assert real == cache_bytes(shape, members=members, slots=4, length=60 + 12, width=4) > 0


def test_zero_divides_optimizer_then_gradients_then_weights():
    at = [resting_bytes(training(SEVEN, zero_stage=stage, workers=4, width=2)) for stage in range(4)]
    assert at[1]["optimizer"] * 4 == pytest.approx(at[0]["optimizer"])
    assert at[2]["gradients"] * 4 == pytest.approx(at[0]["gradients"])
    assert at[3]["weights"] * 4 == pytest.approx(at[2]["weights"])
    whole = training_memory(training(SEVEN, zero_stage=1, workers=4, width=2))
    divided = training_memory(training(SEVEN, zero_stage=2, workers=4, width=2))
    assert whole.device["gradients"] > 2 * divided.device["gradients"]


def test_offloading_moves_bytes_from_the_gpu_to_the_machine():
    on_gpu, off = (training_memory(training(SEVEN, zero_stage=2, width=2, offload=o)) for o in ("none", "optimizer"))
    assert on_gpu.host == 0
    assert off.device["optimizer"] == 0
    assert off.host == (12 + 4 + 2) * SEVEN.parameters
    weights = training_memory(training(SEVEN, zero_stage=3, width=2, offload="parameters"))
    assert weights.device["weights"] < off.device["weights"] / 5
    assert weights.host > off.host


def test_the_whole_model_is_loaded_before_it_is_divided():
    divided = training_memory(training(SEVEN, zero_stage=3, workers=64, width=2, offload="parameters", tokens=4))
    assert sum(divided.device.values()) < divided.loading
    assert divided.peak == divided.loading == 2 * SEVEN.parameters


def test_members_that_share_a_base_add_a_cache_and_no_weights():
    one, four = (
        decoding_memory([(SEVEN, 0)], [Members(SEVEN, n, shared=True)], slots=8, length=1000, width=2) for n in (1, 4)
    )
    assert four.device["weights"] == one.device["weights"] == 2 * SEVEN.parameters
    assert four.device["cache"] == 4 * one.device["cache"]
