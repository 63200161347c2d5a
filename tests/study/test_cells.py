import re
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import SYSTEMS, load_config
from ensemw2s.config.study import StudyConfig, load_study
from ensemw2s.data.splits import make_splits
from ensemw2s.errors import ConfigError
from ensemw2s.models import corpus
from ensemw2s.study import cells
from ensemw2s.study.cells import expand, variants

from ..config.test_study import RUN

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "ensemw2s" / "recipes" / "studies").glob("*.yaml"))


def study(**values: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "s", "base": RUN, "seeds": [0, 1], **values})


def test_cells_are_tasks_times_variants_times_seeds_with_whole_replications_first() -> None:
    found = expand(study(tasks={"a": {}, "b": {"data.sizes.ood_test": 7}}, variants={"v": {"boosting.rounds": 2}}))
    assert [(c.seed, c.task, c.variant) for c in found] == [
        (seed, task, variant) for seed in (0, 1) for task in ("a", "b") for variant in ("default", "v")
    ]
    last = found[-1].config
    assert (last.seed, last.data.sizes.ood_test, last.boosting.rounds, last.name) == (1, 7, 2, "s")
    assert found[0].config.boosting.rounds == 5


def test_a_factor_is_varied_alone_and_a_grid_in_all_combinations() -> None:
    found = variants(
        study(factors={"boosting.unit": ["example"], "boosting.shrinkage": [1.0]}, grid={"x": [1, 2], "y": [True]})
    )
    assert found == {
        "default": {},
        "boosting.unit=example": {"boosting.unit": "example"},
        "boosting.shrinkage=1.0": {"boosting.shrinkage": 1.0},
        "x=1,y=true": {"x": 1, "y": True},
        "x=2,y=true": {"x": 2, "y": True},
    }


def test_what_a_gain_counts_against_is_in_every_cell() -> None:
    evaluation = {"base": RUN | {"evaluation": {"systems": ["ensemw2s", "student_ensemw2s"]}}}
    [cell, _] = expand(study(**evaluation))
    assert cell.config.evaluation.systems == [
        "base_zero_shot", "base_ensemble", "expert_single", "expert_compute_matched", "deep_ensemble", "ensemw2s",
        "student_easy_only", "student_single", "student_base_ensemble", "student_deep_ensemble", "student_ensemw2s",
    ]  # fmt: skip
    assert cells.systems(["bagging"]) == [
        "base_zero_shot", "base_ensemble", "expert_single", "expert_compute_matched", "bagging", "deep_ensemble",
        "ensemw2s",
    ]  # fmt: skip
    assert cells.systems(list(SYSTEMS)) == list(SYSTEMS)
    assert cells.systems(["student_generations"])[-4:] == [
        "student_base_ensemble", "student_deep_ensemble", "student_ensemw2s", "student_generations",
    ]  # fmt: skip


def test_a_variant_can_be_of_some_tasks_only() -> None:
    found = expand(study(tasks={"a": {}, "b": {}}, variants={"v": {}}, only={"v": ["b"]}, seeds=[0]))
    assert [(c.task, c.variant) for c in found] == [("a", "default"), ("b", "default"), ("b", "v")]
    with pytest.raises(ConfigError, match=r"only\.w is no variant\. Valid: default, v"):
        expand(study(variants={"v": {}}, only={"w": ["base"]}))


@pytest.mark.parametrize(("against", "wrong"), [({"w": "v"}, r"against\.w"), ({"v": "w"}, r"against\.v: w")])
def test_variants_are_held_against_variants(against, wrong) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong} is no variant\. Valid: default, v"):
        expand(study(variants={"v": {}}, against=against))


@pytest.mark.parametrize(
    "keys",
    [
        {"against": {"v": "v"}},
        {"against": {"v": "w"}, "only": {"v": ["a"], "w": ["b"]}},
        {"against": {"v": "d"}},
    ],
)
def test_variants_with_nothing_in_common_are_not_held_against_each_other(keys) -> None:
    different = {"v": {}, "w": {}, "d": {"data.split.mode": "random"}}
    with pytest.raises(ConfigError, match=r"against\.v: . compares nothing; expected two variants that share a task"):
        expand(study(tasks={"a": {}, "b": {}}, variants=different, **keys))


def test_variants_that_change_the_data_are_told_apart_however_they_are_written() -> None:
    found = cells.with_other_data(
        study(
            variants={"split": {"data.split.mode": "random"}, "plain": {"boosting.rounds": 2}},
            factors={"data.sizes.easy_train": [9], "boosting.width": [2]},
            grid={"data.source.easy": [{}], "boosting.unit": ["example"]},
        )
    )
    assert found == {"split", "data.sizes.easy_train=9", "data.source.easy={},boosting.unit=example"}


def test_a_wrong_cell_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cell base, v, seed 0.*\n.*boosting.round: unknown key"):
        expand(study(variants={"v": {"boosting.round": 2}}))
    with pytest.raises(ConfigError, match=r"variant v: models.weak.1.base: models.weak.1 does not exist"):
        expand(study(variants={"v": {"models.weak.1.base": "x"}}))


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="variants of one name"):
        expand(study(factors={"boosting.rounds": [2, 2]}))
    with pytest.raises(ConfigError, match=r"two cells would be called a.x-y.0"):
        expand(study(tasks={"a": {}}, variants={"x y": {}, "x/y": {}}))


def test_cells_share_stages_that_are_the_same_and_no_others(tmp_path) -> None:
    found = expand(
        study(storage=str(tmp_path), variants={"more": {"boosting.rounds": 7}, "unit": {"boosting.unit": "example"}})
    )
    default, more, unit, other = (cell.graph for cell in found[:4])
    assert other.config.seed == 1
    assert (default.data.path, default.tokens.path) == (more.data.path, more.tokens.path)
    assert [b.stage.path for b in default.bases] == [b.stage.path for b in more.bases]
    assert [r.stage.path for r in default.rounds] == [r.stage.path for r in more.rounds[:5]]
    team = [expert.stage.path for expert in default.baselines["deep_ensemble"]]
    assert team == [expert.stage.path for expert in more.baselines["deep_ensemble"][:5]]
    assert (
        default.baselines["expert_compute_matched"][0].stage.path
        != more.baselines["expert_compute_matched"][0].stage.path
    )
    assert default.rounds[0].experts[0].stage.path != unit.rounds[0].experts[0].stage.path
    assert team[0] == unit.baselines["deep_ensemble"][0].stage.path
    mine, theirs = ({stage.path for stage in graph.stages()} for graph in (default, other))
    assert not mine & theirs, "another seed shares nothing: it is a replication of everything"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_along_expands_to_valid_configs(path: Path) -> None:
    loaded = load_study(path)
    found = expand(loaded)
    assert loaded.name == path.stem
    assert len(found) == sum(len(loaded.only.get(name, loaded.tasks)) * len(loaded.seeds) for name in variants(loaded))
    assert len(loaded.seeds) >= 3, "an interval over seeds needs some"
    header = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert re.search(r"^# Takes: .+ on .+$", header, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "ablation", "confirm", "smollm2"])
def test_every_generated_task_has_enough_distinct_examples_and_its_corpus_templates_fit(name: str) -> None:
    loaded = load_study(ROOT / "ensemw2s" / "recipes" / "studies" / f"{name}.yaml")
    for cell in expand(loaded):
        generated = cell.variant in ("default", "cross-source", "random-split")
        if cell.seed == loaded.seeds[0] and generated:
            data = cell.config.data
            splits = make_splits(data, seed=cell.seed)
            assert splits.ood_test.num_rows == data.sizes.ood_test, cell.name
            assert splits.hard_unlabelled.num_rows == data.sizes.hard_unlabelled, cell.name
            if cell.config.models.strong.is_tiny:
                corpus.check(data, cell.config.models.pretraining.corpus)


def test_single_experts_start_from_the_strongest_of_mixed_bases() -> None:
    for path in STUDIES:
        cell = expand(load_study(path))[0]
        strength = [
            (int(m.base.split("layers-")[1]) if "layers-" in m.base else 0, m.lora.rank if m.lora else 0)
            for m in cell.config.models.weak
        ]
        assert strength[0] == max(strength), path.stem


def test_studies_confirm_on_other_seeds_and_tasks_than_they_choose_on() -> None:
    names = ("tiny", "ablation", "confirm")
    tiny, chosen, confirmed = (load_study(ROOT / "ensemw2s" / "recipes" / "studies" / f"{name}.yaml") for name in names)
    assert not set(chosen.seeds) & set(confirmed.seeds)
    assert not set(chosen.tasks) & set(confirmed.tasks)
    for name, changes in confirmed.tasks.items():
        assert changes == tiny.tasks[name], "the task of this name, and no other"


def test_the_base_of_the_tiny_studies_runs_by_itself() -> None:
    assert load_config(ROOT / "ensemw2s" / "recipes" / "tiny.yaml").models.strong.is_tiny


def test_the_example_of_the_documentation_is_a_study(tmp_path) -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    text = (
        page.split("```yaml\n")[1]
        .split("```")[0]
        .replace("../tiny.yaml", str(ROOT / "ensemw2s" / "recipes" / "tiny.yaml"))
    )
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    found = expand(load_study(tmp_path / "study.yaml"))
    assert len(found) == 5 * 2 * 2
    assert {cell.config.boosting.rounds for cell in found} == {4}
    keys = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", page.split("## What a seed")[0], flags=re.MULTILINE))
    assert {key for pair in keys for key in pair if key} == set(StudyConfig.model_fields), "every key is described"
