from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemw2s.ensemble import speculation as module
from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.speculation import CHECK_EVERY, TRIAL, NgramDraft, Pace, Speculation
from ensemw2s.errors import ConfigError
from ensemw2s.models import loading

WEIGHTS = [1.0, 2.0, 1.5]
ENDS = (2, 7, 19, 33, 60)
DRAFTS = ["ngram", "member", "folder"]


@pytest.fixture(scope="module")
def ensembles(experts, adapter_folders) -> dict[str, EnsembleForCausalLM]:
    return {
        "stacked": EnsembleForCausalLM(experts, WEIGHTS),
        "adapters": EnsembleForCausalLM(load_members(adapter_folders), WEIGHTS),
    }


@pytest.fixture(scope="module")
def mixed_requests(many) -> list[Request]:
    """Greedy and sampled in turn; prompts that repeat themselves, so that there are n-grams to find."""
    choices = [Sampling(), Sampling(1.0), Sampling(0.5, top_k=6), Sampling(0.8, top_p=0.7)]
    return [
        Request(prompt * 2, 3 + i, ENDS[: i % 6], choices[i % 4], seed=i, votes=2, distributions=2)
        for i, prompt in enumerate(many[:11])
    ]


@pytest.fixture(scope="module")
def without(ensembles, mixed_requests) -> dict[str, dict[int, Generation]]:
    return {kind: dict(Engine(model, slots=5).run(mixed_requests)) for kind, model in ensembles.items()}


@pytest.fixture
def draft_of(full_folders) -> Callable[[str], str]:
    return lambda draft: str(full_folders[1]) if draft == "folder" else draft


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("kind", ["stacked", pytest.param("adapters", marks=pytest.mark.slow)])
def test_answers_with_speculation_are_those_without(ensembles, mixed_requests, without, draft_of, draft, kind):
    speculation = Speculation(draft_of(draft), tokens=3, always=True)
    engine = Engine(ensembles[kind], slots=5, chunk=9, speculation=speculation)
    results = dict(engine.run(mixed_requests))
    assert sorted(results) == list(range(len(mixed_requests)))
    for i, expected in without[kind].items():
        assert results[i].token_ids == expected.token_ids
        assert results[i].finish_reason == expected.finish_reason
        for field in ("logprobs", "agreement", "votes", "top_logprobs", "vote_logprobs"):
            np.testing.assert_allclose(getattr(results[i], field), getattr(expected, field), atol=2e-4, err_msg=field)
    assert engine.counters.accepted < engine.counters.proposed
    if draft == "member":
        assert engine.counters.accepted > 5  # the test means something: right guesses as well as wrong ones


@pytest.mark.parametrize("draft", DRAFTS)
def test_decode_takes_speculation(ensembles, prompts, draft_of, draft):
    options = {"max_new_tokens": 6, "eos_ids": ENDS, "batch_size": 4, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    plain = decode(ensembles["stacked"], prompts, **options)
    quick = decode(ensembles["stacked"], prompts, **options, speculation=Speculation(draft_of(draft), 1, always=True))
    assert [g.token_ids for g in quick] == [g.token_ids for g in plain]


def test_a_draft_that_is_the_ensemble_itself_is_always_right(experts, prompts):
    engine = Engine(experts[0], slots=4, speculation=Speculation("member", tokens=3, always=True))
    requests = [Request(prompt, 12, sampling=Sampling(float(i % 2)), seed=i) for i, prompt in enumerate(prompts[:8])]
    results = dict(engine.run(requests))
    assert {len(g.token_ids) for g in results.values()} == {12}
    assert engine.counters.acceptance == 1.0
    assert engine.counters.steps == 2 * 3  # 12 tokens are three passes of four
    assert engine.counters.tokens == 8 * 12


@pytest.mark.parametrize("draft", ["member", "ngram"])
def test_answers_of_members_with_temperatures_are_those_without_speculation(experts, mixed_requests, draft):
    model = EnsembleForCausalLM(experts, WEIGHTS, temperatures=[1.0, 2.5, 0.4])
    expected = dict(Engine(model, slots=5).run(mixed_requests))
    got = dict(Engine(model, slots=5, speculation=Speculation(draft, tokens=3, always=True)).run(mixed_requests))
    assert {key: g.token_ids for key, g in got.items()} == {key: g.token_ids for key, g in expected.items()}


def test_a_sampled_draft_of_the_ensemble_itself_has_its_temperature_too(experts, prompts):
    model = EnsembleForCausalLM(experts[:1], [1.0], temperatures=[2.0])
    engine = Engine(model, slots=4, speculation=Speculation("member", tokens=3, always=True))
    dict(engine.run([Request(prompt, 9, sampling=Sampling(1.0), seed=i) for i, prompt in enumerate(prompts)]))
    assert engine.counters.acceptance == 1.0


def test_the_member_with_the_largest_weight_drafts(experts, full_folders, prompts):
    requests = [Request(prompt, 8) for prompt in prompts]
    rates = []
    for draft in ("member", str(full_folders[2])):
        model = EnsembleForCausalLM(experts, [1.0, 1.0, 50.0])
        engine = Engine(model, slots=4, speculation=Speculation(draft, always=True))
        list(engine.run(requests))
        rates.append(engine.counters.acceptance)
    assert rates[0] == rates[1]  # the same model, by its place and by its folder
    assert rates[0] > 0.8


def test_repetitions_are_found_and_save_steps(counting):
    model = EnsembleForCausalLM([counting], [1.0])
    request = Request([*range(5, 30), 5], 20)
    plain, quick = Engine(model, slots=1), Engine(model, slots=1, speculation=Speculation(tokens=4, always=True))
    [(_, expected)], [(_, generation)] = plain.run([request]), quick.run([request])
    assert generation.token_ids == expected.token_ids == list(range(6, 26))
    assert quick.counters.acceptance == 1.0
    assert (plain.counters.steps, quick.counters.steps) == (20, 4)


def test_what_follows_an_end_token_in_a_draft_is_dropped(counting):
    engine = Engine(counting, slots=1, speculation=Speculation(tokens=4, always=True))
    updates = []
    engine.submit(Request([*range(5, 30), 5], 20, eos_ids=(8,)))
    while engine.busy:
        updates += engine.step()
    assert [update.token_ids for update in updates] == [[6, 7, 8]]
    assert updates[0].generation.finish_reason == "stop"
    assert updates[0].generation.logprobs.shape == (3,)


def test_drafts_never_go_beyond_the_length_or_the_context(make_model, full_folders):
    models = [make_model(seed) for seed in range(2)]
    prompts = [list(range(3, 61)), [5, 6] * 3, list(range(4, 61))]  # 58, 6 and 57 tokens of 64
    expected = decode(EnsembleForCausalLM(models, [1, 1]), prompts, max_new_tokens=6, eos_ids=(), batch_size=3)
    requests = [Request(prompt, 6) for prompt in prompts]
    for draft in ("ngram", "member", str(full_folders[0])):
        speculation = Speculation(draft, tokens=8, always=True)
        got = dict(Engine(EnsembleForCausalLM(models, [1, 1]), slots=3, speculation=speculation).run(requests))
        assert [got[i].token_ids for i in range(3)] == [g.token_ids for g in expected]


@pytest.mark.slow
@pytest.mark.parametrize(("draft", "sampling"), [("ngram", Sampling(1.0)), ("member", Sampling(1.4, top_k=6))])
def test_sampled_tokens_follow_the_ensembles_distribution(make_model, sampling, draft):
    from scipy.stats import chisquare

    size, count, prompt = 8, 1500, [3, 5, 3, 5, 3]
    model = EnsembleForCausalLM([make_model(seed, vocabulary=size) for seed in (4, 5)], [1.0, 2.0])
    engine = Engine(model, slots=500, chunk=10_000, speculation=Speculation(draft, tokens=2, always=True))
    requests = [Request(prompt, 3, sampling=sampling, seed=seed) for seed in range(count)]
    pairs = [(g.token_ids[0], g.token_ids[1]) for _, g in engine.run(requests)]
    assert engine.counters.accepted > 30

    def distribution(tokens: list[list[int]]) -> torch.Tensor:
        with torch.no_grad():
            members = model.member_log_probs(torch.tensor(tokens))[:, :, -1]
        scores = combine(members, [1.0, 2.0]) / sampling.temperature
        if sampling.top_k:
            least = scores.topk(sampling.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        return scores.softmax(-1).double()

    first = distribution([prompt])[0]
    expected = (first.unsqueeze(-1) * distribution([[*prompt, token] for token in range(size)])).numpy() * count
    seen = np.zeros((size, size))
    for pair in pairs:
        seen[pair] += 1
    assert not seen[expected == 0].any()
    rare = expected < 5
    observed, wanted = np.append(seen[~rare], seen[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert len(wanted) > 10
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 0.001


def running(sequence: list[int], room: int) -> Running:
    """A request that has read this and may still get so many tokens, and one more."""
    return Running(0, Request(sequence, room + 1), sequence, len(sequence), [1.0], None)


def test_an_n_gram_is_followed_by_what_followed_it_last_time():
    def propose(row: list[int], room: int = 9, tokens: int = 3) -> list[int]:
        [draft] = NgramDraft(tokens).propose([running(row, room)])
        return draft

    assert propose([1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5, 1]
    assert propose([1, 2, 3, 7, 9, 3, 8, 1, 2, 3]) == [7, 9, 3]  # three tokens in common beat one that is nearer
    assert propose([1, 5, 1, 6, 1]) == [6, 1]  # the last time counts
    assert propose([4, 4, 4]) == [4]
    assert propose([1, 2, 3]) == []
    assert propose([1]) == []
    assert propose([1, 2, 3, 4, 5, 1], room=1) == [2]
    assert propose([1, 2, 3, 4, 5, 1], room=0) == []
    assert propose([1, 2, 3, 4, 5, 1], tokens=2) == [2, 3]


def test_each_row_has_a_draft_of_its_own():
    drafts = NgramDraft(2).propose([running([1, 2, 1], 9), running([5, 6, 7, 5], 1), running([8], 9)])
    assert drafts == [[2, 1], [6], []]


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def steps(pace: Pace, clock: Clock, count: int, with_: float, without: float, rows: int = 4) -> list[bool]:
    """Steps that take so many seconds a token with drafts and without; whether each drafted."""
    drafted = []
    for _ in range(count):
        with pace.timed(rows) as measured:
            drafted.append(pace.speculate)
            measured.tokens = 3 if pace.speculate else 1
            clock.now += with_ * 3 if pace.speculate else without
    return drafted


def test_drafts_that_pay_go_on(clock):
    drafted = steps(Pace(), clock, 150, with_=1.0, without=2.0)
    assert drafted == [True] * TRIAL + [False] * TRIAL + [True] * (150 - 2 * TRIAL)


def test_drafts_that_do_not_pay_stop_and_are_tried_again(clock):
    drafted = steps(Pace(), clock, 3 * CHECK_EVERY, with_=2.0, without=1.0)
    assert drafted[: 2 * TRIAL] == [True] * TRIAL + [False] * TRIAL
    assert not any(drafted[2 * TRIAL : CHECK_EVERY])
    for trial in (CHECK_EVERY, 2 * CHECK_EVERY):
        assert drafted[trial : trial + TRIAL] == [True] * TRIAL
        assert not any(drafted[trial + TRIAL : trial + CHECK_EVERY])


def test_drafts_that_begin_to_pay_are_noticed_and_so_is_the_contrary(clock):
    pace = Pace()
    steps(pace, clock, 100, with_=2.0, without=1.0)
    assert not pace.speculate
    steps(pace, clock, CHECK_EVERY, with_=0.5, without=1.0)
    assert pace.speculate
    steps(pace, clock, CHECK_EVERY, with_=2.0, without=1.0)
    assert not pace.speculate


def test_one_slow_step_does_not_decide(clock):
    pace = Pace()
    steps(pace, clock, 50, with_=1.0, without=2.0)
    steps(pace, clock, 1, with_=100.0, without=2.0)
    assert pace.speculate


def test_another_number_of_rows_is_measured_anew(clock):
    pace = Pace()
    steps(pace, clock, 50, with_=2.0, without=1.0, rows=4)
    assert not pace.speculate
    assert steps(pace, clock, 20, with_=1.0, without=2.0, rows=5)[-1] is False  # of the same size: what is known holds
    drafted = steps(pace, clock, 50, with_=1.0, without=2.0, rows=32)
    assert drafted[1:TRIAL] == [True] * (TRIAL - 1)
    assert drafted[-1]


def test_drafting_always_means_always(clock):
    assert all(steps(Pace(always=True), clock, 100, with_=9.0, without=1.0))


def test_an_engine_stops_drafting_where_it_does_not_pay(counting, clock, monkeypatch):
    engine = Engine(counting, slots=1, speculation=Speculation())
    assert engine.speculating is True
    draft, take = engine._draft.propose, engine._take

    def tick(seconds: float, call: Callable[..., object]) -> Callable[..., object]:
        def ticking(*args: object) -> object:
            clock.now += seconds
            return call(*args)

        return ticking

    monkeypatch.setattr(engine._draft, "propose", tick(50.0, draft))
    monkeypatch.setattr(engine, "_take", tick(1.0, take))
    [(_, generation)] = engine.run([Request([*range(5, 10)] * 2, 60)])
    assert engine.speculating is False
    assert engine.counters.steps > 2 * TRIAL
    assert 0 < engine.counters.proposed <= 4 * TRIAL
    assert generation.token_ids == [(9 + i) % 64 for i in range(1, 61)]
    assert Engine(counting, slots=1).speculating is None


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (Speculation(tokens=0), "speculation: tokens is 0; expected at least 1"),
        (Speculation("nowhere"), "draft is 'nowhere'; expected ngram, member or a model's folder"),
    ],
)
def test_drafts_that_are_not_known_are_refused(ensembles, speculation, message):
    with pytest.raises(ConfigError, match=message):
        Engine(ensembles["stacked"], slots=2, speculation=speculation)


def test_a_draft_of_another_vocabulary_is_refused(make_model, tokenizer, tmp_path: Path, ensembles):
    loading.save_trained(make_model(0, vocabulary=65), tokenizer, tmp_path / "other")
    with pytest.raises(ConfigError, match="other has a vocabulary of 65 tokens and the ensemble one of 64"):
        Engine(ensembles["stacked"], slots=2, speculation=Speculation(str(tmp_path / "other")))


def test_a_draft_that_cannot_take_back_tokens_is_refused(make_other, tokenizer, tmp_path: Path, ensembles):
    loading.save_trained(make_other("no positions", 0), tokenizer, tmp_path / "bloom")
    with pytest.raises(ConfigError, match=r"bloom runs one prompt at a time .*; choose another"):
        Engine(ensembles["stacked"], slots=2, speculation=Speculation(str(tmp_path / "bloom")))


def test_members_that_cannot_take_back_tokens_decode_without_drafts_and_are_named(experts, make_other, prompts, caplog):
    model = EnsembleForCausalLM([experts[0], make_other("no positions", 0)], [1.0, 1.0], names=["llama", "bloom"])
    engine = Engine(model, slots=3, speculation=Speculation(always=True))
    assert engine.speculating is None
    assert (
        "no speculation: bloom runs one prompt at a time (BloomForCausalLM has an attention of its own)" in caplog.text
    )
    requests = [Request(prompt * 2, 4) for prompt in prompts[:3]]
    results, plain = dict(engine.run(requests)), dict(Engine(model, slots=3).run(requests))
    assert [results[i].token_ids for i in range(3)] == [plain[i].token_ids for i in range(3)]
    assert engine.counters.proposed == 0
