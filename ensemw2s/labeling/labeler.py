"""The actor that makes pseudo-labels: descriptions of chunks of prompts come in, parts of labels lie on the disk.

Prompts of several chunks are decoded at the same time by one engine. What cannot be labelled is put aside with the
reason, and touches nothing else.
"""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ensemw2s import faults
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.data.answers import Key, answer_key
from ensemw2s.data.tokens import tokenize_prompts
from ensemw2s.ensemble.bytewise.voter import ByteVoter, LoadedMixture
from ensemw2s.ensemble.decoding import CHUNK
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.sharing import SharedEngine
from ensemw2s.ensemble.speculation import as_asked
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters
from ensemw2s.errors import ResourceError
from ensemw2s.labeling.chunks import LabelChunk, LabeledChunk, LabelJob
from ensemw2s.labeling.option_labels import label_questions
from ensemw2s.labeling.parts import REJECTED_SCHEMA, label_schema, part_name, rejected_part, write_part
from ensemw2s.storage import remote
from ensemw2s.storage.store import read_table


class Labeler:
    """Decodes chunks of prompts and writes their parts; several threads may call it at the same time."""

    def __init__(self, jobs: Sequence[LabelJob], data: DataConfig, labeling: LabelingConfig) -> None:
        """Args: what may be labelled by whom; how prompts are rendered; how they are decoded."""
        self._data, self._labeling, self._name = data, labeling, uuid.uuid4().hex
        self._makers = _OneAtATime({job.output.resolve(): job.voter for job in jobs}, data, labeling)

    def __call__(self, chunk: LabelChunk) -> LabeledChunk:
        """Labels a chunk, unless its part is there already."""
        folder, start = chunk.output, chunk.prompts.start
        if remote.exists(folder / part_name(start)):
            return self._made_before(chunk)
        faults.reach("labeling/chunk")
        table = chunk.prompts.read()
        wanted = ["id", "prompt", *(["choices"] if self._data.has_options else [])]
        prompts = table.select([name for name in wanted if name in table.column_names])
        with self._makers.maker(folder) as maker:
            began = time.time()
            labels, rejected = maker.label(prompts, self._data, self._labeling)
            proposed, accepted = maker.drafted
        if len(rejected):
            write_part(rejected, rejected_part(folder, start))
        write_part(labels, folder / part_name(start))  # the last: it says that the chunk is done
        return LabeledChunk(
            rows=len(prompts),
            rejected=len(rejected),
            reason=rejected["reason"][0].as_py() if len(rejected) else "",
            tokens=sum(labels["n_tokens"].to_pylist()),
            actor=self._name,
            proposed=proposed,
            accepted=accepted,
            kinds=maker.kinds,
            began=began,
            ended=time.time(),
        )

    def _made_before(self, chunk: LabelChunk) -> LabeledChunk:
        """What came of a chunk whose actor died after it had written the part, and before anybody knew."""
        start = chunk.prompts.start
        part, rejected = chunk.output / part_name(start), rejected_part(chunk.output, start)
        reasons = read_table(rejected, ["reason"])["reason"].to_pylist() if remote.exists(rejected) else []
        return LabeledChunk(
            rows=chunk.prompts.rows,
            rejected=len(reasons),
            reason=reasons[0] if reasons else "",
            tokens=sum(read_table(part, ["n_tokens"])["n_tokens"].to_pylist()),
            actor=self._name,
            proposed=0,
            accepted=0,
            kinds=(),
            began=time.time(),
            ended=time.time(),
        )


@dataclass(frozen=True)
class Maker:
    """Who makes labels: a voter in memory and its engine."""

    loaded: Loaded
    engine: SharedEngine
    _alone: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, loaded: Loaded, labeling: LabelingConfig) -> Maker:
        """Args: the voter; batch size and drafts."""
        engine = Engine(loaded.model, slots=labeling.batch_size, speculation=as_asked(labeling), chunk=CHUNK)
        return cls(loaded, SharedEngine(engine))

    @property
    def drafted(self) -> tuple[int, int]:
        """Tokens that drafts proposed so far, and how many of these were accepted."""
        counters = self.engine.engine.counters
        return counters.proposed, counters.accepted

    @property
    def kinds(self) -> tuple[str, ...]:
        """How the members run."""
        return tuple(sorted(set(self.engine.engine.kinds.values())))

    def label(self, prompts: pa.Table, data: DataConfig, labeling: LabelingConfig) -> tuple[pa.Table, pa.Table]:
        """Answers prompts.

        A question with options gets the likeliest of them, where the data has multiple choice; all else is decoded.

        Args:
            prompts: Table with `id` and `prompt`, and `choices` where the data has multiple choice.
            data: How a prompt is rendered, and how long it may be.
            labeling: Longest answer, samples, whether distributions are kept.

        Returns:
            Labels (`label_schema`) and rejected prompts (`REJECTED_SCHEMA`), both in the order of the prompts.

        Raises:
            ResourceError: If there is no memory for a prompt that is no longer than it may be.
        """
        if data.has_options:
            with self._alone:  # scoring and the engine use the same models
                return self._label_options(prompts, data, labeling)
        return self._decode(prompts, data, labeling)

    def _label_options(
        self, prompts: pa.Table, data: DataConfig, labeling: LabelingConfig
    ) -> tuple[pa.Table, pa.Table]:
        """`label` where some prompts, most often all, are questions with options."""
        rows = prompts.to_pylist()
        asked = [row for row in rows if row.get("choices")]
        made, wrong = label_questions(asked, self.loaded, data, labeling)
        others = pa.Table.from_pylist([row for row in rows if not row.get("choices")], schema=prompts.schema)
        decoded, failed = self._decode(others.select(["id", "prompt"]), data, labeling)
        order = {row["id"]: i for i, row in enumerate(rows)}
        labels = sorted([*made.to_pylist(), *decoded.to_pylist()], key=lambda row: order[row["id"]])
        rejected = sorted([*wrong, *failed.to_pylist()], key=lambda row: order[row["id"]])
        schema = label_schema(labeling, margin=True)
        return pa.Table.from_pylist(labels, schema=schema), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)

    def _decode(self, prompts: pa.Table, data: DataConfig, labeling: LabelingConfig) -> tuple[pa.Table, pa.Table]:
        """`label` where nothing has options."""
        rows = prompts.to_pylist()
        ids = tokenize_prompts([row["prompt"] for row in rows], self.loaded.tokenizer, data)
        wrong = {i: reason for i, one in enumerate(ids) if (reason := _unusable(one, data.max_prompt_tokens))}
        usable = [i for i in range(len(rows)) if i not in wrong]
        ends, key = self.loaded.ends(data), answer_key(data.answer_match)
        requests = [self._request(ids[i], sample, labeling, ends) for i in usable for sample in range(labeling.samples)]
        generations, failed = self.engine.run(requests)
        for j, error in failed.items():
            if isinstance(error, ResourceError):
                raise error
            wrong[usable[j // labeling.samples]] = str(error)
        labels = []
        for j, i in enumerate(usable):
            if i not in wrong:
                samples = [generations[j * labeling.samples + k] for k in range(labeling.samples)]
                labels.append(_row(rows[i], samples, self.loaded, ends, key))
        rejected = [{**rows[i], "reason": wrong[i]} for i in sorted(wrong)]
        schema = label_schema(labeling)
        return pa.Table.from_pylist(labels, schema=schema), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)

    @staticmethod
    def _request(ids: list[int], sample: int, labeling: LabelingConfig, ends: tuple[int, ...]) -> Request:
        return Request(
            ids,
            labeling.max_new_tokens,
            ends,
            Sampling(labeling.temperature, 0, labeling.top_p),
            seed=labeling.seed + sample,
            distributions=labeling.soft_top_k,
        )


@dataclass(frozen=True)
class ByteMaker:
    """A maker whose members have several tokenizers: it answers by the byte, and in its labels a token is a byte."""

    loaded: LoadedMixture
    voter: ByteVoter

    @property
    def drafted(self) -> tuple[int, int]:
        """There are no drafts."""
        return 0, 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """How the members run."""
        return self.voter.kinds

    def label(self, prompts: pa.Table, data: DataConfig, labeling: LabelingConfig) -> tuple[pa.Table, pa.Table]:
        """As `Maker.label`."""
        rows = prompts.to_pylist()
        read = self.voter.prompts([row["prompt"] for row in rows])
        wrong: dict[int, str] = {}
        for i, voices in enumerate(read):
            if reasons := [r for one in voices if (r := _unusable(list(one.ids), data.max_prompt_tokens))]:
                wrong[i] = reasons[0]
        usable = [i for i in range(len(rows)) if i not in wrong]
        sampling = Sampling(labeling.temperature, 0, labeling.top_p)
        answers = [
            self.voter.generate(
                [read[i] for i in usable],
                max_new_tokens=labeling.max_new_tokens,
                sampling=sampling,
                seed=labeling.seed + sample,
            )
            for sample in range(labeling.samples)
        ]
        ends, key, labels = self.loaded.ends(data), answer_key(data.answer_match), []
        for i, samples in zip(usable, zip(*answers, strict=True), strict=True):
            found = [sample for sample in samples if isinstance(sample, Generation)]
            if len(found) < len(samples):
                wrong[i] = next(str(sample) for sample in samples if not isinstance(sample, Generation))
            else:
                labels.append(_row(rows[i], found, self.loaded, ends, key))
        rejected = [{**rows[i], "reason": wrong[i]} for i in sorted(wrong)]
        schema = label_schema(labeling)
        return pa.Table.from_pylist(labels, schema=schema), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)


class _OneAtATime:
    """The makers of an actor's jobs, of which one is in memory: another one is loaded when nobody uses it any more."""

    def __init__(self, voters: Mapping[Path, Voter], data: DataConfig, labeling: LabelingConfig) -> None:
        self._voters, self._data, self._labeling = voters, data, labeling
        self._changed = threading.Condition()
        self._loaded: dict[Path, Maker | ByteMaker] = {}
        self._users = 0

    @contextmanager
    def maker(self, output: Path) -> Iterator[Maker | ByteMaker]:
        """The maker of the job with this folder, for as long as the block lasts."""
        with self._changed:
            self._changed.wait_for(lambda: output in self._loaded or self._users == 0)
            if output not in self._loaded:
                self._loaded = {}
                gc.collect()  # engines refer to their ensemble in a circle
                [loaded] = load_voters([self._voters[output]], precision=self._labeling.precision)
                if isinstance(loaded, Loaded):
                    self._loaded = {output: Maker.of(loaded, self._labeling)}
                else:
                    own = ByteVoter(loaded, self._data, texts=self._labeling.batch_size)
                    self._loaded = {output: ByteMaker(loaded, own)}
            maker = self._loaded[output]
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
        return f"the prompt has {len(ids)} tokens, data.max_prompt_tokens allows {longest} (--max-prompt-tokens)"
    return None


def _row(
    prompt: Mapping[str, object],
    samples: list[Generation],
    loaded: Loaded | LoadedMixture,
    ends: tuple[int, ...] = (),
    key: Callable[[str], Key] = str.strip,
) -> dict[str, object]:
    """A row of the labels contract."""
    generation, consistency = most_frequent(samples, loaded, ends, key)
    row = {
        **prompt,
        "answer": answer_text(generation, loaded, ends),
        "token_ids": generation.token_ids,
        "logprob": float(generation.logprobs.sum(dtype="float64")),
        "agreement": _mean(generation.agreement),
        "vote_entropy": _mean(generation.entropy),
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


def most_frequent(
    samples: list[Generation],
    loaded: Loaded | LoadedMixture,
    ends: tuple[int, ...] = (),
    key: Callable[[str], Key] = str.strip,
) -> tuple[Generation, float]:
    """Self-consistency (Wang et al. 2023, arXiv 2203.11171): the answer that most samples agree on.

    Args:
        samples: Answers to one prompt. Those that ended by themselves count; if none did, all.
        loaded: Whose tokens these are.
        ends: Tokens that end an answer.
        key: What is compared of answers.

    Returns:
        The likeliest sample with that answer, and the share of all samples that gave it. Of answers as frequent as each
        other, that with the likeliest sample.
    """
    by_answer: dict[Key, list[Generation]] = {}
    for sample in [s for s in samples if s.finish_reason == "stop"] or samples:
        by_answer.setdefault(key(answer_text(sample, loaded, ends)), []).append(sample)
    likeliest = {answer: max(group, key=_logprob) for answer, group in by_answer.items()}
    best = max(by_answer, key=lambda answer: (len(by_answer[answer]), _logprob(likeliest[answer])))
    return likeliest[best], len(by_answer[best]) / len(samples)


def _mean(values: np.ndarray) -> float:
    """The mean; 0 of an answer without tokens, which only a mixture over bytes gives."""
    return float(values.mean(dtype="float64")) if len(values) else 0.0


def _logprob(generation: Generation) -> float:
    return float(generation.logprobs.sum(dtype="float64"))


def answer_text(generation: Generation, loaded: Loaded | LoadedMixture, ends: tuple[int, ...] = ()) -> str:
    """The decoded text without the end token, other control tokens and surrounding white space."""
    ids = generation.token_ids
    if ids and ids[-1] in ends:  # it need not be marked as special
        ids = ids[:-1]
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip()
