"""What the stream of labels costs beside the bare engine, and whether it stays flat: actors, memory, resuming.

    python benchmarks/label.py                                            # random members of the tiny family
    python benchmarks/label.py --ensemble runs/quickstart/ensemble --input prompts.jsonl

Rates are of decoding alone: from the first chunk that an actor begins to the last one that ends, so that neither the
start of Ray nor that of the actors counts; medians over turns. Memory is the sum of the proportional shares (PSS) of
`ensemw2s label` and all its processes, sampled four times a second. JSON goes to standard output.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow.parquet as pq
import torch
import typer
from decode import TEXT, machine, save_random_ensemble, write

from ensemw2s.cluster.connect import connect
from ensemw2s.cluster.pool import Pool
from ensemw2s.config import ClusterConfig, DataConfig, FilesSource, LabelingConfig, SplitConfig
from ensemw2s.ensemble.voter import Voter, load_voters
from ensemw2s.labeling.chunks import LabelJob
from ensemw2s.labeling.intake import write_examples
from ensemw2s.labeling.labeler import Maker
from ensemw2s.labeling.labels import LabelWorker


def random_prompts(path: Path, count: int) -> Path:
    """Prompts of several lengths, all different."""
    numbers, words = random.Random(0), TEXT.split()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = [str(numbers.randrange(100)) for _ in range(numbers.randint(2, 12))]
            file.write(json.dumps({"prompt": " ".join(words[:4] + text)}) + "\n")
    return path


def bare(voter: Voter, prompts: Path, data: DataConfig, labeling: LabelingConfig) -> float:
    """Tokens a second of the engine with all prompts at once and nothing around it."""
    torch.set_num_threads(int(labeling.cpus_per_actor))
    [loaded] = load_voters([voter], precision=labeling.precision)
    maker = Maker.of(loaded, labeling)
    table = pq.read_table(prompts, columns=["id", "prompt"])
    maker.label(table.slice(0, labeling.batch_size), data, labeling)
    began = time.perf_counter()
    labels, _ = maker.label(table, data, labeling)
    return sum(labels["n_tokens"].to_pylist()) / (time.perf_counter() - began)


def streamed(
    voter: Voter, prompts: Path, data: DataConfig, labeling: LabelingConfig, actors: int, output: Path
) -> float:
    """Tokens a second of the stream."""
    output.mkdir(parents=True)
    job = LabelJob(voter, prompts, output)
    worker, pool = LabelWorker((job,), data, labeling), Pool.of(labeling, actors)
    found = list(pool.stream(job.chunks(labeling.chunk_size), worker, calls=labeling.chunks_per_actor))
    seconds = max(chunk.ended for chunk in found) - min(chunk.began for chunk in found)
    return sum(chunk.tokens for chunk in found) / seconds


def command(ensemble: Path, prompts: Path, output: Path, labeling: LabelingConfig) -> tuple[float, float]:
    """Seconds that `ensemw2s label` takes, and the peak memory of all its processes in GiB."""
    program = Path(sys.executable).with_name("ensemw2s")
    arguments = [program, "label", "--ensemble", ensemble, "--input", prompts]
    arguments += ["--output", output, "--max-new-tokens", labeling.max_new_tokens, "--batch-size", labeling.batch_size]
    began, peak = time.perf_counter(), 0
    process = psutil.Popen([str(a) for a in arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(memory, [process, *process.children(recursive=True)])))
        time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"ensemw2s label ended with {process.returncode}")
    return time.perf_counter() - began, peak / 2**30


def memory(process: psutil.Process) -> int:
    """Bytes of a process, what it shares divided among those who share it; 0 if it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def main(
    ensemble: Annotated[Path | None, typer.Option(help="Folder of an ensemble; none: random tiny members.")] = None,
    input_: Annotated[Path | None, typer.Option("--input", help="jsonl with prompts; none: random ones.")] = None,
    members: Annotated[int, typer.Option(help="Random members.")] = 4,
    prompts: Annotated[int, typer.Option(help="Prompts of the rates.")] = 8000,
    small: Annotated[int, typer.Option(help="Prompts of the first measurement of memory.")] = 2000,
    large: Annotated[int, typer.Option(help="Prompts of the second one.")] = 20_000,
    actors: Annotated[int, typer.Option(help="Actors that are compared with one.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 24,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 3,
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    labeling = LabelingConfig(batch_size=batch_size, max_new_tokens=new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ensemble = (ensemble or save_random_ensemble(root, None, members)).resolve()
        source = FilesSource(paths=[str(input_ or random_prompts(root / "prompts.jsonl", prompts))])
        data = DataConfig(source=source, split=SplitConfig(mode="random"))
        table = root / "prompts.parquet"
        count = write_examples(source, table, group=labeling.chunk_size, rejected=root / "rejected.parquet")
        voter = Voter(name="ensemble", ensemble=str(ensemble))
        rates: dict[str, list[float]] = {"engine": [], "1": [], str(actors): []}
        with connect(ClusterConfig(cpus=actors, object_store_mb=100)):
            for turn in range(turns):
                rates["engine"].append(bare(voter, table, data, labeling))
                for number in (1, actors):
                    rates[str(number)].append(
                        streamed(voter, table, data, labeling, number, root / f"labels-{turn}-{number}")
                    )
        over = {
            "stream_over_engine": [b / a for a, b in zip(rates["engine"], rates["1"], strict=True)],
            "actors_over_one": [b / a for a, b in zip(rates["1"], rates[str(actors)], strict=True)],
        }
        medians = {way: statistics.median(found) for way, found in rates.items()}
        flat: list[dict[str, Any]] = []
        for number in (small, large):
            rows = random_prompts(root / f"{number}.jsonl", number)
            seconds, peak = command(ensemble, rows, root / f"labels-{number}", labeling)
            again, _ = command(ensemble, rows, root / f"labels-{number}", labeling)
            flat.append({"prompts": number, "seconds": seconds, "peak_gib": peak, "seconds_when_finished": again})
    result = {
        "machine": machine(1),
        "prompts": count,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "turns": turns,
        "tokens_per_second": {way: round(rate, 1) for way, rate in medians.items()},
        "actors": actors,
        **{name: round(statistics.median(found), 3) for name, found in over.items()},
        "memory": [{key: round(value, 3) for key, value in row.items()} for row in flat],
        "memory_growth": round(flat[1]["peak_gib"] / flat[0]["peak_gib"] - 1, 3),
    }
    write(result, output)


if __name__ == "__main__":
    typer.run(main)
