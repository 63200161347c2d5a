"""The model of time behind `ensemw2s plan --cluster`, held against the speeds in benchmarks/results.

    python benchmarks/costs.py

This machine's peak is measured (a float32 matrix product, and reading a matrix that no cache holds), the model of
`ensemw2s.costs` is given it with the assumptions of cluster/prices.yaml, and its tokens a second stand beside the
measured ones. Results of another kind of machine make no sense here. JSON goes to standard output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import machine, write
from transformers import LlamaConfig

from ensemw2s.config import Lora
from ensemw2s.costs.hardware import Processor, read_prices
from ensemw2s.costs.here import best
from ensemw2s.costs.memory import Members
from ensemw2s.costs.shapes import Shape, measure, tiny_shape
from ensemw2s.costs.throughput import decoding_rate, share_of, training_rate

HERE = Path(__file__).parent
CONTEXT = 48
"""Tokens that a slot of decode.py looks back at, about."""


def shape_named(base: str) -> Shape:
    """Sizes of the bases that results are of."""
    if base != "SmolLM2-135M":
        return tiny_shape(base, 128)
    return measure(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        )
    )  # fmt: skip


def peak(threads: int) -> Processor:
    """What this machine reaches with so many threads."""
    torch.set_num_threads(threads)
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    wide, row = torch.randn(4096, 16384), torch.randn(16384)
    flops, read = 2 * 1536**3 / best(lambda: a @ b, 9), wide.nbytes / best(lambda: wide @ row, 9)
    return Processor(memory_gib=1, fp32_tflops=flops / 1e12, gb_per_second=read / 1e9)


def main(output: Annotated[Path | None, typer.Option(help="File for the JSON, too.")] = None) -> None:
    """Compares."""
    assumed = read_prices(HERE.parent / "cluster" / "prices.yaml").assumptions
    peaks = {threads: peak(threads) for threads in (1, 2)}
    rows: list[dict[str, Any]] = []

    def add(what: str, measured: float, model: float) -> None:
        rows.append({"what": what, "measured": measured, "model": round(model, 1), "ratio": round(model / measured, 2)})

    for path in sorted((HERE / "results").glob("train-*.json")):
        result = json.loads(path.read_text())
        if "base" not in result:
            continue
        shape = shape_named(result["base"])
        adapters = shape.adapters(Lora(rank=result["lora"])) if result["lora"] else 0
        share = share_of(peaks[result["machine"]["threads"]], width=4, parts=1)
        model = training_rate(shape, adapters, share, assumed, checkpointing=False)
        [measured] = [row["tokens_per_second"] for row in result["rows"] if row["way"] == "zero_1"]
        add(f"training {result['base']}" + (", LoRA" if adapters else ""), measured, model)
    for path in sorted((HERE / "results").glob("decode-*.json")):
        result = json.loads(path.read_text())
        shape = shape_named("tiny-weak" if "tiny" in result["base"] else result["base"])
        share = share_of(peaks[result["machine"]["threads"]], width=4, parts=1)
        for row in result["rows"]:
            team = [Members(shape, row["members"], shared=True)]  # small full members take one pass, too
            model = decoding_rate(team, share, assumed, slots=row["batch"], context=CONTEXT)
            what = f"decoding {result['base']}, {row['members']} {result['kind']} members, batch {row['batch']}"
            add(what, row["tokens_per_second"]["engine"], model)
    facts = {str(n): {"tflops": p.fp32_tflops, "gb_per_second": p.gb_per_second} for n, p in peaks.items()}
    write({"machine": machine(2), "peak": facts, "assumptions": assumed.model_dump(), "rows": rows}, output)


if __name__ == "__main__":
    typer.run(main)
