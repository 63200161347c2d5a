"""The section `data` of the config: where examples come from, what is easy and what is hard, and how prompts look."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemw2s.config.answers import AnswerMatch
from ensemw2s.config.section import PositiveInt, Section, raise_all


class Columns(Section):
    """Where an example's fields come from in a source's rows.

    Each value is a column's name, or, when it contains `{{`, a Jinja template over the row
    (`"{{ metadata.numbers | join(' ') }}"`), so that prompts can be built from raw fields.
    """

    prompt: str = Field("prompt", description="Column or template of the prompt.")
    answer: str = Field("answer", description="Column or template of the answer.")
    id: str | None = Field(None, description="Column or template of a unique id. Default: a hash of the content.")
    difficulty: str | None = Field(None, description="Column or template of a number; larger means harder.")
    choices: str | None = Field(None, description="Column with the list of options of a multiple-choice question.")


WHERE = (
    "Jinja expression over the row; rows for which it is false are left out. For example `split == 'train'` or "
    "`answer is not none`."
)


class ReasoningGymSource(Section):
    """Examples that a data set of reasoning-gym generates. Easy and hard ones each have their own config."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field(description="Name of a reasoning-gym data set, such as number_sorting.")
    easy: dict[str, Any] = Field(default_factory=dict, description="Its config for easy examples (difficulty 0).")
    hard: dict[str, Any] = Field(default_factory=dict, description="Its config for hard examples (difficulty 1).")
    where: str | None = Field(None, description=WHERE)
    columns: Columns = Field(
        Columns(prompt="question", answer="answer"),
        description="Rows have the fields question, answer and metadata (the data set's own dictionary).",
    )


class FilesSource(Section):
    """Examples in parquet, JSON lines or CSV files: local, s3:// or gs://."""

    kind: Literal["files"] = "files"
    paths: list[str] = Field(
        min_length=1, description="Files, folders, URIs, or patterns such as data/*.jsonl. The ending gives the format."
    )
    where: str | None = Field(None, description=WHERE)
    columns: Columns = Field(Columns(), description="Which column has which field.")


class HuggingFaceSource(Section):
    """A data set from the Hugging Face hub, or a local folder saved with `save_to_disk`."""

    kind: Literal["huggingface"] = "huggingface"
    path: str = Field(description="Hub id or local folder.")
    name: str | None = Field(None, description="Configuration of the data set on the hub.")
    split: str = Field("train", description="Which split to read; `train+test` joins two.")
    revision: str | None = Field(None, description="Git revision on the hub. Pin it to get the same data later.")
    where: str | None = Field(None, description=WHERE)
    columns: Columns = Field(Columns(), description="Which column has which field.")


Source = Annotated[ReasoningGymSource | FilesSource | HuggingFaceSource, Field(discriminator="kind")]


class SplitSizes(Section):
    """How many examples go into each split. A `files` or `huggingface` source must have enough."""

    easy_train: PositiveInt = Field(2000, description="Easy labelled examples that train the weak experts.")
    easy_validation: PositiveInt = Field(500, description="Easy labelled examples; every choice is made on them.")
    id_test: PositiveInt = Field(1000, description="Easy test examples (in distribution).")
    hard_unlabelled: PositiveInt = Field(2000, description="Hard prompts that the weak systems label.")
    ood_test: PositiveInt = Field(1000, description="Hard test examples (out of distribution).")
    hard_validation: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Hard labelled examples for choices in a search (search.validation) or a study. No training reads "
        "them.",
    )


class ReferenceLoss(Section):
    """Difficulty as the loss of a reference model that is fine-tuned on the other folds of the data."""

    model: str = Field("tiny-weak", description="Base model: a tiny one, a hub id or a folder.")
    folds: Annotated[int, Field(ge=2, le=20)] = Field(
        3, description="Number of folds. No example is scored by a model that was trained on it."
    )
    epochs: PositiveInt = Field(1, description="Fine-tuning epochs of each fold's model.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate of each fold's model.")


class SplitConfig(Section):
    """What is easy, what is hard, and how examples are divided."""

    mode: Literal["difficulty", "random", "cross_source"] = Field(
        "difficulty",
        description="difficulty: easy examples are labelled, hard ones are not. random: both are drawn from all "
        "examples (classic weak-to-strong). cross_source: easy ones from data.source, hard ones from data.hard_source.",
    )
    difficulty_from: Literal["column", "source", "answer_length", "reference_loss"] = Field(
        "source",
        description="column: data.source.columns.difficulty. source: the easy and hard config of reasoning_gym. "
        "answer_length: characters of the answer. reference_loss: see data.split.reference.",
    )
    easy_max: float | None = Field(
        None, description="Examples up to this difficulty are easy, the others hard. Default: the median."
    )
    reference: ReferenceLoss = Field(ReferenceLoss(), description="Only read when difficulty_from is reference_loss.")


class DataConfig(Section):
    """Examples and how they become prompts."""

    source: Source = Field(description="Where the examples come from.")
    hard_source: Source | None = Field(None, description="The hard examples of mode cross_source.")
    split: SplitConfig = Field(SplitConfig(), description="What is easy and what is hard.")
    sizes: SplitSizes = Field(SplitSizes(), description="Examples per split.")
    prompt_template: str = Field("{prompt}", description="Text around the prompt; {prompt} stands for the prompt.")
    answer_prefix: str = Field(
        " ", description="Text before the answer when it becomes tokens; not used with a chat template."
    )
    chat_template: bool = Field(False, description="Render prompts with the tokenizer's chat template (chat models).")
    add_bos: bool | None = Field(
        None,
        description="Whether a prompt without a chat template starts with the tokenizer's BOS token. Default: exactly "
        "when the tokenizer adds one by itself.",
    )
    answer_match: AnswerMatch = Field(
        "exact",
        description="When two answers are the same one, for exact match and votes of whole answers. exact: the same "
        "text. numeric: the same number (1,000 = 1000.0 = $1000). Or {kind: regex, pattern: '#### (.*)'}: the last "
        "match, as a number if it is one. Or {kind: function, name: module.function}.",
    )
    max_prompt_tokens: PositiveInt = Field(
        1024, description="Longer prompts are an error, or dropped; where labels are made, they are rejected instead."
    )
    max_answer_tokens: PositiveInt = Field(512, description="Longer answers are an error, or dropped.")
    too_long: Literal["error", "drop"] = Field(
        "error",
        description="What to do with rows that are longer than these limits, or than a model's context. Tiny models "
        "that the run pre-trains have no tokenizer yet; for these a byte is taken for a token.",
    )
    unreadable: Literal["error", "drop"] = Field(
        "error", description="What to do with rows whose text a tokenizer cannot give back."
    )

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError("must contain {prompt}")
        return value

    @model_validator(mode="after")
    def _modes_fit(self) -> DataConfig:
        mode, difficulty_from = self.split.mode, self.split.difficulty_from
        wrong = []
        if mode == "cross_source" and self.hard_source is None:
            wrong.append("split.mode cross_source needs hard_source")
        if mode != "cross_source" and self.hard_source is not None:
            wrong.append(f"hard_source is only read in split.mode cross_source, not {mode}")
        if mode == "difficulty" and difficulty_from == "source" and self.source.kind != "reasoning_gym":
            wrong.append(
                f"split.difficulty_from source needs a reasoning_gym source, not {self.source.kind}: "
                "use column, answer_length or reference_loss"
            )
        if mode == "difficulty" and difficulty_from == "column" and self.source.columns.difficulty is None:
            wrong.append("split.difficulty_from column needs source.columns.difficulty")
        raise_all(wrong)
        return self
