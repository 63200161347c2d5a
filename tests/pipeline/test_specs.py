"""From the graph of a run to what workers get: nothing relative, nothing that is not JSON."""

from pathlib import Path
from typing import Any

import pytest

from ensemw2s.boosting.masks import RoundWeights
from ensemw2s.config import parse_config
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Expert, Graph
from ensemw2s.pipeline.specs import base_spec, best_of, expert_spec, student_spec
from ensemw2s.pipeline.systems import baseline_voter
from ensemw2s.training.records import TrainRecord
from ensemw2s.training.spec import TrainSpec


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """Graphs of a config with a relative storage folder."""
    monkeypatch.chdir(tmp_path)

    def make(**sections: Any) -> Graph:
        return build_graph(
            parse_config(
                {
                    "name": "study",
                    "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
                    "models": {
                        "weak": [{"base": "tiny-weak", "pretraining_seed": seed} for seed in (0, 1)],
                        "strong": {"base": "tiny-strong"},
                        "pretraining": {"weak": {"epochs": 2}, "strong": {"epochs": 5}},
                    },
                    "expert": {"epochs": 4},
                    "boosting": {"rounds": 2},
                    "evaluation": {"single_base": "first"},
                    **sections,
                }
            )
        )

    return make


def specs_of(graph: Graph) -> list[TrainSpec]:
    return [
        *(base_spec(graph, base) for base in graph.bases),
        *(expert_spec(graph, expert, weights=RoundWeights()) for r in graph.rounds for expert in r.experts),
        *(expert_spec(graph, expert) for expert in graph.baseline_experts),
        *(student_spec(graph, student) for student in graph.students),
    ]


def test_a_worker_needs_nothing_but_the_json_of_a_spec(graph, tmp_path):
    specs = specs_of(graph())
    assert len(specs) == 3 + 2 + 4 + 6
    for spec in specs:
        assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
        for path in (spec.output, *spec.tokens):
            assert tmp_path in Path(path).parents


def test_names_and_markers_are_those_of_the_stages(graph):
    made = graph()
    stages = {stage.name: stage for stage in made.stages()}
    for spec in specs_of(made):
        assert spec.fingerprint == stages[spec.name].description
        assert Path(spec.output) == stages[spec.name].path.resolve()


def test_a_tiny_base_reads_the_corpus_of_its_role_with_its_recipe(graph):
    made = graph()
    strong, weak, other = (base_spec(made, base) for base in made.bases)
    assert [Path(spec.tokens[0]).name for spec in (strong, weak, other)] == [
        "strong.parquet",
        "weak.parquet",
        "weak.parquet",
    ]
    assert (strong.recipe.epochs, weak.recipe.epochs) == (5, 2)
    assert (strong.start.tiny, weak.start.tiny) == ("tiny-strong", "tiny-weak")
    assert weak.start.path == str((made.corpus.stage.path / "tokenizer").resolve())
    assert len({spec.seed for spec in (strong, weak, other)}) == 3
    assert weak.weights is None


def test_an_expert_starts_from_its_base_on_the_weights_of_its_round(graph):
    made = graph()
    weights = RoundWeights(masks=[("somewhere", 1.5)])
    expert = made.rounds[1].experts[0]
    made.weak[1].stage.path.mkdir(parents=True)
    spec = expert_spec(made, expert, weights=weights)
    assert spec.start.path == str(made.weak[1].stage.path.resolve())
    assert (spec.start.tiny, spec.start.lora) == (None, None)
    assert spec.weights == weights
    assert spec.tokens == [str((made.tokens.path / "easy_train.parquet").resolve())]
    assert (spec.recipe.epochs, spec.seed, spec.keep, spec.validation) == (4, expert.seed, "last", None)


def test_the_single_expert_keeps_its_best_epoch_on_validation(graph):
    made = graph()
    spec = expert_spec(made, *made.baselines["expert_single"])
    assert (spec.keep, spec.recipe.epochs) == ("best", 8)
    assert spec.validation == str((made.tokens.path / "easy_validation.parquet").resolve())
    assert spec.weights is None


def test_the_matched_expert_has_the_budget_of_all_rounds_and_no_look_at_validation(graph):
    made = graph(boosting={"rounds": 3, "width": 2})
    spec = expert_spec(made, *made.baselines["expert_compute_matched"])
    assert (spec.recipe.epochs, spec.keep, spec.validation) == (4 * 6, "last", None)


def test_bagged_experts_each_draw_their_own_examples(graph):
    made = graph(evaluation={"systems": ["bagging"]})
    first, second = (expert_spec(made, expert).weights for expert in made.baselines["bagging"])
    assert (first.unit, first.weighting, first.bootstrap, first.masks) == ("example", "bootstrap", "count", [])
    assert first.seed != second.seed


def test_a_warm_start_is_from_the_expert_before_with_the_adapters_settings(graph):
    lora = {"rank": 2}
    made = graph(
        boosting={"rounds": 2, "warm_start": "previous"},
        models={"weak": [{"base": "tiny-weak", "lora": lora}], "strong": {"base": "tiny-strong", "lora": {"rank": 4}}},
    )
    made.weak[0].stage.path.mkdir(parents=True)
    first, second = (expert_spec(made, r.experts[0]) for r in made.rounds)
    assert first.start.lora.rank == second.start.lora.rank == 2
    assert first.start.path == str(made.weak[0].stage.path.resolve())
    assert second.start.path == first.output
    assert student_spec(made, made.students[0]).start.lora.rank == 4


def test_a_hub_id_stays_what_it_is_with_its_revision(graph, tmp_path):
    (tmp_path / "local").mkdir()
    made = graph(
        models={"weak": [{"base": "some/model", "revision": "v2"}], "strong": {"base": "local"}},
        evaluation={"systems": ["ensemw2s", "student_ceiling"]},
    )
    spec = expert_spec(made, made.rounds[0].experts[0])
    assert (spec.start.path, spec.start.revision) == ("some/model", "v2")
    assert student_spec(made, made.students[0]).start.path == str(tmp_path / "local")


def test_students_differ_in_their_data_alone(graph):
    made = graph(student={"objective": "logconf", "confidence_weight": 0.25, "confidence_warmup": 0.5, "epochs": 3})
    specs = [student_spec(made, student) for student in made.students]
    assert len({tuple(spec.tokens) for spec in specs}) == 6
    assert len({(spec.seed, spec.start.path, spec.recipe.epochs) for spec in specs}) == 1
    objective = specs[0].objective
    assert (objective.kind, objective.confidence_weight, objective.confidence_warmup) == ("logconf", 0.25, 0.5)
    assert {spec.objective.kind for spec in specs} == {"logconf"}


def test_only_students_have_another_loss_than_cross_entropy(graph):
    made = graph(student={"objective": "soft"}, labeling={"soft_top_k": 4})
    kinds = {spec.name.split("/")[0]: spec.objective.kind for spec in specs_of(made)}
    assert kinds == {"models": "xent", "rounds": "xent", "baselines": "xent", "students": "soft"}


def test_the_section_training_reaches_every_spec(graph):
    training = {"zero_stage": 3, "precision": "bf16", "gradient_checkpointing": True, "cpus_per_worker": 2.5}
    for spec in specs_of(graph(training=training)):
        assert (spec.zero_stage, spec.precision, spec.gradient_checkpointing, spec.threads) == (3, "bf16", True, 2)
    assert specs_of(graph(training={"cpus_per_worker": 0.5}))[0].threads == 1


def trained(expert: Expert, *validation: float) -> None:
    """What training this expert leaves, having kept its last epoch but one."""
    Path(expert.stage.path).mkdir(parents=True)
    TrainRecord(
        name=expert.stage.name,
        examples=4,
        epochs=len(validation),
        kept_epoch=len(validation) - 1,
        steps=1,
        workers=1,
        zero_stage=1,
        precision="fp32",
        parameters=1,
        trained_parameters=1,
        tokens_trained=1,
        loss=(1.0,),
        validation_exact_match=validation,
        seconds=1.0,
        finished=0.0,
    ).write(expert.stage.path)


@pytest.mark.parametrize(("second", "winner"), [(0.75, 1), (0.5, 0), (0.25, 0)])
def test_the_whole_budget_goes_to_the_base_that_easy_validation_finds_best_by_the_kept_epoch(graph, second, winner):
    made = graph(evaluation={"single_base": "best"})
    singles, [matched] = made.baselines["expert_single"], made.baselines["expert_compute_matched"]
    trained(singles[0], 0.5, 0.9)
    trained(singles[1], second, 0.0)
    assert best_of(singles) is singles[winner]
    spec = expert_spec(made, matched)
    assert spec.start.path == singles[winner].base.location
    assert spec.recipe.epochs == 8
    assert baseline_voter(made, "expert_single").models == [str(singles[winner].stage.path.resolve())]
