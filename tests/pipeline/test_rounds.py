"""What follows from how experts did: rounds whose experts are right and wrong as the test says."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.masks import read_mask
from ensemw2s.boosting.records import RoundRecord, TrainingSpent, members_of
from ensemw2s.boosting.samme import alpha
from ensemw2s.config import parse_config
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.errors import BoostingError
from ensemw2s.pipeline import rounds
from ensemw2s.pipeline.build import build_graph
from ensemw2s.storage import store
from ensemw2s.training.records import TrainRecord

from ..boosting.conftest import round_record

ANSWERS = [[5, 6, 2], [7, 2], [8, 9, 4, 5, 2]]
"""Ten tokens."""

TOKENS = [token for answer in ANSWERS for token in answer]

Attempt = list[list[int]]
"""Of each expert (then of each base) of a round, at which of the ten tokens it is wrong."""


class Script:
    """A run whose experts are right and wrong as written down, in place of training and scoring."""

    def __init__(self, root: Path, attempts: list[Attempt], **boosting: Any) -> None:
        settings = {"prior": "none", "shrinkage": 1.0, "weight_clip": None, **boosting}
        self.config = parse_config(
            {
                "name": "study",
                "storage": str(root),
                "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
                "models": {
                    "weak": [{"base": "tiny-weak", "pretraining_seed": seed} for seed in (0, 1)],
                    "strong": {"base": "tiny-strong"},
                },
                "boosting": {"rounds": 3, **settings},
            }
        )
        self.graph = build_graph(self.config)
        self.lanes = self
        self.progress = self
        self.pool = self.reading = None
        self.vocabulary = 64
        self.said: list[str] = []
        self.trained: list[Any] = []
        self.scored: list[list[str]] = []
        self.attempts = iter(attempts)
        self.graph.tokens.path.mkdir(parents=True)
        rows = [{"id": f"e{i}", "prompt_ids": [1], "answer_ids": answer} for i, answer in enumerate(ANSWERS)]
        table = pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA)
        pq.write_table(table, self.graph.tokens.path / "easy_train.parquet")

    def train(self, specs: list[Any]) -> dict[str, Any]:
        self.trained += specs
        older = TrainRecord.read(Path(__file__).parents[1] / "older_run/rounds/1/experts/0")
        trained = older.model_copy(update={"loss": (1.5, 0.5), "seconds": 1.0, "tokens_trained": 20})
        return {spec.name: trained for spec in specs}

    def predictions(self, table: Path, models: list[str], **_: Any) -> np.ndarray:
        self.scored.append(models)
        wrong = next(self.attempts)
        assert len(wrong) == len(models)
        return np.array([[3 if i in bad else t for i, t in enumerate(TOKENS)] for bad in wrong], np.int32)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        yield

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def script(tmp_path, monkeypatch) -> Callable[..., Script]:
    def make(*attempts: Attempt, **boosting: Any) -> Script:
        made = Script(tmp_path / str(len(list(tmp_path.iterdir()))), list(attempts), **boosting)
        monkeypatch.setattr(rounds, "predictions", made.predictions)
        return made

    return make


def history_after(run: Script) -> list[RoundRecord]:
    rounds.run_rounds(run)
    return rounds.finished_rounds(run.graph, run.graph.rounds)


def wrong_at(run: Script, t: int, column: str = "round") -> list[int]:
    return np.flatnonzero(read_mask(run.graph.rounds[t - 1].stage.path / "errors.parquet", column)).tolist()


def odds(error: float) -> float:
    return math.log((1 - error) / error)


def test_three_rounds_are_adaboost_by_hand(script):
    run = script([[0, 1]], [[2]], [[3, 4]])
    history = history_after(run)
    # a token wrong in a round of odds 4 weighs four times as much in the next
    second_error = 1 / 16
    third = np.array([4, 4, 15, 1, 1, 1, 1, 1, 1, 1], float)
    third_error = 2 / third.sum()
    assert [f.weighted_error for f in history] == pytest.approx([0.2, second_error, third_error])
    assert [f.alpha for f in history] == pytest.approx([odds(0.2), odds(second_error), odds(third_error)])
    np.testing.assert_allclose(run.trained[2].weights.multipliers([3, 2, 5]), third * 10 / third.sum())
    assert [wrong_at(run, t) for t in (1, 2, 3)] == [[0, 1], [2], [3, 4]]
    assert wrong_at(run, 3, "expert_0") == [3, 4]
    facts = history[2]
    assert facts.weights.max == pytest.approx(150 / third.sum())
    assert facts.weights.effective_fraction == pytest.approx(third.sum() ** 2 / (third**2).sum() / 10)
    assert [e.weight for f in history for e in f.experts] == pytest.approx([f.alpha for f in history])
    assert [e.base for f in history for e in f.experts] == ["weak-0", "weak-1", "weak-0"]
    assert facts.experts[0].error == 0.2
    assert facts.experts[0].train_loss == 0.5


def test_shrinkage_and_clip_reach_the_weights_and_not_the_alphas(script):
    run = script([[0, 1]], [[0, 1]], shrinkage=0.5, weight_clip=1.5, rounds=2)
    history = history_after(run)
    assert history[0].alpha == pytest.approx(odds(0.2))
    assert history[1].weighted_error == pytest.approx(0.3)  # unclipped: 2 · 2 / 12 = 1/3
    assert history[1].weights.max == pytest.approx(1.5)


def test_finished_rounds_are_not_run_again(script):
    run = script([[0, 1]], [[2]], [[3, 4]])
    history = history_after(run)
    trained = len(run.trained)
    assert history_after(run) == history
    assert len(run.trained) == trained


def test_boosting_goes_on_from_the_last_finished_round(script):
    whole = script([[0, 1]], [[2]], [[3, 4]])
    expected = history_after(whole)
    cut = script([[0, 1]], [[2]])
    with pytest.raises(RuntimeError, match="StopIteration"):  # the script ends inside round 3
        history_after(cut)
    assert not cut.graph.rounds[2].stage.path.exists()
    cut.attempts = iter([[[3, 4]]])
    history = history_after(cut)
    assert [f.alpha for f in history] == [f.alpha for f in expected]
    masks = [r.stage.path / "errors.parquet" for r in (*whole.graph.rounds, *cut.graph.rounds)]
    assert [m.read_bytes() for m in masks[:3]] == [m.read_bytes() for m in masks[3:]]


BAD = [[0, 1, 2, 3, 4, 5]]


def test_stop_ends_at_the_first_round_without_a_vote(script):
    history = history_after(run := script([[0]], BAD, on_failure="stop"))
    assert [f.accepted for f in history] == [True, False]
    assert history[1].alpha < 0
    assert history[1].experts[0].weight == 0
    assert "not better than its reference: no vote" in run.said[-1]


def test_skip_goes_on_with_the_weights_of_the_round_before(script):
    history = history_after(run := script([[0]], BAD, [[1]], on_failure="skip"))
    assert [f.accepted for f in history] == [True, False, True]
    second, third = (spec.weights for spec in run.trained[1:])
    assert second.masks == third.masks
    assert len(third.masks) == 1


def test_retry_sets_the_weights_back_to_uniform_once(script):
    attempts = [[0]], BAD, [[4]], [[1]]
    history = history_after(run := script(*attempts, on_failure="retry"))
    assert [f.accepted for f in history] == [True, True, True]
    assert [f.reset for f in history] == [False, True, False]
    assert history[1].weighted_error == pytest.approx(0.1)
    names = [spec.name for spec in run.trained]
    assert names[1:3] == ["rounds/2/experts/0", "rounds/2/experts/0-retry"]
    assert run.trained[2].weights.masks == []
    assert history[1].experts[0].name == "rounds/2/experts/0-retry"
    spent = TrainingSpent(tokens_trained=20, seconds=1.0)
    assert [f.experts[0].first_try for f in history] == [None, spent, None], "it was trained, too"
    # round 3 builds on the retried round and on nothing before it
    assert [alpha for _, alpha in run.trained[3].weights.masks] == [history[1].alpha]
    assert wrong_at(run, 2) == [4]


def test_a_retry_that_fails_too_ends_boosting(script):
    history = history_after(script([[0]], BAD, BAD, on_failure="retry"))
    assert [f.accepted for f in history] == [True, False]
    assert history[1].reset


def test_a_warm_start_takes_the_try_that_counts_of_the_same_base(script):
    run = script([[0]], BAD, [[4]], [[1]], [[2]], on_failure="retry", warm_start="previous", rounds=4)
    history_after(run)
    second = run.graph.weak[1].path
    starts = {spec.name: spec.start.path for spec in run.trained[1:]}
    assert starts == {
        "rounds/2/experts/0": str(second),
        "rounds/2/experts/0-retry": str(second),
        "rounds/3/experts/0": str(run.graph.root / "rounds/1/experts/0"),
        "rounds/4/experts/0": str(run.graph.root / "rounds/2/experts/0-retry"),
    }


def test_a_first_round_cannot_be_retried_its_weights_are_uniform(script):
    run = script(BAD, on_failure="retry")
    with pytest.raises(BoostingError, match=r"round 1 had a weighted error of 0.600.*expert.epochs.*prior to samme"):
        history_after(run)
    assert len(run.trained) == 1


def test_no_vote_in_any_round_is_an_error(script):
    with pytest.raises(BoostingError, match="no round gave an expert with a positive alpha"):
        history_after(script(BAD, BAD, BAD, on_failure="skip"))


def test_a_coin_flip_has_no_vote_and_perfection_a_large_finite_one(script):
    history = history_after(script([[]], [[0, 1, 2, 3, 4]], rounds=2))
    assert history[0].alpha == pytest.approx(odds(1e-6))
    assert history[1].weighted_error == pytest.approx(0.5)  # a perfect round makes no token heavier
    assert not history[1].accepted


def test_the_reference_of_prior_pretrained_is_the_base_on_the_same_weights(script):
    run = script([[0], [0, 1, 2]], [[1], [0, 1]], prior="pretrained", rounds=2)
    first, second = history_after(run)
    assert first.reference_error == pytest.approx(0.3)
    assert first.alpha == pytest.approx(alpha(0.1, prior="pretrained", reference=0.3))
    heavier = math.exp(first.alpha)
    assert second.reference_error == pytest.approx((heavier + 1) / (heavier + 9))
    assert second.weighted_error == pytest.approx(1 / (heavier + 9))
    weak = [base.path for base in run.graph.weak]
    assert [models[1] for models in run.scored] == weak


def test_prior_samme_adds_what_a_guesser_over_the_vocabulary_gets(script):
    [facts] = history_after(script(BAD, prior="samme", rounds=1))
    assert facts.alpha == pytest.approx(odds(0.6) + math.log(63))
    assert facts.reference_error is None


def test_a_wide_round_votes_by_alpha_and_shares_its_alpha(script):
    run = script([[0, 1], [0, 2], [0, 3, 4]], width=3, rounds=1)
    [facts] = history_after(run)
    assert wrong_at(run, 1) == [0]
    assert [wrong_at(run, 1, f"expert_{k}") for k in range(3)] == [[0, 1], [0, 2], [0, 3, 4]]
    assert facts.alpha == pytest.approx(odds(0.1))
    alphas = np.array([odds(0.2), odds(0.2), odds(0.3)])
    assert [e.alpha for e in facts.experts] == pytest.approx(alphas)
    assert [e.weight for e in facts.experts] == pytest.approx(odds(0.1) * alphas / alphas.sum())
    assert len({spec.seed for spec in run.trained}) == 3
    assert all(spec.weights == run.trained[0].weights for spec in run.trained)


def test_an_expert_without_a_vote_is_silent_in_a_wide_round(script):
    [facts] = history_after(run := script([[0], [1, 2, 3, 4, 5, 6, 7]], width=2, rounds=1))
    assert wrong_at(run, 1) == [0]
    assert [e.weight for e in facts.experts] == pytest.approx([facts.alpha, 0])


def test_errors_can_be_those_of_the_whole_ensemble_so_far(script):
    # a round is scored alone, then with all before it: two are as wrong as the heavier one, of three no two agree
    one, two, three = [0, 1], [2], [5]
    run = script([one], [one], [two], [one, two], [three], [one, two, three], error_from="ensemble")
    history = history_after(run)
    assert wrong_at(run, 1) == [0, 1]
    assert wrong_at(run, 2) == [2]
    assert wrong_at(run, 3) == []
    assert wrong_at(run, 3, "expert_0") == [5]
    assert [len(models) for models in run.scored] == [1, 1, 1, 2, 1, 3]
    assert run.scored[5] == [str(run.graph.root / f"rounds/{t}/experts/0") for t in (1, 2, 3)]
    assert all(f.accepted for f in history)


def test_a_window_counts_as_wrong_if_a_token_in_it_is(script):
    [facts] = history_after(run := script([[0, 6]], unit="window", window=2, rounds=1))
    assert facts.weighted_error == pytest.approx(2 / 6)  # windows of 2 1, 2 and 2 2 1 tokens
    assert wrong_at(run, 1) == [0, 6]
    assert facts.experts[0].error == 0.2


def history_of(*accepted: tuple[bool, bool]) -> list[RoundRecord]:
    return [
        round_record(t, [t / 2 if ok else 0.0] * 2, alpha=1.0 * t, accepted=ok, reset=reset)
        for t, (ok, reset) in enumerate(accepted, start=1)
    ]


def test_members_are_the_experts_of_all_rounds_and_failed_ones_have_no_weight():
    members = members_of(history_of((True, False), (False, False), (True, False)))
    assert [m.round for m in members] == [1, 1, 2, 2, 3, 3]
    assert [m.weight for m in members] == [0.5, 0.5, 0.0, 0.0, 1.5, 1.5]


def test_weights_build_on_the_accepted_rounds_since_the_last_reset(script):
    run = script()
    history = history_of((True, False), (False, False), (True, True))
    weights = rounds.round_weights(run, run.graph.rounds, history, 4)
    path = run.graph.rounds[2].stage.path / "errors.parquet"
    assert weights.masks == [(str(path.resolve()), 3.0)]
    assert [t for _, t in rounds.round_weights(run, run.graph.rounds, history[:2], 3).masks] == [1.0]
    assert rounds.round_weights(run, run.graph.rounds, [], 1).masks == []


def test_every_round_draws_its_own_bootstrap(script):
    run = script(weighting="bootstrap", bootstrap="mask", unit="window", window=3, shrinkage=0.4, weight_clip=9.0)
    one, again, two = (rounds.round_weights(run, run.graph.rounds, [], t) for t in (1, 1, 2))
    assert one == again
    assert one.seed != two.seed
    assert (one.weighting, one.bootstrap, one.unit, one.window) == ("bootstrap", "mask", "window", 3)
    assert (one.shrinkage, one.clip) == (0.4, 9.0)


def test_a_round_leaves_its_facts_beside_its_experts(script):
    run = script([[0]], rounds=1)
    expert = run.graph.rounds[0].experts[0].stage
    expert.path.mkdir(parents=True)
    (expert.path / "model.safetensors").write_bytes(b"weights")
    [facts] = history_after(run)
    folder = run.graph.rounds[0].stage.path
    assert store.is_done(folder, run.graph.rounds[0].stage.description)
    assert RoundRecord.read(folder) == facts
    assert (expert.path / "model.safetensors").read_bytes() == b"weights"


def test_rounds_of_a_pass_take_errors_of_easy_tokens_alone(script, tmp_path):
    run = script([[0, 1]], [[2]], [[3]])
    config = run.config.model_copy(update={"consensus": run.config.consensus.model_copy(update={"passes": 1})})
    run.graph = build_graph(config)
    [p] = run.graph.passes
    history = list(rounds.each_round(run, p.rounds))[-1]
    assert [record.weighted_error for record in history][:1] == [0.2]
    second = run.trained[1]
    assert [Path(path).name for path in second.tokens] == ["easy_train.parquet", "train.parquet"]
    assert second.weights.masks[0][0].endswith("consensus/1/rounds/1/errors.parquet")
    found = second.weights.multipliers([3, 2, 5, 7])  # an eighth of the tokens and more are of kept answers
    np.testing.assert_array_equal(found[10:], np.ones(7))
    np.testing.assert_allclose(found[:10], second.weights.multipliers([3, 2, 5]))
    assert history[0].experts[0].name == "consensus/1/rounds/1/experts/0"
