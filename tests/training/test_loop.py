"""Real training of tiny models: in this process, and once more by two processes."""

import gc
import json
import math
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ensemw2s.boosting.masks import RoundWeights, write_masks
from ensemw2s.config import Lora
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.score import score
from ensemw2s.errors import ArtifactError, TrainingError
from ensemw2s.models import head, loading, tiny
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Description
from ensemw2s.training import loop, setup
from ensemw2s.training.batches import epoch_batches
from ensemw2s.training.records import TrainRecord
from ensemw2s.training.spec import Objective, Start, Tracking, TrainSpec

CPU = torch.device("cpu")
CLIP = 4.0
"""Between the gradient norms of the steps: some are clipped and some are not, so a wrong scale of the loss shows."""

SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "passes": {"recipe": {"micro_batch_size": 3}},
    "zero-0": {"zero_stage": 0},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "zero-3-passes": {"zero_stage": 3, "recipe": {"micro_batch_size": 2, "epochs": 1}},
    "offload": {"zero_stage": 2, "offload": "optimizer"},
    "offload-zero-3": {"zero_stage": 3, "offload": "parameters"},
    "bootstrap": {"bootstrap": True},
    "confidence": {"objective": Objective(kind="logconf")},
    "soft": {"objective": Objective(kind="soft")},
    "adapters": {"lora": True},
    "adapters-zero-3": {"lora": True, "zero_stage": 3},
    "best-zero-3": {"zero_stage": 3, "keep": "best", "recipe": {"learning_rate": 0.03, "epochs": 3}},
}

BY_TWO = [name for name in SPECS if name not in ("zero-3", "soft", "adapters-zero-3")]
"""Sharded weights are slow to train, and two specs with them are enough."""

Facts = dict[str, TrainRecord]


class Trained(Facts):
    """The facts of specs trained by one worker when first asked for; their folders are `alone/NAME`."""

    def __init__(self, workshop: Any) -> None:
        super().__init__()
        self.workshop = workshop

    def __missing__(self, name: str) -> dict[str, Any]:
        self[name] = train(make_spec(self.workshop, name, "alone"))
        return self[name]

    def folder(self, name: str) -> Path:
        return self[name] and self.workshop.root / "alone" / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return saved(self.folder(name))


def make_spec(workshop: Any, name: str, group: str) -> TrainSpec:
    options = dict(SPECS[name])
    recipe = {"gradient_clipping": CLIP, **options.pop("recipe", {})}
    if options.pop("bootstrap", False):
        options["weights"] = workshop.weights.model_copy(update={"weighting": "bootstrap", "seed": 5})
    if options.pop("lora", False):
        options["start"] = Start(path=str(workshop.base), lora=Lora(rank=2))
    output = str(workshop.root / group / name)
    return workshop.spec(name, recipe=recipe, output=output, validation=str(workshop.table), **options)


def saved(folder: str | Path) -> dict[str, torch.Tensor]:
    [file] = Path(folder).glob("*.safetensors")
    return load_file(file)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Weights are equal up to rounding.

    Adam divides a gradient by its size, so where a gradient is next to nothing its rounding becomes a part of a step
    (the steps are 3e-3): one weight in a thousand may differ by a tenth of one, the others by a three-hundredth (up to
    1.9e-6 was seen, depending on the machine).
    """
    assert a.keys() == b.keys()
    apart = torch.cat([(a[key] - b[key]).abs().flatten() for key in a])
    assert apart.quantile(0.999) < 1e-5
    assert apart.max() < 3e-4


def train(spec: TrainSpec, **options: Any) -> TrainRecord:
    return loop.train(spec, device=CPU, **options)


@pytest.fixture(scope="module")
def alone(workshop: Any) -> Trained:
    return Trained(workshop)


@pytest.fixture(scope="module")
def two(workshop: Any, older_training: TrainRecord) -> Facts:
    """The facts of specs trained by two workers, processes as torchrun starts them; their folders are `two/NAME`."""
    finished = workshop.spec("finished", output=str(workshop.root / "two" / "finished"))
    with store.publish(Path(finished.output), finished.fingerprint) as folder:
        older_training.write(folder)
    files = [workshop.root / "finished.json"]
    files[0].write_text(finished.model_dump_json())
    for name in BY_TWO:
        files.append(workshop.root / f"{name}.json")
        files[-1].write_text(make_spec(workshop, name, "two").model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "ensemw2s.training.loop", *map(str, files)]
    workers = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},  # what torchrun sets
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            output, errors = worker.communicate(timeout=600)
            assert worker.returncode == 0, f"{output}\n{errors}"
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return {name: TrainRecord.read(workshop.root / "two" / name) for name in BY_TWO}


@pytest.mark.processes
@pytest.mark.parametrize("name", BY_TWO)
def test_one_worker_and_two_give_the_same_losses_and_weights(workshop, alone, two, name):
    assert (alone[name].workers, two[name].workers) == (1, 2)
    np.testing.assert_allclose(alone[name].loss, two[name].loss, atol=4e-6)
    assert alone[name].validation_exact_match == two[name].validation_exact_match
    assert alone[name].kept_epoch == two[name].kept_epoch
    a, b = alone.weights(name), saved(workshop.root / "two" / name)
    assert_same(a, b)
    start = saved(workshop.base)
    assert all((a[key] - start[key]).abs().max() > 1e-3 for key in a if key in start), "no weight was left untrained"


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize("name", ["passes", "zero-0", "zero-2", "zero-3"])
def test_micro_batches_and_zero_stages_change_nothing(workshop, alone, name):
    np.testing.assert_allclose(alone["plain"].loss, alone[name].loss, atol=4e-6)
    assert_same(alone.weights(name), alone.weights("plain"))


@SLOW
def test_adapters_are_the_same_whether_the_base_is_sharded(workshop, alone):
    assert_same(alone.weights("adapters"), alone.weights("adapters-zero-3"))


def test_training_is_the_method_written_out(workshop, alone):
    """A step is AdamW on Σ w·loss / Σ w over its examples, which are read here one by one, without padding."""
    facts = alone["plain"]
    spec = make_spec(workshop, "plain", "alone")
    recipe, data = spec.recipe, TokenData.read(workshop.table)
    multipliers = spec.weights.multipliers([len(answer) for answer in data.answer_ids])
    assert len(np.unique(multipliers.round(6))) == 2
    lengths = np.array([len(p) + len(a) for p, a in zip(data.prompt_ids, data.answer_ids, strict=True)])
    model = loading.load_causal_lm(workshop.base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    losses: list[list[float]] = [[], []]
    clipped = set()
    for epoch in range(2):
        for step, batch in enumerate(epoch_batches(lengths, 8, seed=spec.seed, epoch=epoch)):
            loss = total = 0.0
            for i in batch:
                prompt, answer = torch.tensor(data.prompt_ids[i]).long(), torch.tensor(data.answer_ids[i]).long()
                logits = model(torch.cat([prompt, answer])[None], use_cache=False).logits[0]
                w = torch.tensor(multipliers[data.offsets[i] : data.offsets[i + 1]]).float()
                loss += (w * F.cross_entropy(logits[len(prompt) - 1 : -1], answer, reduction="none")).sum()
                total += float(w.sum())
            done = 3 * epoch + step
            for group in optimizer.param_groups:  # no step of warm-up among six; the cosine ends at a tenth
                group["lr"] = recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done / 6)))
            (loss / total).backward()
            clipped.add(bool(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP))
            optimizer.step()
            optimizer.zero_grad()
            losses[epoch].append(loss.item() / total)
    assert clipped == {True, False}
    np.testing.assert_allclose(facts.loss, np.mean(losses, axis=1), atol=4e-6)
    trained = alone.weights("plain")
    expected = {key: value.detach() for key, value in model.state_dict().items() if key in trained}
    assert_same(trained, expected)


def test_checkpointed_gradients_are_the_same(workshop, alone):
    spec = make_spec(workshop, "plain", "checkpointed").model_copy(update={"gradient_checkpointing": True})
    assert train(spec).loss == alone["plain"].loss
    assert_same(saved(spec.output), alone.weights("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [10**6, 3 * 64], ids=["at once", "three at a time"])
@pytest.mark.parametrize("name", ["passes", "zero-0", "zero-2", "zero-3", "confidence", "soft", "adapters-zero-3"])
def test_logits_of_answers_alone_train_as_those_of_all_tokens(workshop, alone, monkeypatch, name, at_once):
    """Also with checkpointed gradients, which change nothing (above)."""
    facts, weights = alone[name], alone.weights(name)
    monkeypatch.setattr(head, "SMALL", 0)
    monkeypatch.setattr(head, "AT_ONCE", at_once)
    spec = make_spec(workshop, name, f"answers-{at_once}").model_copy(update={"gradient_checkpointing": True})
    found = train(spec)
    np.testing.assert_allclose(found.loss, facts.loss, atol=4e-6)
    assert found.validation_exact_match == facts.validation_exact_match
    assert_same(saved(spec.output), weights)


def test_facts_say_what_was_trained_on(workshop, alone):
    facts, data = alone["plain"], TokenData.read(workshop.table)
    assert (facts.name, facts.examples, facts.epochs, facts.steps) == ("plain", 21, 2, 6)
    assert facts.tokens_trained == 2 * (data.n_samples + sum(len(prompt) for prompt in data.prompt_ids))
    assert facts.parameters == facts.trained_parameters == loading.model_info(workshop.base).parameters
    assert (facts.zero_stage, facts.precision, facts.kept_epoch) == (1, "fp32", 2)
    assert facts.seconds > 0


def test_validation_counts_answers_of_which_every_token_is_the_most_likely(workshop, alone):
    facts = alone["best-zero-3"]
    curve = facts.validation_exact_match
    assert len(curve) == 3
    assert facts.kept_epoch == 1 + curve.index(max(curve))
    data = TokenData.read(workshop.table)
    model = loading.load_causal_lm(alone.folder("best-zero-3"))
    right = [s.correct.all() for s in score(model, data.prompt_ids, data.answer_ids, pad_id=0, batch_size=8)]
    assert np.mean(right) == max(curve) > 0


def test_the_best_epoch_is_kept_and_of_equals_the_earlier(workshop, monkeypatch):
    """Validation goes up, stays, and falls; the weights at each look are recorded."""
    scores, seen = iter((0.2, 0.5, 0.5, 0.1)), []

    def validate(run: Any, path: str) -> float:
        assert path == str(workshop.validation)
        seen.append(run._weights())
        return next(scores)

    monkeypatch.setattr(loop._Run, "_validate", validate)
    spec = workshop.spec("best", recipe={"epochs": 4}, validation=str(workshop.validation), keep="best")
    facts = train(spec)
    assert (facts.kept_epoch, facts.validation_exact_match) == (2, (0.2, 0.5, 0.5, 0.1))
    kept = saved(spec.output)
    torch.testing.assert_close(kept, {key: seen[1][key] for key in kept}, rtol=0, atol=0)
    assert any(not torch.equal(kept[key], seen[2][key]) for key in kept)


def test_without_keep_best_validation_is_only_looked_at(workshop, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(loop._Run, "_validate", lambda *_: next(scores))
    spec = workshop.spec("last", validation=str(workshop.validation))
    assert train(spec).kept_epoch == 2


def test_the_saved_folder_is_a_model_with_its_tokenizer(workshop, alone):
    folder = alone.folder("best-zero-3")
    model = loading.load_causal_lm(folder)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied
    tokenizer, before = loading.load_tokenizer(folder), loading.load_tokenizer(workshop.base)
    assert loading.tokenizer_hash(tokenizer) == loading.tokenizer_hash(before)
    assert loading.model_info(folder).parameters == loading.model_info(workshop.base).parameters


def test_a_finished_spec_is_not_trained_again(workshop, alone):
    spec, steps = make_spec(workshop, "plain", "alone"), []
    before = (alone.folder("plain") / "train.json").stat().st_mtime_ns
    facts = train(spec, on_step=lambda *step: steps.append(step))
    assert facts == alone["plain"]
    assert steps == []
    assert (alone.folder("plain") / "train.json").stat().st_mtime_ns == before


def test_the_result_of_another_spec_is_refused_with_the_difference(workshop, alone):
    changed = Description(stage="plain", settings={"expert.epochs": 9})
    assert alone.folder("plain").exists()
    spec = make_spec(workshop, "plain", "alone").model_copy(update={"fingerprint": changed})
    with pytest.raises(ArtifactError, match=r"made with another config: expert.epochs was None, is 9"):
        train(spec)


@pytest.mark.processes
def test_a_process_that_finds_its_first_spec_finished_takes_the_next(workshop, two, older_training):
    assert TrainRecord.read(workshop.root / "two" / "finished") == older_training


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=SLOW)])
def test_nothing_of_a_training_stays_in_memory(workshop, monkeypatch, stage):
    held = []
    leave = loop._Run.close

    def close(run: Any) -> None:
        held.extend(map(weakref.ref, (run.model, run.engine, run.engine.optimizer, next(run.model.parameters()))))
        leave(run)

    monkeypatch.setattr(loop._Run, "close", close)
    gc.disable()  # it comes to large circles late, and then the next model is there already
    try:
        train(workshop.spec(f"left-{stage}", zero_stage=stage))
        left = [reference() is not None for reference in held]
    finally:
        gc.enable()
    assert left == [False] * 4


def test_progress_is_told_after_every_step(workshop):
    told = []
    train(workshop.spec("told"), on_step=lambda *step: told.append(step))
    assert [(name, done, total) for name, done, total, _ in told] == [("told", i, 6) for i in range(1, 7)]
    assert all(1 < loss < 6 for *_, loss in told)


@pytest.mark.parametrize(("weight", "word"), [(math.nan, "nan"), (3e38, "nan|inf")])
def test_a_loss_that_is_no_number_stops_training_and_leaves_nothing(workshop, tmp_path, weight, word):
    tokenizer = loading.load_tokenizer(workshop.base)
    model = tiny.create_tiny("tiny-weak", tokenizer, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(weight)
    loading.save_trained(model, tokenizer, tmp_path / "broken")
    spec = workshop.spec("diverged", output=str(tmp_path / "out"), start=Start(path=str(tmp_path / "broken")))
    with pytest.raises(
        TrainingError, match=rf"diverged: the loss is ({word}) in epoch 1: lower its learning_rate, which is 0.003"
    ):
        train(spec)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_a_tiny_model_starts_from_its_seed(workshop):
    start = Start(path=str(workshop.base), tiny="tiny-weak")
    runs = {}
    for name, seed in (("tiny-a", 7), ("tiny-b", 7), ("tiny-c", 8)):
        runs[name] = workshop.spec(name, start=start, seed=seed, weights=None, recipe={"learning_rate": 1e-9})
        train(runs[name])
    a, b, c = (saved(spec.output) for spec in runs.values())
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    fresh = tiny.create_tiny("tiny-weak", loading.load_tokenizer(workshop.base), 7).state_dict()
    torch.testing.assert_close(a, {key: fresh[key] for key in a}, rtol=0, atol=1e-6)
    assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])


def test_bfloat16_is_trained_and_saved_where_asked_for(workshop):
    spec = workshop.spec("bf16", precision="bf16")
    facts = train(spec)
    assert facts.precision == "bf16"
    assert facts.loss[1] < facts.loss[0]
    assert not setup.use_bf16("auto", CPU)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_base_that_is_loaded_in_bfloat16_is_the_one_that_is_rounded_later(workshop, lora):
    start = Start(path=str(workshop.base), lora=lora)
    whole, rounded = (setup.build(start, CPU, seed=3, dtype=t)[0] for t in (torch.float32, torch.bfloat16))
    pairs = dict(zip(whole.named_parameters(), rounded.named_parameters(), strict=True))
    for (name, before), (same, after) in pairs.items():
        assert name == same
        assert torch.equal(before.to(torch.bfloat16), after.to(torch.bfloat16)), name
    assert {p.dtype for p in rounded.parameters() if p.requires_grad == (lora is None)} == {torch.bfloat16}


def test_adapters_alone_are_trained_and_saved(workshop, alone):
    facts, folder = alone["adapters"], alone.folder("adapters")
    adapters = saved(folder)
    assert sorted(path.name for path in folder.glob("adapter*")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert facts.trained_parameters == sum(weight.numel() for weight in adapters.values())
    assert facts.parameters - facts.trained_parameters == loading.model_info(workshop.base).parameters
    assert all("lora_" in name for name in adapters)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workshop.base)
    trained = loading.load_trained(folder)
    ids = torch.tensor([[1, 9, 30]])
    assert not torch.allclose(trained(ids).logits, loading.load_causal_lm(workshop.base)(ids).logits, atol=1e-3)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=SLOW)])
def test_a_warm_start_goes_on_with_the_adapters_of_the_round_before(workshop, alone, stage):
    before = alone.folder("adapters")
    base = saved(workshop.base)
    start = Start(path=str(before), lora=Lora(rank=2))
    still = workshop.spec(f"still-{stage}", start=start, zero_stage=stage, recipe={"learning_rate": 1e-12})
    train(still)
    torch.testing.assert_close(saved(still.output), saved(before), rtol=0, atol=1e-6)
    onward = workshop.spec(f"onward-{stage}", start=start, zero_stage=stage)
    facts = train(onward)
    assert saved(onward.output).keys() == saved(before).keys()
    assert facts.trained_parameters == sum(weight.numel() for weight in saved(before).values())
    assert facts.loss[-1] < alone["adapters"].loss[-1]
    assert json.loads(Path(onward.output, "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        workshop.base
    )
    torch.testing.assert_close(saved(workshop.base), base, rtol=0, atol=0)


def test_a_warm_start_from_full_weights_goes_on_with_them(workshop, alone):
    before = alone.folder("plain")
    spec = workshop.spec("warm", start=Start(path=str(before)), recipe={"learning_rate": 1e-12, "weight_decay": 0.0})
    train(spec)
    torch.testing.assert_close(saved(spec.output), saved(before), rtol=0, atol=1e-6)


def test_masks_of_other_data_are_refused(workshop, tmp_path):
    write_masks(tmp_path / "errors.parquet", ["a"], [3], {"round": np.ones(3, bool)})
    weights = RoundWeights(masks=[(str(tmp_path / "errors.parquet"), 1.0)])
    with pytest.raises(ArtifactError, match=r"errors.parquet cover 3 tokens, the training data has \d+"):
        train(workshop.spec("other-masks", weights=weights))


def test_soft_targets_keep_the_token_weights_of_a_round(workshop):
    """Nothing asks for both today; together they must not silently lose one."""
    spec = workshop.spec("both", objective=Objective(kind="soft"))
    data = setup.training_set(spec)
    assert data.soft_ids is not None
    assert len(np.unique(data.multipliers)) == 2


def test_weights_that_cannot_be_loaded_name_the_folder(workshop, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(Exception, match=str(tmp_path)):
        train(workshop.spec("nothing", start=Start(path=str(tmp_path))))


@SLOW
def test_a_training_takes_its_inputs_from_object_storage_and_leaves_its_model_there(
    workshop, bucket, tmp_path, monkeypatch
):
    def place(name: str) -> str:
        return str(remote.local(f"s3://{bucket.name}/{name}"))

    spec = workshop.spec("plain")
    loop.train(spec, device=CPU)
    [(mask, alpha)] = workshop.weights.masks
    for name, source in (("base", workshop.base), ("tokens.parquet", workshop.table), ("errors.parquet", Path(mask))):
        remote.push(source, Path(place(name)))
    monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / "other machine"))
    there = spec.model_copy(
        update={
            "output": place("expert"),
            "start": Start(path=place("base")),
            "tokens": [place("tokens.parquet")],
            "weights": workshop.weights.model_copy(update={"masks": [(place("errors.parquet"), alpha)]}),
            "checkpoint_seconds": 0.0,
            "tracking": Tracking(place=place("tensorboard/expert"), every=1),
        }
    )
    loop.train(there, device=CPU)
    objects = bucket.objects()
    weights = (Path(spec.output) / "model.safetensors").read_bytes()
    assert objects["expert/model.safetensors"] == weights
    assert any(key.startswith("tensorboard/expert/events.") for key in objects)
    assert not any(".checkpoints-" in key for key in objects)
