"""Few-shot examples: labelled easy examples come in, a prompt template that shows them before each prompt goes out.

All prompts begin with the same ones. Its own module because a run makes the template once, and every later reader of
prompts, served models among them, takes it for the template of the config.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ensemw2s.config import DataConfig
from ensemw2s.errors import DataError
from ensemw2s.storage import remote

TEMPLATE = "prompt_template.txt"
"""File beside the splits with the template that shows the examples; only where there are any."""

_PLACE = "{prompt}"


def take_shots(easy_train: pa.Table, data: DataConfig) -> tuple[DataConfig, pa.Table]:
    """Takes the first examples out of the training data and puts them into the template.

    Args:
        easy_train: Labelled easy examples (`EXAMPLE_SCHEMA`), in an order that the seed decides.
        data: Says how many, and the template.

    Returns:
        The section with the longer template, and the examples that are left to train on.

    Raises:
        DataError: If there are too few examples.
    """
    pairs = zip(easy_train["prompt"].to_pylist(), easy_train["answer"].to_pylist(), strict=True)
    fit = [i for i, pair in enumerate(pairs) if not any(_PLACE in text for text in pair)]
    chosen = fit[: data.shots]
    left = [i for i in range(len(easy_train)) if i not in set(chosen)]
    if len(chosen) < data.shots or not left:
        raise DataError(f"data.shots {data.shots} leaves none of {len(easy_train)} easy examples to train on: lower it")
    before, after = data.prompt_template.split(_PLACE, 1)
    shown = [
        f"{before}{row['prompt']}{after}{data.answer_prefix}{row['answer']}\n\n"
        for row in easy_train.take(pa.array(chosen, pa.int64())).to_pylist()
    ]
    template = "".join(shown) + data.prompt_template
    return data.model_copy(update={"prompt_template": template}), easy_train.take(pa.array(left, pa.int64()))


def write_template(folder: Path, data: DataConfig) -> None:
    """Puts the template with the examples beside the splits."""
    (folder / TEMPLATE).write_text(data.prompt_template, encoding="utf-8", newline="")


def with_template(data: DataConfig, folder: Path) -> DataConfig:
    """The section with the template that lies beside the splits of a run, if one does."""
    file = folder / TEMPLATE
    if not remote.exists(file):
        return data
    with remote.pull(file).open(encoding="utf-8", newline="") as stored:
        return data.model_copy(update={"prompt_template": stored.read()})
