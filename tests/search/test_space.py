import optuna
import pytest

from ensemw2s.config import Config, parse_config
from ensemw2s.errors import ConfigError
from ensemw2s.search import space

TREE = {
    "name": "s",
    "data": {
        "source": {"kind": "files", "paths": ["x.jsonl"], "columns": {"difficulty": "level"}},
        "split": {"difficulty_from": "column"},
    },
    "models": {
        "weak": [{"base": "one", "lora": {"rank": 4}}, {"base": "two"}, {"base": "three", "lora": {"rank": 4}}],
        "strong": {"base": "tiny-strong"},
    },
}


def config(space_: dict, **search) -> Config:
    return parse_config({**TREE, "search": {"space": space_, **search}})


def mistakes(space_: dict, **search) -> str:
    with pytest.raises(ConfigError) as error:
        space.check(config(space_, **search))
    return str(error.value)


def test_a_config_without_a_search_says_where_to_read() -> None:
    with pytest.raises(ConfigError, match="no section search"):
        space.check(parse_config(TREE))


def test_an_unknown_key_is_refused_with_the_nearest_and_all_valid_ones() -> None:
    said = mistakes({"expert.lerning_rate": {"uniform": [0.1, 0.2]}, "data.sizes.easy_train": {"integer": [1, 2]}})
    assert "search.space.expert.lerning_rate: cannot be tuned; did you mean expert.learning_rate?" in said
    assert "search.space.data.sizes.easy_train: cannot be tuned" in said
    assert all(key in said for key in space.TUNABLE)


@pytest.mark.parametrize(
    ("key", "parameter", "said"),
    [
        (
            "expert.learning_rate",
            {"uniform": [0.1, 3.0]},
            "expert.learning_rate: input should be less than or equal to 1",
        ),
        ("expert.epochs", {"uniform": [1.5, 2.5]}, "expert.epochs: input should be a valid integer"),
        ("boosting.prior", {"choice": ["none", "flat"]}, "boosting.prior: input should be 'none', 'samme' or"),
        ("boosting.rounds", {"choice": [1, 2]}, "boosting.rounds: needs integer: [LEAST, MOST]"),
        ("boosting.rounds", {"integer": [0, 2]}, "boosting.rounds: input should be greater than or equal to 1"),
        ("ensemble.weights", {"choice": ["alpha", "stacked"]}, "ensemble.weights: stacked cannot be tuned; ensemble."),
        (
            "ensemble.calibration",
            {"choice": ["none", "temperature"]},
            "ensemble.calibration: temperature cannot be tuned; ensemble.",
        ),
        ("student.epochs", {"integer": [1, 2]}, "student.epochs: changes the student alone"),
        ("models.strong.lora.rank", {"integer": [1, 2]}, "models.strong.lora.rank: the strong base has no lora"),
    ],
)
def test_values_that_do_not_fit_their_key_are_refused(key, parameter, said) -> None:
    assert f"search.space.{said}" in mistakes({key: parameter})


def test_all_mistakes_are_said_at_once() -> None:
    said = mistakes({"expert.epochs": {"integer": [0, 2]}, "nothing": {"choice": [1]}}, validation="hard")
    assert "expert.epochs" in said
    assert "nothing: cannot be tuned" in said
    assert "search.validation hard needs data.sizes.hard_validation" in said


def test_a_config_whose_votes_are_fitted_on_what_a_search_judges_by_is_refused_and_equal_votes_are_not() -> None:
    epochs = {"expert.epochs": {"integer": [1, 2]}}
    tree = config(epochs).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"mistakes:\n  ensemble.weights stacked and .* when best.yaml is run$"):
        space.check(parse_config({**tree, "ensemble": {"weights": "stacked"}}))
    space.check(config({**epochs, "ensemble.weights": {"choice": ["alpha", "uniform"]}}))


def test_a_rank_goes_to_every_weak_base_that_has_adapters() -> None:
    made = config({"models.weak.*.lora.rank": {"choice": [4, 16]}})
    space.check(made)
    applied = space.apply(made, {"models.weak.*.lora.rank": 16, "expert.epochs": 2})
    assert [model.lora.rank if model.lora else None for model in applied.models.weak] == [16, None, 16]
    assert applied.expert.epochs == 2
    assert made.expert.epochs != 2


def test_the_range_of_rounds_is_read_and_never_drawn() -> None:
    made = config({"boosting.rounds": {"integer": [2, 7]}, "expert.epochs": {"integer": [1, 2]}})
    assert space.sizes(made) == (2, 7)
    assert space.sizes(config({"expert.epochs": {"integer": [1, 2]}})) == (1, made.boosting.rounds)
    trial = optuna.create_study().ask()
    assert space.draw(trial, space.check(made).space).keys() == {"expert.epochs"}


def test_keys_of_passes_can_be_tuned_where_passes_are_made_and_their_number_is_never_drawn() -> None:
    keys = {"consensus.passes": {"integer": [0, 2]}, "consensus.anchor": {"choice": ["auto", 0.5]}}
    made = config({**keys, "consensus.fraction": {"uniform": [0.2, 0.9]}})
    assert space.draw(optuna.create_study().ask(), space.check(made).space).keys() == {
        "consensus.anchor",
        "consensus.fraction",
    }
    assert "consensus.passes: needs integer" in mistakes({"consensus.passes": {"choice": [1, 2]}})
    assert "consensus.anchor: changes nothing without passes" in mistakes({"consensus.anchor": {"uniform": [0, 1]}})
    assert "search.space.consensus.fraction" in mistakes({**keys, "consensus.fraction": {"uniform": [0.0, 2.0]}})


def test_points_are_within_their_bounds_and_conditions() -> None:
    made = config(
        {
            "expert.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "boosting.weighting": {"choice": ["loss", "bootstrap"]},
            "boosting.bootstrap": {"choice": ["count", "mask"], "when": {"boosting.weighting": "bootstrap"}},
            "expert.warmup_fraction": {"uniform": [0.0, 0.5]},
            "models.weak.*.lora.target_modules": {"choice": [["q_proj"], "all-linear"]},
        }
    )
    search, study = space.check(made), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.draw(study.ask(), search.space) for _ in range(300)]
    rates = [point["expert.learning_rate"] for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 300 < 0.6  # half of the decades
    assert {("boosting.bootstrap" in p, p["boosting.weighting"]) for p in points} == {
        (True, "bootstrap"),
        (False, "loss"),
    }
    assert {str(p["models.weak.*.lora.target_modules"]) for p in points} == {"['q_proj']", "all-linear"}
    for point in points[:20]:
        space.apply(made, point)
    again = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert [space.draw(again.ask(), search.space) for _ in range(300)] == points


def test_a_condition_is_met_when_the_ends_of_a_range_are_tried() -> None:
    tree = {**TREE, "labeling": {"soft_top_k": 0}}
    made = parse_config(
        {
            **tree,
            "search": {
                "objective": "student",
                "space": {
                    "student.objective": {"choice": ["xent", "logconf"]},
                    "student.confidence_weight": {"uniform": [0.1, 0.9], "when": {"student.objective": "logconf"}},
                },
            },
        }
    )
    assert space.check(made).objective == "student"
