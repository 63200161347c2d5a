"""Which stages a setting changes: those, and no others, are done again."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import Config, parse_config
from ensemw2s.config.systems import SYSTEMS_BEFORE as SYSTEMS
from ensemw2s.errors import ArtifactError
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Graph, Stage, run_directory
from ensemw2s.pipeline.run import check_stages
from ensemw2s.storage import store
from ensemw2s.storage.store import MARKER

STUDENTS = {f"students/{name}" for name in SYSTEMS if name.startswith("student_")}
BASES = {"models/weak-0", "models/weak-1", "models/strong"}
ROUNDS = {"rounds/1", "rounds/1/experts/0", "rounds/2", "rounds/2/experts/0"}
LATER = ROUNDS - {"rounds/1/experts/0"}  # whose weights are all equal
BAGGING = {"baselines/bagging/0", "baselines/bagging/1"}
SINGLE, MATCHED = {"baselines/expert_single"}, {"baselines/expert_compute_matched"}
EXPERTS = ROUNDS | BAGGING | SINGLE | MATCHED
LABELS = {"labels", "baselines/labels/expert_single", "baselines/labels/bagging"}
EVALUATION = {"evaluation"}


def of(*names: str) -> set[str]:
    """A student, with its token table."""
    return {f"{kind}/student_{name}" for name in names for kind in ("students", "tokens/students")}


OWN_LABELS = of("single", "bagging", "ensemw2s")
TABLES = of("easy_only", "ceiling") | OWN_LABELS
GENERATION = {"tokens/generations/1", "generations/1/ensemble", "generations/1/labels"}
GENERATION |= {f"generations/1/students/{k}" for k in range(3)}
AFTER_ROUNDS = {"ensemble", "labels"} | of("ensemw2s") | EVALUATION
AFTER_BAGGING = BAGGING | {"baselines/labels/bagging"} | of("bagging") | EVALUATION
AFTER_SINGLE = SINGLE | {"baselines/labels/expert_single"} | of("single") | EVALUATION
AFTER_EXPERTS = EXPERTS | AFTER_ROUNDS | LABELS | OWN_LABELS
EVERYTHING = {"data", "corpus", "tokens", *BASES} | AFTER_EXPERTS | TABLES


def tree(**values: Any) -> dict[str, Any]:
    """A config of many systems, with other values under dotted keys."""
    made: dict[str, Any] = {
        "name": "study",
        "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
        "models": {
            "weak": [{"base": "tiny-weak", "pretraining_seed": seed} for seed in (0, 1)],
            "strong": {"base": "tiny-strong"},
        },
        "boosting": {"rounds": 2},
        "evaluation": {"systems": [*SYSTEMS], "single_base": "first"},
    }
    if values.get("student.generations", 1) > 1:
        made["evaluation"]["systems"].append("student_generations")
    for key, value in values.items():
        *parents, last = key.split(".")
        node: Any = made
        for parent in parents:
            node = node[int(parent)] if parent.isdecimal() else node.setdefault(parent, {})
        node[last] = copy.deepcopy(value)
    return made


def config(**values: Any) -> Config:
    return parse_config(tree(**values))


def graph(**values: Any) -> Graph:
    return build_graph(config(**values))


def fingerprints(**values: Any) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in graph(**values).stages()}


def changed(**values: Any) -> set[str]:
    """Names of the stages that are new or other ones."""
    before, after = fingerprints(), fingerprints(**values)
    return {name for name, fingerprint in after.items() if before.get(name) != fingerprint}


def test_the_sets_above_are_all_stages():
    assert set(fingerprints()) == EVERYTHING


CHANGES: list[tuple[str, Any, set[str]]] = [
    # who computes, where, and what it is called
    ("name", "other", set()),
    ("storage", "elsewhere", set()),
    ("cluster.cpus", 7, set()),
    ("training.workers", 4, set()),
    ("training.lanes", 3, set()),
    ("training.cpus_per_worker", 2, set()),
    ("training.max_failures", 9, set()),
    ("training.checkpoint_seconds", 1.0, set()),
    ("training.gradient_checkpointing", True, set()),
    ("labeling.max_actors", 3, set()),
    ("labeling.cpus_per_actor", 2, set()),
    # what is looked at in the end
    ("evaluation.bootstrap_samples", 100, EVALUATION),
    ("evaluation.examples", 3, EVALUATION),
    ("evaluation.single_max_epochs", 3, AFTER_SINGLE),
    # students
    ("student.epochs", 9, STUDENTS | EVALUATION),
    ("student.learning_rate", 0.5, STUDENTS | EVALUATION),
    ("student.confidence_weight", 0.1, STUDENTS | EVALUATION),
    ("student.keep_fraction", 0.5, TABLES | EVALUATION),
    ("student.mix_easy", False, TABLES | EVALUATION),
    ("student.objective", "xent", TABLES | EVALUATION),
    ("student.generation_width", 5, set()),
    ("student.generations", 2, GENERATION | of("generations") | EVALUATION),
    ("models.strong.lora", {"rank": 2}, STUDENTS | EVALUATION),
    ("models.pretraining.strong.epochs", 2, {"models/strong"} | TABLES | EVALUATION),
    # labels
    ("labeling.max_new_tokens", 9, LABELS | OWN_LABELS | EVALUATION),
    ("labeling.soft_top_k", 4, LABELS | OWN_LABELS | EVALUATION),
    ("labeling.chunk_size", 9, LABELS | OWN_LABELS | EVALUATION),
    # the ensemble
    ("ensemble.combine", "vote", AFTER_ROUNDS | (AFTER_BAGGING - BAGGING)),
    ("ensemble.weights", "uniform", AFTER_ROUNDS),
    ("ensemble.weights", "stacked", AFTER_ROUNDS),
    ("ensemble.calibration", "temperature", AFTER_ROUNDS),
    # boosting
    ("boosting.shrinkage", 0.9, LATER | AFTER_ROUNDS),
    ("boosting.prior", "samme", LATER | AFTER_ROUNDS),
    ("boosting.unit", "example", ROUNDS | AFTER_ROUNDS),
    ("boosting.weight_clip", None, LATER | AFTER_ROUNDS),
    ("boosting.weighting", "bootstrap", ROUNDS | AFTER_ROUNDS),
    ("boosting.warm_start", "previous", LATER | AFTER_ROUNDS),
    ("boosting.on_failure", "skip", LATER | AFTER_ROUNDS),
    ("boosting.error_from", "ensemble", LATER | AFTER_ROUNDS),
    (
        "boosting.rounds",
        3,
        {"rounds/3", "rounds/3/experts/0", "baselines/bagging/2"} | MATCHED | AFTER_ROUNDS | (AFTER_BAGGING - BAGGING),
    ),
    (
        "boosting.width",
        2,
        (ROUNDS - {"rounds/1/experts/0"})
        | {"rounds/1/experts/1", "rounds/2/experts/1", "baselines/bagging/2", "baselines/bagging/3"}
        | MATCHED
        | AFTER_ROUNDS
        | (AFTER_BAGGING - BAGGING),
    ),
    # experts
    ("expert.epochs", 2, AFTER_EXPERTS),
    ("expert.weight_decay", 0.5, AFTER_EXPERTS),
    ("boosting.members", [{}, {"epochs": 2}], {"rounds/2", "rounds/2/experts/0", "baselines/bagging/1"}
        | MATCHED | AFTER_ROUNDS | (AFTER_BAGGING - BAGGING)),
    ("models.weak.1.lora", {"rank": 2}, {"rounds/2", "rounds/2/experts/0", "baselines/bagging/1"}
        | AFTER_ROUNDS | (AFTER_BAGGING - BAGGING)),
    ("models.weak.1.pretraining_seed", 5, {"models/weak-1", "rounds/2", "rounds/2/experts/0", "baselines/bagging/1"}
        | AFTER_ROUNDS | (AFTER_BAGGING - BAGGING)),
    # what all models and all data come from
    ("models.pretraining.weak.epochs", 2, {"models/weak-0", "models/weak-1", "tokens"} | AFTER_EXPERTS),
    ("models.pretraining.corpus.corrupted", 0.5, EVERYTHING - {"data"}),
    ("models.pretraining.vocabulary", 99, EVERYTHING - {"data"}),
    ("training.zero_stage", 0, EVERYTHING - {"data", "corpus"}),
    ("training.precision", "bf16", EVERYTHING - {"data", "corpus"}),
    ("data.sizes.easy_train", 7, EVERYTHING),
    ("data.answer_prefix", " = ", EVERYTHING),
    ("data.source.easy", {"min_numbers": 2}, EVERYTHING),
    ("seed", 1, EVERYTHING),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), CHANGES, ids=[key for key, _, _ in CHANGES])
def test_a_setting_changes_the_stages_that_depend_on_it_and_no_others(key, value, expected):
    found = changed(**{key: value})
    assert sorted(found - expected) == [], "these would be done again for nothing"
    assert sorted(expected - found) == [], "these would be kept although they are others"


def test_votes_as_they_always_were_leave_the_fingerprint_as_it_was():
    made = graph()
    assert made.ensemble.settings == {"ensemble.combine": "probability", "boosting.rounds": 2}
    fitted = graph(**{"ensemble.weights": "stacked"}).ensemble.settings
    assert fitted == made.ensemble.settings | {"ensemble.weights": "stacked", "labeling.precision": "auto"}


def test_every_setting_of_a_recipe_changes_what_is_trained_by_it():
    values = {
        "epochs": 9, "learning_rate": 0.5, "batch_size": 3, "weight_decay": 0.25, "warmup_fraction": 0.5,
        "final_lr_fraction": 0.5, "gradient_clipping": 0.5,
    }  # fmt: skip
    for key, value in values.items():
        assert "students/student_ceiling" in changed(**{f"student.{key}": value}), key
        assert "rounds/1/experts/0" in changed(**{f"expert.{key}": value}), key
        assert "models/weak-0" in changed(**{f"models.pretraining.weak.{key}": value}), key


def test_zero_shot_figures_depend_on_bases_that_no_expert_starts_from():
    few = {"boosting.rounds": 1}
    before = fingerprints(**few)
    after = fingerprints(**few, **{"models.weak.1.pretraining_seed": 5})
    assert {name for name in after if before[name] != after[name]} == {"models/weak-1", "evaluation"}


def test_without_zero_shot_figures_such_bases_do_not_matter():
    few = {"boosting.rounds": 1, "evaluation.systems": ["ensemw2s"]}
    before = fingerprints(**few)
    after = fingerprints(**few, **{"models.weak.1.pretraining_seed": 5})
    assert {name for name in after if before[name] != after[name]} == {"models/weak-1"}


def test_a_corpus_for_other_roles_is_another_one():
    """The corpus is shared between runs, and holds only what the tiny models of its run read."""
    both, weak = graph(), graph(**{"models.strong.base": "some/hub-model"})
    assert both.corpus.stage.fingerprint != weak.corpus.stage.fingerprint
    assert both.corpus.stage.path != weak.corpus.stage.path


def test_runs_of_one_storage_share_bases_and_nothing_else():
    one, other = ({s.name: s.path for s in graph(name=name).stages()} for name in ("one", "other"))
    assert {name for name in one if one[name] == other[name]} == {"corpus", *BASES}
    assert Path("runs/cache") in one["models/strong"].parents


def test_folders_follow_the_layout_of_a_run():
    root = Path("runs/study")
    paths = {stage.name: stage.path for stage in graph().stages()}
    assert run_directory(config()) == root
    assert paths["data"] == root / "data"
    assert paths["rounds/2/experts/0"] == root / "rounds" / "2" / "experts" / "0"
    assert paths["ensemble"] == root / "ensemble"
    assert paths["labels"] == root / "labels"
    assert paths["students/student_ensemw2s"] == root / "students" / "student_ensemw2s"
    assert len(set(paths.values())) == len(paths)


def test_stages_come_after_their_inputs():
    done: set[str] = set()
    for stage in graph().stages():
        assert {before.name for before in stage.inputs} <= done
        done.add(stage.name)


def test_only_what_the_systems_need_is_there():
    assert set(fingerprints(**{"evaluation.systems": ["ensemw2s"]})) == (
        {"data", "corpus", "tokens", "ensemble", "labels", *BASES} | ROUNDS | EVALUATION
    )
    names = set(fingerprints(**{"evaluation.systems": ["student_bagging"]}))
    assert names >= BAGGING | of("bagging") | {"baselines/labels/bagging"}
    assert not names & (SINGLE | MATCHED | of("single", "ensemw2s", "ceiling", "easy_only"))


def test_no_student_but_the_ceiling_and_no_expert_depends_on_more_than_its_labels():
    def all_inputs(stage: Stage) -> set[str]:
        return {stage.name}.union(*(all_inputs(before) for before in stage.inputs))

    students = {student.name: all_inputs(student.stage) for student in graph().students}
    assert "labels" in students["student_ensemw2s"]
    assert not students["student_easy_only"] & (LABELS | EXPERTS)
    assert not students["student_ceiling"] & (LABELS | EXPERTS)
    assert not students["student_single"] & (ROUNDS | BAGGING)


@pytest.mark.parametrize("labels", ["agreed", "own", "auto"])
def test_where_the_strong_model_has_a_say_it_answers_before_the_others_learn(labels):
    made = graph(**{"student.labels": labels, "evaluation.systems": ["student_ensemw2s"]})
    assert [student.name for student in made.students] == ["student_easy_only", "student_ensemw2s"]
    asked, learning = made.students
    own = made.labels["student_easy_only"]
    assert own.inputs == (made.data, asked.stage)
    assert own in learning.data.inputs
    order = [stage.name for stage in made.stages()]
    assert [order.index(stage.name) for stage in (asked.stage, own, learning.data)] == sorted(
        order.index(stage.name) for stage in (asked.stage, own, learning.data)
    )


def test_a_choice_of_labels_changes_those_who_learn_from_them_and_nothing_else():
    own = {"baselines/labels/student_easy_only"}
    assert changed(**{"student.labels": "agreed"}) == own | OWN_LABELS | EVALUATION
    assert changed(**{"student.labels": "unanimous"}) == OWN_LABELS | EVALUATION
    assert changed(**{"student.labels": "all"}) == set()


def test_nobody_is_asked_where_no_student_learns_from_labels():
    asked = {"student.labels": "auto", "evaluation.systems": ["ensemw2s", "student_ceiling"]}
    assert graph(**asked).labels.keys() == {"ensemw2s"}


def test_every_generation_learns_from_the_labels_of_the_one_before():
    made = graph(**{"student.generations": 3, "student.generation_width": 2})
    first, second = made.generations
    assert [len(g.students) for g in made.generations] == [2, 2]
    tables = [g.students[0].data for g in made.generations] + [s.data for s in made.learning_from(["generation_2"])]
    assert [table.inputs[-1] for table in tables] == [made.labels["ensemw2s"], first.labels, second.labels]
    assert [g.labels.inputs[-1] for g in made.generations] == [first.ensemble, second.ensemble]
    assert [s.stage for s in second.students] == list(second.ensemble.inputs)
    assert made.all_labels.keys() == {"ensemw2s", "expert_single", "bagging", "generation_1", "generation_2"}
    assert sorted(s.name for s in made.learning_from(["ensemw2s"]))[-1] == "student_ensemw2s"


def test_students_of_generations_differ_in_their_seed_and_the_last_in_its_labels_alone():
    made = graph(**{"student.generations": 3})
    students = {student.name: student for student in made.students}
    last, first = students["student_generations"], students["student_ensemw2s"]
    assert last.stage.settings == first.stage.settings
    members = [student for generation in made.generations for student in generation.students]
    assert len({student.seed for student in (*members, last)}) == 7
    for student in members:
        assert student.stage.settings | {"seed": last.seed} == last.stage.settings
    done: set[str] = set()
    for stage in made.stages():
        assert {before.name for before in stage.inputs} <= done
        done.add(stage.name)


def test_one_more_generation_keeps_those_before():
    before, after = (fingerprints(**{"student.generations": n}) for n in (2, 3))
    changed_ones = {name for name in before if before[name] != after[name]}
    assert changed_ones == of("generations") | EVALUATION


def test_bases_take_turns_over_rounds_and_width():
    made = graph(**{"boosting.rounds": 2, "boosting.width": 3})
    assert [[expert.base.name for expert in r.experts] for r in made.rounds] == [
        ["weak-0", "weak-1", "weak-0"],
        ["weak-1", "weak-0", "weak-1"],
    ]
    assert [expert.base.name for expert in made.baselines["bagging"]] == ["weak-0", "weak-1"] * 3
    seeds = [e.seed for r in made.rounds for e in (*r.experts, *r.retries)] + [
        e.seed for e in made.baselines["bagging"]
    ]
    assert len(set(seeds)) == 18


def test_members_override_model_rate_epochs_and_rank_in_turn():
    made = graph(
        **{
            "boosting.rounds": 3,
            "models.weak.1.lora": {"rank": 4},
            "boosting.members": [{"model": "weak-1", "lora_rank": 2, "epochs": 1}, {"learning_rate": 0.5}],
            "expert.epochs": 7,
        }
    )
    first, second, third = (r.experts[0] for r in made.rounds)
    assert (first.base.name, first.lora.rank, first.recipe.epochs) == ("weak-1", 2, 1)
    assert (second.base.name, second.lora.rank, second.recipe.epochs) == ("weak-1", 4, 7)
    assert second.recipe.learning_rate == 0.5
    assert third == made.rounds[2].experts[0]
    assert (third.base.name, third.lora.rank) == ("weak-1", 2)
    assert [e.recipe.epochs for e in made.baselines["expert_single"]] == [2]  # twice those of the first member
    assert [e.recipe.epochs for e in made.baselines["expert_compute_matched"]] == [1 + 7 + 1]
    assert [expert.lora.rank for expert in made.baselines["bagging"]] == [2, 4, 2]


def test_a_warm_start_is_from_the_same_place_in_the_round_before():
    made = graph(**{"boosting.warm_start": "previous", "boosting.width": 2})
    assert [expert.warm_from for expert in made.rounds[0].experts] == [None, None]
    assert [expert.warm_from for expert in made.rounds[1].experts] == [e.stage for e in made.rounds[0].experts]
    assert [expert.warm_from for expert in graph().rounds[1].experts] == [None]


def test_a_warm_start_is_from_an_expert_of_the_same_base_even_if_that_is_some_rounds_ago():
    made = graph(**{"boosting.warm_start": "previous", "boosting.rounds": 5})
    experts = [r.experts[0] for r in made.rounds]
    assert [expert.base.name for expert in experts] == ["weak-0", "weak-1", "weak-0", "weak-1", "weak-0"]
    assert [expert.warm_from for expert in experts] == [None, None, *(expert.stage for expert in experts[:3])]
    for r in made.rounds:
        assert [again.warm_from for again in r.retries] == [expert.warm_from for expert in r.experts]


def test_with_one_base_a_warm_start_is_what_it_was_and_so_is_its_fingerprint():
    one = {"models.weak": [{"base": "tiny-weak"}], "boosting.warm_start": "previous", "boosting.rounds": 3}
    assert not any("warm_from" in expert.stage.settings for expert in graph(**one).boosted)
    assert "warm_from" in graph(**{"boosting.warm_start": "previous"}).boosted[1].stage.settings


def test_the_single_expert_may_be_the_best_of_all_bases_and_has_no_choice_with_one():
    made = graph(**{"evaluation.single_base": "best", "boosting.rounds": 3})
    singles, [matched] = made.baselines["expert_single"], made.baselines["expert_compute_matched"]
    assert [e.base.name for e in singles] == ["weak-0", "weak-1"]
    assert [e.keep for e in singles] == ["best", "best"]
    assert matched.best_of == singles
    assert matched.stage.inputs[-2:] == tuple(e.stage for e in singles)
    order = [stage.name for stage in made.stages()]
    assert order.index("baselines/expert_single/weak-1") < order.index("baselines/expert_compute_matched")
    one = {"models.weak": [{"base": "tiny-weak"}]}
    names = fingerprints(**one)
    with_best = fingerprints(**one, **{"evaluation.single_base": "best"})
    assert {name for name in names if names[name] != with_best[name]} == set()


def test_the_best_of_all_bases_is_trained_where_only_its_budget_is_asked_for():
    asked = graph(**{"evaluation.single_base": "best", "evaluation.systems": ["expert_compute_matched", "ensemw2s"]})
    assert asked.baselines.keys() == {"expert_single", "expert_compute_matched"}


def test_a_control_of_easy_data_alone_has_the_steps_of_a_student_of_labels():
    sizes = {"data.sizes.easy_train": 100, "data.sizes.hard_unlabelled": 150, "student.epochs": 4}
    [control] = graph(**sizes, **{"evaluation.systems": ["student_easy_matched"]}).students
    assert control.recipe(config(**sizes)).epochs == control.stage.settings["student.epochs"] == 10
    assert (control.maker, control.learns_from) == (None, "easy")
    for changes, epochs in (({"student.keep_fraction": 0.5}, 7), ({"student.mix_easy": False}, 6)):
        [control] = graph(**sizes, **changes, **{"evaluation.systems": ["student_easy_matched"]}).students
        assert control.epochs == epochs, changes


def test_epochs_that_validation_chooses_are_at_most_those_of_the_config():
    made = graph(**{"expert": {"epochs": "auto", "max_epochs": 9}, "boosting.members": [{}, {"epochs": 2}]})
    first, second = made.boosted
    assert (first.recipe.epochs, first.keep, first.stage.settings["keep"]) == (9, "best", "best")
    assert (second.recipe.epochs, second.keep) == (2, "last")
    assert "keep" not in second.stage.settings
    assert made.baselines["expert_single"][0].recipe.epochs == 9
    assert (made.baselines["expert_compute_matched"][0].recipe.epochs) == 11
    assert made.baselines["expert_compute_matched"][0].keep == "last"
    assert [expert.keep for expert in made.baselines["bagging"]] == ["best", "last"]
    assert changed(**{"expert.max_epochs": 9}) == set(), "which only matters where epochs are auto"


def test_data_in_files_is_known_by_its_content(tmp_path):
    file = tmp_path / "rows.jsonl"
    source = {
        "data.source": {"kind": "files", "paths": [str(file)], "columns": {"difficulty": "level"}},
        "data.split": {"mode": "difficulty", "difficulty_from": "column"},
    }
    file.write_text('{"prompt": "1", "answer": "2", "level": 1}\n')
    before = fingerprints(**source)
    assert fingerprints(**source) == before
    file.write_text('{"prompt": "1", "answer": "3", "level": 1}\n')
    after = fingerprints(**source)
    assert {name for name in after if after[name] == before[name]} == set()


def test_text_for_the_corpus_is_known_by_its_content(tmp_path):
    file = tmp_path / "text.jsonl"
    own = {"models.pretraining.corpus": {"paths": [str(file)]}}
    file.write_text('{"text": "a"}\n')
    before = fingerprints(**own)
    file.write_text('{"text": "b"}\n')
    after = fingerprints(**own)
    assert {name for name in after if after[name] == before[name]} == {"data"}


def test_the_order_of_keys_in_the_file_does_not_matter():
    turned = {key: tree()[key] for key in reversed(tree())}
    assert {s.name: s.fingerprint for s in build_graph(parse_config(turned)).stages()} == fingerprints()


def test_fresh_also_deletes_second_tries_of_another_config(tmp_path):
    stages = graph(**{"storage": str(tmp_path), "boosting.on_failure": "retry"})
    retry = stages.rounds[1].retries[0].stage
    with store.publish(retry.path, retry.description.model_copy(update={"settings": {"expert.epochs": 99}})) as folder:
        store.write_json(folder / "train.json", {})
    with pytest.raises(ArtifactError, match="experts/0-retry was made with another config"):
        check_stages(stages)
    assert not any(check_stages(stages, fresh=True).values())
    assert not retry.path.exists()


def test_an_anchor_changes_the_ensemble_and_no_training_of_an_expert() -> None:
    assert changed(**{"boosting.anchor": 0.5}) == AFTER_ROUNDS
    assert changed(**{"boosting.anchor": 1.0}) == set()
    assert changed(**{"boosting.anchor": "auto"}) == AFTER_ROUNDS | {"anchor"}


def test_the_search_for_an_anchor_reads_prompts_and_rounds_and_depends_on_how_members_vote() -> None:
    made = graph(**{"boosting.anchor": "auto"})
    assert made.anchor is not None
    assert [stage.name for stage in made.anchor.inputs] == ["data", "rounds/2"]
    auto = fingerprints(**{"boosting.anchor": "auto"})["anchor"]
    others: list[dict[str, Any]] = [{"ensemble.combine": "vote"}, {"ensemble.weights": "uniform"}]
    for other in others:
        assert fingerprints(**{"boosting.anchor": "auto", **other})["anchor"] != auto
    assert fingerprints(**{"boosting.anchor": "auto", "ensemble.calibration": "temperature"})["anchor"] == auto


def pass_stages(*numbers: int) -> set[str]:
    return {f"consensus/{p}/{name}" for p in numbers for name in {"answers", "kept"} | ROUNDS}


def test_consensus_passes_follow_the_rounds_and_leave_them_as_they_are() -> None:
    assert changed(**{"consensus.weight": 0.5}) == set()
    found = changed(**{"consensus.passes": 2, "consensus.anchor": 0.5})
    assert found == AFTER_ROUNDS | MATCHED | pass_stages(1, 2)
    assert changed(**{"consensus.passes": 2}) == found | {"anchor"}


def test_a_pass_depends_on_what_decides_about_it() -> None:
    def different(**values: Any) -> set[str]:
        one = fingerprints(**{"consensus.passes": 2, "consensus.anchor": 0.5})
        two = fingerprints(**{"consensus.passes": 2, "consensus.anchor": 0.5, **values})
        return {name for name in one if one[name] != two[name]} - AFTER_ROUNDS

    answers = {"consensus/1/answers"}
    assert different(**{"consensus.anchor": 0.25}) == pass_stages(1, 2)
    assert different(**{"consensus.agreement": "answer"}) == pass_stages(1, 2)
    keeping: list[dict[str, Any]] = [{"consensus.weight": 1.0}, {"consensus.min_precision": 0.5}]
    for other in keeping:
        assert different(**other) == pass_stages(1, 2) - answers
    assert different(**{"consensus.fraction": 0.25}) == (pass_stages(1, 2) - answers) | MATCHED


def test_what_a_pass_reads_has_no_hard_label() -> None:
    made = graph(**{"consensus.passes": 1, "consensus.anchor": 0.5})
    [p] = made.passes
    assert [stage.name for stage in p.answers.inputs] == ["data", "rounds/2"]
    assert [stage.name for stage in p.kept.inputs] == ["data", "tokens", "consensus/1/answers"]
    for r in p.rounds:
        for expert in (*r.experts, *r.retries):
            assert expert.kept == p.kept
            assert p.kept in expert.stage.inputs
    assert made.ensemble.inputs == (p.rounds[-1].stage,)
    assert made.expert("consensus/1/rounds/2/experts/0").base.name == "weak-1"


def test_a_limit_that_shapes_no_training_makes_nothing_stale():
    limits = {"data.max_prompt_tokens": 2000, "data.max_answer_tokens": 64}
    assert changed(**limits) == set()
    dropping = {"data.too_long": "drop"}
    assert changed(**dropping) == EVERYTHING
    assert fingerprints(**dropping) != fingerprints(**dropping, **limits)


def test_limits_that_an_older_run_recorded_do_not_make_it_another_one(tmp_path):
    made = graph(storage=str(tmp_path), **{"data.max_prompt_tokens": 256})
    older = replace(made.data, settings=made.data.settings | {"data.max_prompt_tokens": 256})
    older.path.mkdir(parents=True)
    older.description.write(older.path / MARKER)
    again = graph(storage=str(tmp_path), **{"data.max_prompt_tokens": 4096})
    assert store.is_done(again.data.path, again.data.description)
    other = graph(storage=str(tmp_path), **{"data.sizes.easy_train": 7})
    with pytest.raises(ArtifactError, match=r"data.sizes.easy_train was 2000, is 7"):
        store.is_done(other.data.path, other.data.description)


def test_how_answers_are_compared_changes_the_evaluation_and_what_samples_vote_for():
    assert changed(**{"data.answer_match": "numeric"}) == EVALUATION
    sampled = {"labeling.samples": 3, "labeling.temperature": 0.7}
    numeric = fingerprints(**sampled, **{"data.answer_match": "numeric"})
    assert {name for name, found in fingerprints(**sampled).items() if numeric[name] != found} >= LABELS | OWN_LABELS


@pytest.mark.parametrize(
    ("where", "stage"),
    [
        ({"boosting.anchor": "auto"}, "anchor"),
        ({"student.labels": "agreed"}, "tokens/students/student_ensemw2s"),
        ({"consensus.passes": 1}, "consensus/1/kept"),
    ],
)
def test_how_answers_are_compared_changes_what_looks_for_right_or_for_shared_ones(where, stage):
    exact, numeric = fingerprints(**where), fingerprints(**where, **{"data.answer_match": "numeric"})
    assert exact[stage] != numeric[stage]
