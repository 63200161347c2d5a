"""Which characters the tokenizer of the tiny models must know, and what it does not know: splits in, texts out.

Its own module because hard answers must not shape the tokenizer: they are looked at when it is trained.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ensemw2s.config import DataConfig
from ensemw2s.data.limits import lost
from ensemw2s.data.sources import origin_of, shorten
from ensemw2s.data.splits import EASY_SPLITS, Splits
from ensemw2s.storage.store import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def characters(data: DataConfig, splits: Splits) -> str:
    """All characters of the templates, of all prompts and of easy answers; no hard answer's."""
    tables = splits.tables()
    texts = [text for table in tables.values() for text in table["prompt"].to_pylist()]
    texts += [text for name in EASY_SPLITS for text in tables[name]["answer"].to_pylist()]
    around = data.prompt_template.replace("{prompt}", "") + data.answer_prefix
    return "".join(sorted(set(around).union(*texts)))


def say_unknown(folder: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """Warns of true hard answers that a tokenizer cannot give back: no model with it can be right there.

    Args:
        folder: Of the splits.
        tokenizer: The tokenizer, trained without these answers.
        data: The sources of the splits.
    """
    for name, prompts in (("ood_test", "ood_test"), ("hard_labels", "hard_unlabelled")):
        answers = read_table(folder / f"{name}.parquet")["answer"].to_pylist()
        found = [(i, why) for i, text in enumerate(answers) if text and (why := lost(text, tokenizer, answer=True))]
        if found:
            prompt = read_table(folder / f"{prompts}.parquet")["prompt"][found[0][0]].as_py()
            logger.warning(
                "%d true answers of %s cannot be written with the tokenizer that was trained on easy data; that of "
                "%s has %s",
                len(found),
                name,
                origin_of(data, prompt) or repr(shorten(prompt)),
                found[0][1],
            )
