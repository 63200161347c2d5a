import ast
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import parse_config
from ensemw2s.config.systems import ALL_SYSTEMS
from ensemw2s.config.systems import SYSTEMS_BEFORE as SYSTEMS
from ensemw2s.errors import BoostingError
from ensemw2s.pipeline import systems
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.systems import ensemble_voter, groups, label_maker, prefix_voters

from ..boosting.conftest import member


@pytest.fixture
def graph(tmp_path):
    def make(*systems: str, **sections: Any) -> Graph:
        return build_graph(
            parse_config(
                {
                    "name": "study",
                    "storage": str(tmp_path),
                    "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
                    "models": {
                        "weak": [{"base": "tiny-weak", "name": "a"}, {"base": "some/model", "name": "b"}],
                        "strong": {"base": "tiny-strong"},
                    },
                    "boosting": {"rounds": 3},
                    "evaluation": {"systems": list(systems or SYSTEMS), "single_base": "first"},
                    **sections,
                }
            )
        )

    return make


MEMBERS = [member(1, 3.0), member(2, 0.0), member(3, 1.0)]


def test_members_vote_by_their_share_and_those_without_a_vote_are_left_out(graph, tmp_path):
    voter = ensemble_voter(graph(ensemble={"combine": "vote"}), MEMBERS)
    assert voter.models == [str(tmp_path / "study" / "rounds" / t / "experts" / "0") for t in "13"]
    assert voter.weights == [0.75, 0.25]
    assert (voter.name, voter.rule) == ("ensemw2s", "vote")


def test_members_have_their_temperatures_in_every_prefix(graph):
    members = [m.model_copy(update={"temperature": t}) for m, t in zip(MEMBERS, (1.5, 1.0, 0.5), strict=True)]
    assert ensemble_voter(graph(), members).temperatures == [1.5, 0.5]
    assert [v.temperatures for v in prefix_voters(graph(), members)] == [[1.5], [1.5, 0.5]]
    assert ensemble_voter(graph(), MEMBERS).temperatures == []


def test_prefixes_are_the_ensembles_of_the_first_rounds_that_changed_something(graph):
    made = graph(boosting={"rounds": 3, "width": 2})
    wide = [member(1, 2.0), member(1, 1.0, 1), member(2, 0.0), member(3, 1.0), member(3, 0.0, 1)]
    voters = prefix_voters(made, wide)
    assert [v.name for v in voters] == ["rounds:1", "rounds:3"]
    assert [v.weights for v in voters] == [pytest.approx([2 / 3, 1 / 3]), [0.5, 0.25, 0.25]]
    assert voters[-1].models == ensemble_voter(made, wide).models


def test_an_ensemble_of_nobody_is_an_error(graph):
    with pytest.raises(BoostingError, match="no expert has a positive alpha"):
        ensemble_voter(graph(), [member(1, 0.0)])


def test_every_system_has_its_voters_and_students_groups_of_their_own(graph):
    made = graph()
    found = groups(made, MEMBERS)
    assert [g.name for g in found] == ["weak", *(s for s in SYSTEMS if s.startswith("student_"))]
    assert [v.name for v in found[0].voters] == [
        "base:a", "base:b", "expert_single", "expert_compute_matched", "bagging",
        "expert:rounds/1/experts/0", "expert:rounds/3/experts/0", "ensemw2s",
    ]  # fmt: skip
    for group in found[1:]:
        [voter] = group.voters
        assert voter.name == group.name
        assert voter.models == [str(made.root / "students" / group.name)]


def test_only_the_systems_that_are_asked_for_are_evaluated(graph):
    [group] = groups(graph("ensemw2s"), MEMBERS)
    assert [v.name for v in group.voters] == ["ensemw2s"]
    [group] = groups(graph("student_bagging"), MEMBERS)
    assert (group.name, len(group.voters)) == ("student_bagging", 1)


def test_the_experts_behind_a_students_labels_are_evaluated_only_if_they_are_asked_for(graph):
    names = [v.name for g in groups(graph("ensemw2s", "student_single"), MEMBERS) for v in g.voters]
    assert names == ["ensemw2s", "student_single"]


def test_bagged_experts_all_weigh_the_same(graph, tmp_path):
    voter = label_maker(graph(), "bagging")
    assert voter.models == [str(tmp_path / "study" / "baselines" / "bagging" / str(i)) for i in range(3)]
    assert voter.weights == [1 / 3] * 3


def test_labels_are_made_by_the_saved_ensemble_by_bagging_or_by_one_expert(graph):
    made = graph()
    assert label_maker(made, "ensemw2s").ensemble == str(made.root / "ensemble")
    single = label_maker(made, "expert_single")
    assert (single.models, single.weights) == ([str(made.root / "baselines" / "expert_single")], [1.0])


def test_the_untuned_bases_vote_once_each_with_equal_weights(graph, tmp_path):
    made = graph("base_ensemble", "student_base_ensemble")
    [voter] = groups(made, MEMBERS)[0].voters
    assert voter == label_maker(made, "base_ensemble")
    assert voter.models == [made.weak[0].path, "some/model"]
    assert voter.weights == [0.5, 0.5]
    one = {"base": "some/model", "lora": {"rank": 4}}
    twice = {"weak": [{**one, "name": "a"}, {**one, "name": "b"}], "strong": {"base": "tiny-strong"}}
    assert label_maker(graph("base_ensemble", models=twice), "base_ensemble").models == ["some/model"]


def test_a_deep_ensemble_trains_as_many_experts_on_all_easy_examples_with_other_seeds(graph):
    made = graph("deep_ensemble", "ensemw2s")
    experts, boosted = made.baselines["deep_ensemble"], made.boosted
    assert [e.base.name for e in experts] == [e.base.name for e in boosted] == ["a", "b", "a"]
    assert [e.recipe for e in experts] == [e.recipe for e in boosted]
    assert len({e.seed for e in (*experts, *boosted)}) == 6
    assert not any(e.bootstrap_examples for e in experts)
    voter = groups(made, MEMBERS)[0].voters[0]
    assert (voter.name, voter.weights) == ("deep_ensemble", [1 / 3] * 3)


def test_labels_of_a_generation_are_made_by_its_saved_ensemble(graph):
    made = graph("student_generations", student={"generations": 3})
    voter = label_maker(made, "generation_2")
    assert (voter.name, voter.ensemble) == ("generation_2", str(made.root / "generations" / "2" / "ensemble"))
    assert [g.name for g in groups(made, MEMBERS)] == ["student_generations"]


def test_folders_are_absolute_and_hub_ids_stay(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = graph(storage="here")
    for stage in made.stages():
        stage.path.mkdir(parents=True, exist_ok=True)
    voters = {v.name: v for g in groups(made, MEMBERS) for v in g.voters}
    assert voters["base:b"].models == ["some/model"]
    others = [Path(path) for name, v in voters.items() if name != "base:b" for path in v.models]
    assert all(path.is_absolute() and tmp_path in path.parents for path in others)


def test_no_name_of_a_system_stands_in_the_pipeline():
    """A system is an entry of the table and a function that makes its experts, so nothing else may ask for one."""
    found = {
        (path.name, node.value)
        for path in Path(systems.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ALL_SYSTEMS
    }
    assert found == {("manifest.py", "ensemw2s")}, "that one is the package, whose version is written down"


def test_the_strong_models_own_labels_are_made_by_the_student_of_easy_data_alone(graph):
    made = graph("student_ensemw2s", student={"labels": "own"})
    voter = label_maker(made, "student_easy_only")
    assert voter.models == [str(made.root / "students" / "student_easy_only")]
