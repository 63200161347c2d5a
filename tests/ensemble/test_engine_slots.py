"""The life of requests in an engine: they come and go at any time, and never notice each other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ensemw2s.ensemble import slots
from ensemw2s.ensemble.combine import agreement, combine
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.errors import ConfigError, DataError, ModelError, ResourceError
from ensemw2s.models import tiny

WEIGHTS = [1.0, 2.0, 1.5]
ENDS = (2, 7, 19, 33, 60)
KINDS = ["stacked", "adapters", "mixed"]
SLOW = pytest.mark.slow
EACH = pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=SLOW) for kind in KINDS[1:])])


@pytest.fixture(scope="module")
def ensembles(experts, adapter_folders, make_other) -> dict[str, EnsembleForCausalLM]:
    others = [experts[0], make_other("learned positions", 0), make_other("no positions", 1)]
    return {
        "stacked": EnsembleForCausalLM(experts, WEIGHTS),
        "adapters": EnsembleForCausalLM(load_members(adapter_folders), WEIGHTS),
        "mixed": EnsembleForCausalLM(others, WEIGHTS),
    }


@pytest.fixture(scope="module")
def alone(ensembles, tokenizer) -> Callable[[str, Request], Generation]:
    """A request decoded with nothing else around it."""
    engines = {kind: Engine(model, slots=1, tokenizer=tokenizer) for kind, model in ensembles.items()}
    known: dict[tuple[str, str], Generation] = {}

    def decode(kind: str, request: Request) -> Generation:
        key = (kind, repr(request))
        if key not in known:
            [(_, known[key])] = engines[kind].run([request])
        return known[key]

    return decode


@pytest.fixture(scope="module")
def varied(many) -> list[Request]:
    """Requests that differ in all of their options but stop strings."""
    choices = [Sampling(), Sampling(1.0), Sampling(0.7, top_k=5), Sampling(1.3, top_p=0.8), Sampling(1.0, 20, 0.9)]
    weights = [None, {"member-0": 1.0}, {"member-1": 1.0, "member-2": 3.0}]
    return [
        Request(
            prompt,
            max_new_tokens=1 + i * 7 % 12,
            eos_ids=ENDS[: i % 6],
            sampling=choices[i % 5],
            seed=i,
            distributions=(0, 3, 1)[i % 3],
            votes=(0, 0, 2, 4)[i % 4],
            weights=weights[i % 3],
        )
        for i, prompt in enumerate(many[:14])
    ]


def finish(engine: Engine) -> dict[int, Generation]:
    """Steps until nothing is left to do; the generations by key."""
    done = {}
    while engine.busy:
        done.update({u.key: u.generation for u in engine.step() if u.generation is not None})
    return done


def assert_same(one: Generation, other: Generation) -> None:
    assert (one.token_ids, one.finish_reason, one.stop) == (other.token_ids, other.finish_reason, other.stop)
    np.testing.assert_array_equal(one.votes, other.votes)
    for field in ("logprobs", "agreement", "top_logprobs", "vote_logprobs"):
        mine, its = getattr(one, field), getattr(other, field)
        assert (mine is None) == (its is None), field
        if mine is not None:
            assert mine.shape == its.shape, field
            np.testing.assert_allclose(mine, its, atol=1e-4, err_msg=field)


@EACH
def test_requests_of_all_kinds_share_a_batch_and_each_gets_what_it_gets_alone(ensembles, alone, varied, kind):
    results = dict(Engine(ensembles[kind], slots=6).run(varied))
    assert sorted(results) == list(range(len(varied)))
    for i, request in enumerate(varied):
        assert_same(results[i], alone(kind, request))
    assert len({g.finish_reason for g in results.values()}) == 2
    assert len({len(g.token_ids) for g in results.values()}) > 5


@EACH
def test_what_is_streamed_adds_up_to_the_generation(ensembles, varied, kind):
    engine = Engine(ensembles[kind], slots=4)
    keys = [engine.submit(request) for request in varied[:8]]
    streamed: dict[int, list[int]] = {key: [] for key in keys}
    done = {}
    while engine.busy:
        for update in engine.step():
            assert update.key not in done
            streamed[update.key] += update.token_ids
            if update.generation:
                done[update.key] = update.generation.token_ids
    assert done == streamed


@EACH
def test_requests_that_join_midway_change_nothing_and_get_what_they_get_alone(ensembles, alone, many, kind):
    engine = Engine(ensembles[kind], slots=4, chunk=6)
    requests = [Request(prompt, 7, seed=i, sampling=Sampling(1.0)) for i, prompt in enumerate(many[:5])]
    done: dict[int, Generation] = {}
    keys = []
    for request in requests:
        keys.append(engine.submit(request))
        for _ in range(2):
            done.update({u.key: u.generation for u in engine.step() if u.generation})
    done.update(finish(engine))
    for key, request in zip(keys, requests, strict=True):
        assert_same(done[key], alone(kind, request))


@pytest.mark.parametrize("chunk", [1, 4, 500])
def test_the_size_of_the_chunks_in_which_prompts_are_read_does_not_matter(ensembles, alone, many, chunk):
    requests = [Request(prompt, 4) for prompt in many[:5]]
    engine = Engine(ensembles["mixed"], slots=3, chunk=chunk)
    for i, generation in engine.run(requests):
        assert_same(generation, alone("mixed", requests[i]))
    assert engine.counters.prompt_tokens == sum(len(prompt) - 1 for prompt in many[:5])


def test_a_long_prompt_is_read_between_the_steps_of_those_being_answered(ensembles, many):
    engine = Engine(ensembles["stacked"], slots=2, chunk=4)
    first = engine.submit(Request([5, 6], 20))
    engine.step()
    second = engine.submit(Request(many[0] + many[2] + many[3], 3))
    answered = [[update.key for update in engine.step()] for _ in range(12)]
    waited = answered.index([first, second])
    assert answered[:waited] == [[first]] * waited
    assert waited == -(-(len(many[0] + many[2] + many[3]) - 1) // 4) - 1  # all chunks but the last, whose step it joins


@EACH
def test_short_prompts_that_come_while_a_long_one_is_read_are_answered_first(ensembles, alone, many, kind):
    long = [token for prompt in many for token in prompt][:50]
    others = [Request(prompt, 6, seed=i, sampling=Sampling(1.0)) for i, prompt in enumerate(p[:3] for p in many[:4])]
    engine = Engine(ensembles[kind], slots=4, chunk=4)
    last = [engine.submit(Request(long, 3)), engine.submit(Request(long[::-1], 3))]
    engine.step()
    keys, done, order = [], {}, []
    for request in others:
        keys.append(engine.submit(request))
        for update in engine.step():
            if update.generation:
                done[update.key] = update.generation
    while engine.busy:
        for update in engine.step():
            if update.generation:
                done[update.key] = update.generation
                order.append(update.key)
    for key, request in zip([*last, *keys], [Request(long, 3), Request(long[::-1], 3), *others], strict=True):
        assert_same(done[key], alone(kind, request))
    assert order[-2:] == last, "a short prompt waited for a long one"


@pytest.mark.slow
def test_a_long_prompt_that_is_read_when_others_leave_stays_behind_those_that_come(ensembles, alone, many):
    """Slots are freed before it, at each place there is; nothing that it has read is lost."""
    long = [token for prompt in many for token in prompt][:40]
    for leaves in range(4):
        engine = Engine(ensembles["mixed"], slots=6, chunk=8)
        keys = [engine.submit(Request(prompt[:2], 9)) for prompt in many[:4]]
        engine.step()
        under_way = engine.submit(Request(long, 4))
        engine.step()
        engine.cancel(keys[leaves])
        joined = engine.submit(Request(many[5][:3], 4))
        done = finish(engine)
        assert_same(done[under_way], alone("mixed", Request(long, 4)))
        assert_same(done[joined], alone("mixed", Request(many[5][:3], 4)))
        for key, prompt in zip(keys, many, strict=False):
            if key != keys[leaves]:
                assert_same(done[key], alone("mixed", Request(prompt[:2], 9)))


def test_slots_are_taken_again_and_take_no_more_memory(ensembles, many):
    engine = Engine(ensembles["stacked"], slots=3)
    keys = [engine.submit(Request(prompt, 5)) for prompt in many]
    assert (engine.running, engine.waiting, engine.busy) == (0, 20, True)
    seen = []
    done = {}
    sizes = []
    while engine.busy:
        done.update({u.key: u.generation for u in engine.step() if u.generation})
        seen.append(engine.running)
        sizes.append(engine.groups[0].cache.bytes)
    assert set(done) == set(keys)
    assert max(seen) <= 3
    assert len(set(sizes)) == 1
    assert (engine.running, engine.waiting, engine.busy) == (0, 0, False)


def test_a_row_that_ends_is_replaced_before_the_others_end(ensembles):
    engine = Engine(ensembles["stacked"], slots=2)
    long, short, next_one = (engine.submit(Request([5 + n], n)) for n in (12, 2, 3))
    order = []
    while engine.busy:
        order += [update.key for update in engine.step() if update.generation]
    assert order == [short, next_one, long]
    assert engine.counters.steps < 12 + 3


def test_the_counters_count(ensembles, many):
    engine = Engine(ensembles["stacked"], slots=4)
    results = dict(engine.run([Request(prompt, 6, eos_ids=ENDS) for prompt in many]))
    total = sum(len(g.token_ids) for g in results.values())
    counters = engine.counters
    assert (counters.tokens, counters.rows) == (total, total)  # a token a row and step without speculation
    assert total / 4 <= counters.steps < total
    assert counters.prompt_tokens == sum(len(prompt) - 1 for prompt in many)
    assert (counters.proposed, counters.accepted, counters.acceptance) == (0, 0, None)


@pytest.mark.parametrize("kind", ["stacked", "adapters"])
def test_members_that_share_a_pass_are_rows_of_one_forward(ensembles, kind):
    engine = Engine(ensembles[kind], slots=4)
    [group] = engine.groups
    rows = []
    group.network.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    for n in range(4):
        engine.submit(Request([5 + n], 3))
    finish(engine)
    assert rows == [3 * 4] * 3


def test_the_engine_says_how_each_member_runs(ensembles, experts, adapter_folders):
    assert Engine(ensembles["stacked"], slots=2).kinds == {
        f"member-{i}": "stacked full weights, one pass" for i in range(3)
    }
    assert Engine(ensembles["adapters"], slots=2).kinds == {
        f"member-{i}": "adapters on one base, one pass" for i in range(3)
    }
    assert Engine(ensembles["mixed"], slots=2).kinds == {
        "member-0": "one pass",
        "member-1": "one pass",
        "member-2": "one prompt at a time (BloomForCausalLM has an attention of its own)",
    }
    members = [experts[0], *load_members(adapter_folders[:2]), experts[1]]
    model = EnsembleForCausalLM(members, [1.0] * 4, names=["a", "b", "c", "d"])
    full, low_rank = "stacked full weights, one pass", "adapters on one base, one pass"
    assert Engine(model, slots=2).kinds == {"a": full, "b": low_rank, "c": low_rank, "d": full}


def test_members_come_out_in_their_own_order_however_they_are_grouped(experts, adapter_folders, prompts):
    members = [experts[0], *load_members(adapter_folders[:2]), experts[1]]
    model = EnsembleForCausalLM(members, [1.0] * 4)
    [(_, generation)] = Engine(model, slots=2).run([Request(prompts[0], 4)])
    with torch.no_grad():
        expected = model.member_log_probs(torch.tensor([prompts[0] + generation.token_ids]))[:, 0, -5:-1].argmax(-1)
    np.testing.assert_array_equal(generation.votes, expected.T)


def test_votes_are_each_experts_likeliest_tokens(ensembles, prompts):
    model = ensembles["mixed"]
    [(_, generation)] = Engine(model, slots=2).run([Request(prompts[3], 5, votes=4, sampling=Sampling(1.0))])
    with torch.no_grad():
        members = model.member_log_probs(torch.tensor([prompts[3] + generation.token_ids]))[:, 0, -6:-1]
    top = members.topk(4).indices.permute(1, 0, 2)
    assert (generation.vote_tokens.shape, generation.vote_tokens.dtype) == ((5, 3, 4), np.int32)
    np.testing.assert_array_equal(generation.vote_tokens, top)
    np.testing.assert_allclose(generation.vote_logprobs, members.permute(1, 0, 2).gather(-1, top), atol=1e-4)
    np.testing.assert_array_equal(generation.vote_tokens[:, :, 0], generation.votes)
    [(_, without)] = Engine(model, slots=2).run([Request(prompts[3], 5, distributions=2)])
    assert (without.vote_tokens, without.vote_logprobs) == (None, None)


@pytest.mark.parametrize("rule", ["probability", "log_probability", "vote"])
def test_weights_of_a_request_stand_in_for_those_of_the_ensemble(experts, prompts, rule):
    names = ["a", "b", "c"]
    engine = Engine(EnsembleForCausalLM(experts, WEIGHTS, rule, names), slots=4)
    given = [{"a": 5.0, "c": 1.0}, None, {"b": 1.0}]
    results = dict(engine.run([Request(prompts[2], 6, weights=weights) for weights in given]))
    for i, weights in enumerate(([5.0, 0.0, 1.0], WEIGHTS, [0.0, 1.0, 0.0])):
        [(_, expected)] = Engine(EnsembleForCausalLM(experts, weights, rule), slots=1).run([Request(prompts[2], 6)])
        assert_same(results[i], expected)
        taken = torch.tensor(results[i].token_ids)
        shares = agreement(torch.tensor(results[i].votes.T, dtype=torch.int64), taken, weights)
        np.testing.assert_allclose(results[i].agreement, shares, atol=1e-6)
    if rule == "probability":
        assert len({tuple(g.token_ids) for g in results.values()}) == 3


def test_log_probabilities_are_those_before_temperature_and_cut_offs(ensembles, prompts):
    model = ensembles["stacked"]
    request = Request(prompts[2], 6, sampling=Sampling(2.0, top_k=4), seed=3)
    [(_, generation)] = Engine(model, slots=1).run([request])
    with torch.no_grad():
        members = model.member_log_probs(torch.tensor([prompts[2] + generation.token_ids]))[:, 0, -7:-1]
    taken = combine(members, WEIGHTS).gather(-1, torch.tensor(generation.token_ids)[:, None])[:, 0]
    np.testing.assert_allclose(generation.logprobs, taken, atol=1e-4)


@EACH
def test_a_waiting_a_running_and_a_half_read_request_can_be_cancelled(ensembles, alone, many, kind):
    engine = Engine(ensembles[kind], slots=5, chunk=4)
    requests = [Request(prompt, 8, votes=2) for prompt in ([5], [6, 7], [8], [9], many[0] + many[3], [10], [11, 12])]
    keys = [engine.submit(request) for request in requests[:4]]
    while len(engine.step()) < 4:
        pass
    keys += [engine.submit(request) for request in requests[4:]]
    engine.step()
    assert (engine.running, engine.waiting) == (5, 2)
    running, being_read, waiting = engine.cancel(keys[1]), engine.cancel(keys[4]), engine.cancel(keys[5])
    assert (engine.running, engine.waiting) == (3, 1)
    assert {g.finish_reason for g in (running, being_read, waiting)} == {"cancelled"}
    expected = alone(kind, requests[1])
    count = len(running.token_ids)
    assert 0 < count < 8
    assert running.token_ids == expected.token_ids[:count]
    np.testing.assert_allclose(running.vote_logprobs, expected.vote_logprobs[:count], atol=1e-4)
    assert being_read.token_ids == waiting.token_ids == []
    assert waiting.votes.shape == (0, 3)
    assert waiting.vote_tokens.shape == (0, 3, 2)
    assert all(engine.cancel(key) is None for key in (keys[1], keys[4], keys[5], 999))
    done = finish(engine)
    assert set(done) == {keys[i] for i in (0, 2, 3, 6)}
    for i in (0, 2, 3, 6):
        assert_same(done[keys[i]], alone(kind, requests[i]))


def test_a_request_that_has_ended_cannot_be_cancelled(ensembles):
    engine = Engine(ensembles["stacked"], slots=2)
    key = engine.submit(Request([5], 2))
    finish(engine)
    assert engine.cancel(key) is None


def test_a_slot_that_was_not_read_yet_moves_when_another_ends(ensembles, alone):
    engine = Engine(ensembles["mixed"], slots=3, chunk=8)
    requests = [Request([5], 3), Request([6, 7, 8, 9, 10, 11, 12], 3), Request([13], 3)]
    keys = [engine.submit(requests[0])]
    engine.step()
    engine.step()
    keys += [engine.submit(request) for request in requests[1:]]
    done = finish(engine)  # the first ends while the second is half read and the third has nothing to read
    for key, request in zip(keys, requests, strict=True):
        assert_same(done[key], alone("mixed", request))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "draft", "seed"),
    [
        ("stacked", None, 0),
        pytest.param("stacked", "member", 1, marks=SLOW),
        pytest.param("adapters", None, 2, marks=SLOW),
        ("adapters", "ngram", 3),
        ("mixed", None, 4),
        pytest.param("mixed", None, 5, marks=SLOW),
    ],
)
def test_whatever_comes_and_goes_each_request_gets_what_it_gets_alone(ensembles, alone, varied, kind, draft, seed):
    generator = np.random.default_rng(seed)
    speculation = Speculation(draft, tokens=3, always=True) if draft else None
    slots, chunk = int(generator.integers(2, 6)), int(generator.integers(1, 20))
    engine = Engine(ensembles[kind], slots=slots, chunk=chunk, speculation=speculation)
    left = [varied[i] for i in generator.permutation(len(varied))]
    under_way: dict[int, Request] = {}
    compared = cancelled = 0
    while left or engine.busy:
        for _ in range(int(generator.integers(0, 4))):
            if left:
                request = left.pop()
                under_way[engine.submit(request)] = request
        if under_way and generator.random() < 0.15:
            key = int(generator.choice(list(under_way)))
            partial, request = engine.cancel(key), under_way.pop(key)
            assert partial is not None
            assert partial.token_ids == alone(kind, request).token_ids[: len(partial.token_ids)]
            cancelled += 1
        for update in engine.step():
            if update.generation is not None:
                assert_same(update.generation, alone(kind, under_way.pop(update.key)))
                compared += 1
        assert engine.running <= slots
    assert not under_way
    assert compared + cancelled == len(varied)
    assert cancelled > 0


def text_of(tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("speculation", [None, Speculation("ngram", always=True)], ids=["plain", "ngram"])
def test_a_stop_string_ends_an_answer_where_it_is_complete(ensembles, tokenizer, many, speculation):
    engine = Engine(ensembles["stacked"], slots=4, tokenizer=tokenizer, speculation=speculation)
    whole = dict(engine.run([Request(prompt, 9) for prompt in many[:14]]))
    texts = {i: text_of(tokenizer, g.token_ids) for i, g in whole.items()}
    stops = {i: (text[len(text) // 2 :][:4], "\0never", text[-3:]) for i, text in texts.items() if "�" not in text}
    requests = [Request(many[i], 9, stop=found) for i, found in stops.items()]
    spanning = 0
    for place, generation in engine.run(requests):
        i, stop = list(stops.items())[place]
        prefixes = (whole[i].token_ids[:n] for n in range(1, 10))
        expected = next(ids for ids in prefixes if any(s in text_of(tokenizer, ids) for s in stop))
        assert generation.token_ids == expected
        assert generation.finish_reason == "stop"
        assert generation.stop in stop
        assert generation.stop in text_of(tokenizer, expected)
        spanning += generation.stop not in text_of(tokenizer, expected[-1:])
    assert len(requests) > 6
    assert spanning > 2  # the test means something: strings of several tokens


def test_the_first_of_several_stop_strings_is_named(counting, tokenizer):
    engine = Engine(counting, slots=1, tokenizer=tokenizer)
    [(_, generation)] = engine.run([Request([20], 9)])
    last = next(n for n in range(3, 9) if text_of(tokenizer, [20 + n]) not in text_of(tokenizer, [*range(21, 20 + n)]))
    words = text_of(tokenizer, generation.token_ids[:last])
    short = text_of(tokenizer, [20 + last])
    for stop in ((short, words), (words, short)):
        [(_, generation)] = engine.run([Request([20], 9, stop=stop)])
        assert (generation.stop, len(generation.token_ids)) == (words, last)  # both end here, this one begins before


def test_a_stop_string_in_the_prompt_ends_nothing(counting, tokenizer):
    engine = Engine(counting, slots=1, tokenizer=tokenizer)
    stop = text_of(tokenizer, [20, 21])
    [(_, generation)] = engine.run([Request([19, 20], 6, stop=(stop,))])
    assert (generation.finish_reason, generation.stop) == ("length", None)
    assert generation.token_ids == [21, 22, 23, 24, 25, 26]


def test_a_stop_string_whose_every_byte_is_a_token_ends_an_answer(counting):
    # Eight characters of three bytes, all different, so that each token has one that follows it.
    text = "".join(bytes([0xE3 + i, 0x80 + 2 * i, 0x81 + 2 * i]).decode() for i in range(8))
    bytewise = tiny.train_tokenizer([text], 0)
    ids = bytewise.encode(text, add_special_tokens=False)
    assert len(ids) == 24

    class Counted:
        """The tokenizer with other ids: the text is 10, 11, 12, …."""

        def decode(self, tokens: list[int]) -> str:
            return str(bytewise.decode([ids[(token - 10) % 24] for token in tokens]))

    engine = Engine(counting, slots=1, tokenizer=Counted())
    [(_, generation)] = engine.run([Request([9], 40, stop=(text,))])
    assert (generation.finish_reason, generation.stop) == ("stop", text)
    assert generation.token_ids == list(range(10, 34))


def test_what_is_wrong_with_a_request_touches_none_of_the_others(ensembles, alone, many):
    engine = Engine(ensembles["adapters"], slots=3, chunk=5)
    requests = [Request(prompt, 8) for prompt in many[:5]]
    keys = [engine.submit(request) for request in requests[:3]]
    engine.step()
    for bad, error, message in [
        (Request([], 5), DataError, "prompt is empty; expected at least one token"),
        (Request([5] * 60, 5), ModelError, "prompt has 60 tokens, which with 5 new tokens is more than .* 64"),
        (Request([5, 64], 5), DataError, "token 64, outside the vocabulary of 64; was it tokenized with another"),
        (Request([5], 5, weights={"nobody": 1.0}), ModelError, "weights name 'nobody', which is no expert here"),
        (Request([5], 5, stop=("x",)), ConfigError, "stop strings need a tokenizer"),
    ]:
        before = (engine.running, engine.waiting)
        with pytest.raises(error, match=message):
            engine.submit(bad)
        assert (engine.running, engine.waiting) == before
        engine.step()
    keys += [engine.submit(request) for request in requests[3:]]
    done = finish(engine)
    for key, request in zip(keys, requests, strict=True):
        if key in done:
            assert_same(done[key], alone("adapters", request))
    assert keys[4] in done


@SLOW
def test_a_request_that_fills_the_context_to_the_last_token_is_answered(ensembles, alone):
    full = Request(list(range(3, 61)), 6)  # 58 + 6 = 64
    for kind in KINDS:
        results = dict(Engine(ensembles[kind], slots=3).run([full, Request([5], 9), full]))
        assert_same(results[0], alone(kind, full))
        assert_same(results[2], alone(kind, full))


def test_engines_of_one_ensemble_do_not_disturb_each_other(ensembles, alone, many):
    requests = [Request(prompt, 4) for prompt in many[:3]]
    for kind in ("adapters", "mixed"):  # adapters are switched where a member runs alone
        engines = [Engine(ensembles[kind], slots=2) for _ in range(2)]
        keys = [[engine.submit(request) for request in requests] for engine in engines]
        done: list[dict[int, Generation]] = [{}, {}]
        while any(engine.busy for engine in engines):
            for engine, results in zip(engines, done, strict=True):
                results.update({u.key: u.generation for u in engine.step() if u.generation})
        for mine, results in zip(keys, done, strict=True):
            for key, request in zip(mine, requests, strict=True):
                assert_same(results[key], alone(kind, request))


def test_an_engine_without_slots_or_with_an_empty_chunk_is_refused(ensembles):
    with pytest.raises(ConfigError, match="slots is 0; expected at least 1"):
        Engine(ensembles["stacked"], slots=0)
    with pytest.raises(ConfigError, match="chunk is 0; expected at least 1"):
        Engine(ensembles["stacked"], slots=1, chunk=0)


def test_a_request_for_which_there_is_no_memory_is_refused_and_others_are_not_touched(ensembles, varied, alone):
    engine = Engine(ensembles["adapters"], slots=2)
    key = engine.submit(varied[1])
    engine.step()
    reserve = engine.groups[0].cache.reserve

    def short_of_memory(length: int) -> None:
        if length > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        reserve(length)

    engine.groups[0].cache.reserve = short_of_memory
    with pytest.raises(ResourceError, match=r"no memory for 64 tokens in each of 2 slots.*labeling\.batch_size"):
        engine.submit(Request([5, 6, 7, 8], 60))
    assert finish(engine)[key].token_ids == alone("adapters", varied[1]).token_ids


@pytest.mark.parametrize("speculation", [None, Speculation("ngram", 3, always=True)])
def test_no_step_needs_memory_that_was_not_taken_before(ensembles, many, speculation, monkeypatch):
    monkeypatch.setattr(slots, "GROWTH", 8)  # else one allocation is enough for these models' whole context
    engine = Engine(ensembles["adapters"], slots=3, speculation=speculation, chunk=16)
    for i, prompt in enumerate(many[:6]):
        engine.submit(Request(prompt[:6], 40 - 5 * i))
    before = engine.groups[0].cache.bytes
    finish(engine)
    assert engine.groups[0].cache.bytes == before


def test_the_padding_of_a_short_piece_beside_long_ones_takes_no_room(ensembles, monkeypatch):
    monkeypatch.setattr(slots, "GROWTH", 8)
    wanted = [Request([5] * 35, 2), *(Request([6] * 31, 2) for _ in range(6))]
    expected = [dict(Engine(ensembles["adapters"], slots=1, chunk=16).run([r]))[0].token_ids for r in wanted]
    engine = Engine(ensembles["adapters"], slots=2, chunk=16)
    keys = {engine.submit(request): i for i, request in enumerate(wanted)}
    before, found = engine.groups[0].cache.moves, {}
    while engine.busy:
        found |= {keys[u.key]: u.generation.token_ids for u in engine.step() if u.generation is not None}
    assert engine.groups[0].cache.moves == before, "the cache grew within a step"
    assert [found[i] for i in range(len(wanted))] == expected
