"""How fast the engine decodes, against the standard ensemble and one expert alone, in one process and in turns.

    python benchmarks/decode.py                                  # the embedded tiny family
    python benchmarks/decode.py --base DIR --dtype bfloat16      # any causal LM in a folder, with LoRA members
    python benchmarks/decode.py --batches 0 --mixed-tokenizers DIR,DIR   # models with different tokenizers

(a) standard: one Hugging Face model a member, adapters merged, each with its own cache, one forward each a token.
(b) alone: one of these models.
(c) engine, (d) the engine with speculation. JSON goes to standard output; ratios are of medians over the turns.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import DynamicCache

from ensemw2s.config import Lora
from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.bytewise.mixture import ByteMixture, VoiceModel
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.models import loading, tiny

Answers = list[list[int]]
TEXT = "Sort these numbers in ascending order: 14, 3, 92, 7, 51, 28. The numbers in ascending order are"


def make_members(root: Path, base: Path | None, kind: str, count: int) -> list[Path]:
    """Folders of members that differ: adapters with random weights on the base, or full tiny models."""
    if base is None:
        tokenizer = tiny.train_tokenizer([TEXT] * 9, 128)
        base = root / "base"
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, 99), tokenizer, base)
    tokenizer = loading.load_tokenizer(base)
    folders = []
    for index in range(count):
        folder = root / f"{kind}-{index}"
        folders.append(folder)
        if kind == "full":
            loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, index), tokenizer, folder)
            continue
        model = loading.attach_lora(loading.load_causal_lm(base), Lora(rank=8), seed=index)
        generator = torch.Generator().manual_seed(index)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.02
        loading.save_trained(model, tokenizer, folder, base={"path": str(base), "revision": None})
    return folders


def save_random_ensemble(root: Path, base: Path | None, count: int) -> Path:
    """An ensemble of such members: adapters on a base, full ones of the tiny family. That they answer nonsense does
    not matter to the time.
    """
    folders = make_members(root, base, "lora" if base else "full", count)
    sources = [
        MemberSource(name=f.name, directory=f, alpha=1.0, weight=1.0, round=i + 1, weighted_error=0.1)
        for i, f in enumerate(folders)
    ]
    tokenizer = loading.load_tokenizer(folders[0])
    save_ensemble(root / "ensemble", members=sources, rule="probability", tokenizer=tokenizer)
    return root / "ensemble"


@torch.inference_mode()
def standard(models: Sequence[torch.nn.Module], prompts: Answers, new_tokens: int) -> Answers:
    """Greedy decoding by the mean of the models' distributions; a left-padded batch, one cache and forward a model."""
    device = next(models[0].parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    caches = [DynamicCache(config=model.config) for model in models]
    answers: list[torch.Tensor] = []
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        total: Any = 0.0
        for model, cache in zip(models, caches, strict=True):
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            total = total + torch.softmax(out.logits[:, -1].float(), -1)
        ids = total.argmax(-1, keepdim=True)
        answers.append(ids)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return torch.cat(answers, dim=1).tolist()


def by_engine(engine: Engine, prompts: Answers, lengths: Sequence[int]) -> Answers:
    """What the engine gives, for so many new tokens each."""
    results: list[list[int]] = [[] for _ in prompts]
    for i, generation in engine.run([Request(p, n) for p, n in zip(prompts, lengths, strict=True)]):
        results[i] = generation.token_ids
    return results


def one_by_one(engine: Engine, prompts: Answers, lengths: Sequence[int]) -> Answers:
    """The same in the order of arrival, as requests of a server would come in."""
    keys = [engine.submit(Request(p, n)) for p, n in zip(prompts, lengths, strict=True)]
    answers: dict[int, list[int]] = {}
    while engine.busy:
        answers |= {u.key: u.generation.token_ids for u in engine.step() if u.generation}
    return [answers[key] for key in keys]


def in_turns(ways: dict[str, Callable[[], Answers]], turns: int) -> tuple[dict[str, float], dict[str, Answers]]:
    """Median seconds of each way after a first, unmeasured turn, and what each gave."""
    answers = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            synchronize()
            start = time.perf_counter()
            way()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, answers


def synchronize() -> None:
    """Waits for a GPU to have done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def same_share(one: Answers, other: Answers) -> float:
    """Share of the answers that are equal."""
    return float(np.mean([a == b for a, b in zip(one, other, strict=True)]))


def compare(folders: list[Path], options: dict[str, Any], batch: int, new_tokens: int, turns: int) -> dict[str, Any]:
    """One line of the table: (a), (b), (c) and (d) for some members and a batch."""
    plain = [merged(folder, options) for folder in folders]
    ensemble = EnsembleForCausalLM(load_members(folders, **options), [1.0] * len(folders))
    engine = Engine(ensemble, slots=batch)
    drafted = {draft: Engine(ensemble, slots=batch, speculation=Speculation(draft)) for draft in ("ngram", "member")}
    prompts = make_prompts(folders[0], batch)
    lengths = [new_tokens] * batch
    ways: dict[str, Callable[[], Answers]] = {
        "standard": lambda: standard(plain, prompts, new_tokens),
        "alone": lambda: standard(plain[:1], prompts, new_tokens),
        "engine": lambda: by_engine(engine, prompts, lengths),
        **{f"engine_{draft}": lambda e=e: by_engine(e, prompts, lengths) for draft, e in drafted.items()},
    }
    seconds, answers = in_turns(ways, turns)
    speed = {name: batch * new_tokens / value for name, value in seconds.items()}
    return {
        "members": len(folders),
        "batch": batch,
        "runs_as": next(iter(engine.kinds.values())),
        "tokens_per_second": {name: round(value, 2) for name, value in speed.items()},
        "engine_over_standard": round(speed["engine"] / speed["standard"], 3),
        "engine_over_alone": round(speed["engine"] / speed["alone"], 3),
        **{f"{name}_over_standard": round(speed[name] / speed["standard"], 3) for name in ways if "_" in name},
        "acceptance": {name: e.counters.acceptance for name, e in drafted.items()},
        "still_speculating": {name: e.speculating for name, e in drafted.items()},
        "same_answers": {name: same_share(answers["standard"], answers[name]) for name in ways if "engine" in name},
    }


def mixed_lengths(folders: list[Path], options: dict[str, Any], slots: int, turns: int) -> dict[str, Any]:
    """64 prompts with 8 to 128 new tokens each: slots that are refilled against batches that wait for their longest."""
    ensemble = EnsembleForCausalLM(load_members(folders, **options), [1.0] * len(folders))
    engine = Engine(ensemble, slots=slots)
    prompts = make_prompts(folders[0], 64)
    lengths = np.random.default_rng(0).integers(8, 129, size=64).tolist()

    def batches(padded: bool) -> Answers:
        results: Answers = []
        for start in range(0, len(prompts), slots):
            part = lengths[start : start + slots]
            asked = [max(part)] * len(part) if padded else part
            answers = by_engine(engine, prompts[start : start + slots], asked)
            results += [answer[:n] for answer, n in zip(answers, part, strict=True)]
        return results

    ways: dict[str, Callable[[], Answers]] = {
        "waiting": lambda: batches(padded=True),
        "leaving": lambda: batches(padded=False),
        "first_come": lambda: one_by_one(engine, prompts, lengths),
        "continuous": lambda: by_engine(engine, prompts, lengths),
    }
    seconds, answers = in_turns(ways, turns)
    return {
        "members": len(folders),
        "slots": slots,
        "prompts": 64,
        "new_tokens": [8, 128],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "continuous_over_waiting": round(seconds["waiting"] / seconds["continuous"], 3),
        "first_come_over_waiting": round(seconds["waiting"] / seconds["first_come"], 3),
        "continuous_over_leaving": round(seconds["leaving"] / seconds["continuous"], 3),
        "same_answers": {name: same_share(answers["waiting"], answers[name]) for name in ways},
    }


def tiny_families(root: Path) -> list[Path]:
    """Folders of two tiny models with different tokenizers."""
    folders = [root / "tiny-40", root / "tiny-80"]
    for seed, (folder, vocabulary) in enumerate(zip(folders, (40, 80), strict=True)):
        tokenizer = tiny.train_tokenizer([TEXT] * 9, vocabulary)
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, folder)
    return folders


def mixed_tokenizers(folders: list[Path], options: dict[str, Any], new_bytes: int, turns: int) -> dict[str, Any]:
    """A mixture over bytes against what an equal ensemble with one tokenizer costs: for each model, the engine's time
    for as many tokens as its own tokenizer makes of the same answer.
    """
    voices = [
        VoiceModel(EnsembleForCausalLM([model], [1.0], names=[folder.name]), loading.load_tokenizer(folder), 1.0)
        for folder in folders
        for model in [loading.load_causal_lm(folder, **options)]
    ]
    prompts = [TEXT, TEXT.rsplit(". ", 1)[0]]
    mixture = ByteMixture.of_models(voices, texts=1)
    engines = [Engine(voice.model, slots=1) for voice in voices]
    answers = mixture.generate(prompts, max_new_bytes=new_bytes)
    read = [[list(voice.tokenizer(prompt).input_ids) for prompt in prompts] for voice in voices]
    lengths = [
        [max(1, len(voice.tokenizer(answer.text, add_special_tokens=False).input_ids)) for answer in answers]
        for voice in voices
    ]
    ways: dict[str, Callable[[], Answers]] = {
        "bytes": lambda: [list(a.text.encode()) for a in mixture.generate(prompts, max_new_bytes=new_bytes)],
        "tokens": lambda: [
            ids
            for engine, own, counts in zip(engines, read, lengths, strict=True)
            for prompt, count in zip(own, counts, strict=True)
            for ids in by_engine(engine, [prompt], [count])
        ],
    }
    seconds, _ = in_turns(ways, turns)
    size = max(1, sum(len(answer.text.encode()) for answer in answers))
    return {
        "models": [folder.name for folder in folders],
        "epsilon": mixture.epsilon,
        "bytes": size,
        "passes_per_byte": [round(float(n) / size, 3) for n in sum(answer.passes for answer in answers)],
        "tokens_per_byte": [round(sum(counts) / size, 3) for counts in lengths],
        "dropped_per_byte": [float(f"{n / size:.2g}") for n in sum(answer.dropped for answer in answers)],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "bytes_over_tokens": round(seconds["bytes"] / seconds["tokens"], 3),
    }


def merged(folder: Path, options: dict[str, Any]) -> torch.nn.Module:
    """A member as one plain model, adapters added into its weights: the fastest that the standard way can be."""
    model = loading.load_trained(folder, **options)
    return (model.merge_and_unload() if hasattr(model, "merge_and_unload") else model).eval()


def make_prompts(folder: Path, count: int) -> Answers:
    """Prompts of several lengths."""
    tokens = loading.load_tokenizer(folder)(TEXT)["input_ids"]
    generator = np.random.default_rng(0)
    return [tokens[: int(n)] for n in generator.integers(len(tokens) // 2, len(tokens) + 1, size=count)]


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if "model name" in line), None)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "gpu": gpu, "threads": threads, **versions}


def write(result: dict[str, Any], output: Path | None) -> None:
    """A result as JSON, to a file or to standard output."""
    text = json.dumps(result, indent=2) + "\n"
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")


def main(
    base: Annotated[Path | None, typer.Option(help="Folder of a causal LM; none: the tiny family.")] = None,
    kind: Annotated[str, typer.Option(help="Members: lora or full (full only of the tiny family).")] = "lora",
    members: Annotated[str, typer.Option(help="Numbers of members.")] = "4",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    new_tokens: Annotated[int, typer.Option(help="Tokens a prompt.")] = 32,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    mixed: Annotated[int, typer.Option(help="Slots of the mixed-length comparison; 0: leave it out.")] = 0,
    mixed_tokenizers_of: Annotated[
        str, typer.Option("--mixed-tokenizers", help="Folders of models, by commas, or `tiny`; none: leave it out.")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON; exit 1 if greedy answers differ in float32."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"dtype": getattr(torch, dtype), "device": device}
    with tempfile.TemporaryDirectory() as folder:
        most = max(map(int, members.split(",")))
        folders = make_members(Path(folder), base, kind, most)
        rows = [
            compare(folders[: int(count)], options, int(batch), new_tokens, turns)
            for count in members.split(",")
            for batch in batches.split(",")
            if batch != "0"
        ]
        lengths = mixed_lengths(folders, options, mixed, turns) if mixed else None
        families = [Path(name) for name in mixed_tokenizers_of.split(",") if name]
        if families == [Path("tiny")]:
            families = tiny_families(Path(folder))
        bytewise = mixed_tokenizers(families, options, new_tokens, turns) if families else None
    size = base.name if base else "tiny-weak"
    facts = {"base": size, "kind": kind, "dtype": dtype, "new_tokens": new_tokens, "turns": turns}
    write(
        {"machine": machine(threads), **facts, "rows": rows, "mixed_lengths": lengths, "mixed_tokenizers": bytewise},
        output,
    )
    parts = [row["same_answers"] for row in rows] + ([lengths["same_answers"]] if lengths else [])
    if dtype == "float32" and any(value < 1 for part in parts for value in part.values()):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
