"""What a student learns from: labels, true answers and easy examples go in, a table of its tokens comes out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config.systems import BASE_ENSEMBLE, STUDENT_EASY_ONLY
from ensemw2s.data.answers import answer_key
from ensemw2s.data.tokens import WEIGHT, tokenize_examples
from ensemw2s.errors import DataError
from ensemw2s.evaluation.records_labels import ChoiceResult
from ensemw2s.evaluation.results import choice_result
from ensemw2s.labeling.choice import CHOICE, CHOSEN, Choice, Chosen, choose
from ensemw2s.labeling.parts import read_labels
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Graph, Student
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import read_table

logger = logging.getLogger(__name__)


def make_student_data(context: Context, student: Student) -> None:
    """Makes the token table of a student: pseudo-labels or true labels of hard prompts, and easy labelled examples."""
    config, strong = context.config, context.graph.strong
    tokenizer = load_tokenizer(strong.path, strong.revision)
    data = context.graph.data.path
    tables, chosen = [], None
    if student.maker is not None:
        chosen = _chosen(context, student.maker)
        tables.append(_label_tokens(context, chosen, tokenizer))
    elif student.learns_from == "true":
        tables.append(tokenize_examples(_true_hard(data), tokenizer, context.graph.rendering))
    if config.student.mix_easy or student.learns_from == "easy" or (chosen is not None and chosen.choice.easy_only):
        tables.append(tokenize_examples(read_table(data / "easy_train.parquet"), tokenizer, context.graph.rendering))
    with store.publish(student.data.path, student.data.description) as folder:
        pq.write_table(_with_weights(tables), folder / "train.parquet")
        if chosen is not None:
            chosen.choice.write(folder)
            pq.write_table(chosen.for_results(), folder / CHOSEN)


def is_easy_only(student: Student) -> bool:
    """Whether `auto` lets no label pass, so that this student is the one of the easy data alone. Its table is made."""
    return remote.exists(student.data.path / CHOICE) and Choice.read(student.data.path).easy_only


def take_easy_only(context: Context, student: Student) -> None:
    """Makes a student of the weights of the one of the easy data alone, without another training."""
    [easy] = (other for other in context.graph.students if other.name == STUDENT_EASY_ONLY)
    with store.publish(student.stage.path, student.stage.description) as folder:
        own = shutil.ignore_patterns(store.MARKER, store.CONTENTS)
        shutil.copytree(remote.pull(easy.stage.path), folder, ignore=own, dirs_exist_ok=True)
    context.progress.say(
        f"  {student.stage.name}: too few of its labels are also {STUDENT_EASY_ONLY}'s answers, so it is that student "
        "(student.labels auto)"
    )


def _with_weights(tables: list[pa.Table]) -> pa.Table:
    """All examples in one table; if some have a weight, all others count 1."""
    joined = pa.concat_tables(tables, promote_options="default")
    if WEIGHT not in joined.column_names:
        return joined
    weights = joined[WEIGHT].fill_null(1.0)
    return joined.set_column(joined.schema.get_field_index(WEIGHT), WEIGHT, weights)


def _true_hard(data: Path) -> pa.Table:
    """The hard prompts with their true answers. Only the ceiling student may ask for them."""
    unlabelled = read_table(data / "hard_unlabelled.parquet")
    prompts, answers = unlabelled.drop_columns(["answer"]), read_table(data / "hard_labels.parquet")
    joined = pa.Table.from_pylist(
        [{**p, "answer": a} for p, a in zip(prompts.to_pylist(), answers["answer"].to_pylist(), strict=True)],
        schema=unlabelled.schema,
    )
    return joined.filter(joined["answer"].is_valid())


def _chosen(context: Context, maker: str) -> Chosen:
    """The pseudo-labels of this maker that a student learns from.

    Raises:
        DataError: If there are none, and easy examples cannot stand in for them. For labels of untuned bases they can.
    """
    config, graph = context.config, context.graph
    labels = read_labels(graph.all_labels[maker].path)
    own = read_labels(graph.labels[STUDENT_EASY_ONLY].path) if STUDENT_EASY_ONLY in graph.labels else None
    earlier = [student for made in graph.generations if made.name == maker for student in made.students]
    easy_only = any(map(is_easy_only, earlier))
    chosen = choose(labels, own, config.student, answer_key(config.data.answer_match), easy_only=easy_only)
    if len(chosen.labels) or chosen.choice.easy_only:
        return chosen
    if maker == BASE_ENSEMBLE and config.student.mix_easy:  # untuned bases may answer nothing; others go on
        logger.warning(f"no label of {maker} can be used: its student learns from easy examples alone")
        return chosen
    if config.student.labels == "all":
        raise DataError(
            f"no label of {maker} can be used: each is empty, longer than labeling.max_new_tokens "
            f"({config.labeling.max_new_tokens}), or below student.min_agreement or student.min_consistency. Raise the "
            "first or lower the others"
        )
    if not config.student.mix_easy:
        raise DataError(
            f"student.labels {config.student.labels} keeps no label of {maker}, and student.mix_easy is false: set it "
            "to true, or student.labels to all"
        )
    return chosen


def _label_tokens(context: Context, chosen: Chosen, tokenizer: Any) -> pa.Table:
    """Chosen pseudo-labels as tokens of the student, with their weights where not all count 1."""
    config, labels = context.config, chosen.labels
    tokens = tokenize_examples(labels, tokenizer, context.graph.rendering)
    if (chosen.weights != 1).any():
        tokens = tokens.append_column(WEIGHT, pa.array(chosen.weights, pa.float32()))
    if config.student.objective != "soft":
        return tokens
    # distributions belong to the very tokens that were decoded, so these are the answer
    tokens = tokens.set_column(2, tokens.schema.field("answer_ids"), labels["token_ids"])
    return tokens.append_column("top_tokens", labels["top_tokens"]).append_column(
        "top_logprobs", labels["top_logprobs"]
    )


def choices(graph: Graph, hard_labels: pa.Table) -> dict[str, ChoiceResult]:
    """How the labels of each student were chosen; tables that older runs made do not say it."""
    key = answer_key(graph.config.data.answer_match)
    return {
        student.name: choice_result(Choice.read(folder), read_table(folder / CHOSEN), hard_labels, key)
        for student in graph.students
        if student.maker is not None and remote.exists((folder := student.data.path) / CHOSEN)
    }
