"""Whether the endpoint became slower than that of another version.

    python benchmarks/serve_against.py COMMIT       # or a folder with another checkout
    python benchmarks/serve_against.py COMMIT --streams 4,16 --turns 5

Both versions serve the same ensemble, each with one replica, and are up at the same time. The same clients ask one and
the other in turns, with the version that begins taken by turns, too. JSON goes to standard output: the median of the
rates of each, and the median of the ratios within a turn.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import machine, save_random_ensemble, write
from serve import endpoint, lengths_of, load, percentiles, rate

ROOT = Path(__file__).parent.parent
WAYS = ("other", "here")


def checkout(which: str, folder: Path) -> tuple[Path, str]:
    """Folder of the other version, and what it is called. A commit's package is written below `folder`."""
    if (Path(which) / "ensemw2s").is_dir():
        return Path(which).resolve(), which
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", f"{which}^{{commit}}"], capture_output=True, text=True, check=True
    )
    packed = subprocess.run([*git, "archive", which, "ensemw2s"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder, commit.stdout.strip()


def compare(urls: dict[str, str], streams: int, lengths: list[int], turns: int) -> dict[str, Any]:
    """One line of the table, after a turn that is not measured."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way in WAYS if turn % 2 else reversed(WAYS):
            found = asyncio.run(load(urls[way], streams, lengths))
            if turn:
                rates[way].append(rate(found))
                first[way] += [row["arrivals"][0] - row["sent"] for row in found]
    ratios = [here / other for other, here in zip(rates["other"], rates["here"], strict=True)]
    return {
        "streams": streams,
        "tokens_per_second": {way: round(statistics.median(found), 1) for way, found in rates.items()},
        "here_over_other": round(statistics.median(ratios), 3),
        "here_over_other_by_turn": [round(ratio, 3) for ratio in ratios],
        "time_to_first_token_ms": {way: percentiles(found) for way, found in first.items()},
    }


def main(
    other: Annotated[str, typer.Argument(help="A commit, or a folder with another checkout.")],
    members: Annotated[int, typer.Option(help="Members.")] = 4,
    streams: Annotated[str, typer.Option(help="Streams at a time.")] = "1,4,16",
    slots: Annotated[int, typer.Option(help="Slots of the engine.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of a replica.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="Requests of a client, one after another.")] = 4,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 5,
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ensemble = save_random_ensemble(folder, None, members)
        code, called = checkout(other, folder / "other")
        sizes = (slots, threads, 2 * new_tokens)
        with endpoint(ensemble, *sizes, code=code) as there, endpoint(ensemble, *sizes, code=ROOT) as here:
            urls = {"other": there, "here": here}
            rows = [
                compare(urls, number, lengths_of(max(4, number) * rounds, new_tokens), turns)
                for number in map(int, streams.split(","))
            ]
    write({"machine": machine(threads), "other": called, "members": members, "turns": turns, "rows": rows}, output)


if __name__ == "__main__":
    typer.run(main)
