"""How much of the hardware a training gets: the product's loop against a bare PyTorch loop, in one process, in turns.

    python benchmarks/train.py                          # the embedded tiny family
    python benchmarks/train.py --base DIR --lora 8      # a causal LM in a folder, with LoRA
    python benchmarks/train.py --base DIR --lora 8 --batch-size 8 --tokens 128 --answer 8 --steps 4   # which logits
    python benchmarks/train.py --run runs/quickstart    # where the seconds of a finished run's rounds went

Steps are timed one by one and the first ones left out, so that figures are of the steady state; ratios are of medians
over the turns. JSON goes to standard output.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from decode import machine, synchronize, write

from ensemw2s.config import Lora, Recipe
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.models import head, loading, tiny
from ensemw2s.storage import store
from ensemw2s.storage.store import Description
from ensemw2s.training import loop, setup
from ensemw2s.training.batches import Layout, step_batches
from ensemw2s.training.spec import Start, Tracking, TrainSpec

WARM = 5
"""Steps before the steady state."""


def make_table(path: Path, examples: int, tokens: int, vocabulary: int, answer: int | None = None) -> Path:
    """Random examples; what they say does not matter to the time they take. Half of their tokens are answers."""
    prompt = tokens - answer if answer else tokens // 2
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": str(i),
            "prompt_ids": rng.integers(3, vocabulary, prompt).tolist(),
            "answer_ids": rng.integers(3, vocabulary, tokens - prompt).tolist(),
        }
        for i in range(examples)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA), path)
    return path


def bare(spec: TrainSpec, device: torch.device) -> list[float]:
    """Seconds of each step of the loop that one would write by hand: no engine, no checks, no progress."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    model, tokenizer, _ = setup.build(spec.start, device, seed=spec.seed)
    model.train()
    if setup.use_bf16(spec.precision, device):
        model.to(torch.bfloat16)
    recipe = spec.recipe
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    data = setup.training_set(spec)
    layout = Layout.of(batch_size=recipe.batch_size, micro_batch_size=recipe.micro_batch_size, world=1, rank=0)
    seconds, began = [], time.perf_counter()
    for micro_batches in step_batches(data, layout, pad_id=int(tokenizer.pad_token_id or 0), seed=spec.seed, epoch=0):
        for micro in micro_batches:
            batch = {key: value.to(device) for key, value in micro.items()}
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            each = F.cross_entropy(
                logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="none"
            )
            (each * batch["weights"].flatten()).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
    return seconds


def product(spec: TrainSpec, device: torch.device) -> list[float]:
    """Seconds of each step of `ensemw2s.training.loop`."""
    marks: list[float] = []

    def on_step(_: str, done: int, total: int, loss: torch.Tensor) -> None:
        synchronize()
        marks.append(time.perf_counter())

    loop.train(spec, device=device, on_step=on_step)
    return np.diff(marks).tolist()


def compare(
    make: Callable[..., TrainSpec], device: torch.device, turns: int, tokens: int, stages: list[int]
) -> list[dict[str, Any]]:
    """Tokens a second of the bare loop, and of the product with some ZeRO stages and with a point of curves a step."""
    ways: dict[str, Callable[[int], list[float]]] = {
        "bare": lambda turn: bare(make(f"bare-{turn}"), device),
        **{
            f"zero_{stage}": lambda turn, stage=stage: product(make(f"zero-{stage}-{turn}", zero_stage=stage), device)
            for stage in stages
        },
        "zero_1_with_curves": lambda turn: product(
            make(f"curves-{turn}", tracking=Tracking(place=make("curves").output, every=1)), device
        ),
    }
    medians: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, way in ways.items():
            medians[name].append(statistics.median(way(turn)[WARM:]))
    seconds = {name: statistics.median(values) for name, values in medians.items()}
    return [
        {
            "way": name,
            "seconds_a_step": round(value, 5),
            "tokens_per_second": round(tokens / value, 1),
            "over_bare": round(seconds["bare"] / value, 3),
        }
        for name, value in seconds.items()
    ]


def answers_alone(spec: TrainSpec, whole: bool) -> tuple[list[float], int]:
    """Seconds of each step but the first, and the most bytes that the process had in memory.

    Args:
        spec: What to train.
        whole: Logits of all tokens at once, in place of those of answers, part by part.
    """
    if whole:
        head.SMALL = head.AT_ONCE = 2**62
    seconds = product(spec, torch.device("cpu"))
    status = Path("/proc/self/status").read_text()
    return seconds, 1024 * int(status.split("VmHWM:")[1].split()[0])


def against_all_tokens(make: Callable[..., TrainSpec], turns: int, tokens: int) -> list[dict[str, Any]]:
    """Logits of answers against those of all tokens, every turn in a process of its own."""
    found: dict[str, list[tuple[list[float], int]]] = {"all tokens": [], "answers": []}
    for turn in range(turns):
        for name, measured in found.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                spec = make(f"{name}-{turn}", zero_stage=0)
                measured.append(process.submit(answers_alone, spec, name == "all tokens").result())
    rows = []
    for name, measured in found.items():
        steps = [statistics.median(seconds) for seconds, _ in measured if seconds]
        row: dict[str, Any] = {"logits_of": name, "peak_bytes": int(statistics.median(peak for _, peak in measured))}
        if steps:
            row["tokens_per_second"] = round(tokens / statistics.median(steps), 1)
        rows.append(row)
    return rows


def rounds(run: Path) -> list[dict[str, Any]]:
    """Where the seconds of each boosting round went, from what a run left."""
    rows = []
    for path in sorted(run.glob("rounds/*/round.json"), key=lambda p: int(p.parent.name)):
        facts = store.read_json(path)
        whole = facts["finished"] - facts["started"]
        inside = max(expert["seconds"] for expert in facts["experts"])
        parts = facts["seconds"]
        rows.append(
            {
                "round": facts["round"],
                "seconds": round(whole, 2),
                "in_the_training_loop": round(inside, 2),
                "starting_and_waiting_for_lanes": round(parts["training"] - inside, 2),
                "scoring": round(parts["scoring"], 2),
                "weights_votes_writing": round(whole - parts["training"] - parts["scoring"], 2),
                "scoring_share": round(parts["scoring"] / whole, 3),
            }
        )
    return rows


def main(
    base: Annotated[Path | None, typer.Option(help="Folder of a causal LM; none: tiny-weak.")] = None,
    lora: Annotated[int, typer.Option(help="LoRA rank; 0: all weights.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens an example.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps a turn.")] = 40,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 3,
    stages: Annotated[str, typer.Option(help="ZeRO stages.")] = "0,1,2,3",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    answer: Annotated[
        int | None, typer.Option(help="Tokens of an answer; only compares logits of answers with those of all tokens.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option(help="Activations are computed a second time.")] = False,
    run: Annotated[Path | None, typer.Option(help="Only look at the rounds of this run.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON."""
    if run is not None:
        facts: dict[str, Any] = {"run": run.name, "rounds": rounds(run)}
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            start = Start(path=str(base), lora=Lora(rank=lora) if lora else None) if base else tiny_start(root)
            vocabulary = len(loading.load_tokenizer(start.path))
            table = make_table(root / "table.parquet", batch_size * steps, tokens, vocabulary, answer)

            def make(name: str, **fields: Any) -> TrainSpec:
                return TrainSpec(
                    name=name,
                    output=str(root / name),
                    fingerprint=Description(stage=name),
                    start=start,
                    tokens=[str(table)],
                    recipe=Recipe(epochs=1, batch_size=batch_size, learning_rate=1e-4),
                    threads=threads,
                    checkpoint_seconds=300,
                    gradient_checkpointing=checkpointing,
                    **fields,
                )

            if answer:
                rows = against_all_tokens(make, turns, batch_size * tokens)
            else:
                rows = compare(make, device, turns, batch_size * tokens, [int(stage) for stage in stages.split(",")])
        size = base.name if base else "tiny-weak"
        facts = {"base": size, "lora": lora, "batch_size": batch_size, "tokens": tokens, "turns": turns, "rows": rows}
        if answer:
            facts |= {"answer": answer, "gradient_checkpointing": checkpointing}
    write({"machine": machine(threads), **facts}, output)


def tiny_start(root: Path) -> Start:
    """A fresh model of the embedded family."""
    tokenizer = tiny.train_tokenizer(["sort these numbers in ascending order 0 1 2 3 4 5 6 7 8 9"] * 9, 128)
    tokenizer.save_pretrained(root / "tokenizer")
    return Start(path=str(root / "tokenizer"), tiny="tiny-weak")


if __name__ == "__main__":
    typer.run(main)
