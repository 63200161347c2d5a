"""Pseudo-labels: prompts in, what a label maker answers out, as parquet parts with the labels contract.

Every chunk of prompts becomes one part, written by the actor that decoded it and put in place atomically. A part that
is there is not decoded again, so a killed run loses no more than the chunks it was at.
"""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.data.tokens import tokenize_examples
from ensemw2s.ensemble.decoding import decode, last_engine
from ensemw2s.ensemble.requests import Generation
from ensemw2s.ensemble.speculation import as_asked
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters
from ensemw2s.errors import ResourceError
from ensemw2s.labeling.stream import Chunk, chunks, read_chunk, stream

LABEL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprob", pa.float64()),
        ("agreement", pa.float64()),
        ("n_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("token_agreement", pa.list_(pa.float32())),
    ]
)
SOFT_FIELDS = [("top_tokens", pa.list_(pa.list_(pa.int32()))), ("top_logprobs", pa.list_(pa.list_(pa.float32())))]


@dataclass(frozen=True)
class LabelJob:
    """Prompts to label, by whom, and the folder of the parts."""

    voter: Voter
    prompts: Path
    output: Path


class Labeler:
    """Decodes chunks of prompts and writes their parts (a worker for `labeling.stream`)."""

    def __init__(self, jobs: list[dict[str, Any]], data: dict[str, Any], labeling: dict[str, Any]) -> None:
        self._voters = {job["output"]: Voter.model_validate(job["voter"]) for job in jobs}
        self._data = DataConfig.model_validate(data)
        self._labeling = LabelingConfig.model_validate(labeling)
        self._loaded: dict[str, Loaded] = {}

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """Labels a chunk. Returns rows, tokens, tokens proposed by drafts and accepted, how members ran, seconds."""
        began = time.monotonic()
        output = str(chunk["output"])
        if output not in self._loaded:
            self._loaded = {}  # one at a time: memory is for one ensemble, and engines refer to theirs in a circle
            gc.collect()
            self._loaded[output] = load_voters([self._voters[output]], precision=self._labeling.precision)[0]
        prompts = read_chunk(chunk).select(["id", "prompt"])
        loaded = self._loaded[output]
        before = _drafted(loaded)
        table = label(prompts, loaded, self._data, self._labeling)
        write_part(table, Path(output) / part_name(chunk))
        tokens = sum(table["n_tokens"].to_pylist())
        proposed, accepted = (now - then for now, then in zip(_drafted(loaded), before, strict=True))
        engine = last_engine(loaded.model)
        return {
            "rows": len(table),
            "tokens": tokens,
            "proposed": proposed,
            "accepted": accepted,
            "kinds": sorted(set(engine.kinds.values())) if engine else [],
            "seconds": time.monotonic() - began,
        }


def _drafted(loaded: Loaded) -> tuple[int, int]:
    """Tokens that drafts have proposed so far, and how many of them were accepted."""
    engine = last_engine(loaded.model)
    return (engine.counters.proposed, engine.counters.accepted) if engine else (0, 0)


def label(prompts: pa.Table, loaded: Loaded, data: DataConfig, labeling: LabelingConfig) -> pa.Table:
    """Answers prompts greedily.

    Args:
        prompts: Table with `id` and `prompt`.
        loaded: Who answers.
        data: How a prompt is rendered.
        labeling: Batch size, longest answer, whether distributions are kept.

    Returns:
        A table with the labels contract, in the order of the prompts.
    """
    unanswered = prompts.append_column("answer", pa.nulls(len(prompts), pa.string()))
    tokens = tokenize_examples(unanswered, loaded.tokenizer, data)
    generations = decode(
        loaded.model,
        tokens["prompt_ids"].to_pylist(),
        max_new_tokens=labeling.max_new_tokens,
        eos_ids=loaded.eos_id,
        batch_size=labeling.batch_size,
        distributions=labeling.soft_top_k,
        speculation=as_asked(labeling),
    )
    schema = LABEL_SCHEMA
    if labeling.soft_top_k:
        schema = pa.schema([*schema, *SOFT_FIELDS])
    names = zip(prompts["id"].to_pylist(), prompts["prompt"].to_pylist(), generations, strict=True)
    return pa.Table.from_pylist([_row(*row, loaded) for row in names], schema=schema)


def _row(identity: str, prompt: str, generation: Generation, loaded: Loaded) -> dict[str, Any]:
    row = {
        "id": identity,
        "prompt": prompt,
        "answer": answer_text(generation, loaded),
        "token_ids": generation.token_ids,
        "logprob": float(generation.logprobs.sum(dtype="float64")),
        "agreement": float(generation.agreement.mean(dtype="float64")),
        "n_tokens": len(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "token_agreement": generation.agreement,
    }
    if generation.top_tokens is not None and generation.top_logprobs is not None:
        row |= {"top_tokens": generation.top_tokens.tolist(), "top_logprobs": generation.top_logprobs.tolist()}
    return row


def answer_text(generation: Generation, loaded: Loaded) -> str:
    """The decoded text without the end token and surrounding white space."""
    return str(loaded.tokenizer.decode(generation.token_ids, skip_special_tokens=True)).strip()


def part_name(chunk: Chunk) -> str:
    """File name of a chunk's part; names sort in the order of the prompts."""
    return f"part-{int(chunk['start']):010d}.parquet"


def write_part(table: pa.Table, path: Path) -> None:
    """Writes a part atomically. Raises `ResourceError` when the disk is full."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(
            f"{path} cannot be written ({error.strerror or error}); what is labelled is kept"
        ) from error


def label_all(
    jobs: list[LabelJob],
    *,
    data: DataConfig,
    labeling: LabelingConfig,
    actors: int,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Labels all prompts of all jobs that have no part yet, on one pool of actors.

    Args:
        jobs: What to label.
        data: How prompts are rendered.
        labeling: Pool and decoding.
        actors: Largest size of the pool.
        on_progress: Called with prompts done, prompts in all, and a note.
    """
    work = list(_pending(jobs, labeling.chunk_size))
    total = sum(chunk["stop"] - chunk["start"] for chunk in work)
    arguments = {
        "jobs": [{"output": str(job.output.resolve()), "voter": job.voter.model_dump()} for job in jobs],
        "data": data.model_dump(mode="json"),
        "labeling": labeling.model_dump(mode="json"),
    }
    sums, began = {"rows": 0, "tokens": 0, "proposed": 0, "accepted": 0}, time.monotonic()
    for row in stream(work, Labeler, arguments, labeling=labeling, actors=actors):
        sums = {key: value + row[key] for key, value in sums.items()}
        note = f"{sums['tokens'] / (time.monotonic() - began):.0f} tokens/s"
        if sums["proposed"]:
            note += f", {sums['accepted'] / sums['proposed']:.0%} of drafts accepted"
        if row["kinds"]:
            note += f" ({'; '.join(row['kinds'])})"
        if on_progress is not None:
            on_progress(sums["rows"], total, note)


def _pending(jobs: list[LabelJob], size: int) -> Iterator[Chunk]:
    for job in jobs:
        output = job.output.resolve()
        for chunk in chunks(job.prompts.resolve(), size, output=str(output)):
            if not (output / part_name(chunk)).exists():
                yield chunk


def read_labels(folder: Path) -> pa.Table:
    """All parts of a labels folder, in the order of the prompts."""
    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))])
