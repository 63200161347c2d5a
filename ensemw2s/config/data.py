"""The section `data` of the config: where examples come from, what is easy and what is hard, and how prompts look."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemw2s.config.answers import AnswerMatch
from ensemw2s.config.section import PositiveInt, Section, raise_all


class MultipleChoice(Section):
    """How a multiple-choice question becomes a prompt and an answer.

    `columns.prompt` is the question, `columns.choices` its options and `columns.answer` the right one: its label, its
    text, or its place (`A` or `1` for the first).
    """

    style: Literal["text", "letter", "likelihood"] = Field(
        "text",
        description="text: the prompt lists the options and the answer is the text of one. letter: the same, with "
        "letters, and the answer is a letter. likelihood: the prompt is the question alone, and options are compared "
        "by their likelihood.",
    )
    labels: str | None = Field(
        None,
        description="Column or template of the list of the options' labels, where columns.choices is a plain list. "
        "Default: none are needed, or columns.choices has them, as `{text: [...], label: [...]}`.",
    )
    shuffle_seed: Annotated[int, Field(ge=0)] | None = Field(
        0,
        description="Seed of the order of the options, which differs from question to question, so that no place is "
        "right more often than another. null keeps the order of the source.",
    )


class Columns(Section):
    """Where an example's fields come from in a source's rows.

    Each value is a column's name, or, when it contains `{{`, a Jinja template over the row
    (`"{{ metadata.numbers | join(' ') }}"`), so that prompts can be built from raw fields.
    """

    prompt: str = Field("prompt", description="Column or template of the prompt.")
    answer: str = Field("answer", description="Column or template of the answer.")
    id: str | None = Field(None, description="Column or template of a unique id. Default: a hash of the content.")
    difficulty: str | None = Field(None, description="Column or template of a number; larger means harder.")
    choices: str | None = Field(
        None,
        description="Column or template of the options of a multiple-choice question: a list of texts; with "
        "multiple_choice also `{text: [...], label: [...]}` or a list of such pairs.",
    )
    multiple_choice: MultipleChoice | None = Field(
        None,
        exclude_if=lambda value: value is None,  # fingerprints of older sources have no such key
        description="Make prompt and answer from question, options and the key of the right one. Default: prompt and "
        "answer are what their columns say.",
    )

    @model_validator(mode="after")
    def _has_options(self) -> Columns:
        if self.multiple_choice is not None and self.choices is None:
            raise ValueError("multiple_choice needs choices, the column of the options")
        return self


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
    shots: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="Solved examples before each prompt, the same ones everywhere. The seed chooses them among "
        "easy_train, and they are not trained on. The template is put around each of them, and an empty line after it.",
    )
    answer_prefix: str = Field(
        " ", description="Text before the answer when it becomes tokens; not used with a chat template."
    )
    chat_template: bool = Field(False, description="Render prompts with the tokenizer's chat template (chat models).")
    system_prompt: str | None = Field(
        None, description="Text of the system message before each prompt; needs chat_template. Default: none."
    )
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

    @property
    def has_options(self) -> bool:
        """Whether prompts are multiple-choice questions, which are labelled by their likeliest option."""
        return any(s is not None and s.columns.multiple_choice is not None for s in (self.source, self.hard_source))

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
        if self.shots >= self.sizes.easy_train:
            wrong.append(f"shots is {self.shots}; sizes.easy_train must be larger, since shots are not trained on")
        if self.system_prompt is not None and not self.chat_template:
            wrong.append("system_prompt is only read with chat_template: true; or write it into prompt_template")
        raise_all(wrong)
        return self
