"""Options of multiple-choice questions as answers: questions and a voter come in, each option's likelihood goes out.

Its own module because labels and evaluation choose options in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from ensemw2s.config import DataConfig
from ensemw2s.data.tokens import TokenData, tokenize_examples
from ensemw2s.ensemble.score import score
from ensemw2s.ensemble.voter import Loaded

By = Literal["answer", "sum", "token", "byte"]
"""What options are compared by: the log-likelihood of the whole answer with its end token; of the option's own tokens;
that per token; that per byte of the option's text."""

MEASURES: tuple[By, ...] = get_args(By)


@dataclass(frozen=True)
class ScoredOptions:
    """The k options of a question, each scored as an answer under teacher forcing. M members.

    Attributes:
        texts: The options.
        token_ids: Tokens of each, the end token included.
        logprobs: Log-probability of each of these tokens under the combination, in nats.
        members: `[M, k]`, float64: each member's log-likelihood of the whole answer.
    """

    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[np.ndarray]
    members: np.ndarray

    def values(self, by: By) -> np.ndarray:
        """What is compared of each option, `[k]`, float64; the largest wins."""
        ends = [None if by == "answer" else -1 for _ in self.texts]
        sums = [each[:end].sum(dtype="float64") for each, end in zip(self.logprobs, ends, strict=True)]
        lengths = {
            "token": [max(1, len(ids) - 1) for ids in self.token_ids],
            "byte": [max(1, len(text.encode())) for text in self.texts],
        }
        return np.array(sums) / np.array(lengths.get(by, [1] * len(self.texts)), np.float64)

    def best(self, by: By) -> int:
        """Place of the winner, the first of equals."""
        return int(self.values(by).argmax())


def score_options(
    prompts: Sequence[str], options: Sequence[list[str] | None], loaded: Loaded, data: DataConfig, *, batch_size: int
) -> list[ScoredOptions | None]:
    """Scores the options of questions.

    Args:
        prompts: n prompts.
        options: The options of each; None or empty: it is no multiple-choice question.
        loaded: Who scores.
        data: How prompts and answers become tokens.
        batch_size: Most sequences in a forward pass.

    Returns:
        The scored options of each prompt, None where there are none.
    """
    rows = [(i, option) for i, own in enumerate(options) for option in own or ()]
    if not rows:
        return [None] * len(prompts)
    table = pa.table(
        {
            "id": [f"{i}-{k}" for k, (i, _) in enumerate(rows)],
            "prompt": [prompts[i] for i, _ in rows],
            "answer": [option for _, option in rows],
        }
    )
    tokens = TokenData.from_table(tokenize_examples(table, loaded.tokenizer, data))
    scores = iter(
        score(loaded.model, tokens.prompt_ids, tokens.answer_ids, pad_id=loaded.pad_id, batch_size=batch_size)
    )
    ids = iter(tokens.answer_ids)
    found: list[ScoredOptions | None] = []
    for own in options:
        if not own:
            found.append(None)
            continue
        each = [next(scores) for _ in own]
        members = np.stack([one.member_logprobs.sum(axis=-1, dtype="float64") for one in each], axis=-1)
        token_ids = [next(ids).tolist() for _ in own]
        found.append(ScoredOptions(list(own), token_ids, [one.logprobs for one in each], members))
    return found
