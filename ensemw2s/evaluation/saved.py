"""`ensemw2s evaluate`: any saved model and a labelled file go in, the figures of results.json come out.

A run evaluates its own systems on its own splits (`steps.evaluate`); this is for other data, and for models that have
left their run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.cluster.connect import cluster_address, connect, is_job
from ensemw2s.cluster.pool import Pool
from ensemw2s.config import AnswerMatch, ClusterConfig
from ensemw2s.data.answers import answer_key
from ensemw2s.data.columns import render_row
from ensemw2s.data.limits import RowReader, too_long
from ensemw2s.data.readers import make_reader
from ensemw2s.ensemble.manifest import MANIFEST, TOKENIZER, read_manifest
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import ConfigError, DataError
from ensemw2s.evaluation import metrics
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.evaluate import evaluate_all
from ensemw2s.evaluation.outcomes import options_right
from ensemw2s.evaluation.records import Metrics
from ensemw2s.evaluation.voters import EvaluationWork, VoterGroup
from ensemw2s.evaluation.warnings import CUT
from ensemw2s.evaluation.wording import NOTHING, percent, percent_range, plain
from ensemw2s.labeling.inputs import Settings, check_resources, pool_size, refuse_run
from ensemw2s.labeling.intake import check_input, identity, write_examples
from ensemw2s.models.info import ADAPTER_CONFIG, model_info
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.progress import Progress
from ensemw2s.storage import remote
from ensemw2s.storage.record import Record, only_where_known

SAMPLES = 2000


@dataclass(frozen=True)
class EvaluateWork:
    """What `ensemw2s evaluate` was asked for.

    Attributes:
        model: Folder of an ensemble artifact, a model or adapters, or a hub id.
        settings: Input, rendering and decoding.
        cluster: Which Ray.
        shared: Folder that all nodes of a cluster see, for the converted input meanwhile; default: the current folder.
        seed: Seed of the bootstrap resamples.
    """

    model: str
    settings: Settings
    cluster: ClusterConfig
    shared: Path | None = None
    seed: int = 0


class SavedModelResult(Record):
    """What `ensemw2s evaluate --json` writes.

    Attributes:
        model: The model, as it was named.
        input: What identifies the input: its files with their hashes, or the data set with its revision.
        settings: The settings of rendering and decoding under their config keys.
        metrics: How the model did.
        cut: Share of the answers that ended at the longest length; None where that was not counted.
    """

    model: str
    input: object
    settings: dict[str, object]
    metrics: Metrics
    cut: float | None = only_where_known()


def prepare(work: EvaluateWork) -> Voter:
    """Checks everything that can be checked without Ray, and says who answers.

    Raises:
        ArtifactError: If an ensemble is damaged.
        ConfigError: If the model is a whole run, or if this is a Ray job and no folder is known that nodes share.
        DataError: If the input cannot be used.
        ModelError: If a model cannot be loaded.
        ResourceError: If no actor could ever run.
    """
    if is_job() and work.shared is None:
        raise ConfigError(
            "a Ray job needs --json, in a folder that all nodes see or in object storage: its input lies there"
        )
    folder = remote.pull(remote.local(work.model))
    check_input(work.settings.source, labelled=True)
    answer_key(work.settings.data.answer_match)
    check_resources(work.cluster, work.settings.labeling)
    if (folder / MANIFEST).exists():
        read_manifest(folder)
        _check_rows(work, RowReader("the ensemble", load_tokenizer(folder / TOKENIZER), None))
        return Voter(name="model", ensemble=str(folder.resolve()))
    refuse_run("--model", folder)
    tokenizer = load_tokenizer(work.model)
    if (folder / ADAPTER_CONFIG).exists():
        from ensemw2s.models.adapters import base_info  # costs seconds to import, with torch

        info = base_info(folder)
    else:
        info = model_info(work.model)
    _check_rows(work, RowReader("the model", tokenizer, info.context))
    return Voter(name="model", models=[str(folder.resolve()) if folder.is_dir() else work.model], weights=[1.0])


def _check_rows(work: EvaluateWork, reader: RowReader) -> None:
    """Raises `DataError` with the first row that the model cannot read, and the option that would let it."""
    source, data = work.settings.source, work.settings.data
    for origin, row in make_reader(source).rows("easy", 0):
        example = render_row(source.columns, row, origin=origin)
        if wrong := too_long(example, [reader], data, ("--max-prompt-tokens", "--max-answer-tokens")):
            raise DataError(f"{origin}: {wrong}")


def evaluate(work: EvaluateWork, voter: Voter, progress: Progress, *, debug: bool = False) -> SavedModelResult:
    """Decodes and scores every example, on Ray.

    Raises:
        EnsemW2SError: Whatever stops it.
    """
    settings = work.settings
    with scratch_folder(work) as scratch:
        path = scratch / "examples.parquet"
        write_examples(settings.source, path, group=settings.labeling.chunk_size)
        remote.push(path)
        with connect(work.cluster, debug=debug) as resources, progress:
            columns = evaluate_all(
                [EvaluationWork("input", path, VoterGroup(name="model", voters=(voter,)), decoded=True)],
                data=settings.data,
                labeling=settings.labeling,
                pool=Pool.of(settings.labeling, pool_size(resources, settings.labeling)),
                shown=0,
                on_progress=lambda done, total, note: progress.update("evaluation", done, total, note),
            )
        table = pq.read_table(path, columns=["answer", "choices"])
    truths, choices = table["answer"].to_pylist(), table["choices"].to_pylist()
    found = figures(columns["input"]["model"], truths, choices, work.seed, settings.data.answer_match)
    kept = ["prompt_template", "answer_prefix", "chat_template"]
    kept += ["answer_match"] if settings.data.answer_match != "exact" else []
    rendered = settings.data.model_dump(mode="json")
    return SavedModelResult(
        model=work.model,
        input=identity(settings.source),
        settings={
            **{f"data.{key}": rendered[key] for key in kept},
            "labeling.max_new_tokens": settings.labeling.max_new_tokens,
        },
        metrics=found,
        cut=float(np.mean(columns["input"]["model"]["cut"])),
    )


@contextmanager
def scratch_folder(work: EvaluateWork) -> Iterator[Path]:
    """A folder for the converted input, which the nodes of a cluster find; gone afterwards."""
    if cluster_address(work.cluster) is None:
        with tempfile.TemporaryDirectory(prefix=".ensemw2s-") as name:
            yield Path(name)
        return
    folder = (work.shared or Path.cwd()) / f".ensemw2s-{os.urandom(6).hex()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remote.remove(folder)


def figures(
    rows: Rows, truths: list[str], choices: list[list[str] | None], seed: int, match: AnswerMatch = "exact"
) -> Metrics:
    """Figures of one voter. Pure.

    Args:
        rows: Per-example columns of `evaluation.evaluate`.
        truths: n true answers.
        choices: Options of each example, or None.
        seed: Seed of the bootstrap resamples.
        match: When two answers are the same one.
    """
    asked = np.array([among is not None for among in choices], bool)
    return metrics.metrics(
        metrics.exact_match(rows["answer"], truths, answer_key(match)),
        forced=rows["forced"],
        token_correct=rows["token_correct"],
        n_tokens=rows["n_tokens"],
        nll_sum=rows["nll"],
        options=options_right(rows, truths, asked),
        samples=SAMPLES,
        seed=seed,
    )


def print_figures(found: SavedModelResult, console: Console) -> None:
    """Prints what `evaluate` found as a small table."""
    m = found.metrics
    table = Table(title=Text(f"{found.model}, n = {m.n}"), title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    interval = f"95 % interval {percent_range(m.ci95)}"
    table.add_row("Exact match", percent(m.exact_match), interval, style="bold")
    table.add_row("Token accuracy", percent(m.token_accuracy), "teacher-forced, end token included")
    table.add_row("NLL", plain(m.nll, 3), "nats per token")
    if m.option_accuracy is not None:
        table.add_row("Option accuracy", percent(m.option_accuracy), "likeliest of the choices, end token included")
    for figure, how in (
        (m.option_acc, "by likelihood of the option alone (lm-eval's acc)"),
        (m.option_acc_token, "the same per token"),
        (m.option_acc_norm, "the same per byte (lm-eval's acc_norm)"),
    ):
        if figure is not None:
            table.add_row("", percent(figure), how)
    console.print(table)
    if found.cut is not None and found.cut > CUT:
        console.print(
            Text(f"Warning: {found.cut:.0%} of the answers were cut at --max-new-tokens and count as wrong: raise it")
        )
    if m.nll is None:
        console.print(f"NLL {NOTHING}: a true token got no probability at all", highlight=False)
