"""The tokens of an answer as a report shows them: a decoded answer comes in, text, agreement and votes go out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ensemw2s.ensemble.requests import Generation


def shown_tokens(
    generation: Generation, names: Sequence[str], weights: Sequence[float], decode: Callable[[list[int]], object]
) -> list[dict[str, object]]:
    """Every token's text, agreement and the votes of those who vote.

    Args:
        generation: The answer; its tokens are bytes where members have several tokenizers.
        names: Of those who vote.
        weights: Their weights.
        decode: Token ids to text (transformers annotates it as more).
    """
    return [
        {
            "text": decode([token]),
            "agreement": float(agreement),
            "votes": [
                {"member": name, "alpha": weight, "token": decode([int(vote)])}
                for name, weight, vote in zip(names, weights, votes, strict=True)
            ],
        }
        for token, agreement, votes in zip(generation.token_ids, generation.agreement, generation.votes, strict=True)
    ]
