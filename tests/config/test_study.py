from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s.config.study import load_study
from ensemw2s.errors import ConfigError

RUN = {
    "name": "run",
    "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
    "models": {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}},
}


def written(folder: Path, **values: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "base": RUN, **values}), encoding="utf-8")
    return path


def mistakes(folder: Path, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_study(written(folder, **values))
    return str(caught.value)


def test_a_study_has_five_seeds_and_one_task_unless_it_says_otherwise(tmp_path) -> None:
    study = load_study(written(tmp_path))
    assert study.seeds == [0, 1, 2, 3, 4]
    assert study.tasks == {"base": {}}


def test_a_base_may_be_a_file_beside_the_study(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    assert load_study(written(tmp_path, base="run.yaml")).base == RUN


def test_overrides_reach_into_the_base_and_into_a_tasks_changes(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    tasks = {"own": {"data.source": {"kind": "files", "paths": ["a.jsonl"]}}}
    overrides = ["base.models.strong.base=folder", "tasks.own.data.source.paths=[b.jsonl]", "seeds=[3]"]
    study = load_study(written(tmp_path, base="run.yaml", tasks=tasks), overrides)
    assert study.base["models"]["strong"] == {"base": "folder"}
    assert study.tasks["own"] == {"data.source": {"kind": "files", "paths": ["b.jsonl"]}}
    assert study.seeds == [3]


def test_all_mistakes_are_told_at_once(tmp_path) -> None:
    said = mistakes(tmp_path, tasks={"t": {"seed": 1}}, factors={"boosting.rounds": [], "cluster.cpus": [1]})
    assert "tasks.t: seed cannot vary" in said
    assert "factors: cluster.cpus cannot vary" in said
    assert "factors.boosting.rounds: has no values" in said


def test_an_unknown_key_is_told_with_the_nearest(tmp_path) -> None:
    assert "variant: unknown key; did you mean variants?" in mistakes(tmp_path, variant={})


def test_equal_seeds_are_no_replications(tmp_path) -> None:
    assert "seeds must differ, but 2 is there more than once" in mistakes(tmp_path, seeds=[1, 2, 2])


def test_the_default_is_always_there_and_cannot_be_renamed_to(tmp_path) -> None:
    assert "variants.default: is the base without changes" in mistakes(tmp_path, variants={"default": {}})


def test_a_variant_for_a_task_that_is_not_there_is_told(tmp_path) -> None:
    said = mistakes(tmp_path, tasks={"sums": {}}, variants={"v": {}}, only={"v": ["sum"]})
    assert "only.v: sum is no task; did you mean sums?" in said
