"""Votes that are equal, or fitted on half of easy validation: members whose likelihoods are as the test says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.records import FitLoss, HalfCounts, HalfLoss, VoteFit
from ensemw2s.boosting.scoring import Likelihoods
from ensemw2s.config import EnsembleConfig, LabelingConfig
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.ensemble.manifest import MemberEntry
from ensemw2s.ensemble.refit import TEMPERATURES, mixture_weights
from ensemw2s.pipeline import votes

from ..boosting.conftest import member, round_record

LENGTHS = [2, 1, 3, 2, 1]
"""Answer tokens of five validation examples: the first, third and fifth are fitted on."""

FITTED = np.repeat([True, False, True, False, True], LENGTHS)


HISTORY = [round_record(1, [3.0, 0.5]), round_record(2, [0.0, 1.0])]


def context(folder: Path, **ensemble: Any) -> Any:
    rows = [{"id": f"e{i}", "prompt_ids": [1], "answer_ids": [5] * n} for i, n in enumerate(LENGTHS)]
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA), folder / "easy_validation.parquet")
    graph = SimpleNamespace(tokens=SimpleNamespace(path=folder), expert_folder=lambda name: folder / name)
    config = SimpleNamespace(ensemble=EnsembleConfig(**ensemble), labeling=LabelingConfig())
    return SimpleNamespace(config=config, graph=graph, pool=None, reading=None, progress=None)


@pytest.fixture
def scored(monkeypatch) -> list[dict[str, Any]]:
    """Three members of random likelihoods; a temperature adds its logarithm to them."""
    calls: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    logprobs = -rng.exponential(1.0, (3, sum(LENGTHS))).astype(np.float32)
    best = np.log([2.0, 0.5, 1.0])

    def likelihoods(table: Path, models: list[str], **options: Any) -> Likelihoods:
        calls.append({"models": [Path(model).relative_to(table.parent).as_posix() for model in models], **options})
        found = logprobs + np.log(options["temperatures"])[:, None].astype(np.float32)
        curve = (np.log(options["grid"])[:, None] - best) ** 2 if options["grid"] else np.zeros((0, 3))
        on_half = np.array([1.0, -50.0, 1.0, -50.0, 1.0])  # what is held out must not count
        together = np.logaddexp.reduce(found + np.log(np.array(options["weights"]) / sum(options["weights"]))[:, None])
        return Likelihoods(-together, found, curve[:, :, None] * on_half)

    monkeypatch.setattr(votes, "likelihoods", likelihoods)
    calls.append({"logprobs": logprobs})
    return calls


def test_equal_votes_are_of_members_with_a_vote_alone() -> None:
    assert [m.weight for m in votes.weighed_members(HISTORY, "uniform")] == [1.0, 1.0, 0.0, 1.0]
    assert [m.weight for m in votes.weighed_members(HISTORY, "alpha")] == [3.0, 0.5, 0.0, 1.0]
    assert [m.round for m in votes.weighed_members(HISTORY, "uniform")] == [1, 1, 2, 2]


def test_temperatures_are_fitted_on_every_other_example_and_weights_stay(scored, tmp_path) -> None:
    run = context(tmp_path, calibration="temperature")
    members, fit = votes.fit_votes(run, votes.weighed_members(HISTORY, "alpha"))
    voting = [m for m in members if m.weight > 0]
    assert [m.weight for m in members] == [3.0, 0.5, 0.0, 1.0]
    assert [m.temperature for m in voting] == pytest.approx([2.0, 0.5, 1.0], rel=1e-6)
    assert members[2].temperature is None
    first, second = scored[1:]
    assert first["models"] == ["rounds/1/experts/0", "rounds/1/experts/1", "rounds/2/experts/1"]
    assert (first["temperatures"], first["grid"]) == ([1.0, 1.0, 1.0], TEMPERATURES.tolist())
    assert (second["temperatures"], second["grid"]) == ([m.temperature for m in voting], [])
    assert second["weights"] == [3.0, 0.5, 1.0]
    assert fit.examples == HalfCounts(fitted=3, held_out=2)
    assert fit.nll.before != fit.nll.after


def test_stacked_weights_are_the_mixture_of_one_half_and_are_measured_on_both(scored, tmp_path) -> None:
    members, fit = votes.fit_votes(context(tmp_path, weights="stacked"), votes.weighed_members(HISTORY, "stacked"))
    logprobs = scored[0]["logprobs"]
    expected = mixture_weights(logprobs[:, FITTED])
    assert [members[i].weight for i in (0, 1, 3)] == pytest.approx(expected.tolist())
    assert members[2].weight == 0
    assert len(scored) == 2, "the models ran once"
    nll = -np.logaddexp.reduce(logprobs.astype("float64") + np.log(np.maximum(expected, 1e-300))[:, None])
    assert fit.nll.after.model_dump() == {
        "fitted": pytest.approx(nll[FITTED].mean()),
        "held_out": pytest.approx(nll[~FITTED].mean()),
    }
    assert fit.nll.after.fitted <= fit.nll.before.fitted


def test_members_are_calibrated_before_they_are_stacked(scored, tmp_path) -> None:
    run = context(tmp_path, weights="stacked", calibration="temperature")
    members, _ = votes.fit_votes(run, votes.weighed_members(HISTORY, "stacked"))
    warm = scored[0]["logprobs"] + np.log([[2.0], [0.5], [1.0]])
    assert [members[i].weight for i in (0, 1, 3)] == pytest.approx(mixture_weights(warm[:, FITTED]).tolist(), abs=1e-5)


def test_a_line_says_votes_temperatures_losses_and_who_has_no_vote() -> None:
    found = (0.75, 1.25), (0.25, 1.0), (0.0, 1.0), (0.0, None)
    members = [member(1, weight, k, temperature=temperature) for k, (weight, temperature) in enumerate(found)]
    loss = FitLoss(before=HalfLoss(fitted=0.5, held_out=0.6), after=HalfLoss(fitted=0.4, held_out=0.55))
    fit = VoteFit(examples=HalfCounts(fitted=3, held_out=2), nll=loss)
    assert votes.said_of_votes(members, fit) == (
        "  votes: 0.750 at temperature 1.25, 0.250; loss on easy validation, in nats per token: from 0.5000 to 0.4000 "
        "on the fitted half, from 0.6000 to 0.5500 on the other; no vote: rounds/1/experts/2"
    )


def test_the_rounds_facts_take_the_votes_of_the_artifact() -> None:
    def entries(*pairs: tuple[float, float]) -> list[MemberEntry]:
        return [
            MemberEntry(name=f"m{i}", path=None, alpha=1.0, weight=w, round=1, temperature=t)
            for i, (w, t) in enumerate(pairs)
        ]

    plain = votes.with_votes(HISTORY, entries((3.0, 1.0), (0.5, 1.0), (0.0, 1.0), (1.0, 1.0)))
    assert plain == HISTORY
    first, second = votes.with_votes(HISTORY, entries((0.9, 2.0), (0.0, 1.0), (0.0, 1.0), (0.1, 1.0)))
    assert [(e.weight, e.temperature) for e in first.experts] == [(0.9, 2.0), (0.0, 1.0)]
    assert [e.weight for e in second.experts] == [0.0, 0.1]
    assert first.experts[0].alpha == 3.0
