"""What each phase of a run does: it reads the folders of its inputs and leaves its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.boosting.records import AnchorSearch, BoostedExpert, TrainingSpent, VoteFit, members_of
from ensemw2s.config.systems import ENSEMW2S, SEQUENCE_VOTE
from ensemw2s.data.dropped import Dropped
from ensemw2s.data.shots import take_shots, write_template
from ensemw2s.data.splits import SPLITS, Splits, check_disjoint, make_splits
from ensemw2s.data.tokens import check_answers_fit, tokenize_examples
from ensemw2s.ensemble.manifest import read_manifest
from ensemw2s.evaluation import warnings
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.evaluate import evaluate_all
from ensemw2s.evaluation.records import RESULTS, GenerationResult, RunResults, TrainingCost
from ensemw2s.evaluation.results import Figures, label_result
from ensemw2s.evaluation.voters import EvaluationWork, VoterGroup
from ensemw2s.labeling.chunks import LabelJob
from ensemw2s.labeling.labels import label_all
from ensemw2s.labeling.parts import read_labels
from ensemw2s.labeling.summary import summarise
from ensemw2s.models import corpus, tiny
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.pipeline.alphabet import characters, say_unknown
from ensemw2s.pipeline.anchoring import anchors_of, final_rounds, passes_made, scale_of
from ensemw2s.pipeline.answers import write_answers, write_forced
from ensemw2s.pipeline.consensus import pass_results
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import StudentGeneration
from ensemw2s.pipeline.reference import reference_losses
from ensemw2s.pipeline.rounds import finished_rounds
from ensemw2s.pipeline.scan import TOKENIZER, check_splits, check_trained, remember, run_check
from ensemw2s.pipeline.segments import with_segments
from ensemw2s.pipeline.specs import base_spec, expert_spec, student_spec
from ensemw2s.pipeline.student_tables import choices, is_easy_only, make_student_data, take_easy_only
from ensemw2s.pipeline.systems import WEAK, groups, label_maker, prefix_voters
from ensemw2s.pipeline.votes import HELD_OUT, fit_votes, said_of_votes, weighed_members, with_votes
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Stage, read_table
from ensemw2s.training.records import TrainRecord

DROPPED = "dropped.json"
"""In the folder of the splits: which rows became no example, if there are any."""


def done(stage: Stage) -> bool:
    """Whether a stage has left its output already."""
    return store.is_done(stage.path, stage.description)


def make_data(context: Context) -> None:
    """Divides the examples of the sources into the splits; answers to hard prompts go into a file of their own."""
    stage, config = context.graph.data, context.config
    splits = make_splits(
        config.data,
        seed=config.seed,
        reference=lambda table: reference_losses(context, table),
        check=run_check(config),
    )
    check_disjoint(splits)
    rendered = config.data
    if config.data.shots:
        rendered, easy_train = take_shots(splits.easy_train, config.data)
        splits = replace(splits, easy_train=easy_train)
        check_splits(config.model_copy(update={"data": rendered}), run_check(config), splits.tables())
    with store.publish(stage.path, stage.description) as folder:
        for name, table in splits.tables().items():
            pq.write_table(table, folder / f"{name}.parquet")
        pq.write_table(splits.hard_labels, folder / "hard_labels.parquet")
        if config.data.shots:
            write_template(folder, rendered)
        if splits.dropped:
            splits.dropped.write_file(folder / DROPPED)
    remember(config)
    for sentence in splits.dropped.sentences():
        context.progress.say(f"  data: {sentence}")


def read_splits(context: Context) -> Splits:
    """The splits, without the answers to hard prompts."""
    folder = context.graph.data.path
    tables = {name: read_table(folder / f"{name}.parquet") for name in SPLITS}
    return Splits(
        **tables, hard_labels=pa.table({"id": pa.array([], pa.string()), "answer": pa.array([], pa.string())})
    )


def make_corpus(context: Context) -> None:
    """Writes the text that tiny bases are pre-trained on, and trains their tokenizer on it."""
    graph, config = context.graph, context.config
    made = graph.corpus
    assert made is not None
    stage, splits, pretraining = made.stage, read_splits(context), config.models.pretraining
    roles = {base.role for base in graph.pretrained}
    sizes: dict[corpus.Role, int] = {
        "weak": pretraining.corpus.weak_documents,
        "strong": pretraining.corpus.strong_documents,
    }
    amounts = {role: amount for role, amount in sizes.items() if role in roles}
    texts = corpus.documents(config.data, pretraining.corpus, splits, amounts=amounts, seed=made.seed)
    task = [f"{row['prompt']}{config.data.answer_prefix}{row['answer']}" for row in splits.easy_train.to_pylist()]
    read = [text for part in texts.values() for text in part] + task + splits.hard_unlabelled["prompt"].to_pylist()
    also = characters(config.data, splits)
    own = {base.suffix: base.vocabulary or pretraining.vocabulary for base in graph.pretrained}
    tokenizers = {suffix: tiny.train_tokenizer(read, size, also=also) for suffix, size in own.items()}
    for tokenizer in tokenizers.values():
        say_unknown(graph.data.path, tokenizer, config.data)
        check_trained(config, tokenizer, graph.data.path)
    needed = {(base.role, base.suffix) for base in graph.pretrained}
    with store.publish(stage.path, stage.description) as folder:
        for suffix, tokenizer in tokenizers.items():
            tokenizer.save_pretrained(folder / f"{TOKENIZER}{suffix}")
            for role, part in texts.items():
                if (role, suffix) in needed:
                    documents = corpus.tokenize_documents(part, tokenizer, context=tiny.CONTEXT)
                    pq.write_table(documents, folder / f"{role}{suffix}.parquet")


def pretrain(context: Context) -> None:
    """Pre-trains the tiny bases that are not in the cache yet, the strong one first: it takes longest."""
    context.lanes.train([base_spec(context.graph, base) for base in context.graph.pretrained])


def make_tokens(context: Context) -> None:
    """Tokenizes the easy labelled splits for the weak models."""
    graph, config = context.graph, context.config
    readers = list({base.tokenizer: base for base in reversed(graph.weak)}.values())[::-1]
    tokenizers = [load_tokenizer(base.path, base.revision) for base in readers]
    with store.publish(graph.tokens.path, graph.tokens.description) as folder:
        for split in ("easy_train", "easy_validation"):
            table = read_table(graph.data.path / f"{split}.parquet")
            tables = [tokenize_examples(table, tokenizer, graph.rendering) for tokenizer in tokenizers]
            for tokens in tables:
                check_answers_fit(tokens, config.labeling.max_new_tokens)
            if graph.mixed:
                tables = with_segments(table, tables, tokenizers, config)
            for base, tokens in zip(readers, tables, strict=True):
                pq.write_table(tokens, folder / graph.easy(split, base).name)


def make_ensemble(context: Context) -> None:
    """Gathers the boosted experts into one artifact; their votes follow from alphas, are equal, or are fitted."""
    from ensemw2s.ensemble.artifact import MemberSource, save_ensemble

    stage, base, config = context.graph.ensemble, context.graph.weak[0], context.config.ensemble
    members, fit = weighed_members(finished_rounds(context.graph, final_rounds(context.graph)), config.weights), None
    scale = scale_of(context.graph)
    if config.fitted:
        anchors = anchors_of(context.graph, [m for m in members if m.weight > 0], scale)
        members, fit = fit_votes(context, members, anchors)
        context.progress.say(said_of_votes(members, fit))
    sources = [
        MemberSource(
            name=m.member,
            directory=remote.pull(context.graph.expert_folder(m.name)),
            alpha=m.alpha,
            weight=m.weight,
            round=m.round,
            weighted_error=m.weighted_error,
            temperature=1.0 if m.temperature is None else m.temperature,
            anchor=next(iter(anchors_of(context.graph, [m], scale)), None),
        )
        for m in members
    ]
    tokenizer = None if context.graph.mixed else load_tokenizer(base.path, base.revision)
    with store.publish(stage.path, stage.description) as folder:
        save_ensemble(folder, members=sources, rule=config.combine, tokenizer=tokenizer)
        if fit is not None:
            fit.write(folder)


def make_labels(context: Context, makers: Collection[str] | None = None) -> None:
    """Makes the pseudo-labels of the unlabelled hard prompts, by these makers, or by all but generations."""
    labels = context.graph.labels
    _make_labels(context, {maker: labels[maker] for maker in (labels if makers is None else makers)})


def _make_labels(context: Context, makers: Mapping[str, Stage]) -> None:
    waiting = {maker: stage for maker, stage in makers.items() if not done(stage)}
    prompts = context.graph.data.path / "hard_unlabelled.parquet"
    jobs = []
    for maker, stage in waiting.items():
        store.resume(stage.path, stage.description)
        jobs.append(LabelJob(label_maker(context.graph, maker), prompts, stage.path))
    label_all(
        jobs,
        data=context.graph.rendering,
        labeling=context.config.labeling,
        pool=context.pool,
        on_progress=lambda n, total, note: context.progress.update("labels", n, total, note),
    )
    for maker, stage in waiting.items():
        summary = summarise(stage.path)
        for warning in warnings.of_labels(maker, summary.finish_reasons, context.config.labeling.max_new_tokens):
            context.progress.say(f"  warning: {warning}")
        summary.write(stage.path)
        store.finish(stage.path, stage.description)


def train_baselines(context: Context) -> None:
    """Trains baseline experts and students without pseudo-labels, which wait for no round; the longest go first."""
    graph = context.graph
    later = [expert for expert in graph.baseline_experts if expert.best_of]
    specs = [expert_spec(graph, expert) for expert in graph.baseline_experts if not expert.best_of]
    for student in graph.learning_from([None]):
        if not done(student.data):
            make_student_data(context, student)
        specs.append(student_spec(graph, student))
    context.lanes.train(sorted(specs, key=lambda spec: -spec.recipe.epochs), priority=1)
    if later:  # what they start from is known only now
        context.lanes.train([expert_spec(graph, expert) for expert in later], priority=1)


def train_students(context: Context) -> None:
    """Trains the students of weak models' pseudo-labels, among them those of the first generation."""
    _train_students(context, context.graph.labels)


def _train_students(context: Context, makers: Collection[str]) -> None:
    specs = []
    for student in context.graph.learning_from(makers):
        if not done(student.data):
            make_student_data(context, student)
        if not is_easy_only(student):
            specs.append(student_spec(context.graph, student))
        elif not done(student.stage):
            take_easy_only(context, student)
    context.lanes.train(specs)


def make_generations(context: Context) -> None:
    """Makes what follows from each generation: its ensemble, its labels, and the students that learn from them."""
    for generation in context.graph.generations:
        students = context.graph.learning_from([generation.name])
        if all(map(done, (generation.ensemble, generation.labels, *(student.stage for student in students)))):
            continue
        with context.stage(f"generations/{generation.number}", "labels of its students, and who learns from them"):
            if not done(generation.ensemble):
                _make_generation_ensemble(context, generation)
            if not done(generation.labels):
                _make_labels(context, {generation.name: generation.labels})
            _train_students(context, [generation.name])


def _make_generation_ensemble(context: Context, generation: StudentGeneration) -> None:
    """Gathers the students into one artifact; votes are equal, since the students differ in their seed alone."""
    from ensemw2s.ensemble.artifact import MemberSource, save_ensemble

    strong, rule = context.graph.strong, context.config.ensemble.combine
    members = [
        MemberSource(f"student-{k}", remote.pull(student.stage.path), alpha=1.0, weight=1.0, round=1)
        for k, student in enumerate(generation.students)
    ]
    tokenizer = load_tokenizer(strong.path, strong.revision)
    with store.publish(generation.ensemble.path, generation.ensemble.description) as folder:
        save_ensemble(folder, members=members, rule=rule, tokenizer=tokenizer)


def evaluate(context: Context) -> None:
    """Decodes and scores every system on the test splits, and works out the figures."""
    graph, config, stage = context.graph, context.config, context.graph.evaluation
    history = with_votes(
        finished_rounds(graph, final_rounds(graph)), read_manifest(graph.ensemble.path, mixed=True).members
    )
    members = members_of(history)
    prefixes = VoterGroup(name="rounds", voters=tuple(prefix_voters(graph, members)))
    tests = {"id": graph.data.path / "id_test.parquet", "ood": graph.data.path / "ood_test.parquet"}
    paths = {**tests, "validation": graph.data.path / "easy_validation.parquet"}
    voters = groups(graph, members)
    work = [EvaluationWork(split, path, group, decoded=True) for group in voters for split, path in tests.items()]
    work += [EvaluationWork(split, path, prefixes, decoded=False) for split, path in paths.items()]
    weak = [group for group in voters if group.name == WEAK]
    work += [EvaluationWork("validation", paths["validation"], group, decoded=False) for group in weak]
    if config.data.sizes.hard_validation:
        paths["hard_validation"] = graph.data.path / "hard_validation.parquet"
        hard = paths["hard_validation"]
        work += [EvaluationWork("hard_validation", hard, group, decoded=False) for group in voters]
    columns = evaluate_all(
        work,
        data=context.graph.rendering,
        labeling=config.labeling,
        pool=context.pool,
        shown=config.evaluation.examples,
        on_progress=lambda n, total, note: context.progress.update("evaluation", n, total, note),
    )
    truths = {split: read_table(path) for split, path in paths.items()}
    if config.ensemble.fitted:
        truths["validation"], columns["validation"] = _held_out(truths["validation"], columns["validation"])
    figures = Figures(config, truths, columns, members, _training_costs(context, members))
    hard_labels = read_table(graph.data.path / "hard_labels.parquet")
    labels = {
        maker: label_result(read_labels(made.path), hard_labels, figures.key)
        for maker, made in graph.all_labels.items()
    }
    dropped = graph.data.path / DROPPED
    results = RunResults(
        name=config.name,
        seed=config.seed,
        config_fingerprint=stage.fingerprint,
        systems=figures.systems(),
        validation=figures.validation(),
        hard_validation=figures.validation("hard_validation") if "hard_validation" in paths else None,
        bases=figures.bases(),
        pgr=figures.pgr(),
        comparisons=tuple(figures.comparisons()),
        rounds=tuple(history),
        passes=pass_results(graph, figures, hard_labels) if graph.passes else None,
        anchor=AnchorSearch.read(graph.anchor.path) if graph.anchor is not None else None,
        fit=VoteFit.read(graph.ensemble.path) if config.ensemble.fitted else None,
        curves=figures.curves(),
        labels=labels,
        choices=choices(graph, hard_labels) or None,
        generations=tuple(map(_generation_result, graph.generations)) or None,
        examples=tuple(figures.examples(truths["ood"])),
        dropped=Dropped.read_file(dropped) if remote.exists(dropped) else None,
        warnings=warnings.of_run(labels, columns, history, config.labeling.max_new_tokens),
    )
    with store.publish(stage.path, stage.description) as folder:
        results.write_file(folder / RESULTS)
        write_answers(folder / "answers.parquet", truths, columns)
        write_forced(folder / "forced.parquet", truths, columns)


def _held_out(table: pa.Table, columns: dict[str, Rows]) -> tuple[pa.Table, dict[str, Rows]]:
    """Validation examples and the columns of all voters, without the examples that the votes were fitted on."""
    kept = list(range(len(table)))[HELD_OUT]
    found = {voter: {key: values[HELD_OUT] for key, values in rows.items()} for voter, rows in columns.items()}
    return table.take(kept), found


def _training_costs(context: Context, members: Sequence[BoostedExpert]) -> dict[str, TrainingCost]:
    """Tokens and seconds that training each system took, its label makers not counted."""
    graph = context.graph
    earlier = (graph.rounds, *(p.rounds for p in passes_made(graph)))[:-1]  # before the last pass
    trained = [*(m for rounds in earlier for m in members_of(finished_rounds(graph, rounds))), *members]
    given_up = [m.first_try for m in trained if m.first_try is not None]
    boosted = _cost([graph.expert_folder(m.name) for m in trained], given_up)
    costs = {name: _cost([expert.stage.path for expert in experts]) for name, experts in graph.baselines.items()}
    costs |= {student.name: _cost([student.stage.path]) for student in graph.students}
    return costs | {ENSEMW2S: boosted, SEQUENCE_VOTE: boosted}


def _cost(models: list[Path], given_up: Sequence[TrainingSpent] = ()) -> TrainingCost:
    """What training these models took, with first tries that were given up."""
    trainings: list[TrainRecord | TrainingSpent] = [*map(TrainRecord.read, models), *given_up]
    return TrainingCost(
        tokens_trained=sum(training.tokens_trained for training in trainings),
        train_seconds=round(sum(training.seconds for training in trainings), 2),
    )


def _generation_result(generation: StudentGeneration) -> GenerationResult:
    """How many students a generation has, and what training all of them took."""
    cost = _cost([student.stage.path for student in generation.students])
    return GenerationResult(
        name=generation.name,
        students=len(generation.students),
        tokens_trained=cost.tokens_trained,
        train_seconds=cost.train_seconds,
    )
