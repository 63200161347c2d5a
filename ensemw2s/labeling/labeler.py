"""The actor that makes pseudo-labels: descriptions of chunks of prompts come in, parts of labels lie on the disk.

Prompts of several chunks are decoded at the same time by one engine. What cannot be labelled is put aside with the
reason, and touches nothing else.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ensemw2s import faults
from ensemw2s.cluster.pool import Chunk, read_chunk
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.data.tokens import tokenize_prompts
from ensemw2s.ensemble.decoding import CHUNK
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.sharing import SharedEngine
from ensemw2s.ensemble.speculation import as_asked
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters
from ensemw2s.errors import ResourceError
from ensemw2s.labeling.parts import REJECTED_SCHEMA, label_schema, part_name, rejected_part, write_part
from ensemw2s.storage import remote
from ensemw2s.storage.store import read_table


class Labeler:
    """Decodes chunks of prompts and writes their parts (a worker for `labeling.stream`, for several threads)."""

    def __init__(self, jobs: list[dict[str, Any]], data: dict[str, Any], labeling: dict[str, Any]) -> None:
        """Args: folder and voter of each job; how prompts are rendered; how they are decoded."""
        self._data = DataConfig.model_validate(data)
        self._labeling = LabelingConfig.model_validate(labeling)
        self._makers = _OneAtATime({job["output"]: Voter.model_validate(job["voter"]) for job in jobs}, self._labeling)

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """Labels a chunk.

        Returns:
            Its rows, how many of them were rejected and why the first was, tokens, what drafts proposed in this actor
            so far and what of it was accepted, how members run, and when decoding began and ended (seconds since 1970).
        """
        folder = Path(str(chunk["output"]))
        if remote.exists(folder / part_name(chunk)):
            return _made_before(folder, chunk)
        faults.reach("labeling/chunk")
        prompts = read_chunk(chunk).select(["id", "prompt"])
        with self._makers.maker(str(folder)) as maker:
            began = time.time()
            labels, rejected = maker.label(prompts, self._data, self._labeling)
            engine = maker.engine.engine
        if len(rejected):
            write_part(rejected, rejected_part(folder, chunk))
        write_part(labels, folder / part_name(chunk))  # the last: it says that the chunk is done
        return {
            "rows": len(prompts),
            "rejected": len(rejected),
            "reason": rejected["reason"][0].as_py() if len(rejected) else "",
            "tokens": sum(labels["n_tokens"].to_pylist()),
            "proposed": engine.counters.proposed,
            "accepted": engine.counters.accepted,
            "kinds": sorted(set(engine.kinds.values())),
            "began": began,
            "ended": time.time(),
        }


def _made_before(folder: Path, chunk: Chunk) -> dict[str, Any]:
    """The row of a chunk whose actor died after it had written the part, and before anybody knew."""
    part, rejected = folder / part_name(chunk), rejected_part(folder, chunk)
    reasons = read_table(rejected, ["reason"])["reason"].to_pylist() if remote.exists(rejected) else []
    return {
        "rows": int(chunk["stop"]) - int(chunk["start"]),
        "rejected": len(reasons),
        "reason": reasons[0] if reasons else "",
        "tokens": sum(read_table(part, ["n_tokens"])["n_tokens"].to_pylist()),
        "proposed": 0,
        "accepted": 0,
        "kinds": [],
        "began": time.time(),
        "ended": time.time(),
    }


@dataclass(frozen=True)
class Maker:
    """Who makes labels: a voter in memory and its engine."""

    loaded: Loaded
    engine: SharedEngine

    @classmethod
    def of(cls, loaded: Loaded, labeling: LabelingConfig) -> Maker:
        """Args: the voter; batch size and drafts."""
        engine = Engine(loaded.model, slots=labeling.batch_size, speculation=as_asked(labeling), chunk=CHUNK)
        return cls(loaded, SharedEngine(engine))

    def label(self, prompts: pa.Table, data: DataConfig, labeling: LabelingConfig) -> tuple[pa.Table, pa.Table]:
        """Answers prompts.

        Args:
            prompts: Table with `id` and `prompt`.
            data: How a prompt is rendered, and how long it may be.
            labeling: Longest answer, samples, whether distributions are kept.

        Returns:
            Labels (`label_schema`) and rejected prompts (`REJECTED_SCHEMA`), both in the order of the prompts.

        Raises:
            ResourceError: If there is no memory for a prompt that is no longer than it may be.
        """
        rows = prompts.to_pylist()
        ids = tokenize_prompts([row["prompt"] for row in rows], self.loaded.tokenizer, data)
        wrong = {i: reason for i, one in enumerate(ids) if (reason := _unusable(one, data.max_prompt_tokens))}
        usable = [i for i in range(len(rows)) if i not in wrong]
        requests = [self._request(ids[i], sample, labeling) for i in usable for sample in range(labeling.samples)]
        generations, failed = self.engine.run(requests)
        for j, error in failed.items():
            if isinstance(error, ResourceError):
                raise error
            wrong[usable[j // labeling.samples]] = str(error)
        labels = []
        for j, i in enumerate(usable):
            if i not in wrong:
                samples = [generations[j * labeling.samples + k] for k in range(labeling.samples)]
                labels.append(_row(rows[i], samples, self.loaded))
        rejected = [{**rows[i], "reason": wrong[i]} for i in sorted(wrong)]
        schema = label_schema(labeling)
        return pa.Table.from_pylist(labels, schema=schema), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)

    def _request(self, ids: list[int], sample: int, labeling: LabelingConfig) -> Request:
        return Request(
            ids,
            labeling.max_new_tokens,
            (self.loaded.eos_id,),
            Sampling(labeling.temperature, 0, labeling.top_p),
            seed=labeling.seed + sample,
            distributions=labeling.soft_top_k,
        )


class _OneAtATime:
    """The makers of an actor's jobs, of which one is in memory: another one is loaded when nobody uses it any more."""

    def __init__(self, voters: dict[str, Voter], labeling: LabelingConfig) -> None:
        self._voters, self._labeling = voters, labeling
        self._changed = threading.Condition()
        self._loaded: dict[str, Maker] = {}
        self._users = 0

    @contextmanager
    def maker(self, name: str) -> Iterator[Maker]:
        """The maker of a job, for as long as the block lasts."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._loaded or self._users == 0)
            if name not in self._loaded:
                self._loaded = {}
                gc.collect()  # engines refer to their ensemble in a circle
                [loaded] = load_voters([self._voters[name]], precision=self._labeling.precision)
                self._loaded = {name: Maker.of(loaded, self._labeling)}
            maker = self._loaded[name]
            self._users += 1
        try:
            yield maker
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()


def _unusable(ids: list[int], longest: int) -> str | None:
    if not ids:
        return "the prompt has no tokens; a model needs at least one to start from"
    if len(ids) > longest:
        return f"the prompt has {len(ids)} tokens, data.max_prompt_tokens allows {longest}"
    return None


def _row(prompt: dict[str, Any], samples: list[Generation], loaded: Loaded) -> dict[str, Any]:
    """A row of the labels contract."""
    generation, consistency = most_frequent(samples, loaded)
    row = {
        **prompt,
        "answer": answer_text(generation, loaded),
        "token_ids": generation.token_ids,
        "logprob": float(generation.logprobs.sum(dtype="float64")),
        "agreement": float(generation.agreement.mean(dtype="float64")),
        "vote_entropy": float(generation.entropy.mean(dtype="float64")),
        "n_tokens": len(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "token_agreement": generation.agreement,
        "token_entropy": generation.entropy,
        "consistency": consistency,
    }
    if generation.top_tokens is not None and generation.top_logprobs is not None:
        row |= {
            "top_tokens": generation.top_tokens.tolist(),
            "top_logprobs": list(generation.top_logprobs.astype("float16")),
        }
    return row


def most_frequent(samples: list[Generation], loaded: Loaded) -> tuple[Generation, float]:
    """Self-consistency (Wang et al. 2023, arXiv 2203.11171): the answer that most samples agree on.

    Args:
        samples: Answers to one prompt. Those that ended by themselves count; if none did, all.
        loaded: Whose tokens these are.

    Returns:
        The likeliest sample with that answer, and the share of all samples that gave it. Of answers as frequent as each
        other, that with the likeliest sample.
    """
    by_answer: dict[str, list[Generation]] = {}
    for sample in [s for s in samples if s.finish_reason == "stop"] or samples:
        by_answer.setdefault(answer_text(sample, loaded), []).append(sample)
    likeliest = {text: max(group, key=_logprob) for text, group in by_answer.items()}
    best = max(by_answer, key=lambda text: (len(by_answer[text]), _logprob(likeliest[text])))
    return likeliest[best], len(by_answer[best]) / len(samples)


def _logprob(generation: Generation) -> float:
    return float(generation.logprobs.sum(dtype="float64"))


def answer_text(generation: Generation, loaded: Loaded) -> str:
    """The decoded text without the end token and surrounding white space."""
    return str(loaded.tokenizer.decode(generation.token_ids, skip_special_tokens=True)).strip()
