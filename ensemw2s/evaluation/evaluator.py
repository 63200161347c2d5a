"""The worker that evaluates: chunks of test examples come in, answers and teacher-forced scores of voters go out.

Apart from `evaluate` because only actors need models in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ensemw2s import faults
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.config.systems import ENSEMW2S, TABLE
from ensemw2s.data.tokens import TokenData, tokenize_examples
from ensemw2s.ensemble.bytewise.voter import ByteVoter, LoadedMixture
from ensemw2s.ensemble.decoding import decode_with, list_engine
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.options import MEASURES, score_options
from ensemw2s.ensemble.requests import Generation
from ensemw2s.ensemble.score import score
from ensemw2s.ensemble.speculation import as_asked
from ensemw2s.ensemble.voter import Loaded, load_voters
from ensemw2s.evaluation.bytewise import evaluate_bytes
from ensemw2s.evaluation.chunks import OPTION, AnsweredChunk, Rows, SplitChunk
from ensemw2s.evaluation.shown import shown_tokens
from ensemw2s.evaluation.voters import VoterGroup
from ensemw2s.labeling.labeler import answer_text


class Evaluator:
    """Evaluates the voters of a group on chunks of examples."""

    def __init__(self, groups: Sequence[VoterGroup], data: DataConfig, labeling: LabelingConfig) -> None:
        self._groups = {group.name: group for group in groups}
        self._data, self._labeling = data, labeling
        self._loaded: tuple[str, list[Loaded | LoadedMixture]] = ("", [])
        self._mixtures: dict[str, ByteVoter] = {}  # the same, of voters with several tokenizers
        self._engines: dict[str, Engine] = {}  # of the group that is loaded, by voter

    def __call__(self, chunk: SplitChunk) -> AnsweredChunk:
        """Answers and scores of each voter of the chunk's group."""
        faults.reach("evaluation/chunk")
        group = self._groups[chunk.group]
        if self._loaded[0] != group.name:
            self._loaded, self._engines, self._mixtures = ("", []), {}, {}
            gc.collect()  # what is left of the old group must not stay beside the next one
            self._loaded = (group.name, load_voters(list(group.voters), precision=self._labeling.precision))
        examples = chunk.examples.read()
        columns = {}
        for voter, loaded in zip(group.voters, self._loaded[1], strict=True):
            left = max(0, min(chunk.shown - chunk.examples.start, len(examples)))
            if not isinstance(loaded, Loaded):
                mixture = self._mixture(voter.name, loaded)
                shown = left if voter.name == ENSEMW2S else 0
                columns[voter.name] = evaluate_bytes(
                    examples, loaded, mixture, self._labeling, decoded=chunk.decoded, shown=shown
                )
                continue
            engine = self._engine(voter.name, loaded) if chunk.decoded else None
            columns[voter.name] = evaluate(
                examples,
                loaded,
                self._data,
                self._labeling,
                decoded=chunk.decoded,
                shown=left if voter.name == ENSEMW2S else 0,
                members=voter.name in TABLE and TABLE[voter.name].vote == "tokens",
                engine=engine,
            )
            if engine is not None and len(group.voters) > 1:
                engine.release()  # the caches of all voters together would take more than their models
        return AnsweredChunk(chunk.split, chunk.examples.start, columns)

    def _engine(self, voter: str, loaded: Loaded) -> Engine:
        """A voter's decoder, kept as long as its group is loaded."""
        if voter not in self._engines:
            self._engines[voter] = decoder(loaded, self._labeling)
        return self._engines[voter]

    def _mixture(self, voter: str, loaded: LoadedMixture) -> ByteVoter:
        """The same for a voter of several tokenizers."""
        if voter not in self._mixtures:
            self._mixtures[voter] = ByteVoter(loaded, self._data, texts=self._labeling.batch_size)
        return self._mixtures[voter]


def decoder(loaded: Loaded, labeling: LabelingConfig) -> Engine:
    """A voter's decoder, as the config asks for it."""
    return list_engine(loaded.model, batch_size=labeling.batch_size, speculation=as_asked(labeling))


def evaluate(
    examples: pa.Table,
    loaded: Loaded,
    data: DataConfig,
    labeling: LabelingConfig,
    *,
    decoded: bool,
    shown: int,
    members: bool = False,
    engine: Engine | None = None,
) -> Rows:
    """Answers and scores of one voter.

    Args:
        examples: Rows with answers (EXAMPLE_SCHEMA).
        loaded: The voter.
        data: How prompts and answers are rendered.
        labeling: Batch size and longest answer.
        decoded: Decode, too; else only teacher forcing.
        shown: For so many first examples keep every token with the members' votes.
        members: Keep what each member of an ensemble predicts under teacher forcing.
        engine: The voter's decoder; default: one is made for this call.

    Returns:
        Columns: `n_tokens`, `token_correct`, `nll`, `forced` (all tokens right); when decoded `answer`, `cut` (at the
        longest length), `n_decoded`, `agreement`, `seconds` (a share of the whole for each); `option`, `option_sum`,
        `option_token`, `option_byte` (likeliest option by each measure, or null); `tokens` of shown ones.
        With `members`, of an ensemble, `answer_ids` and `member_ids`: the tokens that each member finds likeliest.
    """
    tokens = TokenData.from_table(tokenize_examples(examples, loaded.tokenizer, data))
    size: dict[str, Any] = {"pad_id": loaded.pad_id, "batch_size": labeling.batch_size}
    generations: list[Generation] = []
    ends = loaded.ends(data)
    began = time.monotonic()
    if decoded:
        generations = decode_with(
            engine or decoder(loaded, labeling),
            tokens.prompt_ids,
            max_new_tokens=labeling.max_new_tokens,
            eos_ids=ends,
        )
    seconds = time.monotonic() - began
    forced = _forced(tokens, generations, loaded, size)
    columns: Rows = {
        "n_tokens": [len(f.correct) for f in forced],
        "token_correct": [int(f.correct.sum()) for f in forced],
        "nll": [-float(f.logprobs.sum(dtype="float64")) for f in forced],
        "forced": [bool(f.correct.all()) for f in forced],
    }
    columns |= _options(examples, loaded, data, labeling.batch_size)
    if loaded.model.num_members > 1 and members:
        columns["answer_ids"] = [ids.tolist() for ids in tokens.answer_ids]
        columns["member_ids"] = [f.member_tokens.tolist() for f in forced]
    if decoded:
        names, weights, read = loaded.model.names, list(map(float, loaded.model.weights)), loaded.tokenizer.decode
        columns |= {
            "answer": [answer_text(g, loaded, ends) for g in generations],
            "cut": [g.finish_reason == "length" for g in generations],
            "n_decoded": [len(g.token_ids) * loaded.model.num_members for g in generations],
            "agreement": [float(g.agreement.mean(dtype="float64")) for g in generations],
            "seconds": [seconds / len(generations)] * len(generations),
            "tokens": [shown_tokens(g, names, weights, read) if i < shown else None for i, g in enumerate(generations)],
        }
    return columns


@dataclass(frozen=True)
class _Forced:
    """What is kept of an answer of n tokens under teacher forcing: as in `Score`."""

    logprobs: np.ndarray
    correct: np.ndarray
    member_tokens: np.ndarray


def _forced(tokens: TokenData, generations: list[Generation], loaded: Loaded, size: dict[str, Any]) -> list[_Forced]:
    """Teacher forcing of every answer. One that was decoded token for token has been read along with its own.

    In half precision all are read again: two passes round differently there, and what does not decode (ensembles of the
    first rounds) has but one, so the other voters would have two chances of a right token.
    """
    exact = all(network.dtype == torch.float32 for network, *_ in loaded.model.parts())
    found: dict[int, _Forced] = {
        i: _Forced(g.logprobs, np.ones(len(g.token_ids), bool), g.votes.T)
        for i, (g, answer) in enumerate(zip(generations, tokens.answer_ids, strict=bool(generations)))
        if exact and g.token_ids == answer.tolist()
    }
    rest = [i for i in range(len(tokens.answer_ids)) if i not in found]
    scores = score(loaded.model, [tokens.prompt_ids[i] for i in rest], [tokens.answer_ids[i] for i in rest], **size)
    found |= {i: _Forced(s.logprobs, s.correct, s.member_tokens) for i, s in zip(rest, scores, strict=True)}
    return [found[i] for i in range(len(tokens.answer_ids))]


def _options(examples: pa.Table, loaded: Loaded, data: DataConfig, batch_size: int) -> Rows:
    """Of each multiple-choice question the likeliest option by each measure (see `OPTION`); None of all others."""
    prompts, options = examples["prompt"].to_pylist(), examples["choices"].to_pylist()
    scored = score_options(prompts, options, loaded, data, batch_size=batch_size)
    return {OPTION[by]: [None if s is None else s.texts[s.best(by)] for s in scored] for by in MEASURES}
