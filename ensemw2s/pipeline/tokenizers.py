"""Which weak bases share a tokenizer, and what a run has no meaning for where they do not all share one."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache

from ensemw2s.config import Config, ModelConfig
from ensemw2s.errors import ConfigError, ModelError
from ensemw2s.models.hub import is_here
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash


def tokenizer_numbers(config: Config) -> tuple[int, ...]:
    """The number of each weak base's tokenizer, counted from 0 in the order of the bases.

    A base that is not here counts as one with the first base's tokenizer: the check before a run brings it here.
    """
    weak = config.models.weak
    if len({(model.base, model.revision, model.vocabulary) for model in weak}) == 1:
        return (0,) * len(weak)
    keys = [_tokenizer_of(model, config.models.pretraining.vocabulary) for model in weak]
    first = keys[0] or next((key for key in keys if key is not None), None)
    known = list(dict.fromkeys(key or first for key in keys))
    return tuple(known.index(key or first) for key in keys)


def _tokenizer_of(model: ModelConfig, vocabulary: int) -> Hashable | None:
    if model.is_tiny:
        return model.vocabulary or vocabulary
    return _hash(model.base, model.revision) if is_here(model.base, model.revision) else None


@cache
def _hash(base: str, revision: str | None) -> str | None:
    try:
        return tokenizer_hash(load_tokenizer(base, revision))
    except (ModelError, OSError, ValueError):
        return None


def check_mixed(config: Config) -> None:
    """Raises `ConfigError` with every setting that has no meaning over bytes."""
    labeling, ensemble, boosting = config.labeling, config.ensemble, config.boosting
    no_meaning = {
        "boosting.prior samme (segments have no number of classes: use none or pretrained)": boosting.prior == "samme",
        "boosting.unit window (use token, which means segments here, or example)": boosting.unit == "window",
        f"boosting.anchor {boosting.anchor} (leave it at 1)": boosting.anchor != 1,
        f"consensus.passes {config.consensus.passes} (leave it at 0)": config.consensus.passes > 0,
        f"ensemble.combine {ensemble.combine} (use probability)": ensemble.combine != "probability",
        "ensemble.weights stacked (use alpha or uniform)": ensemble.weights == "stacked",
        "ensemble.calibration temperature (use none)": ensemble.calibration != "none",
        "student.objective soft (use logconf or xent)": config.student.objective == "soft",
        "multiple_choice (leave it out: options are not compared over bytes)": config.data.has_options,
        f"labeling.soft_top_k {labeling.soft_top_k} (leave it at 0)": labeling.soft_top_k > 0,
        f"labeling.speculation {labeling.speculation} (use none)": labeling.speculation != "none",
    }
    if wrong := [f"  {what}" for what, is_wrong in no_meaning.items() if is_wrong]:
        raise ConfigError(
            "the weak models have different tokenizers, so they vote over bytes (docs/bytewise.md). This run asks for "
            "what they cannot have then:\n" + "\n".join(wrong)
        )
