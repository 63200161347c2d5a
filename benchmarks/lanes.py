"""What more workers, and more experts at the same time, change: equal trainings through Ray Train's lanes, in turns.

    python benchmarks/lanes.py                      # on the cores of this machine
    python benchmarks/lanes.py --cpus 8 --experts 8

Every way trains the same experts. Seconds are those until the last one is there, without the first training that
starts the lanes, and those that the start took. JSON goes to standard output.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import machine, write
from train import make_table, tiny_start

from ensemw2s.cluster.connect import connect
from ensemw2s.config import ClusterConfig, Recipe, TrainingConfig, Workers
from ensemw2s.models import loading
from ensemw2s.storage.store import Description
from ensemw2s.training.launch import Lanes
from ensemw2s.training.spec import TrainSpec


def measure(specs: list[TrainSpec], first: list[TrainSpec], training: TrainingConfig, root: Path) -> dict[str, float]:
    """Seconds of starting lanes up, of the trainings on them, and in the training loops."""
    assert training.lanes is not None
    with Lanes(training, training.lanes, root / "lanes", keep=True) as lanes:
        began = time.perf_counter()
        lanes.train(first)
        started = time.perf_counter()
        facts = lanes.train(specs)
        ended = time.perf_counter()
    inside = sum(f["seconds"] for f in facts.values()) / training.lanes
    return {"start": started - began, "trainings": ended - started, "in_the_training_loop": inside}


def main(
    experts: Annotated[int, typer.Option(help="Experts that every way trains.")] = 4,
    cpus: Annotated[int, typer.Option(help="CPUs of the Ray that is started.")] = 2,
    steps: Annotated[int, typer.Option(help="Optimizer steps of an expert.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens an example.")] = 32,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 2,
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ways = [(1, 1), (cpus, 1), (1, cpus)]
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {way: [] for way in ways}
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(ClusterConfig(cpus=cpus, object_store_mb=100)),
    ):
        root = Path(folder)
        start = tiny_start(root)
        vocabulary = len(loading.load_tokenizer(start.path))
        table = make_table(root / "table.parquet", batch_size * steps, tokens, vocabulary)
        short = make_table(root / "short.parquet", batch_size, tokens, vocabulary)

        def specs(name: str, data: Path, count: int) -> list[TrainSpec]:
            return [
                TrainSpec(
                    name=f"{name}-{i}",
                    output=str(root / f"{name}-{i}"),
                    fingerprint=Description(stage=f"{name}-{i}"),
                    start=start,
                    tokens=[str(data)],
                    recipe=Recipe(epochs=1, batch_size=batch_size, learning_rate=1e-4),
                    seed=i,
                )
                for i in range(count)
            ]

        for turn in range(turns):
            for lanes, workers in ways:
                name = f"{turn}-{lanes}-{workers}"
                training = TrainingConfig(workers=Workers(min=workers, max=workers), lanes=lanes, cpus_per_worker=1)
                first = specs(f"first-{name}", short, lanes)
                seconds[lanes, workers].append(measure(specs(name, table, experts), first, training, root))
    medians = {
        way: {part: statistics.median(turn[part] for turn in found) for part in found[0]}
        for way, found in seconds.items()
    }
    alone = medians[1, 1]["trainings"]
    rows: list[dict[str, Any]] = [
        {
            "experts_at_a_time": lanes,
            "workers_each": workers,
            "seconds": {part: round(value, 2) for part, value in found.items()},
            "tokens_per_second": round(experts * steps * batch_size * tokens / found["trainings"], 1),
            "over_one": round(alone / found["trainings"], 3),
        }
        for (lanes, workers), found in medians.items()
    ]
    facts = {"base": "tiny-weak", "experts": experts, "steps": steps, "batch_size": batch_size, "tokens": tokens}
    write({"machine": machine(1), "cpus": cpus, **facts, "turns": turns, "rows": rows}, output)


if __name__ == "__main__":
    typer.run(main)
